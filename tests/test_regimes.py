"""Costs by regime, calibration by group, and the cheapest rule as a yardstick: against values worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from hyperdapo.evidence import calibration, metrics, significance
from hyperdapo.params import load

EVIDENCE = load("smoke").evidence


def orders_frame() -> pd.DataFrame:
    """Nine parents of volatility 1 to 9 in three blocks; the policy saves their volatility, the rule 5 bps."""
    parents = pd.DataFrame({"order_id": np.arange(9), "asset": "BTC", "block": np.arange(9) // 3})
    parents["volatility_5m_bps"] = np.arange(1.0, 10.0)
    parents["bid_ask_spread_bps"] = [1.0] * 8 + [2.0]
    costs = {"best_fixed": 10.0, "dapo": 10.0 - parents["volatility_5m_bps"], "mid_peg": 5.0, "oracle": -100.0}
    return pd.concat([parents.assign(strategy=name, total_cost_bps=cost) for name, cost in costs.items()])


class TestRegimes:
    def test_terciles_by_hand(self) -> None:
        table = metrics.regime_costs(orders_frame())
        assert table["dapo"].loc["volatility"].to_dict() == {"low": 8.0, "middle": 5.0, "high": 2.0}
        assert (table["orders"].loc["volatility"] == 3).all() and (table["mid_peg"] == 5.0).all()

    def test_equal_orders_are_of_one_level(self) -> None:
        table = metrics.regime_costs(orders_frame()).loc["spread"]
        assert table["orders"].to_dict() == {"middle": 8, "high": 1}

    def test_differences_have_the_blocks_that_are_there(self) -> None:
        found = metrics.regime_differences(orders_frame(), "best_fixed", EVIDENCE, 0)
        dapo = found[(found["strategy"] == "dapo") & (found["regime"] == "volatility")].set_index("level")
        assert dapo["difference_bps"].to_dict() == {"low": -2.0, "middle": -5.0, "high": -8.0}
        assert list(dapo.index) == ["low", "middle", "high"] and (dapo["blocks"] == 1).all()
        spread = found[(found["strategy"] == "mid_peg") & (found["regime"] == "spread")].set_index("level")
        assert spread.loc["middle", ["difference_bps", "ci_low", "ci_high", "blocks"]].tolist() == [-5, -5, -5, 3]


def test_the_cheapest_rule_is_the_yardstick_and_the_oracle_is_not() -> None:
    orders = orders_frame()
    orders["total_cost_bps"] -= orders["strategy"] == "mid_peg"
    row = significance.against_the_cheapest(orders, ["dapo"], EVIDENCE, 0).iloc[0]
    assert (row.cheapest, row.cheapest_bps, row.difference_bps, row.blocks) == ("mid_peg", 4.0, 1.0, 3)
    assert row.ci_low < 1.0 < row.ci_high


def test_the_cheapest_stands_among_the_others() -> None:
    """So that a run in which another of two equals is cheapest has the same rows."""
    orders = orders_frame()
    orders["total_cost_bps"] -= 100 * (orders["strategy"] == "dapo")
    row = significance.against_the_cheapest(orders, ["dapo"], EVIDENCE, 0).iloc[0]
    assert (row.cheapest, row.difference_bps, row.ci_low, row.ci_high, row.blocks) == ("dapo", 0.0, 0.0, 0.0, 3)


@pytest.fixture
def compared() -> pd.DataFrame:
    """Orders whose chances fall with their distance; one model knows which were filled, the other fills all."""
    rng, count = np.random.default_rng(0), 2000
    distance_bps = rng.uniform(0, 4, count)
    filled = (rng.random(count) < np.exp(-distance_bps)).astype(float)
    orders = pd.DataFrame(
        {
            "order_id": np.arange(count),
            "side": 1,
            "limit_price": 100 * (1 - distance_bps / 1e4),
            "arrival_mid": 100.0,
            "placed_ns": np.arange(count) * 10**9,
            "cancel_ns": np.arange(count) * 10**9 + 10**9,
            "true_filled": filled,
        }
    )
    models = {"power": filled, "touch": np.ones(count)}
    return pd.concat([orders.assign(queue_model=name, filled=told) for name, told in models.items()], ignore_index=True)


class TestCalibration:
    def test_groups_are_of_equal_chances(self, compared: pd.DataFrame) -> None:
        groups = calibration.reliability(compared, EVIDENCE, 0)
        power = groups[groups["queue_model"] == "power"]
        assert len(power) == calibration.GROUPS and power["orders"].sum() == 2000
        assert (power["observed"].diff().dropna() < 0.05).all() and np.allclose(power["predicted"], power["observed"])
        assert power["observed"].between(power["ci_low"], power["ci_high"]).all()
        assert (groups.loc[groups["queue_model"] == "touch", "predicted"] == 1).all()

    def test_the_excess_of_a_score_is_paired(self, compared: pd.DataFrame) -> None:
        found = calibration.brier_differences(compared, EVIDENCE, 0).set_index("queue_model")
        missed = 1 - compared.loc[compared["queue_model"] == "power", "true_filled"].mean()
        assert found.loc["touch", "brier_excess"] == pytest.approx(missed)
        assert found.loc["touch", "ci_low"] < missed < found.loc["touch", "ci_high"]
        assert found.loc["power", "brier_excess"] == 0
