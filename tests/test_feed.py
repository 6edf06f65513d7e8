"""Input as the world sends it: two books under one name, clocks that jump, short holes, lines that come twice."""

import gzip
import json
import math
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds import MINUTES, SECOND, START_MS, book, cleaned, levels, line, prints, quote, stamped, trickle
from hyperdapo.errors import DataError, nearest
from hyperdapo.feed.clean import Cleaner, book_faults
from hyperdapo.feed.messages import Decoder, in_order
from hyperdapo.market.book import Market
from hyperdapo.market.columns import LEVELS
from hyperdapo.market.features import compute_features, decision_grid, decisions
from hyperdapo.market.usable import cannot_follow, require, split_span
from hyperdapo.params import load
from hyperdapo.paths import Paths
from hyperdapo.synthetic.exchange import World

SMOKE = load("smoke")
START_NS = START_MS * 1_000_000
END = MINUTES * 60


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    return Paths("smoke", "ETH")


def ladder(best: float, outward: float, count: int) -> list[tuple[float, float]]:
    return [(round(best + outward * step, 1), 1 + step) for step in range(count)]


@cache
def whole(ms: int, count: int = LEVELS, rounded: bool = False, delay_ms: int = 400, **more: Any) -> str:
    """A book of so many levels a side, of whole dollars if rounded; `more` are fields that some subscriptions have."""
    tick = 1.0 if rounded else 0.1
    sides = [levels(*ladder(4000.0, -tick, count)), levels(*ladder(4000.0 + tick, tick, count))]
    return line(ms, "l2Book", {"coin": "ETH", "levels": sides} | more, delay_ms)


def feed(end_s: int = END, every_s: int = 1) -> list[tuple[int, str]]:
    """Whole books and a print a minute."""
    books = [(1000 * second, whole(1000 * second)) for second in range(0, end_s, every_s)]
    return books + trickle((30, end_s))


def same(one: Market, other: Market) -> None:
    """The same rows in all tables."""
    for name in ("book", "bbo", "trades", "context"):
        for field in fields(getattr(one, name)):
            columns = [getattr(getattr(market, name), field.name) for market in (one, other)]
            np.testing.assert_array_equal(*columns, err_msg=f"{name}.{field.name}")


