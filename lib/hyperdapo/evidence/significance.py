"""Is a difference real? Paired tests on blocks of time (§3.5.3), and differences to the cheapest and between weights.

Orders are not independent, so the tests are of block means. The test that takes orders as independent is printed beside
them, with the ratio of the two standard errors, to show what that assumption would have claimed.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from hyperdapo import sections
from hyperdapo.evidence.metrics import TOTAL, Interval, Resampling, block_bootstrap, paired_differences
from hyperdapo.evidence.tables import heading

FEWEST_BLOCKS = 5
BEST, PICKED = "best", "picked_elsewhere"
"""Weights of the reward: of the cheapest trial, and in each block of the trial that was cheapest in all others."""

_ROUNDING_BPS = 1e-9  # differences below it are those of floating point sums
_SAME = "the same orders"
_NAN = float("nan")


def paired_tests(orders: pd.DataFrame, reference: str, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
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
        row = {"asset": asset, "strategy": strategy, "reference": reference}
        rows.append(row | interval.columns("difference_bps") | {"orders": len(group)} | _tests(group))
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
    groups = {"trained policies": tests[tests["strategy"].isin(algorithms)], "all strategies": tests}
    rows = []
    for name, group in groups.items():
        cheaper = int((group["significant"] & (group["difference_bps"] < 0)).sum())
        more_expensive = int((group["significant"] & (group["difference_bps"] > 0)).sum())
        rows.append(
            {
                "compared": name,
                "comparisons": len(group),
                "cheaper": cheaper,
                "more_expensive": more_expensive,
                "not_significant": len(group) - cheaper - more_expensive,
            }
        )
    return pd.DataFrame(rows)


def verdict(tests: pd.DataFrame, algorithms: Sequence[str]) -> str:
    """One sentence per trained policy and asset, generated from the table; a null result reads as one."""
    trained = tests[tests["strategy"].isin(algorithms)]
    sentences = []
    for row in trained.to_dict("records"):
        direction = "cheaper than" if row["difference_bps"] < 0 else "more expensive than"
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
        f"{count.more_expensive} more expensive after Holm's correction over all {len(tests)} comparisons "
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
    for asset, traded in orders[orders["strategy"] != "oracle"].groupby("asset", sort=False):
        means = traded.groupby("strategy")[TOTAL].mean()
        cheapest = str(means.idxmin())
        differences = paired_differences(traded, cheapest, [TOTAL])
        for strategy in algorithms:
            group = differences[differences["strategy"] == strategy]
            interval = (
                Interval(0.0, 0.0, 0.0, traded["block"].nunique())
                if strategy == cheapest
                else block_bootstrap(group[TOTAL], group["block"], evidence, seed)
            )
            row = {"asset": asset, "strategy": strategy, "cheapest": cheapest, "cheapest_bps": means.min()}
            rows.append(row | interval.columns("difference_bps"))
    return pd.DataFrame(rows)


def weight_differences(orders: pd.DataFrame, parts: Sequence[str], drawn: Resampling, seed: int) -> pd.DataFrame:
    """Each set of weights of the reward (eq. 3.3) with its mean cost, and what it costs more than the best.

    Parameters
    ----------
    orders : one row per order and set of weights (`strategy`, one of which is `best`), with `block`,
        `total_cost_bps` and the weights of `parts`

    Returns
    -------
    One row per set: `weights`, the parts (NaN where they differ between the orders), `total_cost_bps, ci_low, ci_high`,
    `difference_bps, difference_low, difference_high` (paired; NaN for the best), `blocks`. The best is that of many
    trials on these very orders: its cost is flattered, and the differences to it are exaggerated.
    """
    differences = _weight_intervals(orders, BEST, drawn, seed)
    rows = []
    for name, group in orders.groupby("strategy", sort=False):
        cost = block_bootstrap(group[TOTAL], group["block"], drawn, seed)
        difference = differences.get(str(name), Interval(_NAN, _NAN, _NAN, cost.blocks))
        rows.append(
            {
                "weights": name,
                **{part: _common(group[part]) for part in parts},
                TOTAL: cost.value,
                "ci_low": cost.low,
                "ci_high": cost.high,
                "difference_bps": difference.value,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "blocks": cost.blocks,
            }
        )
    return pd.DataFrame(rows)


def weights_verdict(orders: pd.DataFrame, drawn: Resampling, seed: int) -> str:
    """One sentence per known set of weights against those picked on other blocks; what is within noise reads so.

    `orders` as in `weight_differences`, with a set `picked_elsewhere`.
    """
    sentences = []
    for name, more in _weight_intervals(orders, PICKED, drawn, seed).items():
        if name != BEST:
            verdict = "more expensive" if more.low > 0 else "cheaper" if more.high < 0 else "not different beyond noise"
            interval = f"interval {more.low:+.2f} to {more.high:+.2f}, {more.blocks} blocks"
            sentences.append(f"{name.replace('_', ' ')}: {verdict} ({more.value:+.2f} bps, {interval})")
    return "Against weights picked on the other blocks of time:\n" + "\n".join(sentences)


def _tests(group: pd.DataFrame) -> dict[str, float | str]:
    """p-values of one comparison: NaN, with the reason, where there is nothing to test; 1 where nothing differs."""
    means, orders = group.groupby("block")[TOTAL].mean().to_numpy(), group[TOTAL].to_numpy()
    if np.abs(orders).max() < _ROUNDING_BPS:
        return _untested(1.0, _SAME)
    if len(means) < FEWEST_BLOCKS:
        return _untested(_NAN, f"{len(means)} blocks; at least {FEWEST_BLOCKS} are needed")
    if np.ptp(means) < _ROUNDING_BPS:
        return _untested(_NAN, "a constant difference")
    return {
        "p_t": float(stats.ttest_1samp(means, 0.0).pvalue),
        "p_wilcoxon": float(stats.wilcoxon(means, zero_method="zsplit").pvalue),
        "p_t_iid": float(stats.ttest_1samp(orders, 0.0).pvalue),
        "se_ratio": float(stats.sem(means) / stats.sem(orders)),
        "note": "",
    }


def _untested(p_value: float, note: str) -> dict[str, float | str]:
    return {"p_t": p_value, "p_wilcoxon": p_value, "p_t_iid": p_value, "se_ratio": _NAN, "note": note}


def _corrected(p_values: pd.Series, method: str) -> pd.Series:
    corrected = p_values.copy()
    known = p_values.notna()
    if known.any():
        corrected[known] = multipletests(p_values[known], method=method)[1]
    return corrected


def _weight_intervals(orders: pd.DataFrame, reference: str, drawn: Resampling, seed: int) -> dict[str, Interval]:
    """By set of weights, in the order of the table: its mean cost minus that of the reference on the same orders."""
    differences = paired_differences(orders, reference, [TOTAL]).groupby("strategy", sort=False)
    return {str(name): block_bootstrap(group[TOTAL], group["block"], drawn, seed) for name, group in differences}


def _common(values: pd.Series) -> float:
    """The value that all rows share; NaN where they do not."""
    return float(values.iloc[0]) if values.eq(values.iloc[0]).all() else _NAN
