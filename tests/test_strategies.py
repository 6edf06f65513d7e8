"""Parent orders, candidates and strategies: what they ask for, and that all are measured alike."""

import numpy as np
import pandas as pd
import pytest

from hand_built import at, market
from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.evidence.metrics import in_blocks, summarise
from hyperdapo.execution import strategies
from hyperdapo.execution.children import quote_slices, requote, slice_sizes, take_slices
from hyperdapo.execution.parents import (
    Candidates,
    Threshold,
    action_orders,
    best_fixed_action,
    best_threshold,
    candidate_orders,
    evenly_spaced,
    parent_orders,
    replay_candidates,
    starts,
)
from hyperdapo.execution.simulator import replay_orders
from hyperdapo.execution.strategies import (
    AS_TIMED,
    ORDERS_COLUMNS,
    STRATEGIES,
    UNTRAINED,
    Requoting,
    Trained,
    backtest,
    requoted,
)
from hyperdapo.files import write_table
from hyperdapo.market.book import Market
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, on_grid, snap_size
from hyperdapo.params import Parameters, load
from markets import random_market

SECOND = 10**9
EVER = (0, np.iinfo(np.int64).max)
JOINING = Requoting(Action("join"), np.inf)


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    execution = {"impact_coefficient_bps": 10, "queue_exponent": 1}
    orders = {"objectives": ["patient", "balanced", "urgent"]}
    return load("smoke", {"assets": ["ETH"], "orders": orders, "execution": execution})


@pytest.fixture(scope="module")
def tape() -> Market:
    return random_market(seed=5, seconds=1500)


@pytest.fixture(scope="module")
def features(tape: Market) -> pd.DataFrame:
    return _features(tape, step_s=5)


@pytest.fixture(scope="module")
def parents(features: pd.DataFrame, parameters: Parameters, tape: Market) -> pd.DataFrame:
    return parent_orders(features, parameters, tape)


