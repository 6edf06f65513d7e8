"""Policy iteration over a recorded market, part by part, and the tables that stages hand on (eq. 2.7).

`action_values.parquet` holds what every action is worth in states that rollouts came through; `again.parquet` what a
policy thinks of every action in every state into which a test order can come, so that 08 replays it without a model.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.execution.children import decision_times
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Integers
from hyperdapo.params import Parameters
from hyperdapo.sequential import rivals
from hyperdapo.sequential.rollouts import decide_every_s, roll_out
from hyperdapo.sequential.states import PLACES, Policy, Visited, last_known

Parts = Callable[[], Iterable[tuple[Market, pd.DataFrame]]]
"""Goes over the span: the market of a part, and the parent orders that start in it."""

Fit = Callable[[pd.DataFrame, pd.DataFrame, Floats, int], Callable[[pd.DataFrame], Floats]]
"""How trees are fitted: `rivals.fit` or `rivals.out_of_sample`."""

BOOSTING, DAPO = AGAIN = ("boosting_sequential", "dapo_sequential")
"""Policies that decide again."""

_JOIN = Action("join")


def is_trained(parameters: Parameters, asset: str) -> bool:
    """Whether an asset has a language model that decides again."""
    return parameters.policy.decide_again_s is not None and asset in parameters.sequential.trained


_STATE = (
    *("order_id", "decision_ns", "side", "number", "seconds_left", "share_left"),
    *("ticks_behind", "ahead_usd", "place"),
)


def action_values(parts: Parts, features: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """Iterate the policy of boosted trees on the training split, and value every action where it comes through.

    The first policy joins the best quote anew at every decision, as `touch_requoted` does; without `join` among the
    actions it renews the first of them. The next ones go on in an order by trees that have not seen its time.

    Returns
    -------
    One row per iteration and state: `iteration` (from 0), `split`, the state as in `states.Visited`, and
    `value_0 … value_K` (bps; NaN for what was not allowed). The validation split is in the last iteration alone.
    """
    features, last = last_known(features), parameters.sequential.iterations - 1
    tables = list[pd.DataFrame]()
    for iteration in range(last + 1):
        policy = leading(features, pd.concat(tables) if tables else None, parameters)
        splits = ["train", "validation"][: 1 + (iteration == last)]
        tables.append(values_of(policy, parts, iteration, splits, parameters))
    return pd.concat(tables, ignore_index=True)


def leading(features: pd.DataFrame, former: pd.DataFrame | None, parameters: Parameters) -> Policy:
    """Who leads the rollouts of an iteration: trees that learned the values of the former one; of the first, a rule."""
    if former is None:
        actions = parameters.policy.actions
        return rivals.renewed(actions.index(_JOIN) if _JOIN in actions else 0)
    return rivals.greedy(boosting(features, former, parameters.seed, rivals.out_of_sample))


def boosting(
    features: pd.DataFrame, values: pd.DataFrame, seed: int, fit: Fit = rivals.fit
) -> Callable[[pd.DataFrame], Floats]:
    """What trees predict that learned the training split of `action_values.parquet`, as `rivals.fit` returns it.

    Of the last iteration alone: the values of an earlier one are those of another policy.
    """
    learned = values[(values["split"] == "train") & (values["iteration"] == values["iteration"].max())]
    return fit(features, learned, matrix(learned, "value"), seed)


def matrix(table: pd.DataFrame, name: str) -> Floats:
    """(m, K + 1) the columns `NAME_0 … NAME_K`."""
    columns: Floats = table[[column for column in table if str(column).startswith(f"{name}_")]].to_numpy(float)
    return columns


def hypothetical(parents: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """Every state into which n orders can come: each decision of each, at each of the `PLACES`.

    Returns
    -------
    order_id, side, decision_ns, number, seconds_left, place; the first decision finds an order nowhere
    """
    every_s = decide_every_s(parameters)
    times = decision_times(parents, every_s)
    shape = *times.shape, len(PLACES)
    row, number, place = (each.ravel() for each in np.indices(shape))
    seconds_left = parents["horizon_s"].to_numpy(float)[row] - number * every_s
    table = pd.DataFrame(
        {
            "order_id": parents["order_id"].to_numpy()[row],
            "side": parents["side"].to_numpy()[row],
            "decision_ns": times[row, number],
            "number": number,
            "seconds_left": seconds_left,
            "place": place,
        }
    )
    return table[(seconds_left > 0) & ((number > 0) | (place == 0))].reset_index(drop=True)


def decided(states: pd.DataFrame, scores: Floats, policy: str) -> pd.DataFrame:
    """Rows of `again.parquet`: the score (m, K + 1) that a policy gives to each action in states of `hypothetical`."""
    columns = {f"score_{action}": scores[:, action] for action in range(scores.shape[1])}
    return states[["order_id", "number", "place"]].assign(policy=policy, **columns)


def policies(table: pd.DataFrame) -> dict[str, Policy]:
    """The policies of `again.parquet`, each of which takes the allowed action of the highest score."""
    return {str(name): _looked_up(rows) for name, rows in table.groupby("policy", sort=False)}


def revalued(
    parts: Parts, features: pd.DataFrame, values: pd.DataFrame, parameters: Parameters, orders: pd.Series, then: Policy
) -> pd.DataFrame:
    """The rows of `action_values` of some training orders, with the values where another policy goes on.

    Parameters
    ----------
    values : those of `action_values`, whose last rollouts are followed once more
    orders : ids
    """
    former = values[values["iteration"] < (last := values["iteration"].max())]
    leads = leading(features, former if len(former) else None, parameters)

    def chosen() -> Iterable[tuple[Market, pd.DataFrame]]:
        return ((market, parents[parents["order_id"].isin(orders)]) for market, parents in parts())

    return values_of(leads, chosen, last, ["train"], parameters, then)


class Asked:
    """A policy that takes the allowed action of the highest score, and asks for scores as a replay needs them.

    Parameters
    ----------
    states : of `hypothetical`, into which the orders can come
    score : states -> scores (m, K + 1) of all places at each of some instants, asked once for each
    """

    def __init__(self, states: pd.DataFrame, score: Callable[[pd.DataFrame], Floats]) -> None:
        self._states, self._score = states.set_index(["order_id", "number"], drop=False), score
        self._scored = list[pd.DataFrame]()
        self._known = self._states.index[:0]

    def __call__(self, visited: Visited) -> Integers:
        here = pd.MultiIndex.from_frame(visited.table[["order_id", "number"]])
        if len(new := here.unique().difference(self._known)):
            states = self._states.loc[new].reset_index(drop=True)
            self._scored.append(decided(states, self._score(states), "asked"))
            self._known = self._known.append(new)
            self._choose = _looked_up(pd.concat(self._scored))
        return self._choose(visited)


def _looked_up(rows: pd.DataFrame) -> Policy:
    index = pd.MultiIndex.from_frame(rows[["order_id", "number", "place"]])
    scores = matrix(rows, "score")

    def choose(visited: Visited) -> np.ndarray:
        asked = pd.MultiIndex.from_frame(visited.table[["order_id", "number", "place"]])
        row = index.get_indexer(asked)
        if (lost := row < 0).any():
            order_id, number, place = asked[lost][0]
            raise DataError(
                f"order {order_id} was not decided on at decision {number} where it stands {PLACES[place]}: "
                "run 07_inference again"
            )
        best: np.ndarray = np.where(visited.allowed, scores[row], -np.inf).argmax(axis=1)
        return best

    return choose


def values_of(
    policy: Policy,
    parts: Parts,
    iteration: int,
    splits: Sequence[str],
    parameters: Parameters,
    then: Policy | None = None,
) -> pd.DataFrame:
    """Rows of `action_values.parquet`: the states of some splits that a policy explores, valued as by `roll_out`."""
    tables = []
    for market, parents in parts():
        chosen = parents[parents["split"].isin(splits)]
        if len(chosen):
            rollout = roll_out(policy, market, chosen, parameters, f"rollout {iteration}", then)
            states = rollout.visited.table
            split = chosen["split"].to_numpy()[states["parent"]]
            values = {f"value_{action}": value for action, value in enumerate(rollout.action_values.T)}
            tables.append(states[[*_STATE]].assign(iteration=iteration, split=split, **values))
    return pd.concat(tables, ignore_index=True)
