"""Metrics against values computed by hand, and intervals that cover what they say they cover."""

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import IIDBootstrap

from hyperdapo.errors import DataError
from hyperdapo.evidence import metrics
from hyperdapo.evidence.gaps import COLUMNS, MEANS, learning_gaps, over_seeds
from hyperdapo.params import load
from hyperdapo.times import SECOND_NS

PARAMETERS = load("smoke", {"assets": ["BTC"], "training": {"algorithms": ["dapo", "dpo"]}})
EVIDENCE = PARAMETERS.evidence
BLOCK_NS = round(EVIDENCE.block_s * SECOND_NS)


def orders_frame(
    strategy: str, cost: np.ndarray, blocks: np.ndarray, fees: float = 1.5, asset: str = "BTC"
) -> pd.DataFrame:
    """n orders of one strategy whose total cost is `cost`."""
    count = len(cost)
    columns = {
        "order_id": np.arange(count),
        "asset": asset,
        "strategy": strategy,
        "block": blocks,
        "decision_ns": np.asarray(blocks) * BLOCK_NS + np.arange(count) % 10 * 6 * SECOND_NS,
        "filled": np.arange(count) % 4 > 0,
        "filled_passive": 1.0,
        "fees_bps": fees,
        "implementation_shortfall_bps": cost - fees,
        "total_cost_bps": cost,
        "slippage_bps": np.where(np.arange(count) % 2, 1.0, -3.0),
        "markout_60s_bps": np.where(np.arange(count) % 5, 2.0, -2.0),
    }
    return pd.DataFrame(columns)


def test_metrics_by_hand() -> None:
    cost = np.array([1.0, 3.0, 5.0, 7.0])
    table = metrics.summarise(orders_frame("market", cost, np.array([0, 0, 1, 1])), EVIDENCE, 0).set_index("metric")
    assert table.loc["total_cost_bps", "value"] == 4.0
    assert table.loc["fill_rate", "value"] == 0.75
    assert table.loc["slippage_bps", "value"] == -1.0 and table.loc["absolute_slippage_bps", "value"] == 2.0
    assert table.loc["adverse_selection", "value"] == 0.25
    assert table.loc["sharpe_ratio", "value"] == pytest.approx(-4 / np.std([2, 6], ddof=1))
    assert table.loc["maximum_drawdown", "value"] == pytest.approx(1 - (1 - 2e-4) * (1 - 6e-4))
    assert (table["blocks"] == 2).all()


def test_what_is_decided_more_often_stands_beside_the_rule_as_often() -> None:
    cost, blocks = np.array([1.0, 3.0, 5.0, 7.0]), np.array([0, 0, 1, 1])
    saved = {"touch_requoted": 0.0, "threshold_requoted": 0.2, "boosting_sequential": 0.3}
    saved |= {"threshold_every_2.5s": 0.5, "boosting_every_2.5s": 0.9, "market": -3.0}
    orders = pd.concat(orders_frame(name, cost - less, blocks) for name, less in saved.items()).assign(maker_share=0.5)
    table = metrics.by_interval(orders, 10.0, EVIDENCE, 0)
    rows = list(table[["every_s", "reference", "strategy"]].itertuples(index=False, name=None))
    assert rows == [
        (2.5, "touch_requoted", "threshold_every_2.5s"),
        (2.5, "touch_requoted", "boosting_every_2.5s"),
        (2.5, "threshold_every_2.5s", "boosting_every_2.5s"),
        (10.0, "touch_requoted", "threshold_requoted"),
        (10.0, "touch_requoted", "boosting_sequential"),
        (10.0, "threshold_requoted", "boosting_sequential"),
    ]
    assert table["difference_bps"].tolist() == pytest.approx([-0.5, -0.9, -0.4, -0.2, -0.3, -0.1])
    once = orders[~orders["strategy"].str.contains("every")]
    assert metrics.by_interval(once, None, EVIDENCE, 0).empty


