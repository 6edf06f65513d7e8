"""README and committed renders say what notebooks and results say."""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from conftest import REPOSITORY
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
    readme = (REPOSITORY / "README.md").read_text()
    gaps = pd.read_csv(REPOSITORY / "outputs/sample/tables/learning_gap_over_seeds.csv")
    for algorithm, rows in gaps.groupby("algorithm"):
        cells = [f"{row.gap_closed:.2f} ({row.gap_ci_low:.2f} to {row.gap_ci_high:.2f})" for row in rows.itertuples()]
        assert f"| `{algorithm}` | {' | '.join(cells)} |" in readme, f"README lacks the row of {algorithm}"
    boosting = gaps.groupby("asset", sort=False)["boosting_gap_closed"].first()
    assert f"| boosting | {' | '.join(f'{closed:.2f}' for closed in boosting)} |" in readme


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
