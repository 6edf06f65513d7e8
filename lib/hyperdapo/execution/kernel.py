"""The life of an order on the recorded market, compiled (§3.5.1), in one module: numba's cache watches one file.

The market is what it was; our orders are too small to change it. Events are in order of the exchange's stamp. An order
in the book knows how much stands before it at its price: prints shrink that and then fill the order; what the level
loses beyond the prints was cancelled, and a part of it stood before us (`Queue`); a print beyond our price would have
met our order first, and fills no more than its size, over all orders of one parent; what is left then stands first. A
quote of the other side that comes to our price fills nothing (makers send post-only, and who is refused there does not
take), or as a print would, by `Queue.crossing`. A post-only order of ours that would take is refused, and sent again.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from hyperdapo.execution.events import DUST, PRINT, QUOTE, SNAPSHOT, Arrivals, Events, Fills, Queue
from hyperdapo.market.columns import Floats

ALONE = -1  # no event: an order without siblings
UNKNOWN = -1.0  # size of a level that no message has shown
APART = -1.0  # the other side stands beyond our price
INNER: dict[str, Any] = {"cache": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # not called from Python


class Resting(NamedTuple):
    """An order in the book."""

    remaining: float
    ahead: float  # coin before us
    visible: float  # size of our level when it was last seen, UNKNOWN until then
    traded: float  # printed at our price since then
    reach: float  # USD by which the other side's best, as last seen, passes our price; APART
    offered: float  # its size then
    newcomer: float  # coin by which our level last grew: they stand behind us


@njit(cache=True)
def replay(events: Events, orders: Arrivals, queue: Queue, fills: Fills, spent: Floats, path: Floats) -> None:
    """Fill in `fills` for `orders`; only those of one parent see each other.

    `spent` (n,) is room to note what siblings have had of each event, `path` is empty.
    """
    base, parent = ALONE, -1
    for position in range(len(orders)):
        order = orders[position].sequence
        if orders[order].parent != parent:
            parent, base = orders[order].parent, ALONE
            if parent >= 0:
                base, end = _span(orders, position)
                for event in range(end - base):
                    spent[event] = 0.0
        side, left = orders[order].side, orders[order].size
        if orders[order].resting:
            left = _live(events, orders, order, queue, fills, spent, base, path)
        if not orders[order].completes:
            fills[order].abandoned = left
        elif left > 0.0:
            fills[order].completed = left
            swept, usd, deepest = sweep(events, orders[order].final, side, side * np.inf, left)
            fills[order].swept, fills[order].swept_usd, fills[order].deepest = swept, usd, deepest


@njit(**INNER)
def _span(orders: Arrivals, position: int) -> tuple[int, int]:
    """First and last event of the lives of an order and its siblings."""
    order = orders[position].sequence
    parent, base, end = orders[order].parent, orders[order].first, orders[order].last
    while position < len(orders) and orders[orders[position].sequence].parent == parent:
        order = orders[position].sequence
        base, end = min(base, orders[order].first), max(end, orders[order].last)
        position += 1
    return base, end


@njit(**INNER)
def _live(
    events: Events, orders: Arrivals, order: int, queue: Queue, fills: Fills, spent: Floats, base: int, path: Floats
) -> float:
    """From arrival to cancel: take what the limit reaches, then rest. Returns the size that is left.

    `spent` is what siblings have had of each event, from event `base` on; `base` is `ALONE` where there are none.
    """
    first, limit = _admitted(events, orders, order, fills)
    side, size, last = orders[order].side, orders[order].size, orders[order].last
    fills[order].seen_left = size
    if first < 0:
        return float(size)
    if orders[order].resumes:
        place = orders[order].place
        state = Resting(size, place[1], place[2], place[3], place[4], place[5], place[6])
    else:
        taken, usd, _ = sweep(events, first, side, limit, size)
        fills[order].taken, fills[order].taken_usd = taken, usd
        if taken > 0.0:
            fills[order].last_event = first
        state = rest(events, first, side, limit, size - taken, queue)
    if state.remaining > DUST:
        fills[order].queue_ahead, fills[order].estimated = state.ahead, state.visible == UNKNOWN
    event, look, seen = first + 1, orders[order].look, state
    while state.remaining > DUST and event < last:
        before, until = state.remaining, min(look, last) if event < look else last
        event, state = wait(events, event, until, state, side, limit, queue, spent, base, path)
        if state.remaining < before:
            _note(events, event - 1, order, before - state.remaining, limit, fills)
        if event <= look:
            seen = state
    fills[order].seen_left, fills[order].seen_ahead = seen.remaining, seen.ahead
    left = state.remaining if state.remaining > DUST else 0.0
    fills[order].limit, place = limit, fills[order].place
    place[0], place[1], place[2] = left, state.ahead, state.visible
    place[3], place[4], place[5], place[6] = state.traded, state.reach, state.offered, state.newcomer
    return left


@njit(**INNER)
def _admitted(events: Events, orders: Arrivals, order: int, fills: Fills) -> tuple[int, float]:
    """The event and the limit with which an order is let into the book; no event (-1) where it is not in time.

    A post-only order that would take is refused, and the answer names the best quotes. As soon as it is known the next
    goes out, at the best quote of its own side: as the answer names it, or as the feed has shown it since.
    """
    first, limit, side, ns = orders[order].first, orders[order].limit, orders[order].side, orders[order].arrival_ns
    near = 0 if side > 0 else 1
    while orders[order].post_only and not orders[order].resumes and reaches(events, first, side, limit):
        fills[order].rejections += 1
        shown = np.searchsorted(events.feed.ns, ns + orders[order].answer_ns, side="right") - 1
        limit = events.moment[first].best_price[near]
        if shown >= 0 and events.feed.exchange_ns[shown] > ns:
            limit = events.feed.price[shown, near]
        ns += orders[order].again_ns
        if ns >= orders[order].cancel_ns:
            return -1, limit
        first = np.searchsorted(events.ns, ns, side="left") - 1
    return first, limit


@njit(**INNER)
def _note(events: Events, event: int, order: int, filled: float, limit: float, fills: Fills) -> None:
    """Write down what an event filled, and the mid before it."""
    if events.moment[event].kind != PRINT:
        fills[order].crossed += filled
    elif events.moment[event].price == limit:
        fills[order].queued += filled
    else:
        fills[order].through += filled
    bid, ask = events.moment[event - 1].best_price[0], events.moment[event - 1].best_price[1]
    fills[order].last_event = event
    fills[order].made_usd += filled * limit
    fills[order].made_mid_usd += filled * (bid + ask) / 2
    fills[order].made_funding += filled * events.moment[event].funding


@njit(cache=True)
def wait(
    events: Events,
    event: int,
    last: int,
    state: Resting,
    side: int,
    limit: float,
    queue: Queue,
    spent: Floats,
    base: int,
    path: Floats,
) -> tuple[int, Resting]:
    """From `event` to the next fill, or to `last`: the event after it, and what the order has become.

    `path` (m, 2), where it is not empty, gets what stands before the order and what is left of it after each event.
    """
    near, opposite, start = 0 if side > 0 else 1, 1 if side > 0 else 0, event
    moment, level_price, level_size = events.moment, events.level_price, events.level_size
    while event < last:
        before = state.remaining
        gone = spent[event - base] if base >= 0 else 0.0
        if moment[event].kind == PRINT:
            if moment[event].aggressor != side:
                state = _printed(state, side * (limit - moment[event].price), moment[event].size - gone)
        else:
            if queue.crossing:
                reach, offered = side * (limit - moment[event].best_price[opposite]), moment[event].best_size[opposite]
                state = _crossed(state, reach, offered, gone)
            before_best = side * (limit - moment[event].best_price[near])
            if before_best > 0.0:
                state = _seen(state, 0.0, queue.exponent)
            elif before_best == 0.0:
                state = _seen(state, moment[event].best_size[near], queue.exponent)
            elif moment[event].kind == SNAPSHOT:  # a best quote before ours says nothing of our level
                shown = _level(level_price, level_size, moment[event].row, near, side, limit)
                state = _seen(state, shown, queue.exponent)
        if base >= 0:
            spent[event - base] += before - state.remaining
        if len(path):
            path[event - start, 0], path[event - start, 1] = state.ahead, state.remaining
        event += 1
        if state.remaining < before:
            break
    return event, state


@njit(**INNER)
def reaches(events: Events, event: int, side: int, price: float) -> bool:
    """Whether a limit at `price` would trade with the best quote of the other side."""
    opposite = 1 if side > 0 else 0
    return bool(side * (price - events.moment[event].best_price[opposite]) >= 0.0)


@njit(cache=True)
def sweep(events: Events, event: int, side: int, limit: float, size: float) -> tuple[float, float, float]:
    """Take up to `size` from the visible book, at `limit` or better: size taken, USD paid, the last price reached."""
    opposite = 1 if side > 0 else 0
    best = events.moment[event].best_price[opposite]
    if side * (limit - best) < 0.0:
        return 0.0, 0.0, best
    taken = min(size, events.moment[event].best_size[opposite])
    usd, deepest = taken * best, best
    row = events.moment[event].row
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
def rest(events: Events, event: int, side: int, price: float, remaining: float, queue: Queue) -> Resting:
    """Join the queue at `price`: behind all that was last shown there, or behind what such a level holds on average."""
    visible = shown_size(events, event, side, price)
    ahead = visible if visible != UNKNOWN else usual_size(events, event, side)
    opposite = 1 if side > 0 else 0
    reach = side * (price - events.moment[event].best_price[opposite])
    offered = events.moment[event].best_size[opposite]
    if reach < 0.0:
        reach, offered = APART, 0.0
    return Resting(remaining, ahead if queue.joined else 0.0, visible, 0.0, reach, offered, 0.0)


@njit(**INNER)
def shown_size(events: Events, event: int, side: int, price: float) -> float:
    """Size that the newest message about a price shows there: its quotes come before the snapshot's level."""
    near = 0 if side > 0 else 1
    while event >= 0 and events.moment[event].kind != SNAPSHOT:
        if events.moment[event].kind == QUOTE and side * (price - events.moment[event].best_price[near]) >= 0.0:
            break
        event -= 1
    return float(visible_size(events, max(event, 0), side, price))


