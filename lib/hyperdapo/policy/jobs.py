"""A training job of the workflow: some runs of one asset, or of the generalist of all of them.

On one machine a job has all runs of an asset, which read its states once; on a cluster a job has one run.
"""

from collections.abc import Callable, Sequence

from hyperdapo.errors import ParameterError, nearest
from hyperdapo.params import Parameters
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.policy.states import States, pooled, read_states
from hyperdapo.policy.training import train_runs
from hyperdapo.stored import read_table


def runs_of(
    parameters: Parameters, asset: str, algorithm: str | None = None, seed: int | None = None
) -> list[tuple[str, int]]:
    """The runs (algorithm, seed) of an asset, or those of one algorithm, one seed; the generalist's has the first.

    Raises
    ------
    ParameterError
        If the profile does not have the asset, the algorithm or the seed.
    """
    known: list[str] = list(parameters.training.algorithms)
    if asset == GENERALIST:
        known = known[:1]
    else:
        parameters.for_asset(asset)
    if algorithm is not None and algorithm not in known:
        raise ParameterError(f"no algorithm {algorithm!r}{nearest(algorithm, known)}; {asset} has {', '.join(known)}")
    if seed is not None and seed not in parameters.training.seeds:
        raise ParameterError(f"no seed {seed}; training.seeds has {parameters.training.seeds}")
    seeds = parameters.training.seeds if seed is None else [seed]
    return [(name, number) for name in ([algorithm] if algorithm else known) for number in seeds]


def train_asset(
    parameters: Parameters, asset: str, chosen: Sequence[tuple[str, int]], watch: Callable[[], None] = lambda: None
) -> None:
    """Train runs (algorithm, seed) of an asset, `GENERALIST` among the assets, from the tables of 03 and 04.

    Raises
    ------
    MissingInputError
        If 03 or 04 has not run.
    And as `training.train_runs`.
    """
    paths = Paths(parameters.profile, asset)
    sources = parameters.assets if asset == GENERALIST else [asset]
    states = [read_split(parameters, sources, split) for split in ("train", "validation")]
    training, held_out = (pooled(own) if asset == GENERALIST else own[0] for own in states)
    train_runs(parameters, paths, training, held_out, chosen, watch)


def read_split(parameters: Parameters, assets: Sequence[str], split: str) -> list[States]:
    """The states of a split of each asset. Raises as `train_asset`."""
    folders = [Paths(parameters.profile, asset).data for asset in assets]
    tables = ([read_table(folder, name) for name in ("features", "outcomes")] for folder in folders)
    return [read_states(features, outcomes, parameters, split) for features, outcomes in tables]
