"""What each stage depends on: its notebook, the modules that it imports, the parameters that any of them mentions.

All three are read from the code, so no list can go stale.
"""

import json
import re
from functools import reduce
from operator import getitem
from pathlib import Path

from hyperdapo.imports import modules
from hyperdapo.params import Parameters
from hyperdapo.paths import NOTEBOOKS
from hyperdapo.plan import ACROSS_ASSETS


def dependencies(stage: str) -> tuple[list[Path], list[str]]:
    """Files (notebook first, then modules) and parameters that a stage depends on.

    Code that names a key (`parameters.evidence.block_s`) depends on that key, any other on the whole section. What is
    made for one asset does not depend on which others are run.
    """
    notebook = NOTEBOOKS / f"{stage}.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]  # nbformat takes a second to import
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    files, mentioned = _needs(code)
    return [notebook, *files], sorted(mentioned - {"" if stage in ACROSS_ASSETS else "assets"})


def training_dependencies() -> tuple[list[Path], list[str]]:
    """The same of the trainings that 05 and 06 show: they do not run again where a figure changes."""
    files, mentioned = _needs("import hyperdapo.policy.training")
    return files, sorted(mentioned - {"assets"})


def _needs(code: str) -> tuple[list[Path], set[str]]:
    """The modules that code imports, directly or through others, and the parameters that any of them mentions."""
    files = sorted(modules(code))
    text = "\n".join([code, *(path.read_text() for path in files)])
    mentioned = {_parameter(*names) for names in re.findall(r"\bparameters\.(\w+)(?:\.(\w+))?", text)}
    return files, mentioned - {""}


def section_values(parameters: Parameters, names: list[str]) -> str:
    """Canonical JSON of some sections or keys of them: when it changes, the stages that mention them run again."""
    dumped = parameters.model_dump(mode="json")
    values = {name: reduce(getitem, name.split("."), dumped) for name in names}
    return json.dumps(values, sort_keys=True)


def _parameter(section: str, key: str) -> str:
    """`section.key` where both are of the schema, `section` where the key is not (a property), else nothing."""
    if section not in Parameters.model_fields:
        return ""
    keys = getattr(Parameters.model_fields[section].annotation, "model_fields", {})
    return f"{section}.{key}" if key in keys else section
