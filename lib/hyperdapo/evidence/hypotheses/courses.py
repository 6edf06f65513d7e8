"""How a difference came about: its course over the test span, and how costs are distributed behind their means."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hyperdapo import sections
from hyperdapo.evidence.hypotheses.series import Comparison, Costs
from hyperdapo.evidence.metrics import TOTAL

POINTS = 150
"""At most so many has a course."""
SHARES = np.linspace(0, 1, 101)


def cumulative(
    orders: pd.DataFrame, strategy: str, references: Sequence[str], evidence: sections.Evidence
) -> pd.DataFrame:
    """The paired difference of an asset added up over time, as a share of all of its orders: it ends at the mean.

    Returns
    -------
    `asset, strategy, reference, decision_ns, orders` (so far), `cumulative_bps`; a straight line is a difference that
    all of the span has, a step one that a moment decided. Of references that were not executed there is no row
    """
    costs, frames = Costs.of(orders, TOTAL, evidence.block_s), []
    for asset in costs.assets:
        times = costs.wide.index.get_level_values("decision_ns").to_numpy()[costs.rows(asset)]
        in_time = np.argsort(times, kind="stable")
        seen = np.unique(np.linspace(0, len(times) - 1, min(POINTS, len(times))).round().astype(int))
        for reference in (name for name in references if costs.seeds(name)):
            difference = costs.difference(Comparison(asset, strategy, reference))[in_time]
            course = {"decision_ns": times[in_time][seen], "orders": seen + 1}
            course["cumulative_bps"] = (difference.cumsum() / len(difference))[seen]
            names = {"asset": asset, "strategy": strategy, "reference": reference}
            frames.append(pd.DataFrame(course).assign(**names)[[*names, *course]])
    return pd.concat(frames, ignore_index=True)


def distribution(orders: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of the total cost of each asset and strategy: `asset, strategy, share, total_cost_bps`."""
    frames = [
        pd.DataFrame({"asset": asset, "strategy": strategy, "share": SHARES, TOTAL: group[TOTAL].quantile(SHARES)})
        for (asset, strategy), group in orders.groupby(["asset", "strategy"], sort=False)
    ]
    return pd.concat(frames, ignore_index=True)
