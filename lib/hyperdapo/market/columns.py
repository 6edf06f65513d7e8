"""The messages of one asset as columns, and the names of arrays.

Times are int64 nanoseconds UTC: `exchange_ns` is the exchange's stamp, `local_ns` when the recorder saw the message.
Rows are in the order received, that of `local_ns`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

LEVELS = 20
BPS = 1e4  # basis points of one

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Nanoseconds = NDArray[np.int64]
Mask = NDArray[np.bool_]


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
    tid: Integers


@dataclass(frozen=True)
class Contexts:
    """`activeAssetCtx`: n updates of the perpetual itself; arrays (n,). The exchange does not stamp them.

    `mark_price` (eq. 2.2) and `oracle_price` in USD; `funding` a share per hour (eq. 2.1), paid by longs where
    positive; `open_interest` in coin.
    """

    local_ns: Nanoseconds
    mark_price: Floats
    oracle_price: Floats
    funding: Floats
    open_interest: Floats


Columns = TypeVar("Columns", BookSnapshots, TopOfBook, Trades, Contexts)


def concatenate(parts: Sequence[Columns]) -> Columns:
    """The rows of several column sets of one kind, one after the other."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*map(np.concatenate, columns))


def select(columns: Columns, rows: NDArray[Any] | slice) -> Columns:
    """Rows chosen by index, by mask or by slice."""
    return type(columns)(*(column[rows] for column in vars(columns).values()))


def empty(kind: type[Columns]) -> Columns:
    """No rows of a kind."""
    dtypes = {"exchange_ns": np.int64, "local_ns": np.int64, "tid": np.int64, "side": np.int8}
    levels = (0, LEVELS) if kind is BookSnapshots else (0,)
    names = [field.name for field in fields(kind)]
    return kind(*(np.zeros((0,) if name in dtypes else levels, dtypes.get(name, float)) for name in names))


def first_level(book: BookSnapshots) -> TopOfBook:
    """The best level of each snapshot."""
    sides = (book.bid_price, book.bid_size, book.ask_price, book.ask_size)
    return TopOfBook(book.exchange_ns, book.local_ns, *(np.ascontiguousarray(side[:, 0]) for side in sides))
