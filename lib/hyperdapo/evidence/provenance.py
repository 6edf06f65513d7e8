"""Where a result comes from: commit, parameters, data, seed, versions. Stamped into every render and the manifest."""

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import pandas as pd
from IPython.display import HTML

from hyperdapo import plan
from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.evidence import tables
from hyperdapo.files import atomic, sha256
from hyperdapo.params import Parameters
from hyperdapo.paths import REPOSITORY, Paths, data_root

NAME, LEDGER = "manifest.json", "ledger.jsonl"
STAMPS = ("commit", "parameters", "data", "seed")
"""Stamps of a stage that its render shows too."""

_written: dict[Path, None] = {}
_begun: dict[str, str] = {}


def begin(stage: str, parameters: Parameters) -> None:
    """Remember which stage, with which parameters, this process shows from now on."""
    _begun.update(stage=stage, parameters=parameters.fingerprint())


def origin() -> dict[str, str]:
    """Where what is saved now comes from: `notebook`, `commit`, `parameters`; nothing is known outside a stage."""
    if not _begun:
        return {}
    return {"notebook": f"notebooks/{_begun['stage']}.ipynb", "commit": commit(), "parameters": _begun["parameters"]}


def note(path: Path) -> None:
    """Remember a file of the outputs that this process, hence this stage, has written."""
    _written[path] = None


def record_path(paths: Paths, stage: str) -> Path:
    """Where the record of a stage is kept: with what is derived, so that outputs from elsewhere never have one."""
    return data_root() / paths.name / "records" / f"{plan.unit(stage, paths.asset).replace(' ', '_')}.json"


def record(paths: Paths, stage: str, stamps: Mapping[str, Any], files: Iterable[Path]) -> Path:
    """Write the record of a stage: its stamps, and the SHA-256 of all that it wrote.

    Files of the outputs are known by their name in the profile's outputs, others by their name in its data.
    """
    shown, derived = dict[str, str](), dict[str, str]()
    for path in dict.fromkeys([*_written, *files]):
        if path.is_relative_to(paths.outputs):
            shown[path.relative_to(paths.outputs).as_posix()] = sha256(path)
        elif path.is_file() and path.is_relative_to(data_root() / paths.name):
            derived[path.relative_to(data_root() / paths.name).as_posix()] = sha256(path)
    return store(record_path(paths, stage), dict(stamps) | {"files": shown, "derived": derived})


def record_render(paths: Paths, stage: str, render: Path, shown_with: Mapping[str, Any]) -> None:
    """Add the render, which is whole only after the stage's last cell, and what decided it to the record of its stage.

    Raises
    ------
    MissingInputError
        If the notebook left no record: its last cell is no `stamp`.
    """
    place = record_path(paths, stage)
    if not place.exists():
        raise MissingInputError(f"{stage} left no record {place}: its last cell must be provenance.stamp(...)")
    entry = read(place) | {"shown_with": dict(shown_with)}
    if render.resolve().is_relative_to(paths.outputs):
        entry["files"][render.resolve().relative_to(paths.outputs).as_posix()] = sha256(render)
    store(place, entry)


def lost(paths: Paths, stage: str) -> str:
    """What is missing of what a render left in the outputs, in words; nothing where all is there."""
    try:
        files = read(record_path(paths, stage))["files"]
    except MissingInputError:
        return ""
    except DataError:
        return f"{record_path(paths, stage).name} is damaged"
    gone = [name for name in files if not (path := paths.outputs / name).is_file() or not path.stat().st_size]
    return f"{', '.join(gone[:3])} lost or empty" if gone else ""


def assembled(parameters: Parameters, paths: Paths, units: Iterable[str]) -> dict[str, Any]:
    """The manifest of what has run so far: all parameter values, and the record of every stage that left one."""
    stages = {}
    for name in units:
        place = record_path(Paths(paths.name), name)
        if place.exists():
            stages[name] = {key: value for key, value in read(place).items() if key != "shown_with"}
    values = parameters.model_dump(mode="json")
    return {"profile": parameters.profile, "parameters": values, "stages": stages}


def write(parameters: Parameters, paths: Paths, units: Iterable[str]) -> Path:
    """Write `outputs/<profile>/manifest.json`; of stages that end at the same time the last one lists them all."""
    lock = data_root() / paths.name / "records" / ".lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return store(paths.outputs / NAME, assembled(parameters, paths, units))


