"""Trainings that are killed, cut, continued, shared by processes, or belong to another run."""

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from transformers import Trainer

from hyperdapo import dependencies
from hyperdapo.errors import ModelError, ParameterError, TrainingError
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths
from hyperdapo.policy import runs
from hyperdapo.policy.language import calibration
from hyperdapo.policy.losses import LOSSES
from hyperdapo.policy.models import load_adapter, load_base
from hyperdapo.policy.states import States
from hyperdapo.policy.training import Workbench, train_runs
from planted import planted_splits, same_curve, settings, train

pytestmark = pytest.mark.slow

PATHS = Paths("smoke", "BTC")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))


def short(**changes) -> Parameters:
    return settings(**{"steps": 24, "checkpoint_every": 8, "evaluate_every": 8, "algorithms": ["dapo"]} | changes)


@pytest.fixture
def splits() -> dict[str, States]:
    return planted_splits(short())


def trained(parameters: Parameters, splits: dict[str, States]) -> dict[str, pd.DataFrame]:
    return train(parameters, PATHS, splits["train"], splits["validation"])


@pytest.mark.parametrize("algorithm", ["dapo", "dapo_sampled", "dapo_preference"])
def test_a_training_cut_short_goes_on_to_the_same_numbers(
    algorithm: str, splits: dict[str, States], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parameters = short(algorithms=[algorithm])
    whole = trained(parameters, splits)[algorithm]
    adapter = (PATHS.model(algorithm) / "seed_0" / "adapter_model.safetensors").read_bytes()
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "other"))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", cut_after(19))
        with pytest.raises(KeyboardInterrupt):
            trained(parameters, splits)
    assert runs.newest_checkpoint(PATHS.run(algorithm, 0)).name == "checkpoint-16"
    steps = counted_steps(monkeypatch)
    same_curve(trained(parameters, splits)[algorithm], whole)
    assert len(steps) == 8, "what the checkpoint holds is not trained again"
    assert (PATHS.model(algorithm) / "seed_0" / "adapter_model.safetensors").read_bytes() == adapter


def cut_after(steps: int):
    count, step = [0], Trainer.training_step

    def stop(self, *args, **kwargs):
        count[0] += 1
        if count[0] > steps:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    return stop


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    taken: list[int] = []
    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda self, *a, **k: taken.append(1) or step(self, *a, **k))
    return taken


def test_sigkill_and_the_same_command_again_give_the_same_curve(tmp_path: Path) -> None:
    """The process is killed once its first checkpoints are written, and once more."""
    changes = {"training": {**short().training.model_dump(mode="json"), "steps": 64, "seeds": [0, 1]}}
    fresh = get_context("forkserver")  # a process that has imported all and done nothing, as that of the command
    fresh.set_forkserver_preload(["hyperdapo.policy.training"])

    def start(folder: str) -> BaseProcess:
        process = fresh.Process(target=train_planted, args=(changes, tmp_path / folder))
        process.start()
        return process

    assert ended(start("undisturbed")) == 0
    for seed in (0, 1):
        process = start("killed")
        run = tmp_path / "killed/smoke/runs/BTC/dapo" / f"seed_{seed}"
        while process.is_alive() and not list(run.glob("checkpoint-*/trainer_state.json")):
            time.sleep(0.01)
        process.kill()
        assert ended(process) == -signal.SIGKILL, "it must die before it is done"
    assert ended(start("killed")) == 0
    logs = [tmp_path / folder / "smoke/models/BTC/dapo/training_log.csv" for folder in ("undisturbed", "killed")]
    same_curve(*(pd.read_csv(log) for log in logs))
    assert not (tmp_path / "killed/smoke/runs/BTC").exists()


def train_planted(changes: dict[str, Any], data: Path) -> None:
    """What `hyperdapo train` does, on the planted world, with its data in a folder of its own."""
    os.environ["HYPERDAPO_DATA"] = str(data)
    parameters = load("smoke", changes)
    splits = planted_splits(parameters)
    train(parameters, PATHS, splits["train"], splits["validation"])


