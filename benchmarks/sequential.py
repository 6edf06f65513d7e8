"""A refresh of rollouts where orders are decided on again: 1,000 orders, up to six decisions each, all K + 1 actions.

`sequential_refresh_in_10_s`: every action of every state that the orders come through is replayed and continued by the
policy, on one of the 2 cores, against the 10 s that we allow. The policy stays five ticks behind the touch, so that few
orders are filled before their last decision.
"""

import sys

import numpy as np
from _synthetic import PARAMETERS, market
from _timing import best_of, one_core

from hyperdapo.execution.parents import parent_orders
from hyperdapo.market.features import compute_features, decision_grid
from hyperdapo.sequential.rivals import renewed
from hyperdapo.sequential.rollouts import roll_out

ORDERS, BUDGET_S = 1000, 10.0


def main() -> None:
    """Print the lines of `benchmarks`."""
    one_core()
    day = market(4)
    features = compute_features(day, decision_grid(day, 10.0), PARAMETERS.features)
    states = features[features["warm"]].assign(split="train")
    parents = parent_orders(states, PARAMETERS, day)
    parents = parents.iloc[np.linspace(0, len(parents) - 1, ORDERS).astype(int)].reset_index(drop=True)
    behind = [str(action) for action in PARAMETERS.policy.actions].index("behind 5")
    seconds, rollout = best_of(lambda: roll_out(renewed(behind), day, parents, PARAMETERS), 1)
    replays = int(rollout.visited.allowed.sum())
    print(f"sequential: {len(rollout.visited):,} states, {replays:,} replays", file=sys.stderr)
    print(f"BENCH sequential_refresh_in_{BUDGET_S:g}_s {seconds:.2f} {BUDGET_S:.2f} {BUDGET_S / seconds:.2f} 1")


if __name__ == "__main__":
    main()
