"""Figures of 09_significance: what a policy gains, with its interval, per asset."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hyperdapo.evidence import figures


def plot_learning_gap(gaps: pd.DataFrame) -> Figure:
    """Mean held-out reward of untrained, best fixed, boosted and trained policies and the oracle, per asset.

    `gaps` is `learning_gap.csv`.
    """
    columns = {"untrained_bps": "untrained", "best_fixed_bps": "best_fixed", "boosting_bps": "boosting", "oracle_bps": "oracle"}
    figure, axis = figures.new(height=0.5)
    assets = list(gaps["asset"].unique())
    for row, asset in enumerate(assets):
        own = gaps[gaps["asset"] == asset]
        axis.plot(own[["untrained_bps", "oracle_bps"]].iloc[0], [row, row], color="0.85", linewidth=5, zorder=1, solid_capstyle="round")
        for column, name in columns.items():
            _dot(axis, own[column].iloc[0], row, name, labelled=row == 0)
        for algorithm, runs in own.groupby("algorithm", sort=False):
            for value in runs["trained_bps"]:
                _dot(axis, value, row, str(algorithm), labelled=row == 0, size=60)
    axis.set_yticks(range(len(assets)), assets)
    axis.invert_yaxis()
    axis.set_xlabel("mean reward on held-out states (bps)")
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=6)
    return figure


def plot_forest(tests: pd.DataFrame, strategies: list[str], reference: str) -> Figure:
    """Difference to the reference with its block bootstrap interval, per asset; left of zero is cheaper."""
    assets = list(tests["asset"].unique())
    figure, axes = figures.new(1, len(assets), height=0.14 + 0.05 * len(strategies), sharey=True, squeeze=False)
    for axis, asset in zip(axes[0], assets, strict=True):
        own = tests[tests["asset"] == asset].set_index("strategy").reindex(strategies)
        value = own["difference_bps"].to_numpy()
        errors = np.clip(np.vstack([value - own["ci_low"], own["ci_high"] - value]), 0, None)
        for place, name in enumerate(strategies):
            style = {"fmt": "o", "markersize": 4, "color": figures.STRATEGY_COLOURS[name], "capsize": 2}
            axis.errorbar(value[place], place, xerr=errors[:, place : place + 1], **style)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(asset)
    axes[0, 0].set_yticks(range(len(strategies)), [name.replace("_", " ") for name in strategies])
    axes[0, 0].invert_yaxis()
    figure.supxlabel(f"total cost minus that of {reference.replace('_', ' ')} (bps)", fontsize=9)
    return figure


def plot_decomposition(parts: pd.DataFrame, strategies: list[str], reference: str) -> Figure:
    """Fee and price part of each difference to the reference, per asset; the dot is their sum."""
    assets = list(parts["asset"].unique())
    figure, axes = figures.new(1, len(assets), height=0.42, sharey=True, squeeze=False)
    for axis, asset in zip(axes[0], assets, strict=True):
        table = parts[parts["asset"] == asset].pivot(index="strategy", columns="part", values="difference_bps").reindex(strategies)
        place = np.arange(len(strategies))
        axis.barh(place - 0.2, table["fees_bps"], height=0.38, color="#56B4E9", label="fees")
        axis.barh(place + 0.2, table["implementation_shortfall_bps"], height=0.38, color="#E69F00", label="price")
        axis.plot(table["total_cost_bps"], place, "o", color="black", markersize=4, label="total")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(asset)
    axes[0, 0].set_yticks(range(len(strategies)), [name.replace("_", " ") for name in strategies])
    axes[0, 0].invert_yaxis()
    figure.supxlabel(f"difference to {reference.replace('_', ' ')} (bps)", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def plot_independence(tests: pd.DataFrame) -> Figure:
    """How much wider the honest standard error is than the one that takes orders as independent."""
    figure, axis = figures.new(height=0.34)
    known = tests.dropna(subset="se_ratio")
    for place, (strategy, rows) in enumerate(known.groupby("strategy", sort=False)):
        colours = [figures.ASSET_COLOURS[asset] for asset in rows["asset"]]
        axis.scatter(np.full(len(rows), place), rows["se_ratio"], c=colours, s=22)
    names = [str(name).replace("_", " ") for name in known["strategy"].unique()]
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_ylabel("standard error by blocks\nover i.i.d. standard error")
    for asset in known["asset"].unique():
        axis.scatter([], [], color=figures.ASSET_COLOURS[str(asset)], s=22, label=asset)
    axis.legend(ncols=4, fontsize=8)
    return figure


def _dot(axis, value: float, row: int, name: str, labelled: bool, size: int = 34) -> None:  # type: ignore[no-untyped-def]
    label = name.upper() if name in ("dapo", "dpo") else name.replace("_", " ")
    axis.scatter(value, row, s=size, color=figures.STRATEGY_COLOURS[name], label=label if labelled else None, zorder=3, edgecolor="white")
