"""05: the adapters of one asset: every algorithm and seed, each trained unless it stands trained as it would be now."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from hyperdapo.execution.laws import as_measured
from hyperdapo.execution.parents import parents_in_parts
from hyperdapo.files import read_table, require
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.training import gather_logs, runs_of, train_asset
from hyperdapo.sequential import training
from hyperdapo.sequential.iteration import is_trained, revalued
from hyperdapo.sequential.states import Policy, last_known


def compute(parameters: Parameters, paths: Paths, watch: Callable[[], None] | None = None) -> list[Path]:
    """Train what is not trained, and gather the logs; `watch` is called after each look at held-out states.

    Raises as `policy.training.train_asset`.
    """
    train_asset(parameters, paths.asset, runs_of(parameters, paths.asset), watch or (lambda: None))
    gather_logs(parameters, paths)
    if is_trained(parameters, paths.asset):
        _train_again(parameters, paths, watch or (lambda: None))
    return adapters(paths)


def _train_again(parameters: Parameters, paths: Paths, watch: Callable[[], None]) -> None:
    """Train what decides again; with `sequential.refreshes` where 01 to 04 ran, since it reads the market and its laws.

    Raises
    ------
    MissingInputError
        If they are wanted and not here.
    And as `policy.training.train_runs`.
    """
    if parameters.sequential.refreshes:
        require(paths.data / "laws.parquet", "03_features", paths.name)
        require(paths.data / "book.parquet", "02_preprocess", paths.name)
    features, outcomes, values = (read_table(paths.data, name) for name in ("features", "outcomes", "action_values"))
    known = last_known(features)

    def revalue(orders: pd.Series, then: Policy) -> pd.DataFrame:
        assumed = as_measured(parameters, read_table(paths.data, "laws"))
        return revalued(partial(parents_in_parts, paths.data, features, assumed), known, values, assumed, orders, then)

    training.train(parameters, paths, known, outcomes, values, revalue, watch)


def adapters(paths: Paths) -> list[Path]:
    """Files of the trained adapters of an asset, and their logs; what TensorBoard reads decides nothing."""
    return [path for path in sorted(paths.models.rglob("*")) if path.is_file() and "tensorboard" not in path.parts]
