"""The source of the report's pages: a front page, one page a render, the training dashboard.

What stands there is what the run rendered, word by word and number by number; nothing is computed or executed.
"""

import re
import shutil
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode

from hyperdapo import plan
from hyperdapo.errors import DataError
from hyperdapo.evidence.figures.style import captions
from hyperdapo.evidence.metrics import TOGETHER, TOTAL
from hyperdapo.evidence.tables import heading, markdown_table
from hyperdapo.files import force, require
from hyperdapo.paths import Paths

LAST = plan.STAGES[-1]
WORLDS = ("sample", "planted", "null", "real")
"""Runs whose last notebook stands beside that of any other, where they are here."""

_SAVED = re.compile(r"figures\.save\(.*, paths, f?\"(\w+?)(?:_\{.*)?\"\)")
_FRONT_FIGURES = ("main", "hypotheses")
_FRONT = """# HyperDAPO: the run `{run}`

A language model learns from replayed tick data where to place a limit order, and is compared with market orders, TWAP,
VWAP and simple rules on the same parent orders. Costs are in bps of the arrival mid, and positive when worse for the
trader.

## Findings

{findings}

{figures}

## What each strategy costs

{table}

## Where to read on

- [The evidence](across/{last}.ipynb): tests, intervals, the draft's claims
- [Training](across/06_convergence.ipynb), and its [dashboard](across/dashboard.md)
- notebook by notebook: {assets}
{worlds}
"""
_DASHBOARD = """# Training dashboard

<iframe class="dashboard" src="../dashboard.html" title="Training curves by asset and algorithm"></iframe>

<p><a href="../dashboard.html">The dashboard on a page of its own</a></p>
"""


def write(paths: Paths, assets: Sequence[str], folder: Path) -> None:
    """Write the source of every page of a finished run into a folder.

    Raises
    ------
    MissingInputError
        If a notebook has not been rendered, naming it and the command that does it.
    DataError
        If a render is damaged, or was not executed.
    """
    require(paths.notebooks / f"{LAST}.ipynb", LAST, paths.name)
    renders = {asset: _renders(paths, asset, assets) for asset in ("", *assets)}
    require(paths.outputs / "dashboard.html", "06_convergence", paths.name)
    last = read(renders[""][-1], paths.name)
    folder.mkdir()
    worlds = [name for name in WORLDS if name != paths.name and _of_world(name).is_file()]
    for figure in _front_figures(paths):
        shutil.copy(figure, folder)
    _write(folder / "index.md", _front(paths, assets, worlds, last))
    for asset in assets:
        _section(folder / asset, asset, [_stage(path) for path in renders[asset]])
        others = [other for other in assets if other != asset]
        for path in renders[asset]:
            page = _page(read(path, paths.name), asset, _stage(path), others)
            _write(folder / asset / f"{_stage(path)}.ipynb", page)
    _section(folder / "across", "All assets", [LAST, "06_convergence", "dashboard"])
    _write(folder / "across/dashboard.md", _DASHBOARD)
    for path in renders[""]:
        _write(folder / "across" / path.name, _page(read(path, paths.name)))
    if worlds:
        _section(folder / "worlds", "Other worlds", worlds)
    for name in worlds:
        _write(folder / f"worlds/{name}.ipynb", _page(read(_of_world(name), name), f"`{name}`"))


def read(render: Path, run: str) -> NotebookNode:
    """A rendered notebook.

    Raises
    ------
    DataError
        If it is damaged, was not executed or shows an error, with the command that renders it again.
    """
    try:
        notebook: NotebookNode = nbformat.read(render, as_version=4)
        nbformat.validate(notebook)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        for output in outputs:
            b64decode(output.get("data", {}).get("image/png", ""), validate=True)
    except (ValueError, TypeError, AttributeError, nbformat.ValidationError) as error:  # JSON, or no notebook
        raise DataError(f"{render} is damaged ({_first_line(error)}). Run: {force(run, _stage(render))}") from None
    if not outputs or any(output["output_type"] == "error" for output in outputs):
        what = "shows an error" if outputs else "was not executed"
        raise DataError(f"{render} {what}. Run: {force(run, _stage(render))}")
    return notebook


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _renders(paths: Paths, asset: str, assets: Sequence[str]) -> list[Path]:
    """The renders of an asset, or of all assets together, in the order of the stages."""
    stages = [stage for stage in plan.STAGES if asset in plan.assets_of(stage, assets)]
    names = {stage: plan.unit(stage, asset).replace(" ", "_") for stage in stages}
    return [require(paths.notebooks / f"{name}.ipynb", stage, paths.name) for stage, name in names.items()]


def _stage(render: Path) -> str:
    """`03_features` of `03_features_BTC.ipynb`."""
    return next(stage for stage in plan.STAGES if render.stem.startswith(stage))


