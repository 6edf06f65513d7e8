"""Whether a run came back: its outputs against the committed ones, within the bounds of `tolerances.yaml`."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image

from hyperdapo import plan
from hyperdapo.errors import DataError, HyperdapoError, MissingInputError
from hyperdapo.evidence import contents, provenance
from hyperdapo.evidence.contents import Tolerances
from hyperdapo.evidence.hypotheses import ledger
from hyperdapo.files import atomic_folder
from hyperdapo.params import Parameters
from hyperdapo.paths import REPOSITORY, Paths, data_root

COLUMNS = ["file", "item", "row", "kind", "reference", "measured", "bound", "same", "verdict"]
_SHOWN = 8  # differences of one file


def check_folders(*folders: Path | None) -> None:
    """Refuse folders that were named and are not there.

    Raises
    ------
    MissingInputError
        Naming the folder.
    """
    for folder in folders:
        if folder is not None and not (folder / provenance.NAME).is_file():
            what = "no provenance.json: it is no run's outputs" if folder.is_dir() else "no such folder"
            raise MissingInputError(f"{folder}: {what}; name a folder like outputs/sample")


def keep_reference(paths: Paths) -> Path:
    """Copy the reference into the data folder before a run writes over it: HEAD's outputs, or the shipped ones.

    A copy that an unfinished verification left is used again, as the outputs may be half of its run.

    Raises
    ------
    MissingInputError
        If git has none, and the outputs that are there are not whole by their own manifest.
    """
    kept = _kept(paths)
    if kept.is_dir():
        return kept
    command = ["git", "-C", str(REPOSITORY), "archive", "HEAD", f"outputs/{paths.name}"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        _copy_shipped(REPOSITORY / "outputs" / paths.name, kept)
        return kept
    with atomic_folder(kept) as temporary, tarfile.open(fileobj=BytesIO(archive)) as tree:
        if hasattr(tarfile, "data_filter"):  # not before Python 3.11.4
            tree.extraction_filter = tarfile.data_filter
        tree.extractall(temporary)
        for path in (temporary / "outputs" / paths.name).iterdir():
            path.rename(temporary / path.name)
        shutil.rmtree(temporary / "outputs")
    return kept


def forget_reference(paths: Paths) -> None:
    """Remove the copy: it has been compared with."""
    shutil.rmtree(_kept(paths), ignore_errors=True)


def _kept(paths: Paths) -> Path:
    return data_root() / paths.name / "reference"


def _copy_shipped(shipped: Path, kept: Path) -> None:
    how = "name a folder to compare with: hyperdapo verify --reference DIR"
    if not (shipped / provenance.NAME).is_file():
        raise MissingInputError(f"neither git nor {shipped} has reference outputs; {how}")
    if faults := provenance.faults(shipped, provenance.read(shipped / provenance.NAME), []):
        raise MissingInputError(f"{shipped} is not as it was shipped ({faults[0]}); {how}")
    with atomic_folder(kept) as temporary:
        shutil.copytree(shipped, temporary, dirs_exist_ok=True)


def verify(reference: Path, candidate: Path, run: Parameters | None = None) -> None:
    """Print a line per file, what differs with both values and the bound, changed verdicts, and the count.

    Parameters
    ----------
    reference, candidate : outputs of one profile
    run : parameters of this machine's run, whose records then say what it wrote; without them the manifest does

    Raises
    ------
    HyperdapoError
        If anything lies outside its bound, was altered after its run, is left over, or did not run.
    """
    theirs, ours = (provenance.read(folder / provenance.NAME) for folder in (reference, candidate))
    faults = [f"reference {fault}" for fault in provenance.faults(reference, theirs, [])]
    if run is not None:
        units = plan.units(run.assets)
        recorded = provenance.assembled(run, Paths(run.name), units)
        faults += ["manifest.json: not what the stages recorded"] * (recorded != ours)
        faults += [f"{name}: did not run" for name in units if name not in recorded["stages"]]
        ours = recorded if recorded["stages"] else ours
    units = [*theirs["stages"], *plan.units(theirs.get("parameters", {}).get("assets", []))]
    faults += provenance.faults(candidate, ours, dict.fromkeys(units))
    faults += stamp_faults(reference, theirs, candidate, ours)
    faults += [f"{path.relative_to(candidate)}: {cell}" for path, cell in _untrue(candidate)]
    faults += ledger_faults(reference / provenance.LEDGER, candidate / provenance.LEDGER)
    table = compare(reference, candidate)
    _tell(table)
    faults = list(dict.fromkeys(faults))
    print("\n".join(f"FAULT  {fault}" for fault in faults) or "manifest: whole, every stage ran, nothing left over")
    outside = int((~table["same"]).sum())
    verdicts = int(table["verdict"].sum())
    print(f"{len(table) - outside} of {len(table)} values within tolerance; {verdicts} verdicts changed")
    if outside or faults:
        raise HyperdapoError(f"{outside} values outside their bounds and {len(faults)} faults of {candidate}")


def stamp_faults(reference: Path, theirs: Mapping[str, Any], candidate: Path, ours: Mapping[str, Any]) -> list[str]:
    """Stamps that differ between two runs, or from what the run's own renders show.

    Another commit or other versions are printed, and are no fault: the examiner's are rarely those of the reference.
    """
    differences = [f"profile: {theirs.get('profile')} became {ours.get('profile')}"] * (
        theirs.get("profile") != ours.get("profile")
    )
    differences += _different(theirs.get("parameters", {}), ours.get("parameters", {}), "parameters")
    for name, entry in ours["stages"].items():
        other = theirs["stages"].get(name, {})
        for stamp in ("data", "seed", "parameters"):
            if other and other.get(stamp) != entry.get(stamp):
                differences.append(f"{name}: {stamp} {other.get(stamp)} became {entry.get(stamp)}")
        differences += [f"manifest.json: {name}: {fault}" for fault in _unlike_render(candidate, entry)]
    for stamp in ("commit", "versions"):
        pairs = [(e.get(stamp), ours["stages"].get(n, {}).get(stamp)) for n, e in theirs["stages"].items()]
        if different := [pair for pair in pairs if pair[0] != pair[1]]:
            print(f"note: {stamp} {different[0][0]} in the reference, {different[0][1]} here")
    return differences


def ledger_faults(reference: Path, candidate: Path) -> list[str]:
    """A ledger that was altered; that it is longer than the reference's is no fault, and another one is printed."""
    try:
        if not ledger.follows(candidate, reference):
            print("note: the ledger of the test split does not go on from that of the reference")
    except DataError as error:
        return [str(error)]
    return []


