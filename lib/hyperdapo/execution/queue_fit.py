"""How cancels split before and behind an order, fitted to a market's messages: the exponent of `Queue`.

A feed without order ids shows the sizes of levels, not places in them. But the orders of others are probes: a best
level that grows by 0.4173 coin says that an order of this size joined behind what stood there, and a print of 0.4173 at
that price later says that it was its turn. What had stood before it was printed in between, or cancelled: the prints
are seen, so the cancels before it are known, and the cancels of the whole level are seen as well. That identifies how
cancels split. We replay each such maker through our kernel and choose the exponent with which, on average, as much
must print before its turn as did; this need rises with the exponent.

Matches must be unambiguous: one waiting order of that size at that price, before which not more has printed than stood
there. Even so sizes that many use (100 shares, 0.0001 BTC) are taken for one another, and where prices were rounded to
a coarser grid an order of a better price overtakes those that came before it: then no exponent explains what is seen,
and none is returned. Two more things bend the answer. A maker was recognised because it was not cancelled first, which
favours queues that vanished fast; so each counts inversely to the chance that an order of its level outlived the
cancels that we saw (at most `HEAVIEST`), and the report gives the exponent without these weights beside it; the
weights take all places for equally likely to be cancelled. Newcomers that leave as they came are known by their size,
and the exponent is that of the other cancels: on made queues where every change is a message and cancels follow
exponent 1 it is 0.8, for 3 it is 1.9. And what comes and goes between two messages
is not seen, so that the exponent is the one that serves a simulator of these messages, not the law by which people
cancel. Orders that joined together in one block, were filled in parts, or joined behind the best price are not
recognised. Fills of one's orders identify more: where they exist, prefer their scores (Brier, fill time) to this fit.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from hyperdapo.execution import kernel
from hyperdapo.execution.events import DUST, PRINT, Events, stream
from hyperdapo.execution.kernel import Resting
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats
from hyperdapo.times import block_of

FEWEST = 30  # makers that a fit rests on
HEAVIEST = 20.0
EXPONENTS = np.array([0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, np.inf])
_DRAWS = 400
_NOTHING = np.zeros(0)


class Maker(NamedTuple):
    """Somebody's order: seen to join at event `first` behind `ahead` coin, and to print in full at event `filled`."""

    first: int
    filled: int
    side: int
    price: float
    size: float
    ahead: float


class _Waiting(NamedTuple):
    """Who joined with `size` at event `first` behind `ahead`; its turn is when `turn` has printed there, or before."""

    size: float
    first: int
    ahead: float
    turn: float


class QueueFit(NamedTuple):
    """The fit of one asset: the exponent with its interval over blocks of time, `unweighted` without the weights.

    Infinity: all cancels were behind. NaN: too few makers to tell, or makers that no exponent explains: less has
    printed than if all cancels had been before them, or more than if none had. The others are weighted means over the
    makers, shares of what stood before them: `printed` in truth, and what would have had to print with this exponent
    (`fitted`), in a risk-averse queue, and in one whose cancels are all before us (`all_ahead`).
    """

    makers: int
    exponent: float
    exponent_low: float
    exponent_high: float
    unweighted: float
    printed: float
    fitted: float
    risk_averse: float
    all_ahead: float


def observe_makers(market: Market, from_ns: int, to_ns: int, most: int = 1000, seed: int = 0) -> pd.DataFrame:
    """What the makers of a market tell whose lives lie within [from, to) of `exchange_ns`; of many, `most` at random.

    Returns
    -------
    One row per maker: `first_ns`, `weight`, `printed` before its turn, and for each of `EXPONENTS` (a column of that
    name) what would have had to print; shares of what stood before it
    """
    events = stream(market)
    makers = [maker for near in (0, 1) for maker in _makers(events, near)]
    makers = [maker for maker in makers if from_ns <= events.ns[maker.first] and events.ns[maker.filled] < to_ns]
    if len(makers) > most:
        chosen = np.random.default_rng(seed).choice(len(makers), most, replace=False)
        makers = [makers[row] for row in np.sort(chosen)]
    rows = [
        (
            int(events.ns[maker.first]),
            1.0 / max(_outlived(events, maker), 1 / HEAVIEST),
            _printed_before(events, maker, maker.filled) / maker.ahead,
            *(_needed(events, maker, exponent) / maker.ahead for exponent in EXPONENTS),
        )
        for maker in makers
    ]
    observed = pd.DataFrame(rows, columns=["first_ns", "weight", "printed", *EXPONENTS], dtype=float)
    return observed.assign(first_ns=np.array([row[0] for row in rows], dtype=np.int64))


