"""Execution metrics of §3.4 with intervals over independent blocks of time (DESIGN §7).

Orders of one block share the market's fate, so a block, not an order, is what a bootstrap draws (§3.5.3).
Costs are in bps of the arrival mid, positive when worse for the trader.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from hyperdapo import schema

Floats = NDArray[np.float64]

PRICE, FEES, TOTAL = "implementation_shortfall_bps", "fees_bps", "total_cost_bps"


@dataclass(frozen=True)
class Interval:
    """An estimate and the percentile interval of its block bootstrap; NaN bounds where fewer than two blocks stand."""

    value: float
    low: float
    high: float
    blocks: int


def per_order(orders: pd.DataFrame) -> dict[str, Floats]:
    """The value of every metric for each of n orders; a metric is the mean of its values.

    `fill_rate` (eq. 3.7) counts orders filled before expiry, `implementation_shortfall_bps` is eq. 3.8 (price only),
    `absolute_slippage_bps` eq. 3.9 with the signed one beside it, `adverse_selection` (eq. 3.12) counts orders whose
    price 60 s after the execution was worse than the execution.
    """
    columns = {
        "fill_rate": orders["filled"],
        "filled_share": orders["filled_passive"],
        PRICE: orders[PRICE],
        FEES: orders[FEES],
        TOTAL: orders[TOTAL],
        "slippage_bps": orders["slippage_bps"],
        "absolute_slippage_bps": orders["slippage_bps"].abs(),
        "adverse_selection": orders["markout_60s_bps"] < 0,
        "markout_60s_bps": orders["markout_60s_bps"],
    }
    return {name: values.to_numpy(float) for name, values in columns.items()}


def sharpe_ratio(returns_bps: ArrayLike) -> float:
    """Eq. 3.10 of (n,) block returns (minus the mean total cost of a block), risk-free rate 0, not annualised."""
    returns = np.asarray(returns_bps, dtype=float)
    deviation = returns.std(ddof=1) if len(returns) > 1 else 0.0
    return float(returns.mean() / deviation) if deviation > 0 else float("nan")


def maximum_drawdown(returns_bps: ArrayLike) -> float:
    """Eq. 3.11 of the value V that (n,) block returns compound to from 1: its largest fall, as a share of its peak."""
    value = np.concatenate([[1.0], np.cumprod(1 + np.asarray(returns_bps, dtype=float) / 1e4)])
    peak = np.maximum.accumulate(value)
    return float(np.max((peak - value) / peak))


def block_bootstrap(values: ArrayLike, blocks: ArrayLike, evidence: schema.Evidence, seed: int) -> Interval:
    """Mean of (n,) values with its interval: whole blocks are drawn with replacement, orders keep their weight."""
    sums, counts = _by_block(np.asarray(values, dtype=float), np.asarray(blocks))
    return ratio_bootstrap(sums, counts, evidence, seed)


def ratio_bootstrap(numerator: Floats, denominator: Floats, evidence: schema.Evidence, seed: int) -> Interval:
    """sum(numerator) / sum(denominator) over (b,) blocks with its interval; the ratio is taken inside each resample."""
    total = denominator.sum()
    value = float(numerator.sum() / total) if total != 0 else float("nan")
    if len(numerator) < 2 or total == 0:
        return Interval(value, float("nan"), float("nan"), len(numerator))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(numerator), np.full(len(numerator), 1 / len(numerator)), size=evidence.bootstrap)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (weights @ numerator) / (weights @ denominator)
    tail = (1 - evidence.confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high), len(numerator))


def summarise(orders: pd.DataFrame, evidence: schema.Evidence, seed: int) -> pd.DataFrame:
    """Every metric of every asset and strategy: `asset, strategy, metric, value, ci_low, ci_high, blocks`."""
    rows = []
    for (asset, strategy), group in orders.groupby(["asset", "strategy"], sort=False):
        blocks = group["block"].to_numpy()
        found = {name: block_bootstrap(values, blocks, evidence, seed) for name, values in per_order(group).items()}
        returns = -group.groupby("block")[TOTAL].mean().to_numpy()
        found["sharpe_ratio"] = _sharpe_interval(returns, evidence, seed)
        nothing = float("nan")
        found["maximum_drawdown"] = Interval(maximum_drawdown(returns), nothing, nothing, len(returns))
        rows += [(asset, strategy, name, i.value, i.low, i.high, i.blocks) for name, i in found.items()]
    return pd.DataFrame(rows, columns=["asset", "strategy", "metric", "value", "ci_low", "ci_high", "blocks"])


def paired_differences(orders: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Each strategy minus the reference on the same parent orders.

    Returns
    -------
    One row per order and strategy other than the reference: `asset, strategy, order_id, block` and the differences of
    fees, price and total, bps; the first two add up to the third.
    """
    measures = [FEES, PRICE, TOTAL]
    base = orders[orders["strategy"] == reference].set_index(["asset", "order_id"])[measures]
    others = orders[orders["strategy"] != reference].set_index(["asset", "order_id"])
    paired = others[["strategy", "block", *measures]].join(base.add_suffix("_reference"), how="inner")
    differences = {name: paired[name] - paired[f"{name}_reference"] for name in measures}
    return paired[["strategy", "block"]].assign(**differences).reset_index()


