"""Peak memory of stages 01-04 and 08, each in a process of its own: it must not grow with the span.

`ours` and `peer` are bytes here. `memory_STAGE_20_days` is the peak of twenty days against that of two, on an eighth of
the messages of a synthetic BTC and a decision a minute (`_days`). It may grow by 10 %, and by the bytes of `A_ROW` for
each decision more: 03 keeps a few columns of all decisions, 04 and 08 their features, outcomes and orders; none keeps
anything of a message. `memory_3_gb` is the largest stage of one day with all its messages, a decision every 10
s, against 3 GB. About 15 minutes on 2 cores, mostly for writing the messages down.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from _days import STAGES, served

DAYS, EVERY, INTERVAL_S = (2, 20), 8, 60
ALLOWED_GROWTH, ALLOWED_BYTES = 1.1, 3e9
A_ROW = {"01": 0, "02": 0, "03": 1_000, "04": 8_000, "08": 8_000}


def peaks(days: int, every: int, interval_s: int) -> dict[str, int]:
    """The largest that the process of each stage became."""
    peaks_by_stage = {}
    with served(every) as endpoint, TemporaryDirectory() as data:
        for stage in STAGES:
            script = Path(__file__).with_name("_days.py")
            command = [sys.executable, script, "run", stage, str(days), str(interval_s), data, endpoint]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks_by_stage[stage] = int(done.stdout)
            print(f"{days:3} days, {stage}: {peaks_by_stage[stage] / 1e6:.0f} MB", file=sys.stderr, flush=True)
    return peaks_by_stage


few, many = (peaks(days, EVERY, INTERVAL_S) for days in DAYS)
for stage, peak in many.items():
    rows = (DAYS[1] - DAYS[0]) * 86_400 // INTERVAL_S
    allowed = ALLOWED_GROWTH * few[stage] + A_ROW[stage] * rows
    print(f"BENCH memory_{stage}_20_days {peak} {few[stage]} {allowed / peak:.3f} 1", flush=True)
largest = max(peaks(1, 1, 10).values())
print(f"BENCH memory_3_gb {largest} {ALLOWED_BYTES:.0f} {ALLOWED_BYTES / largest:.2f} 1", flush=True)
