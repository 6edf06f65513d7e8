"""Metrics against values computed by hand, and intervals that cover what they say they cover."""

import numpy as np
import pandas as pd
import pytest

from hyperdapo.evidence import metrics
from hyperdapo.params import load

EVIDENCE = load("smoke").evidence


def orders_frame(strategy: str, cost: np.ndarray, blocks: np.ndarray, fees: float = 1.5, asset: str = "BTC") -> pd.DataFrame:
    """n orders of one strategy whose total cost is `cost`."""
    count = len(cost)
    columns = {
        "order_id": np.arange(count),
        "asset": asset,
        "strategy": strategy,
        "block": blocks,
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


def test_fee_and_price_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(20), 5)
    both = pd.concat([orders_frame("best_fixed", rng.normal(4, 2, 100), blocks, 4.5), orders_frame("dapo", rng.normal(3, 2, 100), blocks)])
    parts = metrics.decompose(both, "best_fixed", EVIDENCE, 0).set_index("part")["difference_bps"]
    assert parts["fees_bps"] == pytest.approx(-3.0)
    assert parts["fees_bps"] + parts["implementation_shortfall_bps"] == pytest.approx(parts["total_cost_bps"], abs=1e-9)


def test_pairs_are_the_same_parent_orders() -> None:
    blocks = np.repeat(np.arange(10), 3)
    base = orders_frame("best_fixed", np.arange(30.0), blocks)
    other = orders_frame("dapo", np.arange(30.0) - 2, blocks).sample(frac=1, random_state=1)
    differences = metrics.paired_differences(pd.concat([other, base]), "best_fixed")
    assert len(differences) == 30 and np.allclose(differences["total_cost_bps"], -2.0)


def test_bootstrap_interval_covers_the_mean_of_correlated_orders() -> None:
    rng = np.random.default_rng(7)
    blocks, covered = np.repeat(np.arange(30), 20), 0
    for trial in range(200):
        values = rng.normal(size=30)[blocks] + rng.normal(size=600)
        interval = metrics.block_bootstrap(values, blocks, EVIDENCE, trial)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.98


def test_one_block_has_no_interval() -> None:
    interval = metrics.block_bootstrap([1.0, 2.0], [3, 3], EVIDENCE, 0)
    assert interval.value == 1.5 and np.isnan(interval.low) and interval.blocks == 1


def test_learning_gap_of_known_policies() -> None:
    rewards = np.array([[0.0, 1.0, 4.0], [0.0, 1.0, -4.0], [3.0, 1.0, 0.0], [1.0, 1.0, 3.0]])
    actions = {"oracle": rewards.argmax(axis=1), "fixed": np.full(4, 1), "worst": rewards.argmin(axis=1)}
    table = metrics.learning_gap(rewards, actions, 1, np.arange(4), EVIDENCE, 0).set_index("policy")
    assert table.loc["oracle", "gap_closed"] == 1.0 and table.loc["fixed", "gap_closed"] == 0.0
    assert table.loc["worst", "gap_closed"] < 0
    assert table.loc["oracle", "oracle_bps"] == rewards.max(axis=1).mean()
