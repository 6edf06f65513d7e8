"""The pipeline in `smoke`, as a user runs it: through the command, Snakemake and papermill."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hyperdapo import plan
from hyperdapo.params import merge
from smoke import Run, assert_same_numbers, assert_whole

HYPERDAPO = (sys.executable, "-m", "hyperdapo.cli")
REAL = {
    "training": {"algorithms": ["dapo", "dpo"], "seeds": [0]},
    "source": {"from": "2025-09-04T19:46:00Z", "to": "2025-09-04T20:14:00Z"},
}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(smoke: Run, tmp_path) -> None:
    """Killed in the middle of 03, of one asset; a killed training is the matter of test_cluster.py and test_runs.py."""
    other, part = Run(tmp_path, {"assets": ["BTC"]}), ("--until", "03")
    process = other.start(*part)
    deadline = time.monotonic() + 600
    while not list(other.derived.glob("*/features.parquet")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in other.derived.glob("BTC/b*.parquet")}
    assert finished
    other.finish(*part)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished stage was done again"
    assert_same_numbers(smoke.kept.shown, other.shown, plan.units(["BTC"])[:3])


@pytest.mark.slow
def test_an_endpoint_that_is_down_is_one_clear_error(tmp_path) -> None:
    run, extra = Run(tmp_path), tmp_path / "down.yaml"
    extra.write_text(
        yaml.safe_dump(
            {"assets": ["ETH"], "source": {"kind": "tardis", "endpoint": f"http://127.0.0.1:{_free_port()}/v1"}}
        )
    )
    process = run.start("--params", str(extra))
    assert process.wait(300) == 1
    printed = run.printed()
    assert re.search(r"^hyperdapo: 01_download ETH: the endpoint http://127\.0\.0\.1:\d+/v1 is down", printed, re.M)
    assert "Traceback" not in printed.split("hyperdapo: ")[-1]


@pytest.mark.slow
def test_a_stage_before_its_inputs_says_what_makes_them(tmp_path) -> None:
    run = Run(tmp_path)
    command = [*HYPERDAPO, "stage", "03_features", "--profile", "smoke", "--asset", "ETH"]
    done = subprocess.run(command, env=run.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "hyperdapo run --profile smoke --until 02" in done.stderr


@pytest.fixture
def recorded_endpoint(recordings: Path) -> Iterator[str]:
    port = _free_port()
    command = [*HYPERDAPO, "serve-recordings", str(recordings / "hyperliquid"), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1"
    server.terminate()
    server.wait(timeout=30)


@pytest.mark.slow
def test_the_pipeline_runs_on_a_real_recording(recorded_endpoint: str, tmp_path) -> None:
    source = {"kind": "tardis", "endpoint": recorded_endpoint}
    run = Run(tmp_path, merge(REAL, {"assets": ["ETH"], "source": source}))
    run.finish()
    assert_whole(run, 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
