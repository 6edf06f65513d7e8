"""Break the simulator in one place at a time, and see that a test fails: `python tests/mutations.py`."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
KERNEL, SIMULATOR, COSTS, ORDERS, CHILDREN, STRATEGIES = (
    f"lib/hyperdapo/execution/{name}.py"
    for name in ("kernel", "simulator", "costs", "orders", "children", "strategies")
)
MUTATIONS = (
    ("queue: prints do not shorten it", KERNEL, "state.ahead - queue, state.visible", "state.ahead, state.visible"),
    ("queue: cancels count twice", KERNEL, "ahead -= lost * min(", "ahead -= 2 * lost * min("),
    (
        "latency: the way to the exchange is free",
        SIMULATOR,
        "np.where(waits, latest_ns, decision_ns + latency_ns)",
        "np.where(waits, latest_ns, decision_ns)",
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
    ("cancel: it is sent at the deadline", SIMULATOR, "_LEGS = 3", "_LEGS = 0"),
    (
        "clock: the horizon begins with the arrival",
        SIMULATOR,
        "expiry_ns = decision_ns +",
        "expiry_ns = decision_ns + latency_ns +",
    ),
    (
        "clock: who waits is completed too late",
        SIMULATOR,
        "np.maximum(expiry_ns - typical_ns,",
        "np.maximum(expiry_ns,",
    ),
    (
        "clock: a late completion takes the last price",
        ORDERS,
        '_refuse(orders, {"a completion',
        '_refuse(orders[:0], {} and {"a completion',
    ),
    (
        "volume: a print through the price fills all",
        KERNEL,
        "fill = min(state.remaining, size)\n",
        "fill = state.remaining\n",
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
        "while orders[order].post_only and",
        "while False and",
    ),
    ("post-only: one that is refused stays away", KERNEL, "if ns >= orders[order].cancel_ns:", "if True:"),
    (
        "post-only: it is back when the refusal is known",
        KERNEL,
        "ns += orders[order].again_ns",
        "ns += orders[order].answer_ns",
    ),
    ("post-only: it does not know what the feed shows", KERNEL, "events.feed.exchange_ns[shown] > ns", "False"),
    ("crossing: quotes fill, whatever the rule", KERNEL, "if queue.crossing:", "if True:"),
    ("crossing: a quote fills all", KERNEL, "fill = min(state.remaining, fresh - gone)", "fill = state.remaining"),
    ("crossing: the same quote fills again", KERNEL, "fresh = size - state.offered", "fresh = size"),
    (
        "crossing: siblings do not share",
        KERNEL,
        "fill = min(state.remaining, fresh - gone)",
        "fill = min(state.remaining, fresh)",
    ),
    ("crossing: a worse quote is new", KERNEL, "fresh = 0.0\n", "fresh = size\n"),
    (
        "crossing: others stay before us",
        KERNEL,
        "fill, 0.0, 0.0, 0.0, reach, size)",
        "fill, state.ahead, state.visible, 0.0, reach, size)",
    ),
    (
        "spread: against the mid after the fill",
        KERNEL,
        "events.moment[event - 1].best_price[0], events.moment[event - 1]",
        "events.moment[event].best_price[0], events.moment[event]",
    ),
    ("mark-out: from the mid after the fill", COSTS, "events.ns[last], last - 1)", "events.ns[last], last)"),
    (
        "mark-out: takings are shown as fills",
        COSTS,
        '{"maker": (maker_share, events.ns[last], last - 1)',
        '{"maker": (maker_share, taken_ns, met)',
    ),
    ("route: all of it through the queue", KERNEL, "if events.moment[event].kind != PRINT:", "if False:"),
    (
        "quotes: each joins anew",
        CHILDREN,
        'arrivals["resumes"], arrivals["place"] = stays,',
        'arrivals["resumes"], arrivals["place"] = False,',
    ),
    (
        "quotes: the trader knows of a fill at once",
        CHILDREN,
        "standing.latest_ns > seen_ns[:, column]",
        "standing.latest_ns < 0",
    ),
    ("quotes: less than 10 USD are quoted anew", CHILDREN, "| little)", "| False)"),
    (
        "bounds: both are one",
        STRATEGIES,
        '"all behind": {"queue": "risk_averse"}',
        '"all behind": {"queue": "power", "queue_exponent": 0.0}',
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
    files = ["tests/test_simulator.py", "tests/test_strategies.py"]
    command = [sys.executable, "-m", "pytest", *files, "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    failures = [line.split("::", 1)[1] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failures[0].split(" - ")[0] if failures else ""


if __name__ == "__main__":
    raise SystemExit(main())
