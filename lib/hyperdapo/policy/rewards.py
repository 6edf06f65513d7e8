"""The reward of an order (eq. 3.3), relative to its side: a sell is rewarded for a high price as a buy for a low one.

    R = alpha R_execution + beta R_risk + gamma R_cost,  all in bps of the arrival mid

The draft's R_exec has no side, and an order that never fills costs it nothing. Here the side counts, and what it
costs to complete the order at the horizon is slippage. With weights (1, 0, 1) the reward is minus price and fees
(docs/design.md, Rewards and objectives).
"""

from collections.abc import Sequence

import pandas as pd

from hyperdapo.sections import Orders


def reward_parts(outcomes: pd.DataFrame, drawdown_threshold_bps: float, markouts_s: Sequence[float]) -> pd.DataFrame:
    """The three parts of eq. 3.3 for n replayed orders, bps.

    `reward_execution` is the price improvement of what was filled before expiry, `reward_risk` punishes the worst
    mark-out beyond the threshold (adverse selection), `reward_cost` is minus fees and the slippage of the completion.

    Examples
    --------
    A buy rests 15 bps under the mid, is filled, pays the maker's 1.5 bps, and sees the price fall 8 bps further:

    >>> order = {"implementation_shortfall_bps": [-15.0], "completion_slippage_bps": [0.0], "fees_bps": [1.5]}
    >>> order |= {"filled_passive": [1.0]}
    >>> reward_parts(pd.DataFrame(order | {"markout_60s_bps": [-8.0]}), 5.0, [60]).iloc[0].tolist()
    [15.0, -3.0, -1.5]
    """
    completion = outcomes["completion_slippage_bps"]
    improvement = completion - outcomes["implementation_shortfall_bps"]
    drawdown = -outcomes[[f"markout_{horizon:g}s_bps" for horizon in markouts_s]].min(axis=1).clip(upper=0)
    parts = {
        "reward_execution": improvement.where(outcomes["filled_passive"] > 0, 0.0),
        "reward_risk": -(drawdown - drawdown_threshold_bps).clip(lower=0),
        "reward_cost": -(outcomes["fees_bps"] + completion),
    }
    return pd.DataFrame(parts) + 0.0


def with_rewards(outcomes: pd.DataFrame, orders: Orders) -> pd.DataFrame:
    """`outcomes` with the three parts and `reward`, weighted as the order's objective asks."""
    parts = reward_parts(outcomes, orders.drawdown_threshold_bps, orders.markouts_s)
    weights = {name: rules.weights for name, rules in orders.rules.items()}
    alpha = outcomes["objective"].map({name: weight.execution for name, weight in weights.items()})
    beta = outcomes["objective"].map({name: weight.risk for name, weight in weights.items()})
    gamma = outcomes["objective"].map({name: weight.cost for name, weight in weights.items()})
    reward = alpha * parts["reward_execution"] + beta * parts["reward_risk"] + gamma * parts["reward_cost"]
    return pd.concat([outcomes, parts, reward.rename("reward")], axis=1)
