"""Days of one market behind the replay protocol, and the work of stages 01-04 and 08 on them by library functions.

The market is one hour of the synthetic BTC (sample parameters), each so many of its messages, played again every hour:
made once, it costs little, and every day is as heavy as any other. It is served by a process of its own, so that
neither time nor memory of the stages holds any of it. Left out of the stages is what does not grow with the span:
figures, the study of weights in 04, the probes of 08.

python benchmarks/_days.py serve EVERY           prints the endpoint, and serves until it is killed
python benchmarks/_days.py run STAGE DAYS SECONDS DATA ENDPOINT    runs one stage, with a decision every so many
                                                seconds, and prints its peak memory in bytes
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import pandas as pd
from _synthetic import ASSET, tape

from hyperdapo.execution import laws
from hyperdapo.execution.laws import as_measured
from hyperdapo.execution.parents import best_fixed_action, evenly_spaced, life_s, parent_orders, replay_candidates
from hyperdapo.execution.queue_fit import fit_queue, observe_makers
from hyperdapo.execution.strategies import LOOKS_BACK_S, backtest, sensitivity, train
from hyperdapo.feed import download
from hyperdapo.feed.clean import preprocess
from hyperdapo.files import read_json, read_table, write_table
from hyperdapo.market.book import Market
from hyperdapo.market.columns import select
from hyperdapo.market.features import features_in_parts
from hyperdapo.market.quality import daily_volume
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths
from hyperdapo.policy.prompts import encode_states
from hyperdapo.policy.rewards import with_rewards
from hyperdapo.policy.states import build_pairs
from hyperdapo.synthetic.replay_server import Filters, serve
from hyperdapo.synthetic.tape import Tape
from hyperdapo.times import HOUR_NS

START = datetime(2025, 8, 1, tzinfo=UTC)
PATHS = Paths("sample", ASSET)


class Repeated:
    """Every `every`-th message of one hour, again in each hour."""

    def __init__(self, every: int) -> None:
        hour, part = tape(hours=1), slice(None, None, every)
        self.tape = replace(
            hour,
            book=select(hour.book, part),
            bbo=select(hour.bbo, part),
            trades=select(hour.trades, slice(hour.backfilled, None, every)),
            context=select(hour.context, part),
            book_orders=hour.book_orders[part],
            bbo_orders=hour.bbo_orders[part],
            backfilled=0,
        )

    def lines(self, filters: Filters | None, from_ns: int, to_ns: int) -> bytes:
        """See `Slices.lines`."""
        hours = range(from_ns // HOUR_NS * HOUR_NS, to_ns, HOUR_NS)
        return b"".join(self._shifted(hour).lines(set(filters or {}), from_ns, to_ns) for hour in hours)

    @lru_cache(maxsize=2)  # noqa: B019
    def _shifted(self, hour_ns: int) -> Tape:
        made, move = self.tape, hour_ns - self.tape.covers[0]
        moved = {
            name: replace(
                getattr(made, name),
                **{
                    stamp: np.minimum(getattr(getattr(made, name), stamp) + move, hour_ns + HOUR_NS - 1)
                    for stamp in ("exchange_ns", "local_ns")
                    if hasattr(getattr(made, name), stamp)
                },
            )
            for name in ("book", "bbo", "trades", "context")
        }
        moved["trades"] = replace(moved["trades"], tid=made.trades.tid + hour_ns // HOUR_NS * 10**8)
        return replace(made, covers=(hour_ns, hour_ns + HOUR_NS), **moved)


@contextmanager
def served(every: int) -> Iterator[str]:
    """The endpoint of such a market while the block runs."""
    process = subprocess.Popen([sys.executable, __file__, "serve", str(every)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def parameters(endpoint: str, days: int, interval_s: float) -> Parameters:
    """Those of `sample` for so many days of this market."""
    span = {"from": START.isoformat(), "to": (START + timedelta(days=days)).isoformat()}
    source = {"kind": "tardis", "endpoint": endpoint} | span
    return load("sample", {"assets": [ASSET], "source": source, "features": {"decision_interval_s": interval_s}})


def receive(wanted: Parameters) -> None:
    """01."""
    download.download(wanted, ASSET, PATHS)


def clean(wanted: Parameters) -> None:
    """02."""
    preprocess(wanted, ASSET, PATHS)


def features(wanted: Parameters) -> None:
    """03: the features, and the laws with their observations."""
    split, law, horizon_s = read_json(PATHS.data, "split.json"), wanted.laws, wanted.orders.longest_horizon_s
    write_table(features_in_parts(PATHS.data, wanted, split), PATHS.data, "features")
    decision_ns = read_table(PATHS.data, "features", ["decision_ns"])["decision_ns"]
    orders, reaches, makers = laws.Thinned(), [], []
    for part, market in Market.in_parts(PATHS.data, after_s=max(horizon_s, law.impact_after_s)):
        orders.add(laws.aggressive_orders(market, *part, law.impact_after_s))
        instants = decision_ns[decision_ns.between(*part, inclusive="left")].to_numpy()
        reaches.append(laws.reaches(market, instants, horizon_s))
        makers.append(observe_makers(market, max(part[0], split["train"][0]), min(part[1], split["train"][1])))
    volume = daily_volume(read_table(PATHS.data, "quality", ["volume"]))
    impact = laws.fit_impact(orders.joined(), volume, law.block_s, law.confidence).parameters
    fills = laws.fit_fill_curve(pd.concat(reaches), laws.DISTANCES_BPS, law.block_s, law.confidence).parameters
    queue = fit_queue(pd.concat(makers), law.block_s, law.confidence, wanted.seed)
    exponent = ("queue_exponent", queue.exponent, queue.exponent_low, queue.exponent_high, None)
    measured = [impact, fills, pd.DataFrame([exponent], columns=impact.columns)]
    write_table(pd.concat(measured, ignore_index=True), PATHS.data, "laws")


def _parts(wanted: Parameters, states: pd.DataFrame) -> Iterator[tuple[Market, pd.DataFrame]]:
    """Each part of the market in which there are states, and these."""
    for part, market in Market.in_parts(PATHS.data, LOOKS_BACK_S, life_s(wanted.orders)):
        inside = states[states["decision_ns"].between(*part, inclusive="left")]
        if len(inside):
            yield market, inside


def pairs(wanted: Parameters) -> None:
    """04: every candidate replayed, the prompts and the pairs."""
    known = read_table(PATHS.data, "features")
    assumed, parents, outcomes = as_measured(wanted, read_table(PATHS.data, "laws")), [], []
    for market, states in _parts(wanted, evenly_spaced(known, wanted.orders.most)):
        parents.append(parent_orders(states, assumed, market))
        outcomes.append(with_rewards(replay_candidates(market, parents[-1], assumed), wanted.orders))
    together, replayed = (pd.concat(frames, ignore_index=True) for frames in (parents, outcomes))
    actions = wanted.policy.actions
    prompts = pd.Series(encode_states(known, together, actions, wanted.policy.prompt_style), index=together["order_id"])
    write_table(replayed, PATHS.data, "outcomes")
    write_table(build_pairs(replayed, prompts, actions, wanted.seed), PATHS.data, "pairs")


def replayed(wanted: Parameters) -> None:
    """08: every strategy and every assumption on the test split; the one policy chooses the best fixed offset."""
    known, outcomes, laws = (read_table(PATHS.data, name) for name in ("features", "outcomes", "laws"))
    assumed = as_measured(wanted, laws)
    tests = outcomes[outcomes["split"] == "test"].drop_duplicates("order_id")
    chosen = tests[["order_id"]].assign(policy="fixed", seed=0, action=best_fixed_action(outcomes))
    trained = train(Market.in_parts(PATHS.data), outcomes)
    executed, scenarios = [], []
    for market, states in _parts(wanted, known.loc[tests["order_id"]]):
        parents = parent_orders(states, assumed, market)
        executed.append(backtest(market, parents, trained, outcomes, chosen, assumed))
        scenarios.append(sensitivity(market, parents, trained, outcomes, chosen, assumed))
    write_table(pd.concat(executed, ignore_index=True), PATHS.data, "orders")


STAGES = {"01": receive, "02": clean, "03": features, "04": pairs, "08": replayed}


def main() -> None:
    """Serve, or run one stage."""
    if sys.argv[1] == "serve":
        with serve(Repeated(int(sys.argv[2]))) as endpoint:
            print(endpoint, flush=True)
            while True:
                time.sleep(3600)
    stage, days, interval_s, data, endpoint = sys.argv[2:]
    os.environ["HYPERDAPO_DATA"] = data
    STAGES[stage](parameters(endpoint, int(days), float(interval_s)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
