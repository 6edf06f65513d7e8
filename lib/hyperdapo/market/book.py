"""The market of one asset as columns, and the top of its book at any instant.

Times are int64 nanoseconds UTC: `exchange_ns` is the exchange's stamp, `local_ns` when the recorder saw the message.
Rows are in order of `local_ns`; that of the messages received.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hyperdapo.errors import DataError
from hyperdapo.paths import atomic, require

LEVELS = 20

Floats = NDArray[np.float64]
Nanoseconds = NDArray[np.int64]


@dataclass(frozen=True)
class BookSnapshots:
    """`l2Book`: n full snapshots; prices (n, 20) in USD and sizes (n, 20) in coin, best first, NaN beyond the visible."""

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


@dataclass(frozen=True)
class Market:
    """All that is known of one asset; `gaps` (m, 2) are intervals of `local_ns` without trustworthy data."""

    asset: str
    sz_decimals: int
    book: BookSnapshots
    bbo: TopOfBook
    trades: Trades
    gaps: Nanoseconds
