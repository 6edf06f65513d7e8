"""A family of paired differences, tested at once: estimates, simultaneous intervals, and why one cannot be tested.

What is called significant is what its simultaneous interval leaves zero out of, so that words and pictures agree. The
tests of the draft (paired t and Wilcoxon on block means, Holm, Bonferroni) stand beside it, and the t-test that takes
orders as independent, to show what that would have claimed.
"""

from collections.abc import Mapping, Sequence
from math import ceil, log2
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from hyperdapo import sections
from hyperdapo.evidence.hypotheses import resampling
from hyperdapo.evidence.hypotheses.resampling import Contrasts, Estimates
from hyperdapo.evidence.hypotheses.series import BINS_A_BLOCK, Comparison, Costs
from hyperdapo.evidence.metrics import ROUNDING_BPS, TOGETHER, Floats

USD_PER_MILLION = 100.0
"""Of one bps."""
POWER = 0.8
"""At which the least difference is given that would be seen."""
COLUMNS = (
    *("asset", "strategy", "reference", "orders", "seeds", "blocks", "block_s", "difference_bps", "usd_per_million"),
    *("ci_low", "ci_high", "joint_low", "joint_high", "se_bps", "degrees", "autocorrelation", "detectable_bps"),
    *("p_simultaneous", "significant", "p_t", "p_t_holm", "p_t_bonferroni", "p_wilcoxon", "p_wilcoxon_holm"),
    *("p_t_iid", "se_ratio", "note"),
)
SAME, CONSTANT = "the same orders", "a constant difference"

_NAN = float("nan")
_UNTESTED = (
    *("ci_low", "ci_high", "joint_low", "joint_high", "se_bps", "degrees", "autocorrelation", "detectable_bps"),
    *("p_t", "p_simultaneous"),
)
_BESIDE = ("p_wilcoxon", "p_t_iid", "se_ratio")


def tests(
    costs: Costs,
    family: Sequence[Comparison],
    evidence: sections.Evidence,
    seed: int,
    level: float | None = None,
    left_out: Mapping[Comparison, str] | None = None,
) -> pd.DataFrame:
    """Every comparison of a family on the same parent orders.

    Parameters
    ----------
    level : of the family; 1 - `evidence.confidence` where it is not given
    left_out : comparisons that are not to be tested, and why

    Returns
    -------
    `COLUMNS`, a row per comparison: `difference_bps` (below 0: cheaper) with the interval `ci_low, ci_high` of it alone
    and the simultaneous one `joint_low, joint_high`; `autocorrelation` of block means, one block apart; `degrees` of
    freedom; `detectable_bps` with power 0.8; `significant` by `p_simultaneous`. `note` says why a comparison cannot be
    tested: its p-values and intervals are NaN, and it does not weigh on the others.
    """
    level = 1 - evidence.confidence if level is None else level
    notes = {comparison: (left_out or {}).get(comparison) or untestable(costs, comparison) for comparison in family}
    testable = [comparison for comparison, note in notes.items() if not note]
    length = resampling.block_bins(contrasts(costs, testable).of_data[1], BINS_A_BLOCK)
    notes |= _too_few_blocks(costs, testable, length, level)
    table = pd.DataFrame([_row(costs, comparison, length, note) for comparison, note in notes.items()])
    table = table.assign(block_s=length * costs.bin_s, **dict.fromkeys((*_UNTESTED, *_BESIDE), _NAN))
    if testable := [comparison for comparison, note in notes.items() if not note]:
        made, rows = contrasts(costs, testable), table.index[table["note"] == ""]
        estimates = resampling.estimate(made, length, table.loc[rows, "blocks"].min(), evidence.bootstrap, seed)
        table.loc[rows, list(_UNTESTED)] = _inference(estimates, made.of_data[1], length, level)
        table.loc[rows, list(_BESIDE)] = _beside(costs, testable, made.of_data[1], length)
    return _corrected(table).assign(significant=table["p_simultaneous"] <= level)[list(COLUMNS)]


def fewest_blocks(comparisons: int, level: float) -> int:
    """Blocks below which no exact test of so many comparisons can reject.

    Of n independent blocks the signs can fall in 2^n ways, so that no two-sided p-value lies below 2^(1 - n); corrected
    for m comparisons it must reach `level`.

    >>> fewest_blocks(1, 0.05), fewest_blocks(68, 0.05)
    (6, 12)
    """
    return ceil(1 + log2(max(comparisons, 1) / level))


def untestable(costs: Costs, comparison: Comparison) -> str:
    """Why a comparison has nothing to test; "" where it has."""
    for strategy in (comparison.strategy, comparison.reference):
        if not costs.seeds(strategy):
            return f"no orders of {strategy}"
        own = costs.of_strategy(comparison.asset, strategy)
        if bad := int((~np.isfinite(own)).any(axis=1).sum()):
            return f"{bad} of {len(own)} costs of {strategy} are no finite numbers"
    difference = costs.difference(comparison)
    if np.abs(difference).max() < ROUNDING_BPS:
        return SAME
    return CONSTANT if np.ptp(difference) < ROUNDING_BPS else ""


