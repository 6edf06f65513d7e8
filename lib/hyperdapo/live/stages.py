"""What one stage of the workflow reads and writes, asked of the Snakefile itself; and what was made elsewhere."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hyperdapo import workflow
from hyperdapo.errors import HyperdapoError
from hyperdapo.params import Parameters
from hyperdapo.paths import require

_STAMP = ".snakemake_timestamp"  # which Snakemake leaves in a folder that is an output, and whose time counts


@dataclass(frozen=True)
class StageFiles:
    """Files that a stage reads (its notebook and modules among them) and writes, for the assets of a run."""

    inputs: list[Path]
    outputs: list[Path]


def stage_files(parameters: Parameters, overrides: Mapping[str, Any]) -> dict[str, StageFiles]:
    """Files of every stage by its name, as the rules of the Snakefile name them.

    Raises
    ------
    HyperdapoError
        If Snakemake cannot read the workflow.
    """
    with TemporaryDirectory() as folder:
        listing = Path(folder) / "files.json"
        command = workflow.snakemake(parameters, overrides, [], "--list-rules", config={"files": str(listing)})
        _quietly(command, "Snakemake cannot read the workflow")
        rules = json.loads(listing.read_text())
    return {stage: _joined([rules[name] for name in workflow.rules(stage)], parameters) for stage in workflow.STAGES}


def require_inputs(stage: str, files: Mapping[str, StageFiles], profile: str) -> list[Path]:
    """What a stage reads, all of it there.

    Raises
    ------
    MissingInputError
        Naming the first file that is not there, the stage that writes it, and the command that runs that stage.
    """
    makers = {path: maker for maker, found in files.items() for path in found.outputs}
    return [require(path, makers.get(path, stage), profile) for path in files[stage].inputs]


def mark_done(parameters: Parameters, overrides: Mapping[str, Any], stage: str, files: StageFiles) -> None:
    """Tell Snakemake that what a stage writes is up to date: it was made elsewhere, of the same files and parameters.

    What is newer than all that it was made of keeps its time, so that later stages are not made to run again.

    Raises
    ------
    HyperdapoError
        If Snakemake refuses.
    """
    rules = workflow.rules(stage)
    options = ["--touch", "--forcerun", *rules, "--cores", "1", "--rerun-incomplete", "--allowed-rules", "all", *rules]
    places = [path / _STAMP if path.is_dir() else path for path in files.outputs]
    times = {path: path.stat().st_mtime_ns for path in places if path.exists()}
    _quietly(workflow.snakemake(parameters, overrides, [stage], *options), f"Snakemake does not take {stage}")
    newest_input = max(path.stat().st_mtime_ns for path in files.inputs)
    for path, time_ns in times.items():
        if time_ns > newest_input:
            os.utime(path, ns=(time_ns, time_ns))


def _quietly(command: list[str], failure: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HyperdapoError(f"{failure}: {done.stderr.strip()}")


def _joined(rules: list[list[list[str]]], parameters: Parameters) -> StageFiles:
    """What the rules of a stage read and write together; what one writes for the next is written."""
    read, written = ([path for rule in rules for path in _each(rule[side], parameters)] for side in (0, 1))
    return StageFiles([path for path in dict.fromkeys(read) if path not in written], list(dict.fromkeys(written)))


def _each(patterns: list[str], parameters: Parameters) -> list[Path]:
    paths = [Path(pattern.format(asset=asset)) for pattern in patterns for asset in parameters.assets]
    return list(dict.fromkeys(paths))
