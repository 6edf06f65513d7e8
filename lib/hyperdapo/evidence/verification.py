"""Which numbers came back the same: a finished run against the committed one, number by number."""

import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from hyperdapo.errors import DataError, HyperdapoError, MissingInputError
from hyperdapo.paths import REPOSITORY

_TIME = re.compile(r"(_measured_(s|ms)|elapsed_s)$")
_MACRO = re.compile(r"\\newcommand\{\\(\w+)\}\{(.*)\}")
_SHOWN = 20


@contextmanager
def committed_outputs(profile: str, reference: Path | None = None) -> Iterator[Path]:
    """Yield a folder with the reference outputs: the one given, or `outputs/<profile>` as git has it at HEAD.

    Raises
    ------
    MissingInputError
        If neither is there.
    """
    if reference is not None:
        if not reference.is_dir():
            raise MissingInputError(f"there is no folder {reference} to compare with")
        yield reference
        return
    command = ["git", "-C", str(REPOSITORY), "archive", "HEAD", f"outputs/{profile}"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise MissingInputError(
            f"git has no committed outputs/{profile}; name a folder to compare with: hyperdapo verify --reference DIR"
        ) from None
    with TemporaryDirectory() as folder:
        tarfile.open(fileobj=BytesIO(archive)).extractall(folder, filter="data")
        yield Path(folder) / "outputs" / profile


def compare(reference: Path, candidate: Path, tolerance: float) -> pd.DataFrame:
    """Every number of `tables/*.csv` and `numbers.tex` on both sides.

    Returns
    -------
    `file, item, reference, measured, relative_difference, same`: measured times are left out; a file, row or number
    that stands on one side only is not the same.

    Raises
    ------
    DataError
        If the reference holds no number.
    """
    names = sorted({path.relative_to(folder).as_posix() for folder in (reference, candidate) for path in _files(folder)})
    frames = []
    for name in names:
        ours, theirs = (_numbers(folder / name) for folder in (reference, candidate))
        both = pd.concat([ours.rename("reference"), theirs.rename("measured")], axis=1)
        frames.append(both.rename_axis("item").reset_index().assign(file=name))
    if not frames or all(frame.empty for frame in frames):
        raise DataError(f"{reference} holds no table to compare with")
    table = pd.concat(frames, ignore_index=True)
    first, second = (pd.to_numeric(table[side], errors="coerce") for side in ("reference", "measured"))
    scale = pd.concat([first.abs(), second.abs()], axis=1).max(axis=1)
    table["relative_difference"] = ((first - second).abs() / scale.where(scale > 0, 1.0)).where(first.notna() & second.notna())
    table["same"] = (table["relative_difference"] <= tolerance) | (table["reference"] == table["measured"])
    return table[["file", "item", "reference", "measured", "relative_difference", "same"]]


def verify(reference: Path, candidate: Path, tolerance: float) -> None:
    """Print a line per file and the numbers that differ, and end with how many match.

    Raises
    ------
    HyperdapoError
        If a number did not come back.
    """
    table = compare(reference, candidate, tolerance)
    counts = table.groupby("file")["same"].agg(["size", "sum"])
    width = max(len(name) for name in counts.index)
    for name, size, same in counts.itertuples():
        print(f"{name:<{width}}  {same:>6} of {size:>6}" + ("" if same == size else "   <- differs"))
    different = table[~table["same"]]
    for row in different.head(_SHOWN).itertuples():
        print(f"  {row.file}: {row.item}: {row.reference} came back as {row.measured}")
    print(f"{int(table['same'].sum())} of {len(table)} numbers match (relative tolerance {tolerance:g}; measured times are not compared)")
    if len(different):
        raise HyperdapoError(f"{len(different)} numbers of {candidate} differ from {reference}")


def _files(folder: Path) -> list[Path]:
    tables = [path for path in folder.glob("tables/*.csv") if not path.name.startswith("latency")]
    return tables + [path for path in [folder / "numbers.tex"] if path.exists()]


def _numbers(path: Path) -> pd.Series:
    """Text of every value of a file by a readable name; empty where the file is absent."""
    if not path.exists():
        return pd.Series(dtype=object)
    if path.suffix == ".tex":
        return pd.Series(dict(_MACRO.findall(path.read_text(encoding="utf-8"))), dtype=object)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    numeric = [name for name in table if pd.to_numeric(table[name].replace("", "nan"), errors="coerce").notna().any()]
    labels = table.drop(columns=numeric).agg(" ".join, axis=1) if len(numeric) < table.shape[1] else ""
    rows = "row " + pd.Series(range(len(table))).astype(str) + " " + labels
    found = {
        f"{row} {name}": value
        for name in numeric
        if not _TIME.search(name)
        for row, value in zip(rows, table[name], strict=True)
    }
    found |= {f"{row} label": label for row, label in zip(rows, rows, strict=True)}
    return pd.Series(found, dtype=object)
