"""Whether what a stage left still stands: beside its files lies a record of what they were made of.

The record of a stage, `computed/STAGE.json` in the folder of its asset, names the code, the parameters and the inputs
that decide its result, and the SHA-256 of every file that it left. A stage whose record says the same of now is not
computed again, and where another run has such a record, its files are linked from there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hyperdapo import dependencies, plan
from hyperdapo.errors import DataError
from hyperdapo.feed.slices import cover
from hyperdapo.files import atomic, checksum_of, require
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths, data_root, option

Content = dict[str, Any]
"""Of a record: the three fields of `Identity`, and `files`, by name within the run: `sha256` and `bytes`."""


@dataclass(frozen=True)
class Identity:
    """What decides the result of a stage: a digest of its code, parameters by name, and its inputs by SHA-256."""

    code: str
    parameters: dict[str, Any]
    inputs: dict[str, str]


def identity(stage: str, parameters: Parameters, asset: str = "") -> Identity:
    """What decides the result of a stage now.

    Raises
    ------
    MissingInputError
        If a stage before it has not been computed.
    """
    inputs = dict[str, str]()
    for source in _sources(stage, parameters, asset):
        for name in plan.READS[stage]:
            maker = plan.WRITTEN_BY[name]
            if (maker in plan.ACROSS_ASSETS) == (source.asset == ""):
                inputs[f"{source.asset}/{name}".lstrip("/")] = _digest_of(name, _made(maker, source))
    return Identity(code(stage), values(stage, parameters), inputs)


def code(stage: str) -> str:
    """Digest of the modules with which a stage is computed."""
    return dependencies.digest(_import(stage))


def values(stage: str, parameters: Parameters) -> dict[str, Any]:
    """The parameters that decide the result of a stage, by name."""
    return dependencies.select(parameters, dependencies.mentioned(_import(stage), stage in plan.ACROSS_ASSETS))


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


def stands(stage: str, paths: Paths, decided: Identity) -> bool:
    """Whether a stage was computed as it would be now, and all that it left is there."""
    content = read(stage, paths)
    return content is not None and _same(content, decided) and not lost(stage, paths)


def lost(stage: str, paths: Paths) -> str:
    """What is missing of what a stage left, in words; nothing where all is there."""
    content = read(stage, paths)
    if content is None:
        return f"{place(stage, paths).name} is damaged" if place(stage, paths).exists() else ""
    for name, described in content["files"].items():
        path = data_root() / paths.name / name
        if not path.is_file() or path.stat().st_size != described["bytes"]:
            return f"{name} is lost or cut"
    return _lost_slices(paths) if stage == "01_download" else ""


def touch(stage: str, paths: Paths) -> None:
    """Say that what a stage left is as new as its inputs."""
    os.utime(place(stage, paths))


def borrow(stage: str, paths: Paths, decided: Identity) -> bool:
    """Link the files of another run in which a stage was computed as it would be here; whether there is one."""
    for other in sorted(data_root().glob(f"*/{paths.asset}/computed/{stage}.json".replace("//", "/"))):
        lender = Paths(other.relative_to(data_root()).parts[0], paths.asset)
        if lender != paths and stands(stage, lender, decided):
            content = read(stage, lender) or {}
            for name in content["files"]:
                _link(data_root() / lender.name / name, data_root() / paths.name / name)
            _store(place(stage, paths), content)
            return True
    return False


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


def _made(stage: str, paths: Paths) -> dict[str, dict[str, Any]]:
    """What a stage left; raises as `identity`."""
    content = read(stage, paths)
    if content is None:
        place(stage, paths).unlink(missing_ok=True)
        require(place(stage, paths), stage, paths.name)
    assert content is not None
    return dict(content["files"])


def _digest_of(name: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 of a file, or one over all adapters and logs."""
    found = {
        path: str(entry["sha256"]) for path, entry in files.items() if name in (Path(path).name, Path(path).parts[0])
    }
    if list(found) == [path for path in found if Path(path).name == name]:
        return next(iter(found.values()))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


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
