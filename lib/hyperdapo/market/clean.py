"""Stage 02: from raw slices to a `Market`: what is wrong is dropped and counted, what is missing becomes a gap.

Slices are decoded and written hour by hour, one Parquet row group each, so that memory does not grow with the span.
"""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hyperdapo.errors import DataError
from hyperdapo.market.book import BookSnapshots, Nanoseconds, TopOfBook, Trades, concatenate, take, writer
from hyperdapo.market.messages import Decoder, Slice
from hyperdapo.market.tardis import downloaded
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths, atomic

_SECOND, _HOUR = 1_000_000_000, 3_600_000_000_000
_CLOCK_TOLERANCE_NS = 60 * _SECOND  # the recorder's clock is usually half a second after the exchange's stamp


def preprocess(parameters: Parameters, asset: str, paths: Paths) -> dict[str, Any]:
    """Write `book.parquet`, `bbo.parquet`, `trades.parquet`, `split.json` and `cleaning.json`; return the last.

    Returns
    -------
    The cleaning report: `messages` decoded by channel, `prints` decoded, `kept` rows by table, `dropped` by cause,
    `gaps` (intervals of `local_ns`), `gap_s` in all, `cadence_s` of `l2Book` (median), `first_ns` and `last_ns` (book).

    Raises
    ------
    MissingInputError
        If 01_download has not run for this source.
    DataError
        If no valid book is left, or the span is too short to be split.
    """
    (paths.data / "cleaning.json").unlink(missing_ok=True)
    decoder, cleaner = Decoder(asset), Cleaner(parameters.clean.max_gap_s)
    slices = downloaded(parameters, asset, paths)
    progress = tqdm(total=len(slices), desc=f"{asset} slices", delay=2, mininterval=2, leave=False)
    with writer(paths.data) as append, progress:
        for _, hour in groupby(slices, key=lambda piece: piece.start_ns // _HOUR):
            pieces = [decoder.decode(piece.read(), piece.start_ns, piece.end_ns) for piece in hour]
            append(*cleaner.clean(pieces, decoder.ended_ns))
            progress.update(len(pieces))
        report = cleaner.report(decoder)
        if not report["kept"]["l2Book"]:
            raise DataError(
                f"{asset}: no valid l2Book message from {parameters.source.start} on; dropped {report['dropped']}"
            )
        split = split_span(report["first_ns"], report["last_ns"], parameters)
    facts = {"asset": asset, "sz_decimals": parameters.asset_facts[asset].sz_decimals}
    for name, content in (("split.json", split), ("cleaning.json", facts | report)):
        with atomic(paths.data / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
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
    start_ns = first_ns + round(parameters.features.warmup_s * _SECOND)
    cut_ns = round((parameters.orders.longest_horizon_s + parameters.features.window_s) * _SECOND)
    left_ns = last_ns - start_ns - 2 * cut_ns
    if left_ns < 3 * parameters.features.decision_interval_s * _SECOND:
        needed = parameters.features.warmup_s + 2 * cut_ns / _SECOND
        raise DataError(
            f"{(last_ns - first_ns) / _SECOND:.0f} s of data are too few: warm-up and the cuts between train, "
            f"validation and test take {needed:.0f} s; give a longer source span, or shorten features.warmup_s"
        )
    train_ns = start_ns + int(left_ns * parameters.split.train)
    validation_ns = train_ns + cut_ns + int(left_ns * parameters.split.validation)
    return {
        "train": (start_ns, train_ns),
        "validation": (train_ns + cut_ns, validation_ns),
        "test": (validation_ns + cut_ns, last_ns),
    }


class Cleaner:
    """Judges decoded rows in time order, and remembers from one hour to the next what the judgement needs."""

    def __init__(self, max_gap_s: float) -> None:
        self.dropped: Counter[str] = Counter()
        self.kept: Counter[str] = Counter({"l2Book": 0, "bbo": 0, "trades": 0})
        self.prints = 0
        self.gaps: list[tuple[int, int]] = []
        self._max_gap_ns = round(max_gap_s * _SECOND)
        self._book_ns: list[Nanoseconds] = []
        self._last_book = (0, 0)  # local_ns and connection of the last valid book
        self._recent_tids = np.zeros(0, dtype=np.int64)

    def clean(self, pieces: Sequence[Slice], ended_ns: dict[int, int]) -> tuple[BookSnapshots, TopOfBook, Trades]:
        """Valid rows of the next slices; `ended_ns` says when each connection that was lost was last heard."""
        book, bbo = concatenate([piece.book for piece in pieces]), concatenate([piece.bbo for piece in pieces])
        trades = concatenate([piece.trades for piece in pieces])
        valid = self._judge("l2Book", book_faults(book))
        book, connection = take(book, valid), np.concatenate([piece.book_connection for piece in pieces])[valid]
        self._find_gaps(book.local_ns, connection, ended_ns)
        self._book_ns.append(book.local_ns)
        bbo = take(bbo, self._judge("bbo", book_faults(bbo)))
        self.prints += len(trades.tid)
        backfill = np.concatenate([piece.backfill for piece in pieces])
        trades = take(trades, self._judge("trades", {"backfill": backfill} | print_faults(trades)))
        trades = take(trades, self._judge("trades", {"repeated_tid": self._repeated(trades.tid)}))
        for name, rows in (("l2Book", book), ("bbo", bbo), ("trades", trades)):
            self.kept[name] += len(rows.local_ns)
        return book, bbo, trades

    def report(self, decoder: Decoder) -> dict[str, Any]:
        """What was kept, dropped and missed, once all slices are cleaned; see `preprocess`."""
        self._find_gaps(np.array([decoder.last_ns]), np.array([decoder.connection]), decoder.ended_ns)
        book_ns = np.concatenate([np.zeros(0, dtype=np.int64), *self._book_ns])
        gaps = merge([gap for gap in self.gaps if gap[0] < gap[1]])
        return {
            "messages": {name: decoder.messages[name] for name in self.kept},
            "prints": self.prints,
            "kept": dict(self.kept),
            "dropped": dict(sorted((decoder.dropped + self.dropped).items())),
            "gaps": gaps,
            "gap_s": sum(to_ns - from_ns for from_ns, to_ns in gaps) / _SECOND,
            "cadence_s": float(np.median(np.diff(book_ns))) / _SECOND if len(book_ns) > 1 else None,
            "first_ns": int(book_ns[0]) if len(book_ns) else 0,
            "last_ns": int(book_ns[-1]) if len(book_ns) else 0,
        }

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
