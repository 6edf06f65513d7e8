"""Decisions that are taken again: single shot as their special case, what the trader knows, exact action values."""

import numpy as np
import pandas as pd
import pytest

from hand_built import at, market
from hyperdapo.errors import DataError, OrderError
from hyperdapo.execution.children import Known, decide_again, requote
from hyperdapo.execution.parents import action_orders, parent_orders, replay, touch
from hyperdapo.market.book import Market
from hyperdapo.params import Parameters, load
from hyperdapo.sections import Action
from hyperdapo.sequential.rivals import renewed
from hyperdapo.sequential.rollouts import execute, roll_out
from hyperdapo.sequential.states import Visited, instants
from markets import random_market

ACTIONS = [Action.parse(word) for word in ("take", "join", "improve 1", "behind 1", "behind 5", "wait")]
TAKE, JOIN, IMPROVE, BEHIND, FAR, WAIT = range(len(ACTIONS))
KEEP = len(ACTIONS)
SECOND = 10**9
COSTS = ["total_cost_bps", "implementation_shortfall_bps", "fees_bps", "funding_bps", "spread_bps", "timing_bps"]
SAME = [*COSTS, "opportunity_bps", "filled_passive", "maker_share", "filled", "fill_ns", "status", "rejections"]


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    execution = {"impact_coefficient_bps": 10, "queue_exponent": 1}
    return load("smoke", {"assets": ["ETH"], "execution": execution, "policy": {"actions": [*map(str, ACTIONS)], "decide_again_s": 10}})


@pytest.fixture(scope="module")
def tape() -> Market:
    return random_market(seed=3, seconds=1500)


@pytest.fixture(scope="module")
def parents(tape: Market, parameters: Parameters) -> pd.DataFrame:
    first, last = tape.top.local_ns[[0, -1]]
    ns = np.arange(first + SECOND, last, 5 * SECOND)
    known = {"asset": "ETH", "decision_ns": ns, "mid": tape.mid_at(ns), "warm": True, "split": "train"}
    state = {"volatility_5m_bps": 0.5, "bid_ask_spread_bps": 0.25, "book_imbalance": 0.0}
    return parent_orders(pd.DataFrame(known | state), parameters, tape)


def planned(*actions: int):
    """One parent, decision by decision; then keep."""
    return lambda orders, known: np.full(len(orders), [*actions, *[KEEP] * 60][known.number])


def without_latency(parameters: Parameters, latency_ms: float = 0.0) -> Parameters:
    latency = {"preset": "empirical", "policy_ms": 0.0, "empirical_ms": [latency_ms]}
    execution = parameters.execution
    changed = {"latency": execution.latency.model_copy(update=latency), "queue": "risk_averse", "requote_s": 10.0}
    return parameters.model_copy(update={"execution": execution.model_copy(update=changed)})


def one_parent(**others: object) -> pd.DataFrame:
    row = {"order_id": 1, "asset": "ETH", "objective": "balanced", "decision_ns": at(10), "side": 1, "size": 0.6}
    return pd.DataFrame([row | {"horizon_s": 60.0, "arrival_mid": 1000.0, "split": "test"} | others])


class TestSingleShot:
    @pytest.mark.parametrize("action", range(len(ACTIONS)), ids=map(str, ACTIONS))
    def test_decided_once_an_order_is_the_single_one_to_the_digit(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters, action: int
    ) -> None:
        once = decide_again(tape, parents, planned(action), ACTIONS, 60.0, parameters)
        single = replay(tape, action_orders(parents, tape, ACTIONS, action), parameters)
        pd.testing.assert_frame_equal(once[SAME], single[SAME], check_exact=True)
        np.testing.assert_allclose(once["exec_price"], single["exec_price"], rtol=1e-14)

    @pytest.mark.parametrize("action", [JOIN, IMPROVE, BEHIND, FAR])
    def test_one_that_is_kept_is_the_single_one(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters, action: int
    ) -> None:
        def kept(orders: pd.DataFrame, known: Known) -> np.ndarray:
            return np.where(np.isnan(known.limit), WAIT if known.number else action, KEEP)

        again = decide_again(tape, parents, kept, ACTIONS, 10.0, parameters)
        single = replay(tape, action_orders(parents, tape, ACTIONS, action), parameters)
        rested = (single["rejections"] == 0).to_numpy()  # one that came too late for the book is not there to be kept
        pd.testing.assert_frame_equal(again.loc[rested, SAME], single.loc[rested, SAME], rtol=1e-9, atol=1e-9)

    def test_to_join_again_and_again_is_the_touch_requoted(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters
    ) -> None:
        joined = execute(renewed(JOIN), tape, parents, parameters)
        quoted = requote(tape, parents, lambda children, *_: touch(tape, children), parameters)
        pd.testing.assert_frame_equal(joined, quoted, check_exact=True)


