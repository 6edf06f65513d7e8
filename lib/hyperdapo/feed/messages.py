"""Native Hyperliquid messages, as Tardis replays them, to columns.

A line is a stamp and a message (`native`); a blank line is a disconnect. A line that is not exactly that is dropped and
counted by its cause; no value is ever guessed. Lines in the exchange's spelling are read by `scanner`, which is fast,
and all others by `native`, which is strict; their rows are then put in the order of the lines.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hyperdapo.feed.scanner import Scan, compact, scan
from hyperdapo.market.columns import (
    LEVELS,
    BookSnapshots,
    Columns,
    Contexts,
    Floats,
    Integers,
    Mask,
    Nanoseconds,
    TopOfBook,
    Trades,
    concatenate,
    select,
)
from hyperdapo.market.native import (
    BookData,
    BookMessage,
    Context,
    ContextMessage,
    Level,
    Message,
    Print,
    QuoteData,
    QuoteMessage,
    TradesMessage,
    is_other_channel,
    local_times,
    native,
    stamp_length,
)
from hyperdapo.times import MS_NS

_FEW_ODD = 20  # with less than one line of so many that is not regular, it is not looked into why
_BATCH = 2**20  # bytes decoded at once: what is made of them stays in the processor's cache

WHOLE, FAST, AGGREGATED = range(3)
"""Books that a subscription to `l2Book` can ask for: `fast` has 5 levels a side, `nSigFigs` rounds the prices."""
_Kind = TypeVar("_Kind", BookMessage, QuoteMessage, ContextMessage)


@dataclass(frozen=True)
class Slice:
    """What one slice holds of one coin, in the order received; nothing is judged yet.

    `book_connection` (n,) numbers the connection over which each book came, `book_stream` (n,) says which of the
    exchange's books it calls itself (`WHOLE`, `FAST` or `AGGREGATED`); `backfill` (n,) marks prints that belong to the
    first `trades` message of a connection, which repeats old trades.
    """

    book: BookSnapshots
    book_connection: Integers
    book_stream: NDArray[np.int8]
    bbo: TopOfBook
    trades: Trades
    backfill: Mask
    context: Contexts

    @classmethod
    def joined(cls, parts: Sequence["Slice"]) -> "Slice":
        """Slices of one decoder, one after the other."""
        return cls(
            concatenate([part.book for part in parts]),
            np.concatenate([part.book_connection for part in parts]),
            np.concatenate([part.book_stream for part in parts]),
            concatenate([part.bbo for part in parts]),
            concatenate([part.trades for part in parts]),
            np.concatenate([part.backfill for part in parts]),
            concatenate([part.context for part in parts]),
        )


@dataclass(frozen=True)
class _Read:
    """A text of n lines, read; `local_ns` (n,) is -1 for a line that is no message of ours, `blank` (n,) a disconnect.

    `rows` are the lines that the scanner left and msgspec read as `messages`.
    """

    scan: Scan
    rows: Integers
    messages: list[Message]
    local_ns: Nanoseconds
    blank: Mask


@dataclass(frozen=True)
class _Received:
    """A text of n lines: what was read of those in the regular spelling, and the messages of the others.

    `counts` (n,) says which lines count, `local_ns` (n,) when each came; `connection` (n,) numbers the connection over
    which it came, `session` (n,) counts all blank lines before it. `rows` are the lines of `messages`, which all count.
    """

    scan: Scan
    rows: Integers
    messages: list[Message]
    counts: Mask
    local_ns: Nanoseconds
    connection: Integers
    session: Integers


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
        self._heard = False
        self._sessions, self._opened = 0, -1  # blank lines so far; those before the last opening `trades` message

    def decode(self, content: bytes, start_ns: int, end_ns: int) -> Slice:
        """Decode the decompressed lines of a slice that covers `start_ns` <= `local_ns` < `end_ns`.

        Lines are dropped as `malformed` (not a stamp and a native message), `other_channel`, `other_coin`,
        `outside_slice` (received at a time that the slice does not cover), `l2Book_too_deep` (more than 20 levels a
        side), `bbo_one_sided`. Where stamps of a slice fall, the fewest lines are dropped that leave the others in
        order: as `time_jumps_ahead` (a stamp later than those of lines below) or `time_goes_back` (earlier than one
        above), so that a stamp that is wrong by itself costs its own message only.
        """
        return self.judge(scanned(content, self.coin), start_ns, end_ns)

    def judge(self, texts: Sequence[tuple[bytes, Scan]], start_ns: int, end_ns: int) -> Slice:
        """The same of lines that `scanned` has read already."""
        received = self._receive([self._read(*text) for text in texts], start_ns, end_ns)
        return Slice.joined([self._slice(text) for text in received])

    def _slice(self, received: _Received) -> Slice:
        book, connection, stream = self._books(received)
        trades, backfill = self._trades(received)
        return Slice(book, connection, stream, self._quotes(received), trades, backfill, self._contexts(received))

    def _read(self, text: bytes, scan: Scan) -> _Read:
        """Read what the scanner left, and count what is no message of ours."""
        begin, local_ns, blank = scan.begin, scan.local_ns, np.diff(scan.begin) <= 2  # its newline, and one byte
        odd = np.flatnonzero((local_ns < 0) & ~blank)
        lines = [
            text[first:last] for first, last in zip(begin[odd].tolist(), (begin[odd + 1] - 1).tolist(), strict=True)
        ]
        messages = [native(line[stamp_length(line) :]) for line in lines]
        local_ns[odd] = np.where([message is not None for message in messages], local_times(lines), -1)
        for line in compress(lines, local_ns[odd] < 0):
            self.dropped["other_channel" if is_other_channel(line[stamp_length(line) :]) else "malformed"] += 1
        rows = odd[local_ns[odd] >= 0]
        ours = [message for message, ns in zip(messages, local_ns[odd].tolist(), strict=True) if message and ns >= 0]
        return _Read(scan, rows, ours, local_ns, blank)

    def _receive(self, texts: Sequence[_Read], start_ns: int, end_ns: int) -> Iterator[_Received]:
        """Judge when each line of a slice came, and follow the connection through it all."""
        local_ns = np.concatenate([text.local_ns for text in texts])
        ours = local_ns >= 0
        inside = ours & (local_ns >= start_ns) & (local_ns < end_ns)
        taken = inside & (local_ns >= self.last_ns)
        taken[taken] = in_order(local_ns[taken])
        latest = np.maximum.accumulate(np.where(taken, local_ns, self.last_ns))
        ahead = inside & ~taken & (local_ns >= latest)
        self._drop("outside_slice", int((ours & ~inside).sum()))
        self._drop("time_jumps_ahead", int(ahead.sum()))
        self._drop("time_goes_back", int((inside & ~taken & ~ahead).sum()))
        ends = np.cumsum([len(text.blank) for text in texts])[:-1]
        for text, counts, until in zip(texts, np.split(taken, ends), np.split(latest, ends), strict=True):
            connection, session = self._follow(text.blank, counts, until), self._sessions + np.cumsum(text.blank)
            if len(counts):
                self.last_ns, self._sessions = int(until[-1]), int(session[-1])
            kept = list(compress(text.messages, counts[text.rows]))
            rows = text.rows[counts[text.rows]]
            yield _Received(text.scan, rows, kept, counts, text.local_ns, connection, session)

    def _follow(self, blank: Mask, taken: Mask, latest: Nanoseconds) -> Integers:
        """The connection of each line (n,): a blank line ends one over which anything was heard."""
        connection = np.full(len(blank), self.connection)
        begin = 0
        for row in np.flatnonzero(blank):
            if self._heard or taken[begin:row].any():
                self.ended_ns[self.connection] = int(latest[row])
                self.connection += 1
            connection[row:] = self.connection
            self._heard, begin = False, int(row)
        self._heard = bool(self._heard or taken[begin:].any())
        return connection

    def _drop(self, cause: str, count: int) -> None:
        if count:
            self.dropped[cause] += count

    def _ours(self, received: _Received, kind: type[_Kind]) -> tuple[Integers, list[_Kind]]:
        """Lines and messages of one kind about our coin that are not read yet; those about others are counted."""
        among = [isinstance(message, kind) for message in received.messages]
        messages = [message for message in received.messages if isinstance(message, kind)]
        ours = [message.data.coin == self.coin for message in messages]
        self._drop("other_coin", len(ours) - sum(ours))
        return received.rows[among][ours], list(compress(messages, ours))

    def _books(self, received: _Received) -> tuple[BookSnapshots, Integers, NDArray[np.int8]]:
        odd, messages = self._ours(received, BookMessage)
        fits = [max(map(len, message.data.levels)) <= LEVELS for message in messages]
        odd, data = odd[fits], [message.data for message in compress(messages, fits)]
        self._drop("l2Book_too_deep", len(fits) - len(data))
        kept = received.counts[received.scan.book[:, 0]]
        lines, ms = received.scan.book[kept].T
        self.messages["l2Book"] += len(lines) + len(data)
        levels = (received.scan.levels[kept, column] for column in range(4))
        regular = BookSnapshots(ms * MS_NS, received.local_ns[lines], *levels)
        book, lines = _merged(lines, regular, odd, book_rows(data, received.local_ns[odd]))
        stream = np.full(len(lines), WHOLE, dtype=np.int8)
        stream[np.searchsorted(lines, odd)] = [stream_of(one) for one in data]
        return book, received.connection[lines], stream

    def _quotes(self, received: _Received) -> TopOfBook:
        odd, messages = self._ours(received, QuoteMessage)
        whole = [None not in message.data.bbo for message in messages]
        odd, data = odd[whole], [message.data for message in compress(messages, whole)]
        self._drop("bbo_one_sided", len(whole) - len(data))
        kept = received.counts[received.scan.quote[:, 0]]
        lines, ms = received.scan.quote[kept].T
        self.messages["bbo"] += len(lines) + len(messages)
        regular = TopOfBook(ms * MS_NS, received.local_ns[lines], *received.scan.top[kept].T.copy())
        others = quote_rows(data, received.local_ns[odd])
        return _merged(lines, regular, odd, others)[0]

    def _trades(self, received: _Received) -> tuple[Trades, Mask]:
        rows: list[int] = []
        data: list[Print] = []
        for row, prints in _printed(received):
            ours = [one for one in prints if one.coin == self.coin]
            self._drop("other_coin", len(prints) - len(ours))
            rows += [row] * len(ours)
            data += ours
        kept = received.counts[received.scan.print[:, 0]]
        lines, ms, side, tid = received.scan.print[kept].T
        price, size = received.scan.traded[kept].T
        regular = Trades(ms * MS_NS, received.local_ns[lines], price, size, side.astype(np.int8), tid)
        odd = np.array(rows, dtype=np.int64)
        others = print_rows(data, received.local_ns[odd])
        trades, lines = _merged(lines, regular, odd, others)
        return trades, self._opening(lines, received.session)

    def _opening(self, lines: Integers, session: Integers) -> Mask:
        """Which prints (n,) belong to the first `trades` message after a blank line, from the line of each (n,)."""
        messages, prints = np.unique(lines, return_counts=True)
        if not len(messages):
            return np.zeros(0, dtype=bool)
        self.messages["trades"] += len(messages)
        opening = np.diff(session[messages], prepend=self._opened) > 0
        self._opened = int(session[messages[-1]])
        return np.repeat(opening, prints)

    def _contexts(self, received: _Received) -> Contexts:
        rows, messages = self._ours(received, ContextMessage)
        self.messages["activeAssetCtx"] += len(messages)
        return context_rows([message.data.ctx for message in messages], received.local_ns[rows])


def stream_of(book: BookData) -> int:
    """Which of the exchange's books one calls itself: `WHOLE`, `FAST` or `AGGREGATED`."""
    return FAST if book.fast else WHOLE if book.spread is None else AGGREGATED


