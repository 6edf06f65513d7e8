"""Whether a stage is computed again, taken over from another run, or refused: by the records of what decided it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hyperdapo import dependencies, plan, stages
from hyperdapo.cli import main
from hyperdapo.errors import DataError, MissingInputError, ParameterError
from hyperdapo.params import Parameters, load, recall, remember
from hyperdapo.paths import Paths
from hyperdapo.stages import preprocess, record

ASSET = "BTC"
BEGUN = ("01_download", "02_preprocess")
SHORT: dict[str, Any] = {"assets": [ASSET], "source": {"to": "2025-08-01T00:20:00Z"}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(autouse=True)
def places(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(folders / "data"))
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(folders / "outputs"))


@pytest.fixture
def computed() -> Parameters:
    """A run of twenty minutes of one asset, computed until 02 by whichever test comes first."""
    parameters = load("smoke", SHORT | {"name": "short"})
    for stage in BEGUN:
        stages.compute(stage, parameters, ASSET)
    return parameters


def _times(parameters: Parameters) -> dict[str, int]:
    folder = Paths(parameters.name, ASSET).data
    return {name: (folder / name).stat().st_mtime_ns for name in plan.WRITES["02_preprocess"]}


def test_a_stage_that_stands_is_not_computed_again(computed: Parameters) -> None:
    before = _times(computed)
    stages.compute("02_preprocess", computed, ASSET)
    assert _times(computed) == before


def test_a_forced_one_is(computed: Parameters) -> None:
    before = _times(computed)
    stages.compute("02_preprocess", computed, ASSET, again=True)
    after = _times(computed)
    assert all(after[name] > before[name] for name in before)


def test_a_lost_or_cut_file_is_made_again(computed: Parameters) -> None:
    folder = Paths(computed.name, ASSET).data
    (folder / "bbo.parquet").unlink()
    assert record.why_not("02_preprocess", computed, ASSET) == f"{ASSET}/bbo.parquet is lost or cut"
    stages.compute("02_preprocess", computed, ASSET)
    assert (folder / "bbo.parquet").exists() and not record.why_not("02_preprocess", computed, ASSET)


def test_a_lost_slice_is_downloaded_again(computed: Parameters) -> None:
    paths = Paths(computed.name, ASSET)
    cache = paths.cache / json.loads((paths.data / "manifest.json").read_text())["cache"]
    lost = next(path for path in sorted(cache.rglob("*")) if path.is_file())
    lost.unlink()
    assert "slices" in record.why_not("01_download", computed, ASSET)
    stages.compute("01_download", computed, ASSET)
    assert lost.exists() and not record.why_not("01_download", computed, ASSET)


def test_a_parameter_that_it_mentions_counts_and_no_other(computed: Parameters) -> None:
    other = load("smoke", SHORT | {"name": "short", "clean": {"max_gap_s": 7.0}, "training": {"steps": 5}})
    assert (
        record.why_not("02_preprocess", other, ASSET) == f"changed: clean.max_gap_s {computed.clean.max_gap_s} -> 7.0"
    )
    assert not record.why_not("01_download", other, ASSET)


def test_what_was_computed_with_other_parameters_is_refused_by_the_next_stage(computed: Parameters) -> None:
    other = load("smoke", SHORT | {"name": "short", "clean": {"max_gap_s": 7.0}})
    then = computed.clean.max_gap_s
    told = f"02_preprocess was computed with clean.max_gap_s {then}, and this run has 7.0. Run: .*--until 02"
    with pytest.raises(DataError, match=told):
        stages.compute("03_features", other, ASSET)


def test_a_stage_of_one_asset_needs_one_and_one_across_assets_takes_none(computed: Parameters) -> None:
    with pytest.raises(ParameterError, match="02_preprocess is made for one asset"):
        stages.compute("02_preprocess", computed)
    with pytest.raises(ParameterError, match="09_significance is made across all assets"):
        stages.compute("09_significance", computed, ASSET)


def test_a_number_is_enough_to_compute_a_stage_again(computed: Parameters, monkeypatch: pytest.MonkeyPatch) -> None:
    again = list[bool]()
    monkeypatch.setattr(stages, "compute", lambda *arguments: again.append(arguments[3]))
    for name in ("02", "02_preprocess", "03", ""):
        assert main(["stage", "02", "--profile", "smoke", "--asset", ASSET, "--again", name]) == 0
    assert again == [True, True, False, False]


def test_a_stage_before_that_is_not_there_is_named(computed: Parameters) -> None:
    with pytest.raises(MissingInputError, match="hyperdapo run --name elsewhere --until 01"):
        stages.compute("02_preprocess", load("smoke", SHORT | {"name": "elsewhere", "seed": 11}), ASSET)


def test_what_another_run_has_computed_is_linked_and_not_computed(
    computed: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load("smoke", SHORT | {"name": "linked", "training": {"steps": 5}})
    monkeypatch.setattr(preprocess, "compute", lambda *_: pytest.fail("it was computed"))
    assert list(record.lenders(other, BEGUN)) == [f"{stage} {ASSET}" for stage in BEGUN]
    assert stages.take_over(other, BEGUN) == [f"{stage} {ASSET}" for stage in BEGUN]
    for name in plan.WRITES["02_preprocess"]:
        here, there = (Paths(run.name, ASSET).data / name for run in (other, computed))
        assert os.path.samefile(here, there)
    assert not record.why_not("02_preprocess", other, ASSET)


def test_a_notebook_by_hand_takes_over_what_it_reads(computed: Parameters) -> None:
    """With `overrides` its folders are its own; what stands before its stage in another run is linked there."""
    other = load("smoke", SHORT | {"clean": {"max_gap_s": 7.0}})
    stages.compute("02_preprocess", other, ASSET)
    assert recall(other.name).fingerprint() == other.fingerprint()
    assert not record.why_not("02_preprocess", computed, ASSET) and not record.why_not("02_preprocess", other, ASSET)


def test_a_run_goes_on_by_its_name_alone() -> None:
    parameters = load("smoke", {"name": "named", "seed": 12, "source": {"to": "2025-08-01T00:20:00Z"}})
    remember(parameters)
    assert recall("named") == parameters and recall("smoke") == load("smoke")
    with pytest.raises(ParameterError, match=r"no run 'namd' .did you mean 'named'"):
        recall("namd")


def test_what_older_code_left_without_a_file_that_is_read_now_is_made_again(computed: Parameters) -> None:
    place = record.place("01_download", Paths(computed.name, ASSET))
    whole = place.read_text()
    content = json.loads(whole)
    content["files"] = {name: entry for name, entry in content["files"].items() if not name.endswith("manifest.json")}
    place.write_text(json.dumps(content))
    with pytest.raises(MissingInputError, match=r"knows of no manifest\.json, which 01_download writes now"):
        record.identity("02_preprocess", computed, ASSET)
    place.write_text(whole)


def test_a_damaged_record_is_no_record(computed: Parameters) -> None:
    place = record.place("02_preprocess", Paths(computed.name, ASSET))
    whole = place.read_text()
    place.write_text(whole[:100])
    assert "damaged" in record.why_not("02_preprocess", computed, ASSET)
    place.write_text(whole)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({}, "smoke"),
        ({"seed": load("smoke").seed}, "smoke"),
        ({"name": "mine"}, "mine"),
        ({"seed": 11, "name": "a.b"}, "a.b"),
    ],
)
def test_a_run_has_the_name_of_its_profile_or_its_own(overrides: dict[str, Any], name: str) -> None:
    assert load("smoke", overrides).name == name


def test_a_run_that_differs_has_a_name_of_its_own() -> None:
    names = {load("smoke", {"seed": seed}).name for seed in (11, 12)}
    assert len(names) == 2 and all(name.startswith("smoke-") for name in names)
    assert load("smoke", {"seed": 11}).fingerprint() == load("smoke", {"seed": 11, "name": "x"}).fingerprint()


@pytest.mark.parametrize("name", ["sample", "smoke", "slices", "a/b", "", ".hidden", 3])
def test_a_name_that_is_taken_or_no_folder_is_refused(name: Any) -> None:
    with pytest.raises(ParameterError, match="name: "):
        load("smoke", {"seed": 11, "name": name})


def test_comments_and_docstrings_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "_PACKAGE", tmp_path / "hyperdapo")
    module = tmp_path / "hyperdapo" / "room" / "module.py"
    module.parent.mkdir(parents=True)
    digests = []
    for text in (
        'def f():\n    """One."""\n    return 1\n',
        '"""Two."""\n\n\ndef f():  # why\n    """Three,\n    and more."""\n    return 1\n',
        "def f():\n    return 2\n",
    ):
        module.write_text(text)
        digests.append(dependencies.digest("import hyperdapo.room.module"))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("stage", plan.STAGES)
def test_statistics_alone_depend_on_the_evidence(stage: str) -> None:
    mentioned = dependencies.mentioned(f"import hyperdapo.stages.{plan.rule(stage)}", stage in plan.ACROSS_ASSETS)
    assert any(name.startswith("evidence") for name in mentioned) == (stage == "09_significance")


@pytest.mark.parametrize("stage", plan.STAGES)
def test_no_computation_draws(stage: str) -> None:
    files = dependencies.modules(f"import hyperdapo.stages.{plan.rule(stage)}")
    assert not [path for path in files if path.parent.name == "figures"]
