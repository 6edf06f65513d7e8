"""A wording reaches the renders of a finished run without a run; changed code, or an altered render, does not."""

import shutil
from pathlib import Path

import nbformat
import pytest

from conftest import REPOSITORY
from hyperdapo.cli import main
from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.evidence import provenance
from hyperdapo.files import sha256
from hyperdapo.paths import Paths
from hyperdapo.workflow import locks, rendering

STAGES = {"01_download BTC": "01_download_BTC", "06_convergence": "06_convergence"}


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Paths:
    """Two renders of the committed run as outputs of their own, with the notebooks that they are of, to be edited."""
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(rendering, "NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "notebooks").mkdir()
    paths = Paths("sample")
    paths.notebooks.mkdir(parents=True)
    entries = {}
    for unit, name in STAGES.items():
        stage, _, asset = unit.partition(" ")
        render = shutil.copy(REPOSITORY / f"outputs/sample/notebooks/{name}.ipynb", paths.notebooks)
        nbformat.write(_unrun(Path(render)), tmp_path / f"notebooks/{stage}.ipynb")
        entries[unit] = {"files": {f"notebooks/{name}.ipynb": sha256(Path(render))}}
        place = provenance.record_path(Paths("sample", asset), stage)
        place.parent.mkdir(parents=True, exist_ok=True)
        provenance.store(place, entries[unit])
    provenance.store(paths.outputs / provenance.NAME, {"profile": "sample", "stages": entries})
    rendering.refresh(paths)
    return paths


def _unrun(render: Path) -> nbformat.NotebookNode:
    """The notebook of a render, as it was before it ran."""
    notebook = nbformat.read(render, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _edit(name: str, kind: str, old: str, new: str) -> None:
    path = rendering.NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == kind and old in cell.source)
    cell.source = cell.source.replace(old, new, 1)
    nbformat.write(notebook, path)


def _outputs(path: Path) -> list[object]:
    return [cell.outputs for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_a_new_wording_reaches_the_render_and_the_manifest(finished, capsys) -> None:
    render = finished.notebooks / "01_download_BTC.ipynb"
    before = _outputs(render)
    _edit("01_download", "markdown", "Which market messages", "What of the market")
    assert main(["render", "--text"]) == 0
    assert "1 renders reworded: 01_download_BTC" in capsys.readouterr().out
    assert "What of the market" in render.read_text() and _outputs(render) == before
    listed = provenance.read(finished.outputs / provenance.NAME)
    assert provenance.faults(finished.outputs, listed, []) == []
    assert (
        provenance.read(provenance.record_path(Paths("sample", "BTC"), "01_download"))
        == listed["stages"]["01_download BTC"]
    )


def test_cells_of_prose_may_come_and_go(finished) -> None:
    path = rendering.NOTEBOOKS / "06_convergence.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [
        notebook.cells[0],
        nbformat.v4.new_markdown_cell("A cell more."),
        *notebook.cells[1:-2],
        notebook.cells[-1],
    ]
    nbformat.write(notebook, path)
    before = _outputs(finished.notebooks / "06_convergence.ipynb")
    assert rendering.refresh(finished) == ["06_convergence"]
    render = nbformat.read(finished.notebooks / "06_convergence.ipynb", as_version=4)
    nbformat.validate(render)
    shown = [cell.source for cell in render.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    assert shown == [cell.source for cell in notebook.cells]
    assert _outputs(finished.notebooks / "06_convergence.ipynb") == before


def test_changed_code_is_refused_and_nothing_changes(finished, capsys) -> None:
    before = (finished.notebooks / "01_download_BTC.ipynb").read_bytes()
    _edit("01_download", "markdown", "Which market messages", "What of the market")
    _edit("06_convergence", "code", "import", "import  ")
    assert main(["render", "--text"]) == 1
    assert "06_convergence.ipynb is of another notebook" in capsys.readouterr().err
    assert (finished.notebooks / "01_download_BTC.ipynb").read_bytes() == before


def test_nothing_is_reworded_while_a_run_is_at_work(finished, capsys) -> None:
    with locks.run_lock():
        assert main(["render", "--text"]) == 1
    assert "another run" in capsys.readouterr().err


def test_an_altered_render_is_not_made_true(finished) -> None:
    render = finished.notebooks / "06_convergence.ipynb"
    render.write_text(render.read_text().replace("Convergence", "Divergence", 1))
    with pytest.raises(DataError, match=r"06_convergence\.ipynb: altered after 06_convergence wrote it"):
        rendering.refresh(finished)


def test_without_a_run_there_is_nothing_to_refresh(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path))
    with pytest.raises(MissingInputError, match=r"no .*manifest\.json"):
        rendering.refresh(Paths("sample"))


def test_a_render_without_stage_is_refused(capsys) -> None:
    assert main(["render"]) == 1
    assert "--text" in capsys.readouterr().err
