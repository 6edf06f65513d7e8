"""What a feed recorder saw of one asset, as columns, and the same as Tardis replay lines of native messages.

The recorder also makes what the matching engine does not know: the backfill of a connection, and `activeAssetCtx`.
"""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperdapo.market.book import Market
from hyperdapo.market.columns import (
    BookSnapshots,
    Contexts,
    Floats,
    Integers,
    Nanoseconds,
    TopOfBook,
    Trades,
    concatenate,
    select,
)
from hyperdapo.market.grid import snap_price
from hyperdapo.sections import SyntheticAsset
from hyperdapo.synthetic.order_book import BID, Messages
from hyperdapo.times import HOUR_NS, MS_NS, SECOND_NS, Span

CHANNELS = ("trades", "bbo", "l2Book", "activeAssetCtx")  # the order of one block's messages
BACKFILL = 10  # prints of the opening trades message
CONTEXT_NS = 3 * SECOND_NS  # between two updates of mark, oracle and funding
INTEREST, CLAMP = 1e-4, 5e-4  # of the exchange's funding formula, a share per 8 hours
PREMIUM, PREMIUM_HOURS = 4e-4, (1.7, 5.3, 13.0)  # of the perpetual over its oracle: amplitude and periods of its waves
_NO_HASH = "0x" + "0" * 64


@dataclass(frozen=True)
class Tape:
    """The messages of one asset and one connection over the local times `covers`, rows in order of `local_ns`.

    `book_orders` (n, 2, 20) and `bbo_orders` (n, 2) count the orders at each level, bids first. Prints of the
    same `local_ns` and `exchange_ns` are one message (`owners` (m, 2): the probes that made and took, -1: no probe;
    no message says so); the first `backfilled` are the message that opens a connection.
    """

    asset: str
    sz_decimals: int
    covers: Span
    book: BookSnapshots
    bbo: TopOfBook
    trades: Trades
    context: Contexts
    book_orders: NDArray[np.int32]
    bbo_orders: NDArray[np.int32]
    owners: Integers
    backfilled: int

    def market(self) -> Market:
        """The same as a recorder's clean data: columns without the backfill, and no gap."""
        trades, gaps = select(self.trades, slice(self.backfilled, None)), np.zeros((0, 2), np.int64)
        return Market(self.asset, self.sz_decimals, self.book, self.bbo, trades, gaps, self.context)

    def lines(self, channels: Collection[str], from_ns: int, to_ns: int) -> bytes:
        """Replay lines `LOCAL_TIME {native message}` of `from_ns` <= local_ns < `to_ns`, each ending in a newline."""
        times = (self.trades.local_ns, self.bbo.local_ns, self.book.local_ns, self.context.local_ns)
        encoders = (self._trades, self._quotes, self._books, self._contexts)
        messages: list[tuple[int, int, int, str]] = []
        for rank, (channel, ns, encoded) in enumerate(zip(CHANNELS, times, encoders, strict=True)):
            if channel in channels:
                first, last = np.searchsorted(ns, [from_ns, to_ns])
                messages += [(local, exchange, rank, text) for local, exchange, text in encoded(int(first), int(last))]
        messages.sort(key=lambda message: message[:3])
        stamps = _timestamps(np.array([message[0] for message in messages], dtype=np.int64))
        return "".join(f"{stamp} {message[3]}\n" for stamp, message in zip(stamps, messages, strict=True)).encode()

    def _books(self, first: int, last: int) -> list[tuple[int, int, str]]:
        book, rows = self.book, slice(first, last)
        sides = (
            self._levels(book.bid_price[rows], book.bid_size[rows], self.book_orders[rows, 0]),
            self._levels(book.ask_price[rows], book.ask_size[rows], self.book_orders[rows, 1]),
        )
        times = zip(book.local_ns[rows].tolist(), book.exchange_ns[rows].tolist(), strict=True)
        head = f'{{"channel":"l2Book","data":{{"coin":"{self.asset}","time":'
        return [
            (local, exchange, f'{head}{exchange // MS_NS},"levels":[[{",".join(bids)}],[{",".join(asks)}]]}}}}')
            for (local, exchange), bids, asks in zip(times, *sides, strict=True)
        ]

    def _quotes(self, first: int, last: int) -> list[tuple[int, int, str]]:
        bbo, rows = self.bbo, slice(first, last)
        sides = (
            self._levels(bbo.bid_price[rows, None], bbo.bid_size[rows, None], self.bbo_orders[rows, :1]),
            self._levels(bbo.ask_price[rows, None], bbo.ask_size[rows, None], self.bbo_orders[rows, 1:]),
        )
        times = zip(bbo.local_ns[rows].tolist(), bbo.exchange_ns[rows].tolist(), strict=True)
        head = f'{{"channel":"bbo","data":{{"coin":"{self.asset}","time":'
        return [
            (local, exchange, f'{head}{exchange // MS_NS},"bbo":[{(*bid, "null")[0]},{(*ask, "null")[0]}]}}}}')
            for (local, exchange), bid, ask in zip(times, *sides, strict=True)
        ]

    def _trades(self, first: int, last: int) -> list[tuple[int, int, str]]:
        messages: list[tuple[int, int, list[str]]] = []
        trades, rows = self.trades, slice(first, last)
        columns = (trades.local_ns, trades.exchange_ns, trades.price, trades.size, trades.side, trades.tid)
        for row, print_ in enumerate(zip(*(column[rows].tolist() for column in columns), strict=True), start=first):
            local, exchange, price, size, side, tid = print_
            px, sz = self._price(price), _decimal(size, self.sz_decimals)
            text = (
                f'{{"coin":"{self.asset}","side":"{"B" if side > 0 else "A"}","px":"{px}","sz":"{sz}",'
                f'"time":{exchange // MS_NS},"hash":"{_NO_HASH}","tid":{tid}}}'
            )
            if messages and (messages[-1][:2] == (local, exchange) or 0 < row < self.backfilled):
                messages[-1][2].append(text)
            else:
                messages.append((local, exchange, [text]))
        return [(local, time, f'{{"channel":"trades","data":[{",".join(texts)}]}}') for local, time, texts in messages]

    def _contexts(self, first: int, last: int) -> list[tuple[int, int, str]]:
        context, price, rows = self.context, self._price, slice(first, last)
        columns = (context.mark_price, context.oracle_price, context.funding, context.open_interest)
        values = zip(context.local_ns[rows].tolist(), *(column[rows].tolist() for column in columns), strict=True)
        head = f'{{"channel":"activeAssetCtx","data":{{"coin":"{self.asset}","ctx":{{'
        return [
            (
                local,
                local,
                f'{head}"funding":"{funding:.10f}","openInterest":"{_decimal(interest, self.sz_decimals)}",'
                f'"oraclePx":"{price(oracle)}","markPx":"{price(mark)}"}}}}}}',
            )
            for local, mark, oracle, funding, interest in values
        ]

    def _levels(self, prices: Floats, sizes: Floats, orders: NDArray[np.int32]) -> list[list[str]]:
        """Native levels of (n, k) prices, sizes and order counts; NaN prices are left out."""
        decimals, price = self.sz_decimals, self._price
        return [
            [
                f'{{"px":"{price(px)}","sz":"{_decimal(sz, decimals)}","n":{n}}}'
                for px, sz, n in zip(*row, strict=True)
                if px == px
            ]
            for row in zip(prices.tolist(), sizes.tolist(), orders.tolist(), strict=True)
        ]

    def _price(self, price: float) -> str:
        return _cached_decimal(price, 6 - self.sz_decimals)


