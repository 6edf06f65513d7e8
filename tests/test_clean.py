"""From slices to a market: a damage is one counted drop, a silence one gap, and the parts of the split are apart."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feeds import MINUTES, SECOND, START_MS, book, cleaned, prints, quiet, quote, stamped, trickle
from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.feed import download
from hyperdapo.feed.clean import preprocess
from hyperdapo.market.book import Book, Market
from hyperdapo.market.usable import merge, split_span
from hyperdapo.params import load
from hyperdapo.paths import Paths
from hyperdapo.synthetic.replay_server import RecordedSlices, serve
from markets import save


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    return Paths("smoke", "ETH")


def test_each_damage_is_dropped_under_its_own_name(tmp_path: Path, paths: Paths) -> None:
    damaged = {
        "l2Book_empty": book(100, bids=()),
        "l2Book_non_finite": book(200, bids=(("nan", 1),)),
        "l2Book_non_positive": book(300, asks=((4000.1, 0),)),
        "l2Book_unsorted": book(400, bids=((3999, 1), (4000, 1))),
        "l2Book_crossed": book(500, bids=((4000.1, 1),)),
        "l2Book_stamp_late": book(600, delay_ms=3_600_000),
        "bbo_crossed": quote(700, bid=(4001, 1)),
        "bbo_non_positive": quote(710, bid=(-1, 1)),
        "trades_non_positive": prints(800, 11, size=-2),
        "trades_non_finite": prints(810, 12, price="inf"),
        "trades_stamp_ahead": prints(820, 13, delay_ms=-3_600_000),
        "malformed": stamped(830, '{"channel":"l2Book","data":{"coin":"ETH"}}'),
    }
    at = [100, 200, 300, 400, 500, 600, 700, 710, 800, 810, 820, 830]
    first = [(50, prints(50, 1, 2))]
    lines = first + quiet(0, MINUTES * 60) + list(zip(at, damaged.values(), strict=True))
    report, market = cleaned(lines, tmp_path, paths)
    assert report["dropped"] == {"trades_backfill": 2} | dict.fromkeys(damaged, 1)
    assert report["kept"] == {"l2Book": MINUTES * 60, "bbo": 0, "trades": 0, "activeAssetCtx": 0}
    assert report["cadence_s"] == 1.0 and report["gaps"] == []
    assert len(market.book.local_ns) == MINUTES * 60 and len(market.trades.tid) == 0


def test_backfill_and_repeated_prints_are_dropped(tmp_path: Path, paths: Paths) -> None:
    tape = [(50, prints(50, 1, 2)), (1500, prints(1500, 3, 4)), (2500, prints(2500, 4, delay_ms=1400))]
    tape += [(2600, prints(2600, 5)), (3000, "")]
    again = [(4500, prints(4500, 5, 6)), (5500, prints(5500, 5, delay_ms=3300)), (5600, prints(5600, 7))]
    more = trickle((30, MINUTES * 60))
    report, market = cleaned(quiet(0, MINUTES * 60) + tape + again + more, tmp_path, paths)
    assert market.trades.tid[: -len(more)].tolist() == [3, 4, 5, 7]
    assert report["dropped"] == {"trades_backfill": 4, "trades_repeated": 2}
    assert report["prints"] == 10 + len(more)


def test_disconnects_and_silences_are_gaps(tmp_path: Path, paths: Paths) -> None:
    disconnect = [(100_500, quote(100_500)), (100_600, "")]
    lines = quiet(0, 101) + disconnect + quiet(110, 200) + quiet(240, 300) + quiet(310, MINUTES * 60)
    report, market = cleaned(lines, tmp_path, paths)
    start = START_MS * 1_000_000
    expected = [[start + 100_500 * 10**6, start + 110 * SECOND], [start + 199 * SECOND, start + 240 * SECOND]]
    assert [list(gap) for gap in report["gaps"]] == expected and market.gaps.tolist() == expected
    assert report["gap_s"] == pytest.approx(9.5 + 41)
    times = np.array([50, 105, 150, 220, 260]) * SECOND + start
    assert ((market.uninterrupted_since(times) - start) // SECOND).tolist() == [0, 0, 110, 110, 240]
    ends = times + 5 * SECOND
    assert market.interrupted(times, ends).tolist() == [False, True, False, True, False]


def test_what_is_written_is_what_is_read(tmp_path: Path, paths: Paths) -> None:
    lines = [(50, prints(50, 1)), (1500, prints(1500, 3, 4)), *quiet(0, MINUTES * 60), (1700, quote(1700, (3999.5, 7)))]
    lines += trickle((30, MINUTES * 60))
    _, market = cleaned(lines, tmp_path, paths)
    assert (market.asset, market.sz_decimals) == ("ETH", 4)
    assert market.book.bid_price[0, :2].tolist() == [4000.0, 3999.9] and np.isnan(market.book.bid_price[:, 2:]).all()
    instant = START_MS * 1_000_000 + np.array([-1, 1_600, 1_750, 2_000]) * 1_000_000
    np.testing.assert_array_equal(market.mid_at(instant), [np.nan, 4000.05, 3999.8, 4000.05])
    assert market.book_at(instant).tolist() == [-1, 1, 1, 2]
    book = Book.at(market, instant[1])
    assert (book.bid_price[0, 0], book.bid_size[0, 0]) == (4000.0, 2.0)
    assert (book.ask_price[0, 1], book.ask_size[0, 1]) == (4000.2, 1.0)
    other = Paths("smoke", "COPY").data
    save(market, other)
    copy = Market.load(other)
    for name in ("book", "bbo", "trades"):
        for column, values in vars(getattr(market, name)).items():
            np.testing.assert_array_equal(getattr(getattr(copy, name), column), values)


def test_nothing_valid_is_an_error_and_leaves_nothing(tmp_path: Path, paths: Paths) -> None:
    with pytest.raises(DataError, match="no valid l2Book"):
        cleaned([(1000 * second, quote(1000 * second)) for second in range(60)], tmp_path, paths)
    assert not list(paths.data.glob("*.parquet")) and not (paths.data / "cleaning.json").exists()
    with pytest.raises(MissingInputError, match="hyperdapo run --profile smoke --until 02"):
        Market.load(paths.data)


def test_a_span_too_short_to_split_says_how_long_it_must_be(tmp_path: Path, paths: Paths) -> None:
    with pytest.raises(DataError, match=r"warm-up and the cuts .* take 1020 s"):
        cleaned(quiet(0, 600), tmp_path, paths)


@pytest.mark.parametrize("profile", ["smoke", "sample"])
def test_the_parts_are_in_order_and_apart(profile: str) -> None:
    wanted = load(profile)
    hours = (wanted.source.end_ns - wanted.source.start_ns) / 3600 / SECOND
    first, last = 0, round(hours * 3600) * SECOND
    whole = {"first_ns": first, "last_ns": last, "begins_ns": first, "ends_ns": last, "gaps": [], "silences": []}
    train, validation, test = split_span(whole, wanted).values()
    cut = (wanted.orders.longest_horizon_s + wanted.features.window_s) * SECOND
    assert train[0] == wanted.features.warmup_s * SECOND and test[1] == last
    assert validation[0] - train[1] == test[0] - validation[1] == cut
    lengths = np.array([end - begin for begin, end in (train, validation, test)])
    early = [wanted.split.train, wanted.split.validation]
    np.testing.assert_allclose(lengths / lengths.sum(), [*early, 1 - sum(early)], atol=1e-9)


def test_intervals_that_meet_are_one() -> None:
    assert merge([(5, 7), (1, 3), (3, 4), (6, 6)]) == [(1, 4), (5, 7)]


@pytest.fixture(scope="module")
def real(
    recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[dict[str, Any], Market]]]:
    patch = pytest.MonkeyPatch()
    patch.setenv("HYPERDAPO_DATA", str(tmp_path_factory.mktemp("real")))
    markets = {}
    with serve(RecordedSlices(recordings / "hyperliquid")) as endpoint:
        for asset in ("BTC", "ETH", "SOL"):
            span = {"from": "2025-09-04T19:46:00Z", "to": "2025-09-04T20:22:00Z"}
            wanted = load("smoke", {"assets": [asset], "source": {"kind": "tardis", "endpoint": endpoint} | span})
            paths = Paths("smoke", asset)
            download.download(wanted, asset, paths)
            markets[asset] = preprocess(wanted, asset, paths), Market.load(paths.data)
    yield markets
    patch.undo()


@pytest.mark.parametrize(("asset", "kept"), [("BTC", 6615), ("ETH", 6824), ("SOL", 4377)])
def test_a_real_recording(real: dict[str, tuple[dict[str, Any], Market]], asset: str, kept: int) -> None:
    report, market = real[asset]
    assert report["dropped"] == {"trades_backfill": 60, "l2Book_repeated": 3}  # three books came twice, word for word
    assert report["kept"]["trades"] == kept == len(market.trades.tid) and report["levels"] == {"20": 3782}
    assert report["cadence_s"] == pytest.approx(0.54, abs=0.01)
    assert len(report["gaps"]) == 1 and report["gap_s"] == pytest.approx(18, abs=0.3)
    assert (market.top.bid_price < market.top.ask_price).all()
    assert np.array_equal(np.maximum.accumulate(market.top.exchange_ns), market.top.exchange_ns)
