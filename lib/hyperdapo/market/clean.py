"""Stage 02: from raw slices to a `Market`: what is wrong is dropped and counted, what is missing becomes a gap.

What was received in an hour is cleaned and written at once, one Parquet row group, so that memory does not grow with
the span; how the client happened to cut its slices does not show.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from hyperdapo.errors import DataError
from hyperdapo.market.ahead import ahead
from hyperdapo.market.columns import BookSnapshots, Contexts, Nanoseconds, TopOfBook, Trades, take
from hyperdapo.market.days import DAY_NS, HOUR_NS, SECOND_NS, date_of
from hyperdapo.market.messages import Decoder, Slice, scanned
from hyperdapo.market.native import CHANNELS
from hyperdapo.market.quality import by_minute, daily_volume
from hyperdapo.market.slices import SliceFile
from hyperdapo.market.storage import writer
from hyperdapo.market.tardis import downloaded
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.stored import write_json, write_table

_FUNDING_CAP = 0.04  # a share per hour
_CLOCK_TOLERANCE_NS = 60 * SECOND_NS  # the recorder's clock is usually half a second after the exchange's stamp


def preprocess(parameters: Parameters, asset: str, paths: Paths) -> dict[str, Any]:
    """Write the four tables of messages, `quality.parquet`, `split.json` and `cleaning.json`; return the last.

    Returns
    -------
    The cleaning report: `daily_volume` (V of eq. 2.4, coin), `messages` decoded by channel, `prints` decoded, `kept`
    rows by table, `dropped` by cause, `gaps` (intervals of `local_ns`), `gap_s` in all, `begins_ns` and `ends_ns`
    (first and last message that was kept), `first_ns` and `last_ns` (book), `cadence_s` of `l2Book`, and `days`: for
    each its `date`, `cadence_s`, rows kept by table, and `gap_s`.

    Raises
    ------
    MissingInputError
        If 01_download has not run for this source.
    DataError
        If no valid book is left, or the span is too short to be split.
    """
    (paths.data / "cleaning.json").unlink(missing_ok=True)
    decoder, cleaner = Decoder(asset), Cleaner(parameters.clean.max_gap_s)
    minutes: list[pd.DataFrame] = []
    with writer(paths.data) as append:
        for hour in _by_hour(downloaded(parameters, asset, paths), decoder):
            clean = cleaner.clean(hour, decoder.ended_ns)
            append(*clean)
            minutes.append(by_minute(*clean))
        report = cleaner.report(decoder)
        if not report["kept"]["l2Book"]:
            raise DataError(
                f"{asset}: no valid l2Book message from {parameters.source.start} on; dropped {report['dropped']}"
            )
        split = split_span(report["first_ns"], report["last_ns"], parameters)
    observed = pd.concat(minutes, ignore_index=True)
    write_table(observed, paths.data, "quality")
    facts: dict[str, Any] = {"asset": asset, "sz_decimals": parameters.asset_facts[asset].sz_decimals}
    facts["daily_volume"] = daily_volume(observed)
    for name, content in (("split.json", split), ("cleaning.json", facts | report)):
        write_json(content, paths.data, name)
    return facts | report


def split_span(first_ns: int, last_ns: int, parameters: Parameters) -> dict[str, tuple[int, int]]:
    """Train, validation and test by time: half-open intervals of `decision_ns`, in that order.

    What comes before the first warm decision is left out. Between two parts a cut of the longest horizon and one
    feature window is taken out, so that no order and no window of one part reaches into the next; the shares hold for
    what remains.

    Raises
    ------
    DataError
        If nothing remains.
    """
    start_ns = first_ns + round(parameters.features.warmup_s * SECOND_NS)
    cut_ns = round((parameters.orders.longest_horizon_s + parameters.features.window_s) * SECOND_NS)
    left_ns = last_ns - start_ns - 2 * cut_ns
    if left_ns < 3 * parameters.features.decision_interval_s * SECOND_NS:
        needed = parameters.features.warmup_s + 2 * cut_ns / SECOND_NS
        raise DataError(
            f"{(last_ns - first_ns) / SECOND_NS:.0f} s of data are too few: warm-up and the cuts between train, "
            f"validation and test take {needed:.0f} s; give a longer source span, or shorten features.warmup_s"
        )
    train_ns = start_ns + int(left_ns * parameters.split.train)
    validation_ns = train_ns + cut_ns + int(left_ns * parameters.split.validation)
    return {
        "train": (start_ns, train_ns),
        "validation": (train_ns + cut_ns, validation_ns),
        "test": (validation_ns + cut_ns, last_ns),
    }


def _by_hour(slices: Sequence[SliceFile], decoder: Decoder) -> Iterator[Slice]:
    """What was received in each hour of `local_ns`, from slices in time order."""
    waiting: list[Slice] = []
    shown = tqdm(slices, desc=f"{decoder.coin} slices", delay=2, mininterval=2, leave=False)
    texts = ahead(lambda piece: scanned(piece.read(), decoder.coin), slices)
    for piece, text in zip(shown, texts, strict=True):
        waiting.append(decoder.judge(text, piece.start_ns, piece.end_ns))
        for end_ns in range((piece.start_ns // HOUR_NS + 1) * HOUR_NS, piece.end_ns + 1, HOUR_NS):
            hour, rest = _cut(Slice.joined(waiting), end_ns)
            yield hour
            waiting = [rest]
    if slices and slices[-1].end_ns % HOUR_NS:
        yield Slice.joined(waiting)


def _cut(piece: Slice, ns: int) -> tuple[Slice, Slice]:
    """What was received before an instant, and the rest."""

    def part(of: Callable[[Nanoseconds], slice]) -> Slice:
        book, prints = of(piece.book.local_ns), of(piece.trades.local_ns)
        return Slice(
            take(piece.book, book),
            piece.book_connection[book],
            take(piece.bbo, of(piece.bbo.local_ns)),
            take(piece.trades, prints),
            piece.backfill[prints],
            take(piece.context, of(piece.context.local_ns)),
        )

    before = part(lambda times: slice(0, int(np.searchsorted(times, ns))))
    return before, part(lambda times: slice(int(np.searchsorted(times, ns)), None))


class Cleaner:
    """Judges decoded rows in time order, and remembers from one hour to the next what the judgement needs."""

    def __init__(self, max_gap_s: float) -> None:
        self.dropped: Counter[str] = Counter()
        self.prints = 0
        self.gaps: list[tuple[int, int]] = []
        self._kept: dict[int, Counter[str]] = {}  # rows by table, of each day
        self._cadence_s: dict[int, float | None] = {}
        self._intervals = [np.zeros(0, dtype=np.int64)]  # between the books of the present day
        self._max_gap_ns = round(max_gap_s * SECOND_NS)
        self._begins_ns, self._ends_ns, self._first_book_ns = 0, 0, 0
        self._last_book = (0, 0)  # local_ns and connection of the last valid book
        self._recent_tids = np.zeros(0, dtype=np.int64)

    def clean(self, piece: Slice, ended_ns: dict[int, int]) -> tuple[BookSnapshots, TopOfBook, Trades, Contexts]:
        """Valid rows of the next hour; `ended_ns` says when each connection that was lost was last heard."""
        valid = self._judge("l2Book", book_faults(piece.book))
        book, connection = take(piece.book, valid), piece.book_connection[valid]
        bbo = take(piece.bbo, self._judge("bbo", book_faults(piece.bbo)))
        self.prints += len(piece.trades.tid)
        trades = take(piece.trades, self._judge("trades", {"backfill": piece.backfill} | print_faults(piece.trades)))
        trades = take(trades, self._judge("trades", {"repeated_tid": self._repeated(trades.tid)}))
        context = take(piece.context, self._judge("activeAssetCtx", context_faults(piece.context)))
        self._count({"l2Book": book, "bbo": bbo, "trades": trades, "activeAssetCtx": context})
        self._find_gaps(book.local_ns, connection, ended_ns)
        return book, bbo, trades, context

    def report(self, decoder: Decoder) -> dict[str, Any]:
        """What was kept, dropped and missed, once all slices are cleaned; see `preprocess`."""
        self._find_gaps(np.array([decoder.last_ns]), np.array([decoder.connection]), decoder.ended_ns)
        gaps = merge([gap for gap in self.gaps if gap[0] < gap[1]])
        kept = sum(self._kept.values(), Counter(dict.fromkeys(CHANNELS, 0)))
        cadences = [cadence for cadence in self._cadence_s.values() if cadence]
        return {
            "messages": {name: decoder.messages[name] for name in CHANNELS},
            "prints": self.prints,
            "kept": {name: kept[name] for name in CHANNELS},
            "dropped": dict(sorted((decoder.dropped + self.dropped).items())),
            "gaps": gaps,
            "gap_s": sum(to_ns - from_ns for from_ns, to_ns in gaps) / SECOND_NS,
            "cadence_s": float(np.median(cadences)) if cadences else None,
            "days": [self._day(day, gaps) for day in sorted(self._kept)],
            "begins_ns": self._begins_ns,
            "ends_ns": self._ends_ns,
            "first_ns": self._first_book_ns,
            "last_ns": self._last_book[0],
        }

    def _day(self, day: int, gaps: Sequence[tuple[int, int]]) -> dict[str, Any]:
        begin, end = day * DAY_NS, (day + 1) * DAY_NS
        missing = sum(max(min(to_ns, end) - max(from_ns, begin), 0) for from_ns, to_ns in gaps)
        kept = {name: self._kept[day][name] for name in CHANNELS}
        return {"date": date_of(begin), "cadence_s": self._cadence_s[day], **kept, "gap_s": missing / SECOND_NS}

    def _count(self, tables: Mapping[str, BookSnapshots | TopOfBook | Trades | Contexts]) -> None:
        """Note how much of each table came in this hour, and how often a book."""
        tops = [tables[name].local_ns for name in ("l2Book", "bbo") if len(tables[name].local_ns)]
        self._begins_ns = self._begins_ns or min([int(ns[0]) for ns in tops], default=0)
        self._ends_ns = max([int(ns[-1]) for ns in tops], default=self._ends_ns)
        times = [table.local_ns[0] for table in tables.values() if len(table.local_ns)]
        if times:
            day = int(min(times)) // DAY_NS
            if day not in self._kept:
                self._kept[day], self._intervals = Counter(), []
            self._kept[day].update({name: len(table.local_ns) for name, table in tables.items()})
            book_ns = tables["l2Book"].local_ns
            self._intervals.append(np.diff(book_ns, prepend=[self._last_book[0]] if self._last_book[0] else []))
            every = np.concatenate(self._intervals)
            self._cadence_s[day] = float(np.median(every)) / SECOND_NS if len(every) else None

    def _judge(self, channel: str, faults: dict[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Rows without any fault; each other row is counted under its first."""
        valid = np.ones(len(next(iter(faults.values()))), dtype=bool)
        for cause, found in faults.items():
            if count := int((found & valid).sum()):
                self.dropped[f"{channel}_{cause}"] += count
            valid &= ~found
        return valid

    def _find_gaps(self, local_ns: Nanoseconds, connection: NDArray[np.int64], ended_ns: dict[int, int]) -> None:
        """A silence of books longer than allowed, and from the last message before a disconnect to the next book."""
        if not len(local_ns):
            return
        self._first_book_ns = self._first_book_ns or int(local_ns[0])
        last_ns, last_connection = self._last_book
        before_ns = np.concatenate([[last_ns or local_ns[0]], local_ns[:-1]])
        before = np.concatenate([[last_connection if last_ns else connection[0]], connection[:-1]])
        for row in np.flatnonzero((local_ns - before_ns > self._max_gap_ns) | (connection != before)):
            silent = local_ns[row] - before_ns[row] > self._max_gap_ns
            from_ns = before_ns[row] if silent else ended_ns.get(int(before[row]), before_ns[row])
            self.gaps.append((int(from_ns), int(local_ns[row])))
        self._last_book = int(local_ns[-1]), int(connection[-1])

    def _repeated(self, tid: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a print was seen before: above, or in the hour before."""
        repeated = np.ones(len(tid), dtype=bool)
        repeated[np.unique(tid, return_index=True)[1]] = False
        repeated |= np.isin(tid, self._recent_tids)
        self._recent_tids = tid
        return repeated


def book_faults(book: BookSnapshots | TopOfBook) -> dict[str, NDArray[np.bool_]]:
    """By cause, which of n books (n, 20) or best quotes (n,) cannot be: in the order in which they are counted."""
    sides = (book.bid_price, book.bid_size, book.ask_price, book.ask_size)
    bid_price, bid_size, ask_price, ask_size = (side if side.ndim == 2 else side[:, None] for side in sides)
    every = np.concatenate([bid_price, bid_size, ask_price, ask_size], axis=1)
    falling = (bid_price[:, 1:] < bid_price[:, :-1]) | np.isnan(bid_price[:, 1:])
    rising = (ask_price[:, 1:] > ask_price[:, :-1]) | np.isnan(ask_price[:, 1:])
    return {
        "empty": np.isnan(bid_price[:, 0]) | np.isnan(ask_price[:, 0]),
        "non_finite": np.isinf(every).any(axis=1),
        "non_positive": (every <= 0).any(axis=1),
        "unsorted": ~(falling.all(axis=1) & rising.all(axis=1)),
        "crossed": bid_price[:, 0] >= ask_price[:, 0],
        "clock": _off_clock(book.exchange_ns, book.local_ns),
    }


def print_faults(trades: Trades) -> dict[str, NDArray[np.bool_]]:
    """By cause, which of n prints cannot be."""
    return {
        "non_finite": ~(np.isfinite(trades.price) & np.isfinite(trades.size)),
        "non_positive": (trades.price <= 0) | (trades.size <= 0),
        "clock": _off_clock(trades.exchange_ns, trades.local_ns),
    }


def context_faults(context: Contexts) -> dict[str, NDArray[np.bool_]]:
    """By cause, which of n updates cannot be; the exchange caps funding at 4 % an hour."""
    total = context.mark_price + context.oracle_price + context.funding + context.open_interest
    return {
        "non_finite": ~np.isfinite(total),
        "non_positive": (context.mark_price <= 0) | (context.oracle_price <= 0) | (context.open_interest < 0),
        "funding_cap": np.asarray(np.abs(context.funding) > _FUNDING_CAP),
    }


def merge(intervals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same time as disjoint intervals in order."""
    merged: list[tuple[int, int]] = []
    for from_ns, to_ns in sorted(intervals):
        if merged and from_ns <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(to_ns, merged[-1][1]))
        else:
            merged.append((from_ns, to_ns))
    return merged


def _off_clock(exchange_ns: Nanoseconds, local_ns: Nanoseconds) -> NDArray[np.bool_]:
    return np.asarray(np.abs(local_ns - exchange_ns) > _CLOCK_TOLERANCE_NS)
