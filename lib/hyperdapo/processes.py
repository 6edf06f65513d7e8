"""Processes that end together: all that a run starts ends with the run, however the run ends.

Every process of a run carries a mark in its environment, whatever its group, session or parent: Jupyter gives each
kernel a session of its own, and torchrun each worker.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

MARK = "HYPERDAPO_FAMILY"
"""The environment variable that holds the mark of a run."""

GRACE_S = 5.0  # between the request to end and the end

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def die_with_parent() -> None:
    """Have the kernel of Linux send SIGKILL to this process when its parent is gone; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def members(mark: str) -> list[psutil.Process]:
    """Living processes of this user that carry a mark, without this one."""
    living = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                living.append(process)
    return living


def end(mark: str) -> None:
    """End every process that carries a mark, save this one: SIGTERM at first, SIGKILL after `GRACE_S`."""
    begun = time.monotonic()
    while (left := members(mark)) and time.monotonic() < begun + 3 * GRACE_S:
        kill = time.monotonic() > begun + GRACE_S
        for process in left:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        time.sleep(_POLL_S)


@contextmanager
def stopping() -> Iterator[None]:
    """Raise `Stopped` in the main thread at Ctrl-C, `kill`, `timeout` or a closed terminal while the block runs.

    The first signal counts, so that what is ended is ended in peace. One that is ignored (`nohup`, a background job)
    stays ignored.
    """
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    caught = [number for number in _SIGNALS if former[number] != signal.SIG_IGN]

    def stop(number: int, _: FrameType | None) -> None:
        for other in caught:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, former[number])


def lives(process: int) -> bool:
    """Whether a process of this number is alive on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":  # python -m hyperdapo.processes COMMAND...: run a command that dies with its parent
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
