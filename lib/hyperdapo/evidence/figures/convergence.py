"""Figures of 06_convergence: what happened in training, over all assets and algorithms (§4.6, Listing 4.11)."""

from itertools import cycle
from time import monotonic

import pandas as pd
import plotly.graph_objects as go
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from hyperdapo.evidence.convergence import logs_so_far
from hyperdapo.evidence.figures import policy as policy_figures
from hyperdapo.evidence.figures import style
from hyperdapo.evidence.figures.style import preview
from hyperdapo.evidence.tables import heading
from hyperdapo.files import atomic
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths

_REFRESH_S = 15
_MEASURES = {
    "loss": "loss",
    "entropy": "entropy (nats)",
    "clip_fraction": "clip fraction",
    "filtered_groups": "filtered groups",
}
_PANELS = {
    "margin": "held-out reward beyond the best fixed action (bps)",
    "heldout_accuracy": "held-out accuracy",
    "loss": "loss",
    "entropy": "entropy (nats)",
}


def plot_learning(log: pd.DataFrame) -> Figure:
    """Held-out reward by step, one axis per asset, between the best fixed action and the oracle.

    Lines are means over seeds, bands their range.

    `log` is the training logs of all assets, with `asset`, `algorithm`, `seed`, `step` and the `heldout_*` columns.
    """
    seen = log.dropna(subset="heldout_reward")
    assets = list(seen["asset"].unique())
    columns = min(len(assets), 2)
    rows = -(-len(assets) // columns)
    figure, axes = style.new(rows, columns, height=0.1 + 0.26 * rows, squeeze=False)
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
    figure, axes = style.new(2, 2, height=0.72, sharex=True)
    for axis, (column, label) in zip(axes.flat, _MEASURES.items(), strict=True):
        for algorithm, runs in log.groupby("algorithm", sort=False):
            style.band(axis, runs, column, str(algorithm))
        axis.set_title(label)
    for axis in axes[-1]:
        axis.set_xlabel("gradient update")
    _legend_below(figure, axes[0, 0])
    return figure


def plot_under_way(shares: pd.DataFrame) -> Figure:
    """The share of runs that have not yet come to the level of their asset, by step (`convergence.under_way`)."""
    figure, axis = style.new()
    for algorithm, curve in shares.groupby("algorithm", sort=False):
        axis.step(
            curve["step"],
            100 * curve["share"],
            where="post",
            color=style.STRATEGY_COLOURS[str(algorithm)],
            marker=style.marker(str(algorithm)),
            markersize=3,
            label=heading(str(algorithm)),
        )
    axis.set(xlabel="gradient update", ylabel="runs not yet there (%)", ylim=(-3, 103))
    _legend_below(figure, axis)
    return figure


def dashboard(log: pd.DataFrame) -> go.Figure:
    """The training logs as an interactive page (Listing 4.11): reward margin, accuracy, loss and entropy by step."""
    log = log.assign(margin=log["heldout_reward"] - log["heldout_best_fixed"])
    dashes = dict(zip(log["asset"].unique(), cycle(["solid", "dash", "dot", "dashdot", "longdash"]), strict=False))
    page = make_subplots(rows=2, cols=2, subplot_titles=list(_PANELS.values()), shared_xaxes=True)
    for (asset, algorithm, seed), run in log.groupby(["asset", "algorithm", "seed"], sort=False):
        name = f"{asset} {heading(str(algorithm))} seed {seed}"
        line = {"color": style.STRATEGY_COLOURS[str(algorithm)], "dash": dashes[asset]}
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
        style.band(axis, runs, "heldout_reward", str(algorithm))
    best_fixed, oracle = looks["heldout_best_fixed"].iloc[0], looks["heldout_oracle"].iloc[0]
    axis.axhline(oracle, color=style.STRATEGY_COLOURS["oracle"], linestyle=":", label="oracle")
    axis.axhline(best_fixed, color="black", linestyle="--", linewidth=0.9, label="best fixed action")


def _legend_below(figure: Figure, axis: Axes) -> None:
    """One legend for the whole figure; runs that differ in their seed only share an entry."""
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=min(len(unique), 4))


class Watch:
    """Called as often as there is news, it shows them at most every few seconds (Listing 4.11)."""

    def __init__(self, parameters: Parameters, paths: Paths) -> None:
        self._parameters, self._paths = parameters, paths
        self._shown = monotonic()
        self._place = display(HTML(""), display_id=True) if InteractiveShell.initialized() else None

    def __call__(self) -> None:
        if monotonic() - self._shown < _REFRESH_S:
            return
        if self._place is not None:
            log = logs_so_far(self._paths, [self._paths.asset])
            self._place.update(preview(policy_figures.plot_training(log, self._paths.asset)))
        write_dashboard(self._parameters, self._paths, refresh_s=_REFRESH_S)
        self._shown = monotonic()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the place of the figure once there is a final one."""
        if self._place is not None:
            self._place.update(HTML(""))


def write_dashboard(parameters: Parameters, paths: Paths, refresh_s: int | None = None) -> None:
    """`dashboard.html` of all runs so far; it loads itself again every `refresh_s`, and holds all that it needs."""
    page = dashboard(logs_so_far(paths, parameters.assets))
    html = page.to_html(include_plotlyjs=True, div_id="training")
    if refresh_s is not None:
        html = html.replace("<head>", f'<head><meta http-equiv="refresh" content="{refresh_s}">', 1)
    with atomic(paths.outputs / "dashboard.html") as temporary:
        temporary.write_text(html)
