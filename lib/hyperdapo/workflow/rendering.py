"""How one notebook is rendered: executed by papermill, whole or not at all, with the reason of a failure named."""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from hyperdapo.errors import DataError, DiskFullError, HyperdapoError, ParameterError, nearest
from hyperdapo.evidence import provenance
from hyperdapo.files import atomic, sha256
from hyperdapo.paths import NOTEBOOKS, Paths

START_S = 600
"""For the start of a kernel, which takes minutes on a busy node or a cold disk."""

_LIVES_WITH_US = "__import__('hyperdapo.processes').processes.die_with_parent()"
_KERNEL = ["--IPKernelApp.log_level=ERROR", f"--IPKernelApp.exec_lines={_LIVES_WITH_US}"]
_EVERY_S = 1.0  # a bar is passed on


class KernelManager(AsyncKernelManager):
    """A manager that remembers how its kernel died."""

    status = 0
    """Exit status of the last kernel that was found dead; negative where a signal killed it."""

    async def is_alive(self) -> bool:  # type: ignore[override]
        """Whether the kernel's process runs."""
        alive: bool = await self._async_is_alive()
        if not alive and self.provisioner is not None and self.provisioner.has_process:
            KernelManager.status = await self.provisioner.poll() or 0
        return alive


class Bar:
    """A stream to which progress bars are written; their last state is kept in a file for others, all goes `on`."""

    def __init__(self, file: Path, on: TextIO | None = None) -> None:
        self._file, self._on, self._shown = file, on, 0.0

    def write(self, text: str) -> None:
        """Take what a kernel, or this process, wrote."""
        if self._on is not None:
            self._on.write(text)
        line = next((line for line in reversed(text.replace("\n", "\r").split("\r")) if "%|" in line), "")
        if line and monotonic() > self._shown + _EVERY_S:
            self._shown = monotonic()
            with suppress(DiskFullError), atomic(self._file) as temporary:
                temporary.write_text(line.strip())

    def flush(self) -> None:
        """What is kept is there already."""
        if self._on is not None:
            self._on.flush()


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


def render(notebook: Path, output: Path, given: Mapping[str, Any], bar: Bar | None = None) -> None:
    """Execute a notebook by papermill; `output` appears only when every cell has run.

    Raises
    ------
    ParameterError
        For a parameter that the notebook does not have.
    HyperdapoError
        When a cell fails: its own error, and where the notebook was left as it stood then; and when the kernel does
        not start, or is killed.
    """
    check_parameter_names(notebook, given)
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    with atomic(output) as temporary:
        unfinished = temporary.with_name(f"{temporary.name}.ipynb")
        try:
            _execute(notebook, unfinished, given, bar)
        except PapermillExecutionError as error:
            os.replace(unfinished, failed)
            raise HyperdapoError(f"{error.ename}: {error.evalue}\n  the notebook as it stopped: {failed}") from None
        finally:
            if unfinished.exists():
                os.replace(unfinished, temporary)
        _forget_machine(temporary)
    failed.unlink(missing_ok=True)


def _execute(notebook: Path, output: Path, given: Mapping[str, Any], bar: Bar | None) -> None:
    settings = {"progress_bar": False, "extra_arguments": _KERNEL, "kernel_manager_class": KernelManager}
    settings |= {"start_timeout": START_S, "iopub_timeout": START_S, "stderr_file": bar}
    try:
        papermill.execute_notebook(str(notebook), str(output), parameters=dict(given), **settings)
    except DeadKernelError:
        raise HyperdapoError(f"{notebook.name} stopped: {_death(KernelManager.status)}") from None
    except RuntimeError as error:
        if "Kernel" not in str(error):
            raise
        why = _death(KernelManager.status) if "died" in str(error) else f"its kernel did not start in {START_S} s"
        raise HyperdapoError(
            f"{notebook.name} could not begin: {why}; run again when the machine is less busy, or with --cores 1"
        ) from None


def _death(status: int) -> str:
    """How a kernel died, and what to do about it."""
    if status == -signal.SIGKILL:
        return (
            "its kernel was killed (SIGKILL), most likely because memory ran out; run again with --cores 1, with a "
            "shorter span in `source`, or on a machine with more memory"
        )
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit code {status}"
    return f"its kernel died {how}"


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


def refresh(paths: Paths) -> list[str]:
    """Give every render of a profile the Markdown of its notebook as it stands now, and say so in the manifest.

    Returns
    -------
    Names of the renders that changed.

    Raises
    ------
    DataError
        If a notebook's code is not that of its render, or an output was altered after its run; nothing changes then.
    MissingInputError
        If the profile has no outputs.
    """
    place = paths.outputs / provenance.NAME
    listed = provenance.read(place)
    stages = provenance.stages_of(listed, place)
    if faults := provenance.faults(paths.outputs, listed, []):
        raise DataError(f"{paths.outputs} is not as its run left it: {faults[0]}")
    renders = {file: name.split()[0] for name, e in stages.items() for file in e["files"] if file.endswith(".ipynb")}
    texts = {file: reworded(NOTEBOOKS / f"{stage}.ipynb", paths.outputs / file) for file, stage in renders.items()}
    changed = [file for file, text in texts.items() if text != (paths.outputs / file).read_text(encoding="utf-8")]
    for file in changed:
        with atomic(paths.outputs / file) as temporary:
            temporary.write_text(texts[file], encoding="utf-8")
    for name, entry in stages.items():
        stage, _, asset = name.partition(" ")
        record = provenance.record_path(Paths(paths.name, asset), stage)
        of_this_run = record.exists() and provenance.read(record) == entry
        entry["files"] |= {file: sha256(paths.outputs / file) for file in changed if file in entry["files"]}
        if of_this_run:
            provenance.store(record, entry)
    provenance.store(place, listed)
    return [Path(file).stem for file in changed]


def reworded(notebook: Path, render: Path) -> str:
    """The text of a render file with the outputs that it has and the prose of the notebook.

    Raises
    ------
    DataError
        If its code cells are not the notebook's: naming the render, and the first cell.
    """
    written, shown = (nbformat.read(path, as_version=4) for path in (notebook, render))
    ran = [cell for cell in shown.cells if cell.cell_type == "code"]
    injected = [cell for cell in ran if "injected-parameters" in cell.metadata.get("tags", [])]
    ran = [cell for cell in ran if cell not in injected]
    code = [cell for cell in written.cells if cell.cell_type == "code"]
    apart = [cell.id for cell, as_run in zip(code, ran, strict=False) if cell.source != as_run.source]
    if apart or len(code) != len(ran):
        where = f"its code differs in {apart[0]}" if apart else f"{len(ran)} code cells became {len(code)}"
        raise DataError(f"{render.name} is of another notebook ({where}): more than prose changed, run it again")
    outputs, cells = iter(ran), []
    for cell in written.cells:
        cell.metadata.setdefault("tags", [])
        cells.append(nbformat.from_dict(next(outputs) | {"id": cell.id}) if cell.cell_type == "code" else cell)
        cells += injected if "parameters" in cell.metadata["tags"] else []
    shown.cells = cells
    return f"{nbformat.writes(shown)}\n"
