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
from hyperdapo.dependencies import modules

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
PACKAGE = REPOSITORY / "lib/hyperdapo"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEADER = ("Question", "Reads", "Writes", "Thesis items", "Run time and memory")

TOP = ""  # the modules that stand in no room
REACHES = {
    TOP: set(),
    "market": set(),
    "evidence": set(),  # it takes data frames, of whatever run
    "feed": {"market"},
    "execution": {"market"},
    "policy": {"market"},
    "synthetic": {"market", "execution"},
    "sequential": {"market", "execution", "policy"},
    "stages": {"market", "feed", "synthetic", "execution", "policy", "sequential", "evidence"},
    "studies": {"market", "feed", "synthetic", "execution", "policy", "sequential", "evidence", "stages"},
    "live": {"market", "feed", "synthetic", "execution", "policy", "evidence"},
    "report": {"evidence"},
    "serving": {"market", "feed", "execution", "policy"},
    "workflow": {"market", "feed", "policy", "evidence", "stages"},
    "remote": {"market", "feed", "policy", "evidence", "stages", "workflow"},
}
"""The rooms that a room may import, directly or through others; `cli.py`, where commands begin, may import all."""

NEVER = [
    ("feed", "synthetic", "data come from an endpoint, whoever serves it"),
    ("execution/history.py", "synthetic", "records of real orders need no exchange that we make"),
    ("synthetic", "execution/simulator.py", "the truth knows nothing of the simulator that it judges"),
    ("policy", "execution/kernel.py", "a policy learns from tables of outcomes"),
]


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _room(path: Path) -> str:
    first, *rest = path.relative_to(PACKAGE).parts
    return first if rest else TOP


def _inside(path: Path, place: str) -> bool:
    return path == PACKAGE / place or PACKAGE / place in path.parents


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

    def test_imports_stand_together_and_are_few(self, path: Path) -> None:
        lines = [line for cell in _cells(path, "code") for line in cell.source.splitlines()]
        imports = [line for line in lines if re.match(r"(import|from) ", line)]
        assert len(imports) <= 8 and lines[lines.index(imports[0]) :][: len(imports)] == imports

    def test_says_what_happened_in_this_run_before_it_shows_it(self, path: Path) -> None:
        cells = nbformat.read(path, as_version=4).cells
        place = next(place for place, cell in enumerate(cells) if cell.source == "## In this run")
        assert place == 4 and cells[place + 1].source.startswith("narrative.show(narrative.")

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


@pytest.mark.parametrize("path", MODULES, ids=_name)
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


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_public_functions_say_what_they_do(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize(
    "room", [*REACHES, "evidence/figures", "evidence/hypotheses", "evidence/chapter", "live/connection", "live/replay"]
)
def test_a_room_has_at_most_twelve_modules(room: str) -> None:
    names = [path.stem for path in (PACKAGE / room).glob("*.py") if path.name != "__init__.py"]
    assert len(names) <= 12, sorted(names)


def test_the_table_of_rooms_is_whole() -> None:
    assert {_room(path) for path in MODULES} == set(REACHES)


@pytest.mark.parametrize("path", [path for path in MODULES if _name(path) != "cli.py"], ids=_name)
def test_a_module_reaches_the_rooms_below_its_own_only(path: Path) -> None:
    room = _room(path)
    others = {_room(other) for other in modules(path.read_text())} - {room, TOP}
    assert others <= REACHES[room], f"{_name(path)} reaches {others - REACHES[room]}"


@pytest.mark.parametrize(("start", "end", "why"), NEVER)
def test_what_must_stay_apart_does(start: str, end: str, why: str) -> None:
    found = [path for path in MODULES if _inside(path, start)]
    assert found and any(_inside(path, end) for path in MODULES), "one of the two has another name now"
    for path in found:
        reached = [_name(other) for other in modules(path.read_text()) if _inside(other, end)]
        assert not reached, f"{why}: {_name(path)} reaches {reached}"


def test_notebooks_that_show_no_model_load_no_torch() -> None:
    """Their imports, one notebook after the other in a process of their own; 05 shows a loss and an adapter."""
    lines = ["import sys"]
    for stage in (path.stem for path in NOTEBOOKS if path.stem != "05_train"):
        for cell in _cells(REPOSITORY / f"notebooks/{stage}.ipynb", "code"):
            nodes = ast.walk(ast.parse(cell.source))
            lines += [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        lines.append(f"'torch' in sys.modules and sys.exit('{stage} loads torch')")
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)


def test_nothing_names_a_machine_of_ours() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if path.suffix in {".py", ".ipynb", ".md", ".yaml", ".tex", ".csv", ".json", ".html"} and path.is_file():
            assert str(REPOSITORY) not in path.read_text(errors="replace"), name
