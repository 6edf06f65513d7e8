"""Reading parameters: `params/base.yaml`, one overlay, and what the user lays on top; validated by `schema`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hyperdapo.errors import ParameterError, nearest
from hyperdapo.paths import PARAMS
from hyperdapo.schema import Parameters

__all__ = ["Parameters", "load", "merge", "read"]


def load(profile: str, overrides: Mapping[str, Any] | None = None, asset: str | None = None) -> Parameters:
    """Read `params/base.yaml`, lay the profile's overlay on it, then `overrides`, and validate.

    Raises
    ------
    ParameterError
        For an unknown profile, an unknown key (with the nearest right name), a value out of range, an unknown asset.
    """
    profiles = sorted(path.stem for path in PARAMS.glob("*.yaml") if path.stem != "base")
    if profile not in profiles:
        raise ParameterError(f"unknown profile {profile!r}{nearest(profile, profiles)}; there are {profiles}")
    values = merge(read(PARAMS / "base.yaml"), read(PARAMS / f"{profile}.yaml"))
    values = merge(merge(values, overrides or {}), {"profile": profile})
    try:
        parameters = Parameters.model_validate(values)
    except ValidationError as error:
        raise ParameterError(_explain(error)) from None
    return parameters if asset is None else parameters.for_asset(asset)


def read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty mapping."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ParameterError(f"there is no parameter file {path}") from None
    except yaml.YAMLError as error:
        raise ParameterError(f"{path} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ParameterError(f"{path} must hold a mapping of parameters, not {type(values).__name__}")
    return values or {}


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` laid on `lower`: mappings merge key by key, everything else replaces."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown parameter {where}{nearest(str(problem['loc'][-1]), _siblings(problem['loc']))}")
        else:
            lines.append(f"{where}: {problem['msg']}".removeprefix(": "))
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
