"""Policy iteration over a recorded market, part by part, and the tables that stages hand on (eq. 2.7).

`action_values.parquet` holds what every action is worth in states that rollouts came through; `again.parquet` what a
policy thinks of every action in every state into which a test order can come, so that 08 replays it without a model.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.execution.children import decision_times
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.sequential import rivals
from hyperdapo.sequential.rollouts import decide_every_s, roll_out
from hyperdapo.sequential.states import PLACES, Policy, Visited, last_known

Parts = Callable[[], Iterable[tuple[Market, pd.DataFrame]]]
"""Goes over the span: the market of a part, and the parent orders that start in it."""

BOOSTING, DAPO = AGAIN = ("boosting_sequential", "dapo_sequential")
"""Policies that decide again."""

_JOIN = Action("join")

_STATE = (
    *("order_id", "decision_ns", "side", "number", "seconds_left", "share_left"),
    *("ticks_behind", "ahead_usd", "place"),
)


def action_values(parts: Parts, features: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """Iterate the policy of boosted trees on the training split, and value every action where it comes through.

    The first policy joins the best quote anew at every decision, as `touch_requoted` does; without `join` among the
    actions it renews the first of them.

    Returns
    -------
    One row per iteration and state: `iteration` (from 0), `split`, the state as in `states.Visited`, and
    `value_0 … value_K` (bps; NaN for what was not allowed). The validation split is in the last iteration alone.
    """
    actions = parameters.policy.actions
    policy, features = rivals.renewed(actions.index(_JOIN) if _JOIN in actions else 0), last_known(features)
    last, tables = parameters.sequential.iterations - 1, list[pd.DataFrame]()
    for iteration in range(last + 1):
        tables.append(_values(parts, policy, iteration, ["train", "validation"][: 1 + (iteration == last)], parameters))
        if iteration < last:
            policy = rivals.greedy(boosting(features, tables[-1], parameters.seed))
    return pd.concat(tables, ignore_index=True)


def boosting(features: pd.DataFrame, values: pd.DataFrame, seed: int) -> Callable[[pd.DataFrame], Floats]:
    """What trees predict that learned the training split of `action_values.parquet`, as `rivals.fit` returns it.

    Of the last iteration alone: the values of an earlier one are those of another policy.
    """
    learned = values[(values["split"] == "train") & (values["iteration"] == values["iteration"].max())]
    return rivals.fit(features, learned, matrix(learned, "value"), seed)


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


def _values(parts: Parts, policy: Policy, iteration: int, splits: list[str], parameters: Parameters) -> pd.DataFrame:
    tables = []
    for market, parents in parts():
        chosen = parents[parents["split"].isin(splits)]
        if len(chosen):
            rollout = roll_out(policy, market, chosen, parameters, f"rollout {iteration}")
            states = rollout.visited.table
            split = chosen["split"].to_numpy()[states["parent"]]
            values = {f"value_{action}": value for action, value in enumerate(rollout.action_values.T)}
            tables.append(states[[*_STATE]].assign(iteration=iteration, split=split, **values))
    return pd.concat(tables, ignore_index=True)
