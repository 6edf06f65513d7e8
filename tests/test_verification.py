"""Verification notices every value that moved, every file that was altered, left over or never made."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from hyperdapo import plan
from hyperdapo.cli import main
from hyperdapo.errors import DataError, HyperdapoError, MissingInputError
from hyperdapo.evidence import contents, provenance, tables, verification
from hyperdapo.evidence.chapter.book import Book, Source
from hyperdapo.evidence.contents import Tolerances
from hyperdapo.evidence.figures import convergence as convergence_figures
from hyperdapo.evidence.verification import compare, keep_reference, verify
from hyperdapo.files import sha256
from hyperdapo.params import load
from hyperdapo.paths import REPOSITORY, Paths

SMOKE = load("smoke")
UNITS = ["01_download BTC", "06_convergence", "09_significance"]
SIGNIFICANCE = pd.DataFrame(
    {
        "asset": "BTC",
        "strategy": ["twap", "dapo"],
        "reference": "best_fixed",
        "difference_bps": [1.25, -0.5],
        "p_t_holm": [0.04, 0.045],
        "significant": [True, True],
    }
)
LEARNING = pd.DataFrame({"asset": "BTC", "algorithm": "dapo", "seed": [0, 1], "gap_closed": [0.8, 0.7]})
DOWNLOAD = pd.DataFrame({"channel": ["bbo", "trades"], "messages": [100, 200], "per_minute": [1.5, 2.5]})
LATENCY = pd.DataFrame({"way": ["score"], "median_measured_ms": [3.25]})


def _render(path: Path, shown: str, stamp: str) -> None:
    outputs = [nbformat.v4.new_output("execute_result", {"text/html": html}) for html in (shown, stamp)]
    cells = [nbformat.v4.new_code_cell("x", outputs=[output]) for output in outputs]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def _picture(paths: Paths, name: str, grey: int = 255) -> None:
    paths.figures.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((20, 20), grey, dtype=np.uint8)).save(paths.figures / f"{name}.png")
    (paths.figures / f"{name}.pdf").write_bytes(b"%PDF-1.4 1.5")
    for ending in ("png", "pdf"):
        provenance.note(paths.figures / f"{name}.{ending}")


def _dashboard(paths: Paths) -> Path:
    log = pd.DataFrame({"asset": "BTC", "algorithm": "dapo", "seed": 0, "step": [0, 5], "heldout_reward": [-2.0, -1.0]})
    for name in ("loss", "heldout_accuracy", "heldout_best_fixed", "heldout_oracle", "entropy", "train_reward"):
        log[name] = [0.5, 0.25]
    html = convergence_figures.dashboard(log).to_html(include_plotlyjs=False, div_id="training")
    (paths.outputs / "dashboard.html").write_text(html)
    return paths.outputs / "dashboard.html"


def _stage(paths: Paths, stage: str, shown: str, files: list[Path]) -> None:
    html = provenance.stamp(SMOKE, paths, stage, files).data
    render = paths.notebooks / f"{plan.unit(stage, paths.asset).replace(' ', '_')}.ipynb"
    _render(render, shown, html)
    provenance.record_render(paths, stage, render, {})
    provenance._written.clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and outputs of a small run of every kind of file."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        _at(place, patch)
        _run()
    return place


@pytest.fixture
def finished(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The outputs of that run, twice: a reference, and where this process writes; every stage of it ran."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    _at(tmp_path, monkeypatch)
    shutil.copytree(Paths("smoke").outputs, tmp_path / "reference")
    return tmp_path / "reference", Paths("smoke").outputs


def _at(place: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a place, where a whole run is the stages of `UNITS`."""
    patch.setenv("HYPERDAPO_OUTPUTS", str(place / "outputs"))
    patch.setenv("HYPERDAPO_DATA", str(place / "data"))
    patch.setattr(provenance, "_written", {})
    patch.setattr(verification.plan, "units", lambda assets: UNITS)


