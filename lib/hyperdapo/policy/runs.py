"""One training run on disk: what decides it, its checkpoints, and how it goes on after a kill.

A run may be trained by several processes of one host that share each update (`launch`).
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from hyperdapo import dependencies, gpus
from hyperdapo.errors import TrainingError
from hyperdapo.files import atomic, atomic_folder, sha256, writing_into
from hyperdapo.params import Parameters
from hyperdapo.paths import data_root
from hyperdapo.policy.adapters import manifest
from hyperdapo.policy.language import calibration
from hyperdapo.policy.losses import ALGORITHMS, settings_of
from hyperdapo.policy.states import States
from hyperdapo.processes import die_with_parent

IDENTITY, LOG, PROGRESS, ADAPTER = "run.sha256", "training_log.csv", "progress.csv", "adapter"
MANIFEST = "training.json"  # of a published run; its key `run` is the run's fingerprint
_NEEDED = ("adapter_model.safetensors", "adapter_config.json", manifest.NAME, calibration.NAME, LOG)  # of it
_KEPT = 2  # checkpoints: the newest, and the one before it in case that is damaged
_NOT_OF_THE_RUN = {"algorithms", "seeds", "processes", "memory_gb", "report_to"}
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def fingerprint(parameters: Parameters, algorithm: str, seed: int, training: States, held_out: States) -> str:
    """SHA-256 of all that decides a run: its parameters, its states, those that it looks at on the way and is
    calibrated on, and the code of this room that trains.

    Comments and docstrings of that code do not count.
    """
    settings = parameters.training.model_dump(mode="json")
    decided = {
        "algorithm": {algorithm: settings[algorithm]},
        "training": {name: settings[name] for name in settings.keys() - _NOT_OF_THE_RUN - set(ALGORITHMS)},
        "policy": parameters.policy.model_dump(mode="json"),
        "seed": seed,
        "prompts": [training.prompts, held_out.prompts],
        "code": dependencies.digest("import hyperdapo.policy.training", room="policy"),
    }
    digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode())
    for states in (training, held_out):
        digest.update(states.rewards.tobytes() + states.distinct.tobytes())
    return digest.hexdigest()


def open_run(folder: Path, identity: str) -> None:
    """Make the folder of a run, or empty it where it belongs to another."""
    note = folder / IDENTITY
    if note.exists() and note.read_text() == identity:
        return
    shutil.rmtree(folder, ignore_errors=True)
    with writing_into(folder), atomic(note) as temporary:
        temporary.write_text(identity)


def is_published(folder: Path, identity: str) -> bool:
    """Whether a finished run of this fingerprint lies in a folder, each file as it was left."""
    try:
        noted = json.loads((folder / MANIFEST).read_text())
        return bool(noted["run"] == identity and noted["files"] == digests(folder))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what a published run cannot do without.

    Raises
    ------
    FileNotFoundError
        If one of the files is not there.
    """
    return {name: sha256(folder / name) for name in _NEEDED}


def stands(folder: Path, identity: str) -> bool:
    """Whether a finished run of this fingerprint lies in a folder; one of another run's data is copied there first."""
    if is_published(folder, identity):
        return True
    within = folder.relative_to(data_root()).parts[1:]
    for other in sorted(data_root().glob("/".join(["*", *within]))):
        if is_published(other, identity):
            with atomic_folder(folder) as copy:
                shutil.copytree(other, copy, dirs_exist_ok=True)
            return True
    return False


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read whole, or None; damaged ones are removed with a warning."""
    numbered = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for number in sorted(numbered, reverse=True):
        checkpoint = numbered[number]
        try:
            _read(checkpoint)
        except Exception as error:  # a torn file fails in as many ways as there are readers
            warnings.warn(
                f"{checkpoint} is damaged ({type(error).__name__}): training goes on from the one before, if any",
                stacklevel=2,
            )
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


def arguments(parameters: Parameters, algorithm: str, seed: int, folder: Path, name: str) -> dict[str, Any]:
    """§3.3.3 and Listing 4.6, as the trainers of transformers and TRL both want it.

    Raises
    ------
    TrainingError
        If W&B is asked for and not installed.
    """
    training = parameters.training
    if training.report_to == "wandb" and find_spec("wandb") is None:
        raise TrainingError(
            "training.report_to is wandb, which is not installed here: pip install wandb, or tensorboard"
        )
    parts = training.gradient_accumulation * training.processes
    return dict(
        output_dir=str(folder),
        run_name=name,
        max_steps=training.steps,
        per_device_train_batch_size=training.states_per_update // parts,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=settings_of(algorithm, training)["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=round(training.warmup_share * training.steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=training.checkpoint_every,
        save_total_limit=_KEPT,
        report_to=training.report_to,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        remove_unused_columns=False,
        seed=seed,
    )


@dataclass(frozen=True)
class Job:
    """One run to train: what its `Workbench` is made of, algorithm and seed, and the folder of the run."""

    parameters: Parameters
    asset: str
    training: States
    held_out: States
    algorithm: str
    seed: int
    folder: Path


def launch(job: Job) -> None:
    """Train in `training.processes` processes of this host that share each update; accelerate leads them.

    They meet by a file in the folder of the run and speak over loopback, so that nothing listens where another host
    could reach it.

    Raises
    ------
    TrainingError
        If there are GPUs, but not one for each; or if one process fails: the last line of its error.
    """
    processes, visible = job.parameters.training.processes, len(gpus.visible())
    if 0 < visible < processes:
        raise TrainingError(f"training.processes is {processes}, and {visible} GPUs are visible: lower it")
    newest_checkpoint(job.folder)  # removes the damaged ones before all processes look
    with TemporaryDirectory(dir=job.folder, prefix="together") as meeting:
        try:
            spawn(work, (processes, Path(meeting) / "store", job), processes)
        except (ProcessRaisedException, ProcessExitedException) as error:
            reason = str(error).strip().splitlines()[-1]
            raise TrainingError(f"one of {processes} processes that trained {job.folder} failed: {reason}") from error


def work(rank: int, processes: int, store: Path, job: Job) -> None:
    """Do one process's part of a training.

    A process sees one GPU alone, where there are any: the base would be spread over all that it sees. The process
    group stands before accelerate looks for one: accelerate's own would listen on every interface.
    """
    die_with_parent()
    gpu = gpus.visible()[rank : rank + 1]
    place = {"RANK": rank, "LOCAL_RANK": 0 if gpu else rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in place.items()} | _LOOPBACK)
    os.environ.update((gpus.VARIABLE, one.name) for one in gpu)
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=processes)
    from hyperdapo.policy.training import Workbench  # which imports what starts this

    try:
        bench = Workbench(job.parameters, job.asset, job.training, job.held_out)
        bench.train(job.algorithm, job.seed, job.folder, lambda looked: None)
    finally:
        torch.distributed.destroy_process_group()


def _read(checkpoint: Path) -> None:
    load_file(checkpoint / "adapter_model.safetensors")
    json.loads((checkpoint / "trainer_state.json").read_text())
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(checkpoint / name, map_location="cpu", weights_only=True)
    for states in [checkpoint / "rng_state.pth", *checkpoint.glob("rng_state_*.pth")][:1]:
        with ZipFile(states) as kept:  # NumPy's state in it is no plain weight
            if damaged := kept.testzip():
                raise BadZipFile(damaged)
