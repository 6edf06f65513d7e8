"""Decisions that are taken again: single shot as their special case, what the trader knows, exact action values."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hand_built import at, market
from hyperdapo.actions import Action
from hyperdapo.errors import DataError, MissingInputError, ModelError, OrderError
from hyperdapo.execution.children import Known, decide_again, requote
from hyperdapo.execution.parents import action_orders, parent_orders, replay, touch
from hyperdapo.execution.strategies import Requoting, requoted
from hyperdapo.market.book import Market
from hyperdapo.market.features import imbalance_at
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths
from hyperdapo.policy.models import load_base
from hyperdapo.policy.prompts import CUE, FEATURES, instruction
from hyperdapo.policy.scoring import make_scorer
from hyperdapo.policy.states import States
from hyperdapo.sequential import language, rivals, rollouts, training
from hyperdapo.sequential.iteration import (
    DAPO,
    Asked,
    action_values,
    boosting,
    decided,
    hypothetical,
    matrix,
    policies,
    revalued,
)
from hyperdapo.sequential.language import order_text
from hyperdapo.sequential.rivals import greedy, renewed
from hyperdapo.sequential.rollouts import execute, roll_out
from hyperdapo.sequential.states import PLACES, Visited, instants
from hyperdapo.stages import train as stage
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
    return load(
        "smoke",
        {"assets": ["ETH"], "execution": execution, "policy": {"actions": [*map(str, ACTIONS)], "decide_again_s": 10}},
    )


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
        assert (
            row.maker_share == 1
            and row.exec_price == pytest.approx(999.9)
            and row.fees_bps == pytest.approx(1.5 * 0.9999)
        )

    def test_a_move_through_the_touch_is_refused_and_comes_back(self, parameters: Parameters) -> None:
        """Improved at 20 s to 1000.0; before it arrives at 20.2 s the ask is 999.9: refused, it joins the bid."""
        tape = market(quotes=[(20.1, 999.7, 3.0, 999.9, 3.0)], prints=[(22.0, 999.7, 9.0, -1)])
        row = decide_again(
            tape, one_parent(), planned(BEHIND, IMPROVE), ACTIONS, 10.0, without_latency(parameters, 200.0)
        ).iloc[0]
        assert row.rejections == 1 and row.exec_price == pytest.approx(999.7)

    def test_at_its_deadline_nothing_is_decided_any_more(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters
    ) -> None:
        """Beside orders that live longer, so that there is a seventh round; the cancel may come later than that."""
        horizon_s, least = np.where(np.arange(len(parents)) % 2, 70.0, 60.0), []

        def watching(orders: pd.DataFrame, known: Known) -> np.ndarray:
            least.append(known.seconds_left.min())
            return np.full(len(orders), WAIT)

        decide_again(tape, parents.assign(horizon_s=horizon_s), watching, ACTIONS, 10.0, parameters)
        assert least == [60, 50, 40, 30, 20, 10, 10]

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
        assert (np.isfinite(rollout.action_values) == rollout.visited.allowed).all()
        rng = np.random.default_rng(0)
        for state in rng.choice(len(rollout.visited), 6, replace=False):
            place = rollout.visited.table.iloc[state]
            for action in np.flatnonzero(rollout.visited.allowed[state]):

                def deviating(visited: Visited, action: int = action, place: pd.Series = place) -> np.ndarray:
                    here = visited.table["number"].to_numpy() == place["number"]
                    return np.where(here, action, renewed(JOIN)(visited))

                alone = execute(deviating, tape, few.iloc[[int(place["parent"])]], parameters)
                assert rollout.action_values[state, action] == pytest.approx(-alone["total_cost_bps"].iloc[0], abs=1e-9)

    def test_each_parent_is_met_first_as_it_is_whole(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters
    ) -> None:
        rollout = roll_out(renewed(JOIN), tape, parents, parameters)
        first = rollout.visited.table["number"] == 0
        assert first.sum() == len(parents) and (rollout.visited.table.loc[first, "share_left"] == 1).all()
        assert not rollout.visited.allowed[first, KEEP].any()
        assert (rollout.costs == -rollout.action_values[first, JOIN]).all()

    def test_a_time_without_features_is_named(self) -> None:
        features = pd.DataFrame({"decision_ns": [0, 10 * SECOND]})
        assert instants(features, np.array([10 * SECOND, 0])).tolist() == [1, 0]
        with pytest.raises(DataError, match=r"multiple of features\.decision_interval_s"):
            instants(features, np.array([5 * SECOND]))


@pytest.fixture(scope="module")
def iterated(tape: Market, parents: pd.DataFrame, parameters: Parameters) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features that mean nothing at every decision, and the values of all actions."""
    first, last = tape.top.local_ns[[0, -1]]
    ns = np.arange(first + SECOND, last, 5 * SECOND)
    columns = {feature.column: np.full(len(ns), 0.5) for feature in FEATURES} | {
        "decision_ns": ns,
        "asset": "ETH",
        "mid": tape.mid_at(ns),
    }
    features = pd.DataFrame(columns | {"book_imbalance": np.random.default_rng(0).uniform(-1, 1, len(ns))})
    split = np.where(np.arange(len(parents)) % 4, "train", "validation")
    return features, action_values(lambda: [(tape, parents.assign(split=split))], features, parameters)