@pytest.fixture(scope="module")
def outcomes(tape: Market, parents: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    return replay_candidates(tape, parents, parameters)


@pytest.fixture(scope="module")
def decisions(parents: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    ids = parents.loc[parents["split"] == "test", "order_id"]
    frames = [
        pd.DataFrame({"order_id": ids, "policy": policy, "seed": seed, "action": action})
        for policy, seed, action in (("untrained", 1, 4), ("boosting", 3, 0), ("boosting", 2, 1))
    ]
    return pd.concat(frames)


@pytest.fixture(scope="module")
def tested(parents: pd.DataFrame) -> pd.DataFrame:
    return parents[parents["split"] == "test"]


@pytest.fixture(scope="module")
def tried(tape: Market, outcomes: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    return strategies.try_requoting([(EVER, tape)], outcomes, parameters)


@pytest.fixture(scope="module")
def trained(tape: Market, outcomes: pd.DataFrame, tried: pd.DataFrame, parameters: Parameters) -> Trained:
    return strategies.train([(EVER, tape)], outcomes, Requoting.cheapest(tried, parameters.policy.actions))


@pytest.fixture(scope="module")
def orders(
    tape: Market,
    tested: pd.DataFrame,
    trained: Trained,
    outcomes: pd.DataFrame,
    decisions: pd.DataFrame,
    parameters: Parameters,
) -> pd.DataFrame:
    return backtest(tape, tested, trained, outcomes, decisions, parameters)


def _features(tape: Market, step_s: int) -> pd.DataFrame:
    first, last = tape.top.local_ns[[0, -1]]
    ns = np.arange(first + SECOND, last, step_s * SECOND)
    share = np.linspace(0, 1, len(ns))
    split = np.select([share < 0.1, share < 0.5, share < 0.6], ["", "train", "validation"], "test")
    warm = np.arange(len(ns)) % 11 > 0
    known = {"asset": "ETH", "decision_ns": ns, "mid": tape.mid_at(ns), "warm": warm, "split": split}
    imbalance = np.random.default_rng(0).uniform(-1, 1, len(ns))
    state = {"volatility_5m_bps": 0.5 + share, "bid_ask_spread_bps": 0.25, "book_imbalance": imbalance}
    return pd.DataFrame(known | state)


class TestParents:
    def test_only_warm_rows_of_a_split_become_orders(self, parents: pd.DataFrame, features: pd.DataFrame) -> None:
        rows = features.iloc[parents["order_id"]]
        assert rows["warm"].all() and (rows["split"] != "").all()
        assert (rows["decision_ns"].to_numpy() == parents["decision_ns"]).all()

    def test_at_most_so_many_states_are_taken_evenly_over_the_span(self, features: pd.DataFrame) -> None:
        everything, few = evenly_spaced(features, None), evenly_spaced(features, 50)
        assert everything["warm"].all() and (everything["split"] != "").all()
        pd.testing.assert_frame_equal(evenly_spaced(features, len(everything)), everything)
        rows = everything.index.get_indexer(few.index)
        assert len(few) == 50 and rows[0] == 0 and rows[-1] == len(everything) - 1
        assert np.ptp(np.diff(rows)) <= 1, "no two neighbours are farther apart than others, but for rounding"
        assert (
            few["split"].value_counts(normalize=True) - everything["split"].value_counts(normalize=True)
        ).max() < 0.02

    def test_test_orders_are_so_far_apart_and_others_as_before(
        self, features: pd.DataFrame, parameters: Parameters
    ) -> None:
        everything = starts(features, parameters.orders)
        apart = starts(features, parameters.orders.model_copy(update={"test_every_s": 60.0}))
        for split, rows in apart.groupby("split"):
            former = everything[everything["split"] == split]
            gaps = np.diff(rows["decision_ns"])
            if split == "test":
                assert 1 < len(rows) <= len(former) / 5 and gaps.min() >= 30 * SECOND and np.median(gaps) == 60 * SECOND
            else:
                pd.testing.assert_frame_equal(rows, former)

    def test_a_span_without_a_usable_state_is_an_error(self, features: pd.DataFrame) -> None:
        with pytest.raises(DataError, match=r"no warm row in a split.*features\.warmup_s"):
            evenly_spaced(features.assign(warm=False), 50)

    def test_a_whole_life_with_its_markouts_lies_in_the_data(self, parents: pd.DataFrame, tape: Market) -> None:
        ends = parents["decision_ns"] + ((parents["horizon_s"] + 60) * SECOND).astype(int)
        assert ends.max() < tape.top.local_ns[-1]

    def test_no_life_touches_a_gap(self, features: pd.DataFrame, parameters: Parameters, tape: Market) -> None:
        begin = int(tape.top.local_ns[0]) + 700 * SECOND
        gap = np.array([[begin, begin + 20 * SECOND]])
        holed = Market(tape.asset, tape.sz_decimals, tape.book, tape.bbo, tape.trades, gap)
        found = parent_orders(features, parameters, holed)
        ends = found["decision_ns"] + ((found["horizon_s"] + 60) * SECOND).astype(int)
        assert ((ends < gap[0, 0]) | (found["decision_ns"] >= gap[0, 1])).all() and len(found) > 0

    def test_more_rows_change_no_order(
        self, features: pd.DataFrame, parents: pd.DataFrame, parameters: Parameters, tape: Market
    ) -> None:
        fewer = parent_orders(features.iloc[::3].reset_index(drop=True), parameters, tape).set_index("decision_ns")
        same = parents.set_index("decision_ns").loc[fewer.index]
        drawn = ["side", "objective", "size", "horizon_s", "arrival_mid"]
        pd.testing.assert_frame_equal(fewer[drawn], same[drawn])

    def test_size_and_side_follow_the_parameters(self, parents: pd.DataFrame, parameters: Parameters) -> None:
        assert (snap_size(parents["size"], 4) == parents["size"]).all()
        np.testing.assert_allclose(parents["size"] * parents["arrival_mid"], parameters.orders.notional_usd, rtol=1e-3)
        assert 0.3 < (parents["side"] > 0).mean() < 0.7 and parents["objective"].nunique() == 3

    def test_the_buy_share_can_be_one(self, features: pd.DataFrame, parameters: Parameters, tape: Market) -> None:
        buys = parameters.model_copy(update={"orders": parameters.orders.model_copy(update={"buy_share": 1.0})})
        assert (parent_orders(features, buys, tape)["side"] == 1).all()


def actions_of(*words: str) -> list[Action]:
    return [Action.parse(word) for word in words]


class TestCandidates:
    def test_offsets_from_the_mid_are_snapped_so_that_they_are_never_worse(
        self, parents: pd.DataFrame, tape: Market
    ) -> None:
        candidates = candidate_orders(parents, tape, actions_of("-15 bps", "0 bps", "5 bps"))
        exact = candidates["arrival_mid"] * (1 + candidates["side"] * np.tile([-15, 0, 5], len(parents)) / 1e4)
        assert (candidates["side"] * (exact - candidates["limit_price"]) > -1e-9).all()
        assert on_grid(candidates["limit_price"], 4).all() and not candidates["post_only"].any()
        assert candidates["action"].head(4).tolist() == [0, 1, 2, 0] and candidates["kind"].iloc[0] == "-15 bps"
        realised = candidates["side"] * (candidates["limit_price"] / candidates["arrival_mid"] - 1) * 1e4
        np.testing.assert_allclose(candidates["offset_bps"], realised, atol=1e-9)

    @pytest.mark.parametrize(
        ("side", "prices"),
        [
            (1, {"mid": 1000.0, "join": 999.9, "improve 1": 999.91, "improve 5": 999.95, "behind 1": 999.89}),
            (-1, {"mid": 1000.0, "join": 1000.1, "improve 1": 1000.0, "improve 5": 999.96, "behind 1": 1000.2}),
        ],
    )
    def test_prices_by_hand(self, side: int, prices: dict[str, float]) -> None:
        """The touch is 999.9 to 1000.1; below 1000 the tick is 0.01, above it 0.1."""
        coarse = market(quotes=[(5.0, 999.9, 5.0, 1000.1, 5.0)])
        words = ["take", "mid", "join", "improve 1", "improve 5", "behind 1", "wait"]
        orders = candidate_orders(one_parent(side=[side]), coarse, actions_of(*words)).set_index("kind")
        assert orders.loc[list(prices), "limit_price"].to_dict() == pytest.approx(prices)
        assert orders.loc[["take", "wait"], ["limit_price", "offset_bps"]].isna().all(axis=None)
        assert orders["post_only"].tolist() == [False, *[True] * 5, False] and orders["waits"].tolist()[-1]

    def test_nothing_post_only_meets_the_other_side(self, parents: pd.DataFrame, tape: Market) -> None:
        candidates = candidate_orders(parents, tape, actions_of("mid", "improve 1", "improve 900", "join", "behind 3"))
        best = tape.top_at(candidates["decision_ns"])
        buys = candidates["side"].to_numpy() > 0
        room = np.where(buys, best.ask_price - candidates["limit_price"], candidates["limit_price"] - best.bid_price)
        assert candidates["post_only"].all() and room.min() > 0.99 * 0.1 and on_grid(candidates["limit_price"], 4).all()

    def test_an_order_counts_once_and_the_first_stands_for_it(self) -> None:
        """One tick of spread: mid and improve are join; -1 and -1.1 bps are at behind 2, but not post-only."""
        narrow = market(quotes=[(5.0, 2000.0, 5.0, 2000.1, 5.0)])
        words = ["join", "mid", "improve 1", "behind 2", "-1 bps", "-1.1 bps", "take", "wait"]
        orders = candidate_orders(one_parent(arrival_mid=[2000.05]), narrow, actions_of(*words)).set_index("kind")
        assert orders.loc[~orders["distinct"]].index.tolist() == ["mid", "improve 1", "-1.1 bps"]

    def test_a_few_by_themselves_are_those_of_the_table(self, parents: pd.DataFrame, tape: Market) -> None:
        words = ["take", "mid", "join", "improve 1", "improve 9", "behind 2", "-1 bps", "5 bps", "wait", "-1.001 bps"]
        table, best = candidate_orders(parents, tape, actions_of(*words)), tape.top_at(parents["decision_ns"])
        side, mid = parents["side"].to_numpy(float), parents["arrival_mid"].to_numpy(float)
        alone = Candidates.of(actions_of(*words), side, mid, best.bid_price, best.ask_price, 4)
        for name in ("limit_price", "distinct"):
            np.testing.assert_array_equal(getattr(alone, name).ravel(), table[name])
        for name in ("post_only", "waits"):
            np.testing.assert_array_equal(np.tile(getattr(alone, name), len(parents)), table[name])
        assert not alone.distinct.all()

    def test_who_waits_trades_the_whole_at_the_horizon(
        self, tape: Market, parents: pd.DataFrame, outcomes: pd.DataFrame
    ) -> None:
        waiting, taking = (outcomes[outcomes["kind"] == kind] for kind in ("wait", "take"))
        assert (waiting["filled_passive"] == 0).all() and (waiting["status"] == "completed").all()
        assert waiting["fees_bps"].between(4.4, 4.6).all() and waiting["limit_price"].isna().all()
        np.testing.assert_allclose(waiting["slippage_bps"], waiting["implementation_shortfall_bps"])
        late_s = (waiting["completion_ns"] - waiting["decision_ns"]) / SECOND - waiting["horizon_s"]
        assert late_s.between(-3, 10).all() and (taking["filled_passive"] == 1).all()

    def test_a_candidate_is_the_same_order_alone(
        self, tape: Market, parents: pd.DataFrame, outcomes: pd.DataFrame, parameters: Parameters
    ) -> None:
        join = parameters.policy.actions.index(Action("join"))
        alone = replay_orders(
            tape, action_orders(parents, tape, [Action("join")]), parameters.execution, parameters.seed
        )
        among = outcomes[outcomes["action"] == join].reset_index(drop=True)
        pd.testing.assert_frame_equal(among[alone.columns].assign(action=0), alone)

    def test_outcomes_hold_what_rewards_need(
        self, outcomes: pd.DataFrame, parents: pd.DataFrame, parameters: Parameters
    ) -> None:
        assert len(outcomes) == len(parents) * len(parameters.policy.actions)
        needed = [
            "total_cost_bps",
            "implementation_shortfall_bps",
            "fees_bps",
            "completion_slippage_bps",
            "filled_passive",
            "exec_price",
        ]
        needed += [f"markout_{horizon:g}s_bps" for horizon in parameters.orders.markouts_s]
        assert np.isfinite(outcomes[needed]).all().all()


class TestBacktest:
    def test_every_strategy_executes_every_test_order(self, orders: pd.DataFrame, parents: pd.DataFrame) -> None:
        tested = parents[parents["split"] == "test"]
        assert list(orders["strategy"].unique()) == [*STRATEGIES, "untrained", "boosting"] and set(orders["split"]) == {
            "test"
        }
        for _, rows in orders.groupby(["strategy", "seed"]):
            assert (rows["order_id"].to_numpy() == tested["order_id"]).all()
            assert (rows["arrival_mid"].to_numpy() == tested["arrival_mid"]).all()

    def test_the_columns_are_those_of_the_design(self, orders: pd.DataFrame) -> None:
        kinds = ("", "maker_", "taker_")
        markouts = [f"{kind}markout_{horizon}s_bps" for kind in kinds for horizon in (1, 5, 10, 60)]
        assert list(orders.columns[: len(ORDERS_COLUMNS)]) == list(ORDERS_COLUMNS)
        assert sorted(orders.columns[len(ORDERS_COLUMNS) :]) == sorted(markouts)
        unknown = {"offset_bps", "queue_ahead"}  # no offset, or a level beyond the visible book
        unknown |= {name for name in markouts if not name.startswith("markout")}  # nothing made, or nothing taken
        assert set(orders.columns[orders.isna().any()]) <= unknown
        assert (orders["maker_markout_1s_bps"].notna() == (orders["maker_share"] > 1e-9)).all()
        routes = orders[["filled_queue", "filled_through", "filled_crossed"]].sum(axis=1)
        np.testing.assert_allclose(routes, orders["maker_share"], atol=1e-12)
        np.testing.assert_allclose(
            orders["total_cost_bps"],
            orders["implementation_shortfall_bps"] + orders["fees_bps"] + orders["funding_bps"],
        )
        parts = orders[["spread_bps", "timing_bps", "opportunity_bps"]].sum(axis=1)
        np.testing.assert_allclose(parts, orders["implementation_shortfall_bps"], atol=1e-9, rtol=0)

    def test_a_favourable_queue_fills_more(
        self,
        tape: Market,
        tested: pd.DataFrame,
        trained: Trained,
        outcomes: pd.DataFrame,
        decisions: pd.DataFrame,
        parameters: Parameters,
        orders: pd.DataFrame,
    ) -> None:
        """What the bounds say is what the backtest under such a queue says."""
        made = {}
        for name, queue in strategies.BOUNDS.items():
            other = backtest(tape, tested, trained, outcomes, decisions, with_execution(parameters, **queue))
            column = f"cost_{name.replace(' ', '_')}_bps"
            np.testing.assert_allclose(orders[column], other["total_cost_bps"], atol=1e-9)
            made[name] = other.groupby("strategy")["maker_share"].mean()
        fitted = orders.groupby("strategy")["maker_share"].mean()
        alone = ["join_best", "untrained", "best_fixed"]  # one order: a quote of several meets another market
        assert (made["all ahead"] >= fitted - 1e-12)[alone].all()
        assert (fitted >= made["all behind"] - 1e-12)[alone].all()
        assert (
            orders.loc[orders["strategy"] == "market", "cost_all_ahead_bps"]
            == orders["total_cost_bps"][orders["strategy"] == "market"]
        ).all()

    def test_prices_and_costs_agree(self, orders: pd.DataFrame) -> None:
        shortfall = orders["side"] * (orders["exec_price"] / orders["arrival_mid"] - 1) * 1e4
        np.testing.assert_allclose(orders["implementation_shortfall_bps"], shortfall, atol=1e-9)
        assert orders["fees_bps"].between(1.49, 4.51).all()
        expected = 1.5 * orders["maker_share"] + 4.5 * (1 - orders["maker_share"])
        np.testing.assert_allclose(orders["fees_bps"], expected, rtol=0.01)

    def test_nothing_beats_the_oracle_among_candidates(self, orders: pd.DataFrame) -> None:
        runs = orders.groupby(["strategy", "seed"])
        cost = {run: rows.set_index("order_id")["total_cost_bps"] for run, rows in runs}
        for run in (("best_fixed", UNTRAINED), ("untrained", 1), ("boosting", 2), ("boosting", 3)):
            assert (cost["oracle", UNTRAINED] <= cost[run] + 1e-12).all()

    def test_the_best_fixed_action_comes_from_the_training_split(
        self, orders: pd.DataFrame, outcomes: pd.DataFrame
    ) -> None:
        train = outcomes[outcomes["split"] == "train"].groupby("kind", sort=False)["total_cost_bps"].mean()
        assert orders.loc[orders["strategy"] == "best_fixed", "kind"].unique().tolist() == [train.idxmin()]
        poisoned = outcomes.assign(
            total_cost_bps=outcomes["total_cost_bps"].where(outcomes["split"] == "train", -outcomes["action"])
        )
        assert best_fixed_action(poisoned) == best_fixed_action(outcomes)

    def test_the_way_to_quote_anew_comes_from_the_training_split(
        self, tape: Market, outcomes: pd.DataFrame, parents: pd.DataFrame, tried: pd.DataFrame, parameters: Parameters
    ) -> None:
        actions, learned = parameters.policy.actions, parents[parents["split"] == "train"].reset_index(drop=True)
        assert len(tried) == 9 * (len(actions) - 1) and set(tried["orders"]) == {len(learned)}
        rule = Requoting.cheapest(tried, actions)
        costs = requoted(tape, learned, rule, parameters)["total_cost_bps"]
        assert costs.mean() == pytest.approx(tried["total_cost_bps"].min())
        never = tried[(tried["kind"] == "join") & np.isinf(tried["bound"])]["total_cost_bps"]
        joined = requoted(tape, learned, JOINING, parameters)["total_cost_bps"]
        assert never.item() == pytest.approx(joined.mean()) and tried["total_cost_bps"].nunique() > len(actions)
        dearest = tried.assign(total_cost_bps=-tried["total_cost_bps"])
        assert Requoting.cheapest(dearest, actions) != rule
        middle = int(learned["decision_ns"].median())
        halves = [((0, middle), tape), ((middle, EVER[1]), tape)]
        pd.testing.assert_frame_equal(strategies.try_requoting(halves, outcomes, parameters), tried)
        changed = outcomes.assign(size=outcomes["size"].where(outcomes["split"] == "train", 1e6))
        pd.testing.assert_frame_equal(strategies.try_requoting([(EVER, tape)], changed, parameters), tried)

    def test_who_quotes_anew_for_ever_is_the_touch_requoted(
        self, orders: pd.DataFrame, tape: Market, tested: pd.DataFrame, parameters: Parameters
    ) -> None:
        joined = requoted(tape, tested.reset_index(drop=True), JOINING, parameters)
        touch = orders[orders["strategy"] == "touch_requoted"]
        np.testing.assert_allclose(joined["total_cost_bps"], touch["total_cost_bps"], atol=1e-9)

    def test_every_training_seed_is_traded(self, orders: pd.DataFrame, parameters: Parameters) -> None:
        traded = orders[orders["strategy"] == "boosting"].groupby("seed")["kind"].unique()
        actions = parameters.policy.actions
        assert traded.map(list).to_dict() == {2: [str(actions[1])], 3: [str(actions[0])]}
        assert orders.groupby("strategy")["seed"].unique().loc["market"].tolist() == [UNTRAINED]

    def test_rules_of_a_sign_take_where_the_price_is_pushed_away(
        self, tape: Market, tested: pd.DataFrame, orders: pd.DataFrame
    ) -> None:
        ns, side = tested["decision_ns"].to_numpy(), tested["side"].to_numpy()
        moved = {seconds: tape.mid_at(ns) - tape.mid_at(ns - seconds * SECOND) for seconds in (10, 60)}
        pushes = {f"sign_momentum_{seconds}s": move for seconds, move in moved.items()}
        for rule, push in (pushes | {"sign_imbalance": tested["book_imbalance"].to_numpy()}).items():
            kinds = orders.loc[orders["strategy"] == rule, "kind"].tolist()
            assert kinds == np.where(side * push > 0, "take", "join").tolist() and len(set(kinds)) == 2

    def test_take_and_join_are_the_baselines_of_that_name(self, orders: pd.DataFrame, outcomes: pd.DataFrame) -> None:
        for strategy, kind in (("market", "take"), ("join_best", "join")):
            baseline = orders[orders["strategy"] == strategy].set_index("order_id")["total_cost_bps"]
            candidate = outcomes[outcomes["kind"] == kind].set_index("order_id")["total_cost_bps"]
            np.testing.assert_allclose(baseline, candidate[baseline.index], atol=1e-9)

    def test_a_joined_order_never_takes_before_the_horizon(self, orders: pd.DataFrame) -> None:
        joined = orders[orders["strategy"] == "join_best"]
        assert (joined["maker_share"] == joined["filled_passive"]).all() and joined["maker_share"].max() > 0

    def test_metrics_can_be_taken(self, orders: pd.DataFrame, parameters: Parameters) -> None:
        table = summarise(in_blocks(orders, parameters.evidence.block_s), parameters.evidence, parameters.seed)
        rates = table[table["metric"] == "fill_rate"].set_index("strategy")["value"]
        assert rates["market"] == rates["twap"] == 1.0 and rates["untrained"] < 1

    def test_an_assumption_changes_what_it_is_about(
        self,
        tape: Market,
        tested: pd.DataFrame,
        trained: Trained,
        outcomes: pd.DataFrame,
        decisions: pd.DataFrame,
        parameters: Parameters,
    ) -> None:
        rounds = {"twap_slices": 2, "requote_s": 60.0}  # few: each is a replay
        few = parameters.model_copy(update={"execution": parameters.execution.model_copy(update=rounds)})
        halves = tested.iloc[::2], tested.iloc[1::2]
        given = trained, outcomes, decisions, few
        timed = {"timed_ms": [2000.0]}
        parts = [strategies.sensitivity(tape, half, *given, backtest(tape, half, *given), **timed) for half in halves]
        table = strategies.mean_costs(parts)
        orders = backtest(tape, tested, *given)
        dearest = few.execution.fees.model_copy(update={"tier": 3})
        replayed = backtest(tape, tested, trained, outcomes, decisions, with_execution(few, fees=dearest))
        replayed = replayed.groupby("strategy")["total_cost_bps"].mean()
        pd.testing.assert_series_equal(table.loc["fees", "tier 3"], replayed[table.columns], check_names=False)
        as_it_is = orders.groupby("strategy")["total_cost_bps"].mean()
        pd.testing.assert_series_equal(table.loc["queue", "fitted"], as_it_is[table.columns], check_names=False)
        slow = few.execution.latency.model_copy(update={"policy_ms": 2000.0})
        late = backtest(tape, tested, trained, outcomes, decisions, with_execution(few, latency=slow))
        late = late.groupby("strategy")["total_cost_bps"].mean()
        pd.testing.assert_series_equal(table.loc["latency", AS_TIMED], late[table.columns], check_names=False)
        assert table.loc[("fees", "tier 0"), "market"] - table.loc[("fees", "tier 6"), "market"] == pytest.approx(
            2.1, abs=0.01
        )
        assert len(table) == 17 and np.isfinite(table).all().all()

    def test_parts_give_what_the_whole_gives(
        self,
        tape: Market,
        tested: pd.DataFrame,
        trained: Trained,
        outcomes: pd.DataFrame,
        decisions: pd.DataFrame,
        parameters: Parameters,
        orders: pd.DataFrame,
    ) -> None:
        cut = tested["order_id"].iloc[len(tested) // 3]
        parts = [tested[tested["order_id"] >= cut].iloc[::-1], tested[tested["order_id"] < cut]]
        apart = pd.concat([backtest(tape, part, trained, outcomes, decisions, parameters) for part in parts])
        keys = ["strategy", "seed", "order_id"]
        same = apart.set_index(keys).loc[orders.set_index(keys).index].reset_index()[orders.columns]
        pd.testing.assert_frame_equal(same, orders)

    def test_what_is_missing_is_named(
        self,
        tape: Market,
        tested: pd.DataFrame,
        trained: Trained,
        outcomes: pd.DataFrame,
        decisions: pd.DataFrame,
        parameters: Parameters,
    ) -> None:
        with pytest.raises(DataError, match=r"untrained decided 3 of the orders not at all.*07_inference"):
            backtest(tape, tested, trained, outcomes, decisions.iloc[3:], parameters)
        with pytest.raises(DataError, match="no order to execute"):
            backtest(tape, tested.iloc[:0], trained, outcomes, decisions, parameters)
        with pytest.raises(DataError, match="training split"):
            strategies.train([(EVER, tape)], outcomes[outcomes["split"] == "test"], JOINING)


def with_execution(parameters: Parameters, **changes: object) -> Parameters:
    return parameters.model_copy(update={"execution": parameters.execution.model_copy(update=changes)})


def one_parent(size: float = 0.6, horizon_s: float = 60.0, **others: object) -> pd.DataFrame:
    """A buyer at second 10 of a market at 1000 USD."""
    given = {"order_id": [0], "asset": "ETH", "objective": "balanced", "decision_ns": [at(10)], "side": [1]}
    rest = {"size": size, "horizon_s": horizon_s, "arrival_mid": 1000.0, "split": "test", "block": 0}
    state = {"volatility_5m_bps": 1.0, "bid_ask_spread_bps": 2.0, "book_imbalance": 0.0}
    return pd.DataFrame(given | rest | state | others)


class TestQuotes:
    """Quotes of a second before each time; 5-50 ms of latency; nobody stands before us (`touch`)."""

    @staticmethod
    def fast(parameters: Parameters) -> Parameters:
        latency = parameters.execution.latency.model_copy(update={"preset": "thesis", "policy_ms": 0.0})
        return with_execution(parameters, latency=latency, queue="touch")

    @staticmethod
    def moving(prints: list[tuple[float, float, float, int]]) -> Market:
        """The best bid rises by 0.1 every 10 s from 999.9 on; the ask is 0.4 above."""
        quotes = [(9.5 + 10 * step, 999.9 + step / 10, 50.0, 1000.3 + step / 10, 50.0) for step in range(9)]
        return market(quotes=[(round(t, 3), round(b, 1), s, round(a, 1), z) for t, b, s, a, z in quotes], prints=prints)

    def test_what_a_slice_has_left_goes_over_to_the_next(self, parameters: Parameters) -> None:
        """Slices of 0.1: the first is filled by half, so the second is of 0.15 at its own price, and so on."""
        tape = self.moving([(15.0, 999.9, 0.05, -1), (25.0, 1000.0, 9.0, -1)])
        seen: list[pd.DataFrame] = []

        def at_bid(children: pd.DataFrame, seconds_left: np.ndarray, share_left: np.ndarray) -> np.ndarray:
            seen.append(children.assign(seconds_left=seconds_left, share_left=share_left))
            return tape.top_at(children["decision_ns"].to_numpy()).bid_price

        even = np.full((1, 6), 1 / 6)
        row = quote_slices(tape, one_parent(), even, at_bid, self.fast(parameters)).iloc[0]
        offered = pd.concat(seen)
        assert offered["size"].tolist() == pytest.approx([0.1, 0.15, 0.1, 0.2, 0.3, 0.4])
        assert offered["seconds_left"].tolist() == [60, 50, 40, 30, 20, 10]
        assert offered["share_left"].tolist() == pytest.approx([1, 0.55 / 0.6, *[0.4 / 0.6] * 4])
        assert row.filled_passive == row.maker_share == pytest.approx(0.2 / 0.6) and row.status == "completed"
        assert row[["filled_queue", "filled_through"]].tolist() == pytest.approx([0.2 / 0.6, 0])
        completion = 1000.9  # the ask after 69.5 s
        assert row.exec_price == pytest.approx((0.05 * 999.9 + 0.15 * 1000.0 + 0.4 * completion) / 0.6)
        assert row.fees_bps == pytest.approx((0.05 * 999.9 + 0.15 * 1000.0) / 600 * 1.5 + 0.4 * completion / 600 * 4.5)
        assert row.opportunity_bps == pytest.approx(0.4 / 0.6 * (1000.7 / 1000 - 1) * 1e4)
        assert row.spread_bps + row.timing_bps + row.opportunity_bps == pytest.approx(row.implementation_shortfall_bps)

    def test_a_peg_follows_the_mid(self, parameters: Parameters) -> None:
        """The mid is 1000.1 at first and 1000.3 after 29.5 s: a sale at 1000.2 meets the third quote, not the first."""
        tape = self.moving([(12.0, 1000.2, 5.0, -1), (32.0, 1000.3, 5.0, -1)])
        trained = Trained(0, Threshold(0.0, 0, 0), JOINING, np.ones(96), 1.0)
        orders = strategies._by_children(tape, one_parent(), trained, self.fast(parameters))
        row = orders["mid_peg"].iloc[0]
        assert row.filled and row.exec_price == pytest.approx(1000.3) and at(32) <= row.fill_ns < at(32.1)

    def test_a_replacement_arrives_when_its_predecessor_leaves(self, parameters: Parameters) -> None:
        """A print in the instant between two children finds exactly one of them."""
        slow = with_execution(self.fast(parameters), latency=parameters.execution.latency)
        for second in np.arange(20.0, 21.0, 0.05):
            tape = self.moving([(float(second), 999.0, 0.5, -1)])
            even = np.full((1, 6), 1 / 6)
            orders = quote_slices(tape, one_parent(), even, lambda children, *_: np.full(len(children), 999.9), slow)
            row = orders.iloc[0]
            assert row.filled_passive in (pytest.approx(0.1 / 0.6), pytest.approx(0.2 / 0.6))

    @staticmethod
    def ticking(parameters: Parameters, latency_ms: float = 0.0) -> Parameters:
        """One latency for all, quotes chosen anew every 10 s, a queue that only prints shorten."""
        latency = {"preset": "empirical", "policy_ms": 0.0, "empirical_ms": [latency_ms]}
        chosen = parameters.execution.latency.model_copy(update=latency)
        return with_execution(parameters, latency=chosen, queue="risk_averse", requote_s=10.0)

    def test_a_quote_at_the_same_price_keeps_its_place(self, parameters: Parameters) -> None:
        """Of 5 before it 2 print each 15 s: after 45 s it has had 0.6 of the last; renewed it would have none."""
        prints = [(second, 999.9, 2.0, -1) for second in (15.0, 30.0, 45.0)]
        tape = market(prints=prints, quotes=[(46.0, 999.9, 5.0, 1000.1, 4.0)])
        row = requote(
            tape, one_parent(), lambda children, *_: np.full(len(children), 999.9), self.ticking(parameters)
        ).iloc[0]
        assert row.filled and row.filled_queue == pytest.approx(1) and row.queue_ahead == 5 and row.fill_ns == at(45)

    def test_one_at_another_price_joins_anew(self, parameters: Parameters) -> None:
        """It goes away for the ten seconds from 20 s on; what then stands before it is all that is shown."""
        prints = [(15.0, 999.9, 4.0, -1), (35.0, 999.9, 4.0, -1)]
        tape = market(prints=prints, quotes=[(16.0, 999.9, 5.0, 1000.1, 4.0)])

        def there_and_back(children: pd.DataFrame, *_: np.ndarray) -> np.ndarray:
            return np.where(children["decision_ns"] == at(20), 999.8, 999.9)

        row = requote(tape, one_parent(), there_and_back, self.ticking(parameters)).iloc[0]
        assert row.filled_passive == 0
        stays = requote(
            tape, one_parent(), lambda children, *_: np.full(len(children), 999.9), self.ticking(parameters)
        )
        assert stays.iloc[0].filled_passive == pytest.approx(1)

    def test_a_fill_is_known_when_the_feed_shows_its_time(self, parameters: Parameters) -> None:
        """Messages take 0.1 s: a fill at 19.95 s is not known at 20 s, but at 30 s, and so is one at 29.5 s."""
        seen = []

        def remembered(children: pd.DataFrame, seconds_left: np.ndarray, share_left: np.ndarray) -> np.ndarray:
            seen.append(float(share_left[0]))
            return np.full(len(children), 1000.0)

        prints = [(19.95, 1000.0, 0.1, -1), (29.5, 1000.0, 0.2, -1)]
        tape = market(prints=prints, quotes=[(19.99, 999.9, 5.0, 1000.1, 4.0), (29.6, 999.9, 5.0, 1000.1, 4.0)])
        requote(tape, one_parent(), remembered, self.ticking(parameters))
        assert seen[:3] == pytest.approx([1, 1, 0.5])

    def test_too_little_for_a_new_order_stays_where_it_is(self, parameters: Parameters) -> None:
        """0.592 of 0.6 are filled: 8 USD are left, which the exchange would refuse at another price."""
        tape = market(prints=[(15.0, 1000.0, 0.592, -1), (45.0, 1000.0, 0.5, -1)])

        def falling(children: pd.DataFrame, seconds_left: np.ndarray, share_left: np.ndarray) -> np.ndarray:
            return np.where(seconds_left > 55, 1000.0, 999.8)

        row = requote(tape, one_parent(), falling, self.ticking(parameters)).iloc[0]
        assert row.filled and row.fill_ns == at(45) and row.exec_price == pytest.approx(1000.0)

    def test_what_is_too_little_at_the_deadline_is_taken_as_it_is(self, parameters: Parameters) -> None:
        tape = market(prints=[(15.0, 1000.0, 0.592, -1)])
        row = requote(
            tape, one_parent(), lambda children, *_: np.full(len(children), 1000.0), self.ticking(parameters)
        ).iloc[0]
        assert row.status == "completed" and row.filled_passive == pytest.approx(0.592 / 0.6)
        assert row.exec_price == pytest.approx((0.592 * 1000.0 + 0.008 * 1000.1) / 0.6)

    @pytest.mark.parametrize("seconds", [0.0, 0.5, 2.0])
    def test_the_deadline_is_that_of_any_other_order(self, parameters: Parameters, seconds: float) -> None:
        """The ask rises when the block of the deadline, 70 s, is over."""
        tape = market(quotes=[(70.2, 1000.8, 50.0, 1001.0, 50.0)])
        quoted = self.ticking(parameters, seconds * 1000)
        even = np.full((1, 6), 1 / 6)
        rows = [requote(tape, one_parent(), lambda children, *_: np.full(len(children), 999.0), quoted)]
        rows += [quote_slices(tape, one_parent(), even, lambda children, *_: np.full(len(children), 999.0), quoted)]
        for row in pd.concat(rows).itertuples():
            assert row.status == "completed" and row.exec_price == pytest.approx(1000.1)
        late = requote(
            tape, one_parent(horizon_s=1.0), lambda children, *_: np.full(len(children), 999.0), quoted
        ).iloc[0]
        assert late.status == "completed" and late.filled_passive == 0

    def test_a_quote_that_would_take_comes_back_at_its_own_side(self, parameters: Parameters) -> None:
        """The touch of 9.5 s is gone when the first quote arrives at 10.2 s; it comes back at 10.6 s."""
        tape = market(quotes=[(10.15, 999.5, 3.0, 999.7, 3.0)], prints=[(12.0, 999.5, 9.0, -1)])
        row = requote(
            tape, one_parent(), lambda children, *_: np.full(len(children), 999.9), self.ticking(parameters, 200.0)
        ).iloc[0]
        assert row.rejections == 1 and row.filled and row.exec_price == pytest.approx(999.5)

    def test_reservation_prices_by_hand(self) -> None:
        """gamma 0.1, sigma 2, tau 10: variance 4; ln(1 + 0.1 / 2) / 0.1 = 0.4879 from the mid when half is left."""
        distance = strategies.reservation_distance_bps(np.array([2.0]), np.array([10.0]), np.array([0.5]), 0.1, 2.0)
        assert distance == pytest.approx([np.log(1.05) / 0.1])
        whole = strategies.reservation_distance_bps(np.array([2.0]), np.array([10.0]), np.array([1.0]), 0.1, 2.0)
        assert whole == pytest.approx(distance - 2.0)

    def test_quotes_never_take(self, orders: pd.DataFrame) -> None:
        for name in ("twap_post_only", "vwap_post_only", "mid_peg", "avellaneda_stoikov"):
            rows = orders[orders["strategy"] == name]
            np.testing.assert_allclose(rows["maker_share"], rows["filled_passive"], atol=1e-9)
            assert 0 < rows["filled_passive"].mean() < 1 and rows["filled_passive"].between(0, 1 + 1e-9).all()


class TestThreshold:
    @staticmethod
    def outcomes(lean: list[float], costs: np.ndarray, split: str = "train") -> pd.DataFrame:
        """K rows per state; buyers and sellers alternate, the book leans with each order by `lean` (n,)."""
        states, actions = costs.shape
        side = np.where(np.arange(states) % 2, 1, -1)
        table = {"order_id": np.arange(states), "split": split, "side": side, "book_imbalance": side * lean}
        rows = pd.DataFrame(table).loc[np.repeat(np.arange(states), actions)].reset_index(drop=True)
        return rows.assign(action=np.tile(np.arange(actions), states), total_cost_bps=costs.ravel())

    def test_it_is_the_cheapest_of_all_bounds_and_pairs(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(20):
            lean, costs = rng.integers(-4, 5, 12) / 4, rng.normal(size=(12, 3))
            best = best_threshold(self.outcomes(lean, costs))
            tried = [
                costs[np.arange(12), np.where(lean > bound, above, below)].mean()
                for bound in [-np.inf, *lean]
                for below in range(3)
                for above in range(3)
            ]
            paid = costs[np.arange(12), best.chosen(lean)].mean()
            assert paid == pytest.approx(min(tried))

    def test_it_knows_the_training_split_only(self) -> None:
        costs = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
        train = self.outcomes([-0.5, -0.1, 0.2, 0.7], costs)
        test = self.outcomes([-0.5, -0.1, 0.2, 0.7], -costs, "test").assign(order_id=lambda rows: rows["order_id"] + 4)
        assert best_threshold(pd.concat([train, test], ignore_index=True)) == Threshold(-0.1, 0, 1)


def test_the_bounds_say_where_cancels_stood(parameters: Parameters) -> None:
    """Five stand before the order and five join behind it; five cancel, and one prints."""
    quotes = [(15.0, 999.9, 10.0, 1000.1, 4.0), (20.0, 999.9, 5.0, 1000.1, 4.0)]
    tape, order = market(quotes=quotes, prints=[(25.0, 999.9, 1.0, -1)]), one_parent(size=1.0)
    joined = order.assign(limit_price=999.9, post_only=True)
    filled = {
        name: replay_orders(tape, joined, with_execution(parameters, **queue).execution, 0).filled_queue.iloc[0]
        for name, queue in strategies.BOUNDS.items()
    }
    assert filled == {"all ahead": 1.0, "all behind": 0.0}


class TestSlices:
    def test_children_add_up_and_none_is_too_small(self, parents: pd.DataFrame) -> None:
        rng = np.random.default_rng(0)
        small = parents.assign(size=snap_size(rng.uniform(11, 200, len(parents)) / parents["arrival_mid"], 4))
        weights = rng.dirichlet(np.full(6, 0.3), len(small))
        sizes = slice_sizes(small, weights, 4)
        np.testing.assert_allclose(sizes.sum(axis=1), small["size"], atol=1e-12)
        notional = sizes * small["arrival_mid"].to_numpy()[:, None]
        assert (notional[sizes > 0] >= MINIMUM_NOTIONAL_USD).all() and (sizes >= 0).all()

    def test_the_usual_volume_is_that_of_the_time_of_day_where_enough_days_show_it(self) -> None:
        """Half of it on five days, half on four: 9,000 coin in the first quarter of an hour, 900 in the others."""
        first = 20_000 * 96
        volumes = pd.Series(900.0, index=np.arange(first, first + 4 * 96 + 48))
        volumes[volumes.index % 96 == 0] = 9000.0
        quarter_ns = 900 * SECOND
        usual = strategies.usual_volume(volumes, first * quarter_ns, (first + 4 * 96 + 48) * quarter_ns - 1)
        whole = volumes.sum() / (len(volumes) * 900)
        assert usual[0] == pytest.approx(10) and usual[1:48] == pytest.approx(1) and usual[48:] == pytest.approx(whole)

    def test_vwap_knows_the_volume_of_the_training_split_only(self) -> None:
        """360 coin in 180 s of training; what prints later is not known to it."""
        prints = [(60.0 * minute + 55, 1000.1, 120.0, 1) for minute in range(3)]
        tape = market(prints=[*prints, (250.0, 1000.1, 5000.0, 1)])
        cost = {"order_id": [0, 1], "action": 0, "side": 1, "book_imbalance": 0.5, "total_cost_bps": 1.0}
        outcomes = pd.DataFrame({"split": "train", "decision_ns": [at(0.0), at(180.0)], **cost})
        trained = strategies.train([(EVER, tape)], outcomes, JOINING)
        assert trained.usual_volume == pytest.approx(2.0) and len(trained.usual_volume) == 96
        assert trained.print_depth_bps == pytest.approx(1.0) and trained.best_fixed == 0

    def test_vwap_keeps_step_with_the_volume(self) -> None:
        """2 coin a second are usual, so 20 a slice. 40 print in the first 10 s, known when the second slice begins:
        60 of 140 are then due by its end; nothing more prints, so 60 of 120, of 100, of 80, and all at the end.
        """
        tape = market(prints=[(12.0, 1000.1, 40.0, 1)])
        weights = strategies.volume_weights(tape, one_parent(), 6, np.full(96, 2.0))
        due = [20 / 120, 60 / 140, 60 / 120, 60 / 100, 60 / 80, 1]
        assert np.cumsum(weights) == pytest.approx(due)
        calm = strategies.volume_weights(market(prints=[(2.0, 1000.1, 40.0, 1)]), one_parent(), 6, np.full(96, 2.0))
        assert calm[0] == pytest.approx([1 / 6, 1 / 30, 1 / 20, 1 / 12, 1 / 6, 1 / 2])

    def test_twap_pays_the_average_of_its_times(self, parameters: Parameters) -> None:
        quotes = [(10 + 10 * step, 999.9 + step, 50.0, 1000.1 + step, 50.0) for step in range(6)]
        tape = market(quotes=[(second - 0.5, *rest) for second, *rest in quotes])
        latency = parameters.execution.latency.model_copy(update={"preset": "thesis"})
        even = np.full((1, 6), 1 / 6)
        twap = take_slices(tape, one_parent(), even, with_execution(parameters, latency=latency)).iloc[0]
        assert twap.exec_price == pytest.approx(np.mean([1000.1 + step for step in range(6)]))
        assert twap.implementation_shortfall_bps == pytest.approx(26.0) and at(60) < twap.fill_ns < at(60.1)
        assert twap.fees_bps == pytest.approx(4.5 * twap.exec_price / 1000)


def test_orders_are_written_whole(orders: pd.DataFrame, tmp_path) -> None:
    path = write_table(orders, tmp_path, "orders")
    pd.testing.assert_frame_equal(pd.read_parquet(path), orders)
