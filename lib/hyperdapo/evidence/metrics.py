"""Execution metrics of §3.4, differences between strategies, by part and by regime, and the intervals of all of them.

Orders of one block share the market's fate, so a block, not an order, is what a bootstrap draws (§3.5.3). Costs are in
bps of the arrival mid, positive when worse for the trader (docs/design.md, Evidence).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from hyperdapo import sections
from hyperdapo.errors import DataError
from hyperdapo.times import block_of

Floats = NDArray[np.float64]

PRICE, FEES, TOTAL = "implementation_shortfall_bps", "fees_bps", "total_cost_bps"
PARTS = (FEES, "funding_bps", "spread_bps", "timing_bps", "opportunity_bps", PRICE, TOTAL)
QUEUES = {"fitted": TOTAL, "all ahead": "cost_all_ahead_bps", "all behind": "cost_all_behind_bps"}
"""The total cost as it is, and under the most and the least favourable queue: where what was cancelled stood."""
BOUNDS = tuple(cost for cost in QUEUES.values() if cost != TOTAL)
REGIMES = {"volatility_5m_bps": "volatility", "bid_ask_spread_bps": "spread"}
LEVELS = ("low", "middle", "high")
TOGETHER = "all"
"""Stands among the assets for all of them together."""
WHOLE = "all"
"""Stands among the parts of a decision for all of them together."""
_NAN = float("nan")
ROUNDING_BPS = 1e-9  # what differs by less is equal: the rest is that of floating point sums


class Resampling(Protocol):
    """How an interval is drawn: for results by the section `evidence`, for what comes before them by `Draws`."""

    @property
    def bootstrap(self) -> int:
        """Number of resamples."""

    @property
    def confidence(self) -> float:
        """Share of them that the interval holds."""


@dataclass(frozen=True)
class Draws:
    """How intervals are drawn before there are policies: not by `evidence`, a change of which must train none anew."""

    confidence: float
    bootstrap: int = 1000


@dataclass(frozen=True)
class Interval:
    """An estimate and the percentile interval of its block bootstrap; NaN bounds of fewer than two blocks."""

    value: float
    low: float
    high: float
    blocks: int

    def columns(self, value: str) -> dict[str, float]:
        """As columns of a table: the estimate under the name `value`, `ci_low`, `ci_high` and `blocks`."""
        return {value: self.value, "ci_low": self.low, "ci_high": self.high, "blocks": self.blocks}


def in_blocks(rows: pd.DataFrame, block_s: float) -> pd.DataFrame:
    """Rows with a `decision_ns`, and the `block` of so many seconds in which each lies: the unit of all intervals."""
    return rows.assign(block=block_of(rows["decision_ns"], block_s))


def per_order(orders: pd.DataFrame) -> dict[str, Floats]:
    """The value of every metric for each of n orders; a metric is the mean of its values.

    `fill_rate` (eq. 3.7) counts orders filled before expiry, `implementation_shortfall_bps` is eq. 3.8 (price only),
    `absolute_slippage_bps` eq. 3.9 with the signed one beside it. `adverse_selection` (eq. 3.12) counts orders whose
    price 60 s after the execution was worse than at it; both prices are mids, so that the spread which an order pays
    is not mistaken for the market moving against it. What lies beyond the data is NaN and not counted.
    """
    markout = orders["markout_60s_bps"].to_numpy(float)
    columns = {
        "fill_rate": orders["filled"],
        "filled_share": orders["filled_passive"],
        **{name: orders[name] for name in ("maker_share", *BOUNDS) if name in orders},
        PRICE: orders[PRICE],
        FEES: orders[FEES],
        TOTAL: orders[TOTAL],
        "slippage_bps": orders["slippage_bps"],
        "absolute_slippage_bps": orders["slippage_bps"].abs(),
        "adverse_selection": np.where(np.isnan(markout), np.nan, markout < 0),
        "markout_60s_bps": markout,
    }
    return {name: np.asarray(values, dtype=float) for name, values in columns.items()}


def sharpe_ratio(returns_bps: ArrayLike) -> float:
    """Eq. 3.10 of (n,) block returns (minus the mean total cost of a block), risk-free rate 0, not annualised."""
    returns = np.asarray(returns_bps, dtype=float)
    return float(_sharpe_ratios(returns)) if len(returns) > 1 else _NAN


def maximum_drawdown(returns_bps: ArrayLike) -> float:
    """Eq. 3.11 of the value V that (n,) block returns compound to from 1: its largest fall, as a share of its peak."""
    value = np.concatenate([[1.0], np.cumprod(1 + np.asarray(returns_bps, dtype=float) / 1e4)])
    peak = np.maximum.accumulate(value)
    return float(np.max((peak - value) / peak))


def block_bootstrap(values: ArrayLike, blocks: ArrayLike, evidence: Resampling, seed: int) -> Interval:
    """Mean of (n,) values with its interval: whole blocks are drawn with replacement, orders keep their weight.

    NaN values are left out.
    """
    values, blocks = np.asarray(values, dtype=float), np.asarray(blocks)
    known = ~np.isnan(values)
    return ratio_bootstrap(*_by_block(values[known], blocks[known]), evidence, seed)


def cost_bootstrap(costs: ArrayLike, blocks: ArrayLike, evidence: Resampling, seed: int) -> Interval:
    """The same of (n,) costs, each of which must be known: NaN where one is no finite number."""
    if not np.isfinite(np.asarray(costs, dtype=float)).all():
        return Interval(_NAN, _NAN, _NAN, len(np.unique(np.asarray(blocks))))
    return block_bootstrap(costs, blocks, evidence, seed)


def ratio_bootstrap(numerator: Floats, denominator: Floats, evidence: Resampling, seed: int) -> Interval:
    """sum(numerator) / sum(denominator) over (b,) blocks with its interval; the ratio is taken inside each resample."""
    blocks, total = len(numerator), denominator.sum()
    value = float(numerator.sum() / total) if total != 0 else _NAN
    if blocks < 2 or total == 0:
        return Interval(value, _NAN, _NAN, blocks)
    times_drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=evidence.bootstrap)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (times_drawn @ numerator) / (times_drawn @ denominator)
    return Interval(value, *percentiles(draws, evidence.confidence), blocks)


def percentiles(draws: Floats, confidence: float) -> tuple[float, float]:
    """Bounds that hold the central share of the finite draws; NaN where there is none."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return _NAN, _NAN
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def summarise(orders: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """Every metric of every asset and strategy: `asset, strategy, metric, value, ci_low, ci_high, blocks`.

    The maximum drawdown has no interval: it is the extreme of one path, which drawing blocks anew does not repeat.
    """
    rows = []
    for (asset, strategy), group in orders.groupby(["asset", "strategy"], sort=False):
        returns = -group.groupby("block")[TOTAL].mean().to_numpy()
        intervals = {
            name: block_bootstrap(values, group["block"], evidence, seed) for name, values in per_order(group).items()
        }
        intervals["sharpe_ratio"] = _sharpe_interval(returns, evidence, seed)
        intervals["maximum_drawdown"] = Interval(maximum_drawdown(returns), _NAN, _NAN, len(returns))
        for metric, interval in intervals.items():
            rows.append({"asset": asset, "strategy": strategy, "metric": metric} | interval.columns("value"))
    return pd.DataFrame(rows)


def main_table(orders: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """The main result: what each strategy costs on the same parent orders, under the bounds of the queue too.

    Of all assets together a block of time holds the orders of every asset, for they share the market's fate.

    Returns
    -------
    `asset` (then `TOGETHER`), `strategy, orders, total_cost_bps, ci_low, ci_high, blocks, cost_all_ahead_bps,
    cost_all_behind_bps, maker_share`
    """
    rows = []
    for asset, executed in [*orders.groupby("asset", sort=False), (TOGETHER, orders)]:
        for strategy, group in executed.groupby("strategy", sort=False):
            cost = cost_bootstrap(group[TOTAL], group["block"], evidence, seed)
            row = {"asset": asset, "strategy": strategy, "orders": _orders(group)} | cost.columns(TOTAL)
            means = group[[*BOUNDS, "maker_share"]].mean()
            rows.append(row | means.to_dict())
    return pd.DataFrame(rows)


def paired_differences(
    orders: pd.DataFrame, reference: str, measures: Sequence[str] = (FEES, PRICE, TOTAL)
) -> pd.DataFrame:
    """Each strategy minus the reference on the same parent orders.

    Returns
    -------
    One row per order and strategy other than the reference (and training seed, where a column tells): `asset, order_id,
    strategy, block` and the difference of each measure; fees and price add up to the total cost.

    Raises
    ------
    DataError
        If the reference did not execute an order, or was executed twice with no seed to tell why: naming the first.
    """
    names, keys = list(measures), ["asset", "order_id"]
    base = orders[orders["strategy"] == reference].set_index(keys)[names].astype(float)
    others = orders[orders["strategy"] != reference].set_index(keys)
    if len(twice := base.index[base.index.duplicated()]) and "seed" not in orders:
        raise DataError(f"{twice[0][0]}: order {twice[0][1]} of {reference} stands there twice. Run 08_backtest again")
    if len(alone := others.index.difference(base.index)):
        raise DataError(f"{alone[0][0]}: {reference} did not execute order {alone[0][1]}. Run 08_backtest again")
    base = base.groupby(level=keys).mean()
    difference = others[names].to_numpy(float) - base.reindex(others.index).to_numpy()
    paired = others[["strategy", "block"]].assign(**dict(zip(names, difference.T, strict=True)))
    return paired.reset_index()


def decompose(orders: pd.DataFrame, reference: str, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """What each difference to the reference is made of: fees, funding and price add up to the total exactly.

    The price in turn is spread, timing and opportunity. Parts that `orders` has no column of are left out.
    """
    parts, rows = [part for part in PARTS if part in orders], []
    differences = paired_differences(orders, reference, parts)
    for (asset, strategy), group in differences.groupby(["asset", "strategy"], sort=False):
        for part in parts:
            interval = cost_bootstrap(group[part], group["block"], evidence, seed)
            row = {"asset": asset, "strategy": strategy, "reference": reference, "part": part}
            rows.append(row | interval.columns("difference_bps"))
    return pd.DataFrame(rows)


def side_by_side(
    orders: pd.DataFrame, references: Sequence[str], evidence: sections.Evidence, seed: int
) -> pd.DataFrame:
    """What each strategy costs on the same parent orders, how much it makes, and where a difference comes from.

    Returns
    -------
    One row per reference, asset and strategy: `orders`, the means `total_cost_bps` and `maker_share`, then less those
    of the reference the total, `difference_bps`, with its interval and `blocks`, and each of `PARTS` that `orders` has.
    """
    rows = [row for reference in references for row in _beside(orders, reference, evidence, seed)]
    return pd.DataFrame(rows).astype({"blocks": "Int64"})


def by_interval(orders: pd.DataFrame, again_s: float | None, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """What policies cost that decide every so many seconds, less the touch requoted and less the rule as often.

    The rule is `threshold_requoted` where policies and rules of the run both decide every `again_s`, and
    `threshold_every_Ns` at other intervals.

    Returns
    -------
    Rows of `side_by_side` without the parts, by interval: `every_s`, then against `touch_requoted` those of the rule
    and of the policies, and against the rule those of the policies; none where none decides as often as the rule.
    """
    every_s = pd.Series(orders["strategy"].unique()).str.extract(r"^threshold_every_(.+)s$")[0].dropna()
    named: dict[float, tuple[str, ...]] = {
        float(each): (f"threshold_every_{each}s", f"boosting_every_{each}s") for each in every_s
    }
    if again_s:
        named[again_s] = ("threshold_requoted", "boosting_sequential", "dapo_sequential")
    tables = []
    for each, (rule, *policies) in sorted(named.items()):
        for reference, compared in (("touch_requoted", [rule, *policies]), (rule, policies)):
            rows = side_by_side(orders[orders["strategy"].isin([reference, *compared])], [reference], evidence, seed)
            tables.append(rows[rows["strategy"] != reference].assign(every_s=each))
    columns = ["every_s", "reference", "asset", "strategy", "orders", TOTAL, "maker_share"]
    columns += ["difference_bps", "ci_low", "ci_high", "blocks"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def _beside(
    orders: pd.DataFrame, reference: str, evidence: sections.Evidence, seed: int
) -> Iterator[dict[str, object]]:
    """The rows of `side_by_side` against one reference."""
    parts = [part for part in PARTS if part in orders and part not in (PRICE, TOTAL)]
    apart = paired_differences(orders, reference, [TOTAL, *parts]).groupby(["asset", "strategy"], sort=False)
    for (asset, strategy), group in orders.groupby(["asset", "strategy"], sort=False):
        row = {"reference": reference, "asset": asset, "strategy": strategy, "orders": _orders(group)}
        row |= {name: float(group[name].mean()) for name in (TOTAL, "maker_share")}
        if strategy != reference:
            paired = apart.get_group((asset, strategy))
            row |= cost_bootstrap(paired[TOTAL], paired["block"], evidence, seed).columns("difference_bps")
            row |= {f"of_{part}": float(paired[part].mean()) for part in parts}
        yield row


def queue_differences(orders: pd.DataFrame, reference: str, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """Each strategy minus the reference on the same parent orders, under each of `QUEUES`.

    Returns
    -------
    One row per asset, strategy and queue: `difference_bps` of the total cost with `ci_low`, `ci_high`, `blocks`, and
    `holds`: the intervals of all queues lie on the same side of zero. A claim stands only if it holds
    """
    differences, rows = paired_differences(orders, reference, list(QUEUES.values())), []
    for (asset, strategy), group in differences.groupby(["asset", "strategy"], sort=False):
        intervals = [cost_bootstrap(group[cost], group["block"], evidence, seed) for cost in QUEUES.values()]
        holds = all(interval.low > 0 for interval in intervals) or all(interval.high < 0 for interval in intervals)
        named = {"asset": asset, "strategy": strategy, "reference": reference, "holds": holds}
        for queue, interval in zip(QUEUES, intervals, strict=True):
            rows.append(named | {"queue": queue} | interval.columns("difference_bps"))
    return pd.DataFrame(rows)


def learning_gap(
    rewards: Floats,
    earned: Mapping[str, Floats],
    best_fixed: int,
    blocks: ArrayLike,
    evidence: sections.Evidence,
    seed: int,
) -> pd.DataFrame:
    """How much of the way from the best fixed action to the per-state oracle each policy goes.

    Parameters
    ----------
    rewards : (n, K) bps, every action replayed from the same n held-out states
    earned : (n,) bps by policy
    best_fixed : the action that was best on the training states
    blocks : (n,)

    Returns
    -------
    One row per policy: `policy, policy_bps, best_fixed_bps, oracle_bps, gap_closed, gap_ci_low, gap_ci_high, states,
    blocks`. The oracle knows each state's outcome, so part of its gap is noise that no policy can close.
    """
    oracle, fixed = rewards.max(axis=1), rewards[:, best_fixed]
    blocks = np.asarray(blocks)
    room, _ = _by_block(oracle - fixed, blocks)
    rows = []
    for policy, reward in earned.items():
        gain, _ = _by_block(reward - fixed, blocks)
        gap = ratio_bootstrap(gain, room, evidence, seed)
        rows.append(
            {
                "policy": policy,
                "policy_bps": reward.mean(),
                "best_fixed_bps": fixed.mean(),
                "oracle_bps": oracle.mean(),
                "gap_closed": gap.value,
                "gap_ci_low": gap.low,
                "gap_ci_high": gap.high,
                "states": len(rewards),
                "blocks": gap.blocks,
            }
        )
    return pd.DataFrame(rows)


def levels(orders: pd.DataFrame, feature: str) -> pd.Series:
    """The tercile of each parent order by a feature at its decision: `low`, `middle`, `high`, by `order_id`.

    Orders that are equal in the feature are of one level: a spread that is mostly one step has fewer than three.
    """
    parents = orders.drop_duplicates("order_id").set_index("order_id")[feature]
    rank = parents.rank(method="average", pct=True)
    return pd.cut(rank, [0, 1 / 3, 2 / 3, 1], labels=list(LEVELS)).astype(str).rename("level")


def regime_costs(orders: pd.DataFrame) -> pd.DataFrame:
    """Mean total cost in bps: a row per `regime` and `level` with its number of `orders`, a column per strategy."""
    tables = []
    for feature, regime in REGIMES.items():
        graded = orders.assign(regime=regime, level=orders["order_id"].map(levels(orders, feature)))
        means = graded.pivot_table(index=["regime", "level"], columns="strategy", values=TOTAL, sort=False)
        means.insert(0, "orders", graded.groupby(["regime", "level"])["order_id"].nunique().loc[means.index])
        order = [(regime, level) for level in LEVELS if (regime, level) in means.index]
        tables.append(means.loc[order, ["orders", *graded["strategy"].unique()]])
    return pd.concat(tables)


def regime_differences(orders: pd.DataFrame, reference: str, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """Each strategy minus the reference on the same parent orders, regime by regime.

    Returns
    -------
    `strategy, regime, level, orders, blocks, difference_bps, ci_low, ci_high`; intervals over blocks of time
    """
    differences, rows = paired_differences(orders, reference, [TOTAL]), []
    for feature, regime in REGIMES.items():
        graded = differences["order_id"].map(levels(orders, feature))
        for (strategy, level), group in differences.groupby(["strategy", graded], sort=False):
            interval = cost_bootstrap(group[TOTAL], group["block"], evidence, seed)
            row = {"strategy": strategy, "regime": regime, "level": level, "orders": _orders(group)}
            rows.append(row | {"blocks": interval.blocks} | interval.columns("difference_bps"))
    table = pd.DataFrame(rows).assign(rank=lambda rows: rows["level"].map(LEVELS.index))
    return table.sort_values(["strategy", "regime", "rank"], ignore_index=True).drop(columns="rank")


def _orders(rows: pd.DataFrame) -> int:
    """How many parent orders, whatever trainings executed them."""
    return len(rows.drop_duplicates(["asset", "order_id"]))


def _by_block(values: Floats, blocks: NDArray[np.generic]) -> tuple[Floats, Floats]:
    """Sum and number of values in each block."""
    _, index = np.unique(blocks, return_inverse=True)
    return np.bincount(index, weights=values).astype(float), np.bincount(index).astype(float)


def _sharpe_ratios(returns: Floats) -> Floats:
    """Mean over deviation along the last axis; NaN where nothing varies."""
    deviation = returns.std(axis=-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(deviation > ROUNDING_BPS, returns.mean(axis=-1) / deviation, np.nan)


def _sharpe_interval(returns: Floats, evidence: sections.Evidence, seed: int) -> Interval:
    if len(returns) < 2:
        return Interval(_NAN, _NAN, _NAN, len(returns))
    drawn = np.random.default_rng(seed).integers(0, len(returns), (evidence.bootstrap, len(returns)))
    bounds = percentiles(_sharpe_ratios(returns[drawn]), evidence.confidence)
    return Interval(sharpe_ratio(returns), *bounds, len(returns))


def latency_quantiles(latency: pd.DataFrame) -> pd.DataFrame:
    """How long decisions take: `latency` has a row per decision and part, with backend, mode, part and ms.

    Returns
    -------
    `backend, mode, part, p50_ms, p90_ms, p99_ms, decisions`, in the order in which they were timed.
    """
    grouped = latency.groupby(["backend", "mode", "part"], sort=False)["ms"]
    quantiles = {f"p{percent}_ms": grouped.quantile(percent / 100) for percent in (50, 90, 99)}
    return pd.DataFrame(quantiles | {"decisions": grouped.size()}).reset_index()
