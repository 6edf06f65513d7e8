"""Figures of 06_convergence: what happened in training, over all assets and algorithms (§4.6, Listing 4.11)."""

from itertools import cycle

import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from hyperdapo.evidence import figures
from hyperdapo.evidence.tables import heading

_MEASURES = {
    "loss": "loss",
    "entropy": "entropy (nats)",
    "clip_fraction": "clip fraction",
    "filtered_groups": "filtered groups",
}
_PANELS = {
    "margin": "held-out reward beyond the best fixed offset (bps)",
    "heldout_accuracy": "held-out accuracy",
    "loss": "loss",
    "entropy": "entropy (nats)",
}


def plot_learning(log: pd.DataFrame) -> Figure:
    """Held-out reward by step, one axis per asset, between the best fixed offset and the oracle.

    Lines are means over seeds, bands their range.

    `log` is the training logs of all assets, with `asset`, `algorithm`, `seed`, `step` and the `heldout_*` columns.
    """
    seen = log.dropna(subset="heldout_reward")
    assets = list(seen["asset"].unique())
    columns = min(len(assets), 2)
    rows = -(-len(assets) // columns)
    figure, axes = figures.new(rows, columns, height=0.1 + 0.26 * rows, squeeze=False)
    for axis, asset in zip(axes.flat, assets, strict=False):
        _draw_learning(axis, seen[seen["asset"] == asset])
        axis.set_title(asset)
    for axis in axes.flat[len(assets) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("gradient update")
    for axis in axes[:, 0]:
        axis.set_ylabel("held-out reward (bps)")
    _legend_below(figure, axes[0, 0])
    return figure


def plot_training(log: pd.DataFrame) -> Figure:
    """Loss, entropy, clip fraction and filtered groups by step: per algorithm, means over assets and seeds.

    The band is the range of the runs.
    """
    figure, axes = figures.new(2, 2, height=0.72, sharex=True)
    for axis, (column, label) in zip(axes.flat, _MEASURES.items(), strict=True):
        for algorithm, runs in log.groupby("algorithm", sort=False):
            figures.band(axis, runs, column, str(algorithm))
        axis.set_title(label)
    for axis in axes[-1]:
        axis.set_xlabel("gradient update")
    _legend_below(figure, axes[0, 0])
    return figure


def dashboard(log: pd.DataFrame) -> go.Figure:
    """The training logs as an interactive page (Listing 4.11): reward margin, accuracy, loss and entropy by step."""
    log = log.assign(margin=log["heldout_reward"] - log["heldout_best_fixed"])
    dashes = dict(zip(log["asset"].unique(), cycle(["solid", "dash", "dot", "dashdot", "longdash"]), strict=False))
    page = make_subplots(rows=2, cols=2, subplot_titles=list(_PANELS.values()), shared_xaxes=True)
    for (asset, algorithm, seed), run in log.groupby(["asset", "algorithm", "seed"], sort=False):
        name = f"{asset} {heading(str(algorithm))} seed {seed}"
        line = {"color": figures.STRATEGY_COLOURS[str(algorithm)], "dash": dashes[asset]}
        for place, column in enumerate(_PANELS):
            points = run.dropna(subset=column)
            shown = {"name": name, "legendgroup": name, "showlegend": place == 0}
            y = points[column].astype("float32")  # half the page
            trace = go.Scatter(x=points["step"], y=y, line=line, **shown)
            page.add_trace(trace, row=place // 2 + 1, col=place % 2 + 1)
    page.update_layout(template="plotly_white", title="Training", height=700, hovermode="x unified")
    return page


def _draw_learning(axis: Axes, looks: pd.DataFrame) -> None:
    for algorithm, runs in looks.groupby("algorithm", sort=False):
        figures.band(axis, runs, "heldout_reward", str(algorithm))
    best_fixed, oracle = looks["heldout_best_fixed"].iloc[0], looks["heldout_oracle"].iloc[0]
    axis.axhline(oracle, color=figures.STRATEGY_COLOURS["oracle"], linestyle=":", label="oracle")
    axis.axhline(best_fixed, color="black", linestyle="--", linewidth=0.9, label="best fixed offset")


def _legend_below(figure: Figure, axis: Axes) -> None:
    """One legend for the whole figure; runs that differ in their seed only share an entry."""
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=min(len(unique), 4))
