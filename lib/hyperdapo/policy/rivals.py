"""Policies of scikit-learn that read what a language model reads: 15 digits (docs/design.md, Algorithms).

They predict how much more than the others each action earns, and choose the one with the highest: `linear` by ridge
regression, `mlp` by a small neural network, `boosting` by gradient-boosted trees. How closely each fits is chosen by
its squared error on five stretches of time of the training split. So where nothing can be predicted they end near the
best fixed action, instead of following noise.
"""

from collections.abc import Callable
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hyperdapo.errors import DataError
from hyperdapo.market.columns import Floats, Mask
from hyperdapo.policy.prompts import digits

STRETCHES = 5
"""Of time, on each of which a fit is judged that has not seen it."""
TREES = {"learning_rate": 0.05, "max_leaf_nodes": 8, "early_stopping": False}
"""Settings of boosted trees, here and where they decide again."""


def trees(seed: int, max_iter: int = 60) -> MultiOutputRegressor:
    """Boosted trees for each of several targets."""
    return MultiOutputRegressor(HistGradientBoostingRegressor(max_iter=max_iter, random_state=seed, **TREES))


def _ridge(seed: int) -> Any:
    return _searched(make_pipeline(StandardScaler(), Ridge()), ridge__alpha=[10.0, 100.0, 1000.0, 1e4, 1e5])


def _network(seed: int) -> Any:
    network = MLPRegressor(hidden_layer_sizes=(16,), solver="lbfgs", max_iter=500, random_state=seed)
    return _searched(make_pipeline(StandardScaler(), network), mlpregressor__alpha=[10.0, 100.0, 1000.0, 1e4])


def _boosting(seed: int) -> Any:
    return _searched(trees(seed), estimator__max_iter=[1, 5, 20, 60])


RIVALS: dict[str, Callable[[int], Any]] = {"linear": _ridge, "mlp": _network, "boosting": _boosting}
"""Each makes, from a seed, a regressor of the rewards (n, K)."""


def inputs(features: pd.DataFrame, states: pd.DataFrame) -> Floats:
    """(n, 16) what the prompt of each state says: its digits, relative to the order's side, and its horizon (s)."""
    return np.column_stack([digits(features, states), states["horizon_s"]]).astype(float)


def fit(rival: str, x: Floats, rewards: Floats, seed: int) -> Any:
    """One of the `RIVALS`, fitted to training states in the order of time: x (n, m), rewards (n, K) in bps.

    What all actions of a state earn alike is taken out: no choice changes it, and most of it is the market's move.

    Raises
    ------
    DataError
        If there are fewer states than stretches of time.
    """
    if len(x) < STRETCHES:
        raise DataError(f"{len(x)} training states are too few to fit {rival}: lengthen the span or raise split.train")
    with catch_warnings():
        simplefilter(
            "ignore", ConvergenceWarning
        )  # of L-BFGS, where rounding ends the search: it is as near as it gets
        return RIVALS[rival](seed).fit(x, rewards - rewards.mean(axis=1, keepdims=True))


def decide(fitted: Any, x: Floats, distinct: Mask) -> NDArray[np.int64]:
    """(n,) the action with the highest predicted reward, among the distinct ones (n, K)."""
    best: NDArray[np.int64] = np.where(distinct, fitted.predict(x), -np.inf).argmax(axis=1)
    return best


def _searched(estimator: Any, **grid: list[float]) -> Any:
    return GridSearchCV(estimator, grid, scoring="neg_mean_squared_error", cv=KFold(STRETCHES))
