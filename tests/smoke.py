"""Runs of the profile `smoke`: a place and the command in it, and runs that one worker of pytest makes for all."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from filelock import FileLock

from hyperdapo import plan
from hyperdapo.evidence import provenance
from hyperdapo.evidence.verification import compare
from hyperdapo.params import load
from hyperdapo.paths import REPOSITORY

PROFILE = "smoke"
DOWNLOADED = ("slices", "days", "manifest.json")  # what 01 keeps: it counts retries, so it is not the same every time


class Run:
    """One place of data and outputs, and the command run in it, with some parameters and variables of its own."""

    def __init__(
        self,
        place: Path,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        cores: int = 2,
        profile: str = PROFILE,
    ) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place, self.data, self.outputs = place, place / "data", place / "outputs"
        self._log, self._own, self._cores = place / "printed.txt", list[str](), str(cores)
        self._profile, self.name = profile, load(profile, dict(settings or {})).name
        if settings:
            own = place / "settings.yaml"
            self._own = ["--params", str(own)]
            if not own.exists():
                own.write_text(yaml.safe_dump(settings))
        where = {"HYPERDAPO_DATA": str(self.data), "HYPERDAPO_OUTPUTS": str(self.outputs)}
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.environment = os.environ | path | where | (environment or {})

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hyperdapo.cli", "run", "--profile", self._profile, "--cores", self._cores]
        where: dict[str, Any] = {"cwd": REPOSITORY, "env": self.environment, "start_new_session": True}
        with self._log.open("wb") as log:
            return subprocess.Popen([*command, *self._own, *arguments], stdout=log, stderr=log, **where)

    def printed(self) -> str:
        """What the last command has printed so far."""
        return self._log.read_text()

    def finish(self, *arguments: str) -> str:
        """Run to the end and return what was printed; the run must succeed."""
        status = self.start(*arguments).wait()
        assert status == 0, self.printed()[-6000:]
        return self.printed()

    def renders(self) -> list[Path]:
        return sorted((self.outputs / self.name / "notebooks").glob("*.ipynb"))

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.renders()}

    @property
    def derived(self) -> Path:
        """The data of this run."""
        return self.data / self.name

    @property
    def shown(self) -> Path:
        """The outputs of this run."""
        return self.outputs / self.name

    @cached_property
    def kept(self) -> "Run":
        """A shared run as it stood when it was done, for those that only read it, while others work in its place."""
        kept = Run(self.place / "kept")
        kept.name = self.name
        return kept


def shared(folder: Path) -> Run:
    """The run that the first worker to ask for it makes in `folder`, and that the others wait for."""
    with FileLock(folder.with_suffix(".lock")):
        begun = folder.exists()
        run = Run(folder)
        if not begun:
            run.finish()
            for place in (run.data, run.outputs):  # no file is ever written in place
                shutil.copytree(place, folder / "kept" / place.name, copy_function=os.link)
        elif not (folder / "kept" / "outputs").exists():
            pytest.fail(f"the run in {folder} failed, in this worker or another: {run.printed()[-3000:]}")
    return run


def take_over(done: Run, data: Path, outputs: Path, asset: str, *stages: str) -> None:
    """Copy what some stages (`01`, ...) of a done run left of an asset, and show of it, with their times."""
    derived, shown = done.data / done.name, done.outputs / done.name
    for computed in (derived / asset / "computed").glob("*.json"):
        if computed.name[:2] in stages:
            unit = f"{computed.stem}_{asset}"
            rendered = derived / f"records/{unit}.json"
            names = [computed.relative_to(derived), *json.loads(computed.read_text())["files"], f"records/{unit}.json"]
            for path in map(derived.joinpath, names):
                for source in (path, path.parent / "checksums" / f"{path.name}.sha256"):
                    if source.exists():
                        _copy(source, data / source.relative_to(done.data))
            for name in json.loads(rendered.read_text())["files"] if rendered.exists() else ():
                _copy(shown / name, outputs / done.name / name)
    if "01" in stages:
        _copy(done.data / "slices" / asset, data / "slices" / asset)


def stage_of(name: str) -> str:
    """The stage (`01`, ...) that makes a file of an asset, or the record of its checksum."""
    return plan.WRITTEN_BY[name.removesuffix(".sha256")][:2]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


def assert_whole(run: Run, assets: int) -> None:
    """Every stage is rendered, without an error and with a figure."""
    across = len(plan.ACROSS_ASSETS)
    assert len(run.renders()) == (len(plan.STAGES) - across) * assets + across
    for path in run.renders():
        outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"], path.name
        images = [output for output in outputs if "image/png" in output.get("data", {})]
        assert images, f"{path.name} shows no figure"


def assert_same_numbers(expected: Path, found: Path, units: Sequence[str]) -> None:
    """Some stages (`01_download BTC`, ...) wrote the same to the outputs of two runs, numbers to the last digit.

    Only the stamp of the parameters may be another, as that of a run of fewer assets is.
    """
    stages = [provenance.read(folder / provenance.NAME)["stages"] for folder in (expected, found)]
    wanted = {file for one in stages for unit in units for file in one[unit]["files"]}
    table = compare(expected, found)
    table = table[table["file"].isin(wanted)]
    assert set(table["file"]) == wanted
    stamps = {one[unit]["parameters"] for one in stages for unit in units}
    differ = table[~table["same"] & ~(table["reference"].isin(stamps) & table["measured"].isin(stamps))]
    assert differ.empty, differ.to_string()
    exact = table[table["file"].str.startswith(("tables/", "numbers.tex"))]
    apart = exact[exact["reference"] != exact["measured"]]
    assert len(exact) > 100 and apart.empty, apart
