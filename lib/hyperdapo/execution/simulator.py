"""Replay orders on a recorded market (§3.5.1): decision, latency, queue, fills, expiry, completion, and their cost.

The trader decides on what was known by `local_ns`; the order meets the market in `exchange_ns`. What is not filled when
the horizon ends is bought or sold at once through the visible book, so that every order ends and every cost is paid.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtri

from hyperdapo.errors import OrderError
from hyperdapo.execution import kernel
from hyperdapo.execution.costs import fee_rates, square_root_impact
from hyperdapo.execution.draws import uniform
from hyperdapo.execution.kernel import Arrivals, Events, Fills, stream
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Nanoseconds
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, on_grid
from hyperdapo.schema import Execution, Latency

MARKOUTS_S = (1.0, 5.0, 10.0, 60.0)
ORDER_COLUMNS = ("order_id", "decision_ns", "side", "size", "horizon_s", "limit_price", "post_only")

SECOND = 1_000_000_000
_DAY = 86_400 * SECOND
_THESIS_MS = (5.0, 50.0)  # §3.5.1
_MEDIAN_MS, _P99_MS = 200.0, 900.0  # order to fill of a near client


class Life(NamedTuple):
    """When n orders arrive, expire, and are completed; nanoseconds of the exchange's clock, each (n,)."""

    arrival_ns: Nanoseconds
    expiry_ns: Nanoseconds
    completion_ns: Nanoseconds


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
    orders : (n, ...) with `ORDER_COLUMNS`: side +1 / -1, size in coin, `limit_price` in USD (NaN: at any price, at
        once), `post_only`; other columns pass through. Latency is drawn from (seed, asset, order_id, decision_ns), so
        that orders which share these are compared under the same latency.

    Returns
    -------
    `orders` and, row by row, costs in bps of size x arrival mid, positive when worse for the trader: arrival_mid (USD,
    known at the decision), target_price (the limit, or the arrival mid), arrival_ns, expiry_ns, completion_ns (-1 when
    not needed), latency_ms, status (filled, completed, rejected), queue_ahead (coin; NaN beyond the visible book or
    without a queue), filled_passive (share filled before expiry), maker_share, filled, fill_ns (latest fill before
    expiry, -1 for none), passive_price and completion_price (USD, NaN for no such part), exec_price, fees_bps,
    completion_slippage_bps (of the completed part against the arrival mid, times its share),
    implementation_shortfall_bps (eq. 3.8), slippage_bps (eq. 3.9 with its sign), total_cost_bps (shortfall + fees),
    markout_{h}s_bps (move of the mid in the trader's favour after the last fill; NaN beyond the data).

    Raises
    ------
    OrderError
        Naming the first row whose size, side, price, time or notional the exchange or the data do not allow.
    """
    arrival_mid = _checked_mid(market, orders)
    events = stream(market)
    life = _lives(market, orders, execution.latency, seed)
    fills = _fill(events, orders, life, execution.cancel_ahead_share)
    outcome = _account(market, orders, life, fills, arrival_mid, execution)
    resting = orders["limit_price"].notna().to_numpy()
    last_fill = np.where(fills.last_event >= 0, np.maximum(events.ns[fills.last_event], life.arrival_ns), -1)
    fill_ns = np.where(resting, last_fill, life.arrival_ns)
    filled = outcome["filled"].to_numpy()
    ended = np.where(filled, fill_ns, life.completion_ns)
    return orders.assign(
        arrival_mid=arrival_mid,
        arrival_ns=life.arrival_ns,
        expiry_ns=life.expiry_ns,
        completion_ns=np.where(filled, -1, life.completion_ns),
        latency_ms=(life.arrival_ns - orders["decision_ns"].to_numpy()) / 1e6,
        status=np.select([fills.rejected, filled], ["rejected", "filled"], "completed"),
        queue_ahead=np.where(fills.queue_ahead == kernel.UNKNOWN, np.nan, fills.queue_ahead),
        fill_ns=fill_ns,
        **outcome,
        **_markouts(events, ended, orders["side"].to_numpy(), markouts_s),
    )


def trace_order(market: Market, order: Mapping[str, Any], execution: Execution) -> pd.DataFrame:
    """The events that one limit order lives through, from its arrival to its last fill or its expiry.

    Parameters
    ----------
    order : a row of `replay_orders`

    Returns
    -------
    One row per event: exchange_ns, bid, ask (USD, best after it), print_price, print_size (NaN for quotes), aggressor,
    queue_ahead (coin after it, NaN while the level is not visible), filled (coin so far)
    """
    events, side, limit = stream(market), int(order["side"]), float(order["limit_price"])
    first = int(np.searchsorted(events.ns, order["arrival_ns"], side="right")) - 1
    last = int(np.searchsorted(events.ns, order["expiry_ns"], side="left"))
    taken = kernel.sweep(events, first, side, limit, order["size"])[0]
    state = kernel.rest(events, first, side, limit, order["size"] - taken)
    states = [state]
    for event in range(first + 1, last):
        if state.remaining <= kernel.DUST:
            break
        state = kernel.advance(state, events, event, side, limit, execution.cancel_ahead_share)
        states.append(state)
    lived = slice(first, first + len(states))
    prints = (events.kind[lived] == kernel.PRINT) & (np.arange(len(states)) > 0)
    ahead = np.array([state.ahead for state in states])
    return pd.DataFrame(
        {
            "exchange_ns": np.maximum(events.ns[lived], order["arrival_ns"]),
            "bid": events.best_price[lived, 0],
            "ask": events.best_price[lived, 1],
            "print_price": np.where(prints, events.price[lived], np.nan),
            "print_size": np.where(prints, events.size[lived], np.nan),
            "aggressor": np.where(prints, events.aggressor[lived], 0),
            "queue_ahead": np.where(ahead == kernel.UNKNOWN, np.nan, ahead),
            "filled": order["size"] - np.array([state.remaining for state in states]),
        }
    )


def _latency_ms(latency: Latency, draws: Floats) -> Floats:
    if latency.preset == "thesis":
        return _THESIS_MS[0] + (_THESIS_MS[1] - _THESIS_MS[0]) * draws
    return np.asarray(_MEDIAN_MS * (_P99_MS / _MEDIAN_MS) ** (ndtri(draws) / ndtri(0.99)))


def _lives(market: Market, orders: pd.DataFrame, latency: Latency, seed: int) -> Life:
    decision_ns = orders["decision_ns"].to_numpy(np.int64)
    order_id = orders["order_id"].to_numpy(np.int64)
    legs = (uniform(seed, f"{market.asset} {leg}", order_id, decision_ns) for leg in ("entry", "completion"))
    entry_ms, completion_ms = (_latency_ms(latency, draws) for draws in legs)
    arrival_ns = decision_ns + np.rint((latency.policy_ms + entry_ms) * 1e6).astype(np.int64)
    expiry_ns = arrival_ns + np.rint(orders["horizon_s"].to_numpy(float) * SECOND).astype(np.int64)
    at_once = orders["limit_price"].isna().to_numpy()
    completion_ns = np.where(at_once, arrival_ns, expiry_ns + np.rint(completion_ms * 1e6).astype(np.int64))
    return Life(arrival_ns, expiry_ns, completion_ns)


def _fill(events: Events, orders: pd.DataFrame, life: Life, cancel_ahead_share: float) -> Fills:
    count, limit = len(orders), np.round(orders["limit_price"].to_numpy(float), 6)
    arrivals = Arrivals(
        side=orders["side"].to_numpy(np.int64),
        size=orders["size"].to_numpy(float),
        limit=limit,
        post_only=orders["post_only"].to_numpy(bool),
        resting=np.isfinite(limit),
        first=np.searchsorted(events.ns, life.arrival_ns, side="right") - 1,
        last=np.searchsorted(events.ns, life.expiry_ns, side="left"),
        final=np.searchsorted(events.ns, life.completion_ns, side="right") - 1,
    )
    zeros = {name: np.zeros(count) for name in ("taken", "taken_usd", "made", "completed", "swept", "swept_usd")}
    fills = Fills(
        queue_ahead=np.full(count, np.nan),
        rejected=np.zeros(count, dtype=np.bool_),
        last_event=np.full(count, -1),
        deepest=np.full(count, np.nan),
        **zeros,
    )
    kernel.replay(events, arrivals, cancel_ahead_share, fills)
    return fills


def _account(
    market: Market, orders: pd.DataFrame, life: Life, fills: Fills, arrival_mid: Floats, execution: Execution
) -> pd.DataFrame:
    """Prices, fees and costs of each order; an order at any price counts as filled on arrival, none of it completed."""
    side, size, limit = (orders[name].to_numpy(float) for name in ("side", "size", "limit_price"))
    resting = ~np.isnan(limit)
    beyond = np.maximum(fills.completed - fills.swept, 0.0)
    impact = square_root_impact(beyond, _daily_volume(market), execution.impact_coefficient_bps)
    swept_usd = fills.swept_usd + np.where(beyond > 0, beyond * fills.deepest * (1 + side * impact * 1e-4), 0.0)
    taken_usd = np.where(resting, fills.taken_usd, swept_usd)
    made_usd = np.where(fills.made > 0, fills.made * limit, 0.0)
    completed = np.where(resting, fills.completed, 0.0)
    completed_usd = np.where(resting, swept_usd, 0.0)
    taker, maker = fee_rates(life.arrival_ns, execution.fees.tier)
    completion_taker, _ = fee_rates(life.completion_ns, execution.fees.tier)
    fees = taken_usd * taker + made_usd * maker + completed_usd * completion_taker
    with np.errstate(invalid="ignore"):
        passive_price = (taken_usd + made_usd) / (size - completed)
        completion_price = completed_usd / completed
    exec_price = (taken_usd + made_usd + completed_usd) / size
    shortfall = _signed_bps(side, exec_price, arrival_mid)
    slippage = np.where(completed > 0, _signed_bps(side, completion_price, arrival_mid) * completed / size, 0.0)
    target = np.where(resting, limit, arrival_mid)
    return pd.DataFrame(
        {
            "target_price": target,
            "filled_passive": 1 - completed / size,
            "maker_share": fills.made / size,
            "filled": completed == 0,
            "passive_price": passive_price,
            "completion_price": completion_price,
            "exec_price": exec_price,
            "fees_bps": fees / (size * arrival_mid),
            "completion_slippage_bps": slippage,
            "implementation_shortfall_bps": shortfall,
            "slippage_bps": _signed_bps(side, exec_price, target),
            "total_cost_bps": shortfall + fees / (size * arrival_mid),
        },
        index=orders.index,
    )


def _signed_bps(side: Floats, price: Floats, reference: Floats) -> Floats:
    return side * (price / reference - 1) * 1e4


def _daily_volume(market: Market) -> float:
    span = int(market.top.local_ns[-1] - market.top.local_ns[0])
    return float(market.trades.size.sum()) * _DAY / max(span, 1)


def _markouts(events: Events, ended: Nanoseconds, side: Floats, horizons_s: Sequence[float]) -> dict[str, Floats]:
    mid = events.best_price.mean(axis=1)

    def mid_at(ns: Nanoseconds) -> Floats:
        known = mid[np.searchsorted(events.ns, ns, side="right") - 1]
        return np.where(ns <= events.ns[-1], known, np.nan)

    start = mid_at(ended)
    later = {horizon: mid_at(ended + round(horizon * SECOND)) for horizon in horizons_s}
    return {f"markout_{horizon:g}s_bps": side * (mids / start - 1) * 1e4 for horizon, mids in later.items()}


def _checked_mid(market: Market, orders: pd.DataFrame) -> Floats:
    """The arrival mid of each order, once all orders are known to be valid."""
    if missing := [name for name in ORDER_COLUMNS if name not in orders]:
        raise OrderError(f"orders lack the columns {missing}; they need {list(ORDER_COLUMNS)}")
    if not len(market.top.local_ns):
        raise OrderError(f"the market of {market.asset} is empty: choose a source.from and source.to with data")
    size, side, limit, horizon = (orders[name].to_numpy(float) for name in ("size", "side", "limit_price", "horizon_s"))
    decision_ns, post_only = orders["decision_ns"].to_numpy(np.int64), orders["post_only"].to_numpy(bool)
    mid = market.mid_at(decision_ns)
    priced, steps = ~np.isnan(limit), size * 10.0**market.sz_decimals
    with np.errstate(invalid="ignore", divide="ignore"):
        ends = decision_ns + np.rint(np.nan_to_num(horizon) * SECOND).astype(np.int64)
        faults = {
            "a size that is not above zero": ~(size > 0),
            "a side that is neither +1 nor -1": np.abs(side) != 1,
            "a horizon that is not a time": ~(horizon >= 0),
            f"a size that is no multiple of {10.0**-market.sz_decimals:g}": np.abs(steps - np.rint(steps)) > 1e-6,
            "a limit price off the grid": priced & ~on_grid(np.where(priced, limit, 1.0), market.sz_decimals),
            "post_only without a limit price": post_only & ~priced,
            "a time outside the data or in a gap": market.interrupted(decision_ns, ends) | np.isnan(mid),
            f"less than {MINIMUM_NOTIONAL_USD:g} USD": size * np.where(priced, limit, mid) < MINIMUM_NOTIONAL_USD,
        }
    for fault, rows in faults.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            told = ", ".join(f"{name} {orders[name].iloc[row]}" for name in ORDER_COLUMNS)
            raise OrderError(f"the order in row {row} has {fault}: {told}")
    return mid
