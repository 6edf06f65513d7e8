"""One family against one strategy: it keeps its size on correlated orders; what cannot be tested says why."""

import numpy as np
import pandas as pd

from hyperdapo.evidence import significance
from hyperdapo.sections import Evidence
from test_metrics import EVIDENCE, orders_frame

BLOCKS = np.repeat(np.arange(40), 10)
QUICK = EVIDENCE.model_copy(update={"bootstrap": 200})


def _tested(
    differences: dict[str, np.ndarray], blocks: np.ndarray = BLOCKS, evidence: Evidence = QUICK
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
    rng, quick = np.random.default_rng(3), EVIDENCE.model_copy(update={"bootstrap": 100})
    table = _tested({f"asset {trial}": _correlated(rng) for trial in range(400)}, BLOCKS, quick)
    assert 0.03 <= (table["p_t"] < 0.05).mean() <= 0.08
    assert (table["p_t_iid"] < 0.05).mean() >= 0.25, "the i.i.d. test should reject far too often here"
    assert table["significant"].sum() <= 1, "of 400 comparisons at once next to none is beyond its interval"


def test_a_real_difference_is_found_and_wider_errors_are_shown() -> None:
    table = _tested({"BTC": -1.5 + _correlated(np.random.default_rng(4))})
    assert table["significant"].all() and table["se_ratio"].iloc[0] > 1.5
    said = significance.verdict(table, ["dapo"])
    assert "significantly cheaper than best fixed" in said
    assert "1 of 1 comparisons of a trained policy are significantly cheaper" in said
    assert significance.overview(table, ["dapo"])["cheaper"].tolist() == [1, 1]


def test_a_null_result_reads_as_one() -> None:
    table = _tested({"BTC": _correlated(np.random.default_rng(1)), "ETH": _correlated(np.random.default_rng(6))})
    said = significance.verdict(table, ["dapo"])
    assert said.count("not significantly different") == 2 and "0 of 2 comparisons of a trained policy" in said


def test_what_cannot_be_tested_says_why_and_is_never_not_different() -> None:
    nothing, constant = np.zeros(400), np.full(400, 2.0)
    broken = np.where(np.arange(400) == 7, np.inf, 0.5)
    table = _tested({"BTC": nothing, "ETH": np.full(400, 1e-15), "SOL": constant, "HYPE": broken}).set_index("asset")
    assert table["note"].to_dict() == {
        "BTC": "the same orders",
        "ETH": "the same orders",
        "SOL": "a constant difference",
        "HYPE": "1 of 400 costs of dapo are no finite numbers",
    }
    assert table[["p_t", "p_simultaneous", "joint_low"]].isna().all(axis=None) and not table["significant"].any()
    said = significance.verdict(table.reset_index(), ["dapo"])
    assert "BTC DAPO: places the same orders as best fixed" in said and "not significantly" not in said
    assert "0 of 0 comparisons" in said and "4 more could not be tested" in said
    assert significance.independence_warning(table.reset_index()) == "No comparison could be tested."


def test_too_few_blocks_say_how_many_are_needed() -> None:
    table = _tested({"BTC": np.arange(12.0)}, np.repeat(np.arange(3), 4))
    assert np.isnan(table["p_t"]).all() and not table["significant"].any()
    assert table["note"].iloc[0] == "3 blocks of 60 s; a family of 1 needs 6"


def test_what_was_not_tested_does_not_weigh_on_the_others() -> None:
    difference = -1.0 + _correlated(np.random.default_rng(8))
    alone = _tested({"BTC": difference}).iloc[0]
    beside = _tested({"BTC": difference, "ETH": np.full(400, 2.0)}).iloc[0]
    assert beside["p_t_bonferroni"] == alone["p_t_bonferroni"] and beside["joint_low"] == alone["joint_low"]


def test_the_oracle_and_doubles_are_in_no_family() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(5, 3, 400)
    costs = {"best_fixed": noise, "join_best": noise + rng.normal(-0.2, 1, 400), "oracle": noise - 3}
    frames = [orders_frame(name, cost, BLOCKS) for name, cost in (costs | {"dapo": costs["join_best"]}).items()]
    table = significance.paired_tests(pd.concat(frames), "best_fixed", QUICK, 0).set_index("strategy")
    assert list(table.index) == ["join_best", "dapo"]
    assert table.loc["dapo", "note"] == "the same orders as join_best, which is tested"
    assert table.loc["join_best", "p_t_bonferroni"] == table.loc["join_best", "p_t"], "a family of one"


def test_corrections_never_lower_a_p_value() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(5, 3, 400)
    frames = [orders_frame("best_fixed", noise, BLOCKS)]
    frames += [orders_frame(name, noise + rng.normal(-0.2, 1, 400), BLOCKS) for name in ("dapo", "dpo", "twap")]
    table = significance.paired_tests(pd.concat(frames), "best_fixed", QUICK, 0)
    assert (table["p_t_holm"] >= table["p_t"] - 1e-15).all()
    assert (table["p_t_bonferroni"] >= table["p_t_holm"] - 1e-15).all()
    assert (table["joint_low"] < table["ci_low"]).all() and (table["joint_high"] > table["ci_high"]).all()


def test_blocks_that_are_tied_to_the_next_are_warned_of() -> None:
    table = _tested({"BTC": -1.5 + _correlated(np.random.default_rng(4))})
    said = significance.independence_warning(table.assign(autocorrelation=0.5, blocks=25))
    assert "WARNING: 1 are beyond 0.40" in said and "BTC dapo (+0.50)" in said
    assert "WARNING" not in significance.independence_warning(table.assign(autocorrelation=0.3, blocks=25))
    twenty = pd.concat([table.assign(blocks=25, autocorrelation=[0.5 if one < 2 else 0.0]) for one in range(20)])
    said = significance.independence_warning(twenty.reset_index(drop=True))
    assert "WARNING" not in said and "2 beyond 0.40, which chance gives" in said, "one in twenty is expected"
