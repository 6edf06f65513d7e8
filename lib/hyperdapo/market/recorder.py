"""What a recorder of the synthetic exchange writes down: levels and lots become native prices and sizes, day by day."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperdapo.market.columns import BookSnapshots, Contexts, Floats, TopOfBook, Trades
from hyperdapo.market.grid import snap_price
from hyperdapo.market.layout import BID, Integers, Record
from hyperdapo.market.tape import Tape
from hyperdapo.sections import SyntheticAsset

BACKFILL = 10  # prints of the opening trades message
CONTEXT_NS = 3_000_000_000  # between two updates of mark, oracle and funding
INTEREST, CLAMP = 1e-4, 5e-4  # of the exchange's funding formula, a share per 8 hours
PREMIUM, PREMIUM_HOURS = 4e-4, (1.7, 5.3, 13.0)  # of the perpetual over its oracle: amplitude and periods of its waves


class Recorder:
    """Takes the records of one asset as they are played, and hands them out as tapes."""

    def __init__(self, asset: str, sz_decimals: int, prices: Integers, model: SyntheticAsset, seed: int) -> None:
        self._asset, self._sz_decimals = asset, sz_decimals
        self._usd = _round(prices * 10.0 ** (sz_decimals - 6))
        self._open_interest = 1000 * model.depth_usd / model.price_usd
        self._phases = np.random.default_rng([seed, zlib.crc32(asset.encode()), 1]).uniform(0, 2 * np.pi, 3)
        self._first_tid = zlib.crc32(asset.encode())
        self._connected = False
        self._latest_top: Integers | None = None
        self._waiting: list[list[Integers]] = []

    def take(self, record: Record) -> None:
        """Keep what a stretch of time has recorded, best quotes only where they changed."""
        used = np.repeat(record.used, 2)
        book_ns, book, top_ns, top, print_ns, prints = (
            rows[:count].copy() for rows, count in zip(record[:-1], used, strict=True)
        )
        before = top[:1] - 1 if self._latest_top is None else self._latest_top
        changed = np.any(np.diff(top, axis=0, prepend=before) != 0, axis=(1, 2))
        self._latest_top = top[-1:] if len(top) else before
        self._waiting.append([book_ns, book, top_ns[changed], top[changed], print_ns, prints])

    def tape(self, start_ns: int, end_ns: int) -> Tape:
        """The messages seen from `start_ns` to `end_ns` (local time); what comes later waits, what came before goes.

        The first tape opens with the backfill of its connection.
        """
        columns = [np.concatenate(parts) for parts in zip(*self._waiting, strict=True)]
        times = columns[::2]
        seen = [slice(*map(int, np.searchsorted(ns[:, 1], [start_ns, end_ns]))) for ns in times]
        self._waiting = [[rows[seen[column // 2].stop :] for column, rows in enumerate(columns)]]
        book_ns, book, top_ns, top, print_ns, prints = (rows[seen[column // 2]] for column, rows in enumerate(columns))
        earlier = slice(seen[2].start, seen[2].start)
        if not self._connected:
            earlier = slice(max(seen[2].start - BACKFILL, 0), seen[2].start)
            opening = min(ns[0, 1] for ns in (book_ns, top_ns, print_ns) if len(ns))
            columns[4][earlier, 1] = opening
            print_ns, prints = (np.concatenate([rows[earlier], rows[seen[2]]]) for rows in columns[4:])
        self._connected = True
        first_tid, self._first_tid = self._first_tid + earlier.start, self._first_tid + seen[2].stop
        price, size = self._priced(book)
        best_price, best_size = self._priced(top)
        bbo = TopOfBook(
            top_ns[:, 0], top_ns[:, 1], best_price[:, 0], best_size[:, 0], best_price[:, 1], best_size[:, 1]
        )
        return Tape(
            asset=self._asset,
            sz_decimals=self._sz_decimals,
            covers=(start_ns, end_ns),
            book=BookSnapshots(book_ns[:, 0], book_ns[:, 1], price[:, 0], size[:, 0], price[:, 1], size[:, 1]),
            bbo=bbo,
            trades=self._prints(print_ns, prints, first_tid),
            context=self._contexts(bbo),
            book_orders=book[..., 2].astype(np.int32),
            bbo_orders=top[..., 2].astype(np.int32),
            owners=prints[:, 3:],
            backfilled=earlier.stop - earlier.start,
        )

    def _prints(self, ns: Integers, prints: Integers, first_tid: int) -> Trades:
        return Trades(
            exchange_ns=ns[:, 0],
            local_ns=ns[:, 1],
            price=self._usd[prints[:, 0]],
            size=_round(prints[:, 1] * 10.0**-self._sz_decimals),
            side=np.where(prints[:, 2] == BID, 1, -1).astype(np.int8),
            tid=(np.arange(len(prints)) + first_tid) * 0x2545F4914F6CD % 2**50,  # odd factor: one to one
        )

    def _contexts(self, bbo: TopOfBook) -> Contexts:
        """Oracle: the mean mid of the interval before, less a premium that moves in slow waves; mark: eq. 2.2.

        Funding is the exchange's formula, premium + clamp(interest - premium) per 8 hours, an eighth of it per hour.
        """
        interval = bbo.exchange_ns // CONTEXT_NS
        first = np.flatnonzero(np.diff(interval, prepend=-1) > 0)
        mean = np.add.reduceat(bbo.mid, first) / np.diff(first, append=len(interval)) if len(first) else bbo.mid
        earlier = np.concatenate([bbo.mid[first[:1]], mean[:-1]])
        hours = bbo.exchange_ns[first, None] / 3.6e12
        premium = PREMIUM * np.sin(2 * np.pi * hours / np.array(PREMIUM_HOURS) + self._phases).sum(axis=1)
        oracle = snap_price(earlier / (1 + premium), 1, self._sz_decimals)
        mark = np.median([bbo.bid_price[first], bbo.ask_price[first], oracle], axis=0)
        funding = np.round((premium + np.clip(INTEREST - premium, -CLAMP, CLAMP)) / 8, 10)
        open_interest = np.round(self._open_interest * (1 + 100 * premium), self._sz_decimals)
        return Contexts(bbo.local_ns[first], mark, oracle, funding, open_interest)

    def _priced(self, rows: Integers) -> tuple[Floats, Floats]:
        """Prices in USD and sizes in coin of (..., level | lots | orders), NaN where there is no level."""
        absent, coin = rows[..., 0] < 0, 10.0**-self._sz_decimals
        sizes = np.where(absent, np.nan, _round(rows[..., 1] * coin))
        return np.where(absent, np.nan, self._usd[rows[..., 0]]), sizes


def _round(values: NDArray[Any]) -> Floats:
    """Rid of what floating point added: no price or size has more than six decimals."""
    return np.asarray(np.round(values, 6), dtype=np.float64)
