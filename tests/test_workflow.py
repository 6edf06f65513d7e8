"""What a stage depends on is read from its code; parameter names are checked before anything runs."""

import json
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import nbformat
import pytest

from conftest import REPOSITORY
from hyperdapo import cli, dependencies, plan
from hyperdapo.errors import HyperdapoError, ParameterError
from hyperdapo.files import atomic
from hyperdapo.params import load
from hyperdapo.paths import NOTEBOOKS
from hyperdapo.stages import record
from hyperdapo.workflow import engine, rendering

SMOKE = load("smoke")


def test_dependencies_follow_imports_through_modules() -> None:
    computes = {path.name for path in dependencies.modules("import hyperdapo.stages.features")}
    assert {"features.py", "book.py", "laws.py", "params.py"} <= computes
    assert not {"training.py", "simulator.py", "style.py"} & computes, "nothing is drawn, and nothing trained"
    shows = {path.name for path in dependencies.modules(dependencies.notebook_code(NOTEBOOKS / "03_features.ipynb"))}
    assert {"style.py", "features.py"} <= shows


def test_a_stage_depends_on_the_keys_it_names_and_no_more() -> None:
    assert "evidence" not in " ".join(record.names("04_preference_pairs")), "blocks are of 09 alone"
    assert {"execution", "laws.block_s"} <= set(record.names("04_preference_pairs"))
    assert "assets" in record.names("09_significance") and "assets" not in record.names("05_train")


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"evidence": {"block_s": 120}}, "09_significance"),
        ({"evidence": {"bootstrap": 900}}, "09_significance"),
        ({"inference": {"latency_decisions": 6}}, "07_inference"),
        ({"training": {"steps": 9}}, "05_train"),
        ({"features": {"window_s": 60}}, "02_preprocess"),
        ({"assets": ["BTC"]}, "06_convergence"),
    ],
)
def test_a_parameter_decides_no_stage_before_the_first_that_mentions_it(changes: dict[str, Any], first: str) -> None:
    changed = load("smoke", changes)
    moved = []
    for stage in plan.STAGES:
        then, now = (dependencies.select(parameters, record.names(stage)) for parameters in (SMOKE, changed))
        moved += [stage] * (then != now)
    assert moved and moved[0] == first


def test_comments_and_docstrings_decide_no_result() -> None:
    bare = "def f():\n    return 1\n"
    told = '"""A module."""\n\n\ndef f():  # one\n    """One."""\n    return 1\n'
    assert (
        dependencies._meaning(told) == dependencies._meaning(bare) != dependencies._meaning("def f():\n    return 2\n")
    )


def test_the_workflow_starts_without_what_only_a_render_needs() -> None:
    """Every job and every run imports it; papermill takes as long as all the rest."""
    heavy = "{'papermill', 'nbformat', 'torch'} & set(sys.modules)"
    check = f"import hyperdapo.cli, hyperdapo.workflow.run, sys; sys.exit({heavy} or 0)"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def _notebook(path, *cells: str):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.cells[0].metadata.tags = ["parameters"]
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


def test_a_misspelt_notebook_parameter_is_an_error(tmp_path) -> None:
    notebook = _notebook(tmp_path / "one.ipynb", 'profile = "smoke"')
    with pytest.raises(ParameterError, match=r"one\.ipynb has no parameter 'profil' .did you mean 'profile'"):
        rendering.render(notebook, tmp_path / "out.ipynb", {"profil": "sample"})


def test_a_failed_render_keeps_the_notebook_and_leaves_no_output(tmp_path) -> None:
    notebook = _notebook(tmp_path / "one.ipynb", "x = 1", 'raise ValueError("mend this")')
    with pytest.raises(HyperdapoError, match="ValueError: mend this"):
        rendering.render(notebook, tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists() and (tmp_path / "out.failed.ipynb").exists()


def test_a_render_knows_nothing_of_the_machine(tmp_path) -> None:
    rendering.render(_notebook(tmp_path / "one.ipynb", "x = 1", "x"), tmp_path / "out.ipynb", {"x": 2})
    text = (tmp_path / "out.ipynb").read_text()
    assert str(tmp_path) not in text and "start_time" not in text and '"2"' in text


def test_a_failed_writer_leaves_the_old_file(tmp_path) -> None:
    kept = tmp_path / "table.csv"
    kept.write_text("whole")
    with pytest.raises(RuntimeError), atomic(kept) as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert kept.read_text() == "whole" and list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--profile", "smokey"], "did you mean 'smoke'"),
        (["run", "--profile", "smoke", "--asset", "BTX"], "did you mean 'BTC'"),
        (["run", "--profile", "smoke", "--until", "xx"], "no stage 'xx'"),
        (["run", "--profile", "smoke", "--params", "absent.yaml"], "there is no parameter file"),
        (["serve-recordings", "absent-folder"], "absent-folder"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str], says: str, tmp_path) -> None:
    command = [sys.executable, "-m", "hyperdapo.cli", *arguments]
    found = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={"PATH": "", "HYPERDAPO_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1 and says in found.stderr and "Traceback" not in found.stderr


def test_a_date_of_a_params_file_reaches_the_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    asked: list[list[str]] = []

    def finished(arguments: list[str], *_: object) -> int:
        asked.append(arguments)
        return 0

    monkeypatch.setattr(engine, "run", finished)
    (tmp_path / "span.yaml").write_text("source: {from: 2025-08-01T06:00:00Z, to: 2025-08-01T07:00:00Z}\n")
    assert cli.main(["run", "--profile", "smoke", "--params", str(tmp_path / "span.yaml")]) == 0
    overrides = next(part for part in asked[-1] if part.startswith("overrides=")).removeprefix("overrides=")
    again = load("smoke", json.loads(b64decode(overrides)))
    assert again.source.end_ns - again.source.start_ns == 3600 * 10**9