def test_side_by_side_adds_up() -> None:
    """Two bps dearer in price, of which it saves one in fees, on the same orders."""
    cost, blocks = np.array([1.0, 3.0, 5.0, 7.0]), np.array([0, 0, 1, 1])
    parts = [orders_frame("touch_requoted", cost, blocks), orders_frame("again", cost + 1, blocks, fees=0.5)]
    orders = pd.concat(parts).assign(maker_share=0.5, spread_bps=lambda rows: rows["implementation_shortfall_bps"])
    table = metrics.side_by_side(orders, ["touch_requoted", "again"], EVIDENCE, 0).set_index(["reference", "strategy"])
    assert table.loc[("again", "touch_requoted"), "difference_bps"] == -1.0 and len(table) == 4
    table = table.loc["touch_requoted"]
    again = table.loc["again"]
    assert again["difference_bps"] == again["of_fees_bps"] + again["of_spread_bps"] == 1.0
    assert again["of_fees_bps"] == -1.0 and again["total_cost_bps"] == 5.0 and again["blocks"] == 2
    assert table.loc["touch_requoted", "total_cost_bps"] == 4.0 and np.isnan(
        table.loc["touch_requoted", "difference_bps"]
    )


def test_the_main_table_is_by_hand_and_its_last_rows_are_of_all_assets() -> None:
    cost, blocks = np.array([1.0, 3.0, 5.0, 7.0]), np.array([0, 0, 1, 1])
    orders = pd.concat([orders_frame("market", cost, blocks), orders_frame("market", cost + 2, blocks, asset="ETH")])
    orders = orders.assign(maker_share=[0, 0, 1, 1, 1, 1, 1, 1], cost_all_ahead_bps=1.0, cost_all_behind_bps=9.0)
    table = metrics.main_table(orders, EVIDENCE, 0).set_index("asset")
    assert table["total_cost_bps"].to_dict() == {"BTC": 4.0, "ETH": 6.0, metrics.TOGETHER: 5.0}
    assert table["maker_share"].to_dict() == {"BTC": 0.5, "ETH": 1.0, metrics.TOGETHER: 0.75}
    assert (table["cost_all_ahead_bps"] == 1).all() and (table["cost_all_behind_bps"] == 9).all()
    assert table["orders"].to_dict() == {"BTC": 4, "ETH": 4, metrics.TOGETHER: 8}
    assert (table["blocks"] == 2).all(), "a block of time holds the orders of both"
    assert table.loc[metrics.TOGETHER, "ci_low"] >= 3.0 and table.loc[metrics.TOGETHER, "ci_high"] <= 7.0


def test_the_drawdown_is_from_the_highest_value_so_far() -> None:
    assert metrics.maximum_drawdown([100.0, -100.0, 50.0, -200.0]) == pytest.approx(1 - 0.99 * 1.005 * 0.98)
    assert metrics.maximum_drawdown([1.0, 2.0]) == 0.0


def test_a_markout_beyond_the_data_is_left_out() -> None:
    orders = orders_frame("market", np.ones(6), np.arange(6))
    orders["markout_60s_bps"] = [np.nan, np.nan, -1.0, -1.0, 3.0, 3.0]
    table = metrics.summarise(orders, EVIDENCE, 0).set_index("metric")
    assert table.loc["adverse_selection", "value"] == 0.5 and table.loc["markout_60s_bps", "value"] == 1.0
    assert table.loc["adverse_selection", "blocks"] == 4 and table.loc["fill_rate", "blocks"] == 6


def test_fee_and_price_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(20), 5)
    base = orders_frame("best_fixed", rng.normal(4, 2, 100), blocks, 4.5)
    both = pd.concat([base, orders_frame("dapo", rng.normal(3, 2, 100), blocks)])
    parts = metrics.decompose(both, "best_fixed", EVIDENCE, 0).set_index("part")["difference_bps"]
    assert parts["fees_bps"] == pytest.approx(-3.0)
    assert parts["fees_bps"] + parts["implementation_shortfall_bps"] == pytest.approx(parts["total_cost_bps"], abs=1e-9)


def test_the_price_part_is_told_in_parts_of_its_own() -> None:
    rng, blocks = np.random.default_rng(0), np.repeat(np.arange(20), 5)
    both = pd.concat([orders_frame(name, rng.normal(4, 2, 100), blocks) for name in ("best_fixed", "dapo")])
    split = {"spread_bps": 0.5 * both[metrics.PRICE], "timing_bps": 0.3 * both[metrics.PRICE]}
    both = both.assign(funding_bps=0.0, opportunity_bps=0.2 * both[metrics.PRICE], **split)
    parts = metrics.decompose(both, "best_fixed", EVIDENCE, 0).set_index("part")["difference_bps"]
    assert list(parts.index) == list(metrics.PARTS)
    price = parts[["spread_bps", "timing_bps", "opportunity_bps"]].sum()
    assert price == pytest.approx(parts[metrics.PRICE], abs=1e-9)