def _run() -> None:
    one, all_assets = Paths("smoke", "BTC"), Paths("smoke")
    shown = tables.save(DOWNLOAD, one, "download_BTC", "Messages of BTC").data
    tables.save(LATENCY, one, "latency_BTC", "Time")
    _picture(one, "coverage_BTC")
    _stage(one, "01_download", shown, [])
    shown = tables.save(LEARNING, all_assets, "learning_gap", "The gap").data
    _stage(all_assets, "06_convergence", shown, [_dashboard(all_assets)])
    shown = tables.save(SIGNIFICANCE, all_assets, "significance", "Differences over 2 strategies").data
    _picture(all_assets, "forest")
    _stage(all_assets, "09_significance", shown, [_numbers(all_assets)])
    provenance.write(SMOKE, all_assets, UNITS)


def _numbers(paths: Paths) -> Path:
    book = Book()
    for name, value in {("BTC", "twap", "bps"): 1.25, ("BTC", "dapo", "gap_closed"): 0.8}.items():
        book.enter(name, value, 2, Source("main", "BTC", "{a column}"))
    path = paths.outputs / "numbers.tex"
    path.write_text(book.macros())
    return path


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _sign(folder: Path) -> None:
    """Make the manifest one of a run that wrote the files as they are."""
    listing = json.loads((folder / "manifest.json").read_text())
    for entry in listing["stages"].values():
        entry["files"] = {f: sha256(folder / f) for f in entry["files"] if (folder / f).exists()}
    (folder / "manifest.json").write_text(json.dumps(listing))


def _fails(finished, capsys) -> str:
    with pytest.raises(HyperdapoError, match="outside their bounds"):
        verify(*finished)
    return capsys.readouterr().out


def test_the_same_run_matches(finished, capsys) -> None:
    verify(*finished, SMOKE)
    printed = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"(\d+) of (\d+) values within tolerance; 0 verdicts changed", printed[-1])
    assert found and found[1] == found[2] and int(found[1]) > 50
    assert any(line.startswith("tables/learning_gap.csv") and "trained" in line for line in printed)


FILES = {
    "tables/download_BTC.csv": ("1.5", "1.6"),
    "tables/download_BTC.tex": ("1.50", "1.60"),
    "tables/significance.tex": ("over 2", "over 3"),
    "numbers.tex": ("1.25", "1.29"),
    "notebooks/01_download_BTC.ipynb": ("1.50", "1.60"),
    "notebooks/09_significance.ipynb": ("1.25", "91.25"),
    "figures/coverage_BTC.pdf": ("1.5", "1.6"),
    "dashboard.html": ("heldout", "helt"),
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_altered_after_its_run_is_named(finished, capsys, name: str) -> None:
    content = (finished[1] / name).read_bytes()
    (finished[1] / name).write_bytes(content + b" ")
    assert f"{name}: altered after" in _fails(finished, capsys)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"figures/coverage_BTC.pdf", "dashboard.html"}))
def test_a_run_that_wrote_another_number_is_named(finished, capsys, name: str) -> None:
    _edit(finished[1] / name, *FILES[name])
    _sign(finished[1])
    printed = _fails(finished, capsys)
    assert "altered" not in printed and f"{name}" in printed
    assert "came back as" in printed or "where download_BTC.csv has" in printed


def test_another_value_in_the_dashboard_is_named(finished, capsys) -> None:
    page = finished[1] / "dashboard.html"
    _edit(page, '"name":"', '"name":"x')
    _sign(finished[1])
    printed = _fails(finished, capsys)
    assert re.search(r"trace \d+ name: DAPO came back as x", printed)


def test_another_picture_is_named(finished, capsys) -> None:
    _picture(Paths("smoke"), "coverage_BTC", grey=0)
    _sign(finished[1])
    assert "pixels: 0 came back as 1 (data, bound 0 of all)" in _fails(finished, capsys)


@pytest.mark.parametrize("stamp", ["commit", "parameters", "data", "seed"])
def test_a_changed_stamp_is_named(finished, capsys, stamp: str) -> None:
    listing = json.loads((finished[1] / "manifest.json").read_text())
    listing["stages"]["01_download BTC"][stamp] = {"BTC": "f00"} if stamp == "data" else "f00"
    (finished[1] / "manifest.json").write_text(json.dumps(listing))
    assert re.search(
        rf"manifest.json: 01_download BTC: {stamp} .*f00, where its render shows", _fails(finished, capsys)
    )