def read(path: Path) -> dict[str, Any]:
    """A manifest or a record.

    Raises
    ------
    MissingInputError
        If it is not there.
    DataError
        If it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInputError(f"there is no {path}: nothing says what a run wrote. Run: hyperdapo run") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); run its stage again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is no JSON object; run its stage again")
    return content


def stages_of(manifest: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The records that a manifest lists.

    Raises
    ------
    DataError
        If it lists none, as those of former versions.
    """
    stages = manifest.get("stages")
    whole = isinstance(stages, dict) and stages and all(isinstance(e, dict) and "files" in e for e in stages.values())
    if not whole:
        raise DataError(f"{path} lists no stages: it is of another version of this repository, or of no run")
    return stages  # type: ignore[return-value]


def faults(folder: Path, manifest: Mapping[str, Any], units: Iterable[str]) -> list[str]:
    """What is wrong with a run's outputs by their own manifest: missing, altered, left over, not run."""
    stages = stages_of(manifest, folder / NAME)
    problems = [f"{name}: did not run" for name in units if name not in stages]
    listed = {file: (name, digest) for name, entry in stages.items() for file, digest in entry["files"].items()}
    for file, (name, digest) in sorted(listed.items()):
        path = folder / file
        if not path.is_file():
            problems.append(f"{file}: deleted; {name} wrote it")
        elif sha256(path) != digest:
            problems.append(f"{file}: altered after {name} wrote it")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    problems += [
        f"{file}: left over; no stage of this run wrote it" for file in sorted(there - set(listed) - {NAME, LEDGER})
    ]
    return problems


def store(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a manifest or a record, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


PACKAGES = ("numpy", "pandas", "numba", "scipy", "statsmodels", "torch", "transformers", "peft", "trl", "tardis-dev")


def stamp(parameters: Parameters, paths: Paths, stage: str, shown: Iterable[Path] = ()) -> HTML:
    """The last cell of every notebook: show and record what made this render, and the files that the stage wrote.

    Parameters
    ----------
    shown : files of the outputs to name beside what the stage computed; all that were written are recorded

    Raises
    ------
    FileNotFoundError
        If the stage claims a file that is not there.
    """
    files = [*_computed(paths, stage), *shown]
    written = ", ".join(f"{path.parent.name}/{path.name} ({_size(path)})" for path in files)
    stamps: dict[str, Any] = {
        "commit": commit(),
        "parameters": parameters.fingerprint(),
        "data": {asset: data_hash(paths.of(asset)) for asset in _assets(parameters, paths)},
        "seed": parameters.seed,
        "versions": versions(),
    }
    record(paths, stage, stamps, files)
    rows = {
        "stage": f"{stage} {paths.asset}".strip(),
        "profile": parameters.profile,
        "commit": commit(),
        "parameters": parameters.fingerprint(),
        "data": ", ".join(f"{asset} {digest}" for asset, digest in stamps["data"].items()),
        "seed": str(parameters.seed),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "files written": written,
    }
    return tables.show(pd.DataFrame({"provenance": list(rows), "value": list(rows.values())}))


def _computed(paths: Paths, stage: str) -> list[Path]:
    """What the computation of a stage left."""
    logs = sorted(paths.models.glob("*/training_log.csv")) if plan.MODELS in plan.WRITES[stage] else []
    return [path for name in plan.WRITES[stage] if (path := paths.data / name).is_file()] + logs


@cache
def commit() -> str:
    """Commit of the repository, `+dirty` when a file outside `outputs/` differs from it, `unknown` without git.

    A copy on a rented host has no git: `HYPERDAPO_COMMIT` says there what was sent.
    """
    if sent := os.environ.get("HYPERDAPO_COMMIT"):
        return sent
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != REPOSITORY:
            return "unknown"
        changed = _git("--no-optional-locks", "status", "--porcelain", "--", ".", ":(exclude)outputs")
        return _git("rev-parse", "--short=12", "HEAD") + ("+dirty" if changed else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def data_hash(paths: Paths) -> str:
    """One hash, 16 hex digits, over the SHA-256 of every raw slice in the data manifest; `absent` without it."""
    listing = paths.data / "manifest.json"
    if not listing.exists():
        return "absent"
    slices = sorted(_listed_hashes(json.loads(listing.read_text())))
    return _sha256("\n".join(slices).encode())[:16]


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can move a number, read without importing them."""
    return {"python": python_version()} | {name: version(name) for name in PACKAGES}


def _assets(parameters: Parameters, paths: Paths) -> list[str]:
    return [paths.asset] if paths.asset else parameters.assets


def _listed_hashes(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from [inner] if key == "sha256" and isinstance(inner, str) else _listed_hashes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _listed_hashes(inner)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _size(path: Path) -> str:
    size = float(path.stat().st_size)
    for unit in ("B", "kB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} MB"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