def test_pairs_are_the_same_parent_orders() -> None:
    blocks, cost = np.repeat(np.arange(10), 3), np.arange(30.0)
    shifts = {"best_fixed": 0.0, "dapo": -2.0, "twap": 1.0, "market": 5.0}
    frames = [orders_frame(name, cost + shift, blocks, asset=asset) for name, shift in shifts.items() for asset in "AB"]
    shuffled = pd.concat(frames).sample(frac=1, random_state=1)
    differences = metrics.paired_differences(shuffled, "best_fixed")
    assert len(differences) == 2 * 3 * 30
    found = differences.groupby(["asset", "strategy"])["total_cost_bps"].agg(["min", "max"])
    for (_, strategy), low, high in found.itertuples():
        assert low == pytest.approx(shifts[strategy]) and high == pytest.approx(shifts[strategy])


def test_an_order_without_its_reference_is_no_pair() -> None:
    blocks = np.repeat(np.arange(10), 3)
    base = orders_frame("best_fixed", np.arange(30.0), blocks).iloc[:20]
    other = orders_frame("dapo", np.arange(30.0) - 2, blocks)
    with pytest.raises(DataError, match="best_fixed did not execute order 20"):
        metrics.paired_differences(pd.concat([other, base]), "best_fixed")
    with pytest.raises(DataError, match="order 0 of best_fixed stands there twice"):
        metrics.paired_differences(pd.concat([other, base, base]), "best_fixed")


def test_bootstrap_interval_covers_the_mean_of_correlated_orders() -> None:
    rng = np.random.default_rng(7)
    blocks, covered = np.repeat(np.arange(30), 20), 0
    for trial in range(400):
        values = rng.normal(size=30)[blocks] + rng.normal(size=600)
        interval = metrics.block_bootstrap(values, blocks, EVIDENCE, trial)
        covered += interval.low <= 0 <= interval.high
    assert 0.90 <= covered / 400 <= 0.97, covered


def test_bootstrap_agrees_with_arch() -> None:
    rng = np.random.default_rng(2)
    gain, room = rng.normal(1, 2, 60), rng.uniform(2, 4, 60)
    ours = metrics.ratio_bootstrap(gain, room, EVIDENCE.model_copy(update={"bootstrap": 20_000}), 0)
    theirs = IIDBootstrap(gain, room, seed=np.random.default_rng(1)).conf_int(
        lambda a, b: a.sum() / b.sum(), reps=4000, method="percentile"
    )
    assert np.allclose([ours.low, ours.high], theirs.ravel(), atol=0.012)


def test_one_block_has_no_interval() -> None:
    interval = metrics.block_bootstrap([1.0, 2.0], [3, 3], EVIDENCE, 0)
    assert interval.value == 1.5 and np.isnan(interval.low) and interval.blocks == 1


def test_learning_gap_of_known_policies() -> None:
    rewards = np.array([[0.0, 1.0, 4.0], [0.0, 1.0, -4.0], [3.0, 1.0, 0.0], [1.0, 1.0, 3.0]])
    actions = {"oracle": rewards.argmax(axis=1), "fixed": np.full(4, 1), "worst": rewards.argmin(axis=1)}
    earned = {policy: rewards[np.arange(4), action] for policy, action in actions.items()}
    table = metrics.learning_gap(rewards, earned, 1, np.arange(4), EVIDENCE, 0).set_index("policy")
    assert table.loc["oracle", "gap_closed"] == 1.0 and table.loc["fixed", "gap_closed"] == 0.0
    assert table.loc["worst", "gap_closed"] < 0
    assert table.loc["oracle", "oracle_bps"] == rewards.max(axis=1).mean()


