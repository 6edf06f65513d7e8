"""What the Snakefile and the command share: the stages, what each depends on, and how they are brought up to date.

A stage depends on its notebook, on every module that the notebook imports directly or through others, and on the
parameters that any of them mentions. All three are read from the code, so no list can go stale.
"""

import json
import re
import shutil
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import reduce
from operator import getitem
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hyperdapo import engine, gpus
from hyperdapo.errors import HyperdapoError, ParameterError, nearest
from hyperdapo.imports import modules
from hyperdapo.locks import run_lock
from hyperdapo.lost import ACROSS_ASSETS, lost_outputs
from hyperdapo.params import Parameters
from hyperdapo.paths import (
    NOTEBOOKS,
    PROFILES,
    REPOSITORY,
    Paths,
    base_models,
    data_root,
    full_disk,
    outputs_root,
    sweep,
    writing_into,
)
from hyperdapo.progress import Progress, label_of
from hyperdapo.reasons import because

STAGES = tuple(path.stem for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")))
WITH_MODEL = ("05_train", "06_convergence", "07_inference")

_JOBS = {"05_train": ["adapters"], "06_convergence": ["generalist"]}  # the rules that train what a stage shows
_PACKAGE = Path(__file__).parent
_ROOM_FOR_NOTES = 1 << 20  # bytes; with less, a failed stage may not even have told why
_LAST_LINES = 3  # of the log of a workflow that did not even begin
_RERUN = ["--rerun-incomplete", "--keep-going"]
_MANY = 10**6  # jobs side by side on a cluster
_NOTHING = "nothing to run: all is up to date"


def dependencies(stage: str) -> tuple[list[Path], list[str]]:
    """Files (notebook first, then modules) and parameters that a stage depends on.

    Code that names a key (`parameters.evidence.block_s`) depends on that key, any other on the whole section. What is
    made for one asset does not depend on which others are run.
    """
    notebook = NOTEBOOKS / f"{stage}.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]  # nbformat takes a second to import
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    files, mentioned = _needs(code)
    return [notebook, *files], sorted(mentioned - {"" if stage in ACROSS_ASSETS else "assets"})


def training_dependencies() -> tuple[list[Path], list[str]]:
    """The same of the trainings that 05 and 06 show: they do not run again where a figure changes."""
    files, mentioned = _needs(f"import {_PACKAGE.name}.policy.jobs")
    return files, sorted(mentioned - {"assets"})


def _needs(code: str) -> tuple[list[Path], set[str]]:
    """The modules that code imports, directly or through others, and the parameters that any of them mentions."""
    files = sorted(modules(code))
    text = "\n".join([code, *(path.read_text() for path in files)])
    mentioned = {_parameter(*names) for names in re.findall(r"\bparameters\.(\w+)(?:\.(\w+))?", text)}
    return files, mentioned - {""}


def section_values(parameters: Parameters, names: list[str]) -> str:
    """Canonical JSON of some sections or keys of them: when it changes, the stages that mention them run again."""
    dumped = parameters.model_dump(mode="json")
    values = {name: reduce(getitem, name.split("."), dumped) for name in names}
    return json.dumps(values, sort_keys=True)


def _parameter(section: str, key: str) -> str:
    """`section.key` where both are of the schema, `section` where the key is not (a property), else nothing."""
    if section not in Parameters.model_fields:
        return ""
    keys = getattr(Parameters.model_fields[section].annotation, "model_fields", {})
    return f"{section}.{key}" if key in keys else section


def failures(profile: str) -> Path:
    """Folder where a failed stage leaves its one clear error."""
    return data_root() / profile / "failures"


def run(
    parameters: Parameters,
    overrides: Mapping[str, Any],
    until: str | None,
    cores: int,
    only: str | None = None,
    force: str | None = None,
    dry_run: bool = False,
    workflow_profile: str | None = None,
) -> None:
    """Bring every stage of a profile (or those up to `until`, or `only` one) up to date by Snakemake.

    Parameters
    ----------
    force : a stage that runs again though it is up to date, and with it what depends on it
    dry_run : only print what would run, and why
    workflow_profile : a folder of `profiles/`, or any other, with which Snakemake has a cluster run the jobs; each
        training is then a job of its own

    Raises
    ------
    ParameterError
        If a stage is unknown, or the forced one is not among those that run; or there is no such workflow profile.
    DiskFullError
        If nothing is left of a disk that is written to.
    HyperdapoError
        With the own error of every stage that failed.
    Stopped
        When a signal asks for the end; nothing that was started lives on.
    """
    stages = wanted(until, only)
    allowed = ["--allowed-rules", "all", *rules(stages[0])] if only else []
    options, config = cluster(workflow_profile) if workflow_profile else here(cores)
    again, reasons = _again(parameters, stages, force)
    options = [*options, *_RERUN, *(["--forcerun", *again] if again else []), *allowed]
    if dry_run:
        _explain(snakemake(parameters, overrides, stages, *options, "--dry-run", config=config), reasons)
        return
    command = snakemake(parameters, overrides, stages, *options, config=config)
    log, beside = data_root() / parameters.profile / "run.log", _MANY if workflow_profile else cores
    progress = Progress(parameters.profile, _of_rules(), min(beside, len(parameters.assets)))
    with run_lock() as locks, closing(progress):
        _tidy(parameters.profile)
        try:
            with writing_into(log.parent):
                status = engine.run(command[3:], log, progress, locks)
        finally:
            _tidy(parameters.profile, failures_too=False)
    if status:
        raise _failure(parameters.profile, progress.failed, status, log)
    if not progress.total:
        print(_NOTHING)


def _again(parameters: Parameters, stages: list[str], force: str | None) -> tuple[list[str], dict[str, str]]:
    """Rules and files that run again though Snakemake sees them up to date, and the reason of each file."""
    lost = {str(path): reason for path, reason in lost_outputs(parameters, stages).items()}
    forced = named(force) if force else None
    if forced and forced not in stages:
        raise ParameterError(f"--force {forced} is not among the stages that run: {', '.join(stages)}")
    return [*(rules(forced) if forced else []), *lost], lost


def _of_rules() -> dict[str, str]:
    """What the jobs of each rule are called: the stage, or the stage's number and the rule that trains for it."""
    trained = {name: f"{stage[:2]}_{name}" for stage, names in _JOBS.items() for name in names}
    return trained | {rule(stage): stage for stage in STAGES}


def _explain(command: list[str], lost: Mapping[str, str]) -> None:
    """Print what a dry run of Snakemake says, one line for each job."""
    jobs, stages = dict[str, str](), _of_rules()

    def listen(event: engine.Event | None) -> None:
        if event and event["event"] == "job_info" and event["rule_name"] in stages:
            label = label_of(event, stages)
            own = [lost[name] for name in event.get("output", []) if name in lost]
            jobs[label] = "; ".join(own) or because(event["reason"])

    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        if engine.run(command[3:], log, listen):
            raise HyperdapoError(f"the workflow cannot be planned: {_last_words(log)}")
    print("\n".join(f"{label}: {reason}" for label, reason in jobs.items()) or _NOTHING)


def _failure(profile: str, failed: list[str], status: int, log: Path) -> HyperdapoError:
    """Every stage that failed, each once; where none says why, what the workflow last printed."""
    reasons = [path.read_text().strip() for path in sorted(failures(profile).glob("*.txt"))]
    full = [folder for folder in (data_root(), outputs_root()) if shutil.disk_usage(folder).free < _ROOM_FOR_NOTES]
    if full and not any(reasons):
        return full_disk(full[0])
    silent = [label for label in failed if not any(reason.startswith(label) for reason in reasons)]
    reasons += [f"{label}: ended without a word (killed, or memory ran out): see {log}" for label in silent]
    said = "\n".join(filter(None, reasons))
    return HyperdapoError(said or f"the workflow stopped with exit code {status}: {_last_words(log)}\n  see {log}")


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-_LAST_LINES:])