def never(orders: pd.Series, then: object) -> pd.DataFrame:
    raise AssertionError("nothing is to be valued anew")


class TestPolicyIteration:
    def test_another_policy_goes_on_where_the_first_one_came(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters
    ) -> None:
        few = parents.iloc[::20].reset_index(drop=True)
        join, improve = renewed(JOIN), renewed(IMPROVE)
        own, same, other = (roll_out(join, tape, few, parameters, "x", then) for then in (None, join, improve))
        pd.testing.assert_frame_equal(own.visited.table, other.visited.table)
        np.testing.assert_array_equal(own.action_values, same.action_values)
        first = np.flatnonzero(own.visited.table["number"] == 0)
        for state in first[:3]:
            place = int(own.visited.table["parent"].iloc[state])
            turned = execute(
                lambda visited: np.where(visited.table["number"] == 0, BEHIND, improve(visited)),
                tape,
                few.iloc[[place]].reset_index(drop=True),
                parameters,
            )
            assert other.action_values[state, BEHIND] == pytest.approx(-turned["total_cost_bps"].iloc[0], abs=1e-9)

    def test_trees_go_on_in_no_order_of_a_time_that_they_have_learned(
        self, iterated: tuple[pd.DataFrame, pd.DataFrame]
    ) -> None:
        features, values = iterated
        learned = values[values["split"] == "train"].reset_index(drop=True)
        cautious = boosting(features, values, 0, rivals.out_of_sample)
        begun = learned.groupby("order_id")["decision_ns"].min().sort_values().index
        first = learned["order_id"].isin(begun[: -(-len(begun) // 5)])
        rest = rivals.fit(features, learned[~first].reset_index(drop=True), matrix(learned[~first], "value"), 0)
        np.testing.assert_array_equal(cautious(learned)[first], rest(learned[first]))
        unseen = values[values["split"] == "validation"]
        np.testing.assert_array_equal(cautious(unseen), boosting(features, values, 0)(unseen))

    def test_values_anew_with_the_same_policy_are_the_same(
        self,
        tape: Market,
        parents: pd.DataFrame,
        parameters: Parameters,
        iterated: tuple[pd.DataFrame, pd.DataFrame],
    ) -> None:
        (features, values), split = iterated, np.where(np.arange(len(parents)) % 4, "train", "validation")
        orders = values.loc[values["split"] == "train", "order_id"].drop_duplicates().iloc[::7]
        again = revalued(
            lambda: [(tape, parents.assign(split=split))], features, values, parameters, orders, renewed(JOIN)
        )
        known = values[values["order_id"].isin(orders)].reset_index(drop=True)
        pd.testing.assert_frame_equal(
            again.sort_values(["order_id", "number"], ignore_index=True),
            known.sort_values(["order_id", "number"], ignore_index=True),
        )

    def test_what_is_asked_as_it_comes_decides_as_what_was_asked_before(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters, iterated: tuple[pd.DataFrame, pd.DataFrame]
    ) -> None:
        features, values = iterated
        predicted, few, asked = boosting(features, values, 0), parents.iloc[::10].reset_index(drop=True), []

        def score(states: pd.DataFrame) -> np.ndarray:
            asked.extend(zip(states["order_id"], states["number"], states["place"], strict=True))
            return predicted(states)

        lazy = execute(Asked(hypothetical(few, parameters), score), tape, few, parameters)
        pd.testing.assert_frame_equal(lazy, execute(greedy(predicted), tape, few, parameters))
        assert len(set(asked)) == len(asked) < len(hypothetical(few, parameters)), "each at most once"

    def test_the_model_is_trained_again_on_what_its_halves_make_of_each_other(
        self,
        tape: Market,
        parents: pd.DataFrame,
        parameters: Parameters,
        iterated: tuple[pd.DataFrame, pd.DataFrame],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
        again = {"trained": ["ETH"], "states": 24, "steps": 2, "states_per_update": 4, "refreshes": 1}
        overrides = {"assets": ["ETH"], "training": {"evaluation_states": 8}, "sequential": again}
        small = load("smoke", overrides | {"policy": {"actions": [*map(str, ACTIONS)]}})
        (features, values), paths, asked = iterated, Paths(small.name, "ETH"), []
        split = np.where(np.arange(len(parents)) % 4, "train", "validation")

        def revalue(orders: pd.Series, then: Asked) -> pd.DataFrame:
            asked.append(orders)
            return revalued(lambda: [(tape, parents.assign(split=split))], features, values, parameters, orders, then)

        told = []
        monkeypatch.setattr(training, "Workbench", spied(training.Workbench, told))
        training.train(small, paths, features, parents.assign(action=0), values, revalue)
        earlier, later, final = told
        assert earlier.table["order_id"].max() < later.table["order_id"].min() and len(final) == 24
        assert set(asked[0]) == set(later.table["order_id"]) and set(asked[1]) == set(earlier.table["order_id"])
        assert not np.allclose(final.rewards[: len(earlier)], earlier.rewards), "it learns what has changed"
        log = pd.read_csv(paths.adapter(DAPO, small.training.seeds[0]) / "training_log.csv")
        assert log["step"].tolist() == [0, 1, 2]
        training.train(small, paths, features, parents.assign(action=0), values, never)  # it stands

    def test_without_the_market_a_refresh_ends_before_it_trains(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
        refreshed = load("smoke", {"name": "elsewhere", "sequential": {"refreshes": 1}})
        monkeypatch.setattr(stage, "train_asset", lambda *given: None)
        monkeypatch.setattr(stage, "gather_logs", lambda *given: None)
        with pytest.raises(MissingInputError, match=r"laws\.parquet is not there: 03_features writes it"):
            stage.compute(refreshed, Paths("elsewhere", "BTC"))

    def test_a_refresh_that_was_finished_is_not_made_again(self, tmp_path: Path) -> None:
        kept = np.array([[0.5, np.nan]])
        np.save(tmp_path / "gains.npy", kept)
        nothing = training.Lesson(*[None] * 7)
        np.testing.assert_array_equal(training.refresh(nothing, never, tmp_path, lambda looked: None), kept)


def spied(kind: type, told: list) -> type:
    """The same class, which notes what states it is given to learn from."""

    class Spied(kind):
        def __init__(self, parameters: Parameters, asset: str, states: States, held_out: States) -> None:
            told.append(states)
            super().__init__(parameters, asset, states, held_out)

    return Spied


class TestTables:
    def test_trees_learn_the_values_of_the_last_policy_alone(self, iterated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
        features, values = iterated
        misleading = values.assign(iteration=values["iteration"] - 1)
        columns = [name for name in values if name.startswith("value_")]
        misleading[columns] = -misleading[columns]
        alone, both = (boosting(features, table, 0)(values) for table in (values, pd.concat([misleading, values])))
        np.testing.assert_array_equal(alone, both)

    def test_a_cost_that_is_no_number_is_named(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rollouts, "_deviated", lambda *given: np.full(len(given[3]), np.nan))
        with pytest.raises(DataError, match=r"order \d+ has no finite cost at decision 0 by action \d"):
            roll_out(renewed(JOIN), tape, parents.head(3), parameters)

    def test_a_value_is_known_of_what_is_allowed(self, iterated: tuple[pd.DataFrame, pd.DataFrame]) -> None:
        _, once = iterated
        assert set(once["iteration"]) == {0} and set(once["split"]) == {"train", "validation"}
        assert np.isfinite(matrix(once, "value")).any(axis=1).all() and matrix(once, "value").shape[1] == KEEP + 1
        assert (np.isfinite(once["value_6"]) == (once["place"] > 0)).all()

    def test_what_trees_decide_is_looked_up(
        self, tape: Market, parents: pd.DataFrame, parameters: Parameters, iterated: tuple[pd.DataFrame, pd.DataFrame]
    ) -> None:
        features, values = iterated
        predicted, few = boosting(features, values, 0), parents.iloc[::10].reset_index(drop=True)
        states = hypothetical(few, parameters)
        assert len(states) == len(few) * (1 + 5 * len(PLACES)) and states["seconds_left"].between(10, 60).all()
        looked_up = policies(decided(states, predicted(states), "trees"))["trees"]
        pd.testing.assert_frame_equal(
            execute(looked_up, tape, few, parameters), execute(greedy(predicted), tape, few, parameters)
        )
        with pytest.raises(DataError, match="was not decided on at decision 0 where it stands nowhere"):
            execute(looked_up, tape, parents.iloc[[1]].reset_index(drop=True), parameters)

    def test_a_place_is_where_the_order_stands(self, parameters: Parameters) -> None:
        """0.6 wanted; of 5 before it at the touch 2 print: 3 are left, 5 times its own size."""
        seen = []

        def watching(visited: Visited) -> np.ndarray:
            seen.append(PLACES[visited.table["place"].iloc[0]])
            return np.array([JOIN if not seen[1:] else FAR if len(seen) == 3 else KEEP])

        tape = market(prints=[(25.0, 999.9, 2.0, -1)], quotes=[(25.01, 999.9, 3.0, 1000.1, 4.0)])
        execute(watching, tape, one_parent(), without_latency(parameters))
        assert seen == ["nowhere", "queued", "first", "behind", "behind", "behind"]


class TestTheRule:
    def test_it_takes_once_the_book_leans_with_the_order(self, parameters: Parameters) -> None:
        """35 stand on either side; from 25 s on 315 on the bid: the book leans by 0.8 and more with a buy."""
        bids = ((999.9, 285.0), (999.8, 10.0), (999.7, 20.0))
        tape = market(books=[(25.0, bids, ((1000.1, 4.0), (1000.2, 8.0), (1000.3, 16.0)))])
        assert imbalance_at(tape, np.array([at(20), at(30)])) == pytest.approx([7 / 63, 287 / 343])
        rule = Requoting(Action("join"), 0.8)
        row = requoted(tape, one_parent(), rule, without_latency(parameters)).iloc[0]
        assert row.fill_ns == at(30) and row.exec_price == pytest.approx(1000.1)
        other = requoted(tape, one_parent(side=-1), rule, without_latency(parameters)).iloc[0]
        assert other.filled_passive == 0 and other.status == "completed"


class TestLanguage:
    def test_each_ending_reads_as_the_whole_prompt(self, parameters: Parameters) -> None:
        base, tokenizer = load_base(parameters.policy)
        reader = make_scorer(base, tokenizer, parameters)
        begun = [instruction(parameters.policy.actions) + f"balanced buy: imbalance{digit} depth5" for digit in (7, 2)]
        endings = [order_text(left, place) for left, place in ((6, 0), (3, 2), (1, 4))]
        whole = reader.encode([start + ending + CUE for start in begun for ending in endings])
        torch.testing.assert_close(
            reader.log_probabilities(reader.encode_each(begun, endings)), reader.log_probabilities(whole)
        )
        with pytest.raises(ModelError, match="the same number of tokens"):
            reader.encode_each([begun[0], begun[1] + " depth5"], endings)

    def test_a_critic_s_values_stand_in_place_of_those_that_came_true(self) -> None:
        known = States(
            pd.DataFrame({"order_id": [1]}), ["p"], np.array([[3.0, 1.0, 1.0]]), np.array([[True, True, False]])
        )
        told = language.expected(known, lambda table: np.array([[0.2, 0.5, 9.0]]))
        np.testing.assert_array_equal(told.rewards, [[0.2, 0.5, 0.2]])
        assert told.prompts == known.prompts and known.rewards[0, 0] == 3
        seldom = language.expected(known, lambda table: np.array([[-np.inf, 0.5, -np.inf]]))
        np.testing.assert_array_equal(seldom.rewards, [[1.0, 0.5, 0.5]])  # exact, beyond the mean of its state

    def test_it_learns_in_a_few_updates_and_decides_every_place(
        self,
        tape: Market,
        parents: pd.DataFrame,
        iterated: tuple[pd.DataFrame, pd.DataFrame],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
        again = {"trained": ["ETH"], "states": 16, "steps": 4, "states_per_update": 4}
        overrides = {"assets": ["ETH"], "training": {"evaluation_states": 8}, "sequential": again}
        small = load("smoke", overrides | {"policy": {"actions": [*map(str, ACTIONS)]}})
        (features, values), paths = iterated, Paths(small.name, "ETH")
        outcomes = parents.assign(action=0)
        training.train(small, paths, features, outcomes, values, never)
        log = pd.read_csv(paths.adapter(DAPO, small.training.seeds[0]) / "training_log.csv")
        assert log["step"].tolist() == [0, 1, 2, 3, 4] and log["heldout_reward"].notna().sum() >= 2
        states = hypothetical(parents.head(3), small)
        adapter = paths.adapter(DAPO, small.training.seeds[0])
        scores = language.scorer(small, adapter, features, outcomes)(states)
        np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=1e-5)
        assert scores.shape == (3 * (1 + 5 * len(PLACES)), KEEP + 1)
