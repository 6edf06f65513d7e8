"""The only directory names of the project.

`HYPERDAPO_DATA` moves what is derived, `HYPERDAPO_OUTPUTS` what is shown; both default to folders of the repository.
"""

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PARAMS = REPOSITORY / "params"
NOTEBOOKS = REPOSITORY / "notebooks"
PROFILES = REPOSITORY / "profiles"
STUDY = "language"  # folder of a run with what its study of language trains
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
    """Where one run, and within it one asset, keeps its files; a profile as it stands is the run of its name."""

    name: str
    asset: str = ""

    @property
    def data(self) -> Path:
        """Derived tables: of the asset where one is named, else of the whole run."""
        return data_root() / self.name / self.asset

    @property
    def outputs(self) -> Path:
        return outputs_root() / self.name

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
    def language(self) -> Path:
        """What `hyperdapo study` shows of this run, apart from its renders."""
        return outputs_root() / f"{self.name}_language"

    @property
    def cache(self) -> Path:
        """The tardis-dev cache of raw one-minute slices of an asset, which all runs share."""
        return data_root() / "slices" / self.asset

    @property
    def models(self) -> Path:
        """LoRA adapters trained for this asset, by algorithm."""
        return data_root() / self.name / "models" / self.asset

    def model(self, algorithm: str) -> Path:
        """Folder of the LoRA adapters that `algorithm` trained for this asset."""
        return self.models / algorithm

    def adapter(self, algorithm: str, seed: int | str) -> Path:
        """Folder of one finished training: the LoRA adapter, its log and its manifest."""
        return self.model(algorithm) / f"seed_{seed}"

    @property
    def runs(self) -> Path:
        """Trainings of this asset that are not finished: checkpoints and progress, by algorithm and seed."""
        return data_root() / self.name / "runs" / self.asset

    def run(self, algorithm: str, seed: int) -> Path:
        """Folder of one unfinished training."""
        return self.runs / algorithm / f"seed_{seed}"

    def of(self, asset: str) -> "Paths":
        return Paths(self.name, asset)


def option(name: str) -> str:
    """How the command `hyperdapo run` is told which run is meant: `--profile sample`, or `--name wide`."""
    return f"--profile {name}" if (PARAMS / f"{name}.yaml").exists() else f"--name {name}"
