"""What is no longer there, or empty, though a stage made it: the parts of its outputs that the workflow does not see.

Snakemake looks at the files that the rules name. The slices of the raw cache and the adapters are folders beside them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from hyperdapo.market.slices import cover
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths

_ADAPTER = "adapter_model.safetensors"


def lost_outputs(parameters: Parameters) -> dict[Path, str]:
    """Named outputs of the workflow that must be made again, each with the reason."""
    found: dict[Path, str] = {}
    for asset in parameters.assets:
        paths = Paths(parameters.profile, asset)
        found |= dict(_slices(paths)) | dict(_adapters(parameters, paths))
    return found | dict(_empty(parameters))


def _slices(paths: Paths) -> Iterator[tuple[Path, str]]:
    manifest = paths.data / "manifest.json"
    try:
        content = json.loads(manifest.read_text())
        cache, spans = paths.cache / content["cache"], [day["span"] for day in content["days"]]
    except FileNotFoundError:
        return  # Snakemake sees that
    except (KeyError, TypeError, ValueError):
        yield manifest, f"{manifest.name} is damaged"
        return
    covers = [cover(cache, *span) for span in spans]
    empty = [piece.path.name for taken, _ in covers for piece in taken if not piece.path.stat().st_size]
    if any(missing for _, missing in covers) or empty:
        yield manifest, f"slices of {cache} are lost or empty"


def _adapters(parameters: Parameters, paths: Paths) -> Iterator[tuple[Path, str]]:
    for algorithm in parameters.training.algorithms:
        folder = paths.model(algorithm)
        adapters = [folder / f"seed_{seed}" / _ADAPTER for seed in parameters.training.seeds]
        if (folder / "training_log.csv").exists() and not all(map(_holds, adapters)):
            yield folder / "training_log.csv", f"an adapter of {folder} is lost or empty"


def _empty(parameters: Parameters) -> Iterator[tuple[Path, str]]:
    paths = Paths(parameters.profile)
    data = [paths.data, *(paths.of(asset).data for asset in parameters.assets)]
    files = [path for folder in data for path in folder.glob("*.*")]
    files += [path for folder in (paths.outputs, paths.notebooks, paths.tables) for path in folder.glob("*.*")]
    files += paths.data.glob("models/*/*/training_log.csv")
    for path in files:
        if path.is_file() and not path.stat().st_size and not path.name.startswith("."):
            yield path, f"{path.name} is empty"


def _holds(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