def contrasts(costs: Costs, family: Sequence[Comparison]) -> Contrasts:
    """The series of some comparisons, none of which is `untestable`."""
    runs = dict.fromkeys(
        (asset, strategy, seed)
        for comparison in family
        for asset in _assets(costs, comparison)
        for strategy in (comparison.strategy, comparison.reference)
        for seed in costs.seeds(strategy)
    )
    place, groups = {run: i for i, run in enumerate(runs)}, dict[tuple[str, str], int]()
    weights, counts = np.zeros((len(runs), len(family))), np.zeros((costs.number, len(family)))
    for k, comparison in enumerate(family):
        for asset in _assets(costs, comparison):
            counts[:, k] += costs.in_bins(asset)
            for strategy, sign in ((comparison.strategy, 1.0), (comparison.reference, -1.0)):
                seeds = costs.seeds(strategy)
                weights[[place[asset, strategy, seed] for seed in seeds], k] = sign / len(seeds)
    sums = np.zeros((costs.number, len(runs)))
    for (asset, strategy, seed), i in place.items():
        own = costs.of_strategy(asset, strategy)[:, costs.seeds(strategy).index(seed)]
        sums[:, i] = costs.in_bins(asset, own)
    group = [groups.setdefault((asset, strategy), len(groups)) for asset, strategy, _ in place]
    return Contrasts(sums, weights, counts, np.array(group, dtype=np.int64))


def _too_few_blocks(costs: Costs, testable: Sequence[Comparison], length: int, level: float) -> dict[Comparison, str]:
    """Of those that could else be tested, which have fewer blocks than so large a family needs."""
    needed, seconds = fewest_blocks(len(testable), level), length * costs.bin_s
    blocks = {comparison: costs.blocks(comparison.asset, length) for comparison in testable}
    said = f"blocks of {seconds:g} s; a family of {len(testable)} needs {needed}"
    return {comparison: f"{count} {said}" for comparison, count in blocks.items() if count < needed}


def _assets(costs: Costs, comparison: Comparison) -> list[str]:
    return costs.assets if comparison.asset == TOGETHER else [comparison.asset]


def _row(costs: Costs, comparison: Comparison, length: int, note: str) -> dict[str, Any]:
    row = comparison._asdict() | {"orders": int(costs.in_bins(comparison.asset).sum()), "note": note}
    row |= {"seeds": len(costs.seeds(comparison.strategy)), "blocks": costs.blocks(comparison.asset, length)}
    known = costs.seeds(comparison.strategy) and costs.seeds(comparison.reference)
    difference = float(costs.difference(comparison).mean()) if known else _NAN
    return row | {"difference_bps": difference, "usd_per_million": difference * USD_PER_MILLION}


def _inference(estimates: Estimates, scores: Floats, length: int, level: float) -> Floats:
    """(k, columns) in the order of `_UNTESTED`."""
    critical, own = estimates.critical(level), stats.t.ppf(1 - level / 2, estimates.degrees)
    lagged = resampling.autocorrelation(resampling.block_means(scores, length))
    columns = [
        estimates.value - own * estimates.error,
        estimates.value + own * estimates.error,
        estimates.value - critical * estimates.error,
        estimates.value + critical * estimates.error,
        estimates.error,
        estimates.degrees,
        lagged,
        (critical + stats.t.ppf(POWER, estimates.degrees)) * estimates.error,
        estimates.p,
        estimates.p_simultaneous(),
    ]
    return np.column_stack(columns)


def _beside(costs: Costs, testable: Sequence[Comparison], scores: Floats, length: int) -> Floats:
    """(k, columns) in the order of `_BESIDE`: the signed-rank test of block means, and orders as if independent."""
    rows = []
    for comparison, means in zip(testable, resampling.block_means(scores, length).T, strict=True):
        orders = costs.difference(comparison)
        signed_rank = stats.wilcoxon(orders.mean() + means, zero_method="zsplit").pvalue
        rows.append((signed_rank, stats.ttest_1samp(orders, 0.0).pvalue, stats.sem(means) / stats.sem(orders)))
    return np.array(rows)


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """With the p-values of the draft's tests corrected over what could be tested."""
    for test, method in (("t", "holm"), ("t", "bonferroni"), ("wilcoxon", "holm")):
        name, known = f"p_{test}_{method}", table[f"p_{test}"].notna()
        table[name] = _NAN
        if known.any():
            table.loc[known, name] = multipletests(table.loc[known, f"p_{test}"], method=method)[1]
    return table
