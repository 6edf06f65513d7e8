"""README and committed renders say what notebooks and results say."""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from conftest import REPOSITORY
from hyperdapo.evidence import narrative
from hyperdapo.params import load
from hyperdapo.plan import ACROSS_ASSETS, STAGES

RENDERS = sorted((REPOSITORY / "outputs/sample/notebooks").glob("*.ipynb"))


def test_stage_table_equals_the_headers() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    rows = {
        match[1]: [cell.strip() for cell in match[2].split("|")[:5]]
        for match in re.finditer(r"^\| \[(\d\d_\w+)\]\([^)]+\) \|(.+)\|$", readme, re.M)
    }
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        header = nbformat.read(path, as_version=4).cells[0].source
        assert rows[path.stem] == re.findall(r"^- \*\*.+?:\*\* (.+)$", header, re.M), path.stem


def test_readme_names_the_two_commands() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "make reproduce" in readme and "make test" in readme


def test_the_results_are_those_of_the_committed_run() -> None:
    """Every line between the markers is made from the committed tables (tests/test_narrative.py holds how)."""
    readme, tables = (REPOSITORY / "README.md").read_text(), REPOSITORY / "outputs/sample/tables"
    assert "<!-- results -->\nThe share" in readme
    refreshed = narrative.refresh(readme, tables)
    assert readme == refreshed, "README.md has other results: run `python -m hyperdapo.evidence.narrative`"
    gaps = pd.read_csv(tables / "learning_gap_over_seeds.csv")
    assert all(f"| `{algorithm}` | " in readme for algorithm in gaps["algorithm"])


@pytest.mark.parametrize("render", RENDERS, ids=lambda path: path.stem)
def test_a_committed_render_is_of_the_notebook_as_it_stands(render: Path) -> None:
    """A reviewer reads the render alone: one left over from an earlier notebook tells another story."""
    ran, written = (_sources(path) for path in (render, _notebook_of(render)))
    how = "`hyperdapo render --text` where only prose changed, else make reproduce, and commit outputs/sample"
    assert ran == written, f"{render.name} is of another version: {how}"


def test_every_notebook_of_every_asset_is_rendered() -> None:
    assets = load("sample").assets
    each = [f"{stage}_{asset}" for stage in STAGES if stage not in ACROSS_ASSETS for asset in assets]
    assert [path.stem for path in RENDERS] == sorted([*each, *ACROSS_ASSETS])


def _sources(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def _notebook_of(render: Path) -> Path:
    return next(path for path in (REPOSITORY / "notebooks").glob("*.ipynb") if render.stem.startswith(path.stem))
