"""06: how training went over all assets, and what each adapter and a generalist earn on every asset."""

from pathlib import Path

from hyperdapo.evidence.convergence import convergence_table, read_logs
from hyperdapo.files import require, write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.policy.decisions import decide_across
from hyperdapo.policy.training import read_split, runs_of, train_asset


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Measure convergence, train the generalist, and have every adapter decide on every asset's test states.

    Raises as `policy.training.train_asset`.
    """
    log = read_logs(training_logs(parameters, paths))
    train_asset(parameters, GENERALIST, runs_of(parameters, GENERALIST))
    tests = zip(parameters.assets, read_split(parameters, parameters.assets, "test"), strict=True)
    states = {asset: own.spread(parameters.inference.states_across) for asset, own in tests}
    earned = decide_across(parameters, paths, states, parameters.training.algorithms[0])
    tables = {"convergence": convergence_table(log), "specialists": earned}
    return [write_table(table, paths.data, name) for name, table in tables.items()]


def training_logs(parameters: Parameters, paths: Paths) -> dict[tuple[str, str], Path]:
    """The training log of each asset and algorithm.

    Raises
    ------
    MissingInputError
        If 05_train has not run for one of them.
    """
    runs = [(asset, algorithm) for asset in parameters.assets for algorithm in parameters.training.algorithms]
    logs = {(asset, algorithm): paths.of(asset).model(algorithm) / "training_log.csv" for asset, algorithm in runs}
    return {run: require(path, "05_train", paths.name) for run, path in logs.items()}
