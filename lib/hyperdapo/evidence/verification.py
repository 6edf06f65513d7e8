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
_NOISE = 1e-12  # two numbers below it are both a rounded zero
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
    with TemporaryDirectory() as folder, tarfile.open(fileobj=BytesIO(archive)) as tree:
        tree.extractall(folder, filter="data")
        yield Path(folder) / "outputs" / profile


def compare(reference: Path, candidate: Path, tolerance: float) -> pd.DataFrame:
    """Every number of `tables/*.csv` and `numbers.tex` on both sides; measured times are left out.

    A number is known by its row's words and its column, so that a row that went or came is named as such.

    Returns
    -------
    `file, item, reference, measured, relative_difference, same`: what stands on one side only is not the same.

    Raises
    ------
    DataError
        If neither side holds a number.
    """
    frames = []
    for name in _on_either_side(reference, candidate):
        ours, theirs = (_read(folder / name) for folder in (reference, candidate))
        numeric = _numeric(ours) | _numeric(theirs)
        both = {"reference": _values(ours, numeric), "measured": _values(theirs, numeric)}
        frames.append(pd.concat(both, axis=1).rename_axis("item").reset_index().assign(file=name))
    if not frames or all(frame.empty for frame in frames):
        raise DataError(f"{reference} holds no table to compare with")
    table = pd.concat(frames, ignore_index=True)
    first, second = (pd.to_numeric(table[side], errors="coerce") for side in ("reference", "measured"))
    difference, scale = (first - second).abs(), pd.concat([first.abs(), second.abs()], axis=1).max(axis=1)
    known = first.notna() & second.notna()
    table["relative_difference"] = (difference / scale.where(scale > _NOISE, 1.0)).where(known)
    table["same"] = (table["relative_difference"] <= max(tolerance, _NOISE)) | (table["reference"] == table["measured"])
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
    times = [name for name in _on_either_side(reference, candidate) if name not in counts.index]
    width = max(len(name) for name in [*counts.index, *times])
    for name, size, same in counts.itertuples():
        print(f"{name:<{width}}  {same:>6} of {size:>6}" + ("" if same == size else "   <- differs"))
    for name in times:
        print(f"{name:<{width}}  time, not compared")
    different = table[~table["same"]]
    for row in different.head(_SHOWN).to_dict("records"):
        print(f"  {row['file']}: {row['item']}: {_told(row['reference'])} came back as {_told(row['measured'])}")
    if len(different) > _SHOWN:
        print(f"  and {len(different) - _SHOWN} more")
    print(f"{int(table['same'].sum())} of {len(table)} numbers match (relative tolerance {tolerance:g})")
    if len(different):
        raise HyperdapoError(f"{len(different)} numbers of {candidate} differ from {reference}")


def _on_either_side(reference: Path, candidate: Path) -> list[str]:
    """Files that hold numbers, by their names within a profile's outputs."""
    folders = (reference, candidate)
    found = {path.relative_to(folder).as_posix() for folder in folders for path in folder.glob("tables/*.csv")}
    return sorted(found) + ["numbers.tex"] * any((folder / "numbers.tex").exists() for folder in folders)


def _read(path: Path) -> pd.DataFrame:
    """A file as text, without measured times; empty where it is absent or holds times only."""
    if not path.exists() or path.name.startswith("latency"):
        return pd.DataFrame()
    if path.suffix == ".tex":
        return pd.DataFrame(_MACRO.findall(path.read_text(encoding="utf-8")), columns=["macro", "value"])
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table[[name for name in table if not _TIME.search(str(name))]]


def _numeric(table: pd.DataFrame) -> set[str]:
    """Columns that hold a number; the others are the words by which a row is known."""
    return {str(name) for name in table if pd.to_numeric(table[name], errors="coerce").notna().any()}


def _values(table: pd.DataFrame, numeric: set[str]) -> pd.Series:
    """Every number by its row's words and its column, or the words where the table holds no number at all."""
    words = [table[name] for name in table if name not in numeric]
    rows = [" ".join(row) for row in zip(*words, strict=True)] if words else [""] * len(table)
    again = pd.Series(rows, dtype=object).to_frame("words").groupby("words").cumcount()
    rows = [f"{row} #{count}".strip() if count or not row else row for row, count in zip(rows, again, strict=True)]
    if not numeric:
        return pd.Series(rows, index=rows, dtype=object)
    columns = [name for name in table if name in numeric]
    found = {f"{row}, {name}": text for name in columns for row, text in zip(rows, table[name], strict=True)}
    return pd.Series(found, dtype=object)


def _told(value: object) -> str:
    return "nothing" if pd.isna(value) else str(value) or "an empty cell"  # type: ignore[call-overload]