@njit(**INNER)
def visible_size(events: Events, event: int, side: int, price: float) -> float:
    """Size resting at `price` on our side: 0 inside the spread or between levels, UNKNOWN beyond the visible book."""
    near = 0 if side > 0 else 1
    best = events.moment[event].best_price[near]
    if price == best:
        return float(events.moment[event].best_size[near])
    if side * (price - best) > 0.0:
        return 0.0
    return _level(events.level_price, events.level_size, events.moment[event].row, near, side, price)


@njit(cache=True, inline="always")
def _level(level_price: Floats, level_size: Floats, row: int, near: int, side: int, price: float) -> float:
    """Size of a level behind the best of a snapshot."""
    if row >= 0:
        for level in range(level_price.shape[2]):
            at = level_price[row, near, level]
            if at == price:
                return float(level_size[row, near, level])
            if side * (price - at) > 0.0:
                return 0.0
    return UNKNOWN


@njit(**INNER)
def usual_size(events: Events, event: int, side: int) -> float:
    """What a price step holds on average in the newest snapshot of our side: the guess for a level beyond it."""
    near, row = 0 if side > 0 else 1, events.moment[event].row
    if row < 0:
        return float(events.moment[event].best_size[near])
    best, total, span, step = events.level_price[row, near, 0], events.level_size[row, near, 0], 0.0, np.inf
    for level in range(1, events.level_price.shape[2]):
        if np.isnan(events.level_price[row, near, level]):
            break
        before, span = span, abs(events.level_price[row, near, level] - best)
        total, step = total + events.level_size[row, near, level], min(step, span - before)
    return float(total / (1.0 + np.rint(span / step)))


