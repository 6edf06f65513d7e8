"""05: the adapters of one asset: every algorithm and seed, each trained unless it stands trained as it would be now."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from hyperdapo.execution.laws import as_measured
from hyperdapo.files import read_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.training import gather_logs, runs_of, train_asset
from hyperdapo.sequential import training
from hyperdapo.sequential.iteration import revalued
from hyperdapo.sequential.states import Policy, last_known
from hyperdapo.stages import preference_pairs


def compute(parameters: Parameters, paths: Paths, watch: Callable[[], None] | None = None) -> list[Path]:
    """Train what is not trained, and gather the logs; `watch` is called after each look at held-out states.

    Raises as `policy.training.train_asset`.
    """
    train_asset(parameters, paths.asset, runs_of(parameters, paths.asset), watch or (lambda: None))
    gather_logs(parameters, paths)
    if training.is_trained(parameters, paths.asset):
        _train_again(parameters, paths, watch or (lambda: None))
    return adapters(paths)


def _train_again(parameters: Parameters, paths: Paths, watch: Callable[[], None]) -> None:
    """Train what decides again. Only where it is refreshed the market is read, which 04 has left where it ran."""
    features, outcomes, values = (read_table(paths.data, name) for name in ("features", "outcomes", "action_values"))
    known = last_known(features)

    def revalue(orders: pd.Series, then: Policy) -> pd.DataFrame:
        assumed = as_measured(parameters, read_table(paths.data, "laws"))
        market = partial(preference_pairs.parts, assumed, paths, features)
        return revalued(market, known, values, assumed, orders, then)

    training.train(parameters, paths, known, outcomes, values, revalue, watch)


def adapters(paths: Paths) -> list[Path]:
    """Files of the trained adapters of an asset, and their logs; what TensorBoard reads decides nothing."""
    return [path for path in sorted(paths.models.rglob("*")) if path.is_file() and "tensorboard" not in path.parts]
