"""Replay orders on a recorded market (§3.5.1): decision, latency, queue, fills, deadline, completion, and their cost.

The trader decides on what was known by `local_ns`; the order meets the market in `exchange_ns`. The deadline is the
decision and the horizon, whatever the latency. So the cancel goes out three typical latencies before it: one to the
exchange, one for the answer, and one for the order that buys or sells the rest at once through the visible book. Every
order ends, and every cost is paid.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from hyperdapo.errors import ParameterError
from hyperdapo.execution import kernel
from hyperdapo.execution.costs import Life, account, markouts
from hyperdapo.execution.events import ARRIVAL, DUST, FILL, PRINT, Arrivals, Events, Fills, Queue, stream
from hyperdapo.execution.orders import check_ends, checked_mid, uniform
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Integers, Mask, Nanoseconds
from hyperdapo.sections import Execution, Latency
from hyperdapo.times import MS_NS, SECOND_NS

MARKOUTS_S = (1.0, 5.0, 10.0, 60.0)
_THESIS_MS = (5.0, 50.0)  # §3.5.1
_MEDIAN_MS, _P99_MS = 200.0, 900.0  # order to fill of a near client
_SLOWEST = 0.9999  # quantile of the measured preset that stands for what is slower still, 2.2 s
_LEGS = 3  # from the cancel to the completion: its way, its answer's, and the completing order's
_NOTHING, _NO_PATH = np.zeros(0), np.zeros((0, 2))

Columns: TypeAlias = pd.DataFrame | Mapping[str, Any]
"""Orders by column, each (n,)."""


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
    known at the decision), target_price (the limit, or the arrival mid), arrival_ns (of the first try), expiry_ns (the
    deadline), cancel_ns (it lands: fills before count), completion_ns (of the rest; -1 when not needed), latency_ms (of
    what was sent first), status (filled, completed, abandoned; rejected: completed, and never in the book), rejections
    (how often a post-only order was refused before), queue_ahead (coin; NaN without a queue), queue_estimated (the
    level was beyond the visible book: a guess from the depth that was visible), fill_ns (latest fill before the cancel,
    -1 for none), what `costs.account` gives, and markout_{h}s_bps (`costs.markouts`).

    Raises
    ------
    OrderError
        Naming the first row whose size, side, price, time or notional the exchange or the data do not allow, or which
        cannot be completed within uninterrupted data.
    """
    arrival_mid = checked_mid(market, orders)
    life = lives(market.asset, orders, execution.latency, seed)
    arrivals = admit(market, orders, life, execution)
    check_ends(market, orders, np.where(arrivals["completes"], life.completion_ns, life.cancel_ns))
    fills = fill(market, arrivals, execution)
    columns = outcome(market, arrivals, life, fills, arrival_mid, execution, markouts_s)
    return pd.concat([orders.assign(arrival_mid=arrival_mid), pd.DataFrame(columns, index=orders.index)], axis=1)


def outcome(
    market: Market,
    arrivals: Arrivals,
    life: Life,
    fills: Fills,
    arrival_mid: Floats,
    execution: Execution,
    markouts_s: Sequence[float],
) -> dict[str, NDArray[Any]]:
    """The columns of `replay_orders` after arrival_mid (n,), against which costs are measured."""
    events = stream(market)
    columns = account(market, events, arrivals, life, fills, arrival_mid, execution)
    filled = columns["filled"]
    last_fill = np.where(fills["last_event"] >= 0, np.maximum(events.ns[fills["last_event"]], life.arrival_ns), -1)
    at_once = ~arrivals["resting"] & ~arrivals["waits"]
    refused = (fills["rejections"] > 0) & np.isnan(fills["limit"])
    status = np.select([refused, filled, ~arrivals["completes"]], ["rejected", "filled", "abandoned"], "completed")
    known = {
        "arrival_ns": life.arrival_ns,
        "expiry_ns": life.expiry_ns,
        "cancel_ns": life.cancel_ns,
        "completion_ns": np.where(filled, -1, life.completion_ns),
        "latency_ms": life.latency_ns / MS_NS,
        "status": status,
        **{name: fills[name] for name in ("rejections", "queue_ahead")},
        "queue_estimated": fills["estimated"],
        "fill_ns": np.where(at_once, life.arrival_ns, last_fill),
    }
    return known | columns | markouts(events, arrivals, life, fills, columns["maker_share"], markouts_s)


