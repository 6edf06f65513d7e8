"""The only directory names of the project.

`HYPERDAPO_DATA` moves what is derived, `HYPERDAPO_OUTPUTS` what is shown; both default to folders of the repository.
"""

import errno
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyperdapo.errors import DiskFullError, MissingInputError

REPOSITORY = Path(__file__).resolve().parents[2]
PARAMS = REPOSITORY / "params"
NOTEBOOKS = REPOSITORY / "notebooks"
PROFILES = REPOSITORY / "profiles"
GENERALIST = "all"  # stands for an asset where one adapter is trained on all


def data_root() -> Path:
    """Folder of raw and derived data (not in git)."""
    return Path(os.environ.get("HYPERDAPO_DATA") or REPOSITORY / "data").resolve()


def outputs_root() -> Path:
    """Folder of rendered notebooks, figures and tables."""
    return Path(os.environ.get("HYPERDAPO_OUTPUTS") or REPOSITORY / "outputs").resolve()


def base_models() -> Path:
    """Folder of base models converted once for this machine, shared by all profiles."""
    return data_root() / "base_models"


@dataclass(frozen=True)
class Paths:
    """Where one profile, and within it one asset, keeps its files."""

    profile: str
    asset: str = ""

    @property
    def data(self) -> Path:
        """Derived tables: of the asset where one is named, else of the profile."""
        return data_root() / self.profile / self.asset

    @property
    def outputs(self) -> Path:
        return outputs_root() / self.profile

    @property
    def notebooks(self) -> Path:
        return self.outputs / "notebooks"

    @property
    def figures(self) -> Path:
        return self.outputs / "figures"

    @property
    def tables(self) -> Path:
        return self.outputs / "tables"

    @property
    def cache(self) -> Path:
        """The tardis-dev cache of raw one-minute slices."""
        return self.data / "slices"

    @property
    def models(self) -> Path:
        """LoRA adapters trained for this asset, by algorithm."""
        return data_root() / self.profile / "models" / self.asset

    def model(self, algorithm: str) -> Path:
        """Folder of the LoRA adapters that `algorithm` trained for this asset."""
        return self.models / algorithm

    def adapter(self, algorithm: str, seed: int | str) -> Path:
        """Folder of one finished training: the LoRA adapter, its log and its manifest."""
        return self.model(algorithm) / f"seed_{seed}"

    @property
    def runs(self) -> Path:
        """Trainings of this asset that are not finished: checkpoints and progress, by algorithm and seed."""
        return data_root() / self.profile / "runs" / self.asset

    def run(self, algorithm: str, seed: int) -> Path:
        """Folder of one unfinished training."""
        return self.runs / algorithm / f"seed_{seed}"

    def of(self, asset: str) -> "Paths":
        return Paths(self.profile, asset)


def require(path: Path, stage: str, profile: str = "sample") -> Path:
    """Return `path`, or say which command makes it.

    Raises
    ------
    MissingInputError
        If nothing is at `path`.
    """
    if not path.exists():
        command = f"hyperdapo run --profile {profile} --until {stage[:2]}"
        raise MissingInputError(f"{path} is not there: {stage} writes it. Run: {command}")
    return path


_UNCONFIRMED = ".unconfirmed"  # the ending of temporary names, which is also that of the Tardis client
_HOST = platform.node()
_FOREIGN_S = 86400.0  # after which another host's temporary counts as left behind
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


def disk_error(error: OSError, folder: Path) -> DiskFullError | None:
    """What to tell of an error that means that `folder` takes no more; None for any other error."""
    return full_disk(folder, error.errno) if error.errno in _DISK else None


def full_disk(folder: Path, code: int = errno.ENOSPC) -> DiskFullError:
    """What to tell where `folder` takes no more."""
    return DiskFullError(
        f"cannot write into {folder} ({os.strerror(code)}): free space there, or set HYPERDAPO_DATA and "
        "HYPERDAPO_OUTPUTS to folders on another disk, then run again; what was whole is kept"
    )


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Make `folder`, and say clearly when it takes no more.

    Raises
    ------
    DiskFullError
        If the disk of `folder` is full or read-only while the block runs.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise disk_error(error, folder) or error from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it into place when the block ends well.

    A killed or failed writer leaves `path` as it was. Raises as `writing_into`.
    """
    temporary = _unconfirmed(path)
    with writing_into(path.parent):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            _remove(temporary)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path` and put it in its place when the block ends well.

    What stood at `path` before is replaced; a killed or failed writer leaves it as it was. Raises as `writing_into`.
    """
    temporary, former = _unconfirmed(path), _unconfirmed(path, "former.")
    with writing_into(path.parent):
        temporary.mkdir()
        try:
            yield temporary
            if path.exists():
                os.replace(path, former)
            os.replace(temporary, path)
        finally:
            _remove(temporary)
            _remove(former)


def sweep(folder: Path) -> None:
    """Remove what killed writers left below a folder.

    What a living process of this host writes stays, and what another host wrote within a day, whose processes cannot be
    seen from here. What names no writer is the Tardis client's: the lock of a run keeps others from its folder.
    """
    for left in folder.rglob(f"*{_UNCONFIRMED}*"):
        owner = re.search(rf"\.(\d+)@(.+){re.escape(_UNCONFIRMED)}", left.name)
        if owner is None:
            _remove(left)
        elif owner[2] == _HOST:
            if not lives(int(owner[1])):
                _remove(left)
        elif time.time() - _last_change(left) > _FOREIGN_S:
            _remove(left)


def lives(process: int) -> bool:
    """Whether a process of this number is alive on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _last_change(path: Path) -> float:
    """Time of the last change of a file, or of anything in a folder; now, where it is gone meanwhile."""
    try:
        return max(found.stat().st_mtime for found in [path, *path.rglob("*")])
    except FileNotFoundError:
        return time.time()


def _unconfirmed(path: Path, part: str = "") -> Path:
    """A temporary name beside `path` that is this process's own."""
    return path.with_name(f".{path.name}{own_ending(part)}")


def own_ending(part: str = "") -> str:
    """The ending of a temporary name that is this process's own, on this host."""
    return f".{part}{os.getpid()}@{_HOST}{_UNCONFIRMED}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
