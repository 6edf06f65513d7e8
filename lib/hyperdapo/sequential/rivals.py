"""Policies of boosted trees that decide again: they predict what each action is worth in the state at hand.

It is policy iteration (fitted Q): the values of all actions under the present policy are replayed, trees learn them
from the 15 digits of the prompt, the time left and the place of the order, and the action with the highest prediction
is the next policy. How many trees is chosen by the squared error on five stretches of time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold

from hyperdapo.errors import DataError
from hyperdapo.market.columns import Floats
from hyperdapo.policy.rivals import STRETCHES, TREES
from hyperdapo.sequential.states import Policy, Visited, numbers

_MOST_TREES = 100


def fit(features: pd.DataFrame, states: pd.DataFrame, values: Floats, seed: int) -> Callable[[pd.DataFrame], Floats]:
    """Learn what each action is worth beyond the mean of its state's.

    Parameters
    ----------
    states : (m, ...) as `states.numbers` reads them
    values : (m, K + 1) bps, NaN for what was not allowed there

    Returns
    -------
    states -> predictions (m, K + 1) in bps; -inf for an action that was allowed in fewer states than stretches of time

    Raises
    ------
    DataError
        If that is so for all of them.
    """
    order = np.argsort(states["decision_ns"].to_numpy(), kind="stable")
    x = numbers(features, states.iloc[order])
    gains = (values - np.nanmean(values, axis=1, keepdims=True))[order]
    rows = [np.flatnonzero(np.isfinite(column)) for column in gains.T]
    problems = {
        action: (x[known], gains[known, action]) for action, known in enumerate(rows) if len(known) >= STRETCHES
    }
    if not problems:
        raise DataError(f"{len(states)} states are too few to learn what an action is worth: lengthen the span")
    count = _number_of_trees(list(problems.values()), seed)
    fitted = {action: _trees(count, seed).fit(*problem) for action, problem in problems.items()}

    def predict(asked: pd.DataFrame) -> Floats:
        given, predicted = numbers(features, asked), np.full((len(asked), values.shape[1]), -np.inf)
        for action, trees in fitted.items():
            predicted[:, action] = trees.predict(given)
        return predicted

    return predict


def out_of_sample(
    features: pd.DataFrame, states: pd.DataFrame, values: Floats, seed: int
) -> Callable[[pd.DataFrame], Floats]:
    """As `fit`, but an order that was learned from is judged by trees that have not seen its stretch of time.

    A policy that goes on in orders whose future its trees have learned knows what no trader knows: waiting then looks
    better than it is. Takes and raises what `fit` does; other orders are judged by trees of all states.
    """
    begun = states.groupby("order_id")["decision_ns"].min().sort_values()
    stretch = pd.Series(np.arange(len(begun)) * STRETCHES // len(begun), index=begun.index)
    own = stretch[states["order_id"]].to_numpy()
    seen = [own != each for each in range(STRETCHES)] + [np.full(len(own), True)]
    fitted = [fit(features, states[rows].reset_index(drop=True), values[rows], seed) for rows in seen]

    def predict(asked: pd.DataFrame) -> Floats:
        judged_by = asked["order_id"].map(stretch).fillna(STRETCHES).to_numpy(int)
        predicted = np.empty((len(asked), values.shape[1]))
        for place, trees in enumerate(fitted):
            if (rows := judged_by == place).any():
                predicted[rows] = trees(asked[rows])
        return predicted

    return predict


def greedy(predicted: Callable[[pd.DataFrame], Floats]) -> Policy:
    """The allowed action with the highest prediction."""

    def choose(visited: Visited) -> NDArray[np.int64]:
        best: NDArray[np.int64] = np.where(visited.allowed, predicted(visited.table), -np.inf).argmax(axis=1)
        return best

    return choose


def renewed(action: int) -> Policy:
    """The same action at every decision: the order follows the market, and stays where it would move to."""

    return lambda visited: visited.means[:, action]


def _trees(count: int, seed: int) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(max_iter=count, random_state=seed, **TREES)


def _number_of_trees(problems: Sequence[tuple[Any, Any]], seed: int) -> int:
    """Of each of several regressions (x, y in the order of time), so that their squared errors on unseen stretches add
    up to the least."""
    errors = np.zeros(_MOST_TREES)
    for x, y in problems:
        for learned, unseen in KFold(STRETCHES).split(x):
            stages = _trees(_MOST_TREES, seed).fit(x[learned], y[learned]).staged_predict(x[unseen])
            errors += [np.square(y[unseen] - predicted).sum() for predicted in stages]
    return int(errors.argmin()) + 1
