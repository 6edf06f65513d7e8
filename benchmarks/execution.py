"""Orders replayed on a full synthetic BTC day: against hftbacktest 2.4.4, and all candidates of 100,000 states.

- `execution_warm`: the same 10,000 post-only orders of 60 s, both compiled, data in memory, the best of three. Each
  has its events in order: the peer's conversion of its data is not counted, nor is ours, which a market remembers. Ours
  is all of `replay_orders`, with 40 columns of costs. `execution_first` counts it on a market not seen before.
- `execution_cold`: the same in a new process, start to end, compilation included: neither has compiled before (the
  cache of ours is empty; the peer's library compiles each time). `execution_cold_cached`: ours as it is from the second
  process on.
- `execution_100000_states_in_60_s`: K = 6 candidates of 100,000 states against the 60 s that we allow them, on one of
  the 2 cores; `execution_linear`: twice the time of 50,000 states against that of 100,000, at least 0.9;
  `execution_3_gb`: the peak memory of all this (bytes) against 3 GB.
"""

import os
import pickle
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import _hftbacktest
import numpy as np
import pandas as pd
from _peer_orders import joining_orders, ours, peer_arguments, peer_events
from _synthetic import PARAMETERS, market
from _timing import best_of, one_core

from hyperdapo.execution.parents import replay_candidates
from hyperdapo.market.book import Market
from hyperdapo.market.grid import snap_size

ORDERS, STATES = 10_000, 100_000
WARM_TARGET, BUDGET_S, LINEAR, ALLOWED_BYTES = 5.0, 60.0, 0.9, 3e9
HERE = Path(__file__).parent


def states(day: Market, count: int) -> pd.DataFrame:
    """Parent orders of 2,000 USD and 60 s at random instants, in the order of time."""
    rng = np.random.default_rng(0)
    first, last = day.top.local_ns[[0, -1]]
    ns = np.sort(rng.integers(first + 10**9, last - 200 * 10**9, count))
    mid = day.mid_at(ns)
    fixed = {"order_id": np.arange(count), "asset": day.asset, "horizon_s": 60.0, "split": "train"}
    drawn = {"decision_ns": ns, "side": rng.choice([-1, 1], count), "arrival_mid": mid}
    return pd.DataFrame(fixed | drawn | {"size": snap_size(2000 / mid, day.sz_decimals)})


def candidates_s(day: Market, count: int) -> float:
    """Seconds that all candidates of so many states take, from the columns of the day."""
    parents, fresh = states(day, count), replace(day)
    begun = perf_counter()
    replayed = replay_candidates(fresh, parents, PARAMETERS)
    assert len(replayed) == count * len(PARAMETERS.policy.actions)
    return perf_counter() - begun


def process_s(arguments: list[str], cache: Path) -> float:
    """Wall seconds of a process, start to end."""
    begun = perf_counter()
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True, env=environment)
    return perf_counter() - begun


def main() -> None:
    """Print the lines of `benchmarks`."""
    one_core()
    day = market(24)
    candidates_s(day, 100)
    half_s, all_s = candidates_s(day, STATES // 2), candidates_s(day, STATES)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"BENCH execution_100000_states_in_{BUDGET_S:g}_s {all_s:.2f} {BUDGET_S:.2f} {BUDGET_S / all_s:.2f} 1")
    print(f"BENCH execution_linear {all_s:.2f} {2 * half_s:.2f} {2 * half_s / all_s:.2f} {LINEAR:g}")
    print(f"BENCH execution_3_gb {peak} {ALLOWED_BYTES:.0f} {ALLOWED_BYTES / peak:.2f} 1", flush=True)

    orders = joining_orders(day, ORDERS, 2000.0, 5, seed=1)
    first_s, _ = best_of(lambda: ours(replace(day), orders))
    warm_s, mine = best_of(lambda: ours(day, orders))
    with TemporaryDirectory() as temporary:
        folder, cache = Path(temporary), Path(temporary, "cache")
        arguments = peer_arguments(folder, peer_events(day), orders, day)
        peer_s = _hftbacktest.run(*arguments, "3")["seconds"]
        theirs = [str(_hftbacktest.HOME / "bin" / "python"), str(HERE / arguments[0]), *arguments[1:], "0"]
        (folder / "market.pickle").write_bytes(pickle.dumps(replace(day)))
        (folder / "orders.pickle").write_bytes(pickle.dumps(orders))
        own = [sys.executable, str(HERE / "_our_orders.py"), str(folder)]
        cold_s, cached_s, peer_cold_s = process_s(own, cache), process_s(own, cache), process_s(theirs, cache)
    print(f"execution: {len(mine):,} orders, {mine['filled'].mean():.0%} filled", file=sys.stderr)
    print(f"BENCH execution_warm {warm_s:.3f} {peer_s:.3f} {peer_s / warm_s:.2f} {WARM_TARGET:g}")
    print(f"BENCH execution_first {first_s:.3f} {peer_s:.3f} {peer_s / first_s:.2f} 1")
    print(f"BENCH execution_cold {cold_s:.2f} {peer_cold_s:.2f} {peer_cold_s / cold_s:.2f} 1")
    print(f"BENCH execution_cold_cached {cached_s:.2f} {peer_cold_s:.2f} {peer_cold_s / cached_s:.2f} 1")


if __name__ == "__main__":
    main()
