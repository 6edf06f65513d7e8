"""One stage of the workflow on a rented host: send, set up, start detached, follow, bring back (§4.7, Listing 4.12).

What runs there runs under the same Snakefile, and lives on when the connection, or this machine, is gone; the same
command again goes on where it was. `host` is the part that runs there.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

from hyperdapo import plan
from hyperdapo.errors import HostError, HyperdapoError
from hyperdapo.files import require
from hyperdapo.params import Parameters, load
from hyperdapo.paths import PARAMS, REPOSITORY, data_root, outputs_root
from hyperdapo.remote import connection
from hyperdapo.remote.connection import Host, say
from hyperdapo.workflow.run import snakemake

_STAMP = ".snakemake_timestamp"  # which Snakemake leaves in a folder that is an output, and whose time counts


@dataclass(frozen=True)
class StageFiles:
    """Files that a stage reads (its notebook and modules among them) and writes, for the assets of a run."""

    inputs: list[Path]
    outputs: list[Path]


def stage_files(parameters: Parameters, overrides: Mapping[str, Any]) -> dict[str, StageFiles]:
    """Files of every stage by its name, as the rules of the Snakefile name them.

    Raises
    ------
    HyperdapoError
        If Snakemake cannot read the workflow.
    """
    with TemporaryDirectory() as folder:
        listing = Path(folder) / "files.json"
        command = snakemake(parameters, overrides, [], "--list-rules", config={"files": str(listing)})
        _quietly(command, "Snakemake cannot read the workflow")
        rules = json.loads(listing.read_text())
    return {stage: _of_assets([rules[name] for name in plan.rules(stage)], parameters) for stage in plan.STAGES}


def require_inputs(stage: str, files: Mapping[str, StageFiles], profile: str) -> list[Path]:
    """What a stage reads, all of it there.

    Raises
    ------
    MissingInputError
        Naming the first file that is not there, the stage that writes it, and the command that runs that stage.
    """
    makers = {path: maker for maker, found in files.items() for path in found.outputs}
    return [require(path, makers.get(path, stage), profile) for path in files[stage].inputs]


def mark_done(parameters: Parameters, overrides: Mapping[str, Any], stage: str, files: StageFiles) -> None:
    """Tell Snakemake that what a stage writes is up to date: it was made elsewhere, of the same files and parameters.

    What is newer than all that it was made of keeps its time, so that later stages are not made to run again.

    Raises
    ------
    HyperdapoError
        If Snakemake refuses.
    """
    rules = plan.rules(stage)
    options = ["--touch", "--forcerun", *rules, "--cores", "1", "--rerun-incomplete", "--allowed-rules", "all", *rules]
    places = [path / _STAMP if path.is_dir() else path for path in files.outputs]
    times = {path: path.stat().st_mtime_ns for path in places if path.exists()}
    _quietly(snakemake(parameters, overrides, [stage], *options), f"Snakemake does not take {stage}")
    newest_input = max(path.stat().st_mtime_ns for path in files.inputs)
    for path, time_ns in times.items():
        if time_ns > newest_input:
            os.utime(path, ns=(time_ns, time_ns))


def _quietly(command: list[str], failure: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HyperdapoError(f"{failure}: {done.stderr.strip()}")


def _of_assets(rules: list[list[list[str]]], parameters: Parameters) -> StageFiles:
    """What the rules of a stage read and write together; what one writes for the next is written."""
    read, written = ([path for rule in rules for path in _each(rule[side], parameters)] for side in (0, 1))
    return StageFiles([path for path in dict.fromkeys(read) if path not in written], list(dict.fromkeys(written)))


def _each(patterns: list[str], parameters: Parameters) -> list[Path]:
    paths = [Path(pattern.format(asset=asset)) for pattern in patterns for asset in parameters.assets]
    return list(dict.fromkeys(paths))


State = dict[str, Any]

_SHOWN_LINES = 8  # of a failed run's log


@dataclass(frozen=True)
class Request:
    """What runs on a host: a stage of a profile for some assets, with parameters laid on top of it."""

    stage: str
    profile: str
    assets: list[str]
    overrides: dict[str, Any]
    run: str
    commit: str

    @classmethod
    def of(cls, stage: str, profile: str, overrides: Mapping[str, Any], commit: str) -> "Request":
        """A new request of the code of `commit`, for the assets of the profile unless `overrides` name others.

        Raises
        ------
        ParameterError
            For an unknown stage, profile, asset or parameter.
        """
        name, assets = plan.named(stage), load(profile, overrides).assets
        plain = json.loads(json.dumps(overrides, default=str))
        run = f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{token_hex(3)}"
        return cls(name, profile, assets, plain, run, commit)

    @property
    def title(self) -> str:
        return f"{self.stage} {' '.join(self.assets)} ({self.profile})"

    @cached_property
    def files(self) -> dict[str, StageFiles]:
        """What every stage reads and writes here, for these assets."""
        return stage_files(load(self.profile, self.overrides), self.overrides)

    @property
    def log(self) -> Path:
        """Where the log of the run is kept here."""
        return data_root() / self.profile / "remote" / f"{self.run}.log"

    def same_work(self, other: "Request") -> bool:
        """Whether both ask for the same, whenever they were made."""
        names = ("stage", "profile", "assets", "overrides")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def run(host: Host, request: Request) -> None:
    """Have a stage run on the host, follow it to its end, and bring back what it wrote.

    Where the same stage runs there already, it is followed; where it has finished, nothing is computed twice.

    Raises
    ------
    MissingInputError
        If what the stage reads is not here; it names the command that makes it.
    HostError
        If the host refuses, lacks something, runs something else, or the stage failed there.
    """
    host.connect()
    present = host.ask("state")
    if present["state"] == "running":
        request = _joined(host, request, present)
    else:
        _send(host, request)
        answer = host.patiently(host.ask, "start", given=asdict(request))
        request = _joined(host, request, answer)
        say(f"{request.title} runs on {host.name}; Ctrl-C stops following it, --stop ends it")
    follow(host, request)
    _conclude(host, request)


def follow(host: Host, request: Request) -> None:
    """Show the log of a run from where it was last seen here until the run ends, however often the connection drops.

    Every byte is kept in `request.log` before it is shown; the next connection asks for those that are not there.
    Raises as `Host.patiently`.
    """
    request.log.parent.mkdir(parents=True, exist_ok=True)

    def listen() -> None:
        with request.log.open("ab") as kept:
            try:
                fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HostError(f"another command here follows {request.title} already") from None
            for chunk in host.stream("follow", request.run, str(kept.tell())):
                kept.write(chunk)
                kept.flush()
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()

    host.patiently(listen)


def status(host: Host) -> str:
    """How it stands on the host: what runs or ran, how that ended, its last lines, and what the GPUs do.

    Raises
    ------
    HostError
        If the host cannot be asked.
    """
    host.connect()
    state = host.ask("state")
    lines = [f"{_title(state)} on {host.name}: {_word(state)}"]
    lines += [
        f"GPU {gpu['index']} ({gpu['name']}): {gpu['utilization.gpu']}, {gpu['memory.used']} of {gpu['memory.total']}"
        for gpu in state["gpus"]
    ] or ["no NVIDIA GPU there"]
    return "\n".join([*lines, *state["tail"]])


def stop(host: Host) -> str:
    """End the run on the host with all its processes; what it wrote stays there.

    Raises
    ------
    HostError
        If the host cannot be asked.
    """
    host.connect()
    before, after = host.ask("state"), host.ask("stop")
    if before["state"] != "running":
        return f"nothing runs on {host.name} ({_title(before)}: {_word(before)})"
    return f"{_title(after)} on {host.name}: {_word(after)}; --fetch brings what it left"


def fetch(host: Host, request: Request | None) -> str:
    """Bring what is there, of a finished run or not: of `request`, or else of the last run of the host.

    Raises
    ------
    HostError
        If the host cannot be asked, or has run nothing yet.
    """
    host.connect()
    present = host.ask("state")
    last = _recorded(present)
    wanted = request or last
    if wanted is None:
        raise HostError(f"nothing has run on {host.name} in {host.folder}: there is nothing to fetch")
    _bring(host, wanted, done=present["state"] == "done" and last is not None and wanted.same_work(last))
    return f"brought from {host.name}: {wanted.title}, into {data_root() / wanted.profile} and {outputs_root()}"


def _send(host: Host, request: Request) -> None:
    inputs = connection.beside(require_inputs(request.stage, request.files, request.profile))
    names = connection.repository_files()
    connection.refuse_secrets([*(REPOSITORY / name for name in names), *inputs], json.dumps(request.overrides))
    size = sum(path.stat().st_size for path in {*inputs, *(REPOSITORY / name for name in names)} if path.is_file())
    say(f"sending {len(names)} files of the repository and the inputs of {request.title}, {size / 1e6:.1f} MB")
    host.patiently(host.send, REPOSITORY, names, ".")
    host.patiently(host.ask, "tidy", given=names)
    connection.send_files(host, inputs)


def _joined(host: Host, request: Request, state: State) -> Request:
    """The run that lives on the host: the one asked for, or one that was started before and does the same.

    Raises
    ------
    HostError
        If it does something else.
    """
    present = _recorded(state)
    if present is None or present.run == request.run:
        return request
    if not present.same_work(request):
        raise HostError(
            f"{host.name} runs {present.title}, with other parameters or for something else; wait for it, end it by "
            "--stop, or name another folder there by --folder"
        )
    say(f"{present.title} already runs on {host.name}: following it")
    return present


def _conclude(host: Host, request: Request) -> None:
    state = host.patiently(host.ask, "state")
    last = _recorded(state)
    if last is None or last.run != request.run or state["state"] == "running":
        raise HostError(f"{host.name} has begun another run meanwhile: {_title(state)}; --fetch brings what is there")
    if state["state"] == "done":
        _bring(host, request, done=True)
        say(f"{request.title} done on {host.name}; its results are in {data_root()} and {outputs_root()}")
        return
    if state["state"] == "stopped":
        raise HostError(f"{request.title} was stopped on {host.name}; the same command again goes on where it was")
    tail = "\n".join(f"  {line}" for line in _reason(state["tail"]))
    raise HostError(f"{request.title} on {host.name}: {_word(state)}\n{tail}\n  the whole log: {request.log}")


def _reason(tail: list[str]) -> list[str]:
    """The run's own last error of a log's last lines, or the very last where it told none."""
    own = [number for number, line in enumerate(tail) if line.startswith("hyperdapo: ")]
    return [line for line in tail[own[-1] if own else -_SHOWN_LINES :] if line]


def _bring(host: Host, request: Request, done: bool) -> None:
    """Bring the results; a stage that is `done`, of what is here too, need not run here again."""
    files = request.files[request.stage]
    connection.bring_back(host, request.profile, request.assets, files.outputs)
    if not done or not all(path.exists() for path in [*files.inputs, *files.outputs]):
        return
    settings = [PARAMS / "base.yaml", PARAMS / f"{request.profile}.yaml"]
    if changed := connection.changed_since(host, [*files.inputs, *settings]):
        names = ", ".join(sorted(changed)[:5]) + (", ..." if len(changed) > 5 else "")
        say(f"changed here since it was sent: {names}; the next run here may run {request.stage} again")
    else:
        mark_done(load(request.profile, request.overrides), request.overrides, request.stage, files)


def _recorded(state: State) -> Request | None:
    return Request(**state["request"]) if state["request"] else None


def _title(state: State) -> str:
    recorded = _recorded(state)
    return recorded.title if recorded else "no run"


def _word(state: State) -> str:
    if state["state"] == "failed" and state.get("code") is None:
        return "failed without a word (killed, out of memory, or the host was restarted)"
    if state["state"] == "failed":
        return f"failed with exit code {state['code']} in {state['step']}"
    ended = f" at {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime(state['ended']))}" if "ended" in state else ""
    return "nothing yet" if state["state"] == "none" else state["state"] + ended
