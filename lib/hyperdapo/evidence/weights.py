"""Table and verdict of the study of the reward's weights (eq. 3.3) in 04_preference_pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hyperdapo.evidence.metrics import TOTAL, Interval, Resampling, block_bootstrap, paired_differences

BEST, PICKED = "best", "picked_elsewhere"
_COLUMNS = (TOTAL, "ci_low", "ci_high", "difference_bps", "difference_low", "difference_high", "blocks")


@dataclass(frozen=True)
class Draws:
    """How the intervals of the study are drawn: apart from `evidence`, lest a change of it train every policy anew."""

    confidence: float
    bootstrap: int = 1000


def compare_weights(orders: pd.DataFrame, parts: Sequence[str], drawn: Resampling, seed: int) -> pd.DataFrame:
    """Each set of weights with its mean cost, and how much dearer it is than the best on the same orders.

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
    apart = _differences(orders, BEST, drawn, seed)
    rows = []
    for name, group in orders.groupby("strategy", sort=False):
        cost = block_bootstrap(group[TOTAL], group["block"], drawn, seed)
        same = {part: _common(group[part]) for part in parts}
        row = {"weights": name, **same, TOTAL: cost.value, "ci_low": cost.low, "ci_high": cost.high}
        if name in apart:
            more = apart[str(name)]
            row |= {"difference_bps": more.value, "difference_low": more.low, "difference_high": more.high}
        rows.append(row | {"blocks": cost.blocks})
    return pd.DataFrame(rows)[["weights", *parts, *_COLUMNS]]


def verdict(orders: pd.DataFrame, drawn: Resampling, seed: int) -> str:
    """One sentence per known set of weights against those picked on other blocks; what is within noise reads so.

    `orders` as in `compare_weights`, with a set `picked_elsewhere`.
    """
    sentences = []
    for name, more in _differences(orders, PICKED, drawn, seed).items():
        if name != BEST:
            finding = "dearer" if more.low > 0 else "cheaper" if more.high < 0 else "not different beyond noise"
            interval = f"interval {more.low:+.2f} to {more.high:+.2f}, {more.blocks} blocks"
            sentences.append(f"{name.replace('_', ' ')}: {finding} ({more.value:+.2f} bps, {interval})")
    return "Against weights picked on the other blocks of time:\n" + "\n".join(sentences)


def _common(values: pd.Series) -> float:
    """The value that all rows share; NaN where they do not."""
    return float(values.iloc[0]) if values.eq(values.iloc[0]).all() else float("nan")


def _differences(orders: pd.DataFrame, reference: str, drawn: Resampling, seed: int) -> dict[str, Interval]:
    """By set of weights, in the order of the table: its mean cost minus that of the reference on the same orders."""
    apart = paired_differences(orders, reference, [TOTAL]).groupby("strategy", sort=False)
    return {str(name): block_bootstrap(own[TOTAL], own["block"], drawn, seed) for name, own in apart}
