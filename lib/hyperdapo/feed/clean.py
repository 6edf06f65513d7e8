"""Stage 02: from raw slices to a `Market`: what is wrong is dropped and counted, what is missing becomes a gap.

What was received in an hour is cleaned and written at once, one Parquet row group, so that memory does not grow with
the span; how the client happened to cut its slices does not show.
"""

import gzip
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from hyperdapo.errors import DataError
from hyperdapo.feed.download import downloaded
from hyperdapo.feed.messages import Decoder, Slice, scanned
from hyperdapo.feed.slices import SliceFile
from hyperdapo.feed.streams import aggregated, depths, off_bbo, repeated, shallow
from hyperdapo.files import write_json, write_table
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BookSnapshots, Contexts, Integers, Mask, Nanoseconds, TopOfBook, Trades, select
from hyperdapo.market.native import CHANNELS, FAST_LEVELS
from hyperdapo.market.quality import by_minute, daily_volume
from hyperdapo.market.storage import ahead, writer
from hyperdapo.market.usable import counted, merge, split_span
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.times import DAY_NS, HOUR_NS, SECOND_NS, Span, date_of

_FUNDING_CAP = 0.04  # a share per hour
_AHEAD_NS, _LATE_NS = 2 * SECOND_NS, 60 * SECOND_NS  # a message comes after its stamp, but for the clocks' difference
REPEATED_WITHIN_NS = _AHEAD_NS + _LATE_NS
"""Of two messages of one stamp the later comes within this time after the other, or too late."""


def preprocess(parameters: Parameters, asset: str, paths: Paths) -> dict[str, Any]:
    """Write the four tables of messages, `quality.parquet`, `split.json` and `cleaning.json`; return the last.

    Returns
    -------
    The cleaning report: `daily_volume` (V of eq. 2.4, coin), `messages` decoded by channel, `prints` decoded, `kept`
    rows by table, `dropped` by cause, `levels` (books by the visible levels of their shallower side), `gaps` (intervals
    of `local_ns`), `gap_s` in all, `silences` (intervals in which a trade window holds no print), `decisions` (how many
    can be used, and the others by cause, see `usable`), `begins_ns` and `ends_ns` (first and last message that was
    kept), `first_ns` and `last_ns` (book), `spans` (the same of each channel), `cadence_s` of `l2Book`, and `days`: for
    each its `date`, `cadence_s`, rows kept by table, and `gap_s`.

    Raises
    ------
    MissingInputError
        If 01_download has not run for this source.
    DataError
        If no valid book is left, or too few decisions can be used to be split.
    """
    (paths.data / "cleaning.json").unlink(missing_ok=True)
    decoder, cleaner = Decoder(asset), Cleaner(parameters, asset)
    minutes: list[pd.DataFrame] = []
    with writer(paths.data) as append:
        for hour in _by_hour(downloaded(parameters, asset, paths), decoder):
            clean = cleaner.clean(hour, decoder.ended_ns)
            append(*clean)
            minutes.append(by_minute(*clean))
        report = cleaner.report(decoder)
        if not report["kept"]["l2Book"]:
            raise DataError(_no_book(asset, parameters, report))
        split = split_span(report, parameters)
    observed = pd.concat(minutes, ignore_index=True)
    write_table(observed, paths.data, "quality")
    contract = {"asset": asset, "sz_decimals": parameters.contracts[asset].sz_decimals}
    report = contract | {"daily_volume": daily_volume(observed)} | report
    report["decisions"] = counted(report, parameters)
    write_json(split, paths.data, "split.json")
    write_json(report, paths.data, "cleaning.json")
    return report


def recorded(path: Path, asset: str, parameters: Parameters) -> Market:
    """A recording `ASSET.ndjson.gz` of lines as Tardis replays them, cleaned, as a market in memory."""
    decoder, cleaner = Decoder(asset), Cleaner(parameters, asset)
    lines = decoder.decode(gzip.decompress(path.read_bytes()), 0, 2**62)
    book, bbo, trades, context = cleaner.clean(lines, decoder.ended_ns)
    gaps = np.array(cleaner.report(decoder)["gaps"], dtype=np.int64).reshape(-1, 2)
    return Market(asset, parameters.contracts[asset].sz_decimals, book, bbo, trades, gaps, context)


def _no_book(asset: str, parameters: Parameters, report: Mapping[str, Any]) -> str:
    dropped = report["dropped"]
    message = f"{asset}: no valid l2Book message from {parameters.source.start} on; dropped {dropped}"
    if dropped.get("l2Book_aggregated"):
        message += "; prices must be whole ticks: record l2Book without nSigFigs, or correct contracts.sz_decimals"
    if dropped.get("l2Book_stamp_ahead"):
        message += "; what is stamped ahead came to a recorder whose clock is behind: set it by NTP"
    return message


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
            select(piece.book, book),
            piece.book_connection[book],
            piece.book_stream[book],
            select(piece.bbo, of(piece.bbo.local_ns)),
            select(piece.trades, prints),
            piece.backfill[prints],
            select(piece.context, of(piece.context.local_ns)),
        )

    before = part(lambda times: slice(0, int(np.searchsorted(times, ns))))
    return before, part(lambda times: slice(int(np.searchsorted(times, ns)), None))


