"""One way to open a figure and one way to save it, so that every figure of the thesis has the same width and style.

A figure is made without pyplot: no window, no global list of figures, and a notebook shows it once, where `save` ends.
"""

import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import PIL.Image
import yaml
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.api.typing import SeriesGroupBy

from hyperdapo.evidence import provenance
from hyperdapo.evidence.tables import escape_latex, heading
from hyperdapo.files import atomic
from hyperdapo.paths import Paths

TEXT_WIDTH_IN = 6.1
STYLE_SHEET, CAPTIONS = (Path(__file__).with_name(name) for name in ("thesis.mplstyle", "captions.yaml"))

STRETCHES = 25
"""So many points has the curve of what is measured at every step of a training."""

_COLOURS = 96  # of a picture
_DASHED = {"dpo_one_pair", "listing_4_3"}  # ablations of DPO
_OTHERS = ("#56B4E9", "#D55E00", "#8C6D31", "#7A7A7A", "#000000")


class Colours(dict[str, str]):
    """Colours by name; a name that is not listed always gets the same one of a few others."""

    def __missing__(self, name: str) -> str:
        return _OTHERS[zlib.crc32(name.encode()) % len(_OTHERS)]


ASSET_COLOURS = Colours(BTC="#E69F00", ETH="#0072B2", SOL="#009E73", HYPE="#CC79A7")
"""Of Okabe and Ito's palette, which the colour blind can tell apart."""
ASSET_MARKERS = {"BTC": "o", "ETH": "s", "SOL": "^", "HYPE": "D"}

STRATEGY_COLOURS = Colours(
    market="#999999",
    twap="#C4C4C4",
    vwap="#6E6E6E",
    twap_post_only="#6699CC",
    vwap_post_only="#004C80",
    join_best="#8C6D31",
    touch_requoted="#9A8F00",
    requote_unless_against="#B15928",
    threshold_requoted="#2C7FB8",
    mid_peg="#661144",
    avellaneda_stoikov="#44AA99",
    sign_imbalance="#5B3A1E",
    sign_momentum_10s="#A6761D",
    sign_momentum_60s="#D9B98C",
    threshold="#4D4D4D",
    best_fixed="#000000",
    untrained="#56B4E9",
    dpo="#E69F00",
    dapo="#D55E00",
    dapo_sampled="#AA4466",
    dapo_preference="#332288",
    dpo_one_pair="#B58900",
    listing_4_3="#CFCF40",
    reward_weighted="#0072B2",
    linear="#66A61E",
    mlp="#7570B3",
    boosting="#009E73",
    boosting_sequential="#1B5E20",
    dapo_sequential="#B2182B",
    oracle="#CC79A7",
)

MARKERS = dict(zip(STRATEGY_COLOURS, "oD^X<>P^sDv<X<Xo^sDspo>vp>pPvP", strict=True))
"""Two strategies of one marker have colours that the colour blind can tell apart."""


def marker(strategy: str) -> str:
    """Of a strategy; a dot for a name that is not listed."""
    return MARKERS.get(strategy, "o")


def style() -> None:
    """Apply the style sheet to all figures of this process."""
    matplotlib.style.use(STYLE_SHEET)


def new(rows: int = 1, cols: int = 1, height: float = 0.42, **subplots: Any) -> tuple[Figure, Any]:
    """Open a figure as wide as the thesis text.

    Parameters
    ----------
    rows, cols
        Grid of axes.
    height
        Height of the whole figure as a share of its width.
    subplots
        Passed to `Figure.subplots`: `sharex`, `sharey`, `width_ratios`, `squeeze`, ...

    Returns
    -------
    The figure and its axes: one `Axes`, or an array (rows, cols) with the dimensions of length one squeezed away.
    """
    style()
    figure = Figure(figsize=(TEXT_WIDTH_IN, TEXT_WIDTH_IN * height), layout="constrained")
    return figure, figure.subplots(rows, cols, **subplots)


def label_ends(axis: Axes, ends: dict[str, float], colours: dict[str, str], gap: float = 0.055) -> None:
    """Names at the right end of lines, by the height of each end, moved apart where they would lie on each other.

    `gap` is the least distance as a share of the axis.
    """
    low, high = axis.get_ylim()
    names = sorted(ends, key=lambda name: ends[name])
    places = np.array([(ends[name] - low) / (high - low) for name in names])
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places -= max(places[-1] - 1, 0) if len(places) else 0
    for name, place in zip(names, places, strict=True):
        axis.text(1.02, place, name, color=colours[name], transform=axis.transAxes, fontsize=7, va="center")