@njit(cache=True, inline="always")
def _printed(state: Resting, beyond: float, size: float) -> Resting:
    """An aggressor of the other side traded `size`; `beyond` > 0 when at a price that ours had stood before."""
    if beyond < 0.0:
        return state
    if beyond > 0.0:
        fill = min(state.remaining, size)
        return Resting(state.remaining - fill, 0.0, 0.0, 0.0, state.reach, state.offered, 0.0)
    queue = min(state.ahead, size)
    fill = min(state.remaining, size - queue)
    if fill < DUST:
        fill = 0.0
    return Resting(
        state.remaining - fill,
        state.ahead - queue,
        state.visible,
        state.traded + size,
        state.reach,
        state.offered,
        state.newcomer,
    )


@njit(cache=True, inline="always")
def _crossed(state: Resting, reach: float, size: float, gone: float) -> Resting:
    """The other side's best passes our price by `reach` (USD) with `size`, of which siblings have had `gone`.

    What has come since the last message would have met us first: all of a better quote, of the same what it has more.
    A worse one stood behind the last. Nobody is left before us at a price that the other side has reached.
    """
    if reach < 0.0:
        return Resting(state.remaining, state.ahead, state.visible, state.traded, APART, 0.0, state.newcomer)
    fresh = 0.0
    if reach > state.reach:
        fresh = size
    elif reach == state.reach:
        fresh = size - state.offered
    fill = min(state.remaining, fresh - gone)
    if fill < DUST:
        fill = 0.0
    return Resting(state.remaining - fill, 0.0, 0.0, 0.0, reach, size, 0.0)


