"""What the Snakefile and the command share: the stages, what each depends on, and how they are brought up to date.

A stage depends on its notebook, on every module that the notebook imports directly or through others, and on the
parameters that any of them mentions. All three are read from the code, so no list can go stale.
"""

import json
import re
import shutil
import sys
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hyperdapo import gpus
from hyperdapo.errors import HyperdapoError, ParameterError, nearest
from hyperdapo.files import full_disk, sweep, writing_into
from hyperdapo.params import Parameters, remember
from hyperdapo.paths import PROFILES, REPOSITORY, Paths, base_models, data_root, outputs_root
from hyperdapo.plan import STAGES, before, labels, named, rules, wanted
from hyperdapo.stages import record, take_over
from hyperdapo.workflow import engine
from hyperdapo.workflow.engine import because
from hyperdapo.workflow.locks import run_lock
from hyperdapo.workflow.progress import Progress, label_of
from hyperdapo.workflow.stale import stale as find_stale

_ROOM_FOR_NOTES = 1 << 20  # bytes; with less, a failed stage may not even have noted why
_LAST_LINES = 3  # of the log of a workflow that did not even begin
_RERUN = ["--rerun-incomplete", "--keep-going", "--rerun-triggers", "mtime"]
_MANY = 10**6  # jobs side by side on a cluster
_NOTHING = "nothing to run: all is up to date"


def failures(run: str) -> Path:
    """Folder where a failed stage leaves its one clear error."""
    return data_root() / run / "failures"


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
    config |= {"again": named(force)} if force else {}

    def command(*more: str) -> list[str]:
        return snakemake(parameters, overrides, stages, *options, *_RERUN, *more, *allowed, config=config)

    if dry_run:
        again, reasons = _again(parameters, stages, force)
        _explain(command(*again, "--dry-run"), reasons, record.lenders(parameters, stages))
        return
    log, beside = data_root() / parameters.name / "run.log", _MANY if workflow_profile else cores
    progress = Progress(parameters.name, labels(), min(beside, len(parameters.assets)))
    with run_lock() as locks, closing(progress):
        _tidy(parameters.name)
        try:
            with writing_into(log.parent):
                remember(parameters)
                if taken := take_over(parameters, [*before(stages[0]), *stages]):
                    print(f"taken over from other runs: {', '.join(taken)}")
                again, _ = _again(parameters, stages, force)
                status = engine.run(command(*again)[3:], log, progress, locks)
        finally:
            _tidy(parameters.name, failures_too=False)
    if status:
        raise _failure(parameters.name, progress.failed, status, log)
    if not progress.total:
        print(_NOTHING)


def _again(parameters: Parameters, stages: list[str], force: str | None) -> tuple[list[str], dict[str, str]]:
    """Options that have what no longer stands run again, and the reason of each file; a forced stage too."""
    stale = {str(path): reason for path, reason in find_stale(parameters, stages).items()}
    forced = named(force) if force else None
    if forced and forced not in stages:
        raise ParameterError(f"--force {forced} is not among the stages that run: {', '.join(stages)}")
    again = [*(rules(forced) if forced else []), *stale]
    return ["--forcerun", *again] if again else [], stale


def _explain(command: list[str], stale: Mapping[str, str], lenders: Mapping[str, str]) -> None:
    """Print what a dry run of Snakemake says, one line for each job."""
    jobs, rules = dict[str, str](), labels()

    def listen(event: engine.Event | None) -> None:
        if event and event["event"] == "job_info" and event["rule_name"] in rules:
            known = [stale[name] for name in event.get("output", []) if name in stale]
            label = label_of(event, rules)
            taken = f"taken over from {lenders[label]}" if label in lenders else ""
            jobs[label] = taken or "; ".join(known) or because(event["reason"])

    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        if engine.run(command[3:], log, listen):
            raise HyperdapoError(f"the workflow cannot be planned: {_last_words(log)}")
    print("\n".join(f"{label}: {reason}" for label, reason in jobs.items()) or _NOTHING)


def _failure(run: str, failed: list[str], status: int, log: Path) -> HyperdapoError:
    """Every stage that failed, each once; where none says why, what the workflow last printed."""
    reasons = [path.read_text().strip() for path in sorted(failures(run).glob("*.txt"))]
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


def here(cores: int) -> tuple[list[str], dict[str, str]]:
    """Options and config values of Snakemake for jobs on this machine: its cores and GPUs are what there is."""
    seen = len(gpus.visible())
    return ["--cores", str(cores), "--resources", f"gpu={seen or cores}"], {"cores": str(cores), "gpus": str(seen)}


def cluster(profile: str) -> tuple[list[str], dict[str, str]]:
    """The same for jobs on a cluster: a profile of Snakemake says how.

    Raises
    ------
    ParameterError
        If there is none, or the path of this Python cannot be written into a job.
    """
    places = [Path(profile), PROFILES / profile]
    found = [place.resolve() for place in places if (place / "config.yaml").is_file()]
    if not found:
        known = sorted(path.parent.name for path in PROFILES.glob("*/config.yaml"))
        raise ParameterError(
            f"no workflow profile {profile!r}{nearest(profile, known)}: name a folder that has a config.yaml, "
            f"or one of {', '.join(known)}"
        )
    if re.search(r"\s", sys.executable):
        raise ParameterError(
            f"{sys.executable} has a blank in its path, which Snakemake does not quote in a cluster's jobs: clone the "
            "repository into a folder without"
        )
    return ["--workflow-profile", str(found[0])], {"each_run": "1"}


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


def _tidy(run: str, failures_too: bool = True) -> None:
    """Remove what killed writers left, and the notes of the last run."""
    for folder in (data_root() / run, data_root() / "slices", base_models(), Paths(run).outputs):
        sweep(folder)
    shutil.rmtree(data_root() / run / "progress", ignore_errors=True)
    for old in failures(run).glob("*.txt") if failures_too else ():
        old.unlink()


def summary(paths: Paths, seconds: float) -> str:
    """What a finished run left, how long it took, and what to read first."""
    kinds = {"notebooks": paths.notebooks.glob("*.ipynb"), "figures": paths.figures.glob("*.pdf")}
    kinds["tables"] = paths.tables.glob("*.csv")
    counts = ", ".join(f"{len(list(files))} {kind}" for kind, files in kinds.items())
    results = paths.notebooks / f"{STAGES[-1]}.ipynb"
    first = f"; read first: {results.relative_to(paths.outputs)}" if results.exists() else ""
    return f"done in {seconds / 60:.1f} min: {counts} in {paths.outputs}{first}"
