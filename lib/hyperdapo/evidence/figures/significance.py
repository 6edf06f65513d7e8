"""Figures of 09_significance: what a policy gains, with its interval, per asset."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from hyperdapo.evidence.figures import style
from hyperdapo.evidence.gaps import RIVALS
from hyperdapo.evidence.hypotheses.registered import FAILED, NOT_AVAILABLE, NOT_ESTABLISHED
from hyperdapo.evidence.metrics import FEES, PRICE, TOTAL, Floats
from hyperdapo.evidence.tables import heading

_PARTS = {FEES: ("fees", "#56B4E9"), PRICE: ("price", "#E69F00")}
_YARDSTICKS = ("untrained", "best_fixed", *RIVALS, "oracle")


def plot_learning_gap(gaps: pd.DataFrame) -> Figure:
    """Mean held-out reward of every policy, and the share of the gap from best fixed to oracle that training closed.

    `gaps` is `learning_gap_over_seeds.csv`; the bars on the right are block bootstrap intervals.
    """
    assets = list(gaps["asset"].unique())
    height = 0.2 + (0.03 + 0.02 * gaps["algorithm"].nunique()) * len(assets)
    figure, (reward, share) = style.new(1, 2, height=height, sharey=True, width_ratios=[3, 2])
    for row, asset in enumerate(assets):
        _draw_rewards(reward, row, gaps[gaps["asset"] == asset])
        _draw_shares(share, row, gaps[gaps["asset"] == asset])
    reward.set_yticks(range(len(assets)), assets)
    reward.set_ylim(len(assets) - 0.5, -0.5)
    reward.set_xlabel("mean reward on held-out states (bps)")
    share.axvline(0, color="black", linewidth=0.8)
    share.set_xlabel("share of the gap from best fixed\nto oracle that is closed (%)")
    for axis in (reward, share):
        axis.grid(visible=False, axis="y")
    handles, labels = reward.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=5)
    return figure


def plot_main(main: pd.DataFrame, by: str, strategies: list[str]) -> Figure:
    """Mean total cost of each strategy and its interval over blocks of time, by asset or by world.

    A panel for each value of the column `by`. The oracle, which would need most of the axis for itself, is an arrow
    with its cost.
    """
    panels, shown = list(main[by].unique()), main[main["strategy"].isin(strategies) & (main["strategy"] != "oracle")]
    figure, axes = style.new(
        1, len(panels), height=0.12 + 0.038 * len(strategies), sharex=True, sharey=True, squeeze=False
    )
    _span(axes[0, 0], shown[[TOTAL, "ci_low", "ci_high"]])
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = main[main[by] == panel].set_index("strategy")
        for place, name in enumerate(strategies):
            if name in rows.index:
                row, colour = rows.loc[name], style.STRATEGY_COLOURS[name]
                axis.hlines(place, row["ci_low"], row["ci_high"], color=colour)
                axis.plot(row[TOTAL], place, style.marker(name), color=colour, markersize=2.5)
                if row[TOTAL] < axis.get_xlim()[0]:
                    _beyond(axis, place, f"{row[TOTAL]:z.1f}", colour)
        axis.set_title(panel)
    axes[0, 0].set_yticks(range(len(strategies)), [heading(name) for name in strategies])
    axes[0, 0].set_ylim(len(strategies) - 0.5, -0.5)
    figure.supxlabel("mean total cost (bps)", fontsize=9)
    return figure


def plot_forest(tests: pd.DataFrame, strategies: list[str], reference: str) -> Figure:
    """Difference to the reference, with its own interval (thick) and the family's (thin), per asset; left is cheaper.

    A filled dot is significant: the interval of the family leaves zero out. The axis is as wide as the widest own
    interval asks; one of the family may leave it.
    """
    assets, shown = list(tests["asset"].unique()), tests[tests["strategy"].isin(strategies)]
    figure, axes = style.new(
        1, len(assets), height=0.12 + 0.038 * len(strategies), sharex=True, sharey=True, squeeze=False
    )
    _span(axes[0, 0], shown[["difference_bps", "ci_low", "ci_high"]].assign(none=0.0))
    for axis, asset in zip(axes[0], assets, strict=True):
        rows = tests[tests["asset"] == asset].set_index("strategy")
        for place, name in enumerate(strategies):
            if name in rows.index:
                _draw_difference(axis, place, rows.loc[[name]].iloc[0].to_dict(), name)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(asset)
    axes[0, 0].set_yticks(range(len(strategies)), [heading(name) for name in strategies])
    axes[0, 0].set_ylim(len(strategies) - 0.5, -0.5)
    figure.supxlabel(f"total cost minus that of {heading(reference).lower()} (bps); filled: significant", fontsize=9)
    return figure


def _span(axis: Axes, values: pd.DataFrame) -> None:
    """An axis over all that is known of `values`, with a margin, whatever else is drawn on it.

    With too few blocks there is no interval, and what never traded has no cost: neither is a place on an axis.
    """
    known = values.to_numpy(float)
    known = known[np.isfinite(known)]
    if known.size:
        margin = 0.06 * np.ptp(known) or 1.0
        axis.set_xlim(known.min() - margin, known.max() + margin)


def _beyond(axis: Axes, place: int, text: str, colour: str) -> None:
    """An arrow at the left edge to what lies beyond it."""
    axis.annotate(
        text,
        (0, place),
        (10, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        arrowprops={"arrowstyle": "->", "color": colour},
        va="center",
        fontsize=7,
    )


def plot_decided_again(table: pd.DataFrame, strategies: list[str]) -> Figure:
    """What strategies cost less each reference on the same orders, with their intervals: left is cheaper.

    `table` is `decided_again.parquet`; a panel for each reference, a colour for each asset.
    """
    references, assets = list(table["reference"].unique()), list(table["asset"].unique())
    figure, axes = style.new(
        1, len(references), height=0.14 + 0.04 * len(strategies), sharex=True, sharey=True, squeeze=False
    )
    for axis, reference in zip(axes[0], references, strict=True):
        for shift, asset in zip(0.18 * (np.arange(len(assets)) - (len(assets) - 1) / 2), assets, strict=True):
            rows = table[(table["reference"] == reference) & (table["asset"] == asset)].set_index("strategy")
            rows, place = rows.reindex(strategies), np.arange(len(strategies)) + shift
            colour, marker = style.ASSET_COLOURS[asset], style.ASSET_MARKERS.get(asset, "o")
            axis.hlines(place, rows["ci_low"], rows["ci_high"], color=colour)
            name = f"{asset}, {int(rows['orders'].max()):,} orders"
            axis.plot(rows["difference_bps"], place, marker, color=colour, markersize=4, label=name)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"less {heading(reference)}")
    axes[0, 0].set_yticks(range(len(strategies)), [heading(name) for name in strategies])
    axes[0, 0].set_ylim(len(strategies) - 0.5, -0.5)
    figure.supxlabel("difference of the mean total cost (bps)", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(assets))
    return figure


def plot_how_often(table: pd.DataFrame) -> Figure:
    """What is saved on the touch requoted by how often is decided, with intervals: lower is cheaper.

    `table` is `how_often.parquet`; a panel for each asset. Points at one interval stand beside each other.
    """
    shown = table[table["reference"] == "touch_requoted"]
    kinds = {"threshold": "threshold_requoted", "boosting": "boosting_sequential", "dapo": "dapo_sequential"}
    assets = list(shown["asset"].unique())
    figure, axes = style.new(1, len(assets), height=0.4, sharex=True, sharey=True, squeeze=False)
    for axis, asset in zip(axes[0], assets, strict=True):
        for shift, (kind, name) in zip((0.94, 1.0, 1.06), kinds.items(), strict=True):
            rows = shown[(shown["asset"] == asset) & (shown["strategy"].str.partition("_")[0] == kind)]
            place, colour = rows["every_s"] * shift, style.STRATEGY_COLOURS[name]
            axis.vlines(place, rows["ci_low"], rows["ci_high"], color=colour)
            axis.plot(
                place, rows["difference_bps"], "o-", color=colour, markersize=4, linewidth=0.8, label=heading(name)
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xticks(every := sorted(shown["every_s"].unique()), [f"{each:g}" for each in every])
        axis.minorticks_off()
        axis.set_title(asset)
    figure.supxlabel("seconds between two decisions", fontsize=9)
    axes[0, 0].set_ylabel("total cost less the touch\nrequoted (bps)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(kinds))
    return figure


def plot_hypotheses(judged: pd.DataFrame) -> Figure:
    """Each registered hypothesis with its simultaneous interval, per asset; below it, grey, of the extreme queues.

    Left of zero the policy is cheaper, as claimed; a dot is filled where that is established, a cross where it failed.
    """
    assets, references = list(judged["asset"].unique()), list(judged["reference"].unique())
    height = 0.12 + 0.06 * len(references)
    figure, axes = style.new(1, len(assets), height=height, sharex=True, sharey=True, squeeze=False)
    for axis, asset in zip(axes[0], assets, strict=True):
        for row in judged[judged["asset"] == asset].to_dict("records"):
            _draw_hypothesis(
                axis, references.index(row["reference"]), {str(name): value for name, value in row.items()}
            )
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(asset)
    axes[0, 0].set_yticks(range(len(references)), [heading(name) for name in references])
    axes[0, 0].set_ylim(len(references) - 0.4, -0.6)
    figure.supxlabel(
        f"total cost of {heading(judged['strategy'].iloc[0])} minus that of the reference (bps)", fontsize=9
    )
    return figure


def plot_size_power(rates: pd.DataFrame, alpha: float) -> Figure:
    """How often each test rejects in null worlds, by the edge that was planted: its size at 0, its power beyond.

    `rates` is `hypotheses/size_power.csv`; the grey band holds 95 % of what a test of size `alpha` shows at 0.
    """
    figure, (size, power) = style.new(1, 2, height=0.42, width_ratios=[1, 1])
    null = rates[rates["edge_bps"] == 0].reset_index(drop=True)
    low, high = stats.binom.interval(0.95, int(null["worlds"].iloc[0]), alpha) / null["worlds"].iloc[0]
    colours = {name: f"C{place}" for place, name in enumerate(null["test"])}
    size.axvspan(100 * low, 100 * high, color="0.9")
    size.barh(null.index, 100 * null["rate"], height=0.6, color=[colours[name] for name in null["test"]])
    size.axvline(100 * alpha, color="black", linewidth=0.8)
    size.set_yticks(null.index, null["test"], fontsize=7)
    for label, name in zip(size.get_yticklabels(), null["test"], strict=True):
        label.set_color(colours[name])
    size.set_xlabel("rejections where nothing differs (%)")
    size.invert_yaxis()
    for name, rows in rates.groupby("test", sort=False):
        if len(rows) > 1:
            power.plot(rows["edge_bps"], 100 * rows["rate"], ".-", color=colours[str(name)])
    edges = sorted(rates["edge_bps"].unique())
    power.set_xscale("symlog", linthresh=0.02, linscale=0.4)
    power.set_xticks(edges, [f"{edge:g}" for edge in edges], minor=False)
    power.minorticks_off()
    power.set_xlabel("planted edge (bps)")
    power.set_ylabel("rejections (%)")
    return figure


def _draw_hypothesis(axis: Axes, place: int, row: dict[str, Any]) -> None:
    for shift, queue in ((0.2, "ahead"), (0.32, "behind")):
        axis.hlines(place + shift, row[f"{queue}_low"], row[f"{queue}_high"], color="0.6", linewidth=1)
    colour = style.STRATEGY_COLOURS[row["reference"]]
    axis.hlines(place, row["joint_low"], row["joint_high"], color=colour)
    marker = {FAILED: "X", NOT_AVAILABLE: "|"}.get(row["status"], "o")
    face = "white" if row["status"] == NOT_ESTABLISHED else colour
    axis.plot(row["difference_bps"], place, marker, color=colour, markerfacecolor=face)


def plot_decomposition(parts: pd.DataFrame, strategies: list[str], reference: str) -> Figure:
    """Fee and price part of each difference to the reference, per asset; the dot is their sum."""
    parts = parts[parts["reference"] == reference]
    assets, place = list(parts["asset"].unique()), np.arange(len(strategies))
    figure, axes = style.new(
        1, len(assets), height=0.16 + 0.036 * len(strategies), sharex=True, sharey=True, squeeze=False
    )
    for axis, asset in zip(axes[0], assets, strict=True):
        rows = parts[parts["asset"] == asset].set_index(["part", "strategy"])["difference_bps"]
        for shift, (part, (label, colour)) in zip((-0.2, 0.2), _PARTS.items(), strict=True):
            axis.barh(place + shift, rows[part].reindex(strategies), height=0.38, color=colour, label=label)
        axis.plot(rows[TOTAL].reindex(strategies), place, "o", color="black", markersize=3, label="total")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(asset)
    axes[0, 0].set_yticks(place, [heading(name) for name in strategies])
    axes[0, 0].set_ylim(len(strategies) - 0.5, -0.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    title = f"difference to {heading(reference).lower()} (bps)"
    figure.legend(handles, labels, loc="outside lower center", ncols=3, title=title, title_fontsize=9)
    return figure


def plot_independence(tests: pd.DataFrame) -> Figure:
    """How much wider the honest standard error is than the one that takes orders as independent."""
    known = tests.dropna(subset="se_ratio")
    strategies, assets = list(known["strategy"].unique()), list(known["asset"].unique())
    figure, axis = style.new(height=0.2 + 0.04 * len(strategies))
    if known.empty:
        axis.text(0.5, 0.5, "no comparison could be tested", transform=axis.transAxes, ha="center")
    for shift, asset in zip(np.linspace(-0.27, 0.27, len(assets)), assets, strict=True):
        rows = known[known["asset"] == asset]
        place = np.array([strategies.index(name) for name in rows["strategy"]])
        look = {"color": style.ASSET_COLOURS[str(asset)], "marker": style.ASSET_MARKERS.get(str(asset), "v"), "s": 14}
        axis.scatter(rows["se_ratio"], place + shift, label=asset, **look)
    axis.set_yticks(range(len(strategies)), [heading(str(name)) for name in strategies])
    axis.set_ylim(len(strategies) - 0.5, -0.5)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlim(left=0)
    axis.set_xlabel("standard error by blocks over i.i.d. standard error")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=max(len(assets), 1))
    return figure


def _draw_rewards(axis: Axes, row: int, gaps: pd.DataFrame) -> None:
    first = gaps.iloc[0]
    levels = {name: float(first[f"{name}_bps"]) for name in _YARDSTICKS}
    axis.plot([min(levels.values()), levels["oracle"]], [row, row], color="0.88", linewidth=5, zorder=1)
    for name, value in levels.items():
        axis.vlines(value, row - 0.3, row + 0.3, color=style.STRATEGY_COLOURS[name], label=heading(name))
    for shift, algorithm, value in zip(_shifts(gaps), gaps["algorithm"], gaps["trained_bps"], strict=True):
        colour, name = style.STRATEGY_COLOURS[algorithm], heading(algorithm)
        axis.scatter(value, row + shift, s=22, marker=style.marker(algorithm), color=colour, label=name, zorder=4)


def _draw_shares(axis: Axes, row: int, gaps: pd.DataFrame) -> None:
    for shift, gap in zip(_shifts(gaps), gaps.to_dict("records"), strict=True):
        value, low, high = (100 * gap[name] for name in ("gap_closed", "gap_ci_low", "gap_ci_high"))
        colour = style.STRATEGY_COLOURS[gap["algorithm"]]
        axis.hlines(row + shift, low, high, color=colour)
        axis.plot(value, row + shift, style.marker(gap["algorithm"]), color=colour, markersize=4)
    for rival in RIVALS:
        closed = 100 * float(gaps[f"{rival}_gap_closed"].iloc[0])
        axis.vlines(closed, row - 0.4, row + 0.4, color=style.STRATEGY_COLOURS[rival], zorder=1)


def _shifts(gaps: pd.DataFrame) -> Floats:
    """(rows,) where the algorithms of one asset stand, around its own row."""
    return 0.36 * np.linspace(-1, 1, len(gaps)) if len(gaps) > 1 else np.zeros(1)


def _draw_difference(axis: Axes, place: int, test: dict[str, float], strategy: str) -> None:
    colour = style.STRATEGY_COLOURS[strategy]
    axis.hlines(place, test["joint_low"], test["joint_high"], color=colour, linewidth=0.8)
    axis.hlines(place, test["ci_low"], test["ci_high"], color=colour, linewidth=2)
    face = colour if test["significant"] else "white"
    axis.plot(test["difference_bps"], place, style.marker(strategy), color=colour, markerfacecolor=face, markersize=3)


def plot_specialists(table: pd.DataFrame) -> Figure:
    """What each adapter earns beyond the asset's own specialist, with intervals: one axis per asset tested."""
    assets = list(table["asset"].unique())
    figure, axes = style.new(1, len(assets), height=0.3, sharex=True, sharey=True, squeeze=False)
    for axis, asset in zip(axes[0], assets, strict=True):
        rows = table[table["asset"] == asset].reset_index(drop=True)
        colours = [style.ASSET_COLOURS[source] for source in rows["trained_on"]]
        axis.hlines(rows.index, rows["ci_low"], rows["ci_high"], color=colours)
        axis.scatter(rows["minus_specialist_bps"], rows.index, color=colours, zorder=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"tested on {asset}")
    sources = [f"trained on {source}" for source in table[table["asset"] == assets[0]]["trained_on"]]
    axes[0, 0].set_yticks(range(len(sources)), sources)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("reward beyond that of the asset's own specialist (bps)", fontsize=9)
    return figure
