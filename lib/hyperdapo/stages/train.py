"""05: the adapters of one asset: every algorithm and seed, each trained unless it stands trained as it would be now."""

from collections.abc import Callable
from pathlib import Path

from hyperdapo.files import read_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.training import gather_logs, runs_of, train_asset
from hyperdapo.sequential import language
from hyperdapo.sequential.states import last_known


def compute(parameters: Parameters, paths: Paths, watch: Callable[[], None] | None = None) -> list[Path]:
    """Train what is not trained, and gather the logs; `watch` is called after each look at held-out states.

    Raises as `policy.training.train_asset`.
    """
    train_asset(parameters, paths.asset, runs_of(parameters, paths.asset), watch or (lambda: None))
    gather_logs(parameters, paths)
    if language.is_trained(parameters, paths.asset):
        features, *tables = (read_table(paths.data, name) for name in ("features", "outcomes", "action_values"))
        language.train(parameters, paths, last_known(features), *tables)
    return adapters(paths)


def adapters(paths: Paths) -> list[Path]:
    """Files of the trained adapters of an asset, and their logs; what TensorBoard reads decides nothing."""
    return [path for path in sorted(paths.models.rglob("*")) if path.is_file() and "tensorboard" not in path.parts]
