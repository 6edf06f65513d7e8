"""Peak memory of stages 01-03, notebooks and all, over two days of BTC and over twenty: it must not grow with the span.

`ours` and `peer` are bytes here: `memory_20_days` is the peak of twenty days against that of two, which it may exceed
by 10 %; `memory_3_gb` is the same peak against 3 GB. Of all processes of a run the largest counts. About 20 minutes on
2 cores, mostly for playing the synthetic exchange; the folder of the run is given back.
"""

import os
import resource
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

ALLOWED_GROWTH, ALLOWED_BYTES = 1.1, 3e9
START = datetime(2025, 8, 1, tzinfo=UTC)


def peak_bytes(days: int) -> int:
    """The largest process of a run over so many days; the largest of all runs so far, so begin with the short one."""
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder, "span.yaml")
        span = {"from": START.isoformat(), "to": (START + timedelta(days=days)).isoformat()}
        overlay.write_text(yaml.safe_dump({"source": span}))
        command = [sys.executable, "-m", "hyperdapo.cli", "run", "--asset", "BTC", "--until", "03"]
        places = {"HYPERDAPO_DATA": f"{folder}/data", "HYPERDAPO_OUTPUTS": f"{folder}/outputs"}
        log = Path(folder, "log")
        with log.open("w") as file:
            streams = {"stdout": file, "stderr": subprocess.STDOUT}
            done = subprocess.run([*command, "--params", overlay], env=os.environ | places, check=False, **streams)
        if done.returncode:
            sys.exit(log.read_text())
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


few, many = peak_bytes(2), peak_bytes(20)
print(f"BENCH memory_20_days {many} {few} {ALLOWED_GROWTH * few / many:.3f} 1", flush=True)
print(f"BENCH memory_3_gb {many} {ALLOWED_BYTES:.0f} {ALLOWED_BYTES / many:.2f} 1", flush=True)
