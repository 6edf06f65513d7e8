"""Is a difference real? Paired tests on blocks of time (§3.5.3), with corrections for the number of comparisons.

Orders are not independent, so the tests compare block means. The test that takes orders as independent is printed
beside it, with the ratio of the two standard errors, to show what that assumption would have claimed.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from hyperdapo import schema
from hyperdapo.evidence.metrics import TOTAL, block_bootstrap, paired_differences

FEWEST_BLOCKS = 5


def compare(orders: pd.DataFrame, reference: str, evidence: schema.Evidence, seed: int) -> pd.DataFrame:
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


def _tests(group: pd.DataFrame) -> dict[str, float | str]:
    """p-values of one comparison: NaN, with the reason, where there is nothing to test; 1 where nothing differs."""
    means = group.groupby("block")[TOTAL].mean().to_numpy()
    orders = group[TOTAL].to_numpy()
    nothing = {"p_t": float("nan"), "p_wilcoxon": float("nan"), "p_t_iid": float("nan"), "se_ratio": float("nan")}
    if len(means) < FEWEST_BLOCKS:
        return nothing | {"note": f"{len(means)} blocks; at least {FEWEST_BLOCKS} are needed"}
    if np.ptp(orders) == 0:
        p = 1.0 if orders[0] == 0 else float("nan")
        note = "the same orders" if orders[0] == 0 else "a constant difference"
        return nothing | {"p_t": p, "p_wilcoxon": p, "p_t_iid": p, "note": note}
    return {
        "p_t": float(stats.ttest_1samp(means, 0.0).pvalue),
        "p_wilcoxon": float(stats.wilcoxon(means, zero_method="zsplit").pvalue),
        "p_t_iid": float(stats.ttest_1samp(orders, 0.0).pvalue),
        "se_ratio": float(stats.sem(means) / stats.sem(orders)),
        "note": "",
    }


def _corrected(p_values: pd.Series, method: str) -> pd.Series:
    corrected = p_values.copy()
    known = p_values.notna()
    if known.any():
        corrected[known] = multipletests(p_values[known], method=method)[1]
    return corrected


def overview(tests: pd.DataFrame, algorithms: Sequence[str]) -> pd.DataFrame:
    """How many comparisons were made and how many survive, for the trained policies and for all strategies.

    `tests` has the column `significant` of `is_significant`.
    """
    rows = []
    for label, chosen in (("trained policies", tests[tests["strategy"].isin(algorithms)]), ("all strategies", tests)):
        cheaper = chosen["significant"] & (chosen["difference_bps"] < 0)
        dearer = chosen["significant"] & (chosen["difference_bps"] > 0)
        rows.append((label, len(chosen), int(cheaper.sum()), int(dearer.sum()), len(chosen) - int((cheaper | dearer).sum())))
    return pd.DataFrame(rows, columns=["compared", "comparisons", "cheaper", "dearer", "not_significant"])


def verdict(tests: pd.DataFrame, algorithms: Sequence[str]) -> str:
    """One sentence per trained policy and asset, generated from the table; a null result reads as one."""
    sentences = []
    for row in tests[tests["strategy"].isin(algorithms)].itertuples():
        direction = "cheaper" if row.difference_bps < 0 else "dearer"
        finding = f"significantly {direction}" if row.significant else "not significantly different"
        sentences.append(
            f"{row.asset} {str(row.strategy).upper()}: {finding} than {str(row.reference).replace('_', ' ')} "
            f"({row.difference_bps:+.2f} bps, interval {row.ci_low:+.2f} to {row.ci_high:+.2f}, {row.blocks} blocks)."
        )
    sentences.append(f"{len(tests)} comparisons were made in all, and the p-values are corrected for that many.")
    return "\n".join(sentences)
