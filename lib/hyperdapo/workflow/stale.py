"""What no longer stands of a run: computed or rendered with other code or parameters, from other inputs, or lost.

The workflow itself only knows which files are there and which is newer; the records say the rest.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hyperdapo import dependencies, plan
from hyperdapo.errors import MissingInputError
from hyperdapo.evidence import provenance
from hyperdapo.params import Parameters
from hyperdapo.paths import NOTEBOOKS, Paths
from hyperdapo.stages import record


def stale(parameters: Parameters, stages: Sequence[str]) -> dict[Path, str]:
    """Records of computations and renders that must be made again, each with the reason."""
    reasons = dict[Path, str]()
    for stage in stages:
        now = shown_with(stage, parameters)
        for asset in plan.assets_of(stage, parameters.assets):
            paths = Paths(parameters.name, asset)
            with suppress(MissingInputError):  # that is computed first
                reasons[record.place(stage, paths)] = record.why_not(stage, parameters, asset)
            reasons[provenance.record_path(paths, stage)] = _why_not_shown(stage, paths, now)
    return {path: reason for path, reason in reasons.items() if reason}


def shown_with(stage: str, parameters: Parameters) -> dict[str, Any]:
    """What decides how a stage is shown, beside its results: the notebook, the code it imports, the parameters."""
    notebook = NOTEBOOKS / f"{stage}.ipynb"
    code = dependencies.notebook_code(notebook)
    names = dependencies.mentioned(code, stage in plan.ACROSS_ASSETS)
    return {
        "notebook": hashlib.sha256(notebook.read_bytes()).hexdigest(),
        "code": dependencies.digest(code),
        "parameters": json.loads(json.dumps(dependencies.select(parameters, names))),
    }


def _why_not_shown(stage: str, paths: Paths, now: dict[str, Any]) -> str:
    if lost := provenance.lost(paths, stage):
        return lost
    if not provenance.record_path(paths, stage).exists():
        return ""
    then = provenance.read(provenance.record_path(paths, stage)).get("shown_with", {})
    names = {"notebook": "its notebook", "code": "the code that shows it", "parameters": "its parameters"}
    changed = [name for key, name in names.items() if then.get(key) != now[key]]
    return f"changed: {', '.join(changed)}" if changed else ""
