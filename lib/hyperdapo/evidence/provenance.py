"""Where a result comes from: commit, parameters, data, seed, versions. Stamped into every render and the manifest."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import pandas as pd
from IPython.display import HTML

from hyperdapo.evidence import manifest, tables
from hyperdapo.params import Parameters
from hyperdapo.paths import REPOSITORY, Paths

PACKAGES = ("numpy", "pandas", "numba", "scipy", "statsmodels", "torch", "transformers", "peft", "trl", "tardis-dev")


def stamp(parameters: Parameters, paths: Paths, stage: str, files: Iterable[Path]) -> HTML:
    """The last cell of every notebook: show and record what made this render, and the files that it wrote.

    Raises
    ------
    FileNotFoundError
        If the stage claims a file that is not there.
    """
    files = list(files)
    written = ", ".join(f"{path.parent.name}/{path.name} ({_size(path)})" for path in files)
    stamps: dict[str, Any] = {
        "commit": commit(),
        "parameters": parameters.fingerprint(),
        "data": {asset: data_hash(paths.of(asset)) for asset in _assets(parameters, paths)},
        "seed": parameters.seed,
        "versions": versions(),
    }
    manifest.record(paths, stage, stamps, files)
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
