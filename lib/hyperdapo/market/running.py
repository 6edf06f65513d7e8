"""The features of `market.features`, row by row, while messages come in.

A row is computed by the same functions from the same numbers, so it equals that of the whole market to the last digit
that a sum in the same order can promise. What is kept is bounded: the windows of the features, the sizes of the prints
of `features.large_trade_window_s` in order, the state of the normaliser, and so much of each channel as is asked for.
"""

from bisect import bisect_left, insort
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from hyperdapo.market.book import Market
from hyperdapo.market.columns import (
    BPS,
    LEVELS,
    BookSnapshots,
    Contexts,
    Floats,
    Nanoseconds,
    TopOfBook,
    Trades,
    first_level,
)
from hyperdapo.market.features import (
    LARGE_QUANTILE,
    MOMENTUM_S,
    NAMES,
    SCALED,
    Normaliser,
    between,
    book_sums,
    cold_because,
    return_deviation,
    sum_prints,
    trade_ratios,
)
from hyperdapo.market.rolling import Rolling
from hyperdapo.market.usable import merge
from hyperdapo.params import Parameters
from hyperdapo.times import MINUTE_NS, SECOND_NS, Span

_SUMS = 6  # of `features.print_sums`
_MINUTES_OF_A_DAY = 1440


class Quotes(NamedTuple):
    """The newest best quotes: times in ns, prices in USD, sizes in coin; NaN and 0 before the first."""

    exchange_ns: int
    local_ns: int
    bid_price: float
    bid_size: float
    ask_price: float
    ask_size: float

    @property
    def mid(self) -> float:
        return (self.bid_price + self.ask_price) / 2


_NO_QUOTES = Quotes(0, 0, *(float("nan"),) * 4)
_NO_BOOK = BookSnapshots(*(np.zeros(1, np.int64),) * 2, *(np.full((1, LEVELS), np.nan),) * 4)


