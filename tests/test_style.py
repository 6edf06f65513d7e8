"""The bounds of CONTRIBUTING.md, Style: short cells, short modules, one direction of imports, no paths in cells."""

import ast
import itertools
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MODULES = sorted((REPOSITORY / "lib").rglob("*.py"))
HEADER = ("Question", "Reads", "Writes", "Thesis items", "Run time and memory")
ROOMS = {"market": 1, "execution": 2, "policy": 3, "live": 4}


def _cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_there_are_nine_notebooks() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(1, 10)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_cells_are_few_and_short(self, path: Path) -> None:
        code = [cell.source for cell in _cells(path, "code")]
        lengths = [len(source.splitlines()) for source in code]
        assert statistics.median(lengths) <= 8 and max(lengths) <= 40
        assert len(nbformat.read(path, as_version=4).cells) <= 45
        assert sum(len(re.findall(r"^\s*(?:async )?def ", source, re.M)) for source in code) <= 2

    def test_opens_with_the_header_and_literal_parameters(self, path: Path) -> None:
        cells = nbformat.read(path, as_version=4).cells
        assert cells[0].source.startswith(f"# {path.stem[:2]} · ")
        assert re.findall(r"^- \*\*(.+?):\*\* .+$", cells[0].source, re.M) == list(HEADER)
        assert cells[1].metadata.tags == ["parameters"]
        statements = ast.parse(cells[1].source).body
        names = [statement.targets[0].id for statement in statements]
        across = path.stem in ("06_convergence", "09_significance")
        assert names == (["profile", "overrides"] if across else ["profile", "asset", "overrides"])
        for statement in statements:
            ast.literal_eval(statement.value)

    def test_each_step_states_its_intent_first(self, path: Path) -> None:
        cells = nbformat.read(path, as_version=4).cells
        for before, cell in itertools.pairwise(cells[2:]):
            if cell.cell_type == "code":
                assert before.cell_type == "markdown", f"no sentence before:\n{cell.source}"
        assert [cell for cell in cells if cell.cell_type == "markdown"][-1].source.startswith("## Limits")

    def test_holds_no_path_size_or_output(self, path: Path) -> None:
        for cell in _cells(path, "code"):
            assert not cell.outputs and cell.execution_count is None
            assert "sys.path" not in cell.source and "figsize" not in cell.source
            assert not re.search(r"""["'](?:\.{0,2}/|~/|[A-Za-z]:\\)""", cell.source), cell.source


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY / "lib")))
def test_modules_and_functions_are_short_and_typed(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    tree = ast.parse(text)
    assert not text or ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"
            assert node.returns is not None, f"{node.name} has no return type"
            untyped = [arg.arg for arg in node.args.args + node.args.kwonlyargs if not arg.annotation]
            assert set(untyped) <= {"self", "cls"}, f"{node.name}: {untyped}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY / "lib")))
def test_public_functions_say_what_they_do(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY / "lib")))
def test_imports_go_down_only(path: Path) -> None:
    room = path.relative_to(REPOSITORY / "lib" / "hyperdapo").parts[0]
    imported = set(re.findall(r"from hyperdapo\.(\w+)", path.read_text()))
    if room in ROOMS:
        assert not {other for other in imported if ROOMS.get(other, 0) > ROOMS[room]} and "evidence" not in imported
    if room == "evidence":
        assert not imported & set(ROOMS), "evidence takes data frames only"


@pytest.mark.parametrize(
    "stage",
    [
        "01_download",
        "02_preprocess",
        "03_features",
        "08_backtest",
        "09_significance",
    ],
)
def test_notebooks_without_a_model_load_no_torch(stage: str) -> None:
    cells = _cells(REPOSITORY / "notebooks" / f"{stage}.ipynb", "code")
    imports = "\n".join(
        ast.unparse(node)
        for cell in cells
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    )
    check = f"{imports}\nimport sys; sys.exit('torch is loaded' if 'torch' in sys.modules else 0)"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)


def test_nothing_names_a_machine_of_ours() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if path.suffix in {".py", ".ipynb", ".md", ".yaml", ".tex", ".csv", ".json", ".html"} and path.is_file():
            assert str(REPOSITORY) not in path.read_text(errors="replace"), name
