"""The stylised facts worked out by hand on small markets, and found again in random walks."""

from dataclasses import replace

import numpy as np
import pytest

from hand_built import ASKS, BIDS, START, market
from hyperdapo.market import stylised
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BookSnapshots, TopOfBook, Trades, empty
from markets import random_market

SECOND = 10**9


def walk(steps: np.ndarray) -> Market:
    """A market whose mid moves by so many tenths of a bp every second."""
    ns = START + np.arange(len(steps)) * SECOND
    bid = np.round(40000 * np.exp(1e-5 * np.cumsum(steps)), 2)
    size = np.ones(len(ns))
    quotes = TopOfBook(ns, ns + SECOND // 10, bid, size, bid + 1, size)
    return Market("BTC", 5, empty(BookSnapshots), quotes, empty(Trades), np.zeros((0, 2), np.int64))


def test_a_random_walk_has_no_variance_ratio_but_one() -> None:
    measured = stylised.returns(walk(np.random.default_rng(3).normal(0, 20, 20_000).round()))
    assert measured["volatility_1s_bps"] == pytest.approx(2.0, rel=0.03)
    assert measured["variance_ratio_10s"] == pytest.approx(1, abs=0.07)
    assert measured["variance_ratio_60s"] == pytest.approx(1, abs=0.2)
    assert abs(measured["kurtosis_1s"]) < 0.2


def test_a_trend_shows_in_the_variance_ratio() -> None:
    steps = np.repeat(np.random.default_rng(3).normal(0, 20, 500).round(), 20)
    assert stylised.returns(walk(steps))["variance_ratio_10s"] == pytest.approx(
        8.35, abs=0.5
    )  # runs of 20: 1 + 2 sum (1 - k / 10) (1 - k / 20)


class TestOrders:
    TAPE = market(
        quotes=[(20, 1000.0, 1, 1000.2, 1), (25, 999.9, 1, 1000.1, 1)],
        prints=[(20, 1000.1, 2.0, 1), (20, 1000.2, 3.0, 1), (24, 999.9, 4.0, -1)],
    )

    def test_prints_of_one_block_and_side_are_one_order(self) -> None:
        orders = stylised.market_orders(self.TAPE.trades)
        assert orders["side"].tolist() == [1, -1]
        assert orders["usd"].tolist() == pytest.approx([2 * 1000.1 + 3 * 1000.2, 4 * 999.9])

    def test_the_response_runs_from_before_the_block(self) -> None:
        """The buy moves the mid from 1000.0 to 1000.1, the sell later back again: both by 1 bp."""
        assert stylised.responses(self.TAPE)["response_0.2s_bps"] == pytest.approx((1 + 0) / 2, rel=1e-3)
        assert stylised.responses(self.TAPE)["response_10s_bps"] == pytest.approx((0 + 1) / 2, rel=1e-3)

    def test_what_makers_gain(self) -> None:
        """After 1 s the mid is 1000.1, then 1000.0; the sellers at 1000.1 and 1000.2 and the buyer at 999.9 see it."""
        gains = [0.0, 1000.2 / 1000.2 - 1000.1 / 1000.2, 1000.0 / 999.9 - 1]
        volume = [2 * 1000.1, 3 * 1000.2, 4 * 999.9]
        expected = np.average(gains, weights=volume) * 1e4
        assert stylised.markouts(self.TAPE)["maker_gain_1s_bps"] == pytest.approx(expected)

    def test_no_window_touches_a_gap(self) -> None:
        cut = replace(self.TAPE, gaps=np.array([[START + 22 * SECOND, START + 23 * SECOND]]))
        assert stylised.responses(cut)["response_10s_bps"] == pytest.approx(1.0, rel=1e-3), "the sell alone"

    def test_what_prints_do_not_explain_was_cancelled(self) -> None:
        """The best bid falls from 5 to 1 coin with a sell of 1.5, the best ask from 4 to 3 without a buy."""
        tape = market(quotes=[(10, 999.9, 1.0, 1000.1, 3.0)], prints=[(10, 999.9, 1.5, -1)], end=20)
        tape = replace(tape, book=replace(tape.book, exchange_ns=tape.book.exchange_ns - np.array([0, 9 * SECOND])))
        assert stylised.cancels_per_trade(tape) == pytest.approx((4 - 1.5 + 1) / 1.5)


def test_spread_depth_and_imbalance_of_a_book() -> None:
    measured = stylised.touch(market(books=[(10, BIDS, ASKS)]))
    usd = [[price * size for price, size in side] for side in (BIDS, ASKS)]
    assert measured["spread_ticks"] == pytest.approx(2.0) and measured["spread_one_tick"] == 0.0
    assert measured["depth_1_usd"] == pytest.approx((usd[0][0] + usd[1][0]) / 2)
    assert measured["depth_2_usd"] == pytest.approx((sum(usd[0][:2]) + sum(usd[1][:2])) / 2)


def test_a_jackknife_of_independent_blocks_is_the_standard_error() -> None:
    """Of a deviation of n independent numbers: sigma / sqrt(2 n)."""
    tape = random_market(2, seconds=1800)
    quotes = walk(np.random.default_rng(5).normal(0, 20, 1800).round()).bbo
    error = stylised.sampling_errors(replace(tape, bbo=quotes, book=empty(BookSnapshots)), 100.0)
    assert error["volatility_1s_bps"] == pytest.approx(2 / np.sqrt(2 * 1800), rel=0.5)


def test_what_has_no_recording_is_compared_with_nothing() -> None:
    table = stylised.compare(stylised.moments(random_market(2)), "HYPE")
    assert table["real"].isna().all() and not table["within"].any()


def test_bounds_hold_the_recording_itself() -> None:
    for asset in ("BTC", "ETH", "SOL"):
        real = stylised.recorded(asset)["value"]
        assert stylised.compare(real, asset)["within"].all()
        assert not stylised.compare(real * 4, asset).set_index("moment").loc[list(stylised.TIGHT), "within"].any()