def decompose(orders: pd.DataFrame, reference: str, evidence: schema.Evidence, seed: int) -> pd.DataFrame:
    """How much of each difference to the reference is fees and how much is price; the parts add up exactly."""
    rows = []
    for (asset, strategy), group in paired_differences(orders, reference).groupby(["asset", "strategy"], sort=False):
        for part in (FEES, PRICE, TOTAL):
            found = block_bootstrap(group[part], group["block"], evidence, seed)
            rows.append((asset, strategy, part, found.value, found.low, found.high, found.blocks))
    return pd.DataFrame(rows, columns=["asset", "strategy", "part", "difference_bps", "ci_low", "ci_high", "blocks"])


def learning_gap(
    rewards: Floats, actions: Mapping[str, NDArray[np.int64]], best_fixed: int, blocks: ArrayLike, evidence: schema.Evidence, seed: int
) -> pd.DataFrame:
    """How much of the way from the best fixed action to the per-state oracle each policy goes.

    Parameters
    ----------
    rewards : (n, K) bps, every action replayed from the same n held-out states
    actions : (n,) by policy
    best_fixed : the action that was best on the training states
    blocks : (n,)

    Returns
    -------
    One row per policy: `policy, policy_bps, best_fixed_bps, oracle_bps, gap_closed, gap_ci_low, gap_ci_high, states,
    blocks`. The oracle knows each state's outcome, so part of its gap is noise that no policy can close.
    """
    states, oracle, fixed = np.arange(len(rewards)), rewards.max(axis=1), rewards[:, best_fixed]
    room, _ = _by_block(oracle - fixed, np.asarray(blocks))
    rows = []
    for policy, chosen in actions.items():
        value = rewards[states, chosen]
        gain, _ = _by_block(value - fixed, np.asarray(blocks))
        gap = ratio_bootstrap(gain, room, evidence, seed)
        rows.append((policy, value.mean(), fixed.mean(), oracle.mean(), gap.value, gap.low, gap.high, len(states), gap.blocks))
    names = ["policy", "policy_bps", "best_fixed_bps", "oracle_bps", "gap_closed", "gap_ci_low", "gap_ci_high"]
    return pd.DataFrame(rows, columns=[*names, "states", "blocks"])


def _by_block(values: Floats, blocks: NDArray[np.generic]) -> tuple[Floats, Floats]:
    """Sum and number of values in each block."""
    _, index = np.unique(blocks, return_inverse=True)
    return np.bincount(index, weights=values), np.bincount(index).astype(float)


def _sharpe_interval(returns: Floats, evidence: schema.Evidence, seed: int) -> Interval:
    if len(returns) < 2:
        return Interval(float("nan"), float("nan"), float("nan"), len(returns))
    draws = np.random.default_rng(seed).integers(0, len(returns), (evidence.bootstrap, len(returns)))
    sample = returns[draws]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sample.mean(axis=1) / sample.std(axis=1, ddof=1)
    tail = (1 - evidence.confidence) / 2
    low, high = np.nanquantile(ratios[np.isfinite(ratios)], [tail, 1 - tail]) if np.isfinite(ratios).any() else (np.nan, np.nan)
    return Interval(sharpe_ratio(returns), float(low), float(high), len(returns))