def _of_world(name: str) -> Path:
    return Paths(name).notebooks / f"{LAST}.ipynb"


def _write(path: Path, page: str | NotebookNode) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page if isinstance(page, str) else nbformat.writes(page), encoding="utf-8")


def _section(folder: Path, title: str, names: Sequence[str]) -> None:
    """The opening page of a section, which lists its pages."""
    _write(folder / "index.md", f"# {title}\n\n{_contents(names)}\n")


def _contents(names: Sequence[str], options: str = ":maxdepth: 1") -> str:
    return "\n".join(["```{toctree}", options, "", *names, "```"])


def _page(notebook: NotebookNode, of: str = "", stage: str = "", others: Sequence[str] = ()) -> NotebookNode:
    """A render with its code folded, its figures captioned, and links to the same notebook of other assets.

    The literals of the parameters cell, in whose place those of the run are injected, are left out.
    """
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        notebook.cells = [cell for cell in notebook.cells if "parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
            if saved := _SAVED.search(cell.source):
                cell.metadata["mystnb"] = _described(saved[1])
    title, _, rest = notebook.cells[0].source.partition("\n")
    links = ", ".join(f"[{name}](../{name}/{stage}.ipynb)" for name in others)
    also = f"\nThe same of {links}.\n" if links else ""
    notebook.cells[0].source = f"{title}{f' · {of}' if of else ''}\n{also}\n{rest}"
    return notebook


def _described(name: str) -> dict[str, dict[str, str]]:
    """Alternative text and caption of a figure, by its name without the asset."""
    caption = captions().get(name, heading(name))
    return {"image": {"alt": caption}, "figure": {"caption": caption}}


def _front(paths: Paths, assets: Sequence[str], worlds: Sequence[str], last: NotebookNode) -> str:
    names = [f"[{asset}]({asset}/index.md)" for asset in assets]
    beside = [f"[{name}](worlds/{name}.ipynb)" for name in worlds]
    text = _FRONT.format(
        run=paths.name,
        findings=_findings(last),
        table=_costs(_main(paths)),
        figures="\n\n".join(map(_figure, _front_figures(paths))),
        last=LAST,
        assets=", ".join(names),
        worlds=f"- the same pipeline in other worlds: {', '.join(beside)}" if beside else "",
    )
    sections = ["across/index", *(f"{asset}/index" for asset in assets), *(["worlds/index"] if worlds else [])]
    return f"{text}\n{_contents(sections, ':hidden:')}\n"


def _findings(last: NotebookNode) -> str:
    """What 09 says in words of its run, as it was rendered."""
    told = (cell for cell in last.cells if cell.source.startswith("narrative.show("))
    return "\n".join(output.data["text/markdown"] for cell in told for output in cell.outputs)


def _front_figures(paths: Paths) -> list[Path]:
    return [path for name in _FRONT_FIGURES if (path := paths.figures / f"{name}.png").is_file()]


def _figure(path: Path) -> str:
    caption = captions()[path.stem]
    return f"```{{figure}} {path.name}\n:alt: {caption}\n:width: 671px\n\n{caption}\n```"


def _main(paths: Paths) -> pd.DataFrame:
    """Raises MissingInputError or DataError where the main table is not what 09 writes."""
    place = require(paths.tables / "main.csv", LAST, paths.name)
    try:
        return pd.read_csv(place)[["asset", "strategy", TOTAL, "ci_low", "ci_high"]]
    except (ValueError, KeyError) as error:
        raise DataError(f"{place} is damaged ({_first_line(error)}). Run: {force(paths.name, LAST)}") from None


def _costs(main: pd.DataFrame) -> str:
    """Markdown of the main result: a row per strategy, a column per asset; the cheapest that can be traded is bold."""
    cheapest = main[main["strategy"] != "oracle"].groupby("asset")[TOTAL].min()
    columns = list(main["asset"].unique())
    head, rows = ["total cost (bps)", *("all assets" if asset == TOGETHER else asset for asset in columns)], []
    for strategy, costs in main.groupby("strategy", sort=False):
        cells = {cost.asset: _cost(cost, cost.total_cost_bps == cheapest[cost.asset]) for cost in costs.itertuples()}
        rows.append([heading(str(strategy)), *(cells.get(asset, "–") for asset in columns)])
    note = "Means over the test orders; below them the interval over blocks of time. The oracle cannot be traded."
    return f"{markdown_table(head, rows)}\n\n{note}"


def _cost(row: object, best: bool) -> str:
    mean, low, high = (f"{getattr(row, name):z.2f}" for name in (TOTAL, "ci_low", "ci_high"))
    return f"{f'**{mean}**' if best else mean}<br><small>{low} to {high}</small>"
