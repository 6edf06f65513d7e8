"""Snakemake in a process of its own, which reports what it does and ends with the run that started it.

`run` is the side of the command; the rest is that process: it gives Snakemake a logger plugin that writes each event
of a job as a line of JSON into a pipe, and watches a second pipe, whose end means that the run is gone.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from types import ModuleType
from typing import Any

from hyperdapo import processes

_FOLLOWS = "Input files updated by another job"
_REASONS = {
    "Missing output files": "{} not there",
    "Incomplete output files": "was interrupted",
    "Updated input files": "{} changed",
    _FOLLOWS: "reads what a stage before it makes anew",
    "Forced execution": "forced",
    "Set of input files has changed since last execution": "reads other files than before",
    "Code has changed since last execution": "its rule changed",
    "Params have changed since last execution": "its parameters changed",
}
"""What Snakemake gives as a reason, and what is printed for it."""


def because(reason: str) -> str:
    """Snakemake's reason for a job, in the words of this project."""
    reasons = dict[str, str]()
    for part in reason.split("; "):
        kind, _, names = part.partition(": ")
        files = sorted({Path(name).name for name in names.split(", ") if name})
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        if not kind.startswith("Updated") or files:
            reasons[kind] = _REASONS.get(kind, part).format(shown)
    if len(reasons) > 1:
        reasons.pop(_FOLLOWS, None)
    return "; ".join(reasons.values())


Event = dict[str, Any]
"""`event` (run_info, job_info, job_finished, job_error) and what Snakemake tells with it."""

_NAME = "hyperdapo"  # of the logger plugin
_FIELDS = ("event", "jobid", "job_id", "rule_name", "wildcards", "output", "reason", "stats")
_NOTE = re.compile(r" \((?:update|directory)\)")  # that Snakemake adds to names of files
_CANCEL_S = 15.0  # in which Snakemake takes back the jobs that it gave to a cluster


def run(arguments: Sequence[str], log: Path, listen: Callable[[Event | None], None], locks: Sequence[int] = ()) -> int:
    """Run Snakemake to its end, and all that it starts; return its exit status.

    Parameters
    ----------
    arguments : of Snakemake
    log : file for what Snakemake and the stages print
    listen : called with each event, and with None at least once a second
    locks : descriptors that Snakemake holds too

    Raises
    ------
    Stopped
        When a signal asks for the end; nothing that was started lives on.
    """
    events_end, events_start = os.pipe()
    watched, alive = os.pipe()
    mark = token_hex(8)
    command = [sys.executable, "-m", "hyperdapo.workflow.engine", str(events_start), str(watched), *arguments]
    with processes.stopping(), log.open("wb") as printed, open(events_end, "rb", buffering=0) as events:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            env=os.environ | {processes.MARK: mark},
            pass_fds=[events_start, watched, *locks],
            start_new_session=True,
        )
        os.close(events_start)
        os.close(watched)
        try:
            for event in _lines(events.fileno()):
                listen(event)
            return process.wait()
        finally:
            os.close(alive)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_CANCEL_S + processes.GRACE_S)
            processes.end(mark)
            process.wait()


def _lines(pipe: int) -> Iterator[Event | None]:
    """What comes out of a pipe, a line of JSON each, and None at least once a second, until it ends."""
    left = b""
    while True:
        if select.select([pipe], [], [], 1.0)[0]:
            part = os.read(pipe, 1 << 16)
            if not part:
                return
            *lines, left = (left + part).split(b"\n")
            yield from map(json.loads, lines)
        yield None


def main(events: int, watched: int, arguments: list[str]) -> None:
    """Be the process that runs Snakemake: report to one pipe, end with the other."""
    from snakemake.cli import main as snakemake
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    for descriptor in (events, watched):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
    threading.Thread(target=_end_with, args=[watched], daemon=True).start()
    LoggerPluginRegistry().register_plugin(f"snakemake_logger_plugin_{_NAME}", _plugin(events))
    snakemake(["--logger", _NAME, *arguments])


def _end_with(watched: int) -> None:
    """When the other end of the pipe is closed: have Snakemake take back what a cluster runs, and end the rest."""
    os.read(watched, 1)
    os.kill(os.getpid(), signal.SIGINT)
    begun = time.monotonic()
    processes.end(os.environ[processes.MARK])
    time.sleep(max(0.0, begun + _CANCEL_S - time.monotonic()))
    os._exit(128 + signal.SIGINT)


def _plugin(events: int) -> ModuleType:
    """A logger plugin of Snakemake that writes its events into a pipe."""
    from logging import LogRecord

    from snakemake_interface_logger_plugins.base import LogHandlerBase

    class LogHandler(LogHandlerBase):
        writes_to_stream = writes_to_file = needs_rulegraph = False
        has_filter = has_formatter = True

        def emit(self, record: LogRecord) -> None:
            if event := getattr(record, "event", None):
                fields = {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}
                fields["reason"] = _NOTE.sub("", fields.get("reason", ""))
                fields["output"] = [_NOTE.sub("", name) for name in fields.get("output", [])]
                with suppress(BrokenPipeError):  # the run is gone, and this process ends in a moment
                    os.write(events, json.dumps(fields | {"event": str(event)}, default=str).encode() + b"\n")

    module = ModuleType(f"snakemake_logger_plugin_{_NAME}")
    module.LogHandler = LogHandler  # type: ignore[attr-defined]
    return module


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
