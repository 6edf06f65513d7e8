"""A run that one can follow and stop: what it prints, how it ends, and who may run beside it."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote

import nbformat
import psutil
import pytest

from conftest import REPOSITORY
from hyperdapo import processes, stages
from hyperdapo.errors import HyperdapoError
from hyperdapo.evidence import provenance
from hyperdapo.files import own_ending, sweep
from hyperdapo.params import load
from hyperdapo.paths import Paths
from hyperdapo.stages import record
from hyperdapo.workflow import engine, locks, progress, rendering
from hyperdapo.workflow.stale import shown_with, stale

NO_PROCESS = 2**30  # above what any kernel gives out

# A workflow whose jobs are short, and the command that runs it as `hyperdapo run` does.
SNAKEFILE = """
rule all:
    input: "fast.txt", "slow.txt"

rule fast:
    output: "fast.txt"
    shell: "echo made > {output}"

rule slow:
    output: "slow.txt"
    shell: "exec {sys_executable} {job} {output}"
"""
JOB = """
import os, subprocess, sys
from pathlib import Path
from hyperdapo import processes
processes.die_with_parent()
kernel = [sys.executable, "-m", "hyperdapo.processes", sys.executable, "-c", "import time; time.sleep(600)"]
kernels = [subprocess.Popen(kernel, start_new_session=True) for _ in range(2)]
Path("started").write_text("")
kernels[0].wait()
"""
RUNNER = """
import sys
from pathlib import Path
from hyperdapo import processes
from hyperdapo.workflow import engine
def listen(event):
    if event: print(event, flush=True)
try:
    arguments = ["--snakefile", "Snakefile", "--cores", "2", "--nolock"]
    sys.exit(engine.run(arguments, Path("run.log"), listen))
except processes.Stopped as stopped:
    sys.exit(128 + stopped.number)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen]]:
    """Starts such a run; what it may leave is ended after the test."""
    python, job = quote(sys.executable), quote(str(tmp_path / "job.py"))
    text = SNAKEFILE.replace("{sys_executable}", python).replace("{job}", job)
    (tmp_path / "Snakefile").write_text(text)
    (tmp_path / "job.py").write_text(JOB)
    mine = f"test-{os.getpid()}-{time.monotonic()}"

    def run() -> subprocess.Popen:
        command = [sys.executable, "-c", RUNNER]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY / "lib"), "STARTED_BY": mine},
            stdout=(tmp_path / "printed").open("wb"),
            start_new_session=True,
        )
        _wait(lambda: (tmp_path / "started").exists())
        return process

    run.living = lambda: _with(mine)  # type: ignore[attr-defined]
    yield run
    for process in _with(mine):
        process.kill()


