"""What the strategies would cost if the simulator assumed something else."""

from collections.abc import Iterable
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel

from hyperdapo.execution.costs import HIGHEST_TIER
from hyperdapo.execution.strategies import Trained, backtest
from hyperdapo.market.book import Market
from hyperdapo.schema import Parameters
from hyperdapo.sections import Execution

Model = TypeVar("Model", bound=BaseModel)


def sensitivity(
    market: Market,
    parents: pd.DataFrame,
    trained: Trained,
    outcomes: pd.DataFrame,
    decisions: pd.DataFrame,
    parameters: Parameters,
) -> pd.DataFrame:
    """The backtest once more under other assumptions, one at a time; what was decided stays.

    Returns
    -------
    `of` (latency, queue, fees), `assumption`, `strategy`, `orders` (count) and `total_cost_bps` (sum over them)
    """
    rows = []
    for (of, assumption), execution in assumptions(parameters.execution).items():
        orders = backtest(market, parents, trained, outcomes, decisions, _changed(parameters, execution=execution))
        sums = orders.groupby("strategy", sort=False)["total_cost_bps"].agg(["size", "sum"]).reset_index()
        sums = sums.set_axis(["strategy", "orders", "total_cost_bps"], axis=1)
        rows.append(sums.assign(of=of, assumption=assumption))
    return pd.concat(rows, ignore_index=True)[["of", "assumption", "strategy", "orders", "total_cost_bps"]]


def assumptions(execution: Execution) -> dict[tuple[str, str], Execution]:
    """Latencies of 0 to 2 s and the two presets, queue models and fee tiers, each with all else as it is."""
    latency = execution.latency
    constant = {
        f"{seconds:g} s": _changed(latency, preset="empirical", policy_ms=0.0, empirical_ms=[seconds * 1000])
        for seconds in (0.0, 0.2, 0.5, 1.0, 2.0)
    }
    presets = {preset: _changed(latency, preset=preset) for preset in ("thesis", "measured")}
    queues: dict[str, dict[str, Any]] = {
        "fitted": {},
        "evenly": {"queue": "power", "queue_exponent": 1.0},
        "risk averse": {"queue": "risk_averse"},
        "no queue": {"queue": "touch"},
    }
    tiers = {f"tier {tier}": _changed(execution.fees, tier=tier) for tier in (0, 3, HIGHEST_TIER)}
    return (
        {("latency", name): _changed(execution, latency=each) for name, each in (constant | presets).items()}
        | {("queue", name): _changed(execution, **each) for name, each in queues.items()}
        | {("fees", name): _changed(execution, fees=each) for name, each in tiers.items()}
    )


def mean_costs(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Mean total cost (bps) over the parts of a market: a row per assumption, a column per strategy."""
    sums = pd.concat(parts).groupby(["of", "assumption", "strategy"], sort=False)[["orders", "total_cost_bps"]].sum()
    means = sums.assign(mean=sums["total_cost_bps"] / sums["orders"])
    return means.pivot_table(index=["of", "assumption"], columns="strategy", values="mean", sort=False)


def _changed(section: Model, **values: object) -> Model:
    return section.model_copy(update=values)
