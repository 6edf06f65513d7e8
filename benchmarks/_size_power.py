"""Size and power of the registered tests: the whole procedure, over null worlds of the synthetic exchange.

In each world one policy and six references execute the same orders by the simulator. All read the same kind of feature,
five-minute momentum, but each that of another world (a permuted feature): none predicts anything, all cost the same in
the mean, and their differences keep the dependence in time that such a feature and such a market give. How often a
hypothesis is established, or a difference called significant, is the size; with a constant edge taken from the costs of
the policy, the power. Writes `lib/hyperdapo/evidence/hypotheses/size_power.csv`:

    python benchmarks/_size_power.py --worlds 200
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from hyperdapo.actions import Action
from hyperdapo.evidence.hypotheses import registered, testing
from hyperdapo.evidence.hypotheses.resampling import block_means
from hyperdapo.evidence.hypotheses.series import BINS_A_BLOCK, Comparison, Costs
from hyperdapo.evidence.hypotheses.superiority import superiority
from hyperdapo.evidence.metrics import QUEUES, TOTAL, Floats
from hyperdapo.execution import strategies
from hyperdapo.execution.parents import STATE, candidate_orders, parent_orders, replay
from hyperdapo.params import Parameters, load
from hyperdapo.sections import Evidence
from hyperdapo.synthetic.exchange import World
from hyperdapo.times import HOUR_NS, SECOND_NS

ASSET, HOURS, EVERY_S, MEMORY_S = "BTC", 2.0, 10, 300
ACTIONS = [Action("take"), Action("join"), Action("behind", 1)]
BOUNDS = (-0.43, 0.43)  # terciles of a standard normal: each action is taken as often as any other
EDGES_BPS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ASSUMED = {"queue_exponent": 1.5, "impact_coefficient_bps": 0.1}
RESAMPLES = 399


class Played(NamedTuple):
    """A world: what n orders cost by each action under each queue, (queues, n, K) bps, and a feature of it (n,)."""

    costs: Floats
    momentum: Floats
    decision_ns: np.ndarray


def main() -> None:
    """Play the worlds, test in each, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=200)
    worlds, begun = parser.parse_args().worlds, perf_counter()
    parameters = load("null", {"execution": ASSUMED, "evidence": {"bootstrap": RESAMPLES}})
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        played = list(pool.map(partial(play, parameters), range(worlds)))
        print(f"{worlds} worlds played in {perf_counter() - begun:.0f} s", flush=True)
        orders = [policies(played, world, parameters) for world in range(worlds)]
        tested = pd.concat(pool.map(partial(rejections, parameters), orders))
    table = rates(tested)
    table.to_csv(registered.SIZE_POWER, index=False, float_format="%.6g")
    print(table.pivot_table(index="test", columns="edge_bps", values="rate", sort=False).to_string())
    print(f"{perf_counter() - begun:.0f} s in all")


def rates(tested: pd.DataFrame) -> pd.DataFrame:
    """`test, edge_bps, worlds, rejections, rate` of the rows of `rejections`."""
    counted = tested.groupby(["test", "edge_bps"], sort=False)["rejected"].agg(worlds="size", rejections="sum")
    return counted.reset_index().assign(rate=lambda table: table["rejections"] / table["worlds"])


