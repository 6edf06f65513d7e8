"""The market of one asset: what was known at any instant, and the visible book then (§3.2.1, eq. 2.1-2.3).

Times are int64 nanoseconds UTC. What was known at t is asked of the messages received by then (`local_ns` <= t). Of
those the newest is the one with the greatest `exchange_ns`; of equals, the later received.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from hyperdapo.errors import DataError
from hyperdapo.files import read_json
from hyperdapo.market import storage
from hyperdapo.market.columns import (
    BookSnapshots,
    Contexts,
    Floats,
    Integers,
    Mask,
    Nanoseconds,
    TopOfBook,
    Trades,
    concatenate,
    empty,
    first_level,
    select,
)
from hyperdapo.times import HOUR_NS, SECOND_NS, Span, by_day

_PART_NS = 6 * HOUR_NS


@dataclass(frozen=True)
class Market:
    """All messages of one asset; `gaps` (m, 2) are intervals of `local_ns` without trustworthy data.

    A market loaded in part knows of the whole the gaps, when it begins (`begins_ns`; None: with the first message here)
    and how many coin are traded in 24 hours (`daily_volume`, V of eq. 2.4; None: as many as here).
    """

    asset: str
    sz_decimals: int
    book: BookSnapshots
    bbo: TopOfBook
    trades: Trades
    gaps: Nanoseconds
    context: Contexts = field(default_factory=lambda: empty(Contexts))
    begins_ns: int | None = None
    daily_volume: float | None = None

    @cached_property
    def top(self) -> TopOfBook:
        """Best quotes of `bbo` and `l2Book` together: only those that were the newest when they came."""
        return select(self._nothing_then_top, slice(1, None))

    @cached_property
    def _nothing_then_top(self) -> TopOfBook:
        both = concatenate([first_level(self.book), self.bbo])
        both = select(both, np.argsort(both.local_ns, kind="stable"))
        nothing = TopOfBook(*(np.zeros(1, np.int64),) * 2, *(np.full(1, np.nan),) * 4)
        return concatenate([nothing, select(both, _newest(both.exchange_ns))])

    @cached_property
    def _books(self) -> Integers:
        """Rows of `book` that were the newest book when they came."""
        return _newest(self.book.exchange_ns)

    def top_at(self, ns: ArrayLike) -> TopOfBook:
        """Best quotes known at each instant `ns` (n,): prices and sizes NaN, times 0, before the first message."""
        index = np.searchsorted(self.top.local_ns, np.atleast_1d(ns), side="right")
        return select(self._nothing_then_top, index)

    def mid_at(self, ns: ArrayLike) -> Floats:
        """Mid known at each instant `ns` (n,), USD; NaN before the first message."""
        return self.top_at(ns).mid

    def book_at(self, ns: ArrayLike) -> Integers:
        """Row of `book` that is the newest known at each instant `ns` (n,); -1 before the first."""
        index = np.searchsorted(self.book.local_ns[self._books], np.atleast_1d(ns), side="right")
        return np.concatenate([[-1], self._books])[index]

    def context_at(self, ns: ArrayLike) -> Contexts:
        """Mark price (eq. 2.2), oracle price, funding (eq. 2.1) and open interest known at each instant `ns` (n,).

        NaN before the first `activeAssetCtx`, and everywhere on days that were recorded without.
        """
        nothing = Contexts(np.zeros(1, np.int64), *(np.full(1, np.nan),) * 4)
        index = np.searchsorted(self.context.local_ns, np.atleast_1d(ns), side="right")
        return select(concatenate([nothing, self.context]), index)

    def uninterrupted_since(self, ns: ArrayLike, allowed_s: float = 0.0) -> Nanoseconds:
        """Since when, at each instant `ns` (n,), messages have come without a gap that has ended by then.

        Gaps that are not longer than `allowed_s` do not count.
        """
        begins = self.top.local_ns[:1] if self.begins_ns is None else [self.begins_ns]
        ends = self.gaps[self.gaps[:, 1] - self.gaps[:, 0] > allowed_s * SECOND_NS, 1]
        return np.concatenate([begins, ends])[np.searchsorted(ends, np.atleast_1d(ns), "right")]

    def interrupted(self, from_ns: Nanoseconds, to_ns: Nanoseconds) -> Mask:
        """Whether each interval (from, to] touches a gap or leaves the data; all (n,)."""
        inside = (from_ns >= self.top.local_ns[0]) & (to_ns <= self.top.local_ns[-1])
        ended = np.searchsorted(self.gaps[:, 1], from_ns, side="right")
        begun = np.searchsorted(self.gaps[:, 0], to_ns, side="left")
        return np.asarray((ended < begun) | ~inside)

    @classmethod
    def load(cls, folder: Path, span: Span | None = None) -> "Market":
        """Read what `02_preprocess` wrote into an asset's data folder, or the part of it that reaches into a span.

        A part begins at least one message of each channel before the span, so that every question about an instant of
        the span has the answer that the whole would give.

        Raises
        ------
        MissingInputError
            If the stage has not run.
        DataError
            If a file is damaged, or not what the stage wrote.
        """
        report = read_json(folder, "cleaning.json")
        return cls(
            asset=report["asset"],
            sz_decimals=report["sz_decimals"],
            book=storage.read(BookSnapshots, folder, span),
            bbo=storage.read(TopOfBook, folder, span),
            trades=storage.read(Trades, folder, span),
            gaps=np.array(report["gaps"], dtype=np.int64).reshape(-1, 2),
            context=storage.read(Contexts, folder, span),
            begins_ns=report["begins_ns"],
            daily_volume=report.get("daily_volume"),
        )

    @classmethod
    def in_parts(cls, folder: Path, before_s: float = 0.0, after_s: float = 0.0) -> Iterator[tuple[Span, "Market"]]:
        """Each quarter of a day of what `02_preprocess` wrote, and the market of it and so many seconds around it.

        So memory does not grow with the span. Raises as `load`.
        """
        report = read_json(folder, "cleaning.json")
        parts = list(by_day(report["begins_ns"], report["ends_ns"] + 1, _PART_NS))
        for part in tqdm(parts, desc=f"{report['asset']} market", unit="part", delay=2, mininterval=2, leave=False):
            from_ns, to_ns = part[0] - round(before_s * SECOND_NS), part[1] + round(after_s * SECOND_NS)
            yield part, cls.load(folder, (from_ns, to_ns))


@dataclass(frozen=True)
class Book:
    """The visible book at n instants: prices (n, 21) USD and sizes (n, 21) coin, best first, NaN beyond the visible.

    The newest `l2Book` known, as the `bbo` known since has changed it: levels that the best quote has passed are gone,
    the best level is the quote's. It shows one level more than a snapshot where a new best price came before the 20.
    """

    bid_price: Floats
    bid_size: Floats
    ask_price: Floats
    ask_size: Floats

    @classmethod
    def at(cls, market: Market, ns: ArrayLike) -> "Book":
        """The book known at each instant `ns` (n,) of `local_ns`; all NaN before the first snapshot.

        Raises
        ------
        DataError
            If the market holds no snapshot at all.
        """
        if not len(market.book.local_ns):
            raise DataError(f"{market.asset}: no l2Book message; without one there is no book")
        top, row = market.top_at(ns), market.book_at(ns)
        book = select(market.book, np.maximum(row, 0))
        bids = _fused(book.bid_price, book.bid_size, top.bid_price, top.bid_size, row, -1)
        asks = _fused(book.ask_price, book.ask_size, top.ask_price, top.ask_size, row, 1)
        return cls(*bids, *asks)

    @property
    def mid(self) -> Floats:
        """(n,) USD."""
        return (self.bid_price[:, 0] + self.ask_price[:, 0]) / 2


def _fused(
    price: Floats, size: Floats, best: Floats, best_size: Floats, row: Integers, outward: int
) -> tuple[Floats, Floats]:
    """One side (n, 20) with the best quote (n,) before it and without what the quote has passed: (n, 21), packed."""
    behind = (price - best[:, None]) * outward > 0
    prices = np.column_stack([best, np.where(behind, price, np.nan)])
    sizes = np.column_stack([best_size, np.where(behind, size, np.nan)])
    prices[row < 0] = sizes[row < 0] = np.nan
    order = np.argsort(np.isnan(prices), axis=1, kind="stable")
    return np.take_along_axis(prices, order, axis=1), np.take_along_axis(sizes, order, axis=1)


def _newest(exchange_ns: Nanoseconds) -> Integers:
    return np.flatnonzero(exchange_ns >= np.maximum.accumulate(exchange_ns))
