"""One coin, one book: what of a feed belongs to another of the exchange's books, or came twice.

A subscription to `l2Book` can ask for three books of a coin: the whole one (20 levels a side), with `fast` one of 5
levels a side every half second, with `nSigFigs` (and `mantissa`) one whose prices are rounded to so many figures. Who
records two of them under one name gets them mixed. Source: "Subscriptions" of the exchange's websocket documentation,
and its announcements of June 2026 on `fast`.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.feed.messages import AGGREGATED, FAST
from hyperdapo.market.columns import LEVELS, BookSnapshots, Integers, Mask, Nanoseconds, TopOfBook
from hyperdapo.market.grid import tick_size
from hyperdapo.market.native import FAST_LEVELS

_SPIKE = 10  # so many books of exactly 5 levels for each of nearly as many are cut there, not thin
_ENOUGH = 20  # levels: by chance so many prices are all even in one of 2**20 books
_STEPS = (2, 5)  # ticks: what is rounded to fewer figures is a multiple of one of them


class Judge:
    """`aggregated`, `off_bbo` and `shallow` of one book at a time, by what is known when it comes.

    The three look at a whole hour, and at what comes after a book. Here the other books are those before; so the first
    of a session can be judged otherwise: as whole, where only those after them say that they are not. A `bbo` of the
    same stamp counts when it came before the book.

    Attributes
    ----------
    hindsight : books that counted, and against which a later message spoke, by cause
    """

    def __init__(self, sz_decimals: int, max_gap_ns: int) -> None:
        self.hindsight: Counter[str] = Counter()
        self._sz_decimals, self._reach_ns = sz_decimals, max_gap_ns // 2
        self._levels = np.zeros(2 * LEVELS + 1, dtype=np.int64)  # how many deep books, not rounded, had so many levels
        self._five = self._near = 0
        self._last_deep_ns, self._kept_fast_ns = -(2**62), list[int]()
        self._unquoted: tuple[int, float, float] | None = None  # stamp and best prices of the last book without a bbo,
        self._denied = False  # and whether one has come since that names others

    def fault(self, book: BookSnapshots, stream: int, quoted: Collection[tuple[float, float]]) -> str:
        """Why a book (1, 20) does not count, "" where it does; `quoted` are best prices of the `bbo` of its stamp."""
        bids, asks = (count[0] for count in depths(book))
        deep, best = max(bids, asks) > FAST_LEVELS, (float(book.bid_price[0, 0]), float(book.ask_price[0, 0]))
        if self._is_aggregated(book, stream, bids + asks, deep):
            return "aggregated"
        if quoted and best not in quoted:
            return "off_bbo"
        if not self._fits(int(book.local_ns[0]), self._is_fast(bids, asks, stream), deep):
            return "fast"
        self._unquoted, self._denied = None if quoted else (int(book.exchange_ns[0]), *best), False
        return ""

    def quote(self, exchange_ns: int, best: tuple[float, float]) -> None:
        """A `bbo` has come: whether all of its stamp speak against the last book is counted."""
        if self._unquoted and self._unquoted[0] == exchange_ns:
            agrees = self._unquoted[1:] == best
            self.hindsight["l2Book_off_bbo"] += -int(self._denied) if agrees else int(not self._denied)
            self._denied = True
            self._unquoted = None if agrees else self._unquoted

    def _is_aggregated(self, book: BookSnapshots, stream: int, levels: int, deep: bool) -> bool:
        coarse = bool(_coarse(book, self._sz_decimals)[0])
        self._levels[levels] += deep and not coarse
        return coarse and bool(_no_chance(np.array([levels]), np.array([stream], dtype=np.int8), self._usual())[0])

    def _usual(self) -> float:
        """The median of the levels of deep books that are not rounded, 0 where there were none."""
        counted = np.cumsum(self._levels)
        places = [(counted[-1] - 1) // 2, counted[-1] // 2]
        return float(np.searchsorted(counted, places, side="right").mean()) if counted[-1] else 0.0

    def _is_fast(self, bids: np.int64, asks: np.int64, stream: int) -> bool:
        five, near = _about_five(bids, asks)
        self._five, self._near = self._five + int(five), self._near + int(near)
        return stream == FAST or bool(five and _stand_out(self._five, self._near))

    def _fits(self, ns: int, fast: bool, deep: bool) -> bool:
        """Whether a book is needed: as all are but fast ones that come soon after a deep one."""
        soon = [each for each in self._kept_fast_ns if ns - each <= self._reach_ns]
        if fast:
            needed = ns - self._last_deep_ns > self._reach_ns
            self._kept_fast_ns = [*soon, ns] if needed else soon
            return needed
        if deep:
            self.hindsight["l2Book_fast"] += len(soon)
            self._last_deep_ns, self._kept_fast_ns = ns, []
        return True


def depths(book: BookSnapshots) -> tuple[Integers, Integers]:
    """Visible levels of bid and ask, each (n,)."""
    return np.isfinite(book.bid_price).sum(axis=1), np.isfinite(book.ask_price).sum(axis=1)


def repeated(keys: Sequence[NDArray[np.generic]]) -> Mask:
    """Which rows (n,) have come before, from their columns (n,) or (n, m): the same in all of them, NaN where NaN.

    The first column is a time; rows that share it with no other are not compared.
    """
    again = np.zeros(len(keys[0]), dtype=bool)
    near = np.flatnonzero(pd.Series(keys[0]).duplicated(keep=False))
    again[near] = pd.concat([pd.DataFrame(key[near]) for key in keys], axis=1, ignore_index=True).duplicated()
    return again


def aggregated(book: BookSnapshots, stream: NDArray[np.int8], sz_decimals: int) -> Mask:
    """Which books (n,) have rounded prices: all are multiples of 2 or of 5 ticks, and that is no chance.

    It is none where the book says so (`spread`), has many levels, or has few where the others have many: rounding makes
    one level of several. A book that says so and yet names other prices is asked for with as many figures as there are,
    and whole.
    """
    bids, asks = depths(book)
    coarse, levels, deep = _coarse(book, sz_decimals), bids + asks, np.maximum(bids, asks) > FAST_LEVELS
    usual = float(np.median(levels[deep & ~coarse])) if (deep & ~coarse).any() else 0.0
    return coarse & _no_chance(levels, stream, usual)


def _coarse(book: BookSnapshots, sz_decimals: int) -> Mask:
    """Which books (n,) have only prices that are multiples of 2, or only such of 5 ticks."""
    price = np.concatenate([book.bid_price, book.ask_price], axis=1)
    visible = np.isfinite(price)
    ticks = np.rint(np.where(visible, price / tick_size(np.where(visible, price, 1.0), sz_decimals), 0))
    return np.asarray(np.logical_or.reduce([(ticks % step == 0).all(axis=1) for step in _STEPS]))


def _no_chance(levels: Integers, stream: NDArray[np.int8], usual: float) -> Mask:
    """Whether coarse books of so many levels (n,) are rounded, where others have so many as usual."""
    few = (levels < usual / 2) & (usual >= _ENOUGH)
    return np.asarray((stream == AGGREGATED) | (levels >= _ENOUGH) | few)


def off_bbo(book: BookSnapshots, bbo: TopOfBook) -> Mask:
    """Which books (n,) name other best prices than every `bbo` of the same stamp of the exchange: of the same block."""
    best = pd.MultiIndex.from_arrays([book.exchange_ns, book.bid_price[:, 0], book.ask_price[:, 0]])
    quoted = pd.MultiIndex.from_arrays([bbo.exchange_ns, bbo.bid_price, bbo.ask_price])
    return np.asarray(np.isin(book.exchange_ns, bbo.exchange_ns) & ~best.isin(quoted))


def shallow(book: BookSnapshots, stream: NDArray[np.int8], last_deep_ns: int, max_gap_ns: int) -> Mask:
    """Which books (n,) are `fast` ones beside a whole one: not needed, and shallower.

    A book is a fast one if it says so, or if it has exactly 5 levels on both sides in a feed in which such books stand
    out: a thin market has others of 4 and 6 levels too. Where no deeper book came for half of `max_gap_ns`
    before (`last_deep_ns`: the last one before these) nor comes so soon after, a fast one is all there is, and stays.
    """
    bids, asks = depths(book)
    five, near = _about_five(bids, asks)
    fast = (stream == FAST) | (five & _stand_out(five.sum(), near.sum()))
    deep_ns = np.concatenate([[last_deep_ns], book.local_ns[~fast & (np.maximum(bids, asks) > FAST_LEVELS)]])
    return np.asarray(fast & _near(book.local_ns, deep_ns, max_gap_ns // 2))


def _about_five(bids: Any, asks: Any) -> tuple[Any, Any]:
    """Which books of so many levels (n,) have exactly the 5 of a fast one on both sides, and which nearly as many."""
    five = (bids == FAST_LEVELS) & (asks == FAST_LEVELS)
    near = (np.abs(bids - FAST_LEVELS) <= 1) | (np.abs(asks - FAST_LEVELS) <= 1)
    return five, near & ~five


def _stand_out(five: int, near: int) -> bool:
    """Whether so many books of 5 levels are cut there, beside so many of nearly as many."""
    return bool(five >= _SPIKE * max(near, 1))


def _near(ns: Nanoseconds, others: Nanoseconds, reach_ns: int) -> Mask:
    """Whether one of the others (m,), in order, is within reach of each time (n,)."""
    after = np.searchsorted(others, ns)
    before_ns, after_ns = others[np.maximum(after - 1, 0)], others[np.minimum(after, len(others) - 1)]
    return np.asarray((np.abs(ns - before_ns) <= reach_ns) | (np.abs(after_ns - ns) <= reach_ns))
