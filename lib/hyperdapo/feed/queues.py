"""The queue at each price, rebuilt from every order by its id, and what a recorder of the public feed would have seen.

Price-time priority: an order stands behind all that rest at its price. A stream begins and ends in the middle of a
day, so an order that is first seen when it leaves was there before: it is put where its id, which exchanges give in the
order of time, says. What cannot be is counted by cause and mended or left out; where it is too much of the whole, the
stream is refused.
"""

from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from hyperdapo.errors import DataError
from hyperdapo.feed.order_flow import ADD, CANCEL, EXECUTE, OrderFlow
from hyperdapo.market.book import Market
from hyperdapo.market.columns import LEVELS, BookSnapshots, Floats, Integers, Mask, Nanoseconds, TopOfBook, Trades
from hyperdapo.times import MS_NS

SNAPSHOT_NS = 500 * MS_NS
WORST = 0.02  # share of the events that may be mended or left out
NOBODY = -1
_MENDED = ("duplicate", "unknown", "excess", "stale")
_DUPLICATE, _UNKNOWN, _EXCESS, _CROSSED = 1, 2, 3, 4

SEEN = np.dtype(
    [
        *((name, np.int64) for name in ("depth", "ahead", "level")),
        *((name, np.int64, (2,)) for name in ("best", "best_lots")),
        *(("fault", np.int8), ("out_of_turn", np.bool_)),
    ],
    align=True,
)
"""Of an event: how many prices stood before its own, lots before its order and at its price in all (before it), the
best prices and their lots (after it), what was wrong."""


class _Book(NamedTuple):
    """Orders as linked lists: `left` (k,) lots, `level`, `near`, and neighbours in the queue of each order (k,).

    `first`, `last` and `total` (2, m) are the ends and the lots of each queue, bids first; `best` (2,) its level.
    """

    left: Integers
    level: Integers
    near: Integers
    before: Integers
    after: Integers
    first: Integers
    last: Integers
    total: Integers
    best: Integers


def rebuild(flow: OrderFlow) -> OrderFlow:
    """The flow of which each event is possible, with what it met: `depth`, `ahead` and `level` (lots), `known`.

    `depth` counts the prices before the order's own; `ahead` are lots before it in its queue, `level` all lots of the
    queue, both before the event. `known` is False of orders whose beginning was not seen. Counted are events of orders
    that were there `before` the stream, and of `unknown` ones, younger than its first; `duplicate` (an id that is
    alive), `excess` (more is taken out than is left), `stale` (orders that the market passed: they had left unseen),
    `crossed` (orders that were added through the other side) and `out_of_turn` (executions while others stood before).

    Raises
    ------
    DataError
        If there is no event, or more than `WORST` of them had to be mended or left out.
    """
    if flow.events.empty:
        raise DataError(f"{flow.asset}: no order in the stream; look at the file, and at the asset that is wanted")
    whole, before, unknown = _with_those_before(flow.events)
    seen, left_at, left_lots = _played(whole)
    rows = np.flatnonzero(left_at >= 0)
    faulty = (seen["fault"] == _DUPLICATE) | (seen["fault"] == _UNKNOWN) | (seen["fault"] == _EXCESS)
    counted = flow.counted + Counter(
        before=before,
        duplicate=int((seen["fault"] == _DUPLICATE).sum()),
        unknown=unknown + int((seen["fault"] == _UNKNOWN).sum()),
        excess=int((seen["fault"] == _EXCESS).sum()),
        stale=len(rows),
        crossed=int((seen["fault"] == _CROSSED).sum()),
        out_of_turn=int(seen["out_of_turn"].sum()),
    )
    mended = sum(counted[name] for name in _MENDED)
    if mended > WORST * len(flow.events):
        causes = ", ".join(f"{counted[name]:,} {name}" for name in _MENDED if counted[name])
        raise DataError(
            f"{flow.asset}: of {len(flow.events):,} events of orders {mended:,} cannot be ({causes}), more than "
            f"{WORST:.0%}: the stream has holes or is of another format; record it anew, or cut it where it breaks"
        )
    gone = whole.drop_duplicates("order").set_index("order").loc[rows]
    gone = gone.assign(kind=CANCEL, lots=left_lots[rows], ns=whole["ns"].to_numpy()[left_at[rows]], stale=True)
    kept = whole.assign(place=np.arange(len(whole)) + 0.5, stale=False)[~faulty]
    clean = pd.concat([kept, gone.reset_index().assign(place=left_at[rows])])
    clean = clean.sort_values("place", kind="stable", ignore_index=True).drop(columns=["place", "order"])
    seen = _played(clean)[0]
    met = {name: seen[name] for name in ("depth", "ahead", "level")}
    return replace(flow, events=clean.assign(**met), counted=+counted)


