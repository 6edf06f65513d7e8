"""How often to decide again: what boosted trees save that decide every few seconds, on the test orders of a run.

    python benchmarks/_how_often.py --run real --asset BTC

For each interval the features are computed anew at every multiple of it; the parent orders stay those of the run. The
touch requoted every 10 s is the reference throughout; `touch_s` requotes as often as the trees decide. Each decision is
charged its time, `policy_ms`.
"""

import argparse
from functools import partial

import pandas as pd

from hyperdapo.evidence import metrics
from hyperdapo.execution import children
from hyperdapo.execution.laws import as_measured
from hyperdapo.execution.parents import life_s, parent_orders, touch
from hyperdapo.files import read_json, read_table
from hyperdapo.market.book import Market
from hyperdapo.market.features import features_in_parts
from hyperdapo.params import Parameters, recall
from hyperdapo.paths import Paths
from hyperdapo.sequential import iteration, rivals
from hyperdapo.sequential.rollouts import execute
from hyperdapo.sequential.states import last_known

MENU = ((10, 20.0), (2, 20.0), (5, 20.0), (20, 20.0), (10, 300.0), (10, 1000.0), (2, 300.0))


def changed(parameters: Parameters, every_s: float, policy_ms: float) -> Parameters:
    """The run's parameters with another interval and time of a decision."""
    latency = parameters.execution.latency.model_copy(update={"policy_ms": policy_ms})
    updates = {"features": {"decision_interval_s": every_s}, "policy": {"decide_again_s": every_s}}
    updates["execution"] = {"latency": latency, "requote_s": every_s}
    return parameters.model_copy(
        update={name: getattr(parameters, name).model_copy(update=values) for name, values in updates.items()}
    )


def begun(parameters: Parameters, paths: Paths, features: pd.DataFrame, starts: pd.Series) -> list:
    """The market part by part, and the parent orders of the run that start in each."""
    found = []
    chosen = features[features["decision_ns"].isin(starts)]
    for part, market in Market.in_parts(paths.data, after_s=life_s(parameters.orders)):
        states = chosen[chosen["decision_ns"].between(*part, inclusive="left")]
        if len(states):
            found.append((market, parent_orders(states, parameters, market)))
    return found


def main() -> None:
    """Print one row an interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="real")
    parser.add_argument("--asset", default="BTC")
    asked = parser.parse_args()
    run = recall(asked.run)
    paths = Paths(run.name, asked.asset)
    run = as_measured(run, read_table(paths.data, "laws"))
    split = read_json(paths.data, "split.json")
    starts = read_table(paths.data, "outcomes", ["decision_ns"])["decision_ns"]
    rows = []
    for every_s, policy_ms in MENU:
        parameters = changed(run, every_s, policy_ms)
        features = pd.concat(features_in_parts(paths.data, parameters, split), ignore_index=True)
        parts = partial(begun, parameters, paths, features, starts)
        values = iteration.action_values(parts, features, parameters)
        policy = rivals.greedy(iteration.boosting(last_known(features), values, parameters.seed))
        for market, parents in parts():
            tested = parents[parents["split"] == "test"].reset_index(drop=True)
            if len(tested):
                quote = lambda orders, *_, market=market: touch(market, orders)  # noqa: E731
                done = {"boosting": execute(policy, market, tested, parameters)}
                done["touch"] = children.requote(market, tested, quote, parameters)
                interval = f"{every_s:g} s {policy_ms:g} ms"
                rows += [table.assign(strategy=f"{name} {interval}") for name, table in done.items()]
        orders = metrics.in_blocks(pd.concat(rows), run.evidence.block_s)
        orders["order_id"] = orders["decision_ns"]  # the row of the features differs from interval to interval
        table = metrics.side_by_side(orders, "touch 10 s 20 ms", run.evidence, run.seed)
        print(table.tail(2).to_string(), flush=True)


if __name__ == "__main__":
    main()
