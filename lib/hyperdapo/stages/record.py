"""Whether what a stage left still stands: beside its files lies a record of what they were made of.

The record of a stage, `computed/STAGE.json` in the folder of its asset, names the code, the parameters and the inputs
that decide its result, and the SHA-256 of every file that it left. A stage whose record says the same of now is not
computed again, and where another run has such a record, its files are linked from there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hyperdapo import dependencies, plan
from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.feed.slices import cover
from hyperdapo.files import atomic, checksum_of, require
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths, data_root, option

Files = dict[str, dict[str, Any]]
"""What a stage left, by name within the run: `sha256` and `bytes`."""

Content = dict[str, Any]
"""Of a record: the three fields of `Identity`, and `files`."""


@dataclass(frozen=True)
class Identity:
    """What decides the result of a stage: a digest of its code, parameters by name, and its inputs by SHA-256."""

    code: str
    parameters: dict[str, Any]
    inputs: dict[str, str]


def identity(
    stage: str, parameters: Parameters, asset: str = "", made: Callable[[str, Paths], Files] | None = None
) -> Identity:
    """What decides the result of a stage now; `made` tells what a stage before it left, where not the records do.

    Raises
    ------
    MissingInputError
        If a stage before it has not been computed, or was by code that did not write all that this one reads.
    """
    files = dict[str, str]()
    for source in _sources(stage, parameters, asset):
        for name in plan.READS[stage]:
            maker = plan.WRITTEN_BY[name]
            if (maker in plan.ACROSS_ASSETS) == (source.asset == ""):
                left = (made or _made)(maker, source)
                files[f"{source.asset}/{name}".lstrip("/")] = _digest_of(name, left, maker, source)
    return Identity(code(stage), dependencies.select(parameters, names(stage)), files)


@cache
def code(stage: str) -> str:
    """Digest of the modules with which a stage is computed."""
    return dependencies.digest(_import(stage))


@cache
def names(stage: str) -> list[str]:
    """The parameters that decide the result of a stage."""
    return dependencies.mentioned(_import(stage), stage in plan.ACROSS_ASSETS)


def place(stage: str, paths: Paths) -> Path:
    """Where the record of a stage lies."""
    return paths.data / "computed" / f"{stage}.json"


def read(stage: str, paths: Paths) -> Content | None:
    """The record of a stage; None where there is none, or it is damaged."""
    try:
        content = json.loads(place(stage, paths).read_text())
    except (FileNotFoundError, ValueError):
        return None
    known = {"code", "parameters", "inputs", "files"}
    return content if isinstance(content, dict) and content.keys() == known else None


def write(stage: str, paths: Paths, decided: Identity, files: Iterable[Path]) -> None:
    """Note what a stage left, and what decided it."""
    root = data_root() / paths.name
    left = {path.relative_to(root).as_posix(): _described(path) for path in sorted(files)}
    _store(place(stage, paths), asdict(decided) | {"files": left})


def inputs(stage: str, parameters: Parameters, asset: str = "") -> list[Path]:
    """All files without which a stage cannot be computed elsewhere: what it reads, with checksums and records.

    Raises
    ------
    MissingInputError
        If a stage before it has not been computed.
    """
    needed = dict[Path, None]()
    for source in _sources(stage, parameters, asset):
        for maker in plan.before(stage):
            if (maker in plan.ACROSS_ASSETS) != (source.asset == ""):
                continue
            read_of_it = [name for name in _made(maker, source) if _is_read(name, stage)]
            paths = [data_root() / parameters.name / name for name in read_of_it]
            needed |= dict.fromkeys([place(maker, source), source.data / "manifest.json", *paths])
            needed |= dict.fromkeys(checksum_of(path) for path in paths)
    return [path for path in needed if path.exists()]


def stands(stage: str, paths: Paths, decided: Identity) -> bool:
    """Whether a stage was computed as it would be now, and all that it left is there."""
    content = read(stage, paths)
    return content is not None and _same(content, decided) and not _lost(content, stage, paths)


def why_not(stage: str, parameters: Parameters, asset: str = "") -> str:
    """Why what a stage left does not stand, in words; nothing where it stands, or left no record.

    Raises
    ------
    MissingInputError
        If a stage before it has not been computed.
    """
    paths = Paths(parameters.name, asset)
    content = read(stage, paths)
    if content is None:
        return f"{place(stage, paths).name} is damaged" if place(stage, paths).exists() else ""
    reasons = [f"{name} {then} -> {now}" for name, (then, now) in changed(content, parameters).items()]
    reasons += ["its code"] * (content["code"] != code(stage))
    if not reasons and content["inputs"] != identity(stage, parameters, asset).inputs:
        reasons = ["what it reads"]
    return f"changed: {', '.join(reasons)}" if reasons else _lost(content, stage, paths)


def _lost(content: Content, stage: str, paths: Paths) -> str:
    for name, described in content["files"].items():
        path = data_root() / paths.name / name
        if not path.is_file() or path.stat().st_size != described["bytes"]:
            return f"{name} is lost or cut"
    return _lost_slices(paths) if stage == "01_download" else ""


def touch(stage: str, paths: Paths) -> None:
    """Say that what a stage left is as new as its inputs."""
    os.utime(place(stage, paths))


def lender(stage: str, paths: Paths, decided: Identity) -> Paths | None:
    """Another run in which a stage was computed as it would be here, if there is one."""
    records = data_root().glob("/".join(filter(None, ["*", paths.asset, "computed", f"{stage}.json"])))
    others = (Paths(path.relative_to(data_root()).parts[0], paths.asset) for path in sorted(records))
    return next((other for other in others if other != paths and stands(stage, other, decided)), None)


def borrow(stage: str, paths: Paths, decided: Identity) -> bool:
    """Link the files of another run in which a stage was computed as it would be here; whether there is one."""
    other = lender(stage, paths, decided)
    if other is None:
        return False
    content = read(stage, other) or {}
    for name in content["files"]:
        _link(data_root() / other.name / name, data_root() / paths.name / name)
    _store(place(stage, paths), content)
    return True


def lenders(parameters: Parameters, stages: Iterable[str]) -> dict[str, str]:
    """Which units (`05_train BTC`) of a run would be taken over from which other runs; nothing is linked."""
    known, lent = dict[tuple[str, str], Files](), dict[str, str]()

    def made(maker: str, source: Paths) -> Files:
        return known.get((maker, source.asset)) or _made(maker, source)

    for stage in stages:
        for asset in plan.assets_of(stage, parameters.assets):
            paths = Paths(parameters.name, asset)
            with suppress(MissingInputError):
                decided = identity(stage, parameters, asset, made)
                other = None if stands(stage, paths, decided) else lender(stage, paths, decided)
                if other is not None:
                    lent[plan.unit(stage, asset)] = other.name
                    known[stage, asset] = (read(stage, other) or {})["files"]
    return lent


def refuse_others(stage: str, parameters: Parameters, asset: str = "") -> None:
    """Nothing that a stage reads may have been computed with other parameters than those of this run.

    Raises
    ------
    DataError
        Naming the stage, the parameter with both values, and the command that computes it anew.
    """
    for source in _sources(stage, parameters, asset):
        for maker in plan.before(stage):
            content = read(maker, source)
            for name, (then, now) in changed(content, parameters).items() if content else ():
                raise DataError(
                    f"{place(maker, source)}: {maker} was computed with {name} {then}, and this run has {now}. "
                    f"Run: hyperdapo run {option(parameters.name)} --until {maker[:2]}"
                )


def changed(content: Content, parameters: Parameters) -> dict[str, tuple[Any, Any]]:
    """The parameters of a record that are others now, to the key: `(then, now)` by name."""
    now = dependencies.select(parameters, content["parameters"])
    return dict(_apart("", content["parameters"], now))


def _apart(name: str, then: Any, now: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The leaves in which two values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from _apart(f"{name}.{key}".lstrip("."), then.get(key), now.get(key))
    elif then != now:
        yield name, (then, now)


def _same(content: Mapping[str, Any], decided: Identity) -> bool:
    wanted = json.loads(json.dumps(asdict(decided)))
    return all(content[name] == wanted[name] for name in wanted)


def _sources(stage: str, parameters: Parameters, asset: str) -> list[Paths]:
    """Folders from which a stage reads: of its asset, or of every asset and of the run."""
    names = [asset] if asset else [*parameters.assets, ""]
    return [Paths(parameters.name, name) for name in names]


def _made(stage: str, paths: Paths) -> Files:
    """What a stage left; raises as `identity`."""
    content = read(stage, paths)
    if content is None:
        place(stage, paths).unlink(missing_ok=True)
        require(place(stage, paths), stage, paths.name)
    assert content is not None
    return dict(content["files"])


def _is_read(path: str, stage: str) -> bool:
    """Whether a stage reads a file, by its name within the run."""
    return (plan.MODELS if Path(path).parts[0] == plan.MODELS else Path(path).name) in plan.READS[stage]


def _digest_of(name: str, files: Files, maker: str, paths: Paths) -> str:
    """SHA-256 of a file of an asset, or one over all its adapters and logs, among those that its maker left."""
    if name == plan.MODELS:
        digests = {path: entry["sha256"] for path, entry in files.items()}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    for path, entry in files.items():
        if Path(path).name == name:
            return str(entry["sha256"])
    raise MissingInputError(
        f"{place(maker, paths)} knows of no {name}, which {maker} writes now. Run: hyperdapo run {option(paths.name)} "
        f"--until {maker[:2]}"
    )


def _described(path: Path) -> dict[str, Any]:
    noted = checksum_of(path)
    if noted.exists():
        return {"sha256": noted.read_text().split()[0], "bytes": path.stat().st_size}
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _store(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _link(source: Path, target: Path) -> None:
    """Have a file, and its checksum, in another run too; files are never changed in place, so both may share it."""
    for one, other in ((source, target), (checksum_of(source), checksum_of(target))):
        if one.exists():
            with atomic(other) as temporary:
                try:
                    os.link(one, temporary)
                except OSError:  # another disk
                    shutil.copy2(one, temporary)


def _lost_slices(paths: Paths) -> str:
    manifest = json.loads((paths.data / "manifest.json").read_text())
    cache_folder = paths.cache / manifest["cache"]
    covers = [cover(cache_folder, *day["span"]) for day in manifest["days"]]
    empty = any(not piece.path.stat().st_size for taken, _ in covers for piece in taken)
    return f"slices of {cache_folder} are lost or empty" if empty or any(missing for _, missing in covers) else ""


def _import(stage: str) -> str:
    return f"import hyperdapo.stages.{plan.rule(stage)}"
