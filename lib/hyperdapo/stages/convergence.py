"""06: how training went over all assets, and what each adapter and a generalist earn on every asset."""

from pathlib import Path

from hyperdapo.evidence.convergence import convergence_table, read_logs
from hyperdapo.files import write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.policy.decisions import decide_across
from hyperdapo.policy.training import read_split, runs_of, train_asset
from hyperdapo.stages.train import adapters


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Measure convergence, train the generalist, and have every adapter decide on every asset's test states.

    Raises as `policy.training.train_asset`.
    """
    log = read_logs(paths, parameters.assets, parameters.training.algorithms)
    train_asset(parameters, GENERALIST, runs_of(parameters, GENERALIST))
    tests = zip(parameters.assets, read_split(parameters, parameters.assets, "test"), strict=True)
    states = {asset: tested.spread(parameters.inference.states_across) for asset, tested in tests}
    earned = decide_across(parameters, paths, states, parameters.training.algorithms[0])
    tables = {"convergence": convergence_table(log), "specialists": earned}
    written = [write_table(table, paths.data, name) for name, table in tables.items()]
    return written + adapters(paths.of(GENERALIST))
