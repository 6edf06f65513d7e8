"""The market of one asset as columns, and the top of its book at any instant.

Times are int64 nanoseconds UTC: `exchange_ns` is the exchange's stamp, `local_ns` when the recorder saw the message.
Rows are in order of `local_ns`; that of the messages received.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from hyperdapo.errors import DataError
from hyperdapo.paths import atomic, require

LEVELS = 20

Floats = NDArray[np.float64]
Nanoseconds = NDArray[np.int64]


@dataclass(frozen=True)
class BookSnapshots:
    """`l2Book`: n full snapshots; prices (n, 20) USD and sizes (n, 20) coin, best first, NaN beyond the visible."""

    exchange_ns: Nanoseconds
    local_ns: Nanoseconds
    bid_price: Floats
    bid_size: Floats
    ask_price: Floats
    ask_size: Floats


@dataclass(frozen=True)
class TopOfBook:
    """n best quotes: arrays (n,) in USD and coin."""

    exchange_ns: Nanoseconds
    local_ns: Nanoseconds
    bid_price: Floats
    bid_size: Floats
    ask_price: Floats
    ask_size: Floats

    @property
    def mid(self) -> Floats:
        return (self.bid_price + self.ask_price) / 2


@dataclass(frozen=True)
class Trades:
    """n prints: price (n,) USD, size (n,) coin, side (n,) +1 when the aggressor buys, -1 when it sells."""

    exchange_ns: Nanoseconds
    local_ns: Nanoseconds
    price: Floats
    size: Floats
    side: NDArray[np.int8]
    tid: NDArray[np.int64]


Columns = TypeVar("Columns", BookSnapshots, TopOfBook, Trades)


@dataclass(frozen=True)
class Market:
    """All that is known of one asset; `gaps` (m, 2) are intervals of `local_ns` without trustworthy data.

    What was the best quote, or the newest book, at some instant is asked of the messages received by then only
    (`local_ns` <= t). Of those the newest is the one with the greatest `exchange_ns`; of equals, the later received.
    """

    asset: str
    sz_decimals: int
    book: BookSnapshots
    bbo: TopOfBook
    trades: Trades
    gaps: Nanoseconds

    @cached_property
    def top(self) -> TopOfBook:
        """Best quotes of `bbo` and `l2Book` together: only those that were the newest when they came."""
        best = first_level(self.book)
        both = concatenate([best, self.bbo])
        received = np.argsort(both.local_ns, kind="stable")
        both = take(both, received)
        return take(both, _newest(both.exchange_ns))

    @cached_property
    def _books(self) -> NDArray[np.int64]:
        """Rows of `book` that were the newest book when they came."""
        return _newest(self.book.exchange_ns)

    def top_at(self, ns: ArrayLike) -> TopOfBook:
        """Best quotes known at each instant `ns` (n,): prices and sizes NaN, times 0, before the first message."""
        index = np.searchsorted(self.top.local_ns, np.atleast_1d(ns), side="right")
        nothing = TopOfBook(*(np.zeros(1, np.int64),) * 2, *(np.full(1, np.nan),) * 4)
        return take(concatenate([nothing, self.top]), index)

    def mid_at(self, ns: ArrayLike) -> Floats:
        """Mid known at each instant `ns` (n,), USD; NaN before the first message."""
        return self.top_at(ns).mid

    def book_at(self, ns: ArrayLike) -> NDArray[np.int64]:
        """Row of `book` that is the newest known at each instant `ns` (n,); -1 before the first."""
        index = np.searchsorted(self.book.local_ns[self._books], np.atleast_1d(ns), side="right")
        return np.concatenate([[-1], self._books])[index]

    def uninterrupted_since(self, ns: ArrayLike) -> Nanoseconds:
        """Since when, at each instant `ns` (n,), messages have come without a gap that has ended by then."""
        begins = np.concatenate([self.top.local_ns[:1], self.gaps[:, 1]])
        return begins[np.searchsorted(self.gaps[:, 1], np.atleast_1d(ns), side="right")]

    def interrupted(self, from_ns: Nanoseconds, to_ns: Nanoseconds) -> NDArray[np.bool_]:
        """Whether each interval (from, to] touches a gap or leaves the data; all (n,)."""
        inside = (from_ns >= self.top.local_ns[0]) & (to_ns <= self.top.local_ns[-1])
        ended = np.searchsorted(self.gaps[:, 1], from_ns, side="right")
        begun = np.searchsorted(self.gaps[:, 0], to_ns, side="left")
        return np.asarray((ended < begun) | ~inside)

    def depth_at(self, ns: int, price: float) -> tuple[float, float]:
        """D(p) of eq. 2.3 at an instant: sizes resting at exactly `price` on bid and ask, coin; NaN before a book."""
        row = int(self.book_at(ns)[0])
        if row < 0:
            return float("nan"), float("nan")
        bids, asks = (np.isclose(side[row], price, rtol=1e-12) for side in (self.book.bid_price, self.book.ask_price))
        return float(self.book.bid_size[row][bids].sum()), float(self.book.ask_size[row][asks].sum())

    @classmethod
    def load(cls, folder: Path) -> "Market":
        """Read what `02_preprocess` wrote into an asset's data folder.

        Raises
        ------
        MissingInputError
            If the stage has not run.
        DataError
            If a table is damaged.
        """
        report = json.loads(require(folder / "cleaning.json", "02_preprocess", folder.parent.name).read_text())
        gaps = np.array(report["gaps"], dtype=np.int64).reshape(-1, 2)
        return cls(
            asset=report["asset"],
            sz_decimals=report["sz_decimals"],
            book=read(BookSnapshots, folder / "book.parquet"),
            bbo=read(TopOfBook, folder / "bbo.parquet"),
            trades=read(Trades, folder / "trades.parquet"),
            gaps=gaps,
        )

    def save(self, folder: Path, report: Mapping[str, Any] | None = None) -> None:
        """Write what `load` reads: three Parquet tables, then `cleaning.json`: where it is, all is whole."""
        with writer(folder) as append:
            append(self.book, self.bbo, self.trades)
        facts = {"asset": self.asset, "sz_decimals": self.sz_decimals, "gaps": self.gaps.tolist()} | dict(report or {})
        with atomic(folder / "cleaning.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")


_FILES: dict[str, type] = {"book.parquet": BookSnapshots, "bbo.parquet": TopOfBook, "trades.parquet": Trades}


def concatenate(parts: Sequence[Columns]) -> Columns:
    """The rows of several column sets of one kind, one after the other."""
    kind = type(parts[0])
    return kind(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(kind)))


def take(columns: Columns, rows: NDArray[Any]) -> Columns:
    """Rows chosen by index or by mask."""
    return type(columns)(*(getattr(columns, field.name)[rows] for field in fields(columns)))


def first_level(book: BookSnapshots) -> TopOfBook:
    """The best level of each snapshot."""
    sides = (book.bid_price, book.bid_size, book.ask_price, book.ask_size)
    return TopOfBook(book.exchange_ns, book.local_ns, *(np.ascontiguousarray(side[:, 0]) for side in sides))


@contextmanager
def writer(folder: Path) -> Iterator[Callable[[BookSnapshots, TopOfBook, Trades], None]]:
    """Yield a function that appends one row group to each of the three tables; they appear when the block ends well."""
    with ExitStack() as stack:
        writers = []
        for name, kind in _FILES.items():
            temporary = stack.enter_context(atomic(folder / name))
            schema = _table(_empty(kind)).schema
            writers.append(stack.enter_context(pq.ParquetWriter(temporary, schema, compression="zstd")))

        def append(*parts: BookSnapshots | TopOfBook | Trades) -> None:
            for file, part in zip(writers, parts, strict=True):
                file.write_table(_table(part), row_group_size=max(len(part.local_ns), 1))

        yield append


def read(kind: type[Columns], path: Path) -> Columns:
    """Read one table that `writer` wrote.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run 02_preprocess again") from None
    return kind(*(_array(table.column(field.name)) for field in fields(kind)))


def _newest(exchange_ns: Nanoseconds) -> NDArray[np.int64]:
    return np.flatnonzero(exchange_ns >= np.maximum.accumulate(exchange_ns))


def _empty(kind: type[Columns]) -> Columns:
    dtypes = {"exchange_ns": np.int64, "local_ns": np.int64, "tid": np.int64, "side": np.int8}
    shape = (0, LEVELS) if kind is BookSnapshots else (0,)
    return kind(*(np.zeros(shape[: 1 if f.name in dtypes else 2], dtypes.get(f.name, float)) for f in fields(kind)))


def _table(columns: BookSnapshots | TopOfBook | Trades) -> pa.Table:
    """Arrow columns: those of shape (n, 20) as lists of fixed size."""
    arrays = {field.name: getattr(columns, field.name) for field in fields(columns)}
    return pa.table(
        {
            name: pa.array(array) if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(array.ravel(), LEVELS)
            for name, array in arrays.items()
        }
    )


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column)
    flat = [np.asarray(chunk.flatten()).reshape(-1, LEVELS) for chunk in column.chunks]
    return np.concatenate(flat) if flat else np.zeros((0, LEVELS))
