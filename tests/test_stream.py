"""A stream knows, message by message, what the cleaner and the features make of the whole: rows, gaps, features."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feeds import START_MS, book, levels, line, prints, quiet, quote, stamped
from hyperdapo.errors import DataError
from hyperdapo.execution.parents import candidate_orders, parent_orders, replay
from hyperdapo.feed.archive import _unpacked, replay_line
from hyperdapo.feed.clean import Cleaner
from hyperdapo.feed.messages import Decoder
from hyperdapo.feed.stream import Stream
from hyperdapo.market.book import Market
from hyperdapo.market.columns import select
from hyperdapo.market.features import SCALED, compute_features, decision_grid
from hyperdapo.market.native import (
    BookData,
    BookMessage,
    Level,
    Message,
    Print,
    QuoteData,
    QuoteMessage,
    TradesMessage,
    local_time,
    native,
    stamp_length,
)
from hyperdapo.params import Parameters, load
from markets import SECOND, random_market

SHORT = {
    "features": {
        "warmup_s": 15.0,
        "decision_interval_s": 1.0,
        "window_s": 10.0,
        "large_trade_window_s": 25.0,
        "normalisation_s": 20.0,
    },
    "clean": {"max_gap_s": 5.0},
}
"""Windows of seconds, so that few messages leave and enter them, and gaps restart them."""
MEANT = [*SCALED, "warm", "cold_because"]  # what depends on the gaps


class Batch:
    """What the cleaner and the features make of lines, all of them at hand."""

    def __init__(self, lines: Sequence[bytes], parameters: Parameters, asset: str) -> None:
        decoder, cleaner = Decoder(asset), Cleaner(parameters, asset)
        piece = decoder.decode(b"\n".join(lines) + b"\n", 0, 2**62)
        *tables, context = cleaner.clean(piece, decoder.ended_ns)
        report = cleaner.report(decoder)
        gaps = np.array(report["gaps"], dtype=np.int64).reshape(-1, 2)
        self.market = Market(asset, parameters.contracts[asset].sz_decimals, *tables, gaps, context)
        self.parts = sorted(gap for gap in cleaner.gaps if gap[0] < gap[1])
        self.dropped, self.last_ns = report["dropped"], decoder.last_ns
        self._parameters = parameters

    def features(self) -> pd.DataFrame:
        settled = self._parameters.features
        grid = decision_grid(self.market, settled.decision_interval_s)
        table = compute_features(self.market, grid, settled, max_gap_s=self._parameters.clean.max_gap_s)
        return table[table["decision_ns"] < self.last_ns]  # a silence at the very end is a gap that no book has ended

    def between_gaps(self, ns: np.ndarray) -> np.ndarray:
        """Which instants lie between two gaps that touch, which the cleaner sees as one; see `feed.stream`."""
        inside = np.zeros(len(ns), dtype=bool)
        for from_ns, to_ns in self.market.gaps.tolist():
            first_end = next(end for begin, end in self.parts if from_ns <= begin)
            inside |= (ns >= first_end) & (ns < to_ns)
        return inside


def streamed(lines: Sequence[bytes], parameters: Parameters, asset: str, ask: bool) -> tuple[Stream, pd.DataFrame]:
    """A stream that has received lines, and its rows: asked at each decision time, or as soon as they have passed.

    In a long silence they are asked in time all the same: a stream keeps its latest 64.
    """
    stream, rows, step = Stream(parameters, asset), list[dict](), round(parameters.features.decision_interval_s * 1e9)
    due, patience = 0, 0 if ask else 60 * step
    for text in lines:
        if not text:
            stream.disconnected(stream.last_ns)
            continue
        message, ns = native(text[stamp_length(text) :]), local_time(text)
        while due and due < ns - patience:
            rows.append(stream.features(due))
            due += step
        if message is not None:
            stream.receive(message, ns)
        if stream.top.local_ns and not due:
            due = -(-stream.top.local_ns // step) * step
        while not ask and due and due < stream.last_ns:
            rows.append(stream.features(due))
            due += step
    return stream, pd.DataFrame(rows)


def same(rows: pd.DataFrame, batch: Batch) -> None:
    """Rows of a stream are those of the batch, where both are."""
    expected = batch.features()
    rows = rows[rows["decision_ns"].isin(expected["decision_ns"])].reset_index(drop=True)
    assert rows["decision_ns"].tolist() == expected["decision_ns"].tolist()
    assert rows.columns.tolist() == expected.columns.tolist()
    apart = batch.between_gaps(expected["decision_ns"].to_numpy())
    rows, expected = (frame.mask(np.outer(apart, frame.columns.isin(MEANT))) for frame in (rows, expected))
    pd.testing.assert_frame_equal(rows, expected, check_exact=False, rtol=1e-9, atol=1e-9, check_dtype=False)


def same_market(stream: Stream, batch: Batch) -> None:
    """What a stream still keeps are the last rows that the cleaner keeps; it dropped the rest for the same causes."""
    ours, kept = stream.market(), Counter()
    for name, channel in (("book", "l2Book"), ("bbo", "bbo"), ("trades", "trades"), ("context", "activeAssetCtx")):
        theirs, lately = getattr(batch.market, name), vars(getattr(ours, name))
        kept[channel] = len(theirs.local_ns)
        for column, values in vars(theirs).items():
            last = values[len(values) - len(lately[column]) :]
            np.testing.assert_array_equal(lately[column], last, err_msg=f"{name}.{column}")
    gaps, reach_ns = batch.market.gaps.tolist(), stream.last_ns - 300 * SECOND
    assert [gap for gap in ours.gaps.tolist() if gap[1] > reach_ns] == [gap for gap in gaps if gap[1] > reach_ns]
    assert all(gap in gaps for gap in ours.gaps.tolist())
    assert +kept == stream.kept and dict(stream.dropped) == batch.dropped
    assert ours.begins_ns == batch.market.top.local_ns[0]


# ---- random streams -------------------------------------------------------------------------------------------------

SOUND = (*("book",) * 6, *("quote",) * 6, *("prints",) * 6, "context")
ODD = (
    *(
        "quoted book",
        "book again",
        "quote again",
        "prints again",
        "late book",
        "late quote",
        "same instant",
        "goes back",
    ),
    *("crossed book", "empty book", "deep book", "crossed quote", "one-sided quote", "odd prints", "other coin"),
)
PAUSES_MS = {
    "busy": (0, 6, 20, 60),
    "usual": (50, 150, 400, 900),
    "quiet": (900, 1700, 3100),
    "gaps": (400, 5500, 12_000),
}


class Feed:
    """Lines of a feed as its events are drawn; a book has the stamp of a quote only where it is a quoted one."""

    def __init__(self, quotes: bool, seed: int) -> None:
        self.lines = list[str]()
        self._quotes, self._rng = quotes, np.random.default_rng(seed)
        self._ms, self._tid, self._since_back = 0, 0, 0
        self._last = dict[str, str]()

    def part(self, count: int, pace: str, odd: float) -> None:
        """So many events at a pace, a share of them odd."""
        for _ in range(count):
            kinds = ODD if self._rng.random() < odd else SOUND
            self.add(str(self._rng.choice(kinds)), int(self._rng.choice(PAUSES_MS[pace])))

    def add(self, kind: str, pause_ms: int) -> None:
        """One event, so long after the last."""
        self._ms += pause_ms
        self._since_back += 1
        if kind == "disconnect":
            self.lines.append("")
            return
        if kind == "goes back":
            if self._since_back > 3:
                self.lines.append(self._book(self._ms - 8))
                self._since_back = 0
            return
        self._ms += 0 if kind == "same instant" else 2
        text = self._text("book" if kind == "same instant" else kind, self._ms)
        if text:
            self.lines.append(text)

    def _text(self, kind: str, ms: int) -> str:
        if kind.endswith("again"):
            before = self._last.get(kind.removesuffix(" again"), "")
            return stamped(ms, before.partition(" ")[2]) if before else ""
        if kind.endswith("quote") and not self._quotes:
            return ""
        if kind == "quoted book":
            self.lines.append(self._quote(ms, delay_ms=400))
        text = {
            "quoted book": lambda: self._book(ms),
            "book": lambda: self._book(ms),
            "late book": lambda: self._book(ms, delay_ms=1900),
            "crossed book": lambda: book(ms, bids=((4001, 1),)),
            "empty book": lambda: book(ms, asks=()),
            "deep book": lambda: book(ms, bids=tuple((4000 - step, 1) for step in range(21))),
            "quote": lambda: self._quote(ms, delay_ms=351),
            "late quote": lambda: self._quote(ms, delay_ms=1401),
            "crossed quote": lambda: quote(ms, bid=(4001, 1)),
            "one-sided quote": lambda: line(ms, "bbo", {"coin": "ETH", "bbo": [None, *levels((4000, 1))]}),
            "prints": lambda: self._prints(ms),
            "odd prints": lambda: prints(ms, self._next(), self._next(), size=self._rng.choice(["-1", "nan", "0"])),
            "other coin": lambda: book(ms).replace("ETH", "BTC"),
            "context": lambda: self._context(ms),
        }[kind]()
        self._last[kind] = text
        return text

    def _next(self) -> int:
        self._tid += 1
        return self._tid

    def _touch(self) -> float:
        return 4000 + round(float(self._rng.integers(-4, 5)) / 10, 1)

    def _book(self, ms: int, delay_ms: int = 400) -> str:
        bid, visible = self._touch(), int(self._rng.integers(6, 20))
        sides = [
            tuple((round(bid + away * (step + (away > 0)) / 10, 1), self._size()) for step in range(visible))
            for away in (-1, 1)
        ]
        return book(ms, *sides, delay_ms=delay_ms)

    def _quote(self, ms: int, delay_ms: int) -> str:
        bid = self._touch()
        sides = levels((bid, self._size()), (round(bid + 0.1, 1), self._size()))
        return line(ms, "bbo", {"coin": "ETH", "bbo": sides}, delay_ms)

    def _prints(self, ms: int) -> str:
        tids = [self._next() for _ in range(int(self._rng.integers(1, 4)))]
        return prints(ms, *tids, price=self._touch(), size=self._size()).replace(
            '"B"', f'"{self._rng.choice(["A", "B"])}"'
        )

    def _size(self) -> float:
        return float(self._rng.integers(1, 400)) / 10

    def _context(self, ms: int) -> str:
        values = {"markPx": "4000", "oraclePx": "4001", "funding": str(self._rng.choice(["0.0001", "0.9"]))}
        data = {"coin": "ETH", "ctx": values | {"openInterest": "5"}}
        return stamped(ms, json.dumps({"channel": "activeAssetCtx", "data": data}))


@st.composite
def feeds(draw: st.DrawFn) -> list[bytes]:
    """Some minutes of a feed that is lost, quiet, busy, and damaged in every way that needs no look ahead."""
    feed = Feed(quotes=draw(st.booleans()), seed=draw(st.integers(0, 2**32)))
    feed.add("book", 0)
    parts = st.tuples(st.integers(1, 80), st.sampled_from(sorted(PAUSES_MS)), st.sampled_from([0.0, 0.1, 0.5]))
    for part, lost in draw(st.lists(st.tuples(parts, st.booleans()), min_size=2, max_size=6)):
        feed.part(*part)
        if lost:
            feed.add("disconnect", 0)
    return [text.encode() for text in feed.lines]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(feeds(), st.booleans())
def test_a_stream_knows_what_the_batch_knows(lines: list[bytes], ask: bool) -> None:
    parameters = load("smoke", SHORT)
    batch = Batch(lines, parameters, "ETH")
    stream, rows = streamed(lines, parameters, "ETH", ask)
    assert not +stream.hindsight, "what needs hindsight is not in these feeds"
    same_market(stream, batch)
    if len(rows):
        same(rows, batch)


# ---- what the cleaner sees in hindsight -----------------------------------------------------------------------------


def received(lines: Sequence[str], parameters: Parameters | None = None) -> tuple[Stream, Batch, list[str]]:
    """A stream and the cleaner after the same lines, and what the stream said of each."""
    parameters = parameters or load("smoke", SHORT)
    stream, said = Stream(parameters, "ETH"), []
    for text in (each.encode() for each in lines):
        if text:
            said.append(stream.receive(native(text[stamp_length(text) :]), local_time(text)))
        else:
            stream.disconnected(stream.last_ns)
    return stream, Batch([each.encode() for each in lines], parameters, "ETH"), said


FIVE = tuple((4000 - step / 10, 1) for step in range(5)), tuple((4000.1 + step / 10, 1) for step in range(5))
DEEP = tuple((4000 - step / 10, 1) for step in range(9)), tuple((4000.1 + step / 10, 1) for step in range(9))


def fast(ms: int, sides: tuple = FIVE) -> str:
    return book(ms, *sides).replace('"coin":"ETH"', '"coin":"ETH","fast":true')


def test_a_fast_book_is_dropped_after_a_deep_one_and_counted_before_one() -> None:
    """max_gap_s is 5, so that a deep book speaks for 2.5 s; a fast one that stands alone is all there is."""
    lines = [fast(0), fast(1000), book(2000, *DEEP), fast(3000), fast(4500), fast(6000), book(9000, *DEEP)]
    stream, batch, said = received(lines)
    assert said == ["", "", "", "l2Book_fast", "l2Book_fast", "", ""]
    assert stream.dropped == {"l2Book_fast": 2} and stream.hindsight["l2Book_fast"] == 2
    assert batch.dropped == {"l2Book_fast": 4}


def test_books_of_five_levels_that_stand_out_are_fast_ones() -> None:
    lines = [text for ms in range(0, 30_000, 1000) for text in (book(ms, *DEEP), book(ms + 500, *FIVE))]
    stream, batch, said = received(lines)
    assert said[:20] == [""] * 19 + ["l2Book_fast"] and set(said[20::2]) == {""} and set(said[21::2]) == {"l2Book_fast"}
    assert batch.dropped == {"l2Book_fast": 30} and stream.dropped == {"l2Book_fast": 21}


def test_a_rounded_book_is_dropped_by_what_it_says_and_beside_deeper_ones() -> None:
    coarse = tuple((4000 - step, 1) for step in range(8)), tuple((4001 + step, 1) for step in range(8))
    whole = tuple((4000 - step / 10, 1) for step in range(20)), tuple((4000.1 + step / 10, 1) for step in range(20))
    says = book(3000, *coarse).replace('"coin":"ETH"', '"coin":"ETH","spread":"0.1"')
    _, batch, said = received([book(0, *coarse), book(1000, *whole), book(2000, *coarse), says])
    assert said == ["", "", "l2Book_aggregated", "l2Book_aggregated"]
    assert batch.dropped == {"l2Book_aggregated": 3}, "the cleaner knows of the first what came after it"


@pytest.mark.parametrize(("quoted", "off"), [([4000], 0), ([3999], 1), ([3999, 4000], 0), ([3999, 3998], 1)])
def test_a_quote_of_the_stamp_of_a_book_speaks_for_or_against_it(quoted: list[float], off: int) -> None:
    def quotes(ms: int) -> list[str]:
        best = [levels((bid, 1), (bid + 0.1, 1)) for bid in quoted]
        return [line(ms, "bbo", {"coin": "ETH", "bbo": sides}, delay_ms=ms) for sides in best]

    before, batch, said = received([*quotes(500), book(600, delay_ms=600)])
    assert said[-1] == ("l2Book_off_bbo" if off else "") and dict(before.dropped) == batch.dropped
    after, batch, said = received([book(500, delay_ms=500), *quotes(600)])
    assert not any(said) and after.hindsight["l2Book_off_bbo"] == off == batch.dropped.get("l2Book_off_bbo", 0)


def test_two_silences_a_book_apart_are_one_gap_once_the_second_has_ended() -> None:
    seconds = [*range(30), 40, 50, *range(51, 80)]
    lines = [prints(-500, 1), *(text for at in seconds for text in (book(1000 * at), prints(1000 * at + 10, 100 + at)))]
    parameters = load("smoke", SHORT)
    stream, rows = streamed([text.encode() for text in lines], parameters, "ETH", ask=True)
    batch = Batch([text.encode() for text in lines], parameters, "ETH")
    start = START_MS * 1_000_000
    assert batch.market.gaps.tolist() == [[start + 29 * SECOND, start + 50 * SECOND]] == stream.market().gaps.tolist()
    same(rows, batch)
    known = rows.set_index("decision_ns")["cold_because"]
    assert known[start + 42 * SECOND] == "warm-up", "the first silence has ended, and what comes next is not known"
    assert stream.features(start + 79 * SECOND)["warm"]


# ---- what is kept, and what is asked --------------------------------------------------------------------------------


def messages(market: Market) -> Iterator[tuple[Message, int]]:
    """The messages of a market in the order received."""
    book, bbo, trades = market.book, market.bbo, market.trades
    sides = [(price, size) for price, size in ((book.bid_price, book.bid_size), (book.ask_price, book.ask_size))]
    rows = [(ns, 0, row) for row, ns in enumerate(book.local_ns.tolist())]
    rows += [(ns, 1, row) for row, ns in enumerate(bbo.local_ns.tolist())]
    rows += [(ns, 2, row) for row, ns in enumerate(trades.local_ns.tolist())]
    for ns, kind, row in sorted(rows):
        time = int((book, bbo, trades)[kind].exchange_ns[row]) // 1_000_000
        if kind == 0:
            seen = [np.isfinite(price[row]) for price, _ in sides]
            both = [
                [Level(px, sz) for px, sz in zip(price[row][shown].tolist(), size[row][shown].tolist(), strict=True)]
                for (price, size), shown in zip(sides, seen, strict=True)
            ]
            yield BookMessage(BookData(market.asset, time, (both[0], both[1]))), ns
        elif kind == 1:
            best = Level(bbo.bid_price[row], bbo.bid_size[row]), Level(bbo.ask_price[row], bbo.ask_size[row])
            yield QuoteMessage(QuoteData(market.asset, time, best)), ns
        else:
            side = "B" if trades.side[row] > 0 else "A"
            one = Print(market.asset, side, trades.price[row], trades.size[row], time, int(trades.tid[row]))
            yield TradesMessage([one]), ns


def test_orders_of_the_last_minutes_fare_as_on_the_whole_market() -> None:
    parameters = load("smoke", {"execution": {"queue_exponent": 1.0, "impact_coefficient_bps": 3.0}})
    whole, stream = random_market(3, seconds=2400), Stream(parameters, "ETH")
    for message, ns in messages(whole):
        stream.receive(message, ns)
    assert stream.dropped == {"trades_backfill": 1}
    end_ns = int(whole.top.local_ns[-1])
    recent = stream.market(end_ns - 420 * SECOND)
    assert len(recent.book.local_ns) < len(stream.market().book.local_ns) < len(whole.book.local_ns)
    prints = select(whole.trades, slice(1, None))  # the first message is backfill
    whole = replace(whole, trades=prints, daily_volume=recent.daily_volume)
    grid = decision_grid(whole, 10.0, (end_ns - 400 * SECOND, end_ns - 150 * SECOND))
    features = compute_features(whole, grid, parameters.features, {"test": (0, 2**62)})
    parents = parent_orders(features, parameters, whole)
    assert len(parents) > 20
    candidates = candidate_orders(parents, whole, parameters.policy.actions)
    expected = replay(whole, candidates, parameters)
    pd.testing.assert_frame_equal(
        replay(recent, candidate_orders(parents, recent, parameters.policy.actions), parameters), expected
    )
    assert {"filled", "completed"} <= set(expected["status"])


def test_memory_does_not_grow_with_the_session() -> None:
    parameters = load("smoke", SHORT | {"orders": {"markouts_s": [1.0]}})
    stream, sizes = Stream(parameters, "ETH"), []
    for second in range(3000):
        for text in (book(1000 * second), prints(1000 * second + 20, second), quote(1000 * second + 40)):
            stream.receive(native(text[stamp_length(text.encode()) :].encode()), local_time(text.encode()))
        if second % 500 == 499:
            kept = stream.market()
            sizes.append([len(table.local_ns) for table in (kept.book, kept.bbo, kept.trades)])
    assert sizes[2] == sizes[-1] and max(sizes[-1]) < 1000
    running = stream._running
    assert len(running._sizes) == len(running._hour) <= 26 and len(running._tops) < 130
    assert all(len(seen._keys) < 100 for seen in stream._seen.values()) and len(stream._quoted) < 100


def test_what_is_no_decision_time_or_not_known_is_refused() -> None:
    stream, _, _ = received([text for _, text in quiet(10, 200)])
    start = START_MS * 1_000_000
    assert stream.features(start + 198 * SECOND)["mid"] == 4000.05
    for ns, says in ((500, "is no decision time"), (9 * SECOND, "nothing is known"), (100 * SECOND, "or too long ago")):
        with pytest.raises(DataError, match=says):
            stream.features(start + ns)


def test_a_message_from_before_what_was_asked_does_not_count() -> None:
    stream, _, _ = received([book(1000), prints(1500, 1), book(2500)])
    asked = START_MS * 1_000_000 + 3 * SECOND
    before = stream.features(asked)
    late = book(2900).encode()
    assert stream.receive(native(late[stamp_length(late) :]), local_time(late)) == "time_goes_back"
    assert stream.features(asked) == before and stream.book_ns == START_MS * 1_000_000 + 2500 * 1_000_000


def test_each_fault_has_its_name() -> None:
    one = [prints(-100, 1), book(0), quote(50), prints(60, 2), prints(70, 2), book(80).replace("ETH", "BTC")]
    two = [book(100, bids=()), prints(120, 3, price="inf"), prints(130, 4, delay_ms=70_000), quote(140, bid=("nan", 1))]
    stream, batch, said = received([*one, *two, prints(150, 5).replace("ETH", "BTC")])
    expected = ["trades_backfill", "", "", "", "", "other_coin", "l2Book_empty", "trades_non_finite"]
    assert said == [*expected, "trades_stamp_late", "bbo_non_finite", "other_coin"]
    assert dict(stream.dropped) == batch.dropped and stream.kept == {"l2Book": 1, "bbo": 1, "trades": 2}
    assert stream.top.bid_price == 4000 and stream.book_ns == START_MS * 1_000_000


# ---- real recordings ------------------------------------------------------------------------------------------------


def recorded_lines(path: Path, most: int | None = None) -> list[bytes]:
    if path.suffix == ".lz4":
        return [replay_line(text).rstrip(b"\n") for text in _unpacked(path).splitlines()]
    with gzip.open(path) as file:
        return [text.rstrip(b"\n") for text in islice(file, most)]


@pytest.mark.parametrize(
    ("place", "asset", "most"),
    [
        ("hyperliquid/2025-09-04/BTC.ndjson.gz", "BTC", None),
        ("hyperliquid/2025-09-04/ETH.ndjson.gz", "ETH", None),
        ("hyperliquid/2025-09-04/SOL.ndjson.gz", "SOL", None),
        ("hyperliquid-archive/20240101/12/l2Book/BTC.lz4", "BTC", None),
        ("standx/2026-01-06/BTC.ndjson.gz", "BTC", 30_000),
        ("standx/2026-01-07/BTC.ndjson.gz", "BTC", 30_000),
    ],
)
def test_a_stream_of_a_real_recording(recordings: Path, place: str, asset: str, most: int | None) -> None:
    lines, parameters = recorded_lines(recordings / place, most), load("smoke")
    batch = Batch(lines, parameters, asset)
    stream, rows = streamed(lines, parameters, asset, ask=True)
    assert not +stream.hindsight
    same_market(stream, batch)
    same(rows, batch)
    warm = rows["warm"].sum()
    assert len(rows) > 100 and (warm > 100) == ("archive" not in place)
