"""Figure of two runs side by side."""

import pandas as pd
from matplotlib.figure import Figure

from hyperdapo.evidence.figures import style
from hyperdapo.evidence.tables import heading


def plot_differences(differences: pd.DataFrame, first: str, second: str) -> Figure:
    """What each strategy costs more in the second run than in the first, on the same parent orders, per asset.

    `differences` has `asset, strategy, difference_bps, ci_low, ci_high`; bars are intervals over blocks of time.
    """
    assets, strategies = list(differences["asset"].unique()), list(differences["strategy"].unique())
    figure, axes = style.new(1, len(assets), height=0.14 + 0.038 * len(strategies), sharey=True, squeeze=False)
    for axis, asset in zip(axes[0], assets, strict=True):
        rows = differences[differences["asset"] == asset].set_index("strategy").reindex(strategies).reset_index()
        colours = [style.STRATEGY_COLOURS[name] for name in strategies]
        axis.hlines(rows.index, rows["ci_low"], rows["ci_high"], color=colours)
        axis.scatter(rows["difference_bps"], rows.index, color=colours, zorder=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(asset)
    axes[0, 0].set_yticks(range(len(strategies)), [heading(name) for name in strategies])
    axes[0, 0].set_ylim(len(strategies) - 0.5, -0.5)
    figure.supxlabel(f"total cost in {second} minus that in {first} (bps)", fontsize=9)
    return figure