def publish(flow: OrderFlow, hidden: Integers | None = None, quotes_ms: float = 0.0) -> Market:
    """What a recorder would have received of a rebuilt flow, were the `hidden` orders (ids) not in the book.

    `l2Book` of 20 levels every 0.5 s, `bbo` when the best changes, and every print, also those of hidden orders: who
    took would have taken. Where quotes are published at most every `quotes_ms`, what changed in between is not seen.
    Times received are those of the exchange.
    """
    events = flow.events if hidden is None else flow.events[~flow.events["order_id"].isin(hidden)]
    ns, usd = events["ns"].to_numpy(), np.unique(events["price"])
    clock = np.arange(ns[0] + SNAPSHOT_NS, ns[-1] + 1, SNAPSHOT_NS)
    levels, lots = (np.full((len(clock), 2, LEVELS), empty, dtype=np.int64) for empty in (NOBODY, 0))
    seen = _played(events, clock, levels, lots)[0]
    sides = [
        np.where(levels[:, near] < 0, np.nan, values)
        for near in (0, 1)
        for values in (usd[levels[:, near]], lots[:, near] * flow.lot)
    ]
    whole = (levels[:, :, 0] >= 0).all(axis=1)
    book = BookSnapshots(clock[whole], clock[whole], *(side[whole] for side in sides))
    traded = flow.events[flow.events["kind"] == EXECUTE]
    side = -traded["side"].to_numpy(np.int8)
    printed = (traded["ns"].to_numpy(), traded["price"].to_numpy(), traded["lots"].to_numpy() * flow.lot, side)
    trades = Trades(printed[0], printed[0], *printed[1:], traded.index.to_numpy(np.int64))
    return Market(
        flow.asset,
        flow.sz_decimals,
        book,
        _quotes(seen, ns, usd, flow.lot, round(quotes_ms * MS_NS)),
        trades,
        flow.gaps,
    )


def fates(flow: OrderFlow) -> pd.DataFrame:
    """What became of the orders of a rebuilt flow whose whole life was seen.

    Returns
    -------
    One row per order, by the time it was placed: order_id, side, limit_price (USD), size, ahead, level (coin: its own,
    before it in its queue, in the whole queue), depth (prices before its own), placed_ns, ended_ns, executed (coin),
    status (filled, canceled)
    """
    seen = flow.events[flow.events["known"]]
    added, left = seen[seen["kind"] == ADD], seen[seen["kind"] != ADD]
    ends = left.groupby("order_id").agg(
        ended_ns=("ns", "last"), last=("kind", "last"), gone=("lots", "sum"), passed=("stale", "any")
    )
    executed = left[left["kind"] == EXECUTE].groupby("order_id")["lots"].sum().rename("executed")
    orders = added.drop_duplicates("order_id", keep=False).join(ends, on="order_id", how="inner")
    orders = orders.join(executed, on="order_id").fillna({"executed": 0})
    orders = orders[(orders["gone"] == orders["lots"]) & ~orders["passed"]]
    coin = {name: orders[name] * flow.lot for name in ("ahead", "level", "executed")}
    named = orders.rename(columns={"price": "limit_price", "ns": "placed_ns"})
    named = named.assign(
        size=orders["lots"] * flow.lot, status=np.where(orders["last"] == EXECUTE, "filled", "canceled")
    )
    columns = ["order_id", "side", "limit_price", "size", "ahead", "level", "depth"]
    columns += ["placed_ns", "ended_ns", "executed", "status"]
    return named.assign(**coin)[columns].reset_index(drop=True)


