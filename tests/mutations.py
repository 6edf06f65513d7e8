"""Break the simulator in one place at a time, and see that a test fails: `python tests/mutations.py`."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
KERNEL, SIMULATOR, COSTS = (f"lib/hyperdapo/execution/{name}.py" for name in ("kernel", "simulator", "costs"))
MUTATIONS = (
    ("queue: prints do not shorten it", KERNEL, "state.ahead - queue, state.visible", "state.ahead, state.visible"),
    ("queue: cancels count twice", KERNEL, "ahead -= (expected - size) *", "ahead -= 2 * (expected - size) *"),
    (
        "latency: the way to the exchange is free",
        SIMULATOR,
        'arrival_ns = decision_ns + leg_ns("entry", policy_ms)',
        'arrival_ns = decision_ns + 0 * leg_ns("entry", policy_ms)',
    ),
    (
        "fee: maker and taker exchanged",
        COSTS,
        "traded.taken_usd * taker + traded.made_usd * maker",
        "traded.taken_usd * maker + traded.made_usd * taker",
    ),
    ("side: prints of the same side fill", KERNEL, "].aggressor != side:", "].aggressor == side:"),
    (
        "cancel: fills after it count",
        SIMULATOR,
        'last=np.searchsorted(events.ns, life.cancel_ns, side="left")',
        'last=np.searchsorted(events.ns, life.completion_ns, side="left")',
    ),
    (
        "cancel: fills before it lands do not count",
        SIMULATOR,
        'last=np.searchsorted(events.ns, life.cancel_ns, side="left")',
        'last=np.searchsorted(events.ns, life.expiry_ns, side="left")',
    ),
    (
        "volume: a print through the price fills all",
        KERNEL,
        "state.remaining - min(state.remaining, size), 0.0, 0.0",
        "0.0, 0.0, 0.0",
    ),
    (
        "volume: siblings do not share",
        KERNEL,
        "spent[event - base] += before - state.remaining",
        "spent[event - base] += 0.0",
    ),
    (
        "block: takers meet the book before it",
        SIMULATOR,
        "block = np.where((stamp >= ns) & (stamp - ns <= block_ns), stamp, ns)",
        "block = ns",
    ),
    (
        "post-only: one that crosses takes",
        KERNEL,
        "fills[order].rejected = orders[order].post_only and",
        "fills[order].rejected = False and",
    ),
    ("completion: what was given up is taken", KERNEL, "if not orders[order].completes:", "if False:"),
)


def main() -> int:
    """Exit status: 0 when a test failed for every mutation."""
    survived = 0
    for name, path, right, wrong in MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            failed = _first_failure(Path(folder), path, right, wrong)
        survived += not failed
        print(f"{'killed  ' if failed else 'SURVIVED'}  {name}  {failed}", flush=True)
    return int(survived > 0)


def _first_failure(folder: Path, path: str, right: str, wrong: str) -> str:
    for name in ("lib", "tests", "params"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    text = (folder / path).read_text()
    assert text.count(right) == 1, f"{path} has not one {right!r}"
    (folder / path).write_text(text.replace(right, wrong))
    environment = os.environ | {"PYTHONPATH": str(folder / "lib"), "NUMBA_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "pytest", "tests/test_simulator.py", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    failures = [line.split("::", 1)[1] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failures[0].split(" - ")[0] if failures else ""


if __name__ == "__main__":
    raise SystemExit(main())