class TestDecisions:
    def test_what_is_taken_is_taken_then_and_nothing_more_is_sent(self, parameters: Parameters) -> None:
        tape = market(quotes=[(25.0, 1000.4, 5.0, 1000.6, 4.0)])
        row = decide_again(tape, one_parent(), planned(JOIN, KEEP, TAKE), ACTIONS, 10.0, without_latency(parameters))
        assert row.fill_ns.iloc[0] == at(30) and row.exec_price.iloc[0] == pytest.approx(1000.6)
        assert row.fees_bps.iloc[0] == pytest.approx(4.5 * 1.0006) and row.filled.iloc[0]

    def test_one_that_waits_stands_nowhere_until_it_comes_back(self, parameters: Parameters) -> None:
        """What prints at its price in the meantime is not its own."""
        tape = market(prints=[(25.0, 999.9, 9.0, -1), (45.0, 999.9, 9.0, -1)])
        plain = without_latency(parameters)
        stays = decide_again(tape, one_parent(), planned(JOIN), ACTIONS, 10.0, plain).iloc[0]
        left = decide_again(tape, one_parent(), planned(JOIN, WAIT, JOIN), ACTIONS, 10.0, plain).iloc[0]
        gone = decide_again(tape, one_parent(), planned(JOIN, *[WAIT] * 5), ACTIONS, 10.0, plain).iloc[0]
        assert stays.fill_ns == at(25) and left.fill_ns == at(45)
        assert gone.filled_passive == 0 and not gone.filled and gone.status == "completed"

    def test_an_order_that_is_filled_while_the_model_thinks_is_left_alone(self, parameters: Parameters) -> None:
        """Decided at 20 s, arriving at 20.5 s: what is filled at 20.2 s cannot be taken again."""
        tape = market(prints=[(20.2, 999.9, 9.0, -1)])
        row = decide_again(
            tape, one_parent(), planned(JOIN, TAKE), ACTIONS, 10.0, without_latency(parameters, 500.0)
        ).iloc[0]
        assert row.maker_share == 1 and row.exec_price == pytest.approx(999.9) and row.fees_bps == pytest.approx(
            1.5 * 0.9999
        )

    def test_a_move_through_the_touch_is_refused_and_comes_back(self, parameters: Parameters) -> None:
        """Improved at 20 s to 1000.0; before it arrives at 20.2 s the ask is 999.9: refused, it joins the bid."""
        tape = market(quotes=[(20.1, 999.7, 3.0, 999.9, 3.0)], prints=[(22.0, 999.7, 9.0, -1)])
        row = decide_again(
            tape, one_parent(), planned(BEHIND, IMPROVE), ACTIONS, 10.0, without_latency(parameters, 200.0)
        ).iloc[0]
        assert row.rejections == 1 and row.exec_price == pytest.approx(999.7)

    def test_what_does_not_rest_cannot_be_kept(self, parameters: Parameters) -> None:
        with pytest.raises(OrderError, match="order 1 cannot be kept at decision 0"):
            decide_again(market(), one_parent(), planned(KEEP), ACTIONS, 10.0, parameters)

    def test_a_market_that_ends_in_the_middle_of_an_order_is_refused(self, parameters: Parameters) -> None:
        with pytest.raises(OrderError, match="a completion outside the data or in a gap"):
            decide_again(market(end=50.0), one_parent(), planned(JOIN), ACTIONS, 10.0, parameters)

    def test_the_trader_knows_what_the_newest_message_shows(self, parameters: Parameters) -> None:
        """Messages take 0.1 s: of what prints at 15 s he knows at 20 s, of what prints at 29.95 s not at 30 s."""
        prints = [(15.0, 999.9, 2.0, -1), (29.95, 999.9, 1.0, -1), (35.0, 999.9, 2.3, -1)]
        quotes = [(second + 0.01, 999.9, 9.0, 1000.1, 4.0) for second in (15.0, 29.95, 35.0)]
        seen = []

        def watching(orders: pd.DataFrame, known: Known) -> np.ndarray:
            seen.append((known.seconds_left[0], known.share_left[0], known.limit[0], known.ahead[0]))
            return np.array([KEEP if known.number else JOIN])

        tape = market(prints=prints, quotes=quotes)
        decide_again(tape, one_parent(), watching, ACTIONS, 10.0, without_latency(parameters))
        np.testing.assert_allclose(
            seen[:4],
            [(60, 1, np.nan, np.nan), (50, 1, 999.9, 3), (40, 1, 999.9, 3), (30, 0.5, 999.9, 0)],
            atol=1e-9,
        )


class TestRollouts:
    def test_the_value_of_an_action_is_a_replay_of_its_own(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters
    ) -> None:
        few = parents.iloc[::20].reset_index(drop=True)
        rollout = roll_out(renewed(JOIN), tape, few, parameters)
        assert (np.isfinite(rollout.values) == rollout.visited.allowed).all()
        rng = np.random.default_rng(0)
        for state in rng.choice(len(rollout.visited), 6, replace=False):
            place = rollout.visited.table.iloc[state]
            for action in np.flatnonzero(rollout.visited.allowed[state]):

                def deviating(visited: Visited, action: int = action, place: pd.Series = place) -> np.ndarray:
                    here = visited.table["number"].to_numpy() == place["number"]
                    return np.where(here, action, renewed(JOIN)(visited))

                alone = execute(deviating, tape, few.iloc[[int(place["parent"])]], parameters)
                assert rollout.values[state, action] == pytest.approx(-alone["total_cost_bps"].iloc[0], abs=1e-9)

    def test_each_parent_is_met_first_as_it_is_whole(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters
    ) -> None:
        rollout = roll_out(renewed(JOIN), tape, parents, parameters)
        first = rollout.visited.table["number"] == 0
        assert first.sum() == len(parents) and (rollout.visited.table.loc[first, "share_left"] == 1).all()
        assert not rollout.visited.allowed[first, KEEP].any()
        assert (rollout.costs == -rollout.values[first, JOIN]).all()

    def test_a_time_without_features_is_named(self) -> None:
        features = pd.DataFrame({"decision_ns": [0, 10 * SECOND]})
        assert instants(features, np.array([10 * SECOND, 0])).tolist() == [1, 0]
        with pytest.raises(DataError, match="multiple of features.decision_interval_s"):
            instants(features, np.array([5 * SECOND]))
