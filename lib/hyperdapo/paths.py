"""The only directory names of the project.

`HYPERDAPO_DATA` moves what is derived, `HYPERDAPO_OUTPUTS` what is shown; both default to folders of the repository.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyperdapo.errors import MissingInputError

REPOSITORY = Path(__file__).resolve().parents[2]
PARAMS = REPOSITORY / "params"
NOTEBOOKS = REPOSITORY / "notebooks"


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

    def model(self, algorithm: str) -> Path:
        """Folder of the LoRA adapter that `algorithm` trained for this asset."""
        return data_root() / self.profile / "models" / self.asset / algorithm

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


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it into place when the block ends well.

    A killed or failed writer leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unconfirmed")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path` and put it in its place when the block ends well.

    What stood at `path` before is replaced; a killed or failed writer leaves it as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unconfirmed")
    former = path.with_name(f".{path.name}.{os.getpid()}.former.unconfirmed")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, former)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)
