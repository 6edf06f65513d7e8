"""How cancels split before and behind an order, fitted to a market's messages: the exponent of `Queue`.

A feed without order ids shows the sizes of levels, not places in them. But the orders of others are probes: a best
level that grows by 0.4173 coin says that an order of this size joined behind what stood there, and a print of 0.4173 at
that price later says that it was its turn. How soon the turn comes, given what prints and what leaves the level,
depends on how much of the latter stood before the order: that identifies the exponent.

Makers who were filled are not a fair sample: they are those before whom others left, or the price would have gone
first, and those who did not cancel. What stands at a thin best level is one large order and a few small ones, so this
is no small matter: as if all that left had stood before them. So the true turn is compared with those that could have
come: for each maker we draw histories by the exponent (one order at a time stood before it or behind, where there is
room for it), keep those that bring its turn while its price stands, weighed by the chance that it was still there, and
take the rank of the true turn among them. If the exponent is right, the ranks are 1/2 on average; a greater one lets
turns come later, and they fall (Dawid, 1984, on ranks of outcomes among those that a law had expected).

Matches must be unambiguous: one waiting order of that size at that price, before which not more has printed than stood
there, and a size that few prints have (`COMMON`): 100 shares or 10 USD are taken for one another. On made queues, where
every change is a message, the exponents 0.5, 1 and 2 are found again, with sizes of a heavy tail 0.1, 0.7 and 2. Where
there are too few makers, or where ranks are above or below 1/2 whatever the exponent (prices that were rounded to a
coarser grid do that: an order of a better price overtakes), the exponent is not identified, and none is returned.

Newcomers that leave as they came are known by their size, and the exponent is that of the other cancels. What comes
and goes between two messages is not seen, so that the exponent is the one that serves a simulator of these messages,
not the law by which people cancel. Orders that joined together in one block, were filled in parts, or joined behind the
best price are not recognised. Fills of one's orders identify more: where they exist, prefer their scores (Brier, fill
time) to this fit.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from hyperdapo.execution import kernel
from hyperdapo.execution.events import DUST, PRINT, Events, stream
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats
from hyperdapo.times import SECOND_NS, block_of

FEWEST = 30  # makers that a fit rests on
COMMON = 0.02  # share of the prints that may have a maker's size
EXPONENTS = np.array([0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0])  # beyond the last: infinity
_HISTORIES, _LOSSES = 64, 64  # of a maker, and the draws of each, used again after so many cancels
_WATCHED_NS = 600 * SECOND_NS  # after its fill
_DRAWS = 400


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
    """The fit of one asset: the exponent with its interval over blocks of time.

    Infinity: all cancels were behind. NaN: not identified, for there are too few makers, or ranks that no exponent
    explains, or an interval from 0 to infinity, which is given then. `all_ahead` and `all_behind` are the mean ranks of
    the makers' true turns among those that could have come, were all cancels before them and behind them: what is
    identified lies where they would be 1/2.
    """

    makers: int
    exponent: float
    exponent_low: float
    exponent_high: float
    all_ahead: float
    all_behind: float


def observe_makers(market: Market, from_ns: int, to_ns: int, most: int = 1000, seed: int = 0) -> pd.DataFrame:
    """What the makers of a market tell whose lives lie within [from, to) of `exchange_ns`; of many, `most` at random.

    Returns
    -------
    One row per maker: `first_ns`, and for each of `EXPONENTS` (a column of that name) the rank of its true turn among
    those that could have come, 0 to 1
    """
    events, rng = stream(market), np.random.default_rng(seed)
    rare = _rare(events)
    makers = [maker for near in (0, 1) for maker in _makers(events, near) if maker.size in rare]
    makers = [maker for maker in makers if from_ns <= events.ns[maker.first] and events.ns[maker.filled] < to_ns]
    if len(makers) > most:
        makers = [makers[row] for row in np.sort(rng.choice(len(makers), most, replace=False))]
    ranks = pd.DataFrame([_ranks(events, maker, rng) for maker in makers], columns=EXPONENTS, dtype=float)
    ranks.insert(0, "first_ns", events.ns[[maker.first for maker in makers]].astype(np.int64))
    return ranks.dropna(ignore_index=True)


def fit_queue(makers: pd.DataFrame, block_s: float, confidence: float, seed: int = 0) -> QueueFit:
    """The exponent at which the ranks of `observe_makers` are 1/2 on average."""
    if len(makers) < FEWEST:
        return QueueFit(len(makers), *[np.nan] * 5)
    ranks = makers[list(EXPONENTS)].to_numpy()
    block = np.unique(block_of(makers["first_ns"], block_s), return_inverse=True)[1]
    sums = np.stack([np.bincount(block, weights=column) for column in (ranks - 0.5).T])
    drawn = np.random.default_rng(seed).integers(0, sums.shape[1], (_DRAWS, sums.shape[1]))
    draws, tails = sums[:, drawn].sum(axis=2), [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile([_root(draw) for draw in draws.T], tails, method="nearest")
    exponent = _root(sums.sum(axis=1))
    if np.quantile(draws[0], tails[1]) <= 0.0 or np.quantile(draws[-1], tails[0]) >= 0.0:
        exponent = low = high = np.nan
    elif low == 0.0 and np.isinf(high):
        exponent = np.nan
    numbers = (exponent, low, high, ranks[:, 0].mean(), ranks[:, -1].mean())
    return QueueFit(len(makers), *(float(number) for number in numbers))


def _root(excess: Floats) -> float:
    """The exponent at which the excess, which falls with it, is nothing."""
    if excess[0] <= 0.0:
        return 0.0
    if excess[-1] >= 0.0:
        return np.inf
    return float(brentq(lambda exponent: np.interp(exponent, EXPONENTS, excess), 0.0, EXPONENTS[-1]))


def _ranks(events: Events, maker: Maker, rng: np.random.Generator) -> Floats:
    """Of the maker's true turn, for each of `EXPONENTS`; NaN where none of the histories brings its turn.

    Where only those of smaller exponents do, the rank is that of the greatest of them.
    """
    last = int(np.searchsorted(events.ns, events.ns[maker.filled] + _WATCHED_NS))
    draws = rng.random((_HISTORIES, _LOSSES))
    seen = maker.first, maker.filled, last, maker.side, maker.price, maker.size, maker.ahead
    earlier, true, later = np.array([kernel.turns(events, *seen, exponent, draws) for exponent in EXPONENTS]).T
    with np.errstate(invalid="ignore"):
        ranks = (earlier + true / 2) / (earlier + true + later)
    return np.asarray(pd.Series(ranks).ffill())


def _rare(events: Events) -> set[float]:
    """The sizes that at most `COMMON` of the prints have."""
    sizes, counts = np.unique(events.moment["size"][events.moment["kind"] == PRINT], return_counts=True)
    return set(sizes[counts <= COMMON * counts.sum()])


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
                    yield Maker(order.first, event, side, print_price, print_size, order.ahead)
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