def _with(value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STARTED_BY") == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _wait(ready: Callable[[], bool], within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while not ready():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_all_that_a_run_started(start, number: signal.Signals) -> None:
    process = start()
    _wait(lambda: len(start.living()) >= 5)  # the run, Snakemake, a job and its two kernels
    process.send_signal(number)
    assert process.wait(40) == (-number if number == signal.SIGKILL else 128 + number)
    if number == signal.SIGKILL:
        _wait(lambda: not start.living(), within_s=15)
    assert not start.living()


def test_nothing_lives_on_when_the_workflow_itself_is_killed(start) -> None:
    process = start()
    (driver,) = [
        child for child in psutil.Process(process.pid).children() if "hyperdapo.workflow.engine" in child.cmdline()
    ]
    driver.kill()
    assert process.wait(40) != 0 and not start.living()


def test_events_of_a_workflow_are_told(start, tmp_path: Path) -> None:
    process = start()
    _wait(lambda: "job_finished" in (tmp_path / "printed").read_text())
    process.terminate()
    process.wait(40)
    printed = (tmp_path / "printed").read_text()
    (stats,) = re.findall(r"'stats': \{(.*?)\}", printed)
    assert sorted(stats.split(", ")) == ["'all': 1", "'fast': 1", "'slow': 1", "'total': 3"]
    assert printed.index("'event': 'job_info'") < printed.index("'event': 'job_finished'")


# Locks


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


@pytest.mark.parametrize(("variable", "other"), [("HYPERDAPO_OUTPUTS", "data"), ("HYPERDAPO_DATA", "outputs")])
def test_two_runs_share_neither_data_nor_outputs(folders, monkeypatch, variable: str, other: str) -> None:
    with locks.run_lock():
        monkeypatch.setenv(variable, str(folders / "elsewhere"))
        says = rf"at work in .*{other}: PID {os.getpid()} on {re.escape(platform.node())}, since \d{{4}}-"
        with pytest.raises(HyperdapoError, match=says), locks.run_lock():
            pass
        monkeypatch.setenv(variable, str(folders / "elsewhere"))
        monkeypatch.setenv(
            "HYPERDAPO_DATA" if variable == "HYPERDAPO_OUTPUTS" else "HYPERDAPO_OUTPUTS", str(folders / "third")
        )
        with locks.run_lock():
            pass


def test_a_run_waits_for_the_last_processes_of_a_killed_one(folders) -> None:
    hold = "import os, time; from hyperdapo.workflow import locks; lock = locks.run_lock(); fds = lock.__enter__()\n"
    hold += "os.fork() or (time.sleep(2), os._exit(0)); print(flush=True); os._exit(0)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "lib")}
    subprocess.run([sys.executable, "-c", hold], env=environment, stdout=subprocess.DEVNULL, check=True)
    begun = time.monotonic()
    with locks.run_lock():
        assert time.monotonic() - begun > 0.5, "its child held the lock"


def test_a_data_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(HyperdapoError, match=r"cannot write into .*set HYPERDAPO_DATA"), locks.run_lock():
        pass


def test_only_what_is_left_behind_is_swept(tmp_path: Path) -> None:
    here, old = platform.node(), time.time() - 2 * 86400
    names = {
        f".a{own_ending()}": True,
        f".b.{NO_PROCESS}@{here}.unconfirmed": False,
        f".c.{NO_PROCESS}@another-host.unconfirmed": True,
        f".d.{os.getpid()}@old-host.unconfirmed": False,
        "00.json01ab.unconfirmed": False,
    }
    for name in names:
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / f".d.{os.getpid()}@old-host.unconfirmed", (old, old))
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}


# What is printed


def _events(count: int) -> Iterator[engine.Event]:
    yield {"event": "run_info", "stats": {"all": 1, "train": count, "total": count + 1}}
    for number in range(count):
        output = [f"/x/05_train_A{number}.ipynb"]
        yield {
            "event": "job_info",
            "jobid": number,
            "rule_name": "train",
            "wildcards": {"asset": f"A{number}"},
            "output": output,
        }


