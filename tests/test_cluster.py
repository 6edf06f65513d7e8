"""The workflow on a cluster: a real SLURM of one node on loopback, and what the jobs ask of it."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import yaml

import slurm
from hyperdapo import plan
from hyperdapo.errors import ParameterError
from hyperdapo.params import load
from hyperdapo.paths import GENERALIST, PROFILES
from hyperdapo.policy import training
from hyperdapo.workflow import run
from planted import same_curve
from smoke import Run

FEW = {"assets": ["BTC"], "training": {"algorithms": ["dapo", "dpo"], "seeds": [0]}}
QUICK = {
    "slurm-init-seconds-before-status-checks": 1,
    "slurm-status-command": "squeue",
    "latency-wait": 10,
    "retries": 0,
}
SET_THREADS = ["training_run=1", "train=1", "convergence=1", "inference=1"]


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    if absent := slurm.missing():
        pytest.skip(f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge")
    if " " in sys.executable:
        pytest.skip(f"a blank in {sys.executable}: see test_a_path_with_a_blank_is_refused")
    if find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("no snakemake-executor-plugin-slurm: make setup")
    with TemporaryDirectory() as folder, slurm.cluster(Path(folder)) as environment:  # short: it holds sockets
        yield environment


def tables(folder: Path) -> dict[str, bytes]:
    """The bytes of every table and adapter of a run."""
    found = sorted(path for ending in ("parquet", "safetensors") for path in folder.rglob(f"*.{ending}"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def logs(folder: Path) -> dict[str, pd.DataFrame]:
    found = sorted(folder.glob("models/**/seed_0/training_log.csv"))
    return {str(path.relative_to(folder)): pd.read_csv(path) for path in found}


@pytest.mark.slow
@pytest.mark.timeout(1500)  # Snakemake asks SLURM less and less often for what a job does
def test_a_killed_job_and_the_same_command_again_end_as_a_run_without_a_cluster(
    cluster, smoke: Run, tmp_path: Path
) -> None:
    """Two trainings of one asset, beside the run that has them too; what is before them is taken over from there."""
    quick = tmp_path / "quick"
    quick.mkdir()
    settings = yaml.safe_load((PROFILES / "slurm" / "config.yaml").read_text()) | QUICK | {"set-threads": SET_THREADS}
    (quick / "config.yaml").write_text(yaml.safe_dump(settings))

    spread, part = Run(tmp_path / "spread", FEW, cluster), ("--until", "05", "--workflow-profile", str(quick))
    trained = shutil.ignore_patterns("models", "05_train.json")  # is done here again
    shutil.copytree(smoke.kept.data, spread.data, copy_function=os.link, ignore=trained)
    first = spread.start(*part)
    killed = _first(lambda: _training(cluster, spread.derived), first, spread)
    subprocess.run(["scancel", "--signal=KILL", "--full", killed], env=os.environ | cluster, check=True)
    assert first.wait() == 1, "the killed job is a failure of the run"
    assert list(spread.derived.glob("runs/BTC/*/seed_0")), "what the killed training left is kept"
    spread.finish(*part)
    assert list(spread.data.glob(".snakemake/slurm_logs/rule_training_run")), "the trainings were jobs of the cluster"

    one, other = tables(spread.derived), tables(smoke.kept.derived)
    assert len(one) > 12 and one.keys() <= other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    ours, theirs = logs(spread.derived), logs(smoke.kept.derived)
    assert len(ours) == 3, "two algorithms, and the one that decides again"
    for name, log in ours.items():
        same_curve(log, theirs[name])


def _training(cluster: dict[str, str], folder: Path) -> str | None:
    """The number of a job that is in the middle of a training: it has left something and is not done."""
    begun = list(folder.glob("runs/BTC/*/seed_0/run.sha256"))
    running = {name: number for name, number in slurm.jobs(cluster).items() if name.startswith("rule_training_run")}
    names = {path.parents[1].name for path in begun}
    return next((number for name, number in running.items() if any(f"_{part}_" in f"{name}_" for part in names)), None)


def _first(find: Callable[[], str | None], process: subprocess.Popen, place: Run) -> str:
    deadline = time.monotonic() + 400
    while (found := find()) is None:
        assert process.poll() is None and time.monotonic() < deadline, place.printed()[-6000:]
        time.sleep(0.1)
    return found


def asked(folder: Path, options: list[str], config: dict[str, str], profile: str, **overrides) -> dict[str, list[dict]]:
    """Threads and resources of every job that Snakemake would run in an empty place, by rule."""
    parameters = load(profile, overrides)
    command = run.snakemake(parameters, overrides, list(plan.STAGES), *options, "--dry-run", config=config)
    command.remove("rules")  # not quiet about them
    where = {"HYPERDAPO_DATA": str(folder / "data"), "HYPERDAPO_OUTPUTS": str(folder / "outputs")}
    (folder / "data").mkdir(exist_ok=True)
    command[command.index("--directory") + 1] = str(folder / "data")
    done = subprocess.run(command, env=os.environ | where, capture_output=True, text=True, check=True)
    found: dict[str, list[dict]] = {}
    for block in re.split(r"^\[", done.stdout, flags=re.M):
        rule, text = re.search(r"^rule (\w+):\n    (?:input|output)", block, re.M), block
        if rule is None:
            continue
        resources = dict(re.findall(r"(runtime|mem_mb|gpu)=(\d+)", text))
        threads = re.search(r"threads: (\d+)", text)
        known = {name: int(value) for name, value in resources.items()}
        found.setdefault(rule[1], []).append(known | {"threads": int(threads[1]) if threads else 1})
    found.pop("all", None)
    assert set(found) - {"training_run"} == {name for stage in plan.STAGES for name in plan.rules(stage)}, done.stdout
    return found


MODEL_RULES = {"train", "convergence", "inference"}


@pytest.mark.slow
def test_every_job_asks_for_time_and_memory_and_none_for_a_gpu_on_cpus(tmp_path: Path) -> None:
    found = asked(tmp_path, ["--cores", "4"], {"each_run": "1"}, "smoke")
    for rule, wanted in found.items():
        assert all(job["runtime"] >= 15 and job["mem_mb"] >= 2000 and job["gpu"] == 0 for job in wanted), rule
    runs = len(load("smoke").training.algorithms) * len(load("smoke").training.seeds)
    assert len(found["training_run"]) == 2 * runs + len(load("smoke").training.seeds), "a training is a job"


@pytest.mark.slow
def test_a_model_in_four_bits_asks_for_a_gpu_and_a_training_for_one_a_process(tmp_path: Path) -> None:
    changes = {"assets": ["BTC"], "training": {"processes": 2}}
    found = asked(tmp_path, ["--cores", "4"], {"each_run": "1"}, "thesis", **changes)
    wanted = {rule: {job["gpu"] for job in jobs} for rule, jobs in found.items()}
    one = {rule: {1} for rule in sorted(MODEL_RULES)}
    assert wanted == {rule: {0} for rule in wanted} | one | {"training_run": {2}}
    assert max(job["runtime"] for jobs in found.values() for job in jobs) <= 2 * 24 * 60


@pytest.mark.slow
def test_here_an_asset_is_one_job_and_cores_and_gpus_are_shared_out(tmp_path: Path, monkeypatch) -> None:
    seen = [run.gpus.Gpu("0", "GPU-0"), run.gpus.Gpu("1", "GPU-1")]
    monkeypatch.setattr(run.gpus, "visible", lambda: seen)
    options, config = run.here(5)
    assert "gpu=2" in options
    found = asked(tmp_path, options, config, "smoke")
    assert "training_run" not in found and len(found["train"]) == 2
    assert {rule for rule, jobs in found.items() if any(job["gpu"] for job in jobs)} == MODEL_RULES
    across = {rule for stage in plan.ACROSS_ASSETS for rule in plan.rules(stage)}
    assert all({job["threads"] for job in jobs} == ({5} if rule in across else {2}) for rule, jobs in found.items())


def test_a_path_with_a_blank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/home/an examiner/.venv/bin/python")
    with pytest.raises(ParameterError, match=r"/home/an examiner/.* has a blank in its path"):
        run.cluster("slurm")


def test_a_workflow_profile_is_a_name_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    assert run.cluster("slurm")[0] == ["--workflow-profile", str(PROFILES / "slurm")]
    assert yaml.safe_load((PROFILES / "slurm" / "config.yaml").read_text())["executor"] == "slurm"
    (tmp_path / "config.yaml").write_text("executor: slurm\n")
    assert run.cluster(str(tmp_path))[0] == ["--workflow-profile", str(tmp_path)]
    with pytest.raises(ParameterError, match=r"no workflow profile 'slrum' .did you mean 'slurm'.*config\.yaml"):
        run.cluster("slrum")


def test_a_job_has_the_runs_that_it_names(capsys: pytest.CaptureFixture) -> None:
    parameters = load("smoke", {"training": {"algorithms": ["dapo", "dpo"]}})
    assert training.runs_of(parameters, "BTC") == [("dapo", 0), ("dapo", 1), ("dpo", 0), ("dpo", 1)]
    assert training.runs_of(parameters, "BTC", "dpo", 1) == [("dpo", 1)]
    assert training.runs_of(parameters, GENERALIST) == [("dapo", 0), ("dapo", 1)]
    for arguments, message in [
        (("BTX",), "did you mean 'BTC'"),
        (("BTC", "dop"), "no algorithm 'dop' .did you mean 'dpo'"),
        (("BTC", "dpo", 7), r"no seed 7; training\.seeds has \[0, 1\]"),
        ((GENERALIST, "dpo"), "no algorithm 'dpo'"),
    ]:
        with pytest.raises(ParameterError, match=message):
            training.runs_of(parameters, *arguments)
