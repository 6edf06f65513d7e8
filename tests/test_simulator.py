"""Fills worked out by hand, what no replay may ever do, and what it refuses."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hand_built import ASKS, BIDS, at, execution, known_at, market, order, orders
from hyperdapo.errors import OrderError
from hyperdapo.execution import simulator
from hyperdapo.execution.parents import LATENCY_S
from hyperdapo.execution.simulator import replay_orders, trace_order
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Contexts
from hyperdapo.market.grid import snap_price, snap_size
from markets import recorded

MID = 1000.0
TAKER, MAKER = 4.5, 1.5
FIFTY_MS = {"latency": {"preset": "empirical", "policy_ms": 0, "empirical_ms": [50.0]}}


def replay(tape: Market, *rows: dict, **changes: object) -> pd.DataFrame:
    return replay_orders(tape, orders(*rows), execution(**changes), seed=3)


def one(tape: Market, **given_order: object) -> pd.Series:
    return replay(tape, order(**given_order)).iloc[0]


def bps(price: float, side: int = 1) -> float:
    return side * (price / MID - 1) * 1e4


class TestTaking:
    def test_a_market_order_walks_the_book_and_pays_the_taker(self) -> None:
        filled = one(market(), size=10.0)
        price = (4 * 1000.1 + 6 * 1000.2) / 10
        assert filled.exec_price == pytest.approx(price) and filled.arrival_mid == MID
        assert filled.implementation_shortfall_bps == pytest.approx(bps(price))
        assert filled.fees_bps == pytest.approx(TAKER * price / MID)
        assert filled.total_cost_bps == pytest.approx(bps(price) + TAKER * price / MID)
        assert (filled.status, filled.filled, filled.filled_passive, filled.maker_share) == ("filled", True, 1.0, 0.0)
        assert filled.fill_ns == filled.arrival_ns and filled.completion_slippage_bps == 0

    def test_a_sell_pays_as_much_on_the_other_side(self) -> None:
        filled = one(market(), side=-1, size=10.0)
        assert filled.exec_price == pytest.approx((5 * 999.9 + 5 * 999.8) / 10)
        assert (
            filled.implementation_shortfall_bps == pytest.approx(bps(filled.exec_price, -1))
            and filled.total_cost_bps > 0
        )

    def test_beyond_the_visible_book_the_price_moves_by_the_square_root(self) -> None:
        tape = market(prints=[(1.0, 1000.1, 40.0, 1)])
        volume = 40.0 * 86_400 / 400  # a day at the pace of this tape
        filled = one(tape, size=38.0)
        last = 1000.3 * (1 + 10 * np.sqrt(10 / volume) * 1e-4)
        assert filled.exec_price == pytest.approx((4 * 1000.1 + 8 * 1000.2 + 16 * 1000.3 + 10 * last) / 38)

    def test_the_newest_quote_replaces_the_best_level_of_the_snapshot(self) -> None:
        tape = market(quotes=[(5.0, 999.9, 5.0, 1000.2, 2.0)])
        assert one(tape, size=3.0).exec_price == pytest.approx((2 * 1000.2 + 1 * 1000.3) / 3)

    def test_a_limit_takes_what_it_reaches_and_rests_with_the_remainder(self) -> None:
        taken = one(market(), size=10.0, limit=1000.1)
        assert (
            taken.status == "completed" and taken.filled_passive == pytest.approx(0.4) and taken.passive_price == 1000.1
        )
        assert taken.queue_ahead == 0 and taken.fill_ns >= taken.arrival_ns

    def test_what_was_taken_is_not_taken_again_when_the_same_quote_is_shown(self) -> None:
        tape = market(books=[(20.0, BIDS, ASKS)], quotes=[(21.0, 999.9, 5.0, 1000.1, 4.0)])
        assert one(tape, size=10.0, limit=1000.1).filled_passive == pytest.approx(0.4)


class TestQueue:
    def test_prints_eat_the_queue_then_fill_in_parts(self) -> None:
        tape = market(prints=[(20, 999.9, 3.0, -1), (30, 999.9, 4.0, -1), (40, 999.9, 9.0, -1)])
        filled = one(tape, limit=999.9)
        assert filled.queue_ahead == 5 and filled.status == "filled" and filled.fill_ns == at(40)
        assert filled.exec_price == 999.9 and filled.maker_share == 1
        assert filled.implementation_shortfall_bps == pytest.approx(-1) and filled.fees_bps == pytest.approx(
            MAKER * 0.9999
        )
        trace = trace_order(tape, filled, execution())
        assert trace.queue_ahead.tolist() == [5, 2, 0, 0] and trace.filled.tolist() == pytest.approx([0, 0, 2, 3])

    def test_what_is_left_at_the_horizon_is_taken_then(self) -> None:
        tape = market(prints=[(20, 999.9, 6.0, -1)], quotes=[(65.0, 1000.4, 1.0, 1000.5, 2.0)])
        filled = one(tape, limit=999.9)
        assert (
            filled.status == "completed" and filled.filled_passive == pytest.approx(1 / 3) and filled.fill_ns == at(20)
        )
        assert at(69.9) < filled.cancel_ns < filled.completion_ns < at(70.1) and filled.completion_price == 1000.5
        assert filled.exec_price == pytest.approx((999.9 + 2 * 1000.5) / 3)
        assert filled.completion_slippage_bps == pytest.approx(bps(1000.5) * 2 / 3)
        assert filled.fees_bps == pytest.approx((999.9 * MAKER + 2 * 1000.5 * TAKER) / 3 / MID)
        assert filled.slippage_bps == pytest.approx((filled.exec_price / 999.9 - 1) * 1e4)

    @pytest.mark.parametrize(
        ("queue", "exponent", "ahead"),
        [("risk_averse", 1.0, 3.0), ("power", 1.0, 2.0), ("power", 2.0, 4 - 4 / 3), ("power", 0.0, 1.0)],
    )
    def test_cancels_shorten_the_queue_by_their_share(self, queue: str, exponent: float, ahead: float) -> None:
        """Of 5 before us 1 is printed; 2 join behind us; then 3 of 6 go without a print, (4 / 6)^n of them before."""
        quotes = [(30, 999.9, 6.0, 1000.1, 4.0), (35, 999.9, 3.0, 1000.1, 4.0)]
        tape = market(prints=[(20, 999.9, 1.0, -1)], quotes=quotes)
        chosen = {"queue": queue, "queue_exponent": exponent}
        filled = replay(tape, order(limit=999.9), **chosen).iloc[0]
        trace = trace_order(tape, filled, execution(**chosen))
        assert trace.queue_ahead.tolist() == pytest.approx([5, 4, 4, ahead])

    @pytest.mark.parametrize(("exponent", "ahead"), [(1.0, 4.0), (0.0, 2.0)])
    def test_what_goes_as_it_came_was_behind_us(self, exponent: float, ahead: float) -> None:
        """2 join behind us and 2 go: the newcomer, but where all cancels are to be before us."""
        quotes = [(30, 999.9, 6.0, 1000.1, 4.0), (35, 999.9, 4.0, 1000.1, 4.0)]
        tape = market(prints=[(20, 999.9, 1.0, -1)], quotes=quotes)
        filled = replay(tape, order(limit=999.9), queue_exponent=exponent).iloc[0]
        trace = trace_order(tape, filled, execution(queue_exponent=exponent))
        assert trace.queue_ahead.tolist() == pytest.approx([5, 4, 4, ahead])

    def test_no_more_stands_before_us_than_the_level_holds(self) -> None:
        tape = market(quotes=[(30, 999.9, 1.0, 1000.1, 4.0)], prints=[(40, 999.9, 2.0, -1)])
        assert one(tape, limit=999.9).filled_passive == pytest.approx(1 / 3)

    def test_a_level_that_empties_leaves_us_first(self) -> None:
        tape = market(quotes=[(20, 999.8, 10.0, 1000.1, 4.0)], prints=[(30, 999.9, 1.0, -1)])
        filled = one(tape, limit=999.9)
        assert filled.filled_passive == pytest.approx(1 / 3) and filled.fill_ns == at(30)

    def test_inside_the_spread_nobody_stands_before_us(self) -> None:
        filled = one(market(prints=[(20, 1000.0, 2.0, -1)]), limit=1000.0)
        assert filled.queue_ahead == 0 and filled.filled_passive == pytest.approx(2 / 3)

    def test_an_empty_level_between_two_has_no_queue(self) -> None:
        assert one(market(books=[(5.0, ((999.9, 5.0), (999.5, 1.0)), ASKS)]), limit=999.7).queue_ahead == 0

    def test_beyond_the_visible_book_the_queue_is_a_guess_until_it_is_seen(self) -> None:
        """Three bids hold 35, one a step. Of the 35 / 3 before us the book leaves 7, and a print of 8 leaves us 1."""
        deep = ((999.6, 7.0), (999.5, 9.0))
        tape = market(prints=[(20, 999.6, 4.0, -1), (40, 999.6, 8.0, -1)], books=[(30.0, deep, ASKS)])
        filled = one(tape, limit=999.6)
        assert filled.queue_estimated and filled.queue_ahead == pytest.approx(35 / 3)
        assert trace_order(tape, filled, execution()).queue_ahead[:3].tolist() == pytest.approx([35 / 3, 35 / 3 - 4, 7])
        assert filled.fill_ns == at(40) and filled.filled_passive == pytest.approx(1 / 3)
        assert not one(tape, limit=999.9).queue_estimated

    def test_what_a_quote_showed_since_the_snapshot_counts(self) -> None:
        quotes = [(5, 999.8, 2.5, 1000.1, 4.0), (6, 999.9, 1.0, 1000.1, 4.0)]
        assert one(market(quotes=quotes), limit=999.8).queue_ahead == 2.5
        gone = [(5, 999.7, 2.5, 1000.1, 4.0), (6, 999.9, 1.0, 1000.1, 4.0)]
        assert one(market(quotes=gone), limit=999.8).queue_ahead == 0

    def test_a_print_through_our_price_fills_no_more_than_its_size(self) -> None:
        tape = market(prints=[(20, 999.8, 1.0, -1), (30, 999.8, 9.0, -1)])
        filled = one(tape, limit=999.9)
        assert trace_order(tape, filled, execution()).filled.tolist() == pytest.approx([0, 1, 3])
        assert filled.fill_ns == at(30) and filled.exec_price == 999.9

    @pytest.mark.parametrize(
        "told", [(20, 999.9, 99.0, 1), (20, 1000.1, 99.0, -1), (80, 999.9, 99.0, -1), (9, 999.9, 99.0, -1)]
    )
    def test_a_print_of_another_side_price_or_time_fills_nobody(self, told: tuple) -> None:
        assert one(market(prints=[told]), limit=999.9).filled_passive == 0

    def test_a_print_before_the_order_arrives_is_not_its_own(self) -> None:
        tape = market(prints=[(10.004, 999.9, 99.0, -1), (10.051, 999.9, 6.0, -1)])
        filled = one(tape, limit=999.9, post_only=True)
        assert filled.fill_ns == at(10.051) and filled.filled_passive == pytest.approx(1 / 3)


class TestGivenUp:
    def test_what_is_left_costs_nothing_when_it_is_given_up(self) -> None:
        """2 of 3 are made at 999.9; the third is taken at 1000.5 or given up."""
        tape = market(prints=[(20, 999.9, 7.0, -1)], quotes=[(65.0, 1000.4, 1.0, 1000.5, 2.0)])
        given_up = one(tape, limit=999.9, completes=False)
        assert given_up.status == "abandoned" and not given_up.filled
        assert [given_up.filled_passive, given_up.maker_share] == pytest.approx([2 / 3, 2 / 3])
        assert given_up.exec_price == pytest.approx(999.9)
        assert given_up.implementation_shortfall_bps == pytest.approx(bps(999.9) * 2 / 3)
        assert given_up.fees_bps == pytest.approx(MAKER * 0.9999 * 2 / 3)
        assert [given_up.spread_bps, given_up.timing_bps, given_up.opportunity_bps] == pytest.approx([-2 / 3, 0, 0])

    def test_nothing_traded_costs_nothing(self) -> None:
        nothing = one(market(), limit=999.9, completes=False)
        assert nothing.status == "abandoned" and np.isnan(nothing.exec_price) and nothing.filled_passive == 0
        costs = ["implementation_shortfall_bps", "slippage_bps", "fees_bps", "funding_bps", "total_cost_bps"]
        assert (nothing[costs] == 0).all()


class TestBlock:
    """Inside a block the exchange takes post-only orders, then cancels, then IOC and GTC."""

    def test_who_takes_meets_what_the_block_leaves(self) -> None:
        tape = market(quotes=[(10.1, 1000.9, 1.0, 1001.1, 9.0)])
        assert replay(tape, order(), **FIFTY_MS).exec_price[0] == 1001.1
        assert replay(tape, order(), block_ms=40, **FIFTY_MS).exec_price[0] == 1000.1

    def test_a_post_only_order_is_there_before_the_prints_of_its_block_and_another_limit_is_not(self) -> None:
        tape = market(prints=[(10.05, 999.9, 9.0, -1)])
        careful, plain = replay(tape, order(limit=999.9, post_only=True), order(limit=999.9), **FIFTY_MS).filled
        assert careful and not plain

    def test_a_cancel_escapes_the_prints_of_its_block(self) -> None:
        """Sent three latencies before the deadline, at 69.85 s, it lands at 69.9 s."""
        told = [(69.9, 999.9, 9.0, -1), (69.899, 999.9, 6.0, -1)]
        at_once, before = (replay(market(prints=[each]), order(limit=999.9), **FIFTY_MS).iloc[0] for each in told)
        assert at_once.cancel_ns == at(69.9) and at_once.completion_ns == at(70) and at_once.filled_passive == 0
        assert before.filled_passive == pytest.approx(1 / 3)


class TestNoCrossing:
    """Where makers send post-only, a quote that comes to a resting order is refused: only who takes fills it."""

    def test_a_quote_that_comes_to_our_price_fills_nothing(self) -> None:
        tape = market(quotes=[(20, 999.8, 1.0, 999.9, 9.0), (30, 999.6, 1.0, 999.7, 9.0)])
        filled = replay(tape, order(limit=999.9), crossing_fills=False).iloc[0]
        assert filled.filled_passive == 0 and filled.status == "completed"

    def test_nobody_is_left_before_us_then(self) -> None:
        """5 stood before us; the ask of 1 at our price would have met them, so a print of 1 below or at it is ours."""
        tape = market(
            quotes=[(20, 999.8, 1.0, 999.9, 1.0), (25, 999.9, 6.0, 1000.1, 4.0)],
            prints=[(22, 999.8, 1.0, -1), (30, 999.9, 1.0, -1)],
        )
        filled = replay(tape, order(limit=999.9), crossing_fills=False).iloc[0]
        trace = trace_order(tape, filled, execution(crossing_fills=False))
        assert filled.queue_ahead == 5 and trace.queue_ahead.tolist() == [5, 0, 0, 0, 0]
        assert filled[["filled_queue", "filled_through"]].tolist() == pytest.approx([1 / 3, 1 / 3])

    def test_the_buyers_of_a_quote_that_came_to_us_do_not_fill_us(self) -> None:
        tape = market(quotes=[(20, 999.8, 1.0, 999.9, 1.0)], prints=[(25, 999.9, 1.0, 1)])
        assert replay(tape, order(limit=999.9), crossing_fills=False).iloc[0].filled_passive == 0


class TestCrossing:
    """Where they do not, it meets each quote once, and no more than its size."""

    def test_a_quote_that_comes_to_our_price_fills_no_more_than_its_size(self) -> None:
        """Of 3 the first ask at our price has 0.5; the same again is no more; 0.3 join it; a better one brings 2."""
        quotes = [(20, 999.8, 1.0, 999.9, 0.5), (30, 999.7, 1.0, 999.9, 0.5), (40, 999.7, 1.0, 999.9, 0.8)]
        tape = market(quotes=[*quotes, (50, 999.6, 1.0, 999.8, 2.0)])
        filled = one(tape, limit=999.9)
        assert trace_order(tape, filled, execution()).filled.tolist() == pytest.approx([0, 0.5, 0.5, 0.8, 2.8])
        assert filled[["filled_queue", "filled_through", "filled_crossed"]].tolist() == pytest.approx([0, 0, 2.8 / 3])
        assert filled.fill_ns == at(50) and filled.passive_price == pytest.approx(999.9)

    def test_a_worse_quote_stood_behind_the_last(self) -> None:
        quotes = [(20, 999.7, 1.0, 999.8, 0.5), (30, 999.7, 1.0, 999.9, 9.0), (40, 999.7, 1.0, 999.8, 0.7)]
        assert one(market(quotes=quotes), limit=999.9).filled_passive == pytest.approx(1.2 / 3)

    def test_once_it_has_been_apart_the_same_quote_is_new(self) -> None:
        quotes = [(20, 999.8, 1.0, 999.9, 0.5), (30, 999.8, 1.0, 1000.1, 4.0), (40, 999.8, 1.0, 999.9, 0.5)]
        assert one(market(quotes=quotes), limit=999.9).filled_passive == pytest.approx(1 / 3)

    def test_what_is_left_stands_first(self) -> None:
        """5 stood before us; the quote of 1 that came to our price has met them before, so a print of 1 is ours."""
        tape = market(
            quotes=[(20, 999.8, 1.0, 999.9, 1.0), (25, 999.9, 6.0, 1000.1, 4.0)], prints=[(30, 999.9, 1.0, -1)]
        )
        filled = one(tape, limit=999.9)
        assert filled.queue_ahead == 5 and trace_order(tape, filled, execution()).queue_ahead.tolist() == [5, 0, 0, 0]
        assert filled[["filled_queue", "filled_crossed"]].tolist() == pytest.approx([1 / 3, 1 / 3])

    def test_so_it_does_where_bid_and_ask_stand_at_our_price(self) -> None:
        tape = market(quotes=[(20, 999.9, 5.0, 999.9, 1.0)], prints=[(30, 999.9, 1.0, -1)])
        assert one(tape, limit=999.9).filled_passive == pytest.approx(2 / 3)

    def test_the_buyers_of_a_quote_that_came_to_us_do_not_fill_us_again(self) -> None:
        tape = market(quotes=[(20, 999.8, 1.0, 999.9, 1.0)], prints=[(25, 999.9, 1.0, 1)])
        assert one(tape, limit=999.9).filled_passive == pytest.approx(1 / 3)

    def test_a_print_through_us_and_the_rest_of_its_aggressor_are_two(self) -> None:
        """Who sells 2.5 down to 999.8 finds 1 there and offers 1.5 more: 2.5 in all would have met us."""
        tape = market(prints=[(20, 999.8, 1.0, -1)], quotes=[(20, 999.7, 9.0, 999.8, 1.5)])
        filled = one(tape, limit=999.9)
        assert filled[["filled_through", "filled_crossed"]].tolist() == pytest.approx([1 / 3, 1.5 / 3])


class TestSiblings:
    def test_orders_of_one_parent_share_a_print(self) -> None:
        """10 print: 5 were before both, the earlier order has 3, the later 2; the better price would come first."""
        tape = market(prints=[(30, 999.9, 10.0, -1)])
        rows = [order(decision=12.0, limit=999.9, order_id=2), order(limit=999.9, order_id=1)]
        shared = replay_orders(tape, orders(*rows).assign(parent=4), execution(), seed=3)
        assert shared.filled_passive.tolist() == pytest.approx([2 / 3, 1])
        alone = replay_orders(tape, orders(*rows).assign(parent=-1), execution(), seed=3)
        assert alone.filled_passive.tolist() == [1, 1]
        through = market(prints=[(30, 999.8, 4.0, -1)])
        rows[0] = rows[0] | {"limit_price": 1000.0}
        shared = replay_orders(through, orders(*rows).assign(parent=4), execution(), seed=3)
        assert shared.filled_passive.tolist() == pytest.approx([1, 1 / 3])

    def test_orders_of_one_parent_share_a_quote(self) -> None:
        tape = market(quotes=[(30, 999.8, 1.0, 999.9, 4.0), (40, 999.8, 1.0, 999.9, 4.5)])
        rows = [order(decision=12.0, limit=999.9, order_id=2), order(limit=999.9, order_id=1)]
        shared = replay_orders(tape, orders(*rows).assign(parent=4), execution(), seed=3)
        assert shared.filled_crossed.tolist() == pytest.approx([1.5 / 3, 1])


class TestPostOnly:
    """Legs of 50 ms: a refusal at 10.05 s is known at 10.1 s, and the next try arrives at 10.15 s."""

    def test_one_that_is_refused_comes_back_at_the_best_quote_of_its_side(self) -> None:
        """It learns of 1000.4 by the answer: the feed shows that quote of 10.02 s only at 10.12 s."""
        tape = market(quotes=[(10.02, 1000.4, 3.0, 1000.6, 3.0)], prints=[(20, 1000.4, 5.0, -1)])
        filled = replay(tape, order(limit=1000.6, post_only=True), **FIFTY_MS).iloc[0]
        assert filled.rejections == 1 and filled.status == "completed" and filled.queue_ahead == 3
        assert filled.filled_queue == pytest.approx(2 / 3) and filled.passive_price == pytest.approx(1000.4)
        assert filled.target_price == 1000.6 and filled.arrival_ns == at(10.05)

    def test_what_the_feed_has_shown_since_counts_more_than_the_answer(self) -> None:
        """Latencies of 2 s: refused at 12 s, known at 14 s, when the quote of 13 s is known too, back at 16 s."""
        slow = {"latency": {"preset": "empirical", "policy_ms": 0, "empirical_ms": [2000.0]}}
        quotes = [(11, 1000.4, 3.0, 1000.6, 3.0), (13, 1000.5, 3.0, 1000.7, 3.0)]
        told = [(15.9, 1000.5, 9.0, -1), (16.1, 1000.5, 9.0, -1)]
        early, late = (
            replay(market(quotes=quotes, prints=[each]), order(limit=1000.6, post_only=True), **slow).iloc[0]
            for each in told
        )
        assert early.filled_passive == 0 and late.filled_passive == 1 and late.passive_price == pytest.approx(1000.5)

    def test_it_tries_until_it_is_let_in(self) -> None:
        """The ask falls to the price of each try: to 1000.0, and to 999.9 when that is sent."""
        quotes = [(10.02, 999.9, 3.0, 1000.0, 3.0), (10.12, 999.8, 3.0, 999.9, 3.0)]
        filled = replay(market(quotes=quotes), order(limit=1000.0, post_only=True), **FIFTY_MS).iloc[0]
        assert filled.rejections == 2 and filled.queue_ahead == 3

    def test_one_that_is_refused_to_the_end_is_completed_at_the_deadline(self) -> None:
        """Bid and ask stand at one price for as long as it tries."""
        tape = market(quotes=[(10.0, 1000.1, 3.0, 1000.1, 3.0), (69.95, 1000.8, 3.0, 1000.9, 3.0)])
        filled = replay(tape, order(limit=1000.1, post_only=True), **FIFTY_MS).iloc[0]
        assert filled.status == "rejected" and filled.rejections == 599 and filled.filled_passive == 0
        assert filled.fill_ns == -1 and filled.exec_price == 1000.9 and filled.completion_ns == at(70)
        assert np.isnan(filled.passive_price) and np.isnan(filled.queue_ahead)

    def test_without_latency_the_next_try_is_a_millisecond_later(self) -> None:
        at_once = {"latency": {"preset": "empirical", "policy_ms": 0, "empirical_ms": [0.0]}}
        told = [(10.0005, 999.9, 9.0, -1), (10.0015, 999.9, 9.0, -1)]
        before, after = (
            replay(market(prints=[each]), order(limit=1000.1, post_only=True), **at_once).iloc[0] for each in told
        )
        assert before.filled_passive == 0 and after.filled_passive == 1 and after.rejections == 1

    def test_one_that_rests_is_like_any_other(self) -> None:
        tape = market(prints=[(20, 999.9, 9.0, -1)])
        plain, careful = one(tape, limit=999.9), one(tape, limit=999.9, post_only=True)
        assert plain.drop("post_only").equals(careful.drop("post_only"))


class TestClock:
    """The deadline is the decision and the horizon, whatever the latency."""

    @pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 2.0])
    def test_a_slower_trader_rests_shorter_and_completes_no_later(self, seconds: float) -> None:
        latency = {"preset": "empirical", "policy_ms": 0, "empirical_ms": [seconds * 1000]}
        rows = [order(limit=999.9, waits=False), order(waits=True)]
        _, (resting, waiting) = zip(*replay(market(), *rows, latency=latency).iterrows(), strict=True)
        assert resting.expiry_ns == waiting.expiry_ns == at(70)
        assert resting.arrival_ns == at(10 + seconds) and resting.cancel_ns == at(70 - 2 * seconds)
        assert resting.completion_ns == waiting.completion_ns == at(70)

    def test_entry_cancel_answer_and_completion_have_latencies_of_their_own(self) -> None:
        filled = one(market(), limit=999.9)
        sent = filled.expiry_ns - 3 * 27.5e6
        legs = [
            filled.arrival_ns - filled.decision_ns,
            filled.cancel_ns - sent,
            filled.completion_ns - filled.cancel_ns,
        ]
        assert len(set(legs)) == 3 and all(5e6 <= leg <= 50e6 for leg in legs[:2]) and 10e6 <= legs[2] <= 100e6
        assert filled.expiry_ns == at(70)

    def test_a_cancel_never_comes_before_its_order(self) -> None:
        slow = {"latency": {"preset": "empirical", "policy_ms": 0, "empirical_ms": [2000.0]}}
        filled = replay(market(), order(limit=999.9, horizon_s=1.0), **slow).iloc[0]
        assert filled.cancel_ns == filled.arrival_ns == at(12) and filled.completion_ns == at(16)

    def test_who_waits_is_completed_at_the_deadline(self) -> None:
        tape = market(quotes=[(69.9, 1000.8, 3.0, 1000.9, 3.0)], prints=[(20, 999.0, 99.0, -1)])
        filled = one(tape, waits=True)
        assert (filled.status, filled.filled_passive, filled.fill_ns) == ("completed", 0, -1)
        assert filled.exec_price == 1000.9 and at(69.97) < filled.completion_ns < at(70.03)
        assert filled.arrival_ns == filled.completion_ns and 5 <= filled.latency_ms <= 50
        parts = filled[["spread_bps", "timing_bps", "opportunity_bps"]].tolist()
        assert parts == pytest.approx([0.5, 0, 8.5]) and filled.completion_slippage_bps == pytest.approx(9)

    def test_the_slowest_draws_end_within_the_life_of_a_parent(self) -> None:
        """Each leg as slow as a preset can be, the order sent by a policy that thinks for a second."""
        slowest = np.full(1, np.nextafter(1.0, 0.0))
        for latency in ({"preset": "measured"}, {"preset": "empirical", "empirical_ms": [3000.0]}):
            model = execution(latency={"policy_ms": 1000} | latency).latency
            assert 3 * simulator._latency_ms(model, slowest)[0] < LATENCY_S * 1000
        with pytest.raises(ValidationError, match="3000"):
            execution(latency={"preset": "empirical", "empirical_ms": [3001.0]})

    @pytest.mark.parametrize("tape", [market(gaps=[(69.9, 90.0)]), market(end=70.05)])
    def test_a_completion_in_a_gap_or_beyond_the_data_is_an_error(self, tape: Market) -> None:
        slow = execution(latency={"preset": "empirical", "policy_ms": 0, "empirical_ms": [0.0, 2000.0]})
        many = orders(*[order(limit=999.9, order_id=number) for number in range(20)])
        with pytest.raises(OrderError, match="in a gap"):
            replay_orders(tape, many, slow, seed=3)


class TestTime:
    def test_the_trader_knows_only_what_has_been_received(self) -> None:
        tape = market(quotes=[(9.95, 1009.9, 5.0, 1010.1, 5.0)])
        assert one(tape, decision=10.0).arrival_mid == MID and one(tape, decision=10.1).arrival_mid == 1010.0
        assert one(tape, decision=10.0).exec_price == 1010.1  # but the order meets the market as it is

    def test_markouts_follow_the_last_fill_from_the_mid_before_it(self) -> None:
        quotes = [(21, 999.7, 5.0, 999.9, 5.0), (24.5, 1000.9, 5.0, 1001.1, 5.0), (40, 1001.9, 5.0, 1002.1, 5.0)]
        tape = market(quotes=quotes, prints=[(20, 999.9, 8.0, -1)], end=70.0)
        filled = one(tape, limit=999.9, horizon_s=15.0)
        assert filled.fill_ns == at(20)
        assert filled[["markout_1s_bps", "markout_5s_bps", "markout_10s_bps"]].tolist() == pytest.approx([-2, 10, 10])
        assert np.isnan(filled.markout_60s_bps) and np.isnan(filled.taker_markout_1s_bps)

    def test_a_fill_by_the_market_that_comes_is_measured_before_it_comes(self) -> None:
        """The mid was 1000 when the ask fell to us, and 999.85 a second later, half a spread above the bid."""
        filled = one(market(quotes=[(20, 999.8, 9.0, 999.9, 9.0)]), limit=999.9)
        assert filled.maker_markout_1s_bps == filled.markout_1s_bps == pytest.approx(-1.5)
        assert [filled.spread_bps, filled.timing_bps] == pytest.approx([-1, 0])

    def test_markouts_of_what_was_made_and_of_what_was_taken_stand_apart(self) -> None:
        """2 of 3 are made before the mid falls by 2 bps; 1 is taken at the deadline before it rises by 10."""
        quotes = [(21, 999.6, 5.0, 1000.0, 5.0), (70.5, 1000.7, 5.0, 1000.9, 5.0)]
        filled = one(market(prints=[(20, 999.9, 7.0, -1)], quotes=quotes), limit=999.9)
        assert filled.maker_markout_1s_bps == pytest.approx(-2)
        assert filled.taker_markout_1s_bps == pytest.approx(1e4 / 999.8)
        assert filled.markout_1s_bps == pytest.approx((-2 * 2 + 1e4 / 999.8) / 3)

    def test_presets_have_their_quantiles(self) -> None:
        many = orders(*[order(order_id=number, size=0.1) for number in range(20_000)])
        thesis = replay_orders(market(), many, execution(), seed=0).latency_ms
        measured = execution(latency={"preset": "measured", "policy_ms": 20})
        told = replay_orders(market(), many, measured, seed=0).latency_ms - 20
        assert thesis.min() >= 5 and thesis.max() <= 50 and thesis.mean() == pytest.approx(27.5, abs=0.5)
        assert told.median() == pytest.approx(200, rel=0.03) and told.quantile(0.99) == pytest.approx(900, rel=0.07)

    def test_the_policys_time_is_charged(self) -> None:
        rows = orders(order(), order(policy_ms=30.0)).fillna({"policy_ms": 0.0})
        fixed = {"preset": "empirical", "empirical_ms": [70.0, 70.0]}
        told = replay_orders(market(), rows, execution(latency=fixed), seed=3).latency_ms
        assert told.tolist() == [70.0, 100.0]
        assert replay(market(), order(), latency=fixed | {"policy_ms": 11}).latency_ms.tolist() == [81.0]

    def test_the_times_that_were_measured_are_charged_each_to_an_order(self) -> None:
        fixed = {"preset": "empirical", "empirical_ms": [70.0], "policy_ms": [20.0, 30.0, 90.0]}
        many = orders(*[order(order_id=number, size=0.1) for number in range(2000)])
        told = replay_orders(market(), many, execution(latency=fixed), seed=3).latency_ms - 70
        assert told.between(20, 90).all() and told.median() == pytest.approx(30, abs=1.5)
        assert told.quantile(0.75) == pytest.approx(60, abs=3)
        with pytest.raises(ValidationError, match="an empty sample"):
            execution(latency=fixed | {"policy_ms": []})

    def test_a_measured_series_is_drawn_from(self) -> None:
        many = orders(*[order(order_id=number, size=0.1) for number in range(2_000)])
        told = execution(latency={"preset": "empirical", "empirical_ms": [10.0, 20.0, 400.0]})
        drawn = replay_orders(market(), many, told, seed=0).latency_ms
        assert drawn.min() >= 10 and drawn.max() <= 400 and drawn.median() == pytest.approx(20, abs=5)

    def test_what_prints_before_the_cancel_lands_counts_and_after_is_too_late(self) -> None:
        quiet = one(market(), limit=999.9)
        seconds = [(ns - at(0)) / 1e9 for ns in (quiet.cancel_ns - 10**6, quiet.cancel_ns + 10**6)]
        before, after = (one(market(prints=[(second, 999.9, 9.0, -1)]), limit=999.9) for second in seconds)
        assert before.filled and not after.filled_passive


class TestFunding:
    """The hour is full at 800 s; a long then pays 1 bps."""

    @staticmethod
    def tape(**told: object) -> Market:
        context = Contexts(np.array([known_at(700)]), *(np.array([value]) for value in (999.0, 1000.0, 1e-4, 5.0)))
        return replace(market(end=1000.0, **told), context=context)

    def test_who_holds_when_the_hour_is_full_pays_or_is_paid(self) -> None:
        rows = [order(decision=770), order(decision=770, side=-1), order(decision=600), order(decision=801)]
        assert replay(self.tape(), *rows).funding_bps.tolist() == pytest.approx([1, -1, 0, 0])

    @pytest.mark.parametrize(("second", "funding"), [(790, 1.0), (810, 0.0)])
    def test_who_is_filled_before_pays_and_after_does_not(self, second: float, funding: float) -> None:
        filled = one(self.tape(prints=[(second, 999.9, 8.0, -1)]), decision=770, limit=999.9)
        assert filled.filled and filled.funding_bps == pytest.approx(funding)
        shortfall = filled.implementation_shortfall_bps
        assert filled.total_cost_bps == pytest.approx(shortfall + filled.fees_bps + funding, abs=1e-9)

    def test_a_part_pays_for_itself(self) -> None:
        filled = one(self.tape(prints=[(790, 999.9, 7.0, -1)]), decision=770, limit=999.9)
        assert filled.filled_passive == pytest.approx(2 / 3) and filled.funding_bps == pytest.approx(2 / 3)


class TestParts:
    def test_by_hand(self) -> None:
        """2 of 3 made at 999.9 when the mid was 1000, 1 taken at 1000.5 when it was 1000.45."""
        tape = market(prints=[(20, 999.9, 7.0, -1)], quotes=[(65.0, 1000.4, 1.0, 1000.5, 2.0)])
        filled = one(tape, limit=999.9)
        parts = filled[["spread_bps", "timing_bps", "opportunity_bps"]].tolist()
        assert parts == pytest.approx([(-2 * 1 + 0.5) / 3, 0.0, 4.5 / 3])

    def test_timing_is_the_move_before_the_fill(self) -> None:
        tape = market(quotes=[(20, 1000.1, 5.0, 1000.3, 5.0)], prints=[(30, 999.9, 9.0, -1)])
        filled = one(tape, limit=999.9)
        assert filled.filled and filled.timing_bps == pytest.approx(2.0) and filled.spread_bps == pytest.approx(-3.0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"size": np.nan}, "a size that is not above zero"),
            ({"size": 0.0}, "a size that is not above zero"),
            ({"size": -1.0}, "a size that is not above zero"),
            ({"size": 0.10005}, "no multiple of 0.0001"),
            ({"side": 0}, "neither"),
            ({"horizon_s": np.nan}, "a horizon"),
            ({"horizon_s": np.inf}, "outside the data"),
            ({"size": np.inf}, "a size that is not above zero"),
            ({"limit": 1000.05}, "off the grid"),
            ({"limit": -1.0}, "off the grid"),
            ({"limit": 999.9, "size": 0.01}, "less than 10 USD"),
            ({"post_only": True}, "post_only without"),
            ({"decision": -5.0}, "outside the data or in a gap"),
            ({"decision": 380.0}, "outside the data or in a gap"),
            ({"decision": 150.0}, "outside the data or in a gap"),
        ],
    )
    def test_a_bad_order_is_named(self, change: dict, message: str) -> None:
        tape = market(gaps=[(190.0, 215.0)])
        with pytest.raises(OrderError, match=rf"row 1 has .*{message}.*order_id 77"):
            replay(tape, order(), order(**change, order_id=77))

    def test_an_empty_market_and_a_missing_column_are_named(self) -> None:
        tape = market()
        nothing = type(tape.book)(*(array[:0] for array in vars(tape.book).values()))
        with pytest.raises(OrderError, match="empty"):
            replay(Market("ETH", 4, nothing, tape.bbo, tape.trades, tape.gaps), order())
        with pytest.raises(OrderError, match="limit_price"):
            replay_orders(tape, orders(order()).drop(columns="limit_price"), execution(), seed=0)

    def test_no_orders_are_no_rows(self) -> None:
        assert len(replay_orders(market(), orders(order()).iloc[:0], execution(), seed=0)) == 0


@st.composite
def tapes(draw: st.DrawFn) -> Market:
    """90 s of a wandering book with prints at and around the touch."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    books, quotes, prints, middle = [], [], [], 10_000
    for second in np.sort(rng.uniform(0.5, 90, 120)).round(3):
        middle += int(rng.integers(-2, 3))
        bids = [((middle - 1 - level) / 10, float(rng.integers(1, 9))) for level in range(3)]
        asks = [((middle + 1 + level) / 10, float(rng.integers(1, 9))) for level in range(3)]
        kind = rng.integers(3)
        if kind == 0:
            books.append((second, bids, asks))
        elif kind == 1:
            quotes.append((second, *bids[0], *asks[0]))
        else:
            aggressor = int(rng.choice([-1, 1]))
            level = (bids if aggressor < 0 else asks)[int(rng.integers(3))]
            prints.append((second, level[0], float(rng.integers(1, 12)), aggressor))
    return market(books=books, quotes=quotes, prints=prints, end=200.0)