class Cleaner:
    """Judges decoded rows in time order, and remembers from one hour to the next what the judgement needs."""

    def __init__(self, parameters: Parameters, asset: str) -> None:
        """Of the parameters, `clean`, `features.window_s` and the asset's `sz_decimals` count."""
        self.dropped: Counter[str] = Counter()
        self.prints = 0
        self.gaps: list[Span] = []
        self._levels: Counter[int] = Counter()
        self._silences: list[Span] = []
        self._kept: dict[int, Counter[str]] = {}  # rows by table, of each day
        self._spans: dict[str, Span] = {}
        self._cadence_s: dict[int, float | None] = {}
        self._intervals = [np.zeros(0, dtype=np.int64)]  # between the books of the present day
        self._sz_decimals = parameters.contracts[asset].sz_decimals
        self._max_gap_ns = round(parameters.clean.max_gap_s * SECOND_NS)
        self._window_ns = round(parameters.features.window_s * SECOND_NS)
        self._first_book_ns, self._last_deep_ns, self._last_print_ns = 0, -(2**62), 0
        self._last_book = (0, 0)  # local_ns and connection of the last valid book
        self._latest: dict[str, Any] = {}  # by channel, the rows that may come again

    def clean(self, piece: Slice, ended_ns: dict[int, int]) -> tuple[BookSnapshots, TopOfBook, Trades, Contexts]:
        """Valid rows of the next hour; `ended_ns` says when each connection that was lost was last heard."""
        bbo = select(piece.bbo, self._judge("bbo", book_faults(piece.bbo)))
        bbo = select(bbo, self._judge("bbo", {"repeated": self._repeated("bbo", *_stamped(bbo))}))
        book, connection = self._books(piece, bbo)
        self.prints += len(piece.trades.tid)
        faults = print_faults(piece.trades)
        again, sound = np.zeros(len(piece.backfill), dtype=bool), ~np.logical_or.reduce(list(faults.values()))
        again[sound] = self._repeated("trades", piece.trades.exchange_ns[sound], piece.trades.tid[sound])
        faults = {"backfill": piece.backfill} | faults | {"repeated": again}
        trades = select(piece.trades, self._judge("trades", faults))
        context = select(piece.context, self._judge("activeAssetCtx", context_faults(piece.context)))
        again = self._repeated("activeAssetCtx", *vars(context).values())
        context = select(context, self._judge("activeAssetCtx", {"repeated": again}))
        self._count({"l2Book": book, "bbo": bbo, "trades": trades, "activeAssetCtx": context})
        self._find_gaps(book.local_ns, connection, ended_ns)
        self._find_silences(trades.local_ns)
        return book, bbo, trades, context

    def _books(self, piece: Slice, bbo: TopOfBook) -> tuple[BookSnapshots, Integers]:
        """Valid books of the whole market and the connection of each; what belongs to another stream is dropped."""
        valid = self._judge("l2Book", book_faults(piece.book))
        book, connection, stream = select(piece.book, valid), piece.book_connection[valid], piece.book_stream[valid]
        faults = {
            "repeated": self._repeated("l2Book", *_stamped(book)),
            "aggregated": aggregated(book, stream, self._sz_decimals),
            "off_bbo": off_bbo(book, bbo),
        }
        valid = self._judge("l2Book", faults)
        book, connection, stream = select(book, valid), connection[valid], stream[valid]
        valid = self._judge("l2Book", {"fast": shallow(book, stream, self._last_deep_ns, self._max_gap_ns)})
        book, connection = select(book, valid), connection[valid]
        bids, asks = depths(book)
        self._levels.update(np.minimum(bids, asks).tolist())
        deep_ns = book.local_ns[np.maximum(bids, asks) > FAST_LEVELS]
        self._last_deep_ns = int(deep_ns[-1]) if len(deep_ns) else self._last_deep_ns
        return book, connection

    def report(self, decoder: Decoder) -> dict[str, Any]:
        """What was kept, dropped and missed, once all slices are cleaned; see `preprocess`."""
        last_book_ns = self._last_book[0]
        tops = [self._spans[name] for name in ("l2Book", "bbo") if name in self._spans]
        self._find_gaps(np.array([decoder.last_ns]), np.array([decoder.connection]), decoder.ended_ns)
        if self._last_print_ns:
            self._find_silences(np.array([decoder.last_ns]))
        gaps = merge([gap for gap in self.gaps if gap[0] < gap[1]])
        kept = sum(self._kept.values(), Counter(dict.fromkeys(CHANNELS, 0)))
        cadences = [cadence for cadence in self._cadence_s.values() if cadence]
        return {
            "messages": {name: decoder.messages[name] for name in CHANNELS},
            "prints": self.prints,
            "kept": {name: kept[name] for name in CHANNELS},
            "dropped": dict(sorted((decoder.dropped + self.dropped).items())),
            "levels": {str(count): self._levels[count] for count in sorted(self._levels)},
            "gaps": gaps,
            "gap_s": sum(to_ns - from_ns for from_ns, to_ns in gaps) / SECOND_NS,
            "silences": self._silences,
            "cadence_s": float(np.median(cadences)) if cadences else None,
            "days": [self._day(day, gaps) for day in sorted(self._kept)],
            "begins_ns": min((begin for begin, _ in tops), default=0),
            "ends_ns": max((end for _, end in tops), default=0),
            "first_ns": self._first_book_ns,
            "last_ns": last_book_ns,
            "spans": {name: self._spans[name] for name in CHANNELS if name in self._spans},
        }

    def _day(self, day: int, gaps: Sequence[Span]) -> dict[str, Any]:
        begin, end = day * DAY_NS, (day + 1) * DAY_NS
        missing = sum(max(min(to_ns, end) - max(from_ns, begin), 0) for from_ns, to_ns in gaps)
        kept = {name: self._kept[day][name] for name in CHANNELS}
        return {"date": date_of(begin), "cadence_s": self._cadence_s[day], **kept, "gap_s": missing / SECOND_NS}

    def _count(self, tables: Mapping[str, BookSnapshots | TopOfBook | Trades | Contexts]) -> None:
        """Note how much of each table came in this hour, and how often a book."""
        for name, table in tables.items():
            if len(table.local_ns):
                first_ns, last_ns = table.local_ns[[0, -1]].tolist()
                self._spans[name] = self._spans.get(name, (first_ns, last_ns))[0], last_ns
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

    def _judge(self, channel: str, faults: dict[str, Mask]) -> Mask:
        """Rows without any fault; each other row is counted under its first."""
        valid = np.ones(len(next(iter(faults.values()))), dtype=bool)
        for cause, faulty in faults.items():
            if count := int((faulty & valid).sum()):
                self.dropped[f"{channel}_{cause}"] += count
            valid &= ~faulty
        return valid

    def _find_gaps(self, local_ns: Nanoseconds, connection: Integers, ended_ns: dict[int, int]) -> None:
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

    def _find_silences(self, local_ns: Nanoseconds) -> None:
        """Where a trade window holds no print: from its length after a print to the next."""
        before_ns = np.concatenate([[self._last_print_ns], local_ns[:-1]])[: len(local_ns)]
        for row in np.flatnonzero(local_ns - before_ns > self._window_ns):
            from_ns = int(before_ns[row]) + self._window_ns if before_ns[row] else 0  # 0: before the first print
            self._silences.append((from_ns, int(local_ns[row])))
        self._last_print_ns = int(local_ns[-1]) if len(local_ns) else self._last_print_ns

    def _repeated(self, channel: str, *keys: NDArray[Any]) -> Mask:
        """Which rows (n,) came before, here or in the hour before, by the columns that identify them; a time first."""
        before = self._latest.get(channel, [key[:0] for key in keys])
        self._latest[channel] = list(keys)
        return repeated([np.concatenate(pair) for pair in zip(before, keys, strict=True)])[len(before[0]) :]