def test_the_data_of_several_assets_may_be_listed_in_any_order(finished) -> None:
    folder = finished[1]
    entry = json.loads((folder / "manifest.json").read_text())["stages"]["09_significance"]
    digests = {"BTC": "0" * 16, "HYPE": "1" * 16, "SOL": "2" * 16}
    shown = ", ".join(f"{asset} {digest}" for asset, digest in reversed(digests.items()))
    render = folder / "notebooks/09_significance.ipynb"
    data = ", ".join(f"{asset} {digest}" for asset, digest in entry["data"].items())
    _edit(render, f"<td>{data}</td>", f"<td>{shown}</td>")
    assert verification._unlike_render(folder, entry | {"data": digests}) == []
    assert verification._unlike_render(folder, entry | {"data": digests | {"SOL": "3" * 16}})


def test_a_column_that_is_printed_in_whole_numbers_is_true_within_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path))
    table = pd.DataFrame({"feature": ["a", "b"], "max": [2.06, 12345.6]})
    paths = Paths("smoke")
    tables.save(table, paths, "features_HYPE", "Features")
    tex = paths.tables / "features_HYPE.tex"
    assert " 2 " in tex.read_text() and contents.untrue_cells(tex) == []
    _edit(tex, " 2 ", " 4 ")
    assert contents.untrue_cells(tex) == ["row 1: 4 where features_HYPE.csv has 2.06"]


def test_a_changed_parameter_value_is_named(finished, capsys) -> None:
    listing = json.loads((finished[1] / "manifest.json").read_text())
    listing["parameters"]["training"]["steps"] = 9
    (finished[1] / "manifest.json").write_text(json.dumps(listing))
    assert "parameters.training.steps: 8 became 9" in _fails(finished, capsys)


@pytest.mark.parametrize("name", [*sorted(FILES), "figures/forest.png", "manifest.json"])
def test_a_deleted_file_is_named(finished, capsys, name: str) -> None:
    (finished[1] / name).unlink()
    if name == "manifest.json":
        with pytest.raises(MissingInputError, match=r"manifest\.json"):
            verify(*finished)
        return
    assert f"{name}: deleted" in _fails(finished, capsys)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_the_run_did_not_write_is_named(finished, capsys, name: str) -> None:
    (finished[1] / name).unlink()
    _sign(finished[1])
    printed = _fails(finished, capsys)
    assert re.search(rf"{re.escape(name)} .*differs\n +the file: a file came back as no file", printed)


def test_left_overs_and_stages_that_did_not_run_are_named(finished, capsys) -> None:
    (finished[1] / "tables/old.csv").write_text("a\n1\n")
    provenance.record_path(Paths("smoke"), "09_significance").unlink()
    with pytest.raises(HyperdapoError):
        verify(*finished, SMOKE)
    printed = capsys.readouterr().out
    assert "tables/old.csv: left over" in printed and "09_significance: did not run" in printed
    assert "numbers.tex: left over" in printed  # what another run wrote does not stand in
    assert "manifest.json: not what the stages recorded" in printed


def test_committed_files_do_not_stand_in_for_a_run(finished, capsys) -> None:
    shutil.rmtree(provenance.record_path(Paths("smoke"), "x").parent)
    with pytest.raises(HyperdapoError):
        verify(*finished, SMOKE)
    printed = capsys.readouterr().out
    assert printed.count("did not run") == 3


def test_rows_in_another_order_are_the_same(finished, capsys) -> None:
    tables.save(LEARNING[::-1], Paths("smoke"), "learning_gap", "The gap")
    _sign(finished[1])
    verify(*finished)


def test_what_is_trained_may_differ_within_its_bound(finished, capsys) -> None:
    moved = LEARNING.assign(gap_closed=[0.81, 0.69])
    tables.save(moved, Paths("smoke"), "learning_gap", "The gap")
    _sign(finished[1])
    verify(*finished)
    tables.save(LEARNING.assign(gap_closed=[0.8, 0.1]), Paths("smoke"), "learning_gap", "The gap")
    _sign(finished[1])
    assert "BTC dapo seed 1, gap_closed: 0.7 came back as 0.1 (trained, bound 0.06)" in _fails(
        finished, capsys
    ).replace("learning_gap ", "")


