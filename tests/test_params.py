"""Parameters: overlays, nearest names, and errors that say what to do."""

import pytest

from hyperdapo.errors import ParameterError
from hyperdapo.params import load, merge, profiles, read
from hyperdapo.paths import PARAMS


@pytest.mark.parametrize("profile", profiles())
def test_every_profile_is_valid(profile: str) -> None:
    assert load(profile).profile == profile


def test_an_overlay_holds_only_differences() -> None:
    base = read(PARAMS / "base.yaml")
    for name in profiles():
        repeated = _repeats(base, read(PARAMS / f"{name}.yaml"))
        assert not repeated, f"{name}.yaml repeats base.yaml: {repeated}"


def _repeats(base: dict, overlay: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in overlay.items():
        if isinstance(value, dict):
            found += _repeats(base.get(key, {}), value, f"{prefix}{key}.")
        elif key in base and base[key] == value:
            found.append(f"{prefix}{key}")
    return found


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"traning": {}}, "did you mean 'training'"),
        ({"training": {"stps": 3}}, "training.stps (did you mean 'steps'"),
        ({"source": {"form": "2025-08-01"}}, "did you mean 'from'"),
        ({"contracts": {"BTC": {"sz_decimal": 5}}}, "did you mean 'sz_decimals'"),
        ({"assets": ["DOGE"]}, "contracts: {DOGE: {sz_decimals: N}}"),
        ({"assets": ["BCT"]}, "did you mean 'BTC'"),
        ({"sequential": {"intervals_s": [3.333]}}, r"with 3.333 features are wanted every 0.001 s, and 0.5 s is"),
        ({"sequential": {"intervals_s": [5, 10]}}, "10 is policy.decide_again_s, which is compared anyway"),
        ({"source": {"to": "2025-08-01T00:00:00Z"}}, "empty time span"),
        ({"split": {"train": 0.9, "validation": 0.2}}, "must leave a share"),
        ({"training": {"steps": 0}}, "training.steps"),
    ],
)
def test_a_wrong_parameter_is_one_clear_error(overrides: dict, says: str) -> None:
    with pytest.raises(ParameterError) as error:
        load("smoke", overrides)
    assert says in str(error.value)


def test_unknown_profile_and_asset_name_the_nearest() -> None:
    with pytest.raises(ParameterError, match="did you mean 'smoke'"):
        load("smok")
    with pytest.raises(ParameterError, match=r"unknown asset 'ETC' .did you mean 'ETH'"):
        load("smoke", asset="ETC")


def test_a_coin_is_added_by_its_facts() -> None:
    added = {"assets": ["DOGE"], "contracts": {"DOGE": {"sz_decimals": 0}}, "source": {"kind": "tardis"}}
    assert load("smoke", added, "DOGE").contracts["DOGE"].sz_decimals == 0


def test_fingerprint_moves_with_any_value() -> None:
    assert load("smoke").fingerprint() == load("smoke").fingerprint()
    assert load("smoke").fingerprint() != load("smoke", {"seed": 8}).fingerprint()


def test_merge_keeps_what_the_upper_does_not_name() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]}) == {"a": {"b": 1, "c": 3}, "d": [2]}


def test_broken_yaml_names_the_file(tmp_path) -> None:
    broken = tmp_path / "my.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ParameterError, match=r"my\.yaml is not valid YAML"):
        read(broken)
    with pytest.raises(ParameterError, match="there is no parameter file"):
        read(tmp_path / "absent.yaml")
