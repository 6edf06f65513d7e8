"""Peak memory of stages 01-04 and 08 over two days of BTC and over twenty: it must not grow with the span.

All messages of a synthetic BTC, a decision a minute (`_days`), each stage in a process of its own. `ours` and `peer`
are bytes here: `memory_STAGE_20_days` is the peak of twenty days against that of two; `memory_3_gb` is the largest of
all against 3 GB. 01-03 may grow by 10 %. 04 and 08 hold the features, outcomes and orders of all decision times at
once, which are a row each and not a message each: they may grow by `A_ROW` bytes for each decision more. About 15
minutes on one core.
"""

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from _days import STAGES, served

DAYS, ALLOWED_GROWTH, ALLOWED_BYTES = (2, 20), 1.1, 3e9
A_ROW, INTERVAL_S, DECISIONS_A_DAY = 8_000, 60, 1440


def peak_bytes(stage: str, days: int, data: str, endpoint: str) -> int:
    """The largest that the process of a stage became."""
    script = os.path.join(os.path.dirname(__file__), "_days.py")
    command = [sys.executable, script, "run", stage, str(days), str(INTERVAL_S), data, endpoint]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


peaks: dict[int, dict[str, int]] = {}
with served(1) as endpoint:
    for days in DAYS:
        with TemporaryDirectory() as data:
            peaks[days] = {stage: peak_bytes(stage, days, data, endpoint) for stage in STAGES}
            print(f"{days} days: {peaks[days]}", file=sys.stderr, flush=True)
for stage, many in peaks[DAYS[1]].items():
    few = peaks[DAYS[0]][stage]
    rows = A_ROW * DECISIONS_A_DAY * (DAYS[1] - DAYS[0]) if stage in ("04", "08") else 0
    print(f"BENCH memory_{stage}_20_days {many} {few} {(ALLOWED_GROWTH * few + rows) / many:.3f} 1", flush=True)
largest = max(peaks[DAYS[1]].values())
print(f"BENCH memory_3_gb {largest} {ALLOWED_BYTES:.0f} {ALLOWED_BYTES / largest:.2f} 1", flush=True)
