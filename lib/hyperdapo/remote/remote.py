"""One stage of the workflow on a rented host: send, set up, start detached, follow, bring back (§4.7, Listing 4.12).

What runs there runs under the same Snakefile, and lives on when the connection, or this machine, is gone; the same
command again goes on where it was. `host` is the part that runs there.
"""

import fcntl
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import Any

from hyperdapo import plan
from hyperdapo.errors import HostError
from hyperdapo.params import Parameters, load, remember
from hyperdapo.paths import REPOSITORY, Paths, data_root, outputs_root
from hyperdapo.remote import connection
from hyperdapo.remote.connection import Host, say
from hyperdapo.stages import record, take_over


def stage_inputs(parameters: Parameters, stage: str) -> list[Path]:
    """What a stage reads, all of it there; raises MissingInputError with the command that makes what is missing."""
    inputs = (record.inputs(stage, parameters, paths.asset) for paths in _folders(parameters, stage))
    return list(dict.fromkeys(path for files in inputs for path in files))


def _folders(parameters: Parameters, stage: str) -> list[Paths]:
    return [Paths(parameters.name, asset) for asset in plan.assets_of(stage, parameters.assets)]


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
    def parameters(self) -> Parameters:
        """The parameters of the run there, and here."""
        return load(self.profile, self.overrides)

    @property
    def log(self) -> Path:
        """Where the log of the run is kept here."""
        return data_root() / self.parameters.name / "remote" / f"{self.run}.log"

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
    connection.bring_back(host, wanted.stage, _folders(wanted.parameters, wanted.stage))
    return f"brought from {host.name}: {wanted.title}, into {data_root() / wanted.parameters.name} and {outputs_root()}"


def _send(host: Host, request: Request) -> None:
    remember(request.parameters)
    take_over(request.parameters, plan.before(request.stage))
    inputs = stage_inputs(request.parameters, request.stage)
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
        connection.bring_back(host, request.stage, _folders(request.parameters, request.stage))
        say(f"{request.title} done on {host.name}; its results are in {data_root()} and {outputs_root()}")
        return
    if state["state"] == "stopped":
        raise HostError(f"{request.title} was stopped on {host.name}; the same command again goes on where it was")
    tail = "\n".join(f"  {line}" for line in _reason(state["tail"]))
    raise HostError(f"{request.title} on {host.name}: {_word(state)}\n{tail}\n  the whole log: {request.log}")


def _reason(tail: list[str]) -> list[str]:
    """The run's own last error of a log's last lines, or the very last where there is none."""
    errors = [number for number, line in enumerate(tail) if line.startswith("hyperdapo: ")]
    return [line for line in tail[errors[-1] if errors else -_SHOWN_LINES :] if line]


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
