"""All parameters of a run: `params/base.yaml`, one overlay, and what the user lays on top, validated by `sections`."""

import hashlib
import json
import re
from collections.abc import Hashable, Mapping
from os.path import relpath
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field, ValidationError, model_validator

from hyperdapo.errors import ParameterError, nearest
from hyperdapo.files import atomic
from hyperdapo.paths import PARAMS, REPOSITORY, data_root
from hyperdapo.sections import (
    Asset,
    Clean,
    Contract,
    Evidence,
    Execution,
    Features,
    Hypotheses,
    Inference,
    Laws,
    Live,
    Orders,
    Policy,
    Section,
    Sequential,
    Serving,
    Source,
    Split,
    Synthetic,
    Training,
    Truth,
    Unique,
    Whole,
)
from hyperdapo.times import SECOND_NS, common_step_s

REGISTERED = PARAMS / "registered.yaml"
"""The hypotheses, which every run has."""


class Parameters(Section):
    """All parameters of one run. `load` makes it; `for_asset` checks an asset's name."""

    profile: str
    name: str
    """Of the folders of the run: its profile's, where it is the profile as it stands."""

    seed: Whole
    assets: Annotated[list[Asset], Field(min_length=1), Unique]
    contracts: dict[Asset, Contract]
    source: Source
    synthetic: Synthetic
    clean: Clean
    split: Split
    features: Features
    laws: Laws
    orders: Orders
    execution: Execution
    truth: Truth
    policy: Policy
    sequential: Sequential
    training: Training
    inference: Inference
    live: Live
    serving: Serving
    evidence: Evidence
    hypotheses: Hypotheses

    @model_validator(mode="after")
    def _check_assets(self) -> "Parameters":
        for asset in self.assets:
            if asset not in self.contracts:
                raise ValueError(
                    f"unknown asset {asset!r}{nearest(asset, self.contracts)}; to add it, give its size decimals: "
                    f"contracts: {{{asset}: {{sz_decimals: N}}}}"
                )
            if self.source.kind == "synthetic" and asset not in self.synthetic.assets:
                raise ValueError(f"the synthetic exchange does not list {asset!r}; describe it in synthetic.assets")
        if missing := [name for name in self.orders.objectives if name not in self.orders.rules]:
            raise ValueError(f"orders.rules says nothing of the objectives {missing}")
        every_s, grid_s = self.policy.decide_again_s, self.features.decision_interval_s
        if every_s and round(every_s * SECOND_NS) % round(grid_s * SECOND_NS):
            raise ValueError(
                f"policy.decide_again_s ({every_s:g}) must be a multiple of features.decision_interval_s ({grid_s:g}): "
                "decisions need features"
            )
        return self

    @model_validator(mode="after")
    def _check_intervals(self) -> "Parameters":
        for each_s in self.sequential.intervals_s:
            shared_s = common_step_s(each_s, self.features.decision_interval_s)
            if shared_s < _FINEST_S:
                raise ValueError(
                    f"sequential.intervals_s: with {each_s:g} features are wanted every {shared_s:g} s, and "
                    f"{_FINEST_S:g} s is the finest: choose a multiple of that"
                )
            if each_s == self.policy.decide_again_s:
                raise ValueError(
                    f"sequential.intervals_s: {each_s:g} is policy.decide_again_s, which is compared anyway"
                )
        return self

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of every value but the name, first 16 hex digits."""
        values = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def for_asset(self, asset: str) -> "Parameters":
        """These parameters, once `asset` is known to be one of `assets`.

        Raises
        ------
        ParameterError
            If the run does not cover the asset.
        """
        if asset not in self.assets:
            raise ParameterError(
                f"unknown asset {asset!r}{nearest(asset, self.assets)}; profile {self.profile!r} runs {self.assets}. "
                f"Add it to `assets` (and `contracts`) in params/{self.profile}.yaml or in a --params file"
            )
        return self


def load(profile: str, overrides: Mapping[str, Any] | None = None, asset: str | None = None) -> Parameters:
    """Read `params/base.yaml`, lay the profile's overlay on it, then `overrides`, and validate.

    A run whose parameters differ from its profile's has folders of its own, so that it can replace nothing of the
    profile's: those of `overrides["name"]`, else `PROFILE-xxxxxx` after a hash of the parameters.

    Raises
    ------
    ParameterError
        For an unknown profile, an unknown key (with the nearest right name), a value out of range, an unknown asset,
        other hypotheses than the registered ones, or a name that is a profile's.
    """
    chosen = dict(overrides or {})
    if "profile" in chosen:
        raise ParameterError("the profile is chosen by --profile (or the notebook's own `profile`), not by a parameter")
    if profile not in profiles():
        raise ParameterError(f"unknown profile {profile!r}{nearest(profile, profiles())}; there are {profiles()}")
    name, overlay = chosen.pop("name", None), read(PARAMS / f"{profile}.yaml")
    if "hypotheses" in chosen or "hypotheses" in overlay:
        raise ParameterError(
            f"the hypotheses are those of {REGISTERED.relative_to(REPOSITORY)}, for every run: take them out"
        )
    standing = merge(merge(read(PARAMS / "base.yaml"), read(REGISTERED)), overlay)
    plain = _validated(standing, profile)
    parameters = _validated(merge(standing, chosen), profile) if chosen else plain
    differs = parameters.fingerprint() != plain.fingerprint()
    named = parameters.model_copy(update={"name": _name(name, profile, parameters, differs)})
    return named if asset is None else named.for_asset(asset)


def remember(parameters: Parameters) -> None:
    """Keep what a run differs in from its profile, so that its name is enough to go on with it (`recall`)."""
    asked = {"profile": parameters.profile, "overrides": overrides_of(parameters)}
    with atomic(_asked(parameters.name)) as temporary:
        temporary.write_text(json.dumps(asked, indent=1) + "\n")


def overrides_of(parameters: Parameters) -> dict[str, Any]:
    """What to lay on the profile to have these parameters, the name of the run too where it is not the profile's."""
    plain = load(parameters.profile).model_dump(mode="json", by_alias=True)
    return _differences(plain, parameters.model_dump(mode="json", by_alias=True))