@st.composite
def order_lists(draw: st.DrawFn) -> pd.DataFrame:
    rows = st.builds(
        lambda second, side, size, tick, post, number: order(
            decision=second, side=side, size=size, limit=tick / 10, post_only=post, order_id=number, horizon_s=20.0
        ),
        *(st.floats(0.2, 60), st.sampled_from([-1, 1]), st.integers(1, 40), st.integers(9_980, 10_020)),
        *(st.booleans(), st.integers(0, 9)),
    )
    return orders(*draw(st.lists(rows, min_size=1, max_size=12)))


class TestAlways:
    @settings(max_examples=40, deadline=None)
    @given(tape=tapes(), batch=order_lists())
    def test_what_holds_for_every_order(self, tape: Market, batch: pd.DataFrame) -> None:
        filled = replay_orders(tape, batch, execution(), seed=1)
        some = filled.filled_passive > 0
        assert (filled.fill_ns[some] >= filled.arrival_ns[some]).all() and (filled.fill_ns[~some] == -1).all()
        assert (filled.fill_ns < filled.cancel_ns).all() and (filled.cancel_ns < filled.expiry_ns).all()
        let_in = some & (filled.rejections == 0)
        assert (filled.side * (filled.passive_price - filled.limit_price))[let_in].le(1e-9).all()
        routes = filled[["filled_queue", "filled_through", "filled_crossed"]]
        np.testing.assert_allclose(routes.sum(axis=1), filled.maker_share, atol=1e-12)
        assert (filled.maker_share <= filled.filled_passive + 1e-12).all()
        gained = filled.side * (filled.passive_price / filled.arrival_mid - 1) * 1e4 * filled.filled_passive
        parts = gained.fillna(0) + filled.completion_slippage_bps
        np.testing.assert_allclose(parts, filled.implementation_shortfall_bps, atol=1e-9)
        np.testing.assert_allclose(filled.total_cost_bps, parts + filled.fees_bps, atol=1e-9)
        parts = filled[["spread_bps", "timing_bps", "opportunity_bps"]].sum(axis=1)
        np.testing.assert_allclose(parts, filled.implementation_shortfall_bps, atol=1e-9, rtol=0)

    @settings(max_examples=25, deadline=None)
    @given(tape=tapes(), batch=order_lists(), seed=st.integers(0, 99))
    def test_no_order_knows_of_another(self, tape: Market, batch: pd.DataFrame, seed: int) -> None:
        together = replay_orders(tape, batch, execution(), seed)
        shuffled = np.random.default_rng(seed).permutation(len(batch))
        pd.testing.assert_frame_equal(
            replay_orders(tape, batch.iloc[shuffled], execution(), seed).sort_index(), together
        )
        alone = replay_orders(tape, batch.iloc[[0]], execution(), seed)
        pd.testing.assert_frame_equal(alone, together.iloc[[0]])

    @settings(max_examples=25, deadline=None)
    @given(tape=tapes(), batch=order_lists())
    def test_more_time_or_a_faster_queue_never_unfills(self, tape: Market, batch: pd.DataFrame) -> None:
        short = replay_orders(tape, batch, execution(), seed=1)
        longer = replay_orders(tape, batch.assign(horizon_s=40.0), execution(), seed=1)
        done = short.filled
        assert (longer.filled_passive >= short.filled_passive - 1e-12).all()
        assert (longer.fill_ns == short.fill_ns)[done].all()
        queues = [{"queue": "risk_averse"}, {"queue_exponent": 3.0}, {"queue_exponent": 1.0}, {"queue_exponent": 0.0}]
        worst_first = [*queues, {"queue": "touch"}]
        filled = [replay_orders(tape, batch, execution(**queue), seed=1) for queue in worst_first]
        for worse, better in itertools.pairwise(filled):
            assert (better.filled_passive >= worse.filled_passive - 1e-12).all()
            done = worse.filled
            assert (better.fill_ns <= worse.fill_ns)[done].all()

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 10**6), size=st.integers(1, 60))
    def test_prints_alone_never_fill_more_than_they_hold(self, seed: int, size: int) -> None:
        rng = np.random.default_rng(seed)
        seconds = np.sort(rng.uniform(11, 60, 12)).round(3)
        prints = [(second, rng.choice([999.7, 999.8, 999.9]), float(rng.integers(1, 5)), -1) for second in seconds]
        tape = market(prints=prints)
        trace = trace_order(tape, one(tape, size=float(size), limit=999.9), execution())
        assert (trace.filled.diff().iloc[1:] <= trace.print_size.fillna(0).iloc[1:] + 1e-9).all()

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 10**6), batch=order_lists())
    def test_siblings_never_get_more_than_was_printed(self, seed: int, batch: pd.DataFrame) -> None:
        rng = np.random.default_rng(seed)
        seconds = np.sort(rng.uniform(1, 85, 30)).round(3)
        prints = [(second, rng.choice([998.0, 999.8, 999.9]), float(rng.integers(1, 9)), -1) for second in seconds]
        tape, size = market(prints=prints, end=200.0), np.array([told[2] for told in prints])
        family = batch.assign(parent=0, side=1, order_id=np.arange(len(batch)))
        family["limit_price"] = family["limit_price"].clip(upper=1000)
        filled = replay_orders(tape, family, execution(queue="touch"), seed=1)
        assert (filled.maker_share * filled["size"]).sum() <= size.sum() + 1e-9
        alone = replay_orders(tape, family.assign(parent=-1), execution(queue="touch"), seed=1)
        assert (filled.filled_passive <= alone.filled_passive + 1e-12).all()
        shuffled = np.random.default_rng(seed).permutation(len(family))
        again = replay_orders(tape, family.iloc[shuffled], execution(queue="touch"), seed=1)
        pd.testing.assert_frame_equal(again.sort_index(), filled)

    @settings(max_examples=25, deadline=None)
    @given(tape=tapes(), batch=order_lists())
    def test_a_sell_in_the_mirror_is_a_buy(self, tape: Market, batch: pd.DataFrame) -> None:
        plain = replay_orders(tape, batch, execution(), seed=1)
        mirrored = batch.assign(side=-batch.side, limit_price=np.round(2000 - batch.limit_price, 1))
        other = replay_orders(_mirror(tape), mirrored, execution(), seed=1)
        for name in ("filled_passive", "maker_share", "fill_ns", "queue_ahead"):
            np.testing.assert_allclose(other[name].astype(float), plain[name].astype(float), rtol=1e-9)
        np.testing.assert_allclose(2000 - other.exec_price, plain.exec_price, rtol=1e-6)


