"""What one stage leaves for the next in a data folder: Parquet and JSON whose every bit is accounted for.

What the tables hold: docs/design.md, Data dictionary. The writer of a file notes its SHA-256 in
`checksums/NAME.sha256` beside it, one record a file, so that stages that run side by side never write to the same one
(`sha256sum -c checksums/*` reads them too). A reader takes a file only if it is the one that was noted; a process reads
each file once for that. Parquet pages carry checksums of their own, which are compared whenever a page is read.
"""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hyperdapo.errors import DataError, DiskFullError, MissingInputError
from hyperdapo.paths import Paths, data_root, option
from hyperdapo.plan import WRITTEN_BY
from hyperdapo.processes import lives

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


def require(path: Path, stage: str, run: str = "sample") -> Path:
    """Return `path`, or say which command makes it.

    Raises
    ------
    MissingInputError
        If nothing is at `path`.
    """
    if not path.exists():
        command = f"hyperdapo run {option(run)} --until {stage[:2]}"
        raise MissingInputError(f"{path} is not there: {stage} writes it. Run: {command}")
    return path


Version = tuple[Path, int, int, int]
"""One version of a file: its path, size, time of change and inode."""


def write_table(table: pd.DataFrame | Iterable[pd.DataFrame], folder: Path, name: str) -> Path:
    """Write `NAME.parquet` into an asset's data folder, whole or not at all; of several parts each is a row group."""
    parts = (pa.Table.from_pandas(part, preserve_index=False) for part in _parts(table))
    first = next(parts)
    with parquet_writer(folder / f"{name}.parquet", first.schema) as file:
        for part in chain([first], parts):
            file.write_table(part, row_group_size=max(len(part), 1))
    return folder / f"{name}.parquet"


def _parts(table: pd.DataFrame | Iterable[pd.DataFrame]) -> Iterable[pd.DataFrame]:
    return [table] if isinstance(table, pd.DataFrame) else table


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read `NAME.parquet` of an asset, or some columns of it.

    Raises
    ------
    MissingInputError
        If the stage that writes it has not run.
    DataError
        If it is damaged, or not what that stage wrote.
    """
    path = confirmed(folder / f"{name}.parquet")
    wanted = None if columns is None else list(columns)
    with _damage_told(path):
        table = pq.read_table(path, columns=wanted, partitioning=None, page_checksum_verification=True)
    return table.to_pandas()


def read_evenly(folder: Path, name: str, columns: Sequence[str], most: int) -> pd.DataFrame:
    """Some columns of at most so many rows, evenly spaced over the table; raises as `read_table`."""
    with parquet_file(confirmed(folder / f"{name}.parquet")) as file:
        every = -(-file.metadata.num_rows // most)
        parts, passed = [], 0
        for group in range(file.num_row_groups):
            part = file.read_row_group(group, columns=list(columns)).to_pandas()
            parts.append(part.iloc[-passed % every :: every])
            passed += len(part)
    return pd.concat(parts, ignore_index=True)


def read_assets(paths: Paths, assets: Sequence[str], name: str) -> pd.DataFrame:
    """`NAME.parquet` of several assets, one below the other; raises as `read_table`."""
    return pd.concat([read_table(paths.of(asset).data, name) for asset in assets], ignore_index=True)


def write_json(content: Mapping[str, Any], folder: Path, name: str) -> Path:
    """Write `NAME` (such as `split.json`) into an asset's data folder, whole or not at all."""
    with recorded(folder / name) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return folder / name


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read what `write_json` wrote; raises as `read_table`."""
    content: dict[str, Any] = json.loads(confirmed(folder / name).read_text())
    return content


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of one table, which appears at `path`, with its record, when the block ends well."""
    with (
        recorded(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as file,
    ):
        yield file


@contextmanager
def parquet_file(path: Path, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Yield an open table; `metadata`, where its footer was read before, spares reading it again.

    Raises
    ------
    DataError
        If the file, or a page of it that the block reads, is damaged.
    """
    with _damage_told(path), pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
        yield file


@contextmanager
def recorded(path: Path) -> Iterator[Path]:
    """Yield a temporary path as `atomic`; the SHA-256 of what the block wrote there is noted when it ends well."""
    with atomic(path) as temporary:
        yield temporary
        digest = sha256(temporary)
    with atomic(checksum_of(path)) as note:
        note.write_text(f"{digest}  {path.name}\n")


def confirmed(path: Path) -> Path:
    """`path`, once it is known to hold what the stage that writes it recorded.

    Raises
    ------
    MissingInputError
        If that stage has not run.
    DataError
        If the file differs from its record, or has none.
    """
    stage = WRITTEN_BY[path.name]
    require(path, stage, _origin(path)[0])
    try:
        noted = checksum_of(path).read_text().split()[:1]
    except FileNotFoundError:
        noted = []
    except UnicodeDecodeError:
        noted = ["damaged"]
    if noted != [_digest(version(path))]:
        what = "differs from its SHA-256 in" if noted else "has no SHA-256 in"
        raise DataError(
            f"{path} is not what {stage} wrote (it {what} {checksum_of(path)}): damaged, or changed by another hand. "
            f"Run: {mending(path)}"
        )
    return path


def checksum_of(path: Path) -> Path:
    """Where the SHA-256 of a derived file is noted."""
    return path.parent / "checksums" / f"{path.name}.sha256"


def mending(path: Path) -> str:
    """The command that makes a derived file anew."""
    return force(_origin(path)[0], WRITTEN_BY[path.name])


def force(run: str, stage: str) -> str:
    """The command that runs a stage again, whatever is up to date."""
    return f"hyperdapo run {option(run)} --force {stage[:2]}"


def version(path: Path) -> Version:
    """What tells one version of a file from the next without reading it."""
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns, status.st_ino


def _origin(path: Path) -> tuple[str, ...]:
    """Name of the run, and asset where the file is of one."""
    if path.is_relative_to(data_root()):
        return path.parent.relative_to(data_root()).parts
    return path.parent.parts[-2:]


@lru_cache(maxsize=256)
def _digest(file: Version) -> str:
    return sha256(file[0])


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged ({error}). Run: {mending(path)}") from None
