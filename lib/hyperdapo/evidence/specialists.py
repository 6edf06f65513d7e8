"""Specialists against a generalist (§4.4): what an adapter earns on assets that it was not trained on."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hyperdapo import sections
from hyperdapo.evidence.figures import style
from hyperdapo.evidence.metrics import block_bootstrap


def specialists_table(earned: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """One row per asset and adapter, seeds averaged state by state.

    Parameters
    ----------
    earned : `asset, block, trained_on, seed, reward`, the states of an asset in the same order for every adapter

    Returns
    -------
    `asset, trained_on, reward_bps, minus_specialist_bps, ci_low, ci_high, states, blocks`: the difference to the
    asset's own specialist on the same states, with its block bootstrap interval.
    """
    rows = []
    for asset, own in earned.groupby("asset", sort=False):
        placed = own.assign(place=own.groupby(["trained_on", "seed"]).cumcount())
        rewards = placed.pivot_table(index="place", columns="trained_on", values="reward", sort=False)
        blocks = placed.groupby("place")["block"].first().to_numpy()
        for source in rewards:
            difference = (rewards[source] - rewards[asset]).to_numpy()
            found = block_bootstrap(difference, blocks, evidence, seed)
            low, high = (np.nan, np.nan) if source == asset else (found.low, found.high)
            counts = (len(blocks), len(np.unique(blocks)))
            rows.append((asset, source, rewards[source].mean(), found.value, low, high, *counts))
    names = ["asset", "trained_on", "reward_bps", "minus_specialist_bps", "ci_low", "ci_high", "states", "blocks"]
    return pd.DataFrame(rows, columns=names)


def plot_specialists(table: pd.DataFrame) -> Figure:
    """What each adapter earns beyond the asset's own specialist, with intervals: one axis per asset tested."""
    assets = list(table["asset"].unique())
    figure, axes = style.new(1, len(assets), height=0.3, sharey=True, squeeze=False)
    for axis, asset in zip(axes[0], assets, strict=True):
        own = table[table["asset"] == asset].reset_index(drop=True)
        colours = [style.ASSET_COLOURS[source] for source in own["trained_on"]]
        axis.hlines(own.index, own["ci_low"], own["ci_high"], color=colours)
        axis.scatter(own["minus_specialist_bps"], own.index, color=colours, zorder=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"tested on {asset}")
    sources = [f"trained on {source}" for source in table[table["asset"] == assets[0]]["trained_on"]]
    axes[0, 0].set_yticks(range(len(sources)), sources)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("reward beyond that of the asset's own specialist (bps)", fontsize=9)
    return figure