def _mirror(tape: Market) -> Market:
    """Bids and asks exchanged around 1000 USD."""
    book, bbo, trades = tape.book, tape.bbo, tape.trades
    flip = lambda price: np.round(2000 - price, 1)  # noqa: E731
    return Market(
        tape.asset,
        tape.sz_decimals,
        type(book)(
            book.exchange_ns, book.local_ns, flip(book.ask_price), book.ask_size, flip(book.bid_price), book.bid_size
        ),
        type(bbo)(bbo.exchange_ns, bbo.local_ns, flip(bbo.ask_price), bbo.ask_size, flip(bbo.bid_price), bbo.bid_size),
        type(trades)(
            trades.exchange_ns,
            trades.local_ns,
            flip(trades.price),
            trades.size,
            (-trades.side).astype(np.int8),
            trades.tid,
        ),
        tape.gaps,
    )


@pytest.mark.parametrize(("asset", "sz_decimals"), [("ETH", 4), ("BTC", 5), ("SOL", 2)])
def test_real_recordings_fill_as_the_market_allows(recordings: Path, asset: str, sz_decimals: int) -> None:
    tape = recorded(recordings / "hyperliquid" / "2025-09-04" / f"{asset}.ndjson.gz", asset, sz_decimals)
    rng = np.random.default_rng(1)
    ns = rng.integers(tape.top.local_ns[0] + 10**9, tape.top.local_ns[-1], 3000)
    ns = ns[~tape.interrupted(ns, ns + 125 * 10**9)]
    best, side = tape.top_at(ns), rng.choice([-1, 1], len(ns))
    near = np.where(side > 0, best.bid_price, best.ask_price)
    batch = pd.DataFrame({"order_id": np.arange(len(ns)), "decision_ns": ns, "side": side, "horizon_s": 60.0})
    batch = batch.assign(size=snap_size(2000 / best.mid, sz_decimals), limit_price=near, post_only=True)
    joined = replay_orders(tape, batch, execution(), seed=1)
    deep = batch.assign(limit_price=snap_price(near * (1 - side * 5e-4), side, sz_decimals))
    deep = replay_orders(tape, deep, execution(), seed=1)
    taken = replay_orders(tape, batch.assign(limit_price=np.nan, post_only=False), execution(), seed=1)
    assert len(batch) > 1000 and 0.3 < joined.filled.mean() < 1 and joined.queue_ahead.notna().mean() > 0.5
    assert deep.filled_passive.mean() < joined.filled_passive.mean() < 1
    assert (deep.filled_passive <= joined.filled_passive + 1e-12)[
        (joined.status != "rejected") & (deep.status != "rejected")
    ].mean() > 0.99
    assert (
        taken.implementation_shortfall_bps.between(-5, 5).mean() > 0.95
        and taken.implementation_shortfall_bps.mean() > 0
    )
    for filled in (joined, deep, taken):
        assert filled.fees_bps.between(1.48, 4.52).all()
        np.testing.assert_allclose(
            filled.total_cost_bps, filled.implementation_shortfall_bps + filled.fees_bps, atol=1e-9
        )