def thinned(frame: pd.DataFrame, most: int = 1500) -> pd.DataFrame:
    """At most so many rows: means of equally many consecutive ones, where there are more than a line can show."""
    every = -(-len(frame) // most)
    return frame if every <= 1 else frame.groupby(np.arange(len(frame)) // every).mean(numeric_only=True)


def stretched(runs: pd.DataFrame, column: str) -> SeriesGroupBy:
    """A column of an algorithm's runs by step, a value a run.

    `runs` has `step` and the column, the rows of one run below those of another. What is measured at every step, as
    clipping, which begins anew with each rollout, is averaged over `STRETCHES` equal parts of the training first.
    """
    every = max(1, int(runs["step"].max()) // STRETCHES) if runs["step"].nunique() > 2 * STRETCHES else 1
    runs = runs.dropna(subset=column).assign(end=-(-runs["step"] // every) * every)
    of_run = [name for name in ("asset", "seed") if name in runs]
    return runs.groupby([*of_run, "end"])[column].mean().groupby("end")


def band(axis: Axes, runs: pd.DataFrame, column: str, algorithm: str) -> None:
    """The mean of a column over an algorithm's runs, and their range (`stretched`); nothing where it is empty."""
    by_end = stretched(runs, column)
    if len(by_end):
        middle, lowest, highest = by_end.mean(), by_end.min(), by_end.max()
        colour, dashes = STRATEGY_COLOURS[algorithm], "--" if algorithm in _DASHED else "-"
        marks: dict[str, Any] = {"marker": marker(algorithm), "markersize": 3, "markevery": 0.12}
        axis.plot(middle.index, middle, dashes, color=colour, linewidth=1.2, label=heading(algorithm), **marks)
        axis.fill_between(middle.index, lowest, highest, color=colour, alpha=0.2, linewidth=0)


def preview(figure: Figure) -> Image:
    """The figure as an image for the notebook, which lies in no file."""
    style()
    pixels = BytesIO()
    figure.savefig(pixels, format="png")
    return Image(_with_palette(pixels), width=round(TEXT_WIDTH_IN * 110))


def save(figure: Figure, paths: Paths, name: str) -> Image:
    """Write `figures/NAME.pdf` (vector, fonts embedded, no date) and `NAME.png`; return the image for the notebook.

    A figure of the thesis gets its caption, `NAME.tex`, too.
    """
    image, endings = keep(figure, paths.figures, name), ["pdf", "png"]
    if text := caption(name, paths.asset):
        endings.append("tex")
        with atomic(paths.figures / f"{name}.tex") as temporary:
            temporary.write_text(text, encoding="utf-8")
    for ending in endings:
        provenance.note(paths.figures / f"{name}.{ending}")
    return image


def keep(figure: Figure, folder: Path, name: str) -> Image:
    """Write `NAME.pdf` and `NAME.png` into a folder; return the image."""
    style()
    with atomic(folder / f"{name}.pdf") as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
    image = preview(figure)
    with atomic(folder / f"{name}.png") as temporary:
        temporary.write_bytes(image.data)
    return image


def caption(name: str, asset: str = "") -> str:
    """What stands below a figure in the thesis, as LaTeX, and in comments what made it; "" where there is nothing."""
    words = captions().get(name.partition(f"_{asset}")[0] if asset else name, "")
    if not words:
        return ""
    comments = [f"% {what}: {value}" for what, value in provenance.origin().items()]
    text = escape_latex(f"{words}{f' {asset}.' if asset else ''}")
    return "\n".join(["% Generated; do not edit.", *comments, rf"\caption{{{text}}}\label{{fig:{name}}}", ""])


@cache
def captions() -> dict[str, str]:
    """What stands below each figure, by its name without the asset."""
    return {name: text for own in yaml.safe_load(CAPTIONS.read_text()).values() for name, text in own.items()}


def _with_palette(pixels: BytesIO) -> bytes:
    """The same picture with a palette of colours: a third of the size, which every render and the repository carry."""
    picture = PIL.Image.open(pixels)
    reduced = picture.convert("RGB").quantize(_COLOURS, PIL.Image.Quantize.MAXCOVERAGE, dither=PIL.Image.Dither.NONE)
    packed = BytesIO()
    reduced.save(packed, "PNG", optimize=True, dpi=picture.info["dpi"])
    return packed.getvalue()