def book_rows(data: Sequence[BookData], local_ns: Nanoseconds) -> BookSnapshots:
    """n books of at most 20 levels a side, received at `local_ns` (n,)."""
    sides = (column for side in (0, 1) for column in _grid([book.levels[side] for book in data]))
    return BookSnapshots(_exchange_ns(data), local_ns, *sides)


def quote_rows(data: Sequence[QuoteData], local_ns: Nanoseconds) -> TopOfBook:
    """n best quotes of two sides, received at `local_ns` (n,)."""
    values = _sent([value for quote in data for side in quote.bbo if side for value in (side.px, side.sz)])
    return TopOfBook(_exchange_ns(data), local_ns, *values.reshape(-1, 4).T.copy())


def print_rows(data: Sequence[Print], local_ns: Nanoseconds) -> Trades:
    """n prints, received at `local_ns` (n,)."""
    return Trades(
        exchange_ns=_exchange_ns(data),
        local_ns=local_ns,
        price=np.array([one.px for one in data], dtype=float),
        size=np.array([one.sz for one in data], dtype=float),
        side=np.array([1 if one.side == "B" else -1 for one in data], dtype=np.int8),
        tid=np.array([one.tid for one in data], dtype=np.int64),
    )


def context_rows(data: Sequence[Context], local_ns: Nanoseconds) -> Contexts:
    """n updates of the perpetual, received at `local_ns` (n,)."""
    values = [(context.markPx, context.oraclePx, context.funding, context.openInterest) for context in data]
    return Contexts(local_ns, *np.array(values, dtype=float).reshape(-1, 4).T.copy())