class Running:
    """One asset's market up to now: clean messages in, rows of features and recent messages out.

    Messages are given in the order received; a row at t is asked when all of `local_ns` <= t have been given.

    Attributes
    ----------
    top : the newest best quotes
    book : the newest `l2Book`, one row
    gaps : intervals without trustworthy data that have ended, in order, those that touch as one; old ones are forgotten
    """

    def __init__(self, parameters: Parameters, asset: str, keep_s: float) -> None:
        """`keep_s` is how far back `market` reaches."""
        self._asset, self._sz_decimals = asset, parameters.contracts[asset].sz_decimals
        self._settings, self._max_gap_s = parameters.features, parameters.clean.max_gap_s
        self._keep_ns = round(keep_s * SECOND_NS)
        self._window_ns = round(self._settings.window_s * SECOND_NS)
        self._large_window_ns = round(self._settings.large_trade_window_s * SECOND_NS)
        self._normaliser = Normaliser(self._settings.normalisation_s)
        self.top, self.book, self.gaps = _NO_QUOTES, _NO_BOOK, list[Span]()
        self._top_is_quote = False
        self._begins_ns = self._since_ns = self._whole_ns = 0
        self._tops, self._books, self._quotes = Rolling(TopOfBook), Rolling(BookSnapshots), Rolling(TopOfBook)
        self._trades, self._contexts = Rolling(Trades), Rolling(Contexts)
        self._hour = deque[tuple[int, float]]()  # when each print of the longer window came, and its size
        self._sizes = list[float]()  # the same sizes, in order
        self._volume, self._minutes, self._minute = 0.0, 0, -1

    @property
    def begins_ns(self) -> int:
        """When the first book or quote came; 0 before."""
        return self._begins_ns

    def add_book(self, book: BookSnapshots) -> None:
        """One snapshot (1, 20)."""
        self._books.append(book)
        if book.exchange_ns[0] >= self.book.exchange_ns[0]:
            self.book = book
        self._show(first_level(book), is_quote=False)

    def add_quotes(self, quotes: TopOfBook) -> None:
        """One best quote (1,)."""
        self._quotes.append(quotes)
        self._show(quotes, is_quote=True)

    def add_prints(self, trades: Trades) -> None:
        """The prints of one message (n,)."""
        self._trades.append(trades)
        sizes = trades.size.tolist()
        self._hour.extend(zip(trades.local_ns.tolist(), sizes, strict=True))
        for size in sizes:
            insort(self._sizes, size)
        self._volume += float(trades.size.sum())
        self._count_minute(int(trades.local_ns[-1]))

    def add_context(self, context: Contexts) -> None:
        """One update (1,)."""
        self._contexts.append(context)
        self._count_minute(int(context.local_ns[0]))

    def add_gap(self, from_ns: int, to_ns: int) -> None:
        """An interval without trustworthy data, which the book of `to_ns` has ended."""
        self.gaps = merge([*self.gaps, (from_ns, to_ns)])
        begun_ns, self._whole_ns = self.gaps[-1]
        if self._whole_ns - begun_ns > self._max_gap_s * SECOND_NS:
            self._since_ns = self._whole_ns

    def row(self, ns: int) -> dict[str, Any]:
        """The row of `compute_features` at an instant, after the last one that was asked; no split is known ("")."""
        self._forget(ns)
        top, mid = self.top, np.array([self.top.mid])
        raw = book_sums(self.book, mid) | self._trade_features(ns, mid) | self._price_features(ns, mid)
        raw["bid_ask_spread_bps"] = (top.ask_price - top.bid_price) / mid * BPS
        state: dict[str, Any] = {"mid": top.mid, "best_bid": top.bid_price, "best_ask": top.ask_price}
        state |= {"bid_size": top.bid_size, "ask_size": top.ask_size}
        state["visible_depth_bps"] = raw["visible_depth_bps"].item()
        values, since = np.array([[raw[name][0] for name in NAMES]]), np.array([self._since_ns or self._begins_ns])
        cold = self._cold_because(ns, since, raw["trade_volume_5m"], bool(np.isfinite([*mid, *values[0]]).all()))
        scores = self._normaliser.scores(values, np.array([ns]), since)
        state = {"asset": self._asset, "decision_ns": ns} | state
        state |= {"warm": not cold, "cold_because": cold, "split": ""}
        return state | dict(zip((*NAMES, *SCALED), [*values[0].tolist(), *scores[0].tolist()], strict=True))

    def market(self, since_ns: int | None, open_gap: Span | None = None) -> Market:
        """Messages from an instant on, at least one of each channel before it; `open_gap` has not ended yet."""
        gaps = self.gaps if open_gap is None else merge([*self.gaps, open_gap])
        return Market(
            asset=self._asset,
            sz_decimals=self._sz_decimals,
            book=self._books.since(since_ns),
            bbo=self._quotes.since(since_ns),
            trades=self._trades.since(since_ns),
            gaps=np.array(gaps, dtype=np.int64).reshape(-1, 2),
            context=self._contexts.since(since_ns),
            begins_ns=self._begins_ns,
            daily_volume=self._volume * _MINUTES_OF_A_DAY / max(self._minutes, 1),
        )

    def _show(self, quotes: TopOfBook, is_quote: bool) -> None:
        """Best quotes become those that are known, if none of those is newer.

        Of a book and a quote of one stamp, received in the same ns, the quote counts, as in `Market.top`.
        """
        ns = int(quotes.local_ns[0])
        self._begins_ns = self._begins_ns or ns
        self._count_minute(ns)
        stamp, top = int(quotes.exchange_ns[0]), self.top
        yields = not is_quote and self._top_is_quote and top.local_ns == ns
        if stamp > top.exchange_ns or (stamp == top.exchange_ns and not yields):
            self.top, self._top_is_quote = Quotes(*(column[0].item() for column in vars(quotes).values())), is_quote
            self._tops.append(quotes)

    def _count_minute(self, ns: int) -> None:
        """V of eq. 2.4 is counted over the minutes in which anything came, see `quality.daily_volume`."""
        if ns // MINUTE_NS != self._minute:
            self._minute = ns // MINUTE_NS
            self._minutes += 1

    def _forget(self, ns: int) -> None:
        self._tops.forget(ns - max(self._window_ns, MOMENTUM_S * SECOND_NS))
        for channel in (self._books, self._quotes, self._contexts):
            channel.forget(ns - self._keep_ns)
        self._trades.forget(ns - max(self._keep_ns, self._window_ns))
        while self._hour and self._hour[0][0] <= ns - self._large_window_ns:
            del self._sizes[bisect_left(self._sizes, self._hour.popleft()[1])]
        self.gaps = [gap for gap in self.gaps if gap[1] >= ns - self._keep_ns or gap[1] == self._since_ns]

    def _cold_because(self, ns: int, since: Nanoseconds, volume: Floats, defined: bool) -> str:
        whole, book_ns = np.array([self._whole_ns or self._begins_ns]), self.book.local_ns
        times = np.array([ns]), book_ns, since, whole
        return str(cold_because(*times, volume, np.array([defined]), self._settings, self._max_gap_s)[0])

    def _trade_features(self, ns: int, mid: Floats) -> dict[str, Floats]:
        trades, sums = self._trades.rows, np.zeros((1, _SUMS))
        begin = int(np.searchsorted(trades.local_ns, ns - self._window_ns, side="right"))
        count = len(trades.local_ns) - begin
        if count:
            place = (len(self._sizes) - 1) * LARGE_QUANTILE
            below = int(place)
            low, high = self._sizes[below], self._sizes[min(below + 1, len(self._sizes) - 1)]
            threshold = between(low, high, place - below)
            sum_prints(begin, begin + count, trades.price, trades.size, trades.side, mid[0], threshold, sums[0])
        return trade_ratios(sums, np.array([count]), mid, self._settings.window_s)

    def _price_features(self, ns: int, mid: Floats) -> dict[str, Floats]:
        known = self._tops.rows
        mids, newest = known.mid, np.array([len(known.local_ns) - 1])
        steps = int(self._settings.window_s)
        deviation = return_deviation(newest, np.array([ns]), known.local_ns, np.log(mids), steps, SECOND_NS)

        def moved(before_ns: int) -> Floats:
            row = int(np.searchsorted(known.local_ns, ns - before_ns, side="right")) - 1
            return (mid / (mids[row] if row >= 0 else np.nan) - 1) * BPS

        return {
            "volatility_5m_bps": deviation * BPS,
            "momentum_1m_bps": moved(MOMENTUM_S * SECOND_NS),
            "momentum_5m_bps": moved(self._window_ns),
        }