@pytest.mark.parametrize(("p_value", "within"), [(0.055, True), (0.9, False)])
def test_a_verdict_that_flipped_is_named(finished, capsys, p_value: float, within: bool) -> None:
    flipped = SIGNIFICANCE.assign(p_t_holm=[0.04, p_value], significant=[True, False])
    tables.save(flipped, Paths("smoke"), "significance", "Differences over 2 strategies")
    _sign(finished[1])
    if within:
        verify(*finished)
        printed = capsys.readouterr().out
    else:
        printed = _fails(finished, capsys)
    where = "its numbers lie within the bounds" if within else "outside the bounds"
    assert f"VERDICT BTC dapo best_fixed, significant: True became False; {where}" in printed
    assert "1 verdicts changed" in printed


def test_a_verdict_of_no_trained_policy_must_not_change(finished, capsys) -> None:
    flipped = SIGNIFICANCE.assign(significant=[False, True])
    tables.save(flipped, Paths("smoke"), "significance", "Differences over 2 strategies")
    _sign(finished[1])
    assert "twap best_fixed, significant: True became False; outside" in _fails(finished, capsys)


def test_times_of_this_machine_are_not_compared(finished) -> None:
    tables.save(LATENCY.assign(median_measured_ms=9.0), Paths("smoke"), "latency_BTC", "Time")
    _sign(finished[1])
    assert compare(*finished).same.all()


def test_simulation_is_held_tighter_than_training(finished) -> None:
    tolerances = Tolerances()
    kinds = {"twap, difference_bps": "simulation", "dapo, difference_bps": "trained", "twap, p_t_holm": "trained"}
    for quantity, kind in kinds.items():
        assert tolerances.kind("09_significance", "tables/significance.csv", quantity) == kind
    assert tolerances.kind("09_significance", "numbers.tex", "hd_btc_listing_four_three_bps") == "trained"
    assert tolerances.bound("simulation", "x").width(1.0, 1.0) == pytest.approx(1e-9, rel=0.01)
    assert tolerances.bound("data", "x").width(1e9, 1e9) == 0


def test_every_stage_has_a_kind() -> None:
    for notebook in sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb")):
        assert Tolerances().kind(notebook.stem)


def test_the_reference_is_kept_before_the_run(finished, tmp_path, monkeypatch) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(finished[0], repository / "outputs/smoke")
    monkeypatch.setattr(verification, "REPOSITORY", repository)
    kept = keep_reference(Paths("smoke"))  # a download without git, as it was shipped
    assert (kept / "numbers.tex").read_bytes() == (finished[0] / "numbers.tex").read_bytes()
    (repository / "outputs/smoke/numbers.tex").write_text("overwritten by the run\n")
    assert keep_reference(Paths("smoke")) == kept and "1.25" in (kept / "numbers.tex").read_text()
    verification.forget_reference(Paths("smoke"))
    with pytest.raises(MissingInputError, match=r"numbers\.tex: altered"):
        keep_reference(Paths("smoke"))
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    _edit(repository / "outputs/smoke/numbers.tex", "overwritten", "committed")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "outputs"]):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    _edit(repository / "outputs/smoke/numbers.tex", "committed", "changed since")
    assert (keep_reference(Paths("smoke")) / "numbers.tex").read_text() == "committed by the run\n"


def test_without_a_reference_nothing_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(verification, "REPOSITORY", tmp_path)
    monkeypatch.setattr("hyperdapo.workflow.run.run", lambda *_: pytest.fail("the run began"))
    assert main(["verify", "--profile", "smoke"]) == 1
    assert "--reference DIR" in capsys.readouterr().err


def test_folders_that_are_not_there_are_refused(tmp_path, capsys) -> None:
    assert main(["verify", "--run", str(tmp_path / "nope")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(DataError, match="another version"):
        compare(tmp_path, tmp_path)