def joined(tapes: Sequence[Tape]) -> Tape:
    """Tapes that follow one another, as one."""
    first = tapes[0]
    return replace(
        first,
        covers=(first.covers[0], tapes[-1].covers[1]),
        book=concatenate([tape.book for tape in tapes]),
        bbo=concatenate([tape.bbo for tape in tapes]),
        trades=concatenate([tape.trades for tape in tapes]),
        context=concatenate([tape.context for tape in tapes]),
        book_orders=np.concatenate([tape.book_orders for tape in tapes]),
        bbo_orders=np.concatenate([tape.bbo_orders for tape in tapes]),
        owners=np.concatenate([tape.owners for tape in tapes]),
    )


class Recorder:
    """Collects the messages of one asset as they are played, and hands them out as tapes."""

    def __init__(self, asset: str, sz_decimals: int, prices: Integers, model: SyntheticAsset, seed: int) -> None:
        self._asset, self._sz_decimals = asset, sz_decimals
        self._usd = _round(prices * 10.0 ** (sz_decimals - 6))
        self._open_interest = 1000 * model.depth_usd / model.price_usd
        self._phases = np.random.default_rng([seed, zlib.crc32(asset.encode()), 1]).uniform(0, 2 * np.pi, 3)
        self._first_tid = zlib.crc32(asset.encode())
        self._connected = False
        self._latest_top: Integers | None = None
        self._waiting: list[list[Integers]] = []

    def add(self, messages: Messages) -> None:
        """Keep those of a stretch of time, best quotes only where they changed."""
        used = np.repeat(messages.used, 2)
        book_ns, book, top_ns, top, print_ns, prints = (
            rows[:count].copy() for rows, count in zip(messages[:-1], used, strict=True)
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
        hours = bbo.exchange_ns[first, None] / HOUR_NS
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


def _decimal(value: float, decimals: int) -> str:
    """The exchange's spelling: at most so many decimals, no trailing zeros but the one after the point."""
    text = f"{value:.{max(decimals, 1)}f}".rstrip("0")
    return f"{text}0" if text[-1] == "." else text


_cached_decimal = lru_cache(maxsize=4096)(_decimal)


def _timestamps(local_ns: Nanoseconds) -> list[str]:
    """ISO times with the seven decimals that Tardis writes."""
    texts = np.datetime_as_string(local_ns.astype("datetime64[ns]"), unit="ns")
    return [f"{text[:27]}Z" for text in texts.tolist()]


def _round(values: NDArray[Any]) -> Floats:
    """Rid of what floating point added: no price or size has more than six decimals."""
    return np.asarray(np.round(values, 6), dtype=np.float64)
