"""What is written points to what is there: documents, headings, links, code, and the lists that additions rest on."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import nbformat
import pytest
import yaml

from conftest import REPOSITORY
from hyperdapo.evidence.figures import style
from hyperdapo.execution.strategies import STRATEGIES
from hyperdapo.market.features import NAMES
from hyperdapo.params import load, read
from hyperdapo.paths import NOTEBOOKS, PARAMS
from hyperdapo.policy.rivals import RIVALS
from hyperdapo.sections import Algorithm
from hyperdapo.sequential.iteration import AGAIN

PACKAGE = REPOSITORY / "lib/hyperdapo"
DESIGN = REPOSITORY / "docs/design.md"
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
OTHERS = ["Makefile", "Snakefile", *(f"params/{path.name}" for path in (REPOSITORY / "params").glob("*.yaml"))]
SOURCES = sorted(
    [
        *(path for folder in ("lib", "tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")),
        *PAGES,
        *(REPOSITORY / name for name in OTHERS),
    ]
)
ENDINGS = {"cff", "csv", "html", "json", "jsonl", "log", "lock", "md", "parquet", "py", "tex", "toml", "yaml"}
NOT_DOCUMENTS = {"notes.md"}  # of the tests of the rented host
NOT_DOCUMENTS |= {"numbers.md", "reproducibility.md", "map.md"}  # 09 makes them
NOT_DOCUMENTS |= {"index.md", "across/dashboard.md"}  # the report does
DOCUMENT = re.compile(r"(?<![\w/.:-])(?:[\w.-]+/)*[\w-]+\.md\b")
HEADING = re.compile(r"((?:[\w.-]+/)*[\w-]+\.md), (?![\w./-]*\.md)([A-Z][^`.;:)\"]*)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
THESIS = re.compile(r"(eqs?\. |Listings? |§(?=\d\.)|ch\. )(\d(?:\.\d+)*)((?:\s?(?:,|and|to|-)\s?\d\.\d+)*)")


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _text(path: Path) -> str:
    """A source in one line, without the marks of comments, so that a reference may be wrapped."""
    return re.sub(r"\s*\n\s*(?:#\s)?\s*", " ", path.read_text())


def _headings(page: Path) -> list[str]:
    fenced = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return re.findall(r"^#{1,6} (.+?)\s*$", fenced, re.M)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _found(name: str, beside: Path) -> Path | None:
    """The document of a name: a path from the repository, or from the folder of the file that names it."""
    return next((path for path in (REPOSITORY / name, beside.parent / name) if path.is_file()), None)


def _section(heading: str) -> str:
    """What stands under a heading of docs/design.md, deeper headings included."""
    match = re.search(rf"^(#+) {re.escape(heading)}$\n(.*?)(?=^#{{1,2}} |\Z)", DESIGN.read_text(), re.M | re.S)
    assert match, f"docs/design.md has no heading {heading}"
    return match[2]


def rows(markdown: str) -> list[list[str]]:
    """The cells of the rows of the tables in a piece of Markdown, without headers."""
    lines = [line.strip() for line in markdown.splitlines()]
    body = [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if not re.match(r"\|[-| ]+\|$", after)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body if line.startswith("|")]
    return [row for row in cells if set("".join(row)) - {"-"}]


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_every_document_and_heading_that_is_named_is_there(path: Path) -> None:
    text = _text(path)
    for name in set(DOCUMENT.findall(text)) - NOT_DOCUMENTS:
        assert _found(name, path), f"{_name(path)} names {name}"
    for name, rest in HEADING.findall(text):
        page = _found(name, path)
        assert page, f"{_name(path)} names {name}"
        said = [one for one in _headings(page) if re.match(rf"{re.escape(one)}(?!\w)", rest)]
        assert said, f"{_name(path)} refers to {name}, {rest}: it has {_headings(page)}"


def test_nothing_refers_to_a_design_that_is_not_here() -> None:
    pattern = re.compile("DESIGN" + r" ?§|DESIGN" + r"\.md")
    assert [_name(path) for path in SOURCES if pattern.search(path.read_text())] == []


@pytest.mark.parametrize("path", [*PAGES, *sorted(NOTEBOOKS.glob("*.ipynb"))], ids=_name)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for target in LINK.findall(text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), f"{_name(path)} links to {target}"
        assert not anchor or anchor in map(_anchor, _headings(page)), f"{_name(path)} links to {target}"


def test_the_features_are_those_of_the_code() -> None:
    table = rows(_section("Features"))
    assert [row[0].strip("`") for row in table] == list(NAMES)
    assert all(row[2].startswith("bps") == row[0].endswith("_bps`") for row in table)
    windows = {f"`{name}`" for name in type(load("sample").features).model_fields} | {"now", "60 s"}
    assert {row[3] for row in table} <= windows


def _mentioned(text: str) -> Iterator[str]:
    """Sections, equations, listings and chapters of the thesis in a text, one by one: ranges are written out."""
    for kind, first, more in THESIS.findall(text):
        word = {"e": "eq.", "L": "Listing", "§": "§", "c": "ch."}[kind[0]]
        yield f"{word}{'' if word == '§' else ' '}{first}"
        if word in ("eq.", "Listing"):
            last = first
            for link, number in re.findall(r"(,|and|to|-)\s?(\d\.\d+)", more):
                chapter, begin, end = last.split(".")[0], int(last.split(".")[1]), int(number.split(".")[1])
                numbers = range(begin + 1, end + 1) if link in ("to", "-") else [end]
                yield from (f"{word} {chapter if link in ('to', '-') else number[0]}.{one}" for one in numbers)
                last = number


def test_ranges_of_the_thesis_are_read_whole() -> None:
    assert list(_mentioned("§3.3.2, eq. 2.8, 2.9, 3.4 to 3.6, Listings 4.4 to 4.6, 4.11 and ch. 5")) == [
        *("§3.3.2", "eq. 2.8", "eq. 2.9", "eq. 3.4", "eq. 3.5", "eq. 3.6"),
        *("Listing 4.4", "Listing 4.5", "Listing 4.6", "Listing 4.11", "ch. 5"),
    ]


def test_the_map_knows_whatever_of_the_thesis_is_mentioned() -> None:
    known = {one for row in rows(_section("From the thesis to the code")) for one in _mentioned(row[0])}
    sources = [*PACKAGE.rglob("*.py"), *NOTEBOOKS.glob("*.ipynb"), *PAGES, *(REPOSITORY / name for name in OTHERS)]
    for path in sources:
        assert not set(_mentioned(_text(path))) - known, f"{_name(path)} mentions what the map does not know"


def _resolves(name: str) -> bool:
    """Whether a dotted name of the package is a room, a module, or something that a module defines."""
    parts = name.split(".")
    if PACKAGE.joinpath(*parts).is_dir():
        return True
    for depth in range(len(parts), 0, -1):
        place = PACKAGE.joinpath(*parts[:depth])
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if module.is_file():
            return depth == len(parts) or (depth == len(parts) - 1 and parts[-1] in _defined(module))
    return False


def _defined(module: Path) -> set[str]:
    names = set[str]()
    for node in ast.parse(module.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        names |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
    return names


def test_code_that_the_map_names_is_there() -> None:
    for row in rows(_section("From the thesis to the code")):
        for name in re.findall(r"`([^`]+)`", row[3]):
            assert _resolves(name) or (REPOSITORY / name).is_file(), f"no {name}"


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_dotted_names_are_code_or_parameters(path: Path) -> None:
    for name in re.findall(r"`([a-z_]\w*(?:\.\w+)+)`", path.read_text()):
        if name.rpartition(".")[2] not in ENDINGS:
            assert name == "sys.path" or _resolves(name) or _is_parameter(name), f"{_name(path)} names {name}"


def _is_parameter(name: str) -> bool:
    values: object = read(PARAMS / "base.yaml")
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def test_files_that_contributing_names_are_there() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|yaml|ipynb|md))`", text)
    assert len(named) > 10
    for name in named:
        assert (REPOSITORY / name).is_file() or (PACKAGE / name).is_file(), f"CONTRIBUTING.md names {name}"


def test_every_strategy_and_algorithm_has_a_colour() -> None:
    """Figures of several strategies go through the list of colours: one that is not in it would not be shown."""
    assert {*STRATEGIES, *get_args(Algorithm), "untrained", *RIVALS, *AGAIN} == set(style.STRATEGY_COLOURS)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert {"cff-version", "message", "title", "authors"} <= set(citation) and citation["cff-version"] == "1.2.0"
    assert citation["version"] == re.search(r'^version = "(.+)"$', project, re.M)[1]
    assert citation["authors"][0]["name"] in (REPOSITORY / "LICENSE").read_text()
    assert f"## [{citation['version']}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_hooks_leave_rendered_notebooks_alone() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    files = {hook["id"]: hook["files"] for hook in hooks}
    assert set(files) == {"ruff-check", "ruff-format", "nbstripout"}
    stripped = re.compile(files["nbstripout"])
    assert stripped.search("notebooks/03_features.ipynb")
    assert not stripped.search("outputs/sample/notebooks/03_features_BTC.ipynb")
