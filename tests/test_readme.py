"""The README's stage table says what the notebooks' headers say."""

import re

import nbformat
import pandas as pd

from conftest import REPOSITORY


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
    gaps = pd.read_csv(REPOSITORY / "outputs/sample/tables/learning_gap.csv")
    for row in gaps.itertuples():
        interval = f"{row.gap_ci_low:.2f} to {row.gap_ci_high:.2f}"
        means = [row.untrained_bps, row.best_fixed_bps, row.boosting_bps, row.trained_bps, row.oracle_bps]
        shown = [f"{value:.2f}" for value in [*means, row.gap_closed]]
        cells = [row.asset, row.algorithm.upper(), *shown, interval]
        assert f"| {' | '.join(cells)} |" in readme, f"README lacks the row of {row.asset} {row.algorithm}"
