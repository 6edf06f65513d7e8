"""Figures of 01_download and 02_preprocess: what was received, and what the clean market looks like."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from hyperdapo.evidence.figures import style
from hyperdapo.times import MINUTE_NS

_MISSING = "#D55E00"
_QUALITY = {
    "spread_bps": "spread (bps)",
    "depth_usd": "best levels\n(1000 USD)",
    "prints": "prints\na minute",
    "delay_s": "delay (s)",
}


def plot_coverage(coverage: pd.DataFrame, asset: str) -> Figure:
    """Messages received in each minute, one axis per channel; minutes without any are red.

    `coverage` has `minute_ns` and a column per channel.
    """
    channels = [name for name in coverage if name != "minute_ns"]
    silent = coverage["minute_ns"][coverage[channels].sum(axis=1) == 0]
    stretches = silent.groupby((silent.diff() != MINUTE_NS).cumsum()).agg(["min", "max"])
    figure, axes = style.new(len(channels), 1, height=0.18 * len(channels) + 0.06, sharex=True, squeeze=False)
    shown = style.thinned(coverage)
    time = pd.to_datetime(shown["minute_ns"], unit="ns")
    for axis, channel in zip(axes[:, 0], channels, strict=True):
        axis.fill_between(time, shown[channel], step="post", color=style.ASSET_COLOURS[asset], linewidth=0)
        axis.set_ylabel(channel)
        axis.set_ylim(bottom=0)
        for begin, end in stretches.itertuples(index=False):
            _shade(axis, begin, end + MINUTE_NS, _MISSING, 0.5)
    figure.align_ylabels()
    _time_axis(axes[-1, 0])
    figure.supylabel("messages a minute", fontsize=9)
    return figure


def plot_quality(
    minutes: pd.DataFrame, gaps: list[tuple[int, int]], split: Mapping[str, tuple[int, int]], asset: str
) -> Figure:
    """Spread, depth, prints and message delay over time; gaps in red, the three parts of the split named above."""
    shown = style.thinned(minutes)
    time = pd.to_datetime(shown["minute_ns"], unit="ns")
    figure, axes = style.new(len(_QUALITY), 1, height=0.8, sharex=True)
    for axis, (column, label) in zip(axes, _QUALITY.items(), strict=True):
        values = shown[column] / (1000 if column == "depth_usd" else 1)
        axis.plot(time, values, color=style.ASSET_COLOURS[asset], linewidth=0.8)
        axis.set_ylabel(label)
        axis.set_ylim(0, 1.15 * values.max())
        for begin, end in gaps:
            _shade(axis, begin, end, _MISSING, 0.5)
        for begin, end in split.values():
            _shade(axis, begin, end, "black", 0.06)
    for name, (begin, end) in split.items():
        middle = pd.Timestamp((begin + end) // 2)
        axes[0].annotate(name, (middle, 1.04), xycoords=("data", "axes fraction"), fontsize=8, ha="center")
    _time_axis(axes[-1])
    figure.align_ylabels()
    return figure


def plot_context(minutes: pd.DataFrame, asset: str) -> Figure:
    """Mark price over oracle price (eq. 2.2) and funding (eq. 2.1) over time.

    `minutes` as `quality.parquet`.
    """
    shown = style.thinned(minutes)
    time = pd.to_datetime(shown["minute_ns"], unit="ns")
    figure, (premium, funding) = style.new(2, 1, height=0.5, sharex=True)
    lines = {premium: (shown["mark_price"] / shown["oracle_price"] - 1) * 1e4, funding: shown["funding"] * 1e4}
    for axis, values in lines.items():
        axis.plot(time, values, color=style.ASSET_COLOURS[asset], linewidth=0.8)
        axis.axhline(0, color="black", linewidth=0.6)
    premium.set_ylabel("mark over\noracle (bps)")
    funding.set_ylabel("funding\n(bps an hour)")
    _time_axis(funding)
    figure.align_ylabels()
    return figure


def plot_depth(levels: pd.DataFrame, asset: str) -> Figure:
    """D(p) of eq. 2.3 at one instant: what rests at each visible price, and the sum from the best price on.

    `levels` has `side`, `distance_bps` from mid, `size_usd` and `cumulative_usd`.
    """
    figure, axis = style.new(height=0.38)
    for side, hatch in (("bid", ""), ("ask", "////")):
        rows = levels[levels["side"] == side].sort_values("distance_bps")
        width = 0.8 * rows["distance_bps"].diff().min()
        look = {"color": style.ASSET_COLOURS[asset], "alpha": 0.55, "hatch": hatch, "label": f"{side}, D(p)"}
        axis.bar(rows["distance_bps"], rows["size_usd"] / 1000, width, linewidth=0, **look)
        where = "post" if side == "ask" else "pre"
        axis.step(rows["distance_bps"], rows["cumulative_usd"] / 1000, where=where, color="black", linewidth=0.9)
    axis.plot([], [], color="black", linewidth=0.9, label="sum from the best price")
    axis.set(xlabel="distance from mid (bps)", ylabel="resting (1000 USD)")
    axis.legend(loc="upper center", ncols=3)
    axis.margins(y=0.18)
    return figure


def _shade(axis: Axes, begin_ns: int, end_ns: int, colour: str, alpha: float) -> None:
    axis.axvspan(pd.Timestamp(begin_ns), pd.Timestamp(end_ns), color=colour, alpha=alpha, linewidth=0)


def _time_axis(axis: Axes) -> None:
    axis.xaxis.set_major_formatter(ConciseDateFormatter(axis.xaxis.get_major_locator(), show_offset=False))
    axis.set_xlabel("time received (UTC)")