def fit_queue(makers: pd.DataFrame, block_s: float, confidence: float, seed: int = 0) -> QueueFit:
    """The exponent with which, on average, as much must print before the makers' turns as did."""
    if len(makers) < FEWEST:
        return QueueFit(len(makers), *[np.nan] * 8)
    weight, printed, needs = (makers[name].to_numpy() for name in ("weight", "printed", list(EXPONENTS)))
    excess = needs - printed[:, None]
    exponent = _root(weight @ excess)
    block = np.unique(block_of(makers["first_ns"], block_s), return_inverse=True)[1]
    sums = np.stack([np.bincount(block, weights=weight * column) for column in excess.T])
    drawn = np.random.default_rng(seed).integers(0, sums.shape[1], (_DRAWS, sums.shape[1]))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    draws = [sums[:, rows].sum(axis=1) for rows in drawn]
    low, high = np.quantile([_root(draw) for draw in draws], tails, method="nearest")
    least, most = (
        np.quantile([draw[0] for draw in draws], tails[0]),
        np.quantile([draw[-1] for draw in draws], tails[1]),
    )
    if least > 0.0 or most < 0.0:
        exponent = low = high = np.nan
    means = np.average(needs, axis=0, weights=weight)
    fitted = means[-1] if np.isinf(exponent) else np.interp(exponent, EXPONENTS[:-1], means[:-1])  # NaN stays NaN
    shares = (np.average(printed, weights=weight), fitted, means[-1], means[0])
    numbers = (exponent, low, high, _root(excess.sum(axis=0)), *shares)
    return QueueFit(len(makers), *(float(number) for number in numbers))


def _root(excess: Floats) -> float:
    """The exponent between those of `EXPONENTS` at which the excess, which rises with it, is nothing."""
    if excess[0] >= 0.0:
        return 0.0
    if excess[-2] <= 0.0:
        return np.inf
    return float(brentq(lambda exponent: np.interp(exponent, EXPONENTS[:-1], excess[:-1]), 0.0, EXPONENTS[-2]))


def _needed(events: Events, maker: Maker, exponent: float) -> float:
    """Coin that must print at the maker's price before its turn, if cancels split by this exponent."""
    start, last = maker.first + 1, maker.filled + 1
    path = np.empty((last - start, 2))
    state = Resting(maker.size, maker.ahead, maker.ahead + maker.size, 0.0, 0.0)
    event, state = kernel.wait(
        events, start, last, state, maker.side, maker.price, exponent, _NOTHING, kernel.ALONE, path
    )
    if state.remaining == maker.size:
        return _printed_before(events, maker, maker.filled) + (path[-2, 0] if len(path) > 1 else maker.ahead)
    before = path[event - start - 2, 0] if event - start > 1 else maker.ahead
    return _printed_before(events, maker, event - 1) + before


def _outlived(events: Events, maker: Maker) -> float:
    """The chance that an order of the maker's level was not among those cancelled, whatever its place."""
    near, since = (0 if maker.side > 0 else 1), slice(maker.first + 1, maker.filled)
    kind, price = events.moment["kind"][since], events.moment["price"][since]
    prints = (kind == PRINT) & (price == maker.price) & (events.moment["aggressor"][since] == -maker.side)
    shown = (kind != PRINT) & (events.moment["best_price"][since, near] == maker.price)
    printed = np.cumsum(np.where(prints, events.moment["size"][since], 0.0))[shown]
    size = np.concatenate([[maker.ahead + maker.size], events.moment["best_size"][since, near][shown]])
    expected = np.maximum(size[:-1] - np.diff(printed, prepend=0.0), DUST)
    return float(np.prod(np.minimum(size[1:] / expected, 1.0)))


def _printed_before(events: Events, maker: Maker, event: int) -> float:
    """Coin printed at the maker's price after it joined and before an event."""
    since = slice(maker.first + 1, event)
    prints = (events.moment["kind"][since] == PRINT) & (events.moment["price"][since] == maker.price)
    return float(events.moment["size"][since][prints & (events.moment["aggressor"][since] == -maker.side)].sum())


def _makers(events: Events, near: int) -> Iterator[Maker]:
    """The orders of a side that are seen to join the best level and recognised when they are filled."""
    side, price, left = (1 if near == 0 else -1), np.nan, 0.0
    waiting: dict[float, list[_Waiting]] = {}
    nearest: list[float] = []  # a heap of their prices, times -side
    printed: dict[float, float] = {}
    columns = (
        events.moment["kind"],
        events.moment["price"],
        events.moment["size"],
        events.moment["aggressor"],
        events.moment["best_price"][:, near],
    )
    rows = zip(*(column.tolist() for column in (*columns, events.moment["best_size"][:, near])), strict=True)
    for event, (kind, print_price, print_size, aggressor, best, size) in enumerate(rows):
        if kind == PRINT:
            if aggressor == -side:
                left -= print_size if print_price == price else 0.0
                before = printed.get(print_price, 0.0)
                printed[print_price] = before + print_size
                for order in _recognised(waiting.get(print_price, []), print_size, before):
                    yield Maker(order.first, event, side, print_price, order.size, order.ahead)
            continue
        if best != price:
            while nearest and -nearest[0] > side * best:  # nobody is left where the best has been
                del waiting[-side * heappop(nearest)]
        elif size - left > DUST and left > DUST:
            if best not in waiting:
                waiting[best] = []
                heappush(nearest, -side * best)
            waiting[best].append(_Waiting(size - left, event, left, printed.get(best, 0.0) + left))
        price, left = best, size


def _recognised(waiting: list[_Waiting], size: float, printed: float) -> list[_Waiting]:
    """The one waiting order of this size; it leaves, with those before it: their turn has passed.

    `printed` so far at the price: an order before which less stood has been passed over, so it had been cancelled.
    """
    waiting[:] = [order for order in waiting if order.turn > printed - DUST]
    rows = [row for row, order in enumerate(waiting) if abs(order.size - size) < DUST]
    recognised = [waiting[rows[0]]] if len(rows) == 1 else []
    del waiting[: rows[-1] + 1 if rows else 0]
    return recognised
