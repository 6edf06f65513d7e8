"""What is known of a market while its messages come: each is judged by itself, and features are there at once.

`clean` judges an hour of messages together, `market.features` computes tables; this does the same one by one, with the
same functions, so that a live session knows what a backtest of its recording knows (`tests/test_stream.py`). Where the
two can differ is where the cleaner looks ahead:

- books of another depth or rounding, and books off the `bbo` of their stamp: see `streams.Judge`, whose `hindsight`
  counts the books that counted here and that a later message spoke against;
- stamps of the receiver that fall: here whatever is stamped before a message that came before is dropped
  (`time_goes_back`), while the cleaner drops the fewest messages, be it one that is stamped too late;
- between two gaps that touch, a single book apart, the cleaner sees one long gap: here the first has ended.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np

from hyperdapo.errors import DataError
from hyperdapo.feed.clean import REPEATED_WITHIN_NS, book_faults, context_faults, print_faults
from hyperdapo.feed.messages import book_rows, context_rows, print_rows, quote_rows, stream_of
from hyperdapo.feed.streams import Judge
from hyperdapo.market.book import Market
from hyperdapo.market.columns import LEVELS, Mask, select
from hyperdapo.market.native import (
    BookData,
    BookMessage,
    Context,
    Message,
    Print,
    QuoteData,
    QuoteMessage,
    TradesMessage,
)
from hyperdapo.market.running import Quotes, Running
from hyperdapo.params import Parameters
from hyperdapo.times import MINUTE_NS, SECOND_NS, Span

_ROWS = 64  # so many of the latest rows can be asked for again
_SPARE_S = 5 * MINUTE_NS / SECOND_NS  # by which recent messages reach back beyond the longest order and its windows


class Stream:
    """What is known of one asset's market, message by message.

    The receiver's stamps must not fall, and features at t be asked when no message of t or before can come any more.
    Memory is bounded: the windows of the features, and the messages of some minutes more than the longest order lives.

    Parameters
    ----------
    parameters : of them `clean`, `features`, the horizons and mark-outs of `orders`, and the asset's contract count

    Attributes
    ----------
    kept : messages that counted, by channel; of trades, prints
    dropped : messages (prints) that did not, by cause, as the cleaning report names it
    hindsight : books that counted, and against which a later message spoke, by cause
    """

    def __init__(self, parameters: Parameters, asset: str) -> None:
        orders, features = parameters.orders, parameters.features
        self.kept: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._asset = asset
        self._step_ns = round(features.decision_interval_s * SECOND_NS)
        self._max_gap_ns = round(parameters.clean.max_gap_s * SECOND_NS)
        keep_s = orders.longest_horizon_s + max(orders.markouts_s) + features.window_s + _SPARE_S
        self._running = Running(parameters, asset, keep_s)
        self._judge = Judge(parameters.contracts[asset].sz_decimals, self._max_gap_ns)
        self.hindsight = self._judge.hindsight
        self._seen = {channel: _Seen() for channel in ("l2Book", "bbo", "trades", "activeAssetCtx")}
        self._quoted: OrderedDict[int, set[tuple[float, float]]] = OrderedDict()  # best prices by the stamp of the bbo
        self._last_ns = self._passed_ns = 0  # of the last message; what time has passed for good
        self._heard, self._opening = False, True  # anything over this connection; no trades message over it yet
        self._connection = self._book_connection = 0
        self._last_book_ns = self._ended_ns = 0  # of the last book that counted, and of the end of its connection
        self._rows: dict[int, dict[str, Any]] = {}
        self._next_ns = 0  # of the next row; 0 before the first message

    @property
    def top(self) -> Quotes:
        """The newest best quotes."""
        return self._running.top

    @property
    def book_ns(self) -> int:
        """When the newest book was received; 0 before the first."""
        return int(self._running.book.local_ns[0])

    @property
    def last_ns(self) -> int:
        """When the last message was received, counted or not."""
        return self._last_ns

    def receive(self, message: Message, local_ns: int) -> str:
        """Take in a message that was received at `local_ns`.

        Returns
        -------
        "" if it counts (of trades: any print), else the cause for which it does not: `other_coin`, `time_goes_back`,
        `l2Book_too_deep`, `bbo_one_sided`, or a channel and a fault of `clean`, such as `l2Book_crossed`.
        """
        if local_ns < self._last_ns or local_ns <= self._passed_ns:
            return self._drop("time_goes_back")
        self._compute_rows(local_ns - 1)
        self._last_ns, self._heard = local_ns, True
        if isinstance(message, TradesMessage):
            return self._prints(message.data, local_ns)
        if message.data.coin != self._asset:
            return self._drop("other_coin")
        if isinstance(message, BookMessage):
            return self._drop(self._book(message.data, local_ns))
        if isinstance(message, QuoteMessage):
            return self._drop(self._quote(message.data, local_ns))
        return self._drop(self._context(message.data.ctx, local_ns))

    def disconnected(self, ns: int) -> None:
        """The connection was lost, as was noticed at `ns`: what was missed begins with the last message before."""
        self._passed_ns = max(self._passed_ns, ns - 1)
        self._opening = True
        if self._heard:
            if self._connection == self._book_connection:
                self._ended_ns = self._last_ns
            self._connection += 1
        self._heard = False

    def features(self, ns: int) -> dict[str, Any]:
        """The row of `features.parquet` at a decision time, one of the latest 64; its split is not known ("").

        Raises
        ------
        DataError
            If `ns` is not a multiple of `features.decision_interval_s`, lies before the first book or quote, or too far
            back.
        """
        if ns % self._step_ns:
            raise DataError(f"{self._asset}: {ns} is no decision time, which come every {self._step_ns} ns")
        self._compute_rows(ns)
        self._passed_ns = max(self._passed_ns, ns)
        if ns not in self._rows:
            raise DataError(f"{self._asset}: nothing is known of {ns}: before the first message, or too long ago")
        return self._rows[ns]

    def market(self, since_ns: int | None = None) -> Market:
        """What counts of the messages since an instant, and of each channel one before; at most what is kept."""
        last_ns, book_ns = self._last_ns, self._last_book_ns
        return self._running.market(since_ns, self._gap_until(last_ns) if book_ns else None)

    def _compute_rows(self, ns: int) -> None:
        """The rows at all decision times up to an instant: the normaliser sees each."""
        if not self._running.begins_ns:
            return
        self._next_ns = self._next_ns or -(-self._running.begins_ns // self._step_ns) * self._step_ns
        while self._next_ns <= ns:
            self._rows[self._next_ns] = self._running.row(self._next_ns)
            self._rows.pop(self._next_ns - _ROWS * self._step_ns, None)
            self._next_ns += self._step_ns

    def _book(self, data: BookData, local_ns: int) -> str:
        if max(map(len, data.levels)) > LEVELS:
            return "l2Book_too_deep"
        book = book_rows([data], np.array([local_ns]))
        fault = _first(book_faults(book))
        if not fault:
            key = tuple(column.tobytes() for column in (book.bid_price, book.bid_size, book.ask_price, book.ask_size))
            again = self._seen["l2Book"].again((data.time, *key), local_ns)
            quoted = self._quoted.get(int(book.exchange_ns[0]), set())
            fault = "repeated" if again else self._judge.fault(book, stream_of(data), quoted)
        if fault:
            return f"l2Book_{fault}"
        if self._last_book_ns and (gap := self._gap_until(local_ns)):
            self._running.add_gap(*gap)
        self._last_book_ns, self._book_connection = local_ns, self._connection
        self._running.add_book(book)
        return self._keep("l2Book")

    def _gap_until(self, ns: int) -> Span | None:
        """What a book at `ns` ends: a silence of books longer than allowed, or a lost connection."""
        silent = ns - self._last_book_ns > self._max_gap_ns
        from_ns = self._last_book_ns if silent else self._ended_ns
        lost = self._connection != self._book_connection
        return (from_ns, ns) if (silent or lost) and from_ns < ns else None

    def _quote(self, data: QuoteData, local_ns: int) -> str:
        if None in data.bbo:
            return "bbo_one_sided"
        quotes = quote_rows([data], np.array([local_ns]))
        fault = _first(book_faults(quotes))
        values = tuple(column[0].item() for column in vars(quotes).values())
        stamp, _, bid_price, bid_size, ask_price, ask_size = values
        if not fault and self._seen["bbo"].again((stamp, bid_price, bid_size, ask_price, ask_size), local_ns):
            fault = "repeated"
        if fault:
            return f"bbo_{fault}"
        self._judge.quote(stamp, (bid_price, ask_price))
        self._quoted.setdefault(stamp, set()).add((bid_price, ask_price))
        while next(iter(self._quoted)) < local_ns - REPEATED_WITHIN_NS:
            self._quoted.popitem(last=False)
        self._running.add_quotes(quotes)
        return self._keep("bbo")

    def _prints(self, data: list[Print], local_ns: int) -> str:
        ours = [one for one in data if one.coin == self._asset]
        if len(ours) < len(data):
            self.dropped["other_coin"] += len(data) - len(ours)
        if not ours:
            return "other_coin" if data else ""
        trades = print_rows(ours, np.full(len(ours), local_ns))
        backfill, self._opening = self._opening, False
        faults = print_faults(trades)
        causes = [_first(faults, row) for row in range(len(ours))]
        for row, one in enumerate(ours):
            again = not causes[row] and self._seen["trades"].again((one.time, one.tid), local_ns)
            causes[row] = "backfill" if backfill else "repeated" if again else causes[row]
        self.dropped.update(f"trades_{cause}" for cause in causes if cause)
        kept = np.flatnonzero([not cause for cause in causes])
        if not len(kept):
            return f"trades_{causes[0]}"
        self._running.add_prints(select(trades, kept))
        return self._keep("trades", len(kept))

    def _context(self, data: Context, local_ns: int) -> str:
        context = context_rows([data], np.array([local_ns]))
        fault = _first(context_faults(context))
        values = tuple(column[0].item() for column in vars(context).values())
        if not fault and self._seen["activeAssetCtx"].again(values, local_ns):
            fault = "repeated"
        if fault:
            return f"activeAssetCtx_{fault}"
        self._running.add_context(context)
        return self._keep("activeAssetCtx")

    def _keep(self, channel: str, count: int = 1) -> str:
        self.kept[channel] += count
        return ""

    def _drop(self, cause: str) -> str:
        """Count a cause, where there is one."""
        if cause:
            self.dropped[cause] += 1
        return cause


class _Seen:
    """What came lately, and whether it comes again: of one stamp of the exchange, so within `REPEATED_WITHIN_NS`."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Hashable, int] = OrderedDict()  # with the time when each was received first

    def again(self, key: Hashable, ns: int) -> bool:
        """Whether a key has come before; if not, it has now."""
        while self._keys and next(iter(self._keys.values())) < ns - REPEATED_WITHIN_NS:
            self._keys.popitem(last=False)
        known = key in self._keys
        self._keys.setdefault(key, ns)
        return known


def _first(faults: dict[str, Mask], row: int = 0) -> str:
    """The first cause that holds of a row, "" where none does."""
    return next((cause for cause, faulty in faults.items() if faulty[row]), "")
