"""05: the adapters of one asset: every algorithm and seed, each trained unless it stands trained as it would be now."""

from collections.abc import Callable
from pathlib import Path

from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.training import gather_logs, runs_of, train_asset


def compute(parameters: Parameters, paths: Paths, watch: Callable[[], None] | None = None) -> list[Path]:
    """Train what is not trained, and gather the logs; `watch` is called after each look at held-out states.

    Raises as `policy.training.train_asset`.
    """
    train_asset(parameters, paths.asset, runs_of(parameters, paths.asset), watch or (lambda: None))
    gather_logs(parameters, paths)
    return adapters(paths)


def adapters(paths: Paths) -> list[Path]:
    """Files of the trained adapters of an asset, and their logs; what TensorBoard reads decides nothing."""
    return [path for path in sorted(paths.models.rglob("*")) if path.is_file() and "tensorboard" not in path.parts]
