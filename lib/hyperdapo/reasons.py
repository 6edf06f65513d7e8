"""Why a job of the workflow runs, in the words of this project."""

from pathlib import Path

_FOLLOWS = "Input files updated by another job"
_REASONS = {
    "Missing output files": "{} not there",
    "Incomplete output files": "was interrupted",
    "Updated input files": "{} changed",
    _FOLLOWS: "reads what a stage before it makes anew",
    "Forced execution": "forced",
    "Set of input files has changed since last execution": "reads other files than before",
    "Code has changed since last execution": "its rule changed",
    "Params have changed since last execution": "its parameters changed",
}
"""What Snakemake gives as a reason, and how it is told."""


def because(reason: str) -> str:
    """Snakemake's reason for a job, in the words of this project."""
    said = dict[str, str]()
    for part in reason.split("; "):
        kind, _, names = part.partition(": ")
        files = sorted({Path(name).name for name in names.split(", ") if name})
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        if not kind.startswith("Updated") or files:
            said[kind] = _REASONS.get(kind, part).format(shown)
    if len(said) > 1:
        said.pop(_FOLLOWS, None)
    return "; ".join(said.values())
