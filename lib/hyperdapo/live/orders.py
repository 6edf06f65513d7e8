"""Orders of a session: what is wanted, and what becomes of it. Live and in a replay the same functions say so.

The kernel that replays the backtest's orders runs forward in time: an order is replayed on the messages that have come
so far, as often as anybody looks, and for good when no message can come any more that would change what became of it.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hyperdapo.actions import Action
from hyperdapo.execution.events import stream
from hyperdapo.execution.parents import Candidates, action_orders, life_ns, replay, wanted
from hyperdapo.execution.simulator import admit, fill, lives
from hyperdapo.execution.strategies import BOUNDS, ORDERS_COLUMNS
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Mask, Nanoseconds
from hyperdapo.params import Parameters
from hyperdapo.times import MS_NS, SECOND_NS

SPLIT = "test"
"""What 08 and 09 call orders that nothing was learned from."""
LATE_NS = 60 * SECOND_NS
"""What came so long after its stamp does not count (`feed.clean`): nothing can change what is older."""
BEFORE_NS = 120 * SECOND_NS
"""How much of the market before a decision is kept for what asks back: the newest quotes, and the queue at a price."""
DETAILS = (
    *("action", "limit_price", "post_only", "waits", "policy_ms", "arrival_ns", "expiry_ns", "cancel_ns"),
    *("completion_ns", "queue_estimated", "completion_price", "passive_price", "completion_slippage_bps"),
)
"""Columns that a session's `orders.parquet` has beside those of a backtest, at its end."""

_DECIMALS = 10  # of columns in bps, as in a backtest


def parents_at(features: pd.DataFrame, parameters: Parameters, market: Market) -> pd.DataFrame:
    """`parents.wanted` from rows of features, (n, 13); an order's number is that of its decision time since 1970."""
    step = round(parameters.features.decision_interval_s * SECOND_NS)
    numbered = features.set_axis(features["decision_ns"].to_numpy(np.int64) // step)
    return wanted(numbered.assign(split=SPLIT), parameters, market)


def distinct_actions(parents: pd.DataFrame, market: Market, actions: Sequence[Action]) -> Mask:
    """(n, K) False where an action is the same order as an earlier one."""
    side, mid = parents["side"].to_numpy(float), parents["arrival_mid"].to_numpy(float)
    best = market.top_at(parents["decision_ns"].to_numpy())
    return Candidates.of(actions, side, mid, best.bid_price, best.ask_price, market.sz_decimals).distinct


def orders_of(parents: pd.DataFrame, market: Market, parameters: Parameters, actions: Sequence[int]) -> pd.DataFrame:
    """The one order of each parent (n,), by its action."""
    return action_orders(parents, market, parameters.policy.actions, actions)


def needed_until(orders: pd.DataFrame, asset: str, parameters: Parameters) -> Nanoseconds:
    """(n,) until when the exchange's market must be known to say what became of each order, mark-outs included."""
    life = lives(asset, orders, parameters.execution.latency, parameters.seed)
    after_ns = round((max(parameters.orders.markouts_s) * SECOND_NS) + parameters.execution.block_ms * MS_NS)
    wanted_ns = orders["decision_ns"].to_numpy(np.int64) + life_ns(orders, parameters.orders)
    return np.asarray(np.maximum(np.maximum(life.completion_ns, life.cancel_ns) + after_ns, wanted_ns))


def voided(market: Market, orders: pd.DataFrame, parameters: Parameters) -> Mask:
    """(n,) whether the data were interrupted, or ended, while an order lived or its mark-outs were to be seen."""
    decision_ns = orders["decision_ns"].to_numpy(np.int64)
    life = lives(market.asset, orders, parameters.execution.latency, parameters.seed)
    ends_ns = np.maximum(life.completion_ns, life.cancel_ns)
    wanted_ns = np.maximum(decision_ns + life_ns(orders, parameters.orders), ends_ns)
    return np.asarray(market.interrupted(decision_ns, wanted_ns) | (ends_ns > stream(market).ns[-1]))


def execute(market: Market, orders: pd.DataFrame, parameters: Parameters, strategy: str, seed: int) -> pd.DataFrame:
    """What became of orders (n,) that are not void: rows of `orders.parquet`, those of a backtest and `DETAILS`.

    Raises as `simulator.replay_orders`.
    """
    rows = replay(market, orders, parameters).assign(strategy=strategy, seed=seed)
    for name, rules in BOUNDS.items():
        changed = parameters.model_copy(update={"execution": parameters.execution.model_copy(update=rules)})
        rows[f"cost_{name.replace(' ', '_')}_bps"] = replay(market, orders, changed)["total_cost_bps"]
    markouts = [name for name in rows if "markout_" in str(name)]
    rows = rows[[*ORDERS_COLUMNS, *markouts, *DETAILS]]
    return rows.round({name: _DECIMALS for name in rows if str(name).endswith("_bps")})


def standing(market: Market, orders: pd.DataFrame, parameters: Parameters, now_ns: int) -> pd.DataFrame:
    """How orders (n,) stand by the messages that have come so far: nothing of it is final.

    Returns
    -------
    The orders and `phase` (on its way, in the book, filled, completed, at its end), `ahead` (coin before it; NaN where
    it does not rest), `filled_share`
    """
    life = lives(market.asset, orders, parameters.execution.latency, parameters.seed)
    arrivals = admit(market, orders, life, parameters.execution)
    fills = fill(market, arrivals, parameters.execution)
    left = np.where(arrivals["resting"], fills["place"][:, 0], arrivals["size"])
    inside = np.isfinite(fills["limit"])
    left = np.where(arrivals["resting"] & ~inside, arrivals["size"], left)
    arrived = now_ns >= life.arrival_ns
    done = now_ns >= np.maximum(life.completion_ns, life.arrival_ns)
    rests = arrivals["resting"] & inside & arrived & (left > 0) & (now_ns < life.cancel_ns)
    phase = np.select(
        [~arrived, arrivals["resting"] & inside & (left <= 0), done, rests],
        ["on its way", "filled", "completed", "in the book"],
        "at its end",
    )
    share = np.where(arrived, np.where(done, 1.0, 1 - left / arrivals["size"]), 0.0)
    return orders.assign(phase=phase, ahead=np.where(rests, fills["place"][:, 1], np.nan), filled_share=share)
