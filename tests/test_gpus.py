"""Which GPUs a process may use and keeps to itself, with a driver's listing as `nvidia-smi -L` prints it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperdapo import gpus
from hyperdapo.errors import HyperdapoError, TrainingError
from hyperdapo.params import load
from hyperdapo.policy import runs

FOUR = [f"GPU {number}: NVIDIA A100-SXM4-40GB (UUID: GPU-{number}{number}{number}{number})" for number in range(4)]
SLICED = [
    FOUR[0],
    "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1111)",
    "  MIG 3g.20gb     Device  0: (UUID: MIG-aaaa)",
    "  MIG 3g.20gb     Device  1: (UUID: MIG-bbbb)",
    "  MIG 1g.5gb      Device  2: (UUID: MIG-GPU-1111/9/0)",
]
HOLD = """
import sys
from hyperdapo import gpus
with gpus.reserved(int(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A host with the GPUs of a listing, and `CUDA_VISIBLE_DEVICES` as given (None: not set)."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)

    def set_up(listing: list[str], named: str | None = None) -> None:
        text = "\n".join(listing)
        driver = tmp_path / "bin" / "nvidia-smi"
        driver.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && cat <<'END'\n{text}\nEND\n")
        driver.chmod(0o755)
        if named is None:
            monkeypatch.delenv(gpus.VARIABLE, raising=False)
        else:
            monkeypatch.setenv(gpus.VARIABLE, named)

    return set_up


@pytest.fixture
def other_run() -> Iterator[Callable[[int], None]]:
    """Another process of this host, with a data folder of its own, that reserves so many GPUs."""
    started: list[subprocess.Popen] = []

    def start(count: int) -> None:
        environment = os.environ | {"HYPERDAPO_DATA": "/another/folder"}
        command = [sys.executable, "-c", HOLD, str(count)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        assert started[-1].stdout.readline() == "held\n"

    yield start
    for process in started:
        process.communicate("")


@pytest.mark.parametrize(
    ("listing", "named", "uuids"),
    [
        (FOUR, None, ["GPU-0000", "GPU-1111", "GPU-2222", "GPU-3333"]),
        (FOUR, "2,0", ["GPU-2222", "GPU-0000"]),
        (FOUR, "GPU-3333, GPU-11", ["GPU-3333", "GPU-1111"]),
        (FOUR, "1,-1,2", ["GPU-1111"]),
        (FOUR, "3,7,0", ["GPU-3333"]),
        (FOUR, "GPU-", []),
        (FOUR, "", []),
        (FOUR, "NoDevFiles", []),
        (SLICED, None, ["GPU-0000", "MIG-aaaa", "MIG-bbbb", "MIG-GPU-1111/9/0"]),
        (SLICED, "MIG-bbbb", ["MIG-bbbb"]),
        (SLICED, "MIG-GPU-1111/9/0", ["MIG-GPU-1111/9/0"]),
        (SLICED, "1", ["MIG-aaaa"]),
        ([], None, []),
        ([], "0", []),
    ],
)
def test_the_visible_gpus_are_those_of_the_variable(host, listing, named, uuids) -> None:
    host(listing, named)
    assert [gpu.uuid for gpu in gpus.visible()] == uuids


def test_a_host_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(gpus.VARIABLE, "0")
    assert gpus.visible() == []
    with gpus.reserved(4):
        assert os.environ[gpus.VARIABLE] == "0", "what a user has set stays"


def test_one_is_chosen_among_the_visible_and_given_back(host) -> None:
    host(FOUR, "2,3")
    with gpus.reserved(1):
        assert os.environ[gpus.VARIABLE] == "2"
    assert os.environ[gpus.VARIABLE] == "2,3"
    with gpus.reserved(2):
        assert os.environ[gpus.VARIABLE] == "2,3"
    host(FOUR)
    with gpus.reserved(1):
        assert os.environ[gpus.VARIABLE] == "GPU-0000"
    assert gpus.VARIABLE not in os.environ


def test_a_slice_is_reserved_by_its_own_name(host) -> None:
    host(SLICED, "MIG-GPU-1111/9/0,MIG-bbbb")
    with gpus.reserved(1):
        assert os.environ[gpus.VARIABLE] == "MIG-GPU-1111/9/0"


def test_what_another_run_of_the_host_holds_is_not_taken(host, other_run) -> None:
    """Its data folder is another, and it may name the same device otherwise."""
    host(FOUR, "GPU-2222,3")
    other_run(1)
    host(FOUR, "2,3")
    with gpus.reserved(1):
        assert os.environ[gpus.VARIABLE] == "3"


def test_none_free_is_an_error_and_not_all_of_them(host, other_run) -> None:
    host(FOUR, "0,1")
    other_run(2)
    message = "1 of the 2 visible GPUs is wanted and 0 free: another run"
    with pytest.raises(HyperdapoError, match=message), gpus.reserved(1):
        pass
    assert os.environ[gpus.VARIABLE] == "0,1"


def test_those_of_a_failed_attempt_are_free_again(host, other_run) -> None:
    host(FOUR, "0,1")
    other_run(1)
    with pytest.raises(HyperdapoError, match="2 of the 2 visible GPUs are wanted and 1 free"), gpus.reserved(2):
        pass
    with gpus.reserved(1):
        assert os.environ[gpus.VARIABLE] == "1"


def test_more_than_are_visible_is_an_error(host) -> None:
    host(FOUR, "0,1")
    message = r"4 GPUs are wanted .training\.processes. and 2 visible"
    with pytest.raises(HyperdapoError, match=message), gpus.reserved(4):
        pass


def test_a_training_of_more_processes_than_gpus_is_an_error(host, tmp_path: Path) -> None:
    host(FOUR, "0,1")
    parameters = load("smoke", {"training": {"processes": 4, "algorithms": ["dapo"]}})
    with pytest.raises(TrainingError, match=r"training\.processes is 4, and 2 GPUs are visible"):
        runs.launch(runs.Job(parameters, "BTC", None, None, "dapo", 0, tmp_path))


def test_the_lock_of_a_killed_run_is_free(host) -> None:
    host(FOUR, "0")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, "1"], **pipes)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    with gpus.reserved(1):
        assert os.environ[gpus.VARIABLE] == "0"