def _different(one: Any, other: Any, name: str) -> list[str]:
    """Values of two trees that differ, by their names."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [text for key in {**one, **other} for text in _different(one.get(key), other.get(key), f"{name}.{key}")]
    return [] if one == other else [f"{name}: {one} became {other}"]


def _unlike_render(folder: Path, entry: Mapping[str, Any]) -> list[str]:
    """Stamps of a record that its render does not show."""
    renders = [folder / file for file in entry["files"] if file.endswith(".ipynb")]
    if not renders:
        return ["no render listed"]
    if not renders[0].is_file():
        return []
    shown = contents.stamps(renders[0])
    values = {stamp: str(entry.get(stamp)) for stamp in provenance.STAMPS}
    values["data"] = ", ".join(f"{asset} {digest}" for asset, digest in (entry.get("data") or {}).items())
    return [
        f"{name} {value}, where its render shows {shown.get(name)}"
        for name, value in values.items()
        if sorted(value.split(", ")) != sorted(shown.get(name, "").split(", "))  # assets in any order
    ]


def _untrue(folder: Path) -> list[tuple[Path, str]]:
    return [(path, cell) for path in sorted(folder.glob("tables/*.tex")) for cell in contents.untrue_cells(path)]


def compare(reference: Path, candidate: Path, tolerances: Tolerances | None = None) -> pd.DataFrame:
    """Every value of every file that the two runs' manifests list.

    Returns
    -------
    `file, item, row, kind, reference, measured, bound, same, verdict`: what stands on one side only is not the same;
    a changed `verdict` is the same where every number of its row lies within the bounds.
    """
    tolerances = tolerances or Tolerances()
    listings = [
        provenance.stages_of(provenance.read(f / provenance.NAME), f / provenance.NAME) for f in (reference, candidate)
    ]
    stage_of = {file: name.split()[0] for stages in listings for name, e in stages.items() for file in e["files"]}
    rows = []
    for file, stage in sorted(stage_of.items()):
        rows += _compared(reference / file, candidate / file, file, stage, tolerances)
    table = pd.DataFrame(rows, columns=COLUMNS)
    numbers = table[~table["verdict"]].groupby(["file", "row"])["same"].all()
    changed = table[table["verdict"]]
    within = [bool(numbers.get(key, True)) for key in zip(changed["file"], changed["row"], strict=True)]
    table.loc[changed.index, "same"] = (changed["kind"] == "trained") & np.array(within, dtype=bool)
    return table


def _compared(one: Path, other: Path, file: str, stage: str, tolerances: Tolerances) -> list[tuple[Any, ...]]:
    there = [path.is_file() for path in (one, other)]
    if not all(there):
        present = ["a file" if is_there else "no file" for is_there in there]
        return [(file, "the file", "", tolerances.kind(stage, file), *present, "exact", False, False)]
    if one.suffix == ".png":
        return [_pictures(one, other, file, tolerances.kind(stage, file), tolerances)]
    first, second = (contents.items(path, tolerances) for path in (one, other))
    if not first and not second:
        return [(file, "the file", "", tolerances.kind(stage, file), "a file", "a file", "there", True, False)]
    names = dict.fromkeys([*first, *second])
    return [_item(file, name, first.get(name), second.get(name), stage, tolerances) for name in names]


def _item(
    file: str, name: str, one: contents.Item | None, other: contents.Item | None, stage: str, tolerances: Tolerances
) -> tuple[Any, ...]:
    item = one or other
    assert item is not None
    kind = tolerances.kind(stage, file, item.quantity)
    bound = tolerances.bound(kind, item.quantity)
    texts = [side.text if side else None for side in (one, other)]
    shown = ["nothing" if text is None else text or "an empty cell" for text in texts]
    same, verdict = texts[0] == texts[1], False
    if not same and None not in texts:
        first, second = (contents.number(str(text)) for text in texts)
        column = name.rsplit(", ", 1)[-1]
        if first is not None and second is not None:
            unit = max(side.unit for side in (one, other) if side) if kind != "data" else 0.0
            same = abs(first - second) <= bound.width(first, second) + unit * (1 + 1e-9)
            same = same or (np.isnan(first) and np.isnan(second))
        elif bound.may_be_empty and {"", "–"} & set(texts):
            same = True
        verdict = column in tolerances.verdicts or (kind == "trained" and set(texts) == {"yes", "no"})
    return (file, name, item.row, kind, *shown, str(bound), same, verdict)


def _pictures(one: Path, other: Path, file: str, kind: str, tolerances: Tolerances) -> tuple[Any, ...]:
    """The share of pixels of two PNGs that differ visibly."""
    pictures = [PIL.Image.open(path).convert("RGB") for path in (one, other)]
    allowed = tolerances.figures[kind]
    sizes = [" x ".join(map(str, picture.size)) for picture in pictures]
    if sizes[0] != sizes[1]:
        near = kind == "trained" and _close(pictures[0].size, pictures[1].size)
        return (file, "size", "", kind, *sizes, "4 %" if kind == "trained" else "exact", near, False)
    first, second = (np.asarray(picture, dtype=np.int16) for picture in pictures)
    share = float((np.abs(first - second).max(axis=2) > tolerances.figures["levels"]).mean())
    return (file, "pixels", "", kind, "0", f"{share:.4g}", f"{allowed:g} of all", share <= allowed, False)


def _close(one: Iterable[int], other: Iterable[int]) -> bool:
    return all(abs(a - b) <= 0.04 * max(a, b) for a, b in zip(one, other, strict=True))


def _tell(table: pd.DataFrame) -> None:
    """A line per file, with what differs in it."""
    width = max((len(name) for name in table["file"]), default=0)
    for file, own in table.groupby("file", sort=True):
        kinds = ", ".join(sorted(set(own["kind"])))
        same = int(own["same"].sum())
        print(f"{file:<{width}}  {same:>6} of {len(own):>6}  {kinds}" + ("" if same == len(own) else "   <- differs"))
        different = own[~own["same"] & ~own["verdict"]]
        for row in different.head(_SHOWN).to_dict("records"):
            both = f"{row['reference']} came back as {row['measured']}"
            print(f"    {row['item']}: {both} ({row['kind']}, bound {row['bound']})")
        if len(different) > _SHOWN:
            print(f"    and {len(different) - _SHOWN} more")
        for row in own[own["verdict"]].to_dict("records"):
            where = "its numbers lie within the bounds" if row["same"] else "outside the bounds"
            print(f"    VERDICT {row['item']}: {row['reference']} became {row['measured']}; {where}")