def _replayed() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Outcomes of 60 states x 3 actions, where action 1 is best on train and 2 on test, and what four policies took."""
    rng = np.random.default_rng(0)
    train = np.repeat(np.arange(60) < 40, 3)
    action = np.tile(np.arange(3), 60)
    level = np.where(train, np.array([0, 2, 1])[action], np.array([0, 1, 2])[action])
    outcomes = pd.DataFrame({"order_id": np.repeat(np.arange(60), 3), "asset": "BTC", "action": action})
    outcomes["split"], outcomes["decision_ns"] = np.where(train, "train", "test"), outcomes["order_id"] // 4 * BLOCK_NS
    outcomes["reward"] = level + rng.normal(0, 0.1, 180)
    taken = {"untrained": 0, "dpo": 1, "dapo": 2, "linear": 1, "mlp": 0, "boosting": 2}
    rows = [
        {"order_id": i, "asset": "BTC", "policy": p, "seed": 0, "action": a}
        for p, a in taken.items()
        for i in range(40, 60)
    ]
    return outcomes, pd.DataFrame(rows)


def test_learning_gaps_choose_the_fixed_action_on_train_and_judge_on_test() -> None:
    outcomes, decisions = _replayed()
    table = learning_gaps(outcomes, decisions.sample(frac=1, random_state=0), PARAMETERS)
    assert list(table.columns) == COLUMNS and (table["states"] == 20).all()
    table = table.set_index("algorithm")
    assert table.loc["dpo", "gap_closed"] == 0.0 and table.loc["dapo", "gap_closed"] > 0.9
    assert table.loc["dapo", "trained_bps"] == table.loc["dapo", "boosting_bps"]
    assert (
        table.loc["dapo", "linear_gap_closed"] == 0.0
        and table.loc["dpo", "mlp_bps"] == table.loc["dpo", "untrained_bps"]
    )
    assert table.loc["dapo", "untrained_bps"] == pytest.approx(0.0, abs=0.1)


def test_seeds_are_averaged_state_by_state() -> None:
    """A second seed of `dapo` that takes what `dpo` takes: the mean closes half of what the first closed."""
    outcomes, decisions = _replayed()
    second = decisions[decisions["policy"] == "dpo"].assign(policy="dapo", seed=1)
    table = over_seeds(outcomes, pd.concat([decisions, second]), PARAMETERS)
    assert list(table.columns) == MEANS
    row = table.set_index("algorithm").loc["dapo"]
    first = learning_gaps(outcomes, decisions, PARAMETERS).set_index("algorithm").loc["dapo"]
    assert row["seeds"] == 2 and row["lowest_seed"] == 0.0 and row["highest_seed"] == pytest.approx(first["gap_closed"])
    assert row["gap_closed"] == pytest.approx(first["gap_closed"] / 2) and row["share_of_boosting"] == pytest.approx(
        0.5
    )
    assert row["minus_boosting_bps"] == pytest.approx((row["best_fixed_bps"] - row["boosting_bps"]) / 2)
    dpo = table.set_index("algorithm").loc["dpo"]
    assert row["minus_dpo_bps"] == pytest.approx(row["trained_bps"] - dpo["trained_bps"])
    assert row["minus_dpo_ci_low"] <= row["minus_dpo_bps"] <= row["minus_dpo_ci_high"] and np.isnan(
        dpo["minus_dpo_bps"]
    )
    assert row["room_ci_low"] <= row["room_bps"] == pytest.approx(row["oracle_bps"] - row["best_fixed_bps"])


def test_a_policy_that_skipped_orders_is_an_error() -> None:
    outcomes, decisions = _replayed()
    with pytest.raises(DataError, match="dapo has not decided every test order"):
        learning_gaps(outcomes, decisions[(decisions["policy"] != "dapo") | (decisions["order_id"] > 45)], PARAMETERS)
    with pytest.raises(DataError, match="no decisions of boosting"):
        learning_gaps(outcomes, decisions[decisions["policy"] != "boosting"], PARAMETERS)


def test_a_claim_holds_only_under_every_queue() -> None:
    """Cheaper by 1 bps in each of six blocks; under the least favourable queue `dpo` is as dear as the reference."""
    blocks = np.arange(6)
    base = orders_frame("market", np.full(6, 5.0), blocks)
    frames = [base.assign(cost_all_ahead_bps=5.0, cost_all_behind_bps=5.0)]
    for strategy, behind in (("dapo", 4.5), ("dpo", 5.0)):
        frame = orders_frame(strategy, np.full(6, 4.0), blocks)
        frames.append(frame.assign(cost_all_ahead_bps=3.5, cost_all_behind_bps=behind))
    table = metrics.queue_differences(pd.concat(frames), "market", EVIDENCE, 0).set_index(["strategy", "queue"])
    assert table["difference_bps"].tolist() == [-1.0, -1.5, -0.5, -1.0, -1.5, 0.0]
    assert table.loc["dapo", "holds"].all() and not table.loc["dpo", "holds"].any()
