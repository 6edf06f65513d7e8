"""The block test keeps its size on correlated orders, the i.i.d. one does not; nothing to test is said plainly."""

import numpy as np
import pandas as pd

from hyperdapo.evidence import significance
from hyperdapo.sections import Evidence
from test_metrics import EVIDENCE, orders_frame

BLOCKS = np.repeat(np.arange(40), 10)


def _tested(
    differences: dict[str, np.ndarray], blocks: np.ndarray = BLOCKS, evidence: Evidence = EVIDENCE
) -> pd.DataFrame:
    """The tests of `dapo` against the best fixed action, one asset per difference."""
    noise = np.random.default_rng(0).normal(5, 3, len(blocks))
    frames = []
    for asset, difference in differences.items():
        frames.append(orders_frame("best_fixed", noise, blocks, asset=asset))
        frames.append(orders_frame("dapo", noise + difference, blocks, asset=asset))
    return significance.paired_tests(pd.concat(frames), "best_fixed", evidence, 0)


def _correlated(rng: np.random.Generator) -> np.ndarray:
    """Differences whose mean is zero, half of whose variance the orders of a block share."""
    return rng.normal(size=40)[BLOCKS] + rng.normal(size=400)


def test_size_under_the_null_with_correlated_orders() -> None:
    rng, no_intervals = np.random.default_rng(3), EVIDENCE.model_copy(update={"bootstrap": 10})
    table = _tested({f"asset {trial}": _correlated(rng) for trial in range(400)}, evidence=no_intervals)
    assert 0.03 <= (table["p_t"] < 0.05).mean() <= 0.08
    assert 0.03 <= (table["p_wilcoxon"] < 0.05).mean() <= 0.08
    assert (table["p_t_iid"] < 0.05).mean() >= 0.25, "the i.i.d. test should reject far too often here"
    assert significance.is_significant(table, 0.95).sum() <= 1, "corrected for 400 comparisons, next to none is found"


def test_a_real_difference_is_found_and_wider_errors_are_shown() -> None:
    table = _tested({"BTC": -1.5 + _correlated(np.random.default_rng(4))})
    table["significant"] = significance.is_significant(table, 0.95)
    assert table["significant"].all() and table["se_ratio"].iloc[0] > 1.5
    said = significance.verdict(table, ["dapo"])
    assert "significantly cheaper than best fixed" in said
    assert "1 of 1 comparisons of a trained policy are significantly cheaper" in said
    assert significance.overview(table, ["dapo"])["cheaper"].tolist() == [1, 1]


def test_a_null_result_reads_as_one() -> None:
    table = _tested({"BTC": _correlated(np.random.default_rng(1)), "ETH": _correlated(np.random.default_rng(6))})
    table["significant"] = significance.is_significant(table, 0.95)
    said = significance.verdict(table, ["dapo"])
    assert said.count("not significantly different") == 2 and "0 of 2 comparisons of a trained policy" in said
    assert "2 assets x 1 strategies" in said


def test_the_same_orders_are_no_difference() -> None:
    row = _tested({"BTC": np.zeros(400)}).iloc[0]
    assert row["p_t"] == 1.0 and row["p_wilcoxon_holm"] == 1.0 and row["note"] == "the same orders"
    table = _tested({"BTC": np.full(400, 1e-15)})
    table["significant"] = significance.is_significant(table, 0.95)
    assert "BTC DAPO: places the same orders as best fixed" in significance.verdict(table, ["dapo"])


def test_a_constant_difference_is_not_tested() -> None:
    row = _tested({"BTC": np.full(400, 2.0)}).iloc[0]
    assert np.isnan(row["p_t"]) and row["note"] == "a constant difference"


def test_too_few_blocks_are_not_tested() -> None:
    table = _tested({"BTC": np.arange(12.0)}, np.repeat(np.arange(3), 4))
    assert np.isnan(table["p_t"]).all() and "3 blocks" in table["note"].iloc[0]
    assert not significance.is_significant(table, 0.95).any()


def test_what_was_not_tested_does_not_weigh_on_the_others() -> None:
    difference = -1.0 + _correlated(np.random.default_rng(8))
    alone = _tested({"BTC": difference}).iloc[0]
    beside = _tested({"BTC": difference, "ETH": np.full(400, 2.0)}).iloc[0]
    assert beside["p_t_bonferroni"] == alone["p_t_bonferroni"]


def test_corrections_never_lower_a_p_value() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(5, 3, 400)
    frames = [orders_frame("best_fixed", noise, BLOCKS)]
    frames += [orders_frame(name, noise + rng.normal(-0.2, 1, 400), BLOCKS) for name in ("dapo", "dpo", "twap")]
    table = significance.paired_tests(pd.concat(frames), "best_fixed", EVIDENCE, 0)
    assert (table["p_t_holm"] >= table["p_t"] - 1e-15).all()
    assert (table["p_t_bonferroni"] >= table["p_t_holm"] - 1e-15).all()
