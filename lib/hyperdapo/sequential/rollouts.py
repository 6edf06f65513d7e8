"""What every action is worth in every state that a policy visits, exactly: replayed, then continued by the policy.

The simulator is deterministic: all paths of an order share its latencies and its market, so that the difference between
two actions is that of two replays, and nothing is sampled (policy iteration with known action values, eq. 2.7).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.execution.children import Known, decide_again
from hyperdapo.execution.orders import uniform
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Integers, Mask
from hyperdapo.params import Parameters
from hyperdapo.sequential.states import Policy, Visited, see

EXPLORED = 0.3
"""Share of the decisions in which a rollout explores."""
_PATHS = 200_000  # replayed at once


@dataclass(frozen=True)
class Rollout:
    """A policy on n parents: what each paid (n,) bps; the m states that they came through, what was chosen there (m,).

    `action_values` (m, K + 1), bps: minus the cost of the whole parent if this action is taken there, and the policy
    decides from then on; NaN for what is not allowed.
    """

    costs: Floats
    visited: Visited
    chosen: Integers
    action_values: Floats


def execute(policy: Policy, market: Market, parents: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """Parents executed by a policy that decides every `policy.decide_again_s`: rows as of `children.decide_again`."""
    actions = parameters.policy.actions

    def choose(orders: pd.DataFrame, known: Known) -> Integers:
        return policy(see(market, orders, known, actions))

    return decide_again(market, parents, choose, actions, decide_every_s(parameters), parameters)


def decide_every_s(parameters: Parameters) -> float:
    """Seconds between two decisions on an order; with `policy.decide_again_s` null its horizon: it is decided once."""
    return parameters.policy.decide_again_s or parameters.orders.longest_horizon_s


def roll_out(
    policy: Policy,
    market: Market,
    parents: pd.DataFrame,
    parameters: Parameters,
    exploring: str = "",
    then: Policy | None = None,
) -> Rollout:
    """Execute parents by a policy, and value every action wherever it came through.

    Parameters
    ----------
    exploring : names draws, of which a share `EXPLORED` chooses any action that is allowed: so states are met into
        which the policy itself would not come; values are still its own
    then : decides in its place from the valued action on: what another policy makes of the same states

    Raises
    ------
    DataError
        If what an action that is allowed would have cost is no number.
    """
    seen, decided = list[Visited](), list[Integers]()

    def remember(visited: Visited) -> Integers:
        seen.append(visited)
        chosen = policy(visited)
        if exploring:
            keys = visited.table["order_id"].to_numpy(), visited.table["decision_ns"].to_numpy()
            strays, draw = (
                uniform(parameters.seed, f"{market.asset} {exploring} {what}", *keys) for what in ("whether", "which")
            )
            chosen = np.where(strays < EXPLORED, _drawn(visited.allowed, draw), chosen)
        decided.append(chosen)
        return chosen

    costs = execute(remember, market, parents, parameters)["total_cost_bps"].to_numpy(float)
    visited = Visited(
        pd.concat([each.table for each in seen], ignore_index=True), np.concatenate([each.means for each in seen])
    )
    chosen = np.concatenate(decided)
    parent, number = visited.table["parent"].to_numpy(), visited.table["number"].to_numpy()
    taken = np.full((len(parents), number.max() + 1), -1)
    taken[parent, number] = chosen
    values = np.full(visited.allowed.shape, np.nan)
    if not exploring and then is None:
        values[np.arange(len(chosen)), chosen] = -costs[parent]
    state, action = np.nonzero(visited.allowed & np.isnan(values))
    for start in range(0, len(state), _PATHS):
        part = slice(start, start + _PATHS)
        values[state[part], action[part]] = -_deviated(
            market, parents, taken, parent[state[part]], number[state[part]], action[part], then or policy, parameters
        )
    if (lost := visited.allowed & ~np.isfinite(values)).any():
        state, action = np.argwhere(lost)[0]
        raise DataError(
            f"{market.asset}: order {visited.table['order_id'].iloc[state]} has no finite cost at decision "
            f"{visited.table['number'].iloc[state]} by action {action}: run 02_preprocess again"
        )
    return Rollout(costs, visited, chosen, values)


def _drawn(allowed: Mask, draw: Floats) -> Integers:
    """(m,) one of the allowed actions (m, K + 1) of each state, by a uniform draw (m,)."""
    upto = np.cumsum(allowed, axis=1)
    drawn: Integers = (upto > (draw * upto[:, -1])[:, None]).argmax(axis=1)
    return drawn


def _deviated(
    market: Market,
    parents: pd.DataFrame,
    taken: Integers,
    parent: Integers,
    number: Integers,
    action: Integers,
    policy: Policy,
    parameters: Parameters,
) -> Floats:
    """(paths,) bps: what parents pay that decide as in `taken` (n, rounds), but for one action of decision `number`."""
    actions = parameters.policy.actions

    def choose(orders: pd.DataFrame, known: Known) -> Integers:
        here, forced = number[known.row], np.where(known.number < number[known.row], -1, action[known.row])
        before = known.number < here
        chosen = np.where(before, taken[parent[known.row], min(known.number, taken.shape[1] - 1)], forced)
        if (later := np.flatnonzero(known.number > here)).size:
            rest = Known(known.row[later], known.number, *(values[later] for values in known[2:]))
            chosen[later] = policy(see(market, orders.iloc[later].reset_index(drop=True), rest, actions))
        return np.asarray(chosen)

    rows = parents.iloc[parent].reset_index(drop=True)
    without = parameters.model_copy(update={"orders": parameters.orders.model_copy(update={"markouts_s": []})})
    executed = decide_again(market, rows, choose, actions, decide_every_s(parameters), without)
    costs: Floats = executed["total_cost_bps"].to_numpy(float)
    return costs
