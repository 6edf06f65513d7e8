"""What the Snakefile and the command share: the stages, what each depends on, and how one notebook is rendered.

A stage depends on its notebook, on every module that the notebook imports directly or through others, and on the
parameters that any of them mentions. All three are read from the code, so no list can go stale.
"""

import ast
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from hyperdapo.errors import HyperdapoError, ParameterError, nearest
from hyperdapo.params import Parameters
from hyperdapo.paths import NOTEBOOKS, REPOSITORY, Paths, atomic, base_models, data_root, full_disk, outputs_root, sweep

STAGES = tuple(path.stem for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")))
ACROSS_ASSETS = ("06_convergence", "09_significance")

_PACKAGE = Path(__file__).parent
_ROOM_FOR_NOTES = 1 << 20  # bytes; with less, a failed stage may not even have told why
_QUIET_KERNEL = ["--IPKernelApp.log_level=ERROR"]


def dependencies(stage: str) -> tuple[list[Path], list[str]]:
    """Files (notebook first, then modules) and parameters that a stage depends on.

    Code that names a key (`parameters.evidence.block_s`) depends on that key, any other on the whole section. What is
    made for one asset does not depend on which others are run.
    """
    notebook = NOTEBOOKS / f"{stage}.ipynb"
    cells = nbformat.read(notebook, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    modules, found = set[Path](), _imports(code)
    while found:
        modules |= found
        found = frozenset().union(*(_imports(path.read_text()) for path in found)) - modules
    text = "\n".join([code, *(path.read_text() for path in modules)])
    mentioned = {_parameter(*names) for names in re.findall(r"\bparameters\.(\w+)(?:\.(\w+))?", text)}
    return [notebook, *sorted(modules)], sorted(mentioned - {"", "" if stage in ACROSS_ASSETS else "assets"})


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


@cache
def _imports(code: str) -> frozenset[Path]:
    """Modules of this package that some code imports."""
    names = set[str]()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    inside = [name.split(".")[1:] for name in names if name.split(".")[0] == _PACKAGE.name]
    places = [_PACKAGE.joinpath(*parts) for parts in inside]
    candidates = {place.with_suffix(".py") for place in places} | {place / "__init__.py" for place in places}
    return frozenset(path for path in candidates if path.is_file())


def check_parameter_names(notebook: Path, given: Mapping[str, Any]) -> None:
    """Papermill only warns of a parameter that a notebook does not have; this raises.

    Raises
    ------
    ParameterError
        Naming the unknown parameter and the nearest right one.
    """
    known = papermill.inspect_notebook(str(notebook))
    for name in given:
        if name not in known:
            raise ParameterError(f"{notebook.name} has no parameter {name!r}{nearest(name, known)}")


def render(notebook: Path, output: Path, given: Mapping[str, Any]) -> None:
    """Execute a notebook by papermill; `output` appears only when every cell has run.

    Raises
    ------
    ParameterError
        For a parameter that the notebook does not have.
    HyperdapoError
        When a cell fails: its own error, and where the notebook was left as it stood then.
    """
    check_parameter_names(notebook, given)
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    with atomic(output) as temporary:
        unfinished = temporary.with_name(f"{temporary.name}.ipynb")
        try:
            settings = {"progress_bar": False, "extra_arguments": _QUIET_KERNEL}
            papermill.execute_notebook(str(notebook), str(unfinished), parameters=dict(given), **settings)
        except PapermillExecutionError as error:
            os.replace(unfinished, failed)
            raise HyperdapoError(f"{error.ename}: {error.evalue}\n  the notebook as it stopped: {failed}") from None
        finally:
            if unfinished.exists():
                os.replace(unfinished, temporary)
        _forget_machine(temporary)
    failed.unlink(missing_ok=True)


def _forget_machine(path: Path) -> None:
    """Drop what papermill notes of this machine, and stderr (progress bars, libraries' notes with paths of theirs).

    A render is the same everywhere; a notebook that failed keeps it all.
    """
    notebook = nbformat.read(path, as_version=4)
    kept = notebook.metadata.get("papermill", {}).get("parameters", {})
    notebook.metadata["papermill"] = {"parameters": kept}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def failures(profile: str) -> Path:
    """Folder where a failed stage leaves its one clear error."""
    return data_root() / profile / "failures"


@contextmanager
def run_lock() -> Iterator[int]:
    """Hold the data folder for one run; the kernel frees it when the run and its workflow are gone, even killed.

    Raises
    ------
    HyperdapoError
        If another run is at work in the same folder, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            data_root().mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((data_root() / ".lock").open("w"))
        except OSError as error:
            raise HyperdapoError(f"cannot write into {data_root()} ({error.strerror}); set HYPERDAPO_DATA") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HyperdapoError(
                f"another run is at work in {data_root()}; wait for it, or set HYPERDAPO_DATA to another folder"
            ) from None
        yield file.fileno()


def run(
    parameters: Parameters, overrides: Mapping[str, Any], until: str | None, cores: int, only: str | None = None
) -> None:
    """Bring every stage of a profile (or those up to `until`, or `only` one) up to date by Snakemake.

    Raises
    ------
    DiskFullError
        If nothing is left of a disk that is written to.
    HyperdapoError
        With the own error of every stage that failed.
    """
    stages = wanted(until, only)
    allowed = ["--allowed-rules", "all", rule(stages[0])] if only else []
    options = ["--cores", str(cores), "--resources", f"gpu={gpus() or cores}", "--rerun-incomplete", "--keep-going"]
    command = snakemake(parameters, overrides, stages, *options, *allowed)
    with run_lock() as lock:
        for old in failures(parameters.profile).glob("*.txt"):
            old.unlink()
        _sweep(parameters.profile)
        finished = subprocess.run(command, pass_fds=[lock], check=False)
        _sweep(parameters.profile)  # a kernel outlives its killed run by a moment
    if finished.returncode:
        reasons = [path.read_text() for path in sorted(failures(parameters.profile).glob("*.txt"))]
        full = [folder for folder in (data_root(), outputs_root()) if shutil.disk_usage(folder).free < _ROOM_FOR_NOTES]
        if full and not any(reasons):
            raise full_disk(full[0])
        raise HyperdapoError("\n".join(reasons) or f"the workflow stopped with exit code {finished.returncode}")


def units(assets: Iterable[str]) -> list[str]:
    """Every stage of a whole run, by asset where it is made for one: `05_train BTC`, `06_convergence`."""
    names = (f"{stage} {asset}" for stage in STAGES for asset in assets if stage not in ACROSS_ASSETS)
    return sorted([*names, *ACROSS_ASSETS])


def wanted(until: str | None = None, only: str | None = None) -> list[str]:
    """The stages up to `until`, or `only` one, or all; raises as `named`."""
    last = named(only or until or STAGES[-1])
    return [last] if only else list(STAGES[: STAGES.index(last) + 1])


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
        "overrides": b64encode(
            json.dumps(overrides, default=str).encode()
        ).decode(),  # Snakemake makes words of numbers
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


def _sweep(profile: str) -> None:
    for folder in (data_root() / profile, base_models(), Paths(profile).outputs):
        sweep(folder)


def summary(paths: Paths, seconds: float) -> str:
    """What a finished run left, how long it took, and what to read first."""
    kinds = {"notebooks": paths.notebooks.glob("*.ipynb"), "figures": paths.figures.glob("*.pdf")}
    kinds["tables"] = paths.tables.glob("*.csv")
    counts = ", ".join(f"{len(list(files))} {kind}" for kind, files in kinds.items())
    results = paths.notebooks / f"{STAGES[-1]}.ipynb"
    first = f"; read first: {results.relative_to(paths.outputs)}" if results.exists() else ""
    return f"done in {seconds / 60:.1f} min: {counts} in {paths.outputs}{first}"


def gpus() -> int:
    """Number of NVIDIA GPUs, 0 without a driver."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return 0
    return listing.count("GPU ")


@contextmanager
def own_gpu() -> Iterator[None]:
    """Reserve one GPU that no other stage of this machine holds (Listing 4.7); without GPUs, nothing to reserve."""
    for index in range(gpus()):
        with (data_root() / f".gpu-{index}").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = str(index)
            yield
            return
    yield