@njit(cache=True, inline="always")
def _seen(state: Resting, size: float, exponent: float) -> Resting:
    """Our level was shown to hold `size`: what it lost beyond the prints was cancelled, some of it before us.

    What it gained last joined behind us. A loss of exactly that is the newcomer gone again; an exponent of 0 charges it
    to us even so, as the bound that it is.
    """
    if size == UNKNOWN:
        return state
    ahead, newcomer, lost = state.ahead, state.newcomer, 0.0
    if state.visible != UNKNOWN:
        lost = state.visible - state.traded - size
    if lost < -DUST:
        newcomer = -lost
    elif exponent > 0.0 and lost > DUST and abs(lost - newcomer) < DUST:
        newcomer = 0.0
    elif lost > 0.0 and ahead > 0.0:
        ahead -= lost * min(ahead / (size + lost), 1.0) ** exponent
    ahead = min(max(ahead, 0.0), size)
    return Resting(state.remaining, ahead, size, 0.0, state.reach, state.offered, newcomer)


@njit(cache=True)
def turns(
    events: Events,
    joined: int,
    filled: int,
    last: int,
    side: int,
    price: float,
    size: float,
    ahead: float,
    exponent: float,
    draws: Floats,
) -> Floats:
    """Histories of the queue before an order of others: how many bring its turn before, at and after event `filled`.

    The order of `size` joined at event `joined` behind `ahead` coin; its price is watched up to event `last`, or until
    the market passes it. Each cancel at the price is one order's, of all that stand there by the law of `Queue`: in
    each history, a row of `draws` (h, m), it stood before ours or behind. A history weighs what by the same law is the
    chance that ours was not cancelled until its turn. Returns the three weights, (3,).
    """
    near, level, printed, newcomer, losses = 0 if side > 0 else 1, ahead + size, 0.0, 0.0, 0
    before, weight, turned = np.full(len(draws), ahead), np.ones(len(draws)), np.zeros(3)
    for event in range(joined + 1, last):
        moment = events.moment[event]
        if moment.kind == PRINT:
            if moment.aggressor == side or side * (price - moment.price) < 0.0:
                continue
            if moment.price != price:
                break
            printed += moment.size
            turned[0 if event < filled else (1 if event == filled else 2)] += _met(before, weight, moment.size)
            if not weight.any():
                break
            continue
        beyond, shown = side * (price - moment.best_price[near]), moment.best_size[near]
        if beyond > 0.0:
            break
        if beyond < 0.0:
            if moment.kind != SNAPSHOT:
                continue
            shown = _level(events.level_price, events.level_size, moment.row, near, side, price)
            if shown == UNKNOWN or shown == 0.0:
                continue
        lost, level, printed = level - printed - shown, shown, 0.0
        if lost < -DUST:
            newcomer = -lost
        elif lost > DUST and abs(lost - newcomer) < DUST:
            newcomer = 0.0
        elif lost > DUST:
            _cancelled(before, weight, size, shown + lost, lost, exponent, draws[:, losses % draws.shape[1]])
            losses += 1
        before[:] = np.minimum(before, max(shown - size, 0.0))
    return turned


@njit(**INNER)
def _met(before: Floats, weight: Floats, size: float) -> float:
    """A print at the price: the weight of the histories whose turn it was; they are over, and weigh nothing then."""
    turned = 0.0
    for history in np.flatnonzero(weight):
        if size > before[history] + DUST:
            turned, weight[history] = turned + weight[history], 0.0
        before[history] = max(before[history] - size, 0.0)
    return turned


@njit(**INNER)
def _cancelled(
    before: Floats, weight: Floats, size: float, level: float, lost: float, exponent: float, draws: Floats
) -> None:
    """An order of `lost` coin was cancelled, not ours: it stood before ours or behind, where there is room for it."""
    for history in np.flatnonzero(weight):
        ahead, behind = before[history], level - size - before[history]
        front = min(ahead / level, 1.0) ** exponent
        others = 1.0 - min((ahead + size) / level, 1.0) ** exponent + front  # the chance that it was not ours
        weight[history] *= others
        part = front / others if others > 0.0 else 1.0
        if lost <= ahead + DUST and (lost > behind + DUST or draws[history] < part):
            before[history] = ahead - lost
        elif lost > ahead + DUST and lost > behind + DUST:  # several orders at once
            before[history] = ahead - min(lost * part, ahead)
