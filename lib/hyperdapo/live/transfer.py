"""What goes to the host and what comes back: the repository and a stage's inputs; adapters, outputs, renders."""

import filecmp
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hyperdapo.errors import HostError
from hyperdapo.live.connection import Host, say, secrets
from hyperdapo.paths import REPOSITORY, atomic_folder, data_root, outputs_root, own_ending, writing_into
from hyperdapo.stored import record_of

_STAY = re.compile(r"^outputs/|^\.venv$|(^|/)(\.env(\..*)?|\.netrc|id_\w+|.*\.(pem|key))$")
"""Of what git lists: results (the host makes its own), an environment's link, and files that are secrets by name."""

_UNFINISHED = "runs"
_ADAPTERS = "models"


def repository_files() -> list[str]:
    """Tracked and unignored files of the repository, as git lists them, but no results and no secrets.

    Raises
    ------
    HostError
        If this is no git checkout.
    """
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise HostError(f"git cannot list the files of {REPOSITORY}: send from a clone, with git installed") from None
    return sorted({name for name in listed if name and not _STAY.search(name) and os.path.lexists(REPOSITORY / name)})


def refuse_secrets(files: Iterable[Path], given: str) -> None:
    """Nothing that is sent may hold a secret of this environment, such as TARDIS_API_KEY.

    Raises
    ------
    HostError
        Naming the file (or the parameters, as text in `given`) and the secret.
    """
    held = {name: value.encode() for name, value in secrets().items()}
    texts = ((str(path), path.read_bytes()) for path in files if path.is_file())
    for place, content in [("the parameters", given.encode()), *(texts if held else ())]:
        for name, value in held.items():
            if value in content:
                raise HostError(f"{place} holds the value of {name}, which is never sent: take it out")


def send_files(host: Host, files: Iterable[Path]) -> None:
    """Send files of the data and outputs folders to the same places there; those of the repository go by themselves."""
    for root, there, names in _by_root(files):
        if root != REPOSITORY and names:
            host.patiently(host.send, root, names, there)


def changed_since(host: Host, files: Iterable[Path]) -> list[str]:
    """Names of the files that are not (or no longer) the same here and there."""
    groups = [group for group in _by_root(files) if group[2]]
    return [name for root, there, names in groups for name in host.patiently(host.changed, root, names, there)]


def beside(inputs: Iterable[Path]) -> list[Path]:
    """The inputs and their records, the whole adapter where one is its training log, the manifests of the stamps."""
    found: dict[Path, None] = {}
    for path in inputs:
        whole = path.parent.rglob("*") if path.name == "training_log.csv" else [path]
        found |= dict.fromkeys(file for file in whole if file.is_file())
        manifest = path.parent / "manifest.json"
        for file in (manifest, record_of(path)):
            found |= {file: None} if path.is_relative_to(data_root()) and file.is_file() else {}
    return list(found)


def bring_back(host: Host, profile: str, assets: Iterable[str], outputs: Iterable[Path]) -> None:
    """Bring what a stage wrote there, finished or not: tables, adapters and checkpoints, figures, tables, renders.

    Each file and each adapter is put in its place by one move. What is newer here stays.

    Raises
    ------
    DiskFullError
        If the disk here takes no more. Else as `Host.run`.
    """
    here, (models, runs) = data_root() / profile, (data_root() / profile / kind for kind in (_ADAPTERS, _UNFINISHED))
    outputs = list(outputs)
    if any(path.is_relative_to(models) for path in outputs):
        for folder in [kind / asset for kind in (models, runs) for asset in assets]:
            host.patiently(_bring_folder, host, folder)
    made = [path for path in outputs if path.is_relative_to(here) and models not in path.parents]
    tables = [str(file.relative_to(here)) for path in made for file in (path, record_of(path))]
    if tables:
        host.patiently(host.fetch, f"data/{profile}", here, "--update", names=tables)
    shown = ("--update", "--exclude=.*")
    host.patiently(host.fetch, f"outputs/{profile}", outputs_root() / profile, *shown)


def _bring_folder(host: Host, here: Path) -> None:
    """Bring a folder of the data that holds one folder for each algorithm, and put each of these in its place whole."""
    names: dict[str, Any] = {"dir": here.parent, "prefix": f".{here.name}.", "suffix": own_ending()}
    with writing_into(here.parent), TemporaryDirectory(**names) as staged:
        host.fetch(f"data/{here.relative_to(data_root())}", Path(staged), f"--link-dest={here}")
        for fetched in sorted(Path(staged).iterdir()):
            _put(fetched, here / fetched.name)


def _put(fetched: Path, here: Path) -> None:
    if _same(fetched, here):
        return
    if here.exists() and _newest(here) > _newest(fetched):
        say(f"{here} is newer than the host's and stays; move it away and --fetch to have the host's")
        return
    if fetched.is_dir():
        with atomic_folder(here) as temporary:
            os.replace(fetched, temporary)
    else:
        here.parent.mkdir(parents=True, exist_ok=True)
        os.replace(fetched, here)


def _same(one: Path, other: Path) -> bool:
    names = [sorted(str(file.relative_to(place)) for file in _files(place)) for place in (one, other)]
    pairs = ((one / name, other / name) for name in names[0])
    return other.exists() and names[0] == names[1] and all(filecmp.cmp(*pair, shallow=False) for pair in pairs)


def _newest(place: Path) -> int:
    return max((file.stat().st_mtime_ns for file in _files(place)), default=0)


def _files(place: Path) -> list[Path]:
    return [file for file in (place, *place.rglob("*")) if file.is_file()]


def _by_root(files: Iterable[Path]) -> Iterator[tuple[Path, str, list[str]]]:
    """Files by the folder that they lie in: the folder, its name there, and the names within."""
    roots = {data_root(): "data", outputs_root(): "outputs", REPOSITORY: "."}
    names: dict[Path, list[str]] = {root: [] for root in roots}
    for path in files:
        root = next(root for root in roots if path.is_relative_to(root))
        names[root].append(str(path.relative_to(root)))
    return ((root, roots[root], names[root]) for root in roots)