def recall(name: str) -> Parameters:
    """The parameters of a run by its name: that of a profile, or of a run that was made before.

    Raises
    ------
    ParameterError
        If there is none of that name.
    """
    if name in profiles():
        return load(name)
    try:
        asked = json.loads(_asked(name).read_text())
    except FileNotFoundError:
        known = sorted({*profiles(), *(path.parent.name for path in data_root().glob("*/run.json"))})
        raise ParameterError(f"there is no run {name!r}{nearest(name, known)}; there are {known}") from None
    return load(asked["profile"], asked["overrides"])


def _asked(name: str) -> Path:
    return data_root() / name / "run.json"


def _differences(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """What to lay on `lower` to have `upper`: what `merge` takes."""
    pairs = ((key, lower.get(key), value) for key, value in upper.items() if lower.get(key) != value)
    return {
        key: _differences(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        for key, below, value in pairs
    }


def profiles() -> list[str]:
    """Names of the overlays in `params/`."""
    return sorted(path.stem for path in PARAMS.glob("*.yaml") if path.stem not in ("base", REGISTERED.stem))


def _validated(values: Mapping[str, Any], profile: str) -> Parameters:
    try:
        return Parameters.model_validate(merge(values, {"profile": profile, "name": profile}))
    except ValidationError as error:
        raise ParameterError(_explain(error)) from None


def _name(name: Any, profile: str, parameters: Parameters, differs: bool) -> str:
    """The name of a run's folders: the one that was given, if any, and if it may have it."""
    if name is None:
        return f"{profile}-{parameters.fingerprint()[:6]}" if differs else profile
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _SHARED:
        kept = " and ".join(_SHARED)
        raise ParameterError(f"name: {name!r} cannot name a run: letters, digits, '.', '_', '-' can; {kept} are shared")
    if name in profiles() and (differs or name != profile):
        raise ParameterError(
            f"name: the folders of {name!r} hold the profile {name!r} as it stands; choose another name for this run"
        )
    return name


def read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty mapping.

    Raises
    ------
    ParameterError
        If the file cannot be read, is no YAML in UTF-8, names a key twice, or holds anything but a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ParameterError(f"there is no parameter file {path}") from None
    except OSError as error:
        raise ParameterError(f"the parameter file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ParameterError(f"the parameter file {path} is not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ParameterError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is not None and not isinstance(values, dict):
        raise ParameterError(f"{path} must hold a mapping of parameters, not {type(values).__name__}")
    return values or {}


def portable(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with the file names that start at `folder` made to start at the repository, as those of a profile do."""
    made = dict(values)
    for section, key in _FILES:
        keys = made.get(section)
        name = keys.get(key) if isinstance(keys, Mapping) else None
        if isinstance(name, str) and "://" not in name and not Path(name).is_absolute():
            made[section] = merge(made[section], {key: relpath(folder / name, REPOSITORY)})
    return made


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` laid on `lower`: mappings merge key by key, everything else replaces."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


_FINEST_S = 0.5  # between features at which something decides
_SHARED = ("slices", "base_models")  # folders of the data of all runs
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_FILES = (
    *(("source", "endpoint"), ("truth", "account"), ("truth", "node_fills"), ("truth", "level3")),
    *(("inference", "gguf"), ("inference", "llama_cpp")),
)


class _Loader(yaml.SafeLoader):
    """Plain scalars as in YAML 1.2 (5e-5 is a number, `yes` and 1:30 are words); a key that comes twice is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [one for one in resolvers if one[0].rpartition(":")[2] not in ("bool", "int", "float")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[Any]()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} stands there twice", key.start_mark
                )
            seen.add(name)
        made: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return made


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown parameter {where}{nearest(str(problem['loc'][-1]), _siblings(problem['loc']))}")
        else:
            lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": "))
    return "; ".join(lines)


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """Right names beside an unknown key, found by walking the models down its location."""
    model: Any = Parameters
    for part in location[:-1]:
        fields = {field.alias or name: field.annotation for name, field in getattr(model, "model_fields", {}).items()}
        if part in fields:
            model = fields[part]
        elif getattr(model, "__args__", None):  # dict[str, Section]: the part is one of its keys
            model = model.__args__[-1]
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]
