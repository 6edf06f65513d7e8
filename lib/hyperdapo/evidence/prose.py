"""Wordings that changed since a run, put into its renders: prose needs no new run, code does."""

from pathlib import Path

import nbformat

from hyperdapo.errors import DataError
from hyperdapo.evidence import manifest
from hyperdapo.paths import NOTEBOOKS, Paths, atomic


def refresh(paths: Paths) -> list[str]:
    """Give every render of a profile the Markdown of its notebook as it stands now, and say so in the manifest.

    Returns
    -------
    Names of the renders that changed.

    Raises
    ------
    DataError
        If a notebook's code is not that of its render, or an output was altered after its run; nothing changes then.
    MissingInputError
        If the profile has no outputs.
    """
    place = paths.outputs / manifest.NAME
    listed = manifest.read(place)
    stages = manifest.stages_of(listed, place)
    if found := manifest.faults(paths.outputs, listed, []):
        raise DataError(f"{paths.outputs} is not as its run left it: {found[0]}")
    renders = {file: name.split()[0] for name, e in stages.items() for file in e["files"] if file.endswith(".ipynb")}
    texts = {file: reworded(NOTEBOOKS / f"{stage}.ipynb", paths.outputs / file) for file, stage in renders.items()}
    changed = [file for file, text in texts.items() if text != (paths.outputs / file).read_text(encoding="utf-8")]
    for file in changed:
        with atomic(paths.outputs / file) as temporary:
            temporary.write_text(texts[file], encoding="utf-8")
    for name, entry in stages.items():
        stage, _, asset = name.partition(" ")
        record = manifest.record_path(Paths(paths.profile, asset), stage)
        of_this_run = record.exists() and manifest.read(record) == entry
        entry["files"] |= {file: manifest.sha256(paths.outputs / file) for file in changed if file in entry["files"]}
        if of_this_run:
            manifest.store(record, entry)
    manifest.store(place, listed)
    return [Path(file).stem for file in changed]


def reworded(notebook: Path, render: Path) -> str:
    """The text of a render file with the outputs that it has and the prose of the notebook.

    Raises
    ------
    DataError
        If its code cells are not the notebook's: naming the render, and the first cell.
    """
    written, shown = (nbformat.read(path, as_version=4) for path in (notebook, render))
    ran = [cell for cell in shown.cells if cell.cell_type == "code"]
    injected = [cell for cell in ran if "injected-parameters" in cell.metadata.get("tags", [])]
    ran = [cell for cell in ran if cell not in injected]
    code = [cell for cell in written.cells if cell.cell_type == "code"]
    apart = [cell.id for cell, as_run in zip(code, ran, strict=False) if cell.source != as_run.source]
    if apart or len(code) != len(ran):
        where = f"its code differs in {apart[0]}" if apart else f"{len(ran)} code cells became {len(code)}"
        raise DataError(f"{render.name} is of another notebook ({where}): more than prose changed, run it again")
    outputs, cells = iter(ran), []
    for cell in written.cells:
        cell.metadata.setdefault("tags", [])
        cells.append(nbformat.from_dict(next(outputs) | {"id": cell.id}) if cell.cell_type == "code" else cell)
        cells += injected if "parameters" in cell.metadata["tags"] else []
    shown.cells = cells
    return f"{nbformat.writes(shown)}\n"
