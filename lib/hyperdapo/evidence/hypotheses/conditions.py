"""Does a difference depend on the market? By tercile of volatility and spread, with a test of the interaction."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from hyperdapo import sections
from hyperdapo.evidence.hypotheses import resampling
from hyperdapo.evidence.hypotheses.series import BINS_A_BLOCK, Comparison, Costs
from hyperdapo.evidence.hypotheses.testing import CONSTANT, fewest_blocks
from hyperdapo.evidence.metrics import LEVELS, REGIMES, ROUNDING_BPS, TOGETHER, TOTAL, Floats, levels

INTERACTION = "high minus low"
"""Stands among the levels for the difference between the highest and the lowest of them."""
COLUMNS = (
    *("asset", "strategy", "reference", "regime", "level", "orders", "blocks", "block_s", "difference_bps"),
    *("ci_low", "ci_high", "p", "p_holm", "note"),
)
_NAN = float("nan")


def conditions(
    orders: pd.DataFrame, strategy: str, reference: str, evidence: sections.Evidence, seed: int
) -> pd.DataFrame:
    """The difference of two strategies on the same orders within each level of a regime, and between the outer levels.

    Levels are terciles of the orders of an asset (`metrics.levels`); of all assets together each order keeps that of
    its own. Errors are fixed-b over bins of time, as those of the registered hypotheses.

    Returns
    -------
    `COLUMNS`, a row per asset (then `TOGETHER`), regime and level, the last of them `INTERACTION`: its `p` says whether
    the difference depends on the regime, `p_holm` corrected over all interactions. `note` says why there is no interval
    """
    costs = Costs.of(orders[orders["strategy"].isin([strategy, reference])], TOTAL, evidence.block_s)
    assets = [*costs.assets, *([TOGETHER] if len(costs.assets) > 1 else [])]
    graded = {regime: _graded(orders, costs, feature) for feature, regime in REGIMES.items()}
    needed = fewest_blocks(len(assets) * len(graded), 1 - evidence.confidence)
    rows = [
        row
        for asset in assets
        for regime, level in graded.items()
        for row in _rows(costs, Comparison(asset, strategy, reference), regime, level, needed, evidence.confidence)
    ]
    table, tested = pd.DataFrame(rows), [row["level"] == INTERACTION and row["p"] == row["p"] for row in rows]
    table["p_holm"] = _NAN
    if any(tested):
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"], method="holm")[1]
    return table[list(COLUMNS)]


def _graded(orders: pd.DataFrame, costs: Costs, feature: str) -> np.ndarray:
    """(N,) the level of each parent order of `costs`, in its order."""
    of_asset = {asset: levels(rows, feature) for asset, rows in orders.groupby("asset", sort=False)}
    index = costs.wide.index
    pairs = zip(index.get_level_values("asset"), index.get_level_values("order_id"), strict=True)
    return np.array([of_asset[asset][order] for asset, order in pairs])


def _rows(
    costs: Costs, comparison: Comparison, regime: str, level: np.ndarray, needed: int, confidence: float
) -> Iterator[dict[str, Any]]:
    difference, own = costs.difference(comparison), level[costs.rows(comparison.asset)]
    means, scores = dict[str, float](), dict[str, Floats]()
    for name in (one for one in LEVELS if (own == one).any()):
        member = own == name
        counts = costs.in_bins(comparison.asset, member.astype(float))
        means[name] = float(difference[member].mean())
        scores[name] = costs.in_bins(comparison.asset, (difference - means[name]) * member) / counts.mean()
    orders = {name: int((own == name).sum()) for name in means}
    if len(means) > 1:
        lowest, *_, highest = means
        means[INTERACTION] = means[highest] - means[lowest]
        scores[INTERACTION] = scores[highest] - scores[lowest]
        orders[INTERACTION] = orders[highest] + orders[lowest]
    length = resampling.block_bins(np.column_stack(list(scores.values())), BINS_A_BLOCK)
    blocks = costs.blocks(comparison.asset, length)
    shared = comparison._asdict() | {"regime": regime, "blocks": blocks, "block_s": length * costs.bin_s}
    for name, mean in means.items():
        row = shared | {"level": name, "orders": orders[name], "difference_bps": mean}
        yield row | _tested(mean, scores[name], blocks, needed, confidence)


def _tested(mean: float, scores: Floats, blocks: int, needed: int, confidence: float) -> dict[str, Any]:
    """Interval and p-value of one mean by its (n,) scores, or why there is none."""
    untested = {"ci_low": _NAN, "ci_high": _NAN, "p": _NAN}
    if not np.isfinite(mean):
        return untested | {"note": "a cost is no finite number"}
    if blocks < needed:
        return untested | {"note": f"{blocks} blocks of time; so many interactions need {needed}"}
    freedom = resampling.degrees(len(scores), blocks)
    error = float(resampling.long_run_error(scores[:, None], freedom)[0])
    if error < ROUNDING_BPS:
        return untested | {"note": CONSTANT}
    beyond = stats.t.ppf((1 + confidence) / 2, freedom) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return {"ci_low": mean - beyond, "ci_high": mean + beyond, "p": p_value, "note": ""}