def units(assets: Iterable[str]) -> list[str]:
    """Every stage of a whole run, by asset where it is made for one: `05_train BTC`, `06_convergence`."""
    names = (f"{stage} {asset}" for stage in STAGES for asset in assets if stage not in ACROSS_ASSETS)
    return sorted([*names, *ACROSS_ASSETS])


def wanted(until: str | None = None, only: str | None = None) -> list[str]:
    """The stages up to `until`, or `only` one, or all; raises as `named`."""
    last = named(only or until or STAGES[-1])
    return [last] if only else list(STAGES[: STAGES.index(last) + 1])


def here(cores: int) -> tuple[list[str], dict[str, str]]:
    """Options and config values of Snakemake for jobs on this machine: its cores and GPUs are what there is."""
    seen = len(gpus.visible())
    return ["--cores", str(cores), "--resources", f"gpu={seen or cores}"], {"cores": str(cores), "gpus": str(seen)}


def cluster(profile: str) -> tuple[list[str], dict[str, str]]:
    """The same for jobs on a cluster: a profile of Snakemake says how. Raises ParameterError if there is none."""
    places = [Path(profile), PROFILES / profile]
    found = [place.resolve() for place in places if (place / "config.yaml").is_file()]
    if not found:
        known = sorted(path.parent.name for path in PROFILES.glob("*/config.yaml"))
        raise ParameterError(
            f"no workflow profile {profile!r}{nearest(profile, known)}: name a folder that has a config.yaml, "
            f"or one of {', '.join(known)}"
        )
    return ["--workflow-profile", str(found[0])], {"each_run": "1"}


