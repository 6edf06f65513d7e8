"""The nine stages by name: which there are, for which assets each is made, and which rules of the workflow make it."""

from collections.abc import Iterable

from hyperdapo.errors import ParameterError, nearest
from hyperdapo.paths import NOTEBOOKS

STAGES = tuple(path.stem for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")))
WITH_MODEL = ("05_train", "06_convergence", "07_inference")
ACROSS_ASSETS = {
    "06_convergence": ("tables/convergence.csv", "dashboard.html", "notebooks/06_convergence.ipynb"),
    "09_significance": ("numbers.tex", "manifest.json", "notebooks/09_significance.ipynb"),
}
"""What the stages across assets leave in the outputs of a profile."""

TRAINING_RULES = {"05_train": ["adapters"], "06_convergence": ["generalist"]}  # the rules that train what a stage shows


def units(assets: Iterable[str]) -> list[str]:
    """Every stage of a whole run, by asset where it is made for one: `05_train BTC`, `06_convergence`."""
    names = (f"{stage} {asset}" for stage in STAGES for asset in assets if stage not in ACROSS_ASSETS)
    return sorted([*names, *ACROSS_ASSETS])


def wanted(until: str | None = None, only: str | None = None) -> list[str]:
    """The stages up to `until`, or `only` one, or all; raises as `named`."""
    last = named(only or until or STAGES[-1])
    return [last] if only else list(STAGES[: STAGES.index(last) + 1])


def named(stage: str) -> str:
    """The stage that a user means by `05` or `05_train`.

    Raises
    ------
    ParameterError
        If there is none.
    """
    for known in STAGES:
        if stage in (known, known[:2]):
            return known
    raise ParameterError(f"no stage {stage!r}{nearest(stage, STAGES)}; there are {', '.join(STAGES)}")


def rule(stage: str) -> str:
    """The Snakefile's rule of a stage is its name without the number."""
    return stage[3:]


def rules(stage: str) -> list[str]:
    """The rule of a stage, after those that train what it shows."""
    return [*TRAINING_RULES.get(stage, []), rule(stage)]


def labels() -> dict[str, str]:
    """What the jobs of each rule are called: the stage, or the stage's number and the rule that trains for it."""
    trained = {name: f"{stage[:2]}_{name}" for stage, names in TRAINING_RULES.items() for name in names}
    return trained | {rule(stage): stage for stage in STAGES}
