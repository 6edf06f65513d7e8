"""Is a difference real? All strategies against one, as one family (§3.5.3); to the cheapest, and between weights.

What is claimed of the main policy is registered, and tested apart (`hypotheses`): all that is here is secondary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hyperdapo import sections
from hyperdapo.evidence.hypotheses.series import ORACLE, Comparison, Costs
from hyperdapo.evidence.hypotheses.testing import SAME, tests, untestable
from hyperdapo.evidence.metrics import (
    ROUNDING_BPS,
    TOTAL,
    Floats,
    Interval,
    Resampling,
    block_bootstrap,
    cost_bootstrap,
    paired_differences,
)
from hyperdapo.evidence.tables import heading

BEST, PICKED = "best", "picked_elsewhere"
"""Weights of the reward: of the cheapest trial, and in each block of the trial that was cheapest in all others."""

_NAN = float("nan")

TIED_BY_CHANCE = 0.95
"""Share of draws of independent blocks in which no more comparisons would seem tied."""
_BEYOND_TWO_ERRORS = 0.05


def paired_tests(orders: pd.DataFrame, reference: str, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """Every strategy that can be traded against the reference on the same parent orders, in total cost, as one family.

    The oracle is left out; of strategies that place the same orders the first stands for all.

    Returns
    -------
    `hypotheses.testing.tests` of each asset and strategy

    Raises
    ------
    DataError
        If orders are not paired.
    """
    costs = Costs.of(orders[orders["strategy"] != ORACLE], TOTAL, evidence.block_s)
    strategies = [name for name in orders["strategy"].unique() if name not in (reference, ORACLE)]
    family = [Comparison(asset, name, reference) for asset in orders["asset"].unique() for name in strategies]
    return tests(costs, family, evidence, seed, left_out=_doubles(costs, family))


def overview(table: pd.DataFrame, algorithms: Sequence[str]) -> pd.DataFrame:
    """How many comparisons were tested, how they came out, and how many could not be: trained policies, and all."""
    groups = {"trained policies": table[table["strategy"].isin(algorithms)], "all strategies": table}
    rows = []
    for name, group in groups.items():
        tested = group[~_untested(group)]
        cheaper = int((tested["significant"] & (tested["difference_bps"] < 0)).sum())
        dearer = int((tested["significant"] & (tested["difference_bps"] > 0)).sum())
        counts = {"comparisons": len(tested), "cheaper": cheaper, "more_expensive": dearer}
        counts |= {"not_significant": len(tested) - cheaper - dearer, "not_testable": len(group) - len(tested)}
        rows.append({"compared": name} | counts)
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame, algorithms: Sequence[str]) -> str:
    """One sentence per trained policy and asset, generated from the table; a null result reads as one."""
    sentences = [_sentence(row) for row in table[table["strategy"].isin(algorithms)].to_dict("records")]
    trained, every = overview(table, algorithms).to_dict("records")
    untested = f"; {trained['not_testable']} more could not be tested" if trained["not_testable"] else ""
    sentences.append(
        f"{trained['cheaper']} of {trained['comparisons']} comparisons of a trained policy are significantly cheaper "
        f"and {trained['more_expensive']} more expensive, with intervals that hold for all {every['comparisons']} "
        f"comparisons of the family at once{untested}."
    )
    return "\n".join(sentences)


def independence_warning(table: pd.DataFrame) -> str:
    """Which comparisons have blocks that are still tied to the next, beyond two standard errors of independent ones.

    One comparison in twenty lies beyond them by chance, so it takes more than `TIED_BY_CHANCE` of such counts to warn.
    """
    tested = table[~_untested(table)]
    if tested.empty:
        return "No comparison could be tested."
    blocks, block_s, lagged = tested["blocks"].iloc[0], tested["block_s"].iloc[0], tested["autocorrelation"]
    bound = 2 / np.sqrt(blocks)
    said = (
        f"There are {blocks} blocks of {block_s:g} s; the means of two that follow each other correlate by "
        f"{lagged.median():+.2f} in the median of {len(tested)} comparisons"
    )
    tied = tested[lagged.abs() > bound]
    if tied.empty:
        return f"{said}, and in none beyond {bound:.2f}, as of independent blocks."
    if len(tied) <= stats.binom.ppf(TIED_BY_CHANCE, len(tested), _BEYOND_TWO_ERRORS):
        return f"{said}; {len(tied)} beyond {bound:.2f}, which chance gives of independent blocks too."
    worst = tied.loc[lagged[tied.index].abs().idxmax()]
    return (
        f"{said}. WARNING: {len(tied)} are beyond {bound:.2f}, more than of independent blocks, most of all "
        f"{worst['asset']} {worst['strategy']} ({worst['autocorrelation']:+.2f}): there tests of block means mislead."
    )


def _untested(table: pd.DataFrame) -> pd.Series:
    """Rows with a reason not to be tested (read from a CSV, none is NaN)."""
    return table["note"].notna() & (table["note"] != "")


def _sentence(row: dict[str, Any]) -> str:
    reference = str(row["reference"]).replace("_", " ")
    direction = "cheaper than" if row["difference_bps"] < 0 else "more expensive than"
    opening = f"{row['asset']} {heading(row['strategy'])}:"
    row["note"] = "" if pd.isna(row["note"]) else row["note"]
    if row["note"] == SAME:
        return f"{opening} places the same orders as {reference}."
    if row["note"]:
        return f"{opening} not tested against {reference}: {row['note']}."
    finding = f"significantly {direction}" if row["significant"] else "not significantly different from"
    interval = f"{row['difference_bps']:+.2f} bps, interval {row['joint_low']:+.2f} to {row['joint_high']:+.2f}"
    return f"{opening} {finding} {reference} ({interval}, {row['blocks']} blocks)."


def _doubles(costs: Costs, family: Sequence[Comparison]) -> dict[Comparison, str]:
    """Comparisons of a strategy that places the orders of an earlier one, which is named."""
    earlier, doubles = dict[str, dict[str, Floats]](), dict[Comparison, str]()
    for comparison in family:
        if untestable(costs, comparison):
            continue
        own, known = costs.of_strategy(comparison.asset, comparison.strategy), earlier.setdefault(comparison.asset, {})
        same = (
            name
            for name, other in known.items()
            if other.shape == own.shape and np.abs(own - other).max() < ROUNDING_BPS
        )
        if twin := next(same, ""):
            doubles[comparison] = f"{SAME} as {twin}, which is tested"
        else:
            known[comparison.strategy] = own
    return doubles


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
    for asset, traded in orders[orders["strategy"] != ORACLE].groupby("asset", sort=False):
        means = traded.groupby("strategy")[TOTAL].mean()
        cheapest = str(means.idxmin())
        differences = paired_differences(traded, cheapest, [TOTAL])
        for strategy in algorithms:
            group = differences[differences["strategy"] == strategy]
            interval = (
                Interval(0.0, 0.0, 0.0, traded["block"].nunique())
                if strategy == cheapest
                else cost_bootstrap(group[TOTAL], group["block"], evidence, seed)
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


def _weight_intervals(orders: pd.DataFrame, reference: str, drawn: Resampling, seed: int) -> dict[str, Interval]:
    """By set of weights, in the order of the table: its mean cost minus that of the reference on the same orders."""
    differences = paired_differences(orders, reference, [TOTAL]).groupby("strategy", sort=False)
    return {str(name): block_bootstrap(group[TOTAL], group["block"], drawn, seed) for name, group in differences}


def _common(values: pd.Series) -> float:
    """The value that all rows share; NaN where they do not."""
    return float(values.iloc[0]) if values.eq(values.iloc[0]).all() else _NAN
