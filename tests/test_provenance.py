"""Provenance: what a render was made of is read, never guessed."""

import json
import subprocess

import pandas as pd
import pytest

from hyperdapo.evidence import numbers, provenance, tables
from hyperdapo.params import load
from hyperdapo.paths import Paths


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    return Paths("smoke", "BTC")


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


def test_the_manifest_holds_the_hash_of_every_table(paths: Paths) -> None:
    tables.save(pd.DataFrame({"a": [1.0]}), paths, "one", "One")
    numbers.save({("a",): 1.0}, paths)
    manifest = json.loads(provenance.write_manifest(load("smoke"), paths).read_text())
    assert {"tables/one.csv", "tables/one.tex", "numbers.tex"} == set(manifest["files"])
    assert manifest["parameters"] == load("smoke").fingerprint() and manifest["versions"]["torch"].startswith("2.13.0")
    assert list(manifest) == sorted(manifest) and set(manifest["data"]) == set(load("smoke").assets)


def test_the_stamp_names_its_files(paths: Paths) -> None:
    numbers.save({("a",): 1.0}, paths)
    shown = provenance.stamp(load("smoke"), paths, "09_significance", [paths.outputs / "numbers.tex"])
    assert "numbers.tex" in shown.data and load("smoke").fingerprint() in shown.data
    with pytest.raises(FileNotFoundError):
        provenance.stamp(load("smoke"), paths, "09_significance", [paths.outputs / "absent.tex"])
