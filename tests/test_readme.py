"""The README's stage table says what the notebooks' headers say."""

import re

import nbformat

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
