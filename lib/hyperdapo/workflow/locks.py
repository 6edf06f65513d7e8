"""One run at a time in a folder of data, and in one of outputs."""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from hyperdapo.errors import HyperdapoError
from hyperdapo.paths import data_root, outputs_root
from hyperdapo.processes import lives

_ENDING_S = 30.0  # in which the last processes of a run that was killed end


@contextmanager
def run_lock() -> Iterator[list[int]]:
    """Hold the folders of data and of outputs for one run, and yield the descriptors that its workflow inherits.

    The kernel frees them when the run and its workflow are gone, even killed.

    Raises
    ------
    HyperdapoError
        If another run is at work in one of the folders, or it cannot be written.
    """
    roots = {data_root(): "HYPERDAPO_DATA", outputs_root(): "HYPERDAPO_OUTPUTS"}
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(folder, variable)) for folder, variable in roots.items()]
        for file, (folder, variable) in zip(files, roots.items(), strict=True):
            _take(file, folder, variable)
        yield [file.fileno() for file in files]


def _opened(folder: Path, variable: str) -> FileIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / ".lock").open("a+b", buffering=0)  # nothing is left to write when it closes
    except OSError as error:
        raise HyperdapoError(f"cannot write into {folder} ({error.strerror}); set {variable}") from None


def _take(file: FileIO, folder: Path, variable: str) -> None:
    """Lock a file and write into it who did; wait where the holder was killed and its last processes are ending."""
    until = time.monotonic() + _ENDING_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = _holder(file)
            if not _ends(holder) or time.monotonic() > until:
                remedy = f"wait for it, or set {variable} to another folder"
                raise HyperdapoError(f"another run is at work in {folder}{_who(holder)}; {remedy}") from None
            time.sleep(0.2)
    with suppress(OSError):  # on a full disk there is still the lock itself
        file.truncate(0)
        started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node(), "started": started}).encode())


def _holder(file: FileIO) -> dict[str, Any]:
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read())
    except ValueError:
        return {}
    return holder


def _ends(holder: dict[str, Any]) -> bool:
    """Whether the command that took the lock is gone, on this host."""
    return holder.get("host") == platform.node() and not lives(holder["pid"])


def _who(holder: dict[str, Any]) -> str:
    return f": PID {holder['pid']} on {holder['host']}, since {holder['started']}" if holder else ""
