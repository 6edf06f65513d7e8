"""What a feed recorder saw of one asset, as columns, and the same as Tardis replay lines of native messages."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hyperdapo.market.columns import BookSnapshots, Contexts, Floats, Nanoseconds, TopOfBook, Trades, concatenate

_NO_HASH = "0x" + "0" * 64
CHANNELS = ("trades", "bbo", "l2Book", "activeAssetCtx")  # the order of one block's messages
_COLUMNS = {"l2Book": "book", "activeAssetCtx": "context"}


@dataclass(frozen=True)
class Tape:
    """The messages of one asset and one connection over the local times `covers`, rows in order of `local_ns`.

    `book_orders` (n, 2, 20) and `bbo_orders` (n, 2) count the orders at each level, bids first. Prints of the
    same `local_ns` and `exchange_ns` are one message (`owners` (m, 2): the probes that made and took, -1: nobody's;
    no message tells them); the first `backfilled` are the message that opens a connection.
    """

    asset: str
    sz_decimals: int
    covers: tuple[int, int]
    book: BookSnapshots
    bbo: TopOfBook
    trades: Trades
    context: Contexts
    book_orders: NDArray[np.int32]
    bbo_orders: NDArray[np.int32]
    owners: NDArray[np.int64]
    backfilled: int

    def lines(self, channels: Collection[str], from_ns: int, to_ns: int) -> bytes:
        """Replay lines `LOCAL_TIME {native message}` of `from_ns` <= local_ns < `to_ns`, each ending in a newline."""
        messages: list[tuple[int, int, int, str]] = []
        for rank, channel in enumerate(CHANNELS):
            if channel in channels:
                times = getattr(self, _COLUMNS.get(channel, channel)).local_ns
                first, last = np.searchsorted(times, [from_ns, to_ns])
                encoded = getattr(self, f"_{channel.lower()}")(int(first), int(last))
                messages += [(local, exchange, rank, text) for local, exchange, text in encoded]
        messages.sort(key=lambda message: message[:3])
        stamps = _timestamps(np.array([message[0] for message in messages], dtype=np.int64))
        return "".join(f"{stamp} {message[3]}\n" for stamp, message in zip(stamps, messages, strict=True)).encode()

    def _l2book(self, first: int, last: int) -> list[tuple[int, int, str]]:
        book, rows = self.book, slice(first, last)
        sides = (
            self._levels(book.bid_price[rows], book.bid_size[rows], self.book_orders[rows, 0]),
            self._levels(book.ask_price[rows], book.ask_size[rows], self.book_orders[rows, 1]),
        )
        times = zip(book.local_ns[rows].tolist(), book.exchange_ns[rows].tolist(), strict=True)
        head = f'{{"channel":"l2Book","data":{{"coin":"{self.asset}","time":'
        return [
            (local, exchange, f'{head}{exchange // 1_000_000},"levels":[[{",".join(bids)}],[{",".join(asks)}]]}}}}')
            for (local, exchange), bids, asks in zip(times, *sides, strict=True)
        ]

    def _bbo(self, first: int, last: int) -> list[tuple[int, int, str]]:
        bbo, rows = self.bbo, slice(first, last)
        sides = (
            self._levels(bbo.bid_price[rows, None], bbo.bid_size[rows, None], self.bbo_orders[rows, :1]),
            self._levels(bbo.ask_price[rows, None], bbo.ask_size[rows, None], self.bbo_orders[rows, 1:]),
        )
        times = zip(bbo.local_ns[rows].tolist(), bbo.exchange_ns[rows].tolist(), strict=True)
        head = f'{{"channel":"bbo","data":{{"coin":"{self.asset}","time":'
        return [
            (local, exchange, f'{head}{exchange // 1_000_000},"bbo":[{(*bid, "null")[0]},{(*ask, "null")[0]}]}}}}')
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
                f'"time":{exchange // 1_000_000},"hash":"{_NO_HASH}","tid":{tid}}}'
            )
            if messages and (messages[-1][:2] == (local, exchange) or 0 < row < self.backfilled):
                messages[-1][2].append(text)
            else:
                messages.append((local, exchange, [text]))
        return [(local, time, f'{{"channel":"trades","data":[{",".join(texts)}]}}') for local, time, texts in messages]

    def _activeassetctx(self, first: int, last: int) -> list[tuple[int, int, str]]:
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


def _decimal(value: float, decimals: int) -> str:
    """The exchange's spelling: at most so many decimals, no trailing zeros but the one after the point."""
    text = f"{value:.{max(decimals, 1)}f}".rstrip("0")
    return f"{text}0" if text[-1] == "." else text


_cached_decimal = lru_cache(maxsize=4096)(_decimal)


def _timestamps(local_ns: Nanoseconds) -> list[str]:
    """ISO times with the seven decimals that Tardis writes."""
    texts = np.datetime_as_string(local_ns.astype("datetime64[ns]"), unit="ns")
    return [f"{text[:27]}Z" for text in texts.tolist()]
