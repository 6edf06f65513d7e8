"""Native Hyperliquid messages, as Tardis replays them, to columns.

A line is `2025-09-04T19:46:56.8699350Z {"channel": "l2Book" | "bbo" | "trades", "data": ...}`: when it was recorded,
and the message as the exchange sent it. A blank line is a disconnect. A line that is not exactly that is dropped and
counted by its cause; no value is ever guessed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from hyperdapo.market.book import LEVELS, BookSnapshots, Floats, Nanoseconds, TopOfBook, Trades

CHANNELS = ("l2Book", "bbo", "trades")

STAMP_LENGTH = 28  # of 2025-09-04T19:46:56.8699350Z
_SECOND, _NS_PER_MS = 1_000_000_000, 1_000_000

_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=(2**63 - 1) // _NS_PER_MS)]


class _Level(msgspec.Struct, gc=False):
    px: float
    sz: float


class _BookData(msgspec.Struct, gc=False):
    coin: str
    time: _Milliseconds
    levels: tuple[list[_Level], list[_Level]]


class _QuoteData(msgspec.Struct, gc=False):
    coin: str
    time: _Milliseconds
    bbo: tuple[_Level | None, _Level | None]


class _Print(msgspec.Struct, gc=False):
    coin: str
    side: Literal["A", "B"]
    px: float
    sz: float
    time: _Milliseconds
    tid: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _BookMessage(msgspec.Struct, gc=False, tag_field="channel", tag="l2Book"):
    data: _BookData


class _QuoteMessage(msgspec.Struct, gc=False, tag_field="channel", tag="bbo"):
    data: _QuoteData


class _TradesMessage(msgspec.Struct, gc=False, tag_field="channel", tag="trades"):
    data: list[_Print]


class _AnyMessage(msgspec.Struct):
    channel: str


_Message = _BookMessage | _QuoteMessage | _TradesMessage

_decode = msgspec.json.Decoder(_Message, strict=False).decode
_decode_any = msgspec.json.Decoder(_AnyMessage).decode


@dataclass(frozen=True)
class Slice:
    """What one slice holds of one coin, in the order received; nothing is judged yet.

    `book_connection` (n,) numbers the connection over which each book came; `backfill` (n,) marks prints that belong to
    the first `trades` message of a connection, which repeats old trades.
    """

    book: BookSnapshots
    book_connection: NDArray[np.int64]
    bbo: TopOfBook
    trades: Trades
    backfill: NDArray[np.bool_]


class Decoder:
    """Decodes the slices of one coin in time order, and remembers the connection from one slice to the next.

    Attributes
    ----------
    messages : count of well-formed messages of the coin, by channel.
    dropped : count of lines (prints, within `trades`) that were dropped, by cause.
    connection : number of disconnects so far.
    ended_ns : for each connection that a disconnect ended, `local_ns` of its last message.
    last_ns : `local_ns` of the last message of any channel, 0 before the first.
    """

    def __init__(self, coin: str) -> None:
        self.coin = coin
        self.messages: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.connection = 0
        self.ended_ns: dict[int, int] = {}
        self.last_ns = 0
        self._heard, self._backfill_due = False, True

    def decode(self, content: bytes, start_ns: int, end_ns: int) -> Slice:
        """Decode the decompressed lines of a slice that covers `start_ns` <= `local_ns` < `end_ns`.

        Lines are dropped as `malformed` (not a stamp and a native message), `other_channel`, `other_coin`,
        `outside_slice` (received at a time that the slice does not cover), `time_goes_back` (received before the line
        above it), `l2Book_too_deep` (more than 20 levels a side), `bbo_one_sided`.
        """
        books: list[tuple[int, int, _BookData]] = []
        quotes: list[tuple[int, _QuoteData]] = []
        prints: list[tuple[int, bool, _Print]] = []
        for line in content.removesuffix(b"\n").split(b"\n") if content else ():
            if len(line) <= 1:
                self._disconnect()
                continue
            local_ns, message = local_time(line[:STAMP_LENGTH]), _native(line[STAMP_LENGTH:])
            if local_ns is None or message is None:
                self.dropped["other_channel" if _is_other_channel(line[STAMP_LENGTH:]) else "malformed"] += 1
            elif not start_ns <= local_ns < end_ns:
                self.dropped["outside_slice"] += 1
            elif local_ns < self.last_ns:
                self.dropped["time_goes_back"] += 1
            else:
                self.last_ns, self._heard = local_ns, True
                if isinstance(message, _BookMessage):
                    self._take_book(local_ns, message.data, books)
                elif isinstance(message, _QuoteMessage):
                    self._take_quote(local_ns, message.data, quotes)
                else:
                    self._take_prints(local_ns, message.data, prints)
        connections = np.array([connection for _, connection, _ in books], dtype=np.int64)
        backfill = np.array([flag for _, flag, _ in prints], dtype=bool)
        return Slice(_books(books), connections, _quotes(quotes), _trades(prints), backfill)

    def _disconnect(self) -> None:
        if self._heard:
            self.ended_ns[self.connection] = self.last_ns
            self.connection += 1
        self._heard, self._backfill_due = False, True

    def _take_book(self, local_ns: int, data: _BookData, books: list[tuple[int, int, _BookData]]) -> None:
        if data.coin != self.coin:
            self.dropped["other_coin"] += 1
        elif max(map(len, data.levels)) > LEVELS:
            self.dropped["l2Book_too_deep"] += 1
        else:
            self.messages["l2Book"] += 1
            books.append((local_ns, self.connection, data))

    def _take_quote(self, local_ns: int, data: _QuoteData, quotes: list[tuple[int, _QuoteData]]) -> None:
        if data.coin != self.coin:
            self.dropped["other_coin"] += 1
        elif None in data.bbo:
            self.messages["bbo"] += 1
            self.dropped["bbo_one_sided"] += 1
        else:
            self.messages["bbo"] += 1
            quotes.append((local_ns, data))

    def _take_prints(self, local_ns: int, data: list[_Print], prints: list[tuple[int, bool, _Print]]) -> None:
        ours = [row for row in data if row.coin == self.coin]
        if len(ours) < len(data):
            self.dropped["other_coin"] += len(data) - len(ours)
        if ours:
            self.messages["trades"] += 1
            prints.extend((local_ns, self._backfill_due, row) for row in ours)
            self._backfill_due = False


def local_time(stamp: bytes) -> int | None:
    """Nanoseconds UTC of `2025-09-04T19:46:56.8699350Z`, or None where `stamp` is not of that form."""
    fraction = stamp[20:27]
    if len(stamp) != STAMP_LENGTH or stamp[19:20] != b"." or stamp[27:] != b"Z" or not fraction.isdigit():
        return None
    second = _whole_second(stamp[:19])
    return None if second is None else second * _SECOND + int(fraction) * 100


@lru_cache(maxsize=1024)
def _whole_second(stamp: bytes) -> int | None:
    try:
        moment = datetime.fromisoformat(stamp.decode("ascii"))
    except ValueError:
        return None
    return int(moment.replace(tzinfo=UTC).timestamp()) if moment.tzinfo is None else None


def _native(text: bytes) -> _Message | None:
    try:
        message: _Message = _decode(text)
        return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_other_channel(text: bytes) -> bool:
    try:
        return _decode_any(text).channel not in CHANNELS
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _books(rows: Sequence[tuple[int, int, _BookData]]) -> BookSnapshots:
    data = [book for _, _, book in rows]
    bids, asks = [book.levels[0] for book in data], [book.levels[1] for book in data]
    local_ns = np.array([local for local, _, _ in rows], dtype=np.int64)
    return BookSnapshots(_exchange_ns(data), local_ns, *_grid(bids), *_grid(asks))


def _grid(sides: Sequence[Sequence[_Level]]) -> tuple[Floats, Floats]:
    """Prices and sizes (n, 20), NaN beyond the visible."""
    visible = np.arange(LEVELS) < np.array([len(side) for side in sides], dtype=np.int64).reshape(-1, 1)
    price, size = np.full(visible.shape, np.nan), np.full(visible.shape, np.nan)
    price[visible] = _sent([level.px for side in sides for level in side])
    size[visible] = _sent([level.sz for side in sides for level in side])
    return price, size


def _sent(values: Sequence[float]) -> Floats:
    """Values as they were sent, but a NaN becomes infinite, to be told from what is beyond the visible."""
    array = np.array(values, dtype=float)
    return np.where(np.isnan(array), np.inf, array)


def _quotes(rows: Sequence[tuple[int, _QuoteData]]) -> TopOfBook:
    data = [quote for _, quote in rows]
    levels = _sent([value for q in data for side in q.bbo if side for value in (side.px, side.sz)])
    local_ns = np.array([local for local, _ in rows], dtype=np.int64)
    return TopOfBook(_exchange_ns(data), local_ns, *np.ascontiguousarray(levels.reshape(-1, 4).T))


def _trades(rows: Sequence[tuple[int, bool, _Print]]) -> Trades:
    data = [row for _, _, row in rows]
    return Trades(
        exchange_ns=_exchange_ns(data),
        local_ns=np.array([local for local, _, _ in rows], dtype=np.int64),
        price=np.array([row.px for row in data], dtype=float),
        size=np.array([row.sz for row in data], dtype=float),
        side=np.array([1 if row.side == "B" else -1 for row in data], dtype=np.int8),
        tid=np.array([row.tid for row in data], dtype=np.int64),
    )


def _exchange_ns(data: Sequence[_BookData | _QuoteData | _Print]) -> Nanoseconds:
    return np.array([row.time for row in data], dtype=np.int64) * _NS_PER_MS