def scanned(content: bytes, coin: str) -> list[tuple[bytes, Scan]]:
    """Texts of whole lines, together the content, and what compiled code reads in them about a coin.

    This is the part of decoding that needs to know nothing of the lines before, so slices may be scanned side by side.
    """
    return [_scanned(text, coin) for text in _batches(content)]


def _batches(content: bytes) -> Iterator[bytes]:
    """Texts of whole lines, together the content; one where it is empty."""
    begin = 0
    while True:
        end = content.rfind(b"\n", begin, begin + _BATCH) + 1 or content.find(b"\n", begin + _BATCH) + 1 or len(content)
        yield content[begin:end]
        if end == len(content):
            return
        begin = end


def _scanned(text: bytes, coin: str) -> tuple[bytes, Scan]:
    read = scan(text, coin)
    odd = np.count_nonzero(read.local_ns < 0)
    if odd * _FEW_ODD > len(read.local_ns) and b'": ' in text:  # a recorder that puts spaces between tokens
        text = compact(text)
        read = scan(text, coin)
    return text, read


def in_order(ns: Nanoseconds) -> Mask:
    """The most of the rows (n,) whose times never fall; of two that exclude each other, the first.

    A time that is not below any before it nor above any behind it stays. Among the others the longest non-decreasing
    subsequence is found by patience sorting (Fredman 1975), from the end.
    """
    stays = (ns >= np.maximum.accumulate(ns)) & (ns <= np.minimum.accumulate(ns[::-1])[::-1])
    doubtful = np.flatnonzero(~stays)
    tails, ends = list[int](), list[int]()  # of the chain of each length: its last time, negated, and that one's place
    behind = np.full(len(doubtful), -1)
    for place in range(len(doubtful) - 1, -1, -1):
        value = -int(ns[doubtful[place]])
        length = bisect_right(tails, value)
        behind[place] = ends[length - 1] if length else -1
        tails[length : length + 1], ends[length : length + 1] = [value], [place]
    place = ends[-1] if ends else -1
    while place >= 0:
        stays[doubtful[place]] = True
        place = int(behind[place])
    return stays