def trace_order(market: Market, order: Mapping[str, Any], execution: Execution) -> pd.DataFrame:
    """The events that one limit order lives through, from its arrival to its last fill or its cancel.

    Parameters
    ----------
    order : a row of `replay_orders` that was let into the book at once; siblings of its parent are left out

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
        event, state = kernel.wait(events, event, last, state, side, limit, queue, _NOTHING, kernel.ALONE, rest)
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


def lives(asset: str, orders: Columns, latency: Latency, seed: int) -> Life:
    """When each order arrives, is cancelled and completed; draws belong to (seed, asset, leg, order, time)."""
    decision_ns, order_id = (np.asarray(orders[name], np.int64) for name in ("decision_ns", "order_id"))
    at_once, waits = np.isnan(np.asarray(orders["limit_price"], np.float64)), _flag(orders, "waits", default=False)
    policy_ms = orders.get("policy_ms", latency.policy_ms)
    if isinstance(policy_ms, list):
        policy_ms = np.quantile(policy_ms, uniform(seed, f"{asset} thought", order_id, decision_ns))
    typical_ns = round(float(_latency_ms(latency, np.array([0.5]))[0]) * MS_NS)

    def leg_ns(leg: str) -> Nanoseconds:
        draws = uniform(seed, f"{asset} {leg}", order_id, decision_ns)
        return np.rint(_latency_ms(latency, draws) * MS_NS).astype(np.int64)

    thought_ns, answer_ns, completing_ns = (
        np.rint(np.asarray(policy_ms, np.float64) * MS_NS).astype(np.int64),
        leg_ns("answer"),
        leg_ns("completion"),
    )
    latency_ns = np.where(waits, completing_ns, thought_ns + leg_ns("entry"))
    expiry_ns = decision_ns + np.rint(np.asarray(orders["horizon_s"], np.float64) * SECOND_NS).astype(np.int64)
    latest_ns = np.maximum(expiry_ns - typical_ns, decision_ns + thought_ns) + completing_ns
    arrival_ns = np.where(waits, latest_ns, decision_ns + latency_ns)
    cancel_ns = np.maximum(expiry_ns - _LEGS * typical_ns + leg_ns("cancel"), arrival_ns)
    single = at_once | waits
    return Life(
        latency_ns=latency_ns,
        arrival_ns=arrival_ns,
        expiry_ns=expiry_ns,
        cancel_ns=np.where(single, arrival_ns, cancel_ns),
        completion_ns=np.where(single, arrival_ns, cancel_ns + answer_ns + completing_ns),
        answer_ns=answer_ns,
        again_ns=np.maximum(answer_ns + leg_ns("again"), MS_NS),
    )


def admit(market: Market, orders: Columns, life: Life, execution: Execution) -> Arrivals:
    """Orders as the kernel reads them: (n,) in the order of `orders`, which are not checked here."""
    events, block_ns = stream(market), round(execution.block_ms * MS_NS)
    limit, post_only = (
        np.round(np.asarray(orders["limit_price"], np.float64), 6),
        np.asarray(orders["post_only"], np.bool_),
    )
    side, waits = np.asarray(orders["side"], np.int64), _flag(orders, "waits", default=False)
    parent = np.asarray(orders["parent"], np.int64) if "parent" in orders else np.full(len(side), -1)
    order_id = np.asarray(orders["order_id"], np.int64)
    arrivals = np.zeros(len(side), ARRIVAL)
    columns = dict(
        side=side,
        size=np.asarray(orders["size"], np.float64),
        limit=limit,
        post_only=post_only,
        resting=np.isfinite(limit) & ~waits,
        waits=waits,
        completes=_flag(orders, "completes", default=True),
        first=_met(events, life.arrival_ns, post_only, block_ns),
        last=np.searchsorted(events.ns, life.cancel_ns, side="left"),
        final=_met(events, life.completion_ns, np.zeros(len(side), np.bool_), block_ns),
        sequence=np.lexsort((order_id, life.arrival_ns, -side * limit, parent))
        if "parent" in orders
        else np.arange(len(side)),
        parent=parent,
    )
    times = {name: getattr(life, name) for name in ("arrival_ns", "answer_ns", "again_ns", "cancel_ns")}
    for name, values in (columns | times).items():
        arrivals[name] = values
    return arrivals


def fill(market: Market, arrivals: Arrivals, execution: Execution) -> Fills:
    """What becomes of orders."""
    events, fills = stream(market), np.zeros(len(arrivals), FILL)
    for name in ("queue_ahead", "deepest", "limit"):
        fills[name] = np.nan
    fills["last_event"] = -1
    spent = np.zeros(len(events.ns) if (arrivals["parent"] >= 0).any() else 0)
    kernel.replay(events, arrivals, _queue(execution), fills, spent, _NO_PATH)
    return fills


def _flag(orders: Columns, name: str, default: bool) -> Mask:
    return np.asarray(orders[name], np.bool_) if name in orders else np.full(len(orders["side"]), default)


def _latency_ms(latency: Latency, draws: Floats) -> Floats:
    if latency.preset == "thesis":
        return _THESIS_MS[0] + (_THESIS_MS[1] - _THESIS_MS[0]) * draws
    if latency.preset == "empirical":
        return np.asarray(np.quantile(latency.empirical_ms, draws))
    deviations = ndtri(np.minimum(draws, _SLOWEST)) / ndtri(0.99)
    return np.asarray(_MEDIAN_MS * (_P99_MS / _MEDIAN_MS) ** deviations)


def _queue(execution: Execution) -> Queue:
    exponent = execution.queue_exponent if execution.queue == "power" else np.inf
    if exponent is None:
        raise ParameterError("execution.queue_exponent is null: fill it in with `as_measured`")
    return Queue(joined=execution.queue != "touch", exponent=exponent, crossing=execution.crossing_fills)


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
