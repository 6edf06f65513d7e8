"""The block test keeps its size where orders are correlated; the i.i.d. one does not. Nothing to test is said plainly."""

import numpy as np
import pandas as pd
from test_metrics import EVIDENCE, orders_frame

from hyperdapo.evidence import significance

BLOCKS = np.repeat(np.arange(40), 10)


def _compared(difference: np.ndarray, blocks: np.ndarray = BLOCKS) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(5, 3, len(blocks))
    both = [orders_frame("best_fixed", noise, blocks), orders_frame("dapo", noise + difference, blocks)]
    return significance.compare(pd.concat(both), "best_fixed", EVIDENCE, 0)


def test_size_under_the_null_with_correlated_orders() -> None:
    rng, false, naive = np.random.default_rng(3), 0, 0
    for _ in range(150):
        difference = rng.normal(size=40)[BLOCKS] + rng.normal(size=400)
        row = _compared(difference).iloc[0]
        false += row["p_t"] < 0.05
        naive += row["p_t_iid"] < 0.05
    assert false / 150 <= 0.10
    assert naive / 150 >= 0.25, "the i.i.d. test should reject far too often here"


def test_a_real_difference_is_found_and_wider_errors_are_shown() -> None:
    rng = np.random.default_rng(4)
    table = _compared(-1.5 + rng.normal(size=40)[BLOCKS] + rng.normal(size=400))
    assert significance.is_significant(table, 0.95).all() and table["se_ratio"].iloc[0] > 1.5
    table["significant"] = significance.is_significant(table, 0.95)
    assert "significantly cheaper than best fixed" in significance.verdict(table, ["dapo"])
    assert significance.overview(table, ["dapo"])["cheaper"].tolist() == [1, 1]


def test_the_same_orders_are_no_difference() -> None:
    row = _compared(np.zeros(400)).iloc[0]
    assert row["p_t"] == 1.0 and row["p_wilcoxon_holm"] == 1.0 and row["note"] == "the same orders"


def test_too_few_blocks_are_not_tested() -> None:
    table = _compared(np.ones(12), np.repeat(np.arange(3), 4))
    assert np.isnan(table["p_t"]).all() and "3 blocks" in table["note"].iloc[0]
    assert not significance.is_significant(table, 0.95).any()


def test_corrections_never_lower_a_p_value() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(5, 3, 400)
    frames = [orders_frame("best_fixed", noise, BLOCKS)]
    frames += [orders_frame(name, noise + rng.normal(-0.2, 1, 400), BLOCKS) for name in ("dapo", "dpo", "twap")]
    table = significance.compare(pd.concat(frames), "best_fixed", EVIDENCE, 0)
    assert (table["p_t_holm"] >= table["p_t"] - 1e-15).all()
    assert (table["p_t_bonferroni"] >= table["p_t_holm"] - 1e-15).all()
