"""Provenance: what a render was made of is read, never guessed."""

import json
import subprocess

import pandas as pd
import pytest
from matplotlib.figure import Figure

from hyperdapo.errors import MissingInputError
from hyperdapo.evidence import provenance, tables
from hyperdapo.evidence.figures import style
from hyperdapo.params import load
from hyperdapo.paths import Paths


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    return Paths("smoke", "BTC")


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([0, 1])
    return drawn


@pytest.fixture(autouse=True)
def nothing_written(monkeypatch) -> None:
    monkeypatch.setattr(provenance, "_written", {})


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small git repository in the place of ours."""
    folder = tmp_path / "repository"
    (folder / "outputs").mkdir(parents=True)
    (folder / "lib.py").write_text("one\n")
    (folder / "outputs/table.csv").write_text("1\n")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    monkeypatch.setattr(provenance, "REPOSITORY", folder.resolve())
    provenance.commit.cache_clear()
    yield folder
    provenance.commit.cache_clear()


def test_the_commit_is_dirty_only_when_code_changed(repository) -> None:
    clean = provenance.commit()
    assert len(clean) == 12 and not clean.endswith("dirty")
    provenance.commit.cache_clear()
    (repository / "outputs/table.csv").write_text("2\n")
    assert provenance.commit() == clean
    provenance.commit.cache_clear()
    (repository / "lib.py").write_text("two\n")
    assert provenance.commit() == f"{clean}+dirty"


def test_without_a_repository_of_its_own_the_commit_is_unknown(repository, monkeypatch) -> None:
    (repository / "inside").mkdir()
    monkeypatch.setattr(provenance, "REPOSITORY", repository / "inside")
    assert provenance.commit() == "unknown"


def test_the_data_hash_follows_every_slice(paths: Paths) -> None:
    assert provenance.data_hash(paths) == "absent"
    paths.data.mkdir(parents=True)
    manifest = {"slices": [{"name": "a", "sha256": "11"}, {"name": "b", "sha256": "22"}], "retries": 3}
    (paths.data / "manifest.json").write_text(json.dumps(manifest))
    before = provenance.data_hash(paths)
    (paths.data / "manifest.json").write_text(json.dumps(manifest | {"retries": 0}))
    assert provenance.data_hash(paths) == before and len(before) == 16
    manifest["slices"][1]["sha256"] = "23"
    (paths.data / "manifest.json").write_text(json.dumps(manifest))
    assert provenance.data_hash(paths) != before


def test_the_manifest_lists_what_each_stage_wrote(paths: Paths) -> None:
    parameters = load("smoke")
    tables.save(pd.DataFrame({"a": [1.0]}), paths, "one", "One")
    style.save(figure(), paths, "curve")
    paths.data.mkdir(parents=True)
    (paths.data / "split.json").write_text("{}")
    render = paths.notebooks / "02_preprocess_BTC.ipynb"
    provenance.stamp(parameters, paths, "02_preprocess")
    render.parent.mkdir()
    render.write_text("{}")
    provenance.record_render(paths, "02_preprocess", render, {"code": "of the figures"})
    units = ["01_download BTC", "02_preprocess BTC"]
    listed = json.loads(provenance.write(parameters, paths, units).read_text())
    assert listed["parameters"] == parameters.model_dump(mode="json") and list(listed["stages"]) == units[1:]
    entry = listed["stages"]["02_preprocess BTC"]
    made = {"tables/one.csv", "tables/one.tex", "figures/curve.pdf", "figures/curve.png"}
    assert set(entry["files"]) == made | {"notebooks/02_preprocess_BTC.ipynb"}
    assert set(entry["derived"]) == {"BTC/split.json"} and entry["parameters"] == parameters.fingerprint()
    assert entry["versions"]["torch"].startswith("2.13.0") and entry["data"] == {"BTC": "absent"}


def test_a_render_without_a_stamp_is_refused(paths: Paths) -> None:
    with pytest.raises(MissingInputError, match="last cell"):
        provenance.record_render(paths, "02_preprocess", paths.notebooks / "02_preprocess_BTC.ipynb", {})


def test_the_stamp_names_its_files(paths: Paths) -> None:
    paths.outputs.mkdir(parents=True)
    (paths.outputs / "numbers.tex").write_text("")
    shown = provenance.stamp(load("smoke"), paths, "09_significance", [paths.outputs / "numbers.tex"])
    assert "numbers.tex" in shown.data and load("smoke").fingerprint() in shown.data
    with pytest.raises(FileNotFoundError):
        provenance.stamp(load("smoke"), paths, "09_significance", [paths.outputs / "absent.tex"])
