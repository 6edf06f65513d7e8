"""What is lost or cut though a stage left it; the workflow itself looks at records alone."""

from collections.abc import Sequence
from pathlib import Path

from hyperdapo import plan
from hyperdapo.evidence import provenance
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.stages import record


def lost_outputs(parameters: Parameters, stages: Sequence[str]) -> dict[Path, str]:
    """Records of some stages' computations and renders that must be made again, each with the reason."""
    found = dict[Path, str]()
    for stage in stages:
        for asset in [""] if stage in plan.ACROSS_ASSETS else parameters.assets:
            paths = Paths(parameters.name, asset)
            found[record.place(stage, paths)] = record.lost(stage, paths)
            found[provenance.record_path(paths, stage)] = provenance.lost(paths, stage)
    return {path: reason for path, reason in found.items() if reason}