def book_faults(book: BookSnapshots | TopOfBook) -> dict[str, Mask]:
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
    } | _clock_faults(book.exchange_ns, book.local_ns)


def print_faults(trades: Trades) -> dict[str, Mask]:
    """By cause, which of n prints cannot be."""
    return {
        "non_finite": ~(np.isfinite(trades.price) & np.isfinite(trades.size)),
        "non_positive": (trades.price <= 0) | (trades.size <= 0),
    } | _clock_faults(trades.exchange_ns, trades.local_ns)


def context_faults(context: Contexts) -> dict[str, Mask]:
    """By cause, which of n updates cannot be; the exchange caps funding at 4 % an hour."""
    total = context.mark_price + context.oracle_price + context.funding + context.open_interest
    return {
        "non_finite": ~np.isfinite(total),
        "non_positive": (context.mark_price <= 0) | (context.oracle_price <= 0) | (context.open_interest < 0),
        "funding_cap": np.asarray(np.abs(context.funding) > _FUNDING_CAP),
    }


def _clock_faults(exchange_ns: Nanoseconds, local_ns: Nanoseconds) -> dict[str, Mask]:
    """What the exchange stamped after it was received cannot be; what it stamped a minute before is of no use."""
    delay_ns = local_ns - exchange_ns
    return {"stamp_ahead": np.asarray(delay_ns < -_AHEAD_NS), "stamp_late": np.asarray(delay_ns > _LATE_NS)}


def _stamped(rows: BookSnapshots | TopOfBook) -> list[NDArray[Any]]:
    """The columns in which two messages of one stamp of the exchange may differ."""
    return [rows.exchange_ns, rows.bid_price, rows.bid_size, rows.ask_price, rows.ask_size]