def test_lines_name_stage_asset_count_and_time_left(folders, capsys, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for expected in ("", ", about 10 min left"):  # a first run, and one that knows what the first took
        shown = progress.Progress("smoke", {"train": "05_train"}, cores=1)
        info, first, second = _events(2)
        shown(info)
        shown(first)
        now[0] += 300
        shown({"event": "job_finished", "job_id": 0})
        shown(second)
        now[0] += 31
        bar = progress.bar_file("smoke", Path(second["output"][0]).stem)
        bar.parent.mkdir(parents=True, exist_ok=True)
        bar.write_text("dapo 1:  30%|###       | 12/40 [00:30<08:20,  2.5s/step]")
        shown(None)
        shown({"event": "job_error", "jobid": 1})
        shown.close()
        bar.unlink()
        lines = [line[10:] for line in capsys.readouterr().out.splitlines()]
        assert lines == [
            f"smoke: 2 to run{expected}",
            f"05_train A0 started (0 of 2 done{expected})",
            "05_train A0 done in 5 min (1 of 2 done, about 5 min left)",
            "05_train A1 started (1 of 2 done, about 5 min left)",
            "1 of 2 done, about 8 min left; 05_train A1 31 s (dapo 1 12/40, 2.5s/step)",
            "05_train A1 failed after 31 s",
        ]
        assert shown.failed == ["05_train A1"]


def test_a_bar_that_has_hardly_begun_says_nothing_of_the_time_left(folders, capsys, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress("smoke", {"train": "05_train"}, cores=1)
    for event in _events(1):
        shown(event)
    now[0] += 31
    bar = progress.bar_file("smoke", "05_train_A0")
    bar.parent.mkdir(parents=True, exist_ok=True)
    bar.write_text("dapo 0:   0%|          | 1/3600 [02:21<141:00:00,  141.00s/step]")
    shown(None)
    shown.close()
    assert "0 of 1 done; 05_train A0 31 s (dapo 0 1/3600, 141.00s/step)" in capsys.readouterr().out


def test_the_bar_of_a_notebook_is_seen_while_it_runs(folders, tmp_path: Path) -> None:
    cell = "from tqdm import tqdm\nimport sys\nbar = tqdm(total=9, desc='BTC day', file=sys.stderr)\nbar.update(4)"
    file = progress.bar_file("smoke", "one")
    notebook = _notebook(tmp_path / "one.ipynb", cell + "\nbar.refresh()")
    rendering.render(notebook, tmp_path / "out.ipynb", {}, rendering.Bar(file))
    assert re.match(r"BTC day: +\d+%\|.*\| \d/9 \[", file.read_text())
    assert "BTC day" not in (tmp_path / "out.ipynb").read_text().replace("desc='BTC day'", "")


# Kernels


def _notebook(path: Path, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.cells[0].metadata.tags = ["parameters"]
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


def test_a_kernel_killed_for_memory_is_named(tmp_path: Path) -> None:
    notebook = _notebook(tmp_path / "one.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(HyperdapoError, match=r"one\.ipynb stopped: .*SIGKILL.*memory ran out.*--cores 1"):
        rendering.render(notebook, tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_kernel_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rendering.START_S >= 600
    monkeypatch.setattr(rendering, "START_S", 1)
    monkeypatch.setattr(rendering, "_KERNEL", ["--IPKernelApp.exec_lines=__import__('time').sleep(30)"])
    with pytest.raises(HyperdapoError, match=r"one\.ipynb could not begin: its kernel did not start in 1 s"):
        rendering.render(_notebook(tmp_path / "one.ipynb", "x = 1"), tmp_path / "out.ipynb", {})


# What was lost


def test_lost_slices_tables_and_renders_are_found(folders) -> None:
    """Of three minutes of a market, until 02; whether a stage stands by its record is the matter of test_stages.py."""
    few = {"features": {"warmup_s": 1, "window_s": 2}, "orders": {"rules": {"balanced": {"horizon_s": 1}}}}
    parameters = load("smoke", few | {"assets": ["BTC"], "source": {"to": "2025-08-01T00:03:00Z"}})
    paths, done = Paths(parameters.name, "BTC"), ["01_download", "02_preprocess"]
    for stage in done:
        stages.compute(stage, parameters, "BTC")
    render = paths.notebooks / "02_preprocess_BTC.ipynb"
    render.parent.mkdir(parents=True)
    render.write_text("{}")
    shown = {"files": {"notebooks/02_preprocess_BTC.ipynb": ""}, "shown_with": shown_with("02_preprocess", parameters)}
    provenance.store(provenance.record_path(paths, "02_preprocess"), shown)

    def reasons() -> dict[str, str]:
        return {path.name: reason for path, reason in stale(parameters, done).items()}

    assert reasons() == {}
    for path, name in (
        (next(paths.cache.rglob("*.zst")), "01_download.json"),
        (paths.data / "bbo.parquet", "02_preprocess.json"),
        (render, "02_preprocess_BTC.json"),
    ):
        whole = path.read_bytes()
        path.write_bytes(b"")
        (damaged,) = reasons().items()
        assert damaged[0] == name and "lost or" in damaged[1]
        path.write_bytes(whole)
    record.place("02_preprocess", paths).write_text("{")
    assert list(reasons()) == ["02_preprocess.json"]


def test_the_mark_of_a_run_finds_its_processes_only() -> None:
    child = subprocess.Popen(["sleep", "600"], env=os.environ | {processes.MARK: "a-mark-of-this-test"})
    other = subprocess.Popen(["sleep", "600"], env=os.environ | {processes.MARK: "another-mark"})
    processes.end("a-mark-of-this-test")
    assert child.wait(5) == -signal.SIGTERM and other.poll() is None
    other.kill()
    other.wait()
