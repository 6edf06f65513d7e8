"""Specialists against a generalist (§4.4): what an adapter earns on assets that it was not trained on."""

import numpy as np
import pandas as pd

from hyperdapo import sections
from hyperdapo.evidence.metrics import block_bootstrap
from hyperdapo.times import block_of


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
        blocks = block_of(placed.groupby("place")["decision_ns"].first(), evidence.block_s)
        for source in rewards:
            difference = (rewards[source] - rewards[asset]).to_numpy()
            found = block_bootstrap(difference, blocks, evidence, seed)
            low, high = (np.nan, np.nan) if source == asset else (found.low, found.high)
            counts = (len(blocks), len(np.unique(blocks)))
            rows.append((asset, source, rewards[source].mean(), found.value, low, high, *counts))
    names = ["asset", "trained_on", "reward_bps", "minus_specialist_bps", "ci_low", "ci_high", "states", "blocks"]
    return pd.DataFrame(rows, columns=names)
