"""Which modules of this package some code imports, directly or through others: read from the code, never listed."""

import ast
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent


def modules(code: str) -> set[Path]:
    """Files of this package's modules that `code` (of Python) imports, and those that they import in their turn."""
    known, found = set[Path](), _imports(code)
    while found:
        known |= found
        found = frozenset().union(*(_imports(path.read_text()) for path in found)) - known
    return known


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