def named(stage: str) -> str:
    """The stage that a user means by `05` or `05_train`.

    Raises
    ------
    ParameterError
        If there is none.
    """
    for known in STAGES:
        if stage in (known, known[:2]):
            return known
    raise ParameterError(f"no stage {stage!r}{nearest(stage, STAGES)}; there are {', '.join(STAGES)}")


def snakemake(
    parameters: Parameters,
    overrides: Mapping[str, Any],
    stages: list[str],
    *options: str,
    config: Mapping[str, str] | None = None,
) -> list[str]:
    """The command that has Snakemake look at some stages of a profile, with more options and config values."""
    values = {
        "profile": parameters.profile,
        "overrides": b64encode(json.dumps(overrides, default=str).encode()).decode(),  # else it makes words of numbers
        "stages": json.dumps(stages),
        **(config or {}),
    }
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")),
        *("--directory", str(data_root()), "--nolock", "--quiet", "rules", "host", "reason"),
        *(*options, "--config", *(f"{key}={value}" for key, value in values.items())),
    ]


def rule(stage: str) -> str:
    """The Snakefile's rule of a stage is its name without the number."""
    return stage[3:]


def rules(stage: str) -> list[str]:
    """The rule of a stage, after those that train what it shows."""
    return [*_JOBS.get(stage, []), rule(stage)]


def _tidy(profile: str, failures_too: bool = True) -> None:
    """Remove what killed writers left, and what the last run told of itself."""
    for folder in (data_root() / profile, base_models(), Paths(profile).outputs):
        sweep(folder)
    shutil.rmtree(data_root() / profile / "progress", ignore_errors=True)
    for old in failures(profile).glob("*.txt") if failures_too else ():
        old.unlink()


def summary(paths: Paths, seconds: float) -> str:
    """What a finished run left, how long it took, and what to read first."""
    kinds = {"notebooks": paths.notebooks.glob("*.ipynb"), "figures": paths.figures.glob("*.pdf")}
    kinds["tables"] = paths.tables.glob("*.csv")
    counts = ", ".join(f"{len(list(files))} {kind}" for kind, files in kinds.items())
    results = paths.notebooks / f"{STAGES[-1]}.ipynb"
    first = f"; read first: {results.relative_to(paths.outputs)}" if results.exists() else ""
    return f"done in {seconds / 60:.1f} min: {counts} in {paths.outputs}{first}"