def ended(process: BaseProcess) -> int | None:
    process.join()
    return process.exitcode


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_half_a_checkpoint_is_passed_over_for_the_one_before(
    file: str, splits: dict[str, States], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", cut_after(19))
        with pytest.raises(KeyboardInterrupt):
            trained(short(), splits)
    damaged = PATHS.run("dapo", 0) / "checkpoint-16" / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.warns(UserWarning, match="checkpoint-16 is damaged .*: training goes on from the one before"):
        checkpoint = runs.newest_checkpoint(PATHS.run("dapo", 0))
    assert checkpoint.name == "checkpoint-8"
    steps = counted_steps(monkeypatch)
    trained(short(), splits)
    assert len(steps) == 16


@pytest.mark.parametrize("file", runs._NEEDED)
def test_a_finished_run_that_was_damaged_is_trained_again(file: str, splits: dict[str, States]) -> None:
    trained(short(steps=4, checkpoint_every=4, evaluate_every=4), splits)
    damaged = PATHS.adapter("dapo", 0) / file
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    trained(short(steps=4, checkpoint_every=4, evaluate_every=4), splits)
    assert damaged.stat().st_size >= 0.9 * len(whole)


def test_a_training_killed_before_it_was_calibrated_is_calibrated(
    splits: dict[str, States], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "_calibrate", cut_after(0))
        with pytest.raises(KeyboardInterrupt):
            trained(short(), splits)
    trained(short(), splits)
    assert calibration.read(PATHS.adapter("dapo", 0)) > 0


def test_a_run_that_looks_at_other_states_is_another(splits: dict[str, States]) -> None:
    first = runs.fingerprint(short(), "dapo", 0, splits["train"], splits["validation"])
    reversed_rewards = replace(splits["validation"], rewards=splits["validation"].rewards[:, ::-1].copy())
    assert runs.fingerprint(short(), "dapo", 0, splits["train"], reversed_rewards) != first


def test_a_flipped_byte_of_a_checkpoint_is_noticed(splits: dict[str, States], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", cut_after(19))
        with pytest.raises(KeyboardInterrupt):
            trained(short(), splits)
    states = PATHS.run("dapo", 0) / "checkpoint-16" / "rng_state.pth"
    content = bytearray(states.read_bytes())
    content[content.index(b"data/0") + 200] ^= 1
    states.write_bytes(content)
    with pytest.warns(UserWarning, match="checkpoint-16 is damaged"):
        assert runs.newest_checkpoint(PATHS.run("dapo", 0)).name == "checkpoint-8"


@pytest.mark.parametrize("gpus_there", [0, 2])
def test_each_process_sees_a_gpu_of_its_own(
    gpus_there: int, splits: dict[str, States], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`work` of each rank, with a process group and a trainer that only look at where they were put."""
    seen = []

    class Looking:
        def __init__(self, *given: object) -> None:
            place = [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", runs.gpus.VARIABLE)]
            seen.append(place)

        def train(self, *given: object) -> None: ...

    monkeypatch.setattr(runs, "die_with_parent", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *given, **named: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr("hyperdapo.policy.training.Workbench", Looking)
    there = [SimpleNamespace(name=f"GPU-{number}") for number in range(gpus_there)]
    monkeypatch.setattr(runs.gpus, "visible", lambda: there)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", runs.gpus.VARIABLE, *runs._LOOPBACK):
        monkeypatch.setenv(name, "before")
    job = runs.Job(short(), "BTC", splits["train"], splits["validation"], "dapo", 0, tmp_path)
    for rank in (0, 1):
        runs.work(rank, 2, tmp_path / "store", job)
    if gpus_there:
        assert seen == [["0", "0", "2", "GPU-0"], ["1", "0", "2", "GPU-1"]]
    else:
        assert seen == [["0", "0", "2", "before"], ["1", "1", "2", "before"]]


def test_processes_share_the_memory_that_is_given(splits: dict[str, States], monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr("hyperdapo.policy.training.Encodings", lambda *given: limits.append(given[2]))
    for count in (1, 4):
        parameters = short(processes=count, states_per_update=16)
        Workbench(parameters, "BTC", splits["train"], splits["validation"])._encoded(splits["validation"])
    assert limits[1] == pytest.approx(limits[0] / 4)


def test_a_run_of_other_parameters_is_begun_anew(splits: dict[str, States], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", cut_after(19))
        with pytest.raises(KeyboardInterrupt):
            trained(short(), splits)
    steps = counted_steps(monkeypatch)
    trained(short(dapo={"learning_rate": 0.02}), splits)
    assert len(steps) == 24


def test_a_finished_seed_waits_for_the_others(splits: dict[str, States], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", cut_after(30))
        with pytest.raises(KeyboardInterrupt):
            trained(short(seeds=[0, 1]), splits)
    steps = counted_steps(monkeypatch)
    log = trained(short(seeds=[0, 1]), splits)["dapo"]
    assert len(steps) == 24 and log.groupby("seed").size().tolist() == [25, 25]


def test_gradient_accumulation_changes_no_number(splits: dict[str, States]) -> None:
    """Of any loss: an update that is read in four parts is the update."""
    budget = {"steps": 8, "algorithms": list(LOSSES)}
    once, parts = (trained(short(gradient_accumulation=count, **budget), splits) for count in (1, 4))
    columns = ["loss", "grad_norm", "clip_fraction", "reward_mean", "heldout_reward", "learning_rate"]
    for algorithm in LOSSES:
        np.testing.assert_allclose(
            parts[algorithm][columns], once[algorithm][columns], rtol=2e-3, atol=2e-3, err_msg=algorithm
        )


def test_two_processes_share_an_update_and_listen_on_loopback_only(
    splits: dict[str, States], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On CPU: the curve is that of one process but for rounding, and no other host could speak to them."""
    alone = trained(short(steps=8), splits)["dapo"]
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "other"))
    with Listening() as listening:
        together = trained(short(processes=2, steps=8), splits)["dapo"]
    columns = ["loss", "reward_mean", "entropy", "heldout_reward", "learning_rate"]
    np.testing.assert_allclose(together[columns], alone[columns], rtol=2e-3, atol=2e-3)
    assert listening.addresses, "they speak by sockets: some were to be seen"
    assert {address for address in listening.addresses if not ip_address(address).is_loopback} == set()


class Listening:
    """The addresses on which processes that this one has started listen while the block runs."""

    def __init__(self) -> None:
        self.addresses, self._done = set[str](), threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Listening":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    sockets = child.net_connections(kind="tcp")
                    self.addresses |= {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}


def test_a_process_that_fails_says_why(splits: dict[str, States]) -> None:
    with pytest.raises(TrainingError, match=r"one of 2 processes that trained .*dapo.seed_0 failed: .*wandb"):
        trained(short(processes=2, report_to="wandb"), splits)


def test_runs_apart_leave_what_runs_together_leave(
    splits: dict[str, States], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cluster trains each run in a process of its own, one machine all runs of an asset in one."""
    parameters = short(algorithms=["dapo", "dpo", "dapo_sampled"], seeds=[0, 1], steps=8)
    logs = trained(parameters, splits)
    whole = {path.parent: path.read_bytes() for path in PATHS.models.rglob("adapter_model.safetensors")}
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "other"))
    chosen = [(algorithm, seed) for algorithm in logs for seed in (1, 0)]
    for one in reversed(chosen):
        train_runs(parameters, PATHS, splits["train"], splits["validation"], [one])
    apart = [path.read_bytes() for path in sorted(PATHS.models.rglob("adapter_model.safetensors"))]
    assert len(apart) == 6 and apart == [whole[place] for place in sorted(whole)]
    steps = counted_steps(monkeypatch)
    for algorithm, log in trained(parameters, splits).items():
        same_curve(log, logs[algorithm])
    assert not steps, "what stands is only gathered"


def test_a_lost_or_half_lost_run_is_trained_again_and_no_other(splits: dict[str, States], monkeypatch) -> None:
    parameters = short(seeds=[0, 1, 2], steps=8)
    trained(parameters, splits)
    (PATHS.adapter("dapo", 0) / "adapter_model.safetensors").unlink()
    shutil.rmtree(PATHS.adapter("dapo", 2))
    steps = counted_steps(monkeypatch)
    assert trained(parameters, splits)["dapo"].groupby("seed").size().tolist() == [9, 9, 9]
    assert len(steps) == 16


def test_what_a_seed_left_that_is_no_more_goes(splits: dict[str, States]) -> None:
    trained(short(seeds=[0, 1], steps=8), splits)
    assert trained(short(seeds=[1], steps=8), splits)["dapo"]["seed"].unique().tolist() == [1]
    assert not PATHS.adapter("dapo", 0).exists()


def test_a_run_depends_on_the_code_of_this_room_that_trains() -> None:
    names = {path.name for path in dependencies.modules("import hyperdapo.policy.training")}
    assert {"training.py", "trainer.py", "losses.py", "states.py"} <= names
    assert not names & {"decisions.py", "rivals.py", "rewards.py", "style.py", "progress.py", "cli.py"}


@pytest.mark.parametrize(
    ("file", "before", "after", "other_run"),
    [
        ("policy/losses.py", "return (rewards - expected) /", "return (rewards + expected) /", True),
        ("policy/losses.py", "Exact advantage of each action", "What each action is worth", False),
        ("policy/losses.py", "# its loss is TRL's", "# TRL has a loss", False),
        ("policy/decisions.py", "argmax", "argmin", False),
    ],
)
def test_a_changed_line_of_code_is_another_run_and_a_changed_comment_is_not(
    file: str, before: str, after: str, other_run: bool, splits: dict[str, States], monkeypatch, tmp_path: Path
) -> None:
    package = tmp_path / "hyperdapo"
    shutil.copytree(Path(dependencies.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(dependencies, "_PACKAGE", package)
    monkeypatch.setattr(dependencies, "_imports", dependencies._imports.__wrapped__)  # its cache holds other paths
    first = runs.fingerprint(short(), "dapo", 0, splits["train"], splits["validation"])
    text = (package / file).read_text()
    assert before in text
    (package / file).write_text(text.replace(before, after))
    assert (runs.fingerprint(short(), "dapo", 0, splits["train"], splits["validation"]) != first) is other_run


def test_a_loss_that_is_not_finite_names_the_parameter(splits: dict[str, States], monkeypatch) -> None:
    monkeypatch.setattr("hyperdapo.policy.losses.entropy", lambda new: new.sum() * torch.nan)
    with pytest.raises(TrainingError, match=r"not finite at step 1: lower training\.dapo\.learning_rate"):
        trained(short(), splits)


def test_a_full_gpu_names_the_parameter(splits: dict[str, States], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(short(), "BTC", splits["train"], splits["validation"])
    _ = bench.reference
    look = bench.look
    monkeypatch.setattr(bench, "look", lambda scorer: look(scorer) | fill_the_gpu(monkeypatch))
    with pytest.raises(TrainingError, match=r"no memory for 8 states at once: raise training\.gradient_accumulation"):
        bench.train("dapo", 0, PATHS.run("dapo", 0), lambda looked: None)


def fill_the_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("hyperdapo.policy.scoring.Scorer.log_probabilities", full)
    return {}


def test_what_is_to_be_reported_to_must_be_there(splits: dict[str, States], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="report_to is wandb, which is not installed here: pip install wandb"):
        trained(short(report_to="wandb"), splits)


def test_an_adapter_of_another_base_is_refused(splits: dict[str, States]) -> None:
    trained(short(steps=8), splits)
    base, _ = load_base(short().policy)
    with pytest.raises(ModelError, match="was trained with base 'tiny-qwen2', and now it is 'HuggingFaceTB"):
        load_adapter(base, load("sample"), PATHS.model("dapo") / "seed_0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint_every": 6}, "checkpoint_every .6. must be a multiple of dapo.updates_per_rollout"),
        ({"gradient_accumulation": 3}, "states_per_update .8. must be a multiple"),
        ({"algorithms": ["dapo_sampled"], "processes": 2}, "dapo_sampled trains in one process"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(changes: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        load("smoke", {"training": changes})