class TestTwoBooksOfOneCoin:
    @pytest.mark.parametrize("marked", [{}, {"fast": True}])
    def test_five_levels_beside_twenty_are_dropped(self, tmp_path: Path, paths: Paths, marked: dict[str, Any]) -> None:
        """As from June 2026 on: 20 levels every 5 s, 5 levels every half second."""
        fast = [(ms, whole(ms, 5, **marked)) for ms in range(250, END * 1000, 500)]
        report, market = cleaned(feed(every_s=5) + fast, tmp_path, paths)
        assert report["dropped"] == {"l2Book_fast": len(fast), "trades_backfill": 1}
        assert report["levels"] == {"20": END // 5} and report["cadence_s"] == 5.0 and report["gaps"] == []
        assert np.isfinite(market.book.bid_price).all()

    @pytest.mark.parametrize("marked", [{}, {"fast": True}])
    def test_where_five_levels_are_all_they_stay(self, tmp_path: Path, paths: Paths, marked: dict[str, Any]) -> None:
        """The whole book ends at 295 s, and the fast one goes on: from 7.5 s later, so that there is no gap."""
        fast = [(ms, whole(ms, 5, **marked)) for ms in range(250, END * 1000, 500)]
        report, _ = cleaned(feed(300, 5) + fast + trickle((330, END)), tmp_path, paths)
        assert report["levels"] == {"5": len(fast) - 605, "20": 60} and report["gaps"] == []

    def test_a_thin_market_is_not_a_fast_book(self, tmp_path: Path, paths: Paths) -> None:
        books = [(1000 * second, whole(1000 * second, 3 + second % 5)) for second in range(END)]
        report, _ = cleaned(books + trickle((30, END)), tmp_path, paths)
        assert report["dropped"] == {"trades_backfill": 1}
        assert report["levels"] == {str(count): END // 5 for count in range(3, 8)}

    @pytest.mark.parametrize("marked", [{}, {"spread": "1.0"}])
    def test_rounded_books_are_dropped(self, tmp_path: Path, paths: Paths, marked: dict[str, Any]) -> None:
        """`nSigFigs` 4: whole dollars, so that the spread is tenfold."""
        ms_of = range(400, END * 1000, 1000)
        rounded = [(ms, whole(ms, rounded=True, **marked)) for ms in ms_of]
        report, market = cleaned(feed() + rounded, tmp_path, paths)
        assert report["dropped"] == {"l2Book_aggregated": len(rounded), "trades_backfill": 1}
        assert np.ptp(market.top.ask_price - market.top.bid_price) < 1e-9

    def test_five_figures_are_all_there_are(self, tmp_path: Path, paths: Paths) -> None:
        """`nSigFigs` 5 rounds nothing below 100,000 USD: marked, and yet whole."""
        books = [(1000 * second, whole(1000 * second, spread="0.1")) for second in range(END)]
        report, _ = cleaned(books + trickle((30, END)), tmp_path, paths)
        assert report["dropped"] == {"trades_backfill": 1} and report["levels"] == {"20": END}

    def test_a_book_that_contradicts_the_quote_of_its_block_is_dropped(self, tmp_path: Path, paths: Paths) -> None:
        quotes = [(1000 * second + 5, quote(1000 * second + 5)) for second in range(END)]
        wrong = [(ms, book(ms, asks=((4000.7, 1),))) for ms in (60_005, 90_005)]
        other_block = [(120_300, book(120_300, asks=((4000.7, 1),)))]
        report, _ = cleaned(feed() + quotes + wrong + other_block, tmp_path, paths)
        assert report["dropped"] == {"l2Book_off_bbo": 2, "trades_backfill": 1}
        assert report["levels"] == {"1": 1, "20": END}

    @pytest.mark.parametrize("asset", ["BTC", "ETH", "SOL"])
    def test_real_books_mixed_with_others_are_as_they_were(self, recordings: Path, asset: str) -> None:
        path = recordings / "hyperliquid" / "2025-09-04" / f"{asset}.ndjson.gz"
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
        mixed = [other for text in lines for other in ([text, *others_of(text)] if b'"l2Book"' in text else [text])]
        alone, together = (market_of(b"".join(text), asset) for text in (lines, mixed))
        same(alone[0], together[0])
        added = {"l2Book_fast": 3785 - 3, "l2Book_aggregated": 3785 - 3, "l2Book_repeated": 6}
        assert together[1] - alone[1] == added, "the three that came twice come twice in each stream"

    def test_only_rounded_books_are_refused_and_named(self, tmp_path: Path, paths: Paths) -> None:
        rounded = [(1000 * second, whole(1000 * second, rounded=True)) for second in range(60)]
        with pytest.raises(DataError, match=r"no valid l2Book.*'l2Book_aggregated': 60.*without nSigFigs"):
            cleaned(rounded, tmp_path, paths)


class TestClocks:
    @pytest.mark.parametrize("decimals", [0, 3, 6, 9])
    def test_stamps_of_any_precision_are_served_and_kept(self, tmp_path: Path, paths: Paths, decimals: int) -> None:
        def respelled(text: str) -> str:
            stamp, _, message = text.partition(" ")
            second, _, fraction = stamp[:-1].partition(".")
            return f"{second}{'.' if decimals else ''}{fraction.ljust(9, '0')[:decimals]}Z {message}"

        lines = [(ms, respelled(text)) for ms, text in feed()]
        report, market = cleaned(lines, tmp_path, paths)
        assert report["dropped"] == {"trades_backfill": 1} and report["kept"]["l2Book"] == END
        assert (market.book.local_ns == START_NS + np.arange(END) * SECOND).all()

    @pytest.mark.parametrize("channel", ["l2Book", "activeAssetCtx"])
    @pytest.mark.parametrize(("jump_ms", "cause"), [(400_000, "time_jumps_ahead"), (-30_000, "time_goes_back")])
    def test_one_local_stamp_that_jumps_costs_one_message(self, channel: str, jump_ms: int, cause: str) -> None:
        ctx = {"funding": "0.00001", "openInterest": "1.5", "oraclePx": "4000.0", "markPx": "4000.5"}
        text = whole(60_500) if channel == "l2Book" else line(60_500, channel, {"coin": "ETH", "ctx": ctx})
        lines = [text for _, text in sorted(feed(), key=lambda pair: pair[0])]
        lines.insert(62, stamped(60_500 + jump_ms, text.partition(" ")[2]))
        decoder = Decoder("ETH")
        piece = decoder.decode("\n".join(lines).encode(), START_NS, START_NS + 3600 * SECOND)
        assert decoder.dropped == {cause: 1} and decoder.last_ns == piece.book.local_ns[-1]
        assert len(piece.book.local_ns) == END and len(piece.context.local_ns) == 0
        assert not any(found.any() for found in book_faults(piece.book).values())

    def test_a_real_stamp_that_jumps_costs_one_message(self, recordings: Path) -> None:
        content = gzip.decompress((recordings / "hyperliquid" / "2025-09-04" / "ETH.ndjson.gz").read_bytes())
        lines = content.splitlines(keepends=True)
        lines[3000] = b"2025-09-04T19:55:00.0000000Z" + lines[3000][28:]
        decoder = Decoder("ETH")
        decoder.decode(b"".join(lines), 0, 2**63 - 1)
        assert decoder.dropped == {"time_jumps_ahead": 1}

    @pytest.mark.parametrize(("delay_ms", "kept"), [(-59_000, 0), (-2_001, 0), (-2_000, 1), (60_000, 1), (60_001, 0)])
    def test_what_is_stamped_ahead_is_wrong_what_is_late_may_be_right(
        self, tmp_path: Path, paths: Paths, delay_ms: int, kept: int
    ) -> None:
        sides = levels((4001.0, 1), (4001.1, 1))
        early = line(60_500, "bbo", {"coin": "ETH", "bbo": sides}, delay_ms)
        report, market = cleaned([*feed(), (60_500, early)], tmp_path, paths)
        cause = {} if kept else {f"bbo_stamp_{'ahead' if delay_ms < 0 else 'late'}": 1}
        assert report["dropped"] == {"trades_backfill": 1} | cause and report["kept"]["bbo"] == kept
        assert market.mid_at(START_NS + 70 * SECOND) == 4000.05

    def test_a_recorder_behind_the_exchange_is_told(self, tmp_path: Path, paths: Paths) -> None:
        behind = [(1000 * second, book(1000 * second, delay_ms=-3000)) for second in range(60)]
        with pytest.raises(DataError, match=r"'l2Book_stamp_ahead': 60.*recorder whose clock is behind"):
            cleaned(behind, tmp_path, paths)

    @given(st.lists(st.integers(0, 30), max_size=9))
    def test_the_most_lines_stay(self, times: list[int]) -> None:
        kept = in_order(np.array(times, dtype=np.int64))
        chosen = [time for time, stays in zip(times, kept.tolist(), strict=True) if stays]
        subsets = ([times[i] for i in range(len(times)) if bits >> i & 1] for bits in range(2 ** len(times)))
        assert chosen == sorted(chosen)
        assert len(chosen) == max(len(subset) for subset in subsets if subset == sorted(subset))


class TestHoles:
    def test_a_blank_line_restarts_the_trade_windows_only(self, tmp_path: Path, paths: Paths) -> None:
        report, market = cleaned([*feed(), (600_500, "")], tmp_path, paths)
        assert report["gaps"] == [(START_NS + 600 * SECOND, START_NS + 601 * SECOND)]
        features = compute_features(market, decision_grid(market, 10.0), SMOKE.features, max_gap_s=15.0)
        second = (features["decision_ns"] - START_NS) / SECOND
        reaches = (second > 601) & (second < 901)
        assert set(features["cold_because"][reaches]) == {"trade window reaches into a hole"}
        assert not features["warm"][reaches].any()
        windows = ~features["cold_because"].isin(["trade window reaches into a hole", "warm-up"])
        assert windows[(second > 901) | ((second > 301) & (second <= 600))].all()

    def test_one_an_hour_leaves_most_rows_warm(self) -> None:
        """Three synthetic hours under the thesis's warm-up of an hour; a gap of 16 s would cost each hour."""
        parameters = load(
            "smoke", {"features": {"warmup_s": 3600, "decision_interval_s": 60}, "policy": {"decide_again_s": None}}
        )
        market = synthetic(3 * 3600)
        begin = int(market.top.local_ns[0])
        ends = begin + np.arange(1, 3) * 3600 * SECOND
        for hole_s, share in ((1, 0.6), (16, 0.0)):
            holed = with_gaps(market, np.column_stack([ends - hole_s * SECOND, ends]))
            warm = compute_features(holed, decision_grid(holed, 60.0), parameters.features, max_gap_s=15.0)["warm"]
            assert warm.mean() >= share and (hole_s == 1 or warm.mean() < 0.02)

    def test_no_order_may_live_across_a_hole(self, tmp_path: Path, paths: Paths) -> None:
        _, market = cleaned([*feed(), (600_500, "")], tmp_path, paths)
        decided = START_NS + np.array([500, 560, 620]) * SECOND
        assert market.interrupted(decided, decided + 60 * SECOND).tolist() == [False, True, False]

    def test_nothing_warm_says_what_to_change(self) -> None:
        market = synthetic(900)
        parameters = load("smoke", {"features": {"warmup_s": 3600}})
        features = compute_features(market, decision_grid(market, 10.0), parameters.features)
        with pytest.raises(
            DataError, match=r"no warm decision time in train and .*\(\d+ warm-up\).*features\.warmup_s"
        ):
            decisions(features, "ETH")

    def test_what_is_counted_is_what_there_is(self) -> None:
        market = synthetic(3600)
        begin, end = (int(ns) for ns in market.top.local_ns[[0, -1]])
        split = {"train": (begin, begin + 1200 * SECOND), "validation": (begin + 1500 * SECOND, end - 600 * SECOND)}
        split["test"] = (end - 300 * SECOND, end)
        features = compute_features(market, decision_grid(market, 10.0), SMOKE.features, split)
        told = decisions(features, "ETH").set_index("part")["decision_times"]
        assert told.sum() == len(features)
        assert told[list(split)].sum() == (features["split"] != "").sum() and told["between the parts"] > 0


class TestSplit:
    def report(self, last_s: int, gaps: Any = (), silences: Any = ()) -> dict[str, Any]:
        edges = {"first_ns": 0, "last_ns": last_s * SECOND, "begins_ns": 0, "ends_ns": last_s * SECOND}
        spans = {"gaps": gaps, "silences": silences}
        return edges | {name: [(a * SECOND, b * SECOND) for a, b in found] for name, found in spans.items()}

    def seconds(self, report: dict[str, Any]) -> list[tuple[float, float]]:
        return [(begin / SECOND, end / SECOND) for begin, end in split_span(report, SMOKE).values()]

    def test_a_gap_is_nobodys_share(self) -> None:
        """Warm-up 300 s after begin and gap, cuts of 360 s: of 4720 s, 600 + 100 + 300 x 10 would be usable."""
        assert self.seconds(self.report(2020)) == [(300, 900), (1260, 1360), (1720, 2020)]
        gap = [(600, 843)]  # in what would be the train share: usable are 300-600 and from 1143 on
        assert self.seconds(self.report(2563, gap)) == [(300, 1443), (1803, 1903), (2263, 2563)]

    def test_a_cut_that_falls_into_a_gap_costs_nothing(self) -> None:
        report = self.report(2120, [(900, 1000)])  # until 1300 s no decision is warm: longer than the first cut
        assert self.seconds(report) == [(300, 900), (1260, 1400), (1760, 2120)]

    @given(st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 400)), max_size=6), st.integers(4000, 12_000))
    def test_the_shares_hold_for_what_is_usable(self, gaps: list[tuple[int, int]], last_s: int) -> None:
        gaps = [(begin, begin + length) for begin, length in gaps if begin + length < last_s]
        ends = np.cumsum([0, *sorted(end - begin for begin, end in gaps)])
        apart = [(2000 + 900 * row, int(2000 + 900 * row + ends[row + 1] - ends[row])) for row in range(len(gaps))]
        report = self.report(last_s, [gap for gap in apart if gap[1] < last_s])
        try:
            parts = list(split_span(report, SMOKE).values())
        except DataError:
            return
        usable = np.ones(last_s, dtype=bool)
        usable[:300] = False
        for begin, end in report["gaps"]:
            usable[begin // SECOND : end // SECOND + 300] = False  # warm-up and trade window are as long
        held = np.array([usable[-(-begin // SECOND) : end // SECOND].sum() for begin, end in parts])
        assert held[1] == pytest.approx(held[0] / 6, abs=5) and held[2] >= held[0] / 2 - 5
        assert held[2] <= held[0] / 2 + 720  # where a cut's place decides, what it spares is the test's
        assert parts[1][0] - parts[0][1] == parts[2][0] - parts[1][1] == 360 * SECOND

    def test_a_book_that_ends_before_the_rest_ends_the_span(self, tmp_path: Path, paths: Paths) -> None:
        """Mark price and funding go on for 25 minutes: all parts lie where there are books."""
        ctx = {"funding": "0.00001", "openInterest": "1.5", "oraclePx": "4000.0", "markPx": "4000.5"}
        more = [(ms, line(ms, "activeAssetCtx", {"coin": "ETH", "ctx": ctx})) for ms in range(3000, 50 * 60_000, 3000)]
        report, _ = cleaned(feed() + more, tmp_path, paths, 50)
        assert report["last_ns"] == START_NS + (END - 1) * SECOND == report["spans"]["l2Book"][1]
        assert report["spans"]["activeAssetCtx"][1] == START_NS + (50 * 60 - 3) * SECOND
        assert report["gaps"] == [(report["last_ns"], START_NS + (50 * 60 - 3) * SECOND)]
        split = json.loads((paths.data / "split.json").read_text())
        assert max(end for _, end in split.values()) == report["last_ns"]

    def test_an_empty_part_says_why(self) -> None:
        with pytest.raises(DataError, match=r"of 201 decision times 0 can be used \(30 warm-up, 171 no print"):
            self.seconds(self.report(2000, silences=[(0, 2001)]))
        gaps = [(begin, begin + 20) for begin in range(200, 3000, 250)]
        with pytest.raises(DataError, match=r"can be used \(\d+ in a gap, \d+ warm-up\)"):
            self.seconds(self.report(3000, gaps))

    def test_a_market_without_prints_says_at_02_what_cannot_follow(self, tmp_path: Path, paths: Paths) -> None:
        books = [(1000 * second, whole(1000 * second)) for second in range(END)]
        report, _ = cleaned(books, tmp_path, paths)
        assert "need prints: add trades to source.channels" in cannot_follow(report)
        with pytest.raises(DataError, match=r"ETH: 02_preprocess kept books but none of 0 prints.*run --until 02"):
            require(report)


class TestTwice:
    def test_every_line_twice_is_every_line_once(self, tmp_path: Path, paths: Paths) -> None:
        quotes = [(1000 * second + 300, quote(1000 * second + 300, (3999.9 - second % 2, 1))) for second in range(END)]
        ctx = {"funding": "0.00001", "openInterest": "1.5", "oraclePx": "4000.0", "markPx": "4000.5"}
        contexts = [(ms, line(ms, "activeAssetCtx", {"coin": "ETH", "ctx": ctx})) for ms in range(100, 60_000, 3000)]
        lines = sorted(feed() + quotes + contexts, key=lambda pair: pair[0])
        (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
        once, market = cleaned(lines, tmp_path / "one", paths)
        twice, doubled = cleaned([pair for pair in lines for _ in range(2)], tmp_path / "two", Paths("smoke", "TWO"))
        same(market, doubled)
        assert twice["cadence_s"] == once["cadence_s"] == 1.0 and twice["kept"] == once["kept"]
        kept = {f"{name}_repeated": count for name, count in once["kept"].items()}
        assert twice["dropped"] == once["dropped"] | kept | {
            "trades_backfill": 1,
            "trades_repeated": len(trickle((30, END))),
        }

    def test_a_second_recorder_adds_nothing(self, tmp_path: Path, paths: Paths) -> None:
        """The same messages, received 120 ms later by another: the first to come is kept, over the hour's end too."""
        lines = feed(70 * 60)
        later = [(ms + 120, f"{stamped(ms + 120, '')}{text.partition(' ')[2]}") for ms, text in lines]
        report, market = cleaned(lines + later, tmp_path, paths, 59)
        assert (market.book.local_ns == START_NS + np.arange(59 * 60) * SECOND).all() and report["cadence_s"] == 1.0
        cleaner, decoder, kept = Cleaner(SMOKE, "ETH"), Decoder("ETH"), []
        for text in (whole(3_599_950), whole(3_600_070, delay_ms=520)):
            book, *_ = cleaner.clean(decoder.decode(text.encode(), 0, 2**63 - 1), decoder.ended_ns)
            kept.append(len(book.local_ns))
        assert kept == [1, 0] and cleaner.dropped == {"l2Book_repeated": 1}

    def test_prints_are_told_apart_by_time_and_tid(self, tmp_path: Path, paths: Paths) -> None:
        """One tid at two times is two prints; the same of both, over any connection, is one."""
        tape = [(ms, prints(ms, 7)) for ms in (40_000, 50_000)] + [(51_000, prints(51_000, 7, delay_ms=1400))]
        report, market = cleaned(feed() + tape, tmp_path, paths)
        assert (market.trades.tid == 7).sum() == 2 and report["dropped"]["trades_repeated"] == 1


@pytest.mark.parametrize(("typed", "meant"), [("eth", "ETH"), ("KPEPE", "kPEPE"), ("Btc", "BTC"), ("hyp", "HYPE")])
def test_names_are_met_whatever_their_case(typed: str, meant: str) -> None:
    assert nearest(typed, ["BTC", "ETH", "HYPE", "kPEPE"]) == f" (did you mean {meant!r}?)"
    assert nearest("@107", ["BTC", "ETH"]) == ""


def others_of(text: bytes) -> list[bytes]:
    """The `fast` book and the one of four figures that the exchange would have sent with a whole one."""
    stamp, _, message = text.partition(b" ")
    told = json.loads(message)
    sides = told["data"]["levels"]
    step = 10.0 ** (math.floor(math.log10(float(sides[0][0]["px"]))) - 3)
    rounded: list[list[dict[str, Any]]] = []
    for side, toward in zip(sides, (math.floor, math.ceil), strict=True):
        sizes = Counter[float]()
        for level in side:
            sizes[round(toward(round(float(level["px"]) / step, 6)) * step, 6)] += float(level["sz"])
        rounded.append([{"px": f"{price:g}", "sz": f"{size:.4f}", "n": 1} for price, size in sizes.items()])
    levels = [[side[:5] for side in sides], rounded]
    return [
        stamp + b" " + json.dumps(told | {"data": told["data"] | {"levels": one}}).encode() + b"\n" for one in levels
    ]


def market_of(content: bytes, asset: str) -> tuple[Market, Counter[str]]:
    """What is kept of a recording, and what is dropped."""
    decoder, cleaner = Decoder(asset), Cleaner(SMOKE, asset)
    *tables, context = cleaner.clean(decoder.decode(content, 0, 2**63 - 1), decoder.ended_ns)
    return Market(asset, 0, *tables, np.zeros((0, 2), dtype=np.int64), context), decoder.dropped + cleaner.dropped


def synthetic(seconds: int) -> Market:
    """The synthetic ETH for so long, as a market."""
    start_ns = SMOKE.source.start_ns
    return World.of(SMOKE, "ETH").simulate(start_ns, start_ns + seconds * SECOND).market()


def with_gaps(market: Market, gaps: np.ndarray) -> Market:
    return Market(market.asset, market.sz_decimals, market.book, market.bbo, market.trades, gaps, market.context)
