"""One way to open a figure and one way to save it, so that every figure of the thesis has the same width and style.

A figure is made without pyplot: no window, no global list of figures, and a notebook shows it once, where `save` ends.
"""

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import PIL.Image
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.api.typing import SeriesGroupBy

from hyperdapo.evidence import provenance
from hyperdapo.evidence.tables import heading
from hyperdapo.files import atomic
from hyperdapo.paths import Paths

TEXT_WIDTH_IN = 6.1
STYLE_SHEET = Path(__file__).with_name("thesis.mplstyle")

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

STRATEGY_COLOURS = Colours(
    market="#999999",
    twap="#B8B8B8",
    vwap="#7A7A7A",
    twap_post_only="#6699CC",
    vwap_post_only="#0072B2",
    join_best="#8C6D31",
    touch_requoted="#D4A72C",
    requote_unless_against="#B15928",
    mid_peg="#882255",
    avellaneda_stoikov="#44AA99",
    sign_imbalance="#5B3A1E",
    sign_momentum_10s="#A6761D",
    sign_momentum_60s="#C9A66B",
    threshold="#4D4D4D",
    best_fixed="#000000",
    untrained="#56B4E9",
    dpo="#E69F00",
    dapo="#D55E00",
    dapo_sampled="#882255",
    dapo_preference="#332288",
    dpo_one_pair="#B07C00",
    listing_4_3="#8C6D31",
    reward_weighted="#0072B2",
    linear="#66A61E",
    mlp="#7570B3",
    boosting="#009E73",
    boosting_sequential="#1B5E20",
    dapo_sequential="#B2182B",
    oracle="#CC79A7",
)


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
        axis.plot(middle.index, middle, dashes, color=colour, linewidth=1.2, label=heading(algorithm))
        axis.fill_between(middle.index, lowest, highest, color=colour, alpha=0.2, linewidth=0)


def preview(figure: Figure) -> Image:
    """The figure as an image for the notebook, which lies in no file."""
    style()
    pixels = BytesIO()
    figure.savefig(pixels, format="png")
    return Image(_with_palette(pixels), width=round(TEXT_WIDTH_IN * 110))


def save(figure: Figure, paths: Paths, name: str) -> Image:
    """Write `figures/NAME.pdf` (vector, fonts embedded, no date) and `NAME.png`; return the image for the notebook."""
    style()
    with atomic(paths.figures / f"{name}.pdf") as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
    image = preview(figure)
    with atomic(paths.figures / f"{name}.png") as temporary:
        temporary.write_bytes(image.data)
    for ending in ("pdf", "png"):
        provenance.note(paths.figures / f"{name}.{ending}")
    return image


def _with_palette(pixels: BytesIO) -> bytes:
    """The same picture with a palette of colours: a third of the size, which every render and the repository carry."""
    picture = PIL.Image.open(pixels)
    reduced = picture.convert("RGB").quantize(_COLOURS, PIL.Image.Quantize.MAXCOVERAGE, dither=PIL.Image.Dither.NONE)
    packed = BytesIO()
    reduced.save(packed, "PNG", optimize=True, dpi=picture.info["dpi"])
    return packed.getvalue()