def join_behind(
    flow: OrderFlow, ns: Nanoseconds, side: Integers, depth: Integers, size: float, until_ns: Nanoseconds
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What would become of small orders that joined queues of a rebuilt flow, if nobody else did anything else.

    An order comes at `ns` (n,) to the end of the queue at the price before which `depth` others stand on its `side`; by
    price-time priority it has what is executed of those that came to its price after it, and of those at worse prices,
    and what the other side offers at its price or better, up to its `size` (coin) and until `until_ns`.

    Returns
    -------
    The orders (those for which there is such a price): order_id, side, limit_price (USD), size, depth, level (coin in
    the queue), placed_ns, cancel_ns; and their fills: order_id, exchange_ns, size
    """
    events = flow.events
    stamps, kind, price, sides, lots = (events[name].to_numpy() for name in ("ns", "kind", "price", "side", "lots"))
    levels, held = (np.full((len(ns), 2, LEVELS), empty, dtype=np.int64) for empty in (NOBODY, 0))
    _played(events, ns - 1, levels, held)
    place = np.arange(len(ns)), (side < 0).astype(np.int64), depth
    usd = np.unique(price)[levels[place]]
    added = events["order_id"].map(pd.Series(np.flatnonzero(kind == ADD), events["order_id"][kind == ADD])).to_numpy()
    first, last = np.searchsorted(stamps, ns, side="left"), np.searchsorted(stamps, until_ns, side="left")
    wanted, fills = round(size / flow.lot), []
    for order in np.flatnonzero(levels[place] >= 0):
        lived = slice(first[order], last[order])
        worse = side[order] * (usd[order] - price[lived])  # above 0 where ours is the better price for the other side
        executed = (kind[lived] == EXECUTE) & (sides[lived] == side[order])
        ours = executed & ((worse > 0) | ((worse == 0) & (added[lived] >= first[order])))
        ours |= (kind[lived] == ADD) & (sides[lived] == -side[order]) & (worse >= 0)
        had = np.minimum(np.cumsum(lots[lived][ours]), wanted)
        parts = np.diff(had, prepend=0)
        fills += [(order, at, part * flow.lot) for at, part in zip(stamps[lived][ours], parts, strict=True) if part]
    orders = pd.DataFrame({"order_id": np.arange(len(ns)), "side": side, "limit_price": usd, "size": wanted * flow.lot})
    orders = orders.assign(depth=depth, level=held[place] * flow.lot, placed_ns=ns, cancel_ns=until_ns)
    return orders[levels[place] >= 0].reset_index(drop=True), pd.DataFrame(
        fills, columns=["order_id", "exchange_ns", "size"]
    )


def _quotes(seen: NDArray[Any], ns: Nanoseconds, usd: Floats, lot: float, step_ns: int) -> TopOfBook:
    """The best quotes after the last event of each stamp, or of each step, where they have changed."""
    stamp = ns if step_ns == 0 else -(-ns // step_ns) * step_ns
    last = np.flatnonzero(np.append(stamp[1:] != stamp[:-1], True))
    best, lots, stamp = seen["best"][last], seen["best_lots"][last], stamp[last]
    changed = np.ones(len(last), dtype=bool)
    changed[1:] = (best[1:] != best[:-1]).any(axis=1) | (lots[1:] != lots[:-1]).any(axis=1)
    rows = changed & (lots > 0).all(axis=1) & (best[:, 0] < best[:, 1])
    price, size = usd[best[rows]], lots[rows] * lot
    return TopOfBook(stamp[rows], stamp[rows], price[:, 0], size[:, 0], price[:, 1], size[:, 1])


def _with_those_before(events: pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """The events with an ADD for each order that has none, and `order` numbers.

    Such an order held what is taken out of it later, and was added when an id as great as its own was. Also returns how
    many events are of orders that were there before the first that was added, and how many of younger ones.
    """
    ids, order = np.unique(events["order_id"], return_inverse=True)
    added = (events["kind"] == ADD).to_numpy()
    begins = np.full(len(ids), len(events))
    np.minimum.at(begins, order, np.arange(len(events)))
    before = ~added[begins]
    theirs = before[order]
    held = np.bincount(order, weights=np.where(theirs, events["lots"], 0), minlength=len(ids)).astype(np.int64)
    newest = np.maximum.accumulate(np.where(added, events["order_id"], ids[0] - 1))
    place = np.minimum(np.searchsorted(newest, ids[before], side="left"), begins[before])
    first = events.iloc[begins[before]].assign(kind=ADD, lots=held[before], place=place - 0.5, known=False)
    first["ns"] = events["ns"].to_numpy()[place]
    whole = pd.concat([first, events.assign(place=np.arange(len(events)), known=~theirs)])
    whole = whole.sort_values(["place", "order_id"], kind="stable", ignore_index=True).drop(columns="place")
    younger = np.zeros(len(ids), dtype=bool)
    younger[np.flatnonzero(before)[place > 0]] = True
    count = int((younger[order]).sum())
    return whole.assign(order=np.searchsorted(ids, whole["order_id"])), int(theirs.sum()) - count, count


def _played(
    events: pd.DataFrame, clock: Nanoseconds | None = None, levels: Integers | None = None, lots: Integers | None = None
) -> tuple[NDArray[Any], Integers, Integers]:
    """What each event met (n,), and when and with what (event, lots) an order had left unseen (k,), -1 where not."""
    ids, order = np.unique(events["order_id"], return_inverse=True)
    usd, level = np.unique(events["price"], return_inverse=True)
    near = (events["side"].to_numpy() < 0).astype(np.int64)
    book = _empty_book(len(ids), len(usd))
    seen, gone = np.zeros(len(events), SEEN), np.full((2, len(ids)), NOBODY)
    if clock is None or levels is None or lots is None:
        clock, levels, lots = np.zeros(0, np.int64), *np.zeros((2, 0, 2, LEVELS), np.int64)
    ns, kind, size = (events[name].to_numpy(np.int64) for name in ("ns", "kind", "lots"))
    known = events["known"].to_numpy(bool)
    _play(ns, kind, size, order, near, level, known, book, seen, gone, clock, levels, lots)
    return seen, gone[0], gone[1]


def _empty_book(orders: int, levels: int) -> _Book:
    left = np.zeros(orders, np.int64)
    level, near, before, after = np.full((4, orders), NOBODY)
    first, last = np.full((2, 2, levels), NOBODY)
    total, best = np.zeros((2, levels), np.int64), np.array([-1, levels])
    return _Book(left, level, near, before, after, first, last, total, best)


@njit(cache=True)
def _play(
    ns: Nanoseconds,
    kind: Integers,
    lots: Integers,
    order: Integers,
    near: Integers,
    level: Integers,
    known: Mask,
    book: _Book,
    seen: NDArray[Any],
    gone: Integers,
    clock: Nanoseconds,
    screen_levels: Integers,
    screen_lots: Integers,
) -> None:
    """Fill in `seen` event by event, `gone` (2, k) with orders that the market passed, the screens at `clock` (m,)."""
    screen = 0
    for event in range(len(ns)):
        while screen < len(clock) and clock[screen] < ns[event]:
            _photograph(book, screen_levels[screen], screen_lots[screen])
            screen += 1
        one, side, row = order[event], near[event], seen[event]
        at = level[event] if kind[event] == ADD or book.left[one] == 0 else book.level[one]
        row.depth = _prices_before(book, side, at)
        row.level, row.ahead = book.total[side, at], book.total[side, at]
        if kind[event] == ADD:
            other, outward = 1 - side, 1 - 2 * side
            if book.left[one] > 0:
                row.fault = _DUPLICATE
            elif outward * (at - book.best[other]) >= 0 and 0 <= book.best[other] < book.total.shape[1]:
                row.fault = _CROSSED if known[event] else _UNKNOWN
                while known[event] and outward * (at - book.best[other]) >= 0:
                    if not 0 <= book.best[other] < book.total.shape[1]:
                        break
                    _leave_all(book, other, gone, event)
            if row.fault == 0 or row.fault == _CROSSED:
                _join(book, one, side, at, lots[event])
        elif book.left[one] == 0:
            row.fault = _UNKNOWN
        elif book.left[one] < lots[event]:
            row.fault = _EXCESS
        else:
            row.ahead = _lots_before(book, one)
            if kind[event] == EXECUTE:
                while book.best[side] != at:
                    _leave_all(book, side, gone, event)
                row.out_of_turn = row.ahead > 0
            _take_out(book, one, lots[event])
        for each in range(2):
            row.best[each] = book.best[each]
            inside = 0 <= book.best[each] < book.total.shape[1]
            row.best_lots[each] = book.total[each, book.best[each]] if inside else 0
    while screen < len(clock):
        _photograph(book, screen_levels[screen], screen_lots[screen])
        screen += 1


@njit(cache=True)
def _join(book: _Book, one: int, side: int, level: int, lots: int) -> None:
    """Behind all others at the price."""
    last = book.last[side, level]
    book.left[one], book.level[one], book.near[one] = lots, level, side
    book.before[one], book.after[one] = last, NOBODY
    if last == NOBODY:
        book.first[side, level] = one
    else:
        book.after[last] = one
    book.last[side, level] = one
    book.total[side, level] += lots
    if (2 * side - 1) * (level - book.best[side]) < 0:
        book.best[side] = level


@njit(cache=True)
def _take_out(book: _Book, one: int, lots: int) -> None:
    side, level = book.near[one], book.level[one]
    book.left[one] -= lots
    book.total[side, level] -= lots
    if book.left[one] == 0:
        before, after = book.before[one], book.after[one]
        if before == NOBODY:
            book.first[side, level] = after
        else:
            book.after[before] = after
        if after == NOBODY:
            book.last[side, level] = before
        else:
            book.before[after] = before
    step = 2 * side - 1
    while 0 <= book.best[side] < book.total.shape[1] and book.total[side, book.best[side]] == 0:
        book.best[side] += step


@njit(cache=True)
def _leave_all(book: _Book, side: int, gone: Integers, event: int) -> None:
    """All orders at the best price had left, unseen."""
    level = book.best[side]
    while book.first[side, level] != NOBODY:
        one = book.first[side, level]
        gone[0, one], gone[1, one] = event, book.left[one]
        _take_out(book, one, book.left[one])


@njit(cache=True)
def _lots_before(book: _Book, one: int) -> int:
    lots, other = 0, book.before[one]
    while other != NOBODY:
        lots, other = lots + book.left[other], book.before[other]
    return lots


@njit(cache=True)
def _prices_before(book: _Book, side: int, level: int) -> int:
    """How many prices of a side with orders are better than one; counted up to the visible levels."""
    count, step, at = 0, 2 * side - 1, book.best[side]
    while count < LEVELS and 0 <= at < book.total.shape[1] and step * (level - at) > 0:
        if book.total[side, at] > 0:
            count += 1
        at += step
    return count


@njit(cache=True)
def _photograph(book: _Book, levels: Integers, lots: Integers) -> None:
    """The best levels (2, 20) of both sides, and their lots."""
    for side in range(2):
        count, step, at = 0, 2 * side - 1, book.best[side]
        while count < levels.shape[1] and 0 <= at < book.total.shape[1]:
            if book.total[side, at] > 0:
                levels[side, count], lots[side, count] = at, book.total[side, at]
                count += 1
            at += step
