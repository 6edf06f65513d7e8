"""The life of an order on the recorded market, compiled (§3.5.1), in one module: numba's cache watches one file.

The market is what it was; our orders are too small to change it. Events are in order of the exchange's stamp. An order
in the book knows how much stands before it at its price: prints shrink that and then fill the order; what the level
loses beyond the prints was cancelled, and a part of it stood before us; a print beyond our price, or an opposite quote
that reaches it, would have met our order first. No print fills more than its size.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Nanoseconds

PRINT, QUOTE, SNAPSHOT = 0, 1, 2
UNKNOWN = -1.0  # size of a level that no message shows
DUST = 1e-9  # coin; less than that is the rounding of floating point


class Events(NamedTuple):
    """n messages in order of `exchange_ns`; of one stamp, prints before the quotes that show what they left.

    `best_price`, `best_size` (n, 2) are the newest bid and ask at each event, `row` (n,) the newest snapshot; `price`,
    `size` and `aggressor` (n,) describe prints. `level_price`, `level_size` (m, 2, 20) are the snapshots, bids first.
    """

    ns: Nanoseconds
    kind: NDArray[np.int8]
    price: Floats
    size: Floats
    aggressor: NDArray[np.int8]
    best_price: Floats
    best_size: Floats
    row: NDArray[np.int64]
    level_price: Floats
    level_size: Floats


class Arrivals(NamedTuple):
    """n orders: side +1 / -1, size in coin, limit in USD (NaN where not `resting`: at any price), and their events.

    `first` is the newest event when the order arrives, `last` the first at or after its expiry, `final` the newest when
    the order that completes it arrives.
    """

    side: NDArray[np.int64]
    size: Floats
    limit: Floats
    post_only: NDArray[np.bool_]
    resting: NDArray[np.bool_]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    final: NDArray[np.int64]


class Fills(NamedTuple):
    """What became of n orders; sizes in coin, notionals in USD.

    `taken`: from the book on arrival; `made`: while resting, at the limit; `completed`: left to the completing order,
    of which the visible book gave `swept`, the last of it at `deepest` (USD). `last_event` is that of the latest fill
    before expiry, -1 for none; `queue_ahead` is UNKNOWN where the level was not visible, NaN where nothing rested.
    """

    queue_ahead: Floats
    rejected: NDArray[np.bool_]
    taken: Floats
    taken_usd: Floats
    made: Floats
    last_event: NDArray[np.int64]
    completed: Floats
    swept: Floats
    swept_usd: Floats
    deepest: Floats


class Resting(NamedTuple):
    """An order in the book."""

    remaining: float
    ahead: float  # coin before us, UNKNOWN until our level is visible
    visible: float  # size of our level when it was last seen
    traded: float  # printed at our price since then
    exposed: bool  # the opposite best has stood beyond our price since we arrived


def stream(market: Market) -> Events:
    """The messages of a market as the kernel reads them."""
    trades, bbo, book = market.trades, market.bbo, market.book
    counts = [len(trades.price), len(bbo.bid_price), len(book.bid_price)]
    ns = np.concatenate([trades.exchange_ns, bbo.exchange_ns, book.exchange_ns])
    kind = np.repeat(np.array([PRINT, QUOTE, SNAPSHOT], dtype=np.int8), counts)
    row = np.concatenate([np.arange(count) for count in counts])
    order = np.lexsort((kind, ns))
    kind, row, printed = kind[order], row[order], order < counts[0]

    def of_prints(values: NDArray[Any]) -> NDArray[Any]:
        return np.where(printed, values[np.where(printed, row, 0)], 0) if counts[0] else np.zeros(len(ns), values.dtype)

    def of_quotes(best: Floats, levels: Floats) -> Floats:
        both = np.concatenate([np.full(counts[0], np.nan), best, levels[:, 0]])[order]
        return both[_latest(~np.isnan(both))]

    snapshot = _latest(kind == SNAPSHOT)
    return Events(
        ns=ns[order],
        kind=kind,
        price=of_prints(trades.price).astype(float),
        size=of_prints(trades.size).astype(float),
        aggressor=of_prints(trades.side).astype(np.int8),
        best_price=_pair(of_quotes(bbo.bid_price, book.bid_price), of_quotes(bbo.ask_price, book.ask_price)),
        best_size=_pair(of_quotes(bbo.bid_size, book.bid_size), of_quotes(bbo.ask_size, book.ask_size)),
        row=np.where(kind[snapshot] == SNAPSHOT, row[snapshot], -1),
        level_price=_pair(book.bid_price, book.ask_price),
        level_size=_pair(book.bid_size, book.ask_size),
    )


@njit(cache=True)
def replay(events: Events, orders: Arrivals, cancel_ahead_share: float, fills: Fills) -> None:
    """Fill in `fills`, order by order; no order sees another."""
    for order in range(len(orders.side)):
        side, limit, left = orders.side[order], orders.limit[order], orders.size[order]
        if orders.resting[order]:
            fills.rejected[order] = orders.post_only[order] and reaches(events, orders.first[order], side, limit)
            if not fills.rejected[order]:
                left = _live(events, orders, order, cancel_ahead_share, fills)
        fills.completed[order] = left
        if left > 0.0:
            swept, usd, deepest = sweep(events, orders.final[order], side, side * np.inf, left)
            fills.swept[order], fills.swept_usd[order], fills.deepest[order] = swept, usd, deepest


@njit(cache=True)
def _live(events: Events, orders: Arrivals, order: int, cancel_ahead_share: float, fills: Fills) -> float:
    """From arrival to expiry: take what the limit reaches, then rest. Returns the size that is left."""
    side, limit, first = orders.side[order], orders.limit[order], orders.first[order]
    taken, usd, _ = sweep(events, first, side, limit, orders.size[order])
    fills.taken[order], fills.taken_usd[order] = taken, usd
    if taken > 0.0:
        fills.last_event[order] = first
    state = rest(events, first, side, limit, orders.size[order] - taken)
    if state.remaining > DUST:
        fills.queue_ahead[order] = state.ahead
    event = first + 1
    while state.remaining > DUST and event < orders.last[order]:
        before = state.remaining
        state = advance(state, events, event, side, limit, cancel_ahead_share)
        if state.remaining < before:
            fills.last_event[order] = event
        event += 1
    left = state.remaining if state.remaining > DUST else 0.0
    fills.made[order] = orders.size[order] - taken - left
    return left


@njit(cache=True)
def reaches(events: Events, event: int, side: int, price: float) -> bool:
    """Whether a limit at `price` would trade with the best quote of the other side."""
    opposite = 1 if side > 0 else 0
    return bool(side * (price - events.best_price[event, opposite]) >= 0.0)


@njit(cache=True)
def sweep(events: Events, event: int, side: int, limit: float, size: float) -> tuple[float, float, float]:
    """Take up to `size` from the visible book, at `limit` or better: size taken, USD paid, the last price reached."""
    opposite = 1 if side > 0 else 0
    best = events.best_price[event, opposite]
    if side * (limit - best) < 0.0:
        return 0.0, 0.0, best
    taken = min(size, events.best_size[event, opposite])
    usd, deepest = taken * best, best
    row = events.row[event]
    if row >= 0:
        for level in range(events.level_price.shape[2]):
            price = events.level_price[row, opposite, level]
            if np.isnan(price) or taken >= size or side * (limit - price) < 0.0:
                break
            if side * (price - best) > 0.0:  # the snapshot may be older than the best quote
                part = min(size - taken, events.level_size[row, opposite, level])
                taken, usd, deepest = taken + part, usd + part * price, price
    return taken, usd, deepest


@njit(cache=True)
def rest(events: Events, event: int, side: int, price: float, remaining: float) -> Resting:
    """Join the queue at `price`: behind all that is visible there."""
    ahead = visible_size(events, event, side, price)
    return Resting(remaining, ahead, ahead, 0.0, not reaches(events, event, side, price))


@njit(cache=True)
def visible_size(events: Events, event: int, side: int, price: float) -> float:
    """Size resting at `price` on our side: 0 inside the spread or between levels, UNKNOWN beyond the visible book."""
    own = 0 if side > 0 else 1
    best = events.best_price[event, own]
    if price == best:
        return float(events.best_size[event, own])
    if side * (price - best) > 0.0:
        return 0.0
    row = events.row[event]
    if row >= 0:
        for level in range(events.level_price.shape[2]):
            at = events.level_price[row, own, level]
            if at == price:
                return float(events.level_size[row, own, level])
            if side * (price - at) > 0.0:
                return 0.0
    return UNKNOWN


@njit(cache=True)
def advance(state: Resting, events: Events, event: int, side: int, price: float, cancel_ahead_share: float) -> Resting:
    """What one event does to a resting order."""
    if events.kind[event] == PRINT:
        if events.aggressor[event] == side:
            return state
        return _printed(state, side * (price - events.price[event]), events.size[event])
    crossed = reaches(events, event, side, price)
    if crossed and state.exposed:
        return Resting(0.0, 0.0, 0.0, 0.0, True)
    state = Resting(state.remaining, state.ahead, state.visible, state.traded, not crossed)
    own = 0 if side > 0 else 1
    if events.kind[event] == QUOTE and side * (price - events.best_price[event, own]) < 0.0:
        return state  # a best quote before ours says nothing of our level
    return _seen(state, visible_size(events, event, side, price), cancel_ahead_share)


@njit(cache=True)
def _printed(state: Resting, beyond: float, size: float) -> Resting:
    """An aggressor of the other side traded `size`; `beyond` > 0 when at a price that ours had stood before."""
    if beyond > 0.0:
        return Resting(state.remaining - min(state.remaining, size), 0.0, 0.0, 0.0, state.exposed)
    if beyond < 0.0 or state.ahead == UNKNOWN:
        return state
    queue = min(state.ahead, size)
    fill = min(state.remaining, size - queue)
    if fill < DUST:
        fill = 0.0
    return Resting(state.remaining - fill, state.ahead - queue, state.visible, state.traded + size, state.exposed)


@njit(cache=True)
def _seen(state: Resting, size: float, cancel_ahead_share: float) -> Resting:
    """Our level was shown to hold `size`: what it lost beyond the prints was cancelled, some of it before us."""
    if size == UNKNOWN:
        return state
    if state.ahead == UNKNOWN:
        return Resting(state.remaining, size, size, 0.0, state.exposed)
    ahead, expected = state.ahead, state.visible - state.traded
    cancelled = expected - size
    if cancelled > 0.0:
        ahead -= cancel_ahead_share * cancelled * min(ahead / expected, 1.0)
    return Resting(state.remaining, min(max(ahead, 0.0), size), size, 0.0, state.exposed)


def _latest(at: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Position of the latest True at or before each position; 0 before the first."""
    return np.maximum.accumulate(np.where(at, np.arange(len(at)), 0))


def _pair(bid: Floats, ask: Floats) -> Floats:
    return np.ascontiguousarray(np.stack([bid, ask], axis=1))
