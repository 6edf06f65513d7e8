"""The report as a static site, made by sphinx and myst-nb from the renders of a finished run."""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from hyperdapo.errors import HyperdapoError
from hyperdapo.files import atomic_folder, writing_into
from hyperdapo.paths import REPOSITORY, Paths
from hyperdapo.report import pages

CONFIGURATION = Path(__file__).parent
NEEDED = ("sphinx", "myst_nb", "pydata_sphinx_theme")


def folder_of(paths: Paths) -> Path:
    """Where the site of a run stands."""
    return REPOSITORY / "build/report" / paths.name


def build(paths: Paths, assets: Sequence[str], folder: Path) -> int:
    """Put the site of a finished run into `folder`, whole or not at all; it opens from there, at `index.html`.

    Returns
    -------
    The number of its pages.

    Raises
    ------
    MissingInputError, DataError
        As `pages.write`.
    HyperdapoError
        If a package that makes it is not installed, or sphinx finds fault with a page.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise HyperdapoError(f"the report needs {', '.join(missing)}, which this environment lacks. Run: make setup")
    with writing_into(folder.parent), TemporaryDirectory(prefix=".report", dir=folder.parent) as place:
        source, made = Path(place) / "source", Path(place) / "made/html"
        pages.write(paths, assets, source)
        _sphinx(paths, source, made)
        with atomic_folder(folder) as temporary:
            shutil.copytree(made, temporary, dirs_exist_ok=True)
    return sum("_static" not in page.parts for page in folder.rglob("*.html"))


def _sphinx(paths: Paths, source: Path, made: Path) -> None:
    """Raises HyperdapoError with sphinx's first warning, as every warning is a fault that a reader would see."""
    from sphinx.cmd.build import build_main

    warnings = made.parent / "warnings.txt"
    made.mkdir(parents=True)
    given = {"project": f"HyperDAPO: {paths.name}", "html_title": f"HyperDAPO: {paths.name}"}
    given |= {"html_extra_path": str(paths.outputs / "dashboard.html")}
    settings = [option for name, value in given.items() for option in ("-D", f"{name}={value}")]
    folders = ["-c", str(CONFIGURATION), "-d", str(made.parent / "doctrees"), str(source), str(made)]
    failed = build_main(["-Q", "-j", "2", "-w", str(warnings), *settings, *folders])
    told = warnings.read_text(encoding="utf-8").splitlines() if warnings.exists() else []
    if failed or told:
        raise HyperdapoError(f"sphinx could not make the report of {paths.name}: {told[0] if told else failed}")
