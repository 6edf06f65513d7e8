"""A gradient-boosted policy on the same 15 features: the yardstick for a language model (docs/design.md, Algorithms).

One regressor per action predicts its reward; the policy chooses the action with the highest. Features that point to a
direction of the price also enter relative to the side of the order, as in the prompt.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from hyperdapo.market.columns import Floats
from hyperdapo.market.features import NAMES

DIRECTIONAL = (
    "book_imbalance",
    "book_pressure_50bps",
    "trade_flow_5m_z",
    "momentum_1m_bps",
    "momentum_5m_bps",
    "vwap_distance_bps",
)

_SETTINGS = {"max_iter": 100, "learning_rate": 0.05, "max_leaf_nodes": 8, "early_stopping": False}


def inputs(features: pd.DataFrame, states: pd.DataFrame) -> Floats:
    """(n, m) raw and normalised features of each state, the directional ones also relative to the order's side."""
    rows = features.loc[states["order_id"]]
    side = states["side"].to_numpy(float)[:, None]
    plain = rows[[*NAMES, *(f"{name}_z" for name in NAMES)]].to_numpy(float)
    horizon = states["horizon_s"].to_numpy(float)[:, None]
    return np.hstack([plain, side * rows[list(DIRECTIONAL)].to_numpy(float), horizon])


def fit(x: Floats, rewards: Floats, seed: int) -> list[HistGradientBoostingRegressor]:
    """One regressor per action from training states: x (n, m), rewards (n, K) in bps."""
    return [HistGradientBoostingRegressor(**_SETTINGS, random_state=seed).fit(x, column) for column in rewards.T]


def predict(regressors: list[HistGradientBoostingRegressor], x: Floats) -> Floats:
    """(n, K) predicted rewards, bps."""
    return np.column_stack([regressor.predict(x) for regressor in regressors])


def decide(regressors: list[HistGradientBoostingRegressor], x: Floats) -> NDArray[np.int64]:
    """(n,) the action with the highest predicted reward."""
    best: NDArray[np.int64] = predict(regressors, x).argmax(axis=1)
    return best
