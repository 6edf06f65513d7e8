"""GPUs of this host: which of them this process may see, and how it keeps some to itself (Listing 4.7).

A scheduler, a container or a user says by `CUDA_VISIBLE_DEVICES` which GPUs are meant; only these are chosen from.
What is reserved is locked for the whole host, whatever data folder a run has: by the device's UUID, since an index
means another device in another container.
"""

import fcntl
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from hyperdapo.errors import HyperdapoError

VARIABLE = "CUDA_VISIBLE_DEVICES"


class Gpu(NamedTuple):
    """A device: what `CUDA_VISIBLE_DEVICES` calls it, and its UUID."""

    name: str
    uuid: str


def visible() -> list[Gpu]:
    """The GPUs, or the slices of them (MIG), that a process here may use, in CUDA's order.

    As CUDA has it (CUDA C++ Programming Guide, "CUDA Environment Variables"): without `CUDA_VISIBLE_DEVICES` all of the
    host; else the indices and UUIDs (or beginnings of them) that it lists, up to the first that is none.
    """
    whole = _listed()
    named = os.environ.get(VARIABLE)
    if named is None:
        return [Gpu(uuid, uuid) for slices in whole for uuid in slices]
    gpus: list[Gpu] = []
    for name in (part.strip() for part in named.split(",")):
        uuid = _uuid(name, whole)
        if uuid is None:
            break
        gpus.append(Gpu(name, uuid))
    return gpus


def _uuid(name: str, whole: list[list[str]]) -> str | None:
    """The device that an entry of `CUDA_VISIBLE_DEVICES` means; of a GPU in slices CUDA takes the first."""
    if name.isdigit():
        return whole[int(name)][0] if int(name) < len(whole) else None
    meant = [uuid for slices in whole for uuid in slices if name and uuid.startswith(name)]
    return meant[0] if len(meant) == 1 else None


def _listed() -> list[list[str]]:
    """UUIDs of what each GPU of this host offers: its own, or those of its slices; nothing without a driver."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    offered: list[list[str]] = []
    for line in listing.splitlines():
        if match := re.match(r"(\s*)(?:GPU|MIG) .*\(UUID: (\S+)\)", line):
            offered += [] if match[1] else [[]]
            offered[-1].append(match[2])
    return [slices[1:] or slices for slices in offered]


@contextmanager
def reserved(count: int) -> Iterator[None]:
    """Keep `count` of the visible GPUs to this process and its children while the block runs; without any, do nothing.

    Raises
    ------
    HyperdapoError
        If fewer are visible, or fewer of these are free.
    """
    seen = visible()
    if not seen or not count:
        yield
        return
    if len(seen) < count:
        raise HyperdapoError(
            f"{count} GPUs are wanted (training.processes) and {len(seen)} visible: lower training.processes, "
            f"or have {VARIABLE} or the scheduler give more"
        )
    with ExitStack() as held:
        free = list(islice((gpu for gpu in seen if _lock(gpu, held)), count))
        if len(free) < count:
            raise HyperdapoError(
                f"{count} of the {len(seen)} visible GPUs {'is' if count == 1 else 'are'} wanted and {len(free)} free: "
                f"another run on this host holds the rest (locks in {_locks()}). Wait for it, or name others by "
                f"{VARIABLE}"
            )
        former = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = ",".join(gpu.name for gpu in free)
        try:
            yield
        finally:
            if former is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = former


def _lock(gpu: Gpu, held: ExitStack) -> bool:
    """Whether the lock of a GPU could be had; `held` keeps it."""
    file = (_locks() / gpu.uuid.replace("/", "_")).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    held.enter_context(file)
    return True


def _locks() -> Path:
    """Folder of the locks: of this host and user, not of a data folder."""
    folder = Path(tempfile.gettempdir()) / f"hyperdapo-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
