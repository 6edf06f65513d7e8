"""CPU time of stages 01-04 and 08 over 2, 8 and 32 days of a thin market: it must be linear in the days.

A twentieth of the messages of a synthetic BTC, a decision every 5 minutes (`_days`). `growth_STAGE_32_days` is a day
among 32 (`ours`) against a day among 8 (`peer`), both in seconds of CPU; it may cost 10 % more. A day among 2 is
printed too: it bears what a stage does once. Wall time stands in the log. A few minutes on one core.
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from _days import STAGES, parameters, served
from _timing import one_core

EVERY, INTERVAL_S, DAYS, ALLOWED = 20, 300.0, (2, 8, 32), 1.1

os.environ.setdefault("OMP_NUM_THREADS", "1")


def seconds(days: int, endpoint: str) -> dict[str, float]:
    """CPU seconds of each stage, one after the other in a folder of their own."""
    spent = {}
    with TemporaryDirectory() as folder:
        os.environ["HYPERDAPO_DATA"] = folder
        for stage, run in STAGES.items():
            wall, begun = time.perf_counter(), time.process_time()
            run(parameters(endpoint, days, INTERVAL_S))
            spent[stage] = time.process_time() - begun
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
            print(
                f"{days:3} days, {stage}: {spent[stage] / days:.3f} s of CPU a day, "
                f"{(time.perf_counter() - wall) / days:.3f} s wall a day, {size / 1e6:.0f} MB of tables",
                file=sys.stderr,
                flush=True,
            )
    return spent


with served(EVERY) as endpoint:
    one_core()
    seconds(1, endpoint)  # compiles
    a_day = {days: {stage: spent / days for stage, spent in seconds(days, endpoint).items()} for days in DAYS}
for stage in STAGES:
    _, few, many = (a_day[days][stage] for days in DAYS)
    print(f"BENCH growth_{stage}_32_days {many:.4f} {few:.4f} {ALLOWED * few / many:.3f} 1", flush=True)
