"""What is no longer there, or empty, though a stage made it: the parts of its outputs that the workflow does not see.

Snakemake looks at whether the files that the rules name are there. The slices of the raw cache and the adapters are
folders beside them, and an empty file is there too.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from hyperdapo.feed.slices import cover
from hyperdapo.files import WRITTEN_BY
from hyperdapo.params import Parameters
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.plan import ACROSS_ASSETS

_OF_ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "training_log.csv", "training.json")

Lost = Iterator[tuple[str, Path, str]]
"""Stage, an output of it that the workflow names, and why it must be made again."""


def lost_outputs(parameters: Parameters, stages: Sequence[str]) -> dict[Path, str]:
    """Outputs of some stages that must be made again, each with the reason."""
    found = list(_empty(parameters, stages))
    for asset in parameters.assets:
        paths = Paths(parameters.profile, asset)
        found += [*_slices(paths), *_adapters(parameters, paths)]
    found += _adapters(parameters, Paths(parameters.profile, GENERALIST))
    return {path: reason for stage, path, reason in found if stage in stages}


def _slices(paths: Paths) -> Lost:
    manifest = paths.data / "manifest.json"
    try:
        content = json.loads(manifest.read_text())
        cache, spans = paths.cache / content["cache"], [day["span"] for day in content["days"]]
    except FileNotFoundError:
        return  # Snakemake sees that
    except (KeyError, TypeError, ValueError):
        yield "01_download", manifest, f"{manifest.name} is damaged"
        return
    covers = [cover(cache, *span) for span in spans]
    empty = [piece.path.name for taken, _ in covers for piece in taken if not piece.path.stat().st_size]
    if any(missing for _, missing in covers) or empty:
        yield "01_download", manifest, f"slices of {cache} are lost or empty"


def _adapters(parameters: Parameters, paths: Paths) -> Lost:
    algorithms = parameters.training.algorithms
    trained, shown = ("06_convergence", []) if paths.asset == GENERALIST else ("05_train", algorithms)
    for algorithm in shown or algorithms[:1]:
        for seed in parameters.training.seeds:
            folder = paths.adapter(algorithm, seed)
            if folder.exists() and not all(_holds(folder / name) for name in _OF_ADAPTER):
                yield trained, folder, f"an adapter or its log in {folder} is lost or empty"
    for algorithm in shown:
        log = paths.model(algorithm) / "training_log.csv"
        if log.exists() and not _holds(log):
            yield trained, log, f"{log} is empty"


def _empty(parameters: Parameters, stages: Sequence[str]) -> Lost:
    paths = Paths(parameters.profile)
    files = [(stage, paths.outputs / name) for stage, names in ACROSS_ASSETS.items() for name in names]
    for asset in parameters.assets:
        files += [(stage, paths.of(asset).data / name) for name, stage in WRITTEN_BY.items()]
        files += [(stage, paths.notebooks / f"{stage}_{asset}.ipynb") for stage in stages if stage not in ACROSS_ASSETS]
    files += [(stage, paths.data / name) for name, stage in WRITTEN_BY.items() if stage in ACROSS_ASSETS]
    for stage, path in files:
        if path.exists() and not _holds(path):
            yield stage, path, f"{path.name} is empty"


def _holds(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