def _printed(received: _Received) -> Iterator[tuple[int, list[Print]]]:
    lines = zip(received.rows.tolist(), received.messages, strict=True)
    return ((row, message.data) for row, message in lines if isinstance(message, TradesMessage))


def _merged(lines: Integers, regular: Columns, odd: Integers, others: Columns) -> tuple[Columns, Integers]:
    """Rows of two kinds of lines in the order of their lines, and these lines (n,)."""
    if not len(odd):
        return regular, lines
    both = np.concatenate([lines, odd])
    order = np.argsort(both, kind="stable")
    return select(concatenate([regular, others]), order), both[order]


def _grid(sides: Sequence[Sequence[Level]]) -> tuple[Floats, Floats]:
    """Prices and sizes (n, 20), NaN beyond the visible."""
    visible = np.arange(LEVELS) < np.array([len(side) for side in sides], dtype=np.int64).reshape(-1, 1)
    price, size = np.full(visible.shape, np.nan), np.full(visible.shape, np.nan)
    price[visible] = _sent([level.px for side in sides for level in side])
    size[visible] = _sent([level.sz for side in sides for level in side])
    return price, size


def _sent(values: Sequence[float]) -> Floats:
    """Values as they were sent, but a NaN becomes infinite: NaN stands for what is beyond the visible."""
    array = np.array(values, dtype=float)
    return np.where(np.isnan(array), np.inf, array)


def _exchange_ns(data: Sequence[BookData | QuoteData | Print]) -> Nanoseconds:
    return np.array([row.time for row in data], dtype=np.int64) * MS_NS
