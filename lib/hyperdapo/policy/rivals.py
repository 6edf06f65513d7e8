"""Policies of scikit-learn that read what a language model reads: 15 digits (docs/design.md, Algorithms).

They predict the reward of each action, and choose the action with the highest: `linear` by ridge regression, `mlp` by a
small neural network, `boosting` by gradient-boosted trees.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hyperdapo.market.columns import Floats, Mask
from hyperdapo.policy.prompts import digits

_TREES = {"max_iter": 100, "learning_rate": 0.05, "max_leaf_nodes": 8, "early_stopping": False}
_NETWORK = {"hidden_layer_sizes": (16,), "solver": "lbfgs", "alpha": 10.0, "max_iter": 500}

RIVALS: dict[str, Callable[[int], Any]] = {
    "linear": lambda seed: make_pipeline(StandardScaler(), Ridge(alpha=10.0)),
    "mlp": lambda seed: make_pipeline(StandardScaler(), MLPRegressor(**_NETWORK, random_state=seed)),
    "boosting": lambda seed: MultiOutputRegressor(HistGradientBoostingRegressor(**_TREES, random_state=seed)),
}
"""Each makes a regressor of the rewards (n, K) from a seed."""


def inputs(features: pd.DataFrame, states: pd.DataFrame) -> Floats:
    """(n, 16) what the prompt of each state says: its digits, relative to the order's side, and its horizon (s)."""
    return np.column_stack([digits(features, states), states["horizon_s"]]).astype(float)


def fit(rival: str, x: Floats, rewards: Floats, seed: int) -> Any:
    """One of the `RIVALS`, fitted to training states: x (n, m), rewards (n, K) in bps."""
    return RIVALS[rival](seed).fit(x, rewards)


def decide(fitted: Any, x: Floats, distinct: Mask) -> NDArray[np.int64]:
    """(n,) the action with the highest predicted reward, among the distinct ones (n, K)."""
    best: NDArray[np.int64] = np.where(distinct, fitted.predict(x), -np.inf).argmax(axis=1)
    return best
