"""02: the clean messages of one asset, and the split of its span."""

from pathlib import Path

from hyperdapo import plan
from hyperdapo.feed.clean import preprocess
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Clean the slices; raises as `feed.clean.preprocess`."""
    preprocess(parameters, paths.asset, paths)
    return [paths.data / name for name in plan.WRITES["02_preprocess"]]
