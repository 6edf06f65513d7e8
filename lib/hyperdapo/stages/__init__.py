"""What each stage computes: one module a stage, whose `compute` reads files of the stages before it and leaves its own.

`compute` here brings one stage of a run up to date; the notebooks and the workflow both call it. Nothing is drawn.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from typing import Any

from hyperdapo import plan
from hyperdapo.errors import MissingInputError, ParameterError
from hyperdapo.evidence import provenance
from hyperdapo.params import Parameters, load, remember
from hyperdapo.paths import Paths
from hyperdapo.stages import record

Watcher = Callable[[Parameters, Paths], AbstractContextManager[Callable[[], None]]]
"""Shows what goes on while its block runs: called whenever there is something new to see."""


def ready(
    stage: str, profile: str, overrides: Mapping[str, Any], asset: str = "", watcher: Watcher | None = None
) -> tuple[Parameters, Paths]:
    """What a notebook begins with: its stage computed, or found to stand.

    Returns
    -------
    The parameters of the run, and where it (and within it the asset) keeps its files.

    Raises as `params.load` and `compute`.
    """
    parameters = load(profile, overrides, asset or None)
    paths = Paths(parameters.name, asset)
    provenance.begin(stage, parameters)
    with watcher(parameters, paths) if watcher else nullcontext() as watch:
        compute(stage, parameters, asset, watch=watch)
    return parameters, paths


def compute(
    stage: str, parameters: Parameters, asset: str = "", again: bool = False, watch: Callable[[], None] | None = None
) -> None:
    """Compute a stage (`03_features`) of an asset, or of the run, unless it stands as it would be computed now.

    Parameters
    ----------
    again : compute it though it stands
    watch : of 05_train, called whenever there is something new to see

    Raises
    ------
    ParameterError
        If a stage of one asset is asked for without one, or one across assets with one.
    MissingInputError
        If a stage before it has not been computed.
    DataError
        If one was computed with other parameters than this run's.
    And what the stage itself raises.
    """
    if bool(asset) == (stage in plan.ACROSS_ASSETS):
        wanted = "is made across all assets: name none" if asset else f"is made for one asset: {parameters.assets}"
        raise ParameterError(f"{stage} {wanted}")
    paths = Paths(parameters.name, asset)
    remember(parameters)
    record.refuse_others(stage, parameters, asset)
    try:
        decided = record.identity(stage, parameters, asset)
    except MissingInputError:
        take_over(parameters, plan.before(stage), asset)
        decided = record.identity(stage, parameters, asset)
    if again or not (record.stands(stage, paths, decided) or record.borrow(stage, paths, decided)):
        module = import_module(f"{__name__}.{plan.rule(stage)}")  # that of 05 takes seconds, and may not be needed
        files = module.compute(parameters, paths, watch) if stage == "05_train" else module.compute(parameters, paths)
        record.write(stage, paths, decided, files)
    record.touch(stage, paths)


def take_over(parameters: Parameters, stages: Iterable[str], only: str = "") -> list[str]:
    """Link what other runs have computed as it would be computed here, for all assets or `only` one.

    Returns
    -------
    The units (`05_train BTC`) that were taken over.
    """
    taken = []
    for stage in stages:
        for asset in plan.assets_of(stage, [only] if only else parameters.assets):
            paths = Paths(parameters.name, asset)
            with suppress(MissingInputError):
                decided = record.identity(stage, parameters, asset)
                if not record.stands(stage, paths, decided) and record.borrow(stage, paths, decided):
                    taken.append(plan.unit(stage, asset))
    return taken
