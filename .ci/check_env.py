"""Exit 0 if this interpreter's environment holds every pinned package, whole; else say what is missing.

`make setup` rebuilds .venv when this fails: after an interrupted install, a changed lock, or a deleted file.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]


def damage(line: str) -> str | None:
    """What is wrong with one pinned requirement, or None."""
    requirement = Requirement(line)
    if requirement.marker and not requirement.marker.evaluate():
        return None
    try:
        found = distribution(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(found.version, prereleases=True):
        return f"{requirement.name} is {found.version}, the lock says {requirement.specifier}"
    missing = [
        file for file in found.files or [] if file.suffix != ".pyc" and not Path(found.locate_file(file)).exists()
    ]
    return f"{requirement.name} lacks {missing[0]}" if missing else None


lines = [
    line
    for name in ("requirements.lock", "requirements-model.lock")
    for line in (REPOSITORY / name).read_text().splitlines()
]
problems = [problem for line in lines if re.match(r"\w", line) and (problem := damage(line))]
problems += [problem] if (problem := damage("hyperdapo")) else []
sys.exit("\n".join(problems) or 0)
