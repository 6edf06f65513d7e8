"""Replay orders on a recorded market (§3.5.1): decision, latency, queue, fills, expiry, completion, and their cost.

The trader decides on what was known by `local_ns`; the order meets the market in `exchange_ns`. When the horizon ends a
cancel goes out; what is not filled when it lands is bought or sold at once through the visible book, so that every
order ends and every cost is paid.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from hyperdapo.errors import ParameterError
from hyperdapo.execution import kernel
from hyperdapo.execution.costs import Life, account, markouts
from hyperdapo.execution.events import ARRIVAL, DUST, FILL, PRINT, Arrivals, Events, Fills, Queue, stream
from hyperdapo.execution.orders import checked_mid, uniform
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Integers, Mask, Nanoseconds
from hyperdapo.sections import Execution, Latency
from hyperdapo.times import MS_NS, SECOND_NS

MARKOUTS_S = (1.0, 5.0, 10.0, 60.0)
_THESIS_MS = (5.0, 50.0)  # §3.5.1
_MEDIAN_MS, _P99_MS = 200.0, 900.0  # order to fill of a near client
_NOTHING = np.zeros(0)


def replay_orders(
    market: Market,
    orders: pd.DataFrame,
    execution: Execution,
    seed: int,
    markouts_s: Sequence[float] = MARKOUTS_S,
) -> pd.DataFrame:
    """Replay each order by itself; the same order gives the same fills alone or among a million others.

    Parameters
    ----------
    orders : (n, ...) with `orders.ORDER_COLUMNS`: side +1 / -1, size in coin, `limit_price` in USD (NaN: at any price,
        at once), `post_only`; `orders.OPTIONAL_COLUMNS` count where they are, others pass through. Latencies are drawn
        from (seed, asset, order_id, decision_ns): orders that share these are compared under the same latency.

    Returns
    -------
    `orders` and, row by row, costs in bps of size x arrival mid, positive when worse for the trader: arrival_mid (USD,
    known at the decision), target_price (the limit, or the arrival mid), arrival_ns, expiry_ns (the horizon ends and a
    cancel is sent), cancel_ns (it lands: fills before count), completion_ns (of the rest; -1 when not needed),
    latency_ms, status (filled, completed, abandoned, rejected), queue_ahead (coin; NaN without a queue),
    queue_estimated (the level was beyond the visible book: a guess from the depth that was visible), filled_passive
    (share filled before the cancel), maker_share, filled, fill_ns (latest fill before the cancel, -1 for none),
    passive_price and completion_price (USD, NaN for no such part), exec_price, fees_bps, funding_bps (of the full
    hours within the horizon), completion_slippage_bps (of the completed part against the arrival mid, times its share),
    implementation_shortfall_bps (eq. 3.8), slippage_bps (eq. 3.9 with its sign), total_cost_bps (shortfall + fees +
    funding), spread_bps + timing_bps + opportunity_bps (= shortfall), markout_{h}s_bps (move of the mid in the trader's
    favour after the last fill; NaN beyond the data).

    Raises
    ------
    OrderError
        Naming the first row whose size, side, price, time or notional the exchange or the data do not allow.
    """
    arrival_mid = checked_mid(market, orders)
    events = stream(market)
    life = lives(market.asset, orders, execution.latency, seed)
    arrivals = _arrivals(events, orders, life, execution.block_ms)
    fills = _filled(events, arrivals, _queue(execution))
    outcome = account(market, events, orders, arrivals, life, fills, arrival_mid, execution)
    last_fill = np.where(fills["last_event"] >= 0, np.maximum(events.ns[fills["last_event"]], life.arrival_ns), -1)
    fill_ns = np.where(arrivals["resting"], last_fill, life.arrival_ns)
    filled = outcome["filled"].to_numpy()
    ended = np.where(filled, fill_ns, life.completion_ns)
    return orders.assign(
        arrival_mid=arrival_mid,
        arrival_ns=life.arrival_ns,
        expiry_ns=life.expiry_ns,
        cancel_ns=life.cancel_ns,
        completion_ns=np.where(filled, -1, life.completion_ns),
        latency_ms=(life.arrival_ns - orders["decision_ns"].to_numpy()) / MS_NS,
        status=np.select(
            [fills["rejected"], filled, ~arrivals["completes"]], ["rejected", "filled", "abandoned"], "completed"
        ),
        queue_ahead=fills["queue_ahead"],
        queue_estimated=fills["estimated"],
        fill_ns=fill_ns,
        **outcome,
        **markouts(events, ended, orders["side"].to_numpy(), markouts_s),
    )


def trace_order(market: Market, order: Mapping[str, Any], execution: Execution) -> pd.DataFrame:
    """The events that one limit order lives through, from its arrival to its last fill or its cancel.

    Parameters
    ----------
    order : a row of `replay_orders`; siblings of its parent are left out

    Returns
    -------
    One row per event: exchange_ns, bid, ask (USD, best after it), print_price, print_size (NaN for quotes), aggressor,
    queue_ahead (coin after it), filled (coin so far)
    """
    events, side, limit = stream(market), int(order["side"]), float(order["limit_price"])
    queue, block_ns = _queue(execution), round(execution.block_ms * MS_NS)
    first = int(_met(events, np.array([order["arrival_ns"]]), np.array([order["post_only"]]), block_ns)[0])
    last = int(np.searchsorted(events.ns, order["cancel_ns"], side="left"))
    taken = kernel.sweep(events, first, side, limit, order["size"])[0]
    state = kernel.rest(events, first, side, limit, order["size"] - taken, queue)
    path = np.empty((max(last - first, 1), 2))
    path[0], event = (state.ahead, state.remaining), first + 1
    while state.remaining > DUST and event < last:
        rest = path[event - first :]
        event, state = kernel.wait(
            events, event, last, state, side, limit, queue.exponent, _NOTHING, kernel.ALONE, rest
        )
    lived, path = slice(first, event), path[: event - first]
    prints = (events.moment["kind"][lived] == PRINT) & (np.arange(len(path)) > 0)
    return pd.DataFrame(
        {
            "exchange_ns": np.maximum(events.ns[lived], order["arrival_ns"]),
            "bid": events.moment["best_price"][lived, 0],
            "ask": events.moment["best_price"][lived, 1],
            "print_price": np.where(prints, events.moment["price"][lived], np.nan),
            "print_size": np.where(prints, events.moment["size"][lived], np.nan),
            "aggressor": np.where(prints, events.moment["aggressor"][lived], 0),
            "queue_ahead": path[:, 0],
            "filled": order["size"] - path[:, 1],
        }
    )


def lives(asset: str, orders: pd.DataFrame, latency: Latency, seed: int) -> Life:
    """When each order arrives, expires, is cancelled and completed; draws belong to (seed, asset, leg, order, time)."""
    decision_ns, order_id = (orders[name].to_numpy(np.int64) for name in ("decision_ns", "order_id"))
    policy_ms = orders["policy_ms"].to_numpy(float) if "policy_ms" in orders else latency.policy_ms

    def leg_ns(leg: str, before_ms: Floats | float = 0.0) -> Nanoseconds:
        draws = uniform(seed, f"{asset} {leg}", order_id, decision_ns)
        return np.rint((before_ms + _latency_ms(latency, draws)) * MS_NS).astype(np.int64)

    if "until_ns" in orders:
        arrival_ns, cancel_ns = (orders[name].to_numpy(np.int64) for name in ("arrives_ns", "until_ns"))
        return Life(arrival_ns, cancel_ns, cancel_ns, cancel_ns + leg_ns("completion"))
    arrival_ns = decision_ns + leg_ns("entry", policy_ms)
    expiry_ns = arrival_ns + np.rint(orders["horizon_s"].to_numpy(float) * SECOND_NS).astype(np.int64)
    at_once = orders["limit_price"].isna().to_numpy()
    cancel_ns = np.where(at_once, arrival_ns, expiry_ns + leg_ns("cancel"))
    completion_ns = np.where(at_once, arrival_ns, cancel_ns + leg_ns("completion"))
    return Life(arrival_ns, expiry_ns, cancel_ns, completion_ns)


def _latency_ms(latency: Latency, draws: Floats) -> Floats:
    if latency.preset == "thesis":
        return _THESIS_MS[0] + (_THESIS_MS[1] - _THESIS_MS[0]) * draws
    if latency.preset == "empirical":
        return np.asarray(np.quantile(latency.empirical_ms, draws))
    return np.asarray(_MEDIAN_MS * (_P99_MS / _MEDIAN_MS) ** (ndtri(draws) / ndtri(0.99)))


def _queue(execution: Execution) -> Queue:
    exponent = execution.queue_exponent if execution.queue == "power" else np.inf
    if exponent is None:
        raise ParameterError("execution.queue_exponent is null: fill it in with `as_measured`")
    return Queue(joined=execution.queue != "touch", exponent=exponent)


def _arrivals(events: Events, orders: pd.DataFrame, life: Life, block_ms: float) -> Arrivals:
    limit, block_ns = np.round(orders["limit_price"].to_numpy(float), 6), round(block_ms * MS_NS)
    side, post_only = orders["side"].to_numpy(np.int64), orders["post_only"].to_numpy(bool)
    alone, order_id = np.full(len(orders), -1), orders["order_id"].to_numpy(np.int64)
    parent = orders["parent"].to_numpy(np.int64) if "parent" in orders else alone
    priority = np.lexsort((order_id, life.arrival_ns, -side * limit, parent))
    columns = dict(
        side=side,
        size=orders["size"].to_numpy(float),
        limit=limit,
        post_only=post_only,
        resting=np.isfinite(limit),
        completes=orders["completes"].to_numpy(bool) if "completes" in orders else np.ones(len(orders), dtype=bool),
        first=_met(events, life.arrival_ns, post_only, block_ns),
        last=np.searchsorted(events.ns, life.cancel_ns, side="left"),
        final=_met(events, life.completion_ns, alone > 0, block_ns),
        sequence=priority if "parent" in orders else np.arange(len(orders)),
        parent=parent,
    )
    arrivals = np.zeros(len(orders), ARRIVAL)
    for name in columns:
        arrivals[name] = columns[name]
    return arrivals


def _met(events: Events, ns: Nanoseconds, post_only: Mask, block_ns: int) -> Integers:
    """The newest event that orders which arrive at `ns` (n,) find: (n,).

    They are in the first block after `ns` when it follows within `block_ns`. Inside it the exchange takes post-only
    orders first, then cancels, then IOC and GTC: those see what the block leaves, a post-only order what the one before
    left.
    """
    following = np.minimum(np.searchsorted(events.ns, ns, side="left"), len(events.ns) - 1)
    stamp = events.ns[following]
    block = np.where((stamp >= ns) & (stamp - ns <= block_ns), stamp, ns)
    newest = np.searchsorted(events.ns, block, side="right") - 1
    return np.where(post_only, np.maximum(np.searchsorted(events.ns, ns, side="left") - 1, 0), newest)


def _filled(events: Events, arrivals: Arrivals, queue: Queue) -> Fills:
    fills = np.zeros(len(arrivals), FILL)
    fills["queue_ahead"], fills["deepest"], fills["last_event"] = np.nan, np.nan, -1
    spent = np.zeros(len(events.ns) if (arrivals["parent"] >= 0).any() else 0)
    kernel.replay(events, arrivals, queue, fills, spent, np.zeros((0, 2)))
    return fills
