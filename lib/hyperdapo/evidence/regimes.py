"""Costs when the market is calm or wild, tight or wide."""

import pandas as pd

from hyperdapo import sections
from hyperdapo.evidence.metrics import TOTAL, block_bootstrap, paired_differences

REGIMES = {"volatility_5m_bps": "volatility", "bid_ask_spread_bps": "spread"}
LEVELS = ("low", "middle", "high")


def levels(orders: pd.DataFrame, feature: str) -> pd.Series:
    """The tercile of each parent order by a feature at its decision: `low`, `middle`, `high`, by `order_id`.

    Orders that are equal in the feature are of one level: a spread that is mostly one step has fewer than three.
    """
    parents = orders.drop_duplicates("order_id").set_index("order_id")[feature]
    rank = parents.rank(method="average", pct=True)
    return pd.cut(rank, [0, 1 / 3, 2 / 3, 1], labels=list(LEVELS)).astype(str).rename("level")


def mean_costs(orders: pd.DataFrame) -> pd.DataFrame:
    """Mean total cost in bps: a row per `regime` and `level` with its number of `orders`, a column per strategy."""
    rows = []
    for feature, regime in REGIMES.items():
        told = orders.assign(regime=regime, level=orders["order_id"].map(levels(orders, feature)))
        means = told.pivot_table(index=["regime", "level"], columns="strategy", values=TOTAL, sort=False)
        counted = told.groupby(["regime", "level"])["order_id"].nunique()
        means.insert(0, "orders", counted.loc[means.index])
        order = [(regime, level) for level in LEVELS if (regime, level) in means.index]
        rows.append(means.loc[order, ["orders", *told["strategy"].unique()]])
    return pd.concat(rows)


def differences(orders: pd.DataFrame, reference: str, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """Each strategy minus the reference on the same parent orders, regime by regime.

    Returns
    -------
    `strategy, regime, level, orders, blocks, difference_bps, ci_low, ci_high`; intervals over blocks of time
    """
    paired, rows = paired_differences(orders, reference, [TOTAL]), []
    for feature, regime in REGIMES.items():
        level = paired["order_id"].map(levels(orders, feature))
        for (strategy, name), group in paired.groupby(["strategy", level], sort=False):
            found = block_bootstrap(group[TOTAL], group["block"], evidence, seed)
            rows.append((strategy, regime, name, len(group), found.blocks, found.value, found.low, found.high))
    names = ["strategy", "regime", "level", "orders", "blocks", "difference_bps", "ci_low", "ci_high"]
    table, by = pd.DataFrame(rows, columns=names), ["strategy", "regime", "place"]
    place = table["level"].map({level: rank for rank, level in enumerate(LEVELS)})
    return table.assign(place=place).sort_values(by, ignore_index=True).drop(columns="place")