def play(parameters: Parameters, world: int) -> Played:
    """One null world: a parent order every few seconds, replayed by each action."""
    start_ns = parameters.source.start_ns
    first_ns = start_ns + 2 * MEMORY_S * SECOND_NS
    last_ns = first_ns + round(HOURS * HOUR_NS)
    null = replace(World.of(parameters, ASSET), seed=parameters.seed + 1000 * (world + 1))
    market = null.simulate(start_ns, last_ns + HOUR_NS // 15).market()
    decision_ns = np.arange(first_ns, last_ns, EVERY_S * SECOND_NS)
    mid = market.mid_at(decision_ns)
    features = pd.DataFrame(
        {"decision_ns": decision_ns, "mid": mid, "warm": True, "split": "test", **dict.fromkeys(STATE, 0.0)}
    )
    parents = parent_orders(features, parameters, market)
    candidates = candidate_orders(parents, market, ACTIONS)
    replayed = [replay(market, candidates, _under(parameters, queue)) for queue in ({}, *strategies.BOUNDS.values())]
    costs = np.stack([orders[TOTAL].to_numpy(float).reshape(-1, len(ACTIONS)) for orders in replayed])
    minutes = np.sqrt(MEMORY_S / 60) * null.model.volatility_bps
    momentum = (mid / market.mid_at(decision_ns - MEMORY_S * SECOND_NS) - 1) * 1e4 / minutes
    return Played(
        costs, momentum[features["decision_ns"].isin(parents["decision_ns"])], parents["decision_ns"].to_numpy()
    )


def _under(parameters: Parameters, queue: dict[str, Any]) -> Parameters:
    execution = parameters.execution.model_copy(update=queue)
    return parameters.model_copy(update={"execution": execution})


def policies(played: list[Played], world: int, parameters: Parameters) -> pd.DataFrame:
    """Orders of the policy and the references in a world: each reads the momentum of another one."""
    here, claimed = played[world], parameters.hypotheses
    frames = []
    for step, name in enumerate([claimed.policy, *claimed.references], 1):
        action = np.searchsorted(BOUNDS, played[(world + step) % len(played)].momentum[: len(here.momentum)])
        costs = here.costs[:, np.arange(len(action)), action]
        frame = pd.DataFrame({"order_id": np.arange(len(action)), "decision_ns": here.decision_ns[: len(action)]})
        frames.append(frame.assign(asset=ASSET, strategy=name, **dict(zip(QUEUES.values(), costs, strict=True))))
    return pd.concat(frames, ignore_index=True)


def rejections(parameters: Parameters, orders: pd.DataFrame) -> pd.DataFrame:
    """Which tests reject in a world, by edge.

    A constant edge moves estimates and intervals and leaves standard errors as they are, so it is taken off afterwards.
    """
    claimed, evidence, seed = parameters.hypotheses, parameters.evidence, parameters.seed
    judged = registered.judge(orders, claimed, evidence, seed)
    naive = _naive(orders, Comparison(ASSET, claimed.policy, claimed.references[0]), evidence)
    rows = []
    for edge in EDGES_BPS:
        moved = registered.shifted(judged, -edge, claimed.smallest_effect_bps)
        apart = moved["significant"] if edge == 0 else moved["status"] == registered.ESTABLISHED
        rows += [
            ("registered: any of the family", edge, apart.any()),
            ("registered: one hypothesis", edge, apart.iloc[0]),
        ]
        t = (naive["difference"] - edge) / naive["error"]
        rows += [(name, edge, 2 * stats.t.sf(abs(t[name]), naive["degrees"][name]) < claimed.alpha) for name in t.index]
    learned = superiority(orders, [claimed.policy, *claimed.references[1:]], evidence, seed).iloc[0]
    rows.append(("SPA: all against one rule", 0.0, learned["p_spa"] < claimed.alpha))
    return pd.DataFrame(rows, columns=["test", "edge_bps", "rejected"])


def _naive(orders: pd.DataFrame, comparison: Comparison, evidence: Evidence) -> pd.DataFrame:
    """One comparison by itself: t of cosines, of means of blocks of a fixed length, of orders as if independent."""
    costs = Costs.of(orders, TOTAL, evidence.block_s)
    difference = costs.difference(comparison)
    alone = testing.tests(costs, [comparison], evidence.model_copy(update={"bootstrap": 1}), 0).iloc[0]
    series = costs.in_bins(ASSET, difference) / costs.in_bins(ASSET).mean()
    means = block_means(series[:, None], BINS_A_BLOCK)[:, 0]
    rows = {
        "one comparison: t of cosines": (difference.mean(), alone["se_bps"], alone["degrees"]),
        f"one comparison: t of means of {evidence.block_s:g} s": (difference.mean(), stats.sem(means), len(means) - 1),
        "one comparison: t of orders as independent": (difference.mean(), stats.sem(difference), len(difference) - 1),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["difference", "error", "degrees"])


if __name__ == "__main__":
    main()
