"""Is a difference real? Paired tests on blocks of time (§3.5.3), with corrections for the number of comparisons.

Orders are not independent, so the tests compare block means. The test that takes orders as independent is printed
beside it, with the ratio of the two standard errors, to show what that assumption would have claimed.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from hyperdapo import sections
from hyperdapo.evidence.metrics import TOTAL, block_bootstrap, paired_differences
from hyperdapo.evidence.tables import heading

FEWEST_BLOCKS = 5
_ROUNDING_BPS = 1e-9  # differences below it are those of floating point sums
_SAME = "the same orders"


def compare(orders: pd.DataFrame, reference: str, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """Every strategy against the reference on the same parent orders, in total cost.

    Returns
    -------
    One row per asset and strategy: `difference_bps` (negative: cheaper than the reference) with its block bootstrap
    interval, `blocks`, `orders`, p-values of the paired t-test and of Wilcoxon's signed-rank test on block means, both
    corrected over all rows by Holm and by Bonferroni, `p_t_iid` of the t-test on orders as if they were independent,
    `se_ratio` (block standard error over the i.i.d. one), and `note` where a test could not be made.
    """
    rows = []
    for (asset, strategy), group in paired_differences(orders, reference).groupby(["asset", "strategy"], sort=False):
        interval = block_bootstrap(group[TOTAL], group["block"], evidence, seed)
        rows.append(
            {
                "asset": asset,
                "strategy": strategy,
                "reference": reference,
                "difference_bps": interval.value,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "blocks": interval.blocks,
                "orders": len(group),
                **_tests(group),
            }
        )
    table = pd.DataFrame(rows)
    for test in ("t", "wilcoxon"):
        for method in ("holm", "bonferroni"):
            table[f"p_{test}_{method}"] = _corrected(table[f"p_{test}"], method)
    return table


def is_significant(table: pd.DataFrame, confidence: float) -> pd.Series:
    """Rows whose t-test and signed-rank test both survive Holm's correction."""
    level = 1 - confidence
    return (table["p_t_holm"] < level) & (table["p_wilcoxon_holm"] < level)


def overview(tests: pd.DataFrame, algorithms: Sequence[str]) -> pd.DataFrame:
    """How many comparisons were made and how many survive, for the trained policies and for all strategies.

    `tests` has the column `significant` of `is_significant`.
    """
    rows = []
    for label, chosen in (("trained policies", tests[tests["strategy"].isin(algorithms)]), ("all strategies", tests)):
        cheaper = int((chosen["significant"] & (chosen["difference_bps"] < 0)).sum())
        dearer = int((chosen["significant"] & (chosen["difference_bps"] > 0)).sum())
        rows.append((label, len(chosen), cheaper, dearer, len(chosen) - cheaper - dearer))
    return pd.DataFrame(rows, columns=["compared", "comparisons", "cheaper", "dearer", "not_significant"])


def verdict(tests: pd.DataFrame, algorithms: Sequence[str]) -> str:
    """One sentence per trained policy and asset, generated from the table; a null result reads as one."""
    trained = tests[tests["strategy"].isin(algorithms)]
    sentences = []
    for row in trained.to_dict("records"):
        direction = "cheaper than" if row["difference_bps"] < 0 else "dearer than"
        finding = f"significantly {direction}" if row["significant"] else "not significantly different from"
        if row["note"] == _SAME:
            finding = "places the same orders as"
        sentences.append(
            f"{row['asset']} {heading(row['strategy'])}: {finding} {row['reference'].replace('_', ' ')} "
            f"({row['difference_bps']:+.2f} bps, interval {row['ci_low']:+.2f} to {row['ci_high']:+.2f}, "
            f"{row['blocks']} blocks)."
        )
    count = overview(tests, algorithms).iloc[0]
    sentences.append(
        f"{count.cheaper} of {count.comparisons} comparisons of a trained policy are significantly cheaper and "
        f"{count.dearer} dearer after Holm's correction over all {len(tests)} comparisons "
        f"({tests['asset'].nunique()} assets x {tests['strategy'].nunique()} strategies)."
    )
    return "\n".join(sentences)


def against_the_cheapest(
    orders: pd.DataFrame, algorithms: Sequence[str], evidence: sections.Evidence, seed: int
) -> pd.DataFrame:
    """Each trained policy minus the strategy that turned out cheapest of all that can be traded (not the oracle).

    The cheapest is chosen in hindsight, on these orders, so it is somewhat flattered; against itself it differs by 0.

    Returns
    -------
    `asset, strategy, cheapest, cheapest_bps, difference_bps, ci_low, ci_high, blocks`
    """
    rows = []
    for asset, own in orders[orders["strategy"] != "oracle"].groupby("asset", sort=False):
        means = own.groupby("strategy")[TOTAL].mean()
        cheapest = str(means.idxmin())
        differences = paired_differences(own, cheapest, [TOTAL])
        for strategy in algorithms:
            if strategy == cheapest:
                rows.append((asset, strategy, cheapest, means.min(), 0.0, 0.0, 0.0, own["block"].nunique()))
                continue
            group = differences[differences["strategy"] == strategy]
            found = block_bootstrap(group[TOTAL], group["block"], evidence, seed)
            rows.append((asset, strategy, cheapest, means.min(), found.value, found.low, found.high, found.blocks))
    names = ["asset", "strategy", "cheapest", "cheapest_bps", "difference_bps", "ci_low", "ci_high", "blocks"]
    return pd.DataFrame(rows, columns=names)


def _tests(group: pd.DataFrame) -> dict[str, float | str]:
    """p-values of one comparison: NaN, with the reason, where there is nothing to test; 1 where nothing differs."""
    means, orders = group.groupby("block")[TOTAL].mean().to_numpy(), group[TOTAL].to_numpy()
    if np.abs(orders).max() < _ROUNDING_BPS:
        return _untested(1.0, _SAME)
    if len(means) < FEWEST_BLOCKS:
        return _untested(float("nan"), f"{len(means)} blocks; at least {FEWEST_BLOCKS} are needed")
    if np.ptp(means) < _ROUNDING_BPS:
        return _untested(float("nan"), "a constant difference")
    return {
        "p_t": float(stats.ttest_1samp(means, 0.0).pvalue),
        "p_wilcoxon": float(stats.wilcoxon(means, zero_method="zsplit").pvalue),
        "p_t_iid": float(stats.ttest_1samp(orders, 0.0).pvalue),
        "se_ratio": float(stats.sem(means) / stats.sem(orders)),
        "note": "",
    }


def _untested(p_value: float, note: str) -> dict[str, float | str]:
    return {"p_t": p_value, "p_wilcoxon": p_value, "p_t_iid": p_value, "se_ratio": float("nan"), "note": note}


def _corrected(p_values: pd.Series, method: str) -> pd.Series:
    corrected = p_values.copy()
    known = p_values.notna()
    if known.any():
        corrected[known] = multipletests(p_values[known], method=method)[1]
    return corrected
