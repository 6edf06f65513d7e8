"""The decision service with the tiny model, on loopback.

`serving_load_without_error`: 16 clients of locust ask a service in a process of its own for 60 seconds (or so many as
are given), each without pause: the share of answers that are decisions. How long they took, and how many a second there
were, is told beside it. `serving_batch_16`: seconds of a decision among 16 against those of one alone, on one core, by
turns.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CLIENTS, SECONDS, ROUNDS = 16, 60, 60
ASSET, BATCH, TARGET = "ETH", 16, 3.0
HERE = Path(__file__).parent


def request(lean: float) -> dict[str, Any]:
    """An order of now in a state whose book leans so."""
    from hyperdapo.policy.prompts import FEATURES

    features = {feature.column: 0.25 for feature in FEATURES} | {"book_imbalance": lean}
    features |= {"decision_ns": time.time_ns(), "best_bid": 4300.1, "best_ask": 4300.2}
    side = "buy" if lean > 0 else "sell"
    return {"asset": ASSET, "side": side, "size": 0.5, "objective": "balanced", "features": features}


def prepare() -> Any:
    """The parameters of a run that has an adapter, of random weights: what it decides does not matter here."""
    from hyperdapo.params import load
    from hyperdapo.paths import Paths
    from hyperdapo.policy.language import calibration
    from hyperdapo.policy.models import add_adapter, load_base, save_adapter

    parameters = load("smoke")
    folder = Paths("smoke", ASSET).adapter(parameters.hypotheses.policy, parameters.training.seeds[0])
    base, tokenizer = load_base(parameters.policy)
    save_adapter(add_adapter(base, parameters.policy, seed=0), tokenizer, parameters, folder)
    calibration.write(folder, 1.0, states=0)
    return parameters


@contextmanager
def served(port: int) -> Iterator[str]:
    """The address of the service, in a process of its own."""
    command = [sys.executable, "-m", "hyperdapo.cli", "serve", "--run", "smoke", "--asset", ASSET, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
    finally:
        process.kill()
        process.communicate()


def load(address: str, seconds: int) -> tuple[int, int]:
    """How many requests of locust were answered, and how many there were; the rest is told."""
    script, options = str(HERE / "_serving_load.py"), ["--headless", "--json", "--users", str(CLIENTS)]
    options += ["--spawn-rate", str(CLIENTS), "--run-time", f"{seconds}s", "--host", address]
    command = [sys.executable, "-m", "locust", "-f", script, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    (told,) = json.loads(done.stdout)
    times = sorted((float(ms), count) for ms, count in told["response_times"].items())
    count, failed = told["num_requests"], told["num_failures"]
    p50, p99 = (_quantile(times, count, share) for share in (0.5, 0.99))
    print(f"serving: {count:,} requests of {CLIENTS} clients in {seconds} s, {failed} failed", file=sys.stderr)
    print(f"serving: {count / seconds:.0f} a second, p50 {p50:.0f} ms, p99 {p99:.0f} ms", file=sys.stderr)
    return count - failed, count


def _quantile(times: list[tuple[float, int]], count: int, share: float) -> float:
    seen = 0
    for ms, answers in times:
        seen += answers
        if seen >= share * count:
            return ms
    return float("nan")


def batches(parameters: Any) -> tuple[float, float]:
    """Seconds of one decision among `BATCH`, and of one alone: the medians of rounds that take turns."""
    import numpy as np
    import torch
    from _timing import one_core

    from hyperdapo.serving.desk import Desk
    from hyperdapo.serving.models import DecideRequest
    from hyperdapo.serving.server import service_of
    from hyperdapo.serving.states import read_state

    one_core()
    torch.set_num_threads(1)
    service = service_of(parameters, [ASSET])
    desk, seconds = Desk(parameters, service.paths), {1: list[float](), BATCH: list[float]()}
    for each in range(ROUNDS):
        for count, taken in seconds.items():
            asked = [DecideRequest.model_validate(request(0.9 * (-1) ** place)) for place in range(count)]
            begun = time.perf_counter()
            states = [read_state(one, parameters, [ASSET], time.time_ns()) for one in asked]
            desk.decide(states, [0.0] * count)
            if each:  # the first warms up
                taken.append((time.perf_counter() - begun) / count)
    service.close()
    alone, among = (float(np.median(seconds[count])) for count in (1, BATCH))
    print(f"serving: {1 / alone:.0f} decisions a second alone, {1 / among:.0f} of {BATCH} together", file=sys.stderr)
    return among, alone


def main() -> None:
    """Print the lines of `benchmarks`."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with TemporaryDirectory() as folder:
        os.environ["HYPERDAPO_DATA"] = folder
        parameters = prepare()
        with served(8019) as address:
            answered, asked = load(address, seconds)
        among, alone = batches(parameters)
    print(f"BENCH serving_load_without_error {answered} {asked} {answered / asked:.6f} 1")
    print(f"BENCH serving_batch_{BATCH} {among:.6f} {alone:.6f} {alone / among:.2f} {TARGET:g}")


if __name__ == "__main__":
    main()
