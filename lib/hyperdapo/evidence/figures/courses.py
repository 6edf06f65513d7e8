"""Figures of 09_significance behind the means: costs over time, their distribution, and what they depend on."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperdapo.evidence.figures import style
from hyperdapo.evidence.hypotheses.conditions import INTERACTION
from hyperdapo.evidence.metrics import TOGETHER, TOTAL
from hyperdapo.evidence.tables import heading

_HOUR_NS = 3_600_000_000_000
_ACROSS = 2
"""Panels in a row, where lines are labelled at their ends."""


def plot_cumulative(courses: pd.DataFrame) -> Figure:
    """The difference to each reference added up over the test span, per asset; a line ends at the mean difference.

    `courses` is `cumulative.parquet`. A steady slope is a difference that all of the span has, a step one that a
    moment decided; below zero the policy is cheaper.
    """
    assets = list(courses["asset"].unique())
    figure, axes = _panels(len(assets), 0.36)
    for axis, (asset, own) in zip(axes, courses.groupby("asset", sort=False), strict=False):
        ends, colours = dict[str, float](), dict[str, str]()
        for reference, course in own.groupby("reference", sort=False):
            hours = (course["decision_ns"] - own["decision_ns"].min()) / _HOUR_NS
            colour, name = style.STRATEGY_COLOURS[str(reference)], heading(str(reference))
            marks: dict[str, Any] = {"marker": style.marker(str(reference)), "markersize": 3, "markevery": 0.15}
            axis.plot(hours, course["cumulative_bps"], color=colour, **marks)
            ends[name], colours[name] = float(course["cumulative_bps"].iloc[-1]), colour
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(asset)
        style.label_ends(axis, ends, colours, gap=0.085)
    _label(figure, axes, len(assets), "hours since the first test order")
    figure.supylabel(f"{heading(courses['strategy'].iloc[0])} minus each, added up (bps of all orders)", fontsize=9)
    return figure


def plot_distribution(quantiles: pd.DataFrame, strategies: list[str]) -> Figure:
    """The share of orders that cost at most so much (ECDF), per asset: what lies behind equal means.

    `quantiles` is `distribution.parquet`; the outer twentieths are left out: a few orders would set the scale.
    """
    shown = quantiles[quantiles["strategy"].isin(strategies) & quantiles["share"].between(0.05, 0.95)]
    assets = list(shown["asset"].unique())
    figure, axes = _panels(len(assets), 0.34, sharex=True)
    for axis, (asset, own) in zip(axes, shown.groupby("asset", sort=False), strict=False):
        for place, name in enumerate(name for name in strategies if name in set(own["strategy"])):
            course = own[own["strategy"] == name]
            marks: dict[str, Any] = {"marker": style.marker(name), "markersize": 3, "markevery": (3 * place, 20)}
            colour = style.STRATEGY_COLOURS[name]
            axis.plot(course[TOTAL], 100 * course["share"], color=colour, label=heading(name), **marks)
        axis.set_title(asset)
    _label(figure, axes, len(assets), "total cost (bps)")
    figure.supylabel("orders that cost at most so much (%)", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def plot_conditions(table: pd.DataFrame) -> Figure:
    """The difference by tercile of each regime, per asset, with the p-value of the interaction; "
    "`conditions.parquet`."""
    regimes, assets = list(table["regime"].unique()), list(table["asset"].unique())
    figure, axes = style.new(1, len(regimes), height=0.2 + 0.075 * len(assets), sharex=True, sharey=True, squeeze=False)
    for axis, regime in zip(axes[0], regimes, strict=True):
        own = table[table["regime"] == regime]
        levels = [str(level) for level in own["level"].unique() if level != INTERACTION]
        for place, asset in enumerate(assets):
            _draw_levels(axis, own[own["asset"] == asset].set_index("level"), levels, place)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"by {regime}")
    names = ["all assets" if asset == TOGETHER else asset for asset in assets]
    axes[0, 0].set_yticks(range(len(assets)), names)
    axes[0, 0].set_ylim(len(assets) - 0.5, -0.5)
    strategy, reference = (heading(table[name].iloc[0]) for name in ("strategy", "reference"))
    figure.supxlabel(f"total cost of {strategy} minus {reference.lower()} (bps)", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=3)
    return figure


def _draw_levels(axis: Axes, rows: pd.DataFrame, levels: list[str], place: int) -> None:
    shifts = np.linspace(-0.22, 0.22, len(levels))
    for shift, level, marker, colour in zip(
        shifts, levels, ["v", "s", "^"], ("#56B4E9", "#999999", "#D55E00"), strict=False
    ):
        if level in rows.index:
            row = rows.loc[level]
            axis.hlines(place + shift, row["ci_low"], row["ci_high"], color=colour)
            axis.plot(
                row["difference_bps"], place + shift, marker, color=colour, markersize=4, label=f"{level} tercile"
            )
    p_value = rows["p_holm"].get(INTERACTION, np.nan)
    said = "interaction not testable" if np.isnan(p_value) else f"interaction p = {p_value:.2f}"
    axis.annotate(said, (0.99, place - 0.38), xycoords=("axes fraction", "data"), fontsize=6.5, ha="right", va="center")


def _panels(number: int, height: float, **shared: bool) -> tuple[Figure, list[Axes]]:
    """Axes of so many panels, two in a row, one scale to a row."""
    rows = -(-number // _ACROSS)
    figure, axes = style.new(
        rows, min(number, _ACROSS), height=0.1 + height * rows, sharey="row", squeeze=False, **shared
    )
    flat = list(axes.flat)
    for spare in flat[number:]:
        spare.set_axis_off()
    return figure, flat


def _label(figure: Figure, axes: list[Axes], number: int, text: str) -> None:
    for axis in axes[:number][-_ACROSS:]:
        axis.set_xlabel(text)
