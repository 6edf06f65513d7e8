"""What some code depends on: the modules that it imports, and the parameters that any of them mentions.

Both are read from the code, so no list can go stale.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache, reduce
from io import StringIO
from pathlib import Path
from tokenize import COMMENT, generate_tokens
from typing import Any

from hyperdapo.params import Parameters

_PACKAGE = Path(__file__).parent
_DECIDES_NOTHING = {_PACKAGE / "plan.py"}  # which files a stage reads and leaves is no number in them
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def modules(code: str) -> set[Path]:
    """Files of this package's modules that `code` (of Python) imports, and those that they import in their turn."""
    known, new = set[Path](), _imports(code)
    while new:
        known |= new
        new = frozenset().union(*(_imports(path.read_text()) for path in new)) - known
    return known


def digest(code: str, room: str = "") -> str:
    """Of the modules that `code` imports, 16 hex digits; of those of one room where it is named.

    Comments, docstrings and the lists of files do not count: they decide no result.
    """
    counted = modules(code) - _DECIDES_NOTHING
    files = sorted(path for path in counted if not room or _PACKAGE / room in path.parents)
    text = "\n".join(f"{path.relative_to(_PACKAGE).as_posix()}\n{_meaning(path.read_text())}" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mentioned(code: str, across: bool) -> list[str]:
    """Names of the parameters that `code` and the modules that it imports mention, directly or through others.

    Code that names a key (`parameters.evidence.block_s`) depends on that key, any other on the whole section. What is
    made for one asset (not `across` all) does not depend on which others are run, and nothing on the name of the run.
    """
    text = "\n".join([code, *(_meaning(path.read_text()) for path in modules(code))])
    names = {_parameter(*found) for found in re.findall(r"\bparameters\.(\w+)(?:\.(\w+))?", text)}
    return sorted(names - {"", "profile", "name"} - (set() if across else {"assets"}))


def notebook_code(path: Path) -> str:
    """The code cells of a notebook, one after the other."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]  # nbformat takes a second to import
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def select(parameters: Parameters, names: Iterable[str]) -> dict[str, Any]:
    """The values of some parameters (`seed`, `features.window_s`) by name; None of one that there is not."""
    values = parameters.model_dump(mode="json")
    return {name: reduce(_inside, name.split("."), values) for name in names}


def _inside(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _parameter(section: str, key: str) -> str:
    """`section.key` where both are of the schema, `section` where the key is not (a property), else nothing."""
    if section not in Parameters.model_fields:
        return ""
    keys = getattr(Parameters.model_fields[section].annotation, "model_fields", {})
    return f"{section}.{key}" if key in keys else section


@cache
def _imports(code: str) -> frozenset[Path]:
    """Modules of this package that some code itself imports."""
    names = set[str]()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    inside = [name.split(".")[1:] for name in names if name.split(".")[0] == _PACKAGE.name]
    places = [_PACKAGE.joinpath(*parts) for parts in inside]
    candidates = {place.with_suffix(".py") for place in places} | {place / "__init__.py" for place in places}
    return frozenset(path for path in candidates if path.is_file())


@cache
def _meaning(code: str) -> str:
    """A module without its comments and docstrings, and without empty lines; the same under every Python."""
    lines = code.splitlines()
    for token in generate_tokens(StringIO(code).readline):
        if token.type == COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(code)):
        for part in getattr(node, "body", []) if isinstance(node, _DOCUMENTED) else []:
            if _is_text(part):
                lines[part.lineno - 1 : part.end_lineno] = [""] * (part.end_lineno - part.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _is_text(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)
