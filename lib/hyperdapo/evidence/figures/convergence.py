"""Figures of 06_convergence: what happened in training, over all assets and algorithms (§4.6, Listing 4.11)."""

import gzip
from base64 import b64encode
from functools import cache
from itertools import cycle, product
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs
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
    "margin": "reward gained (bps)",
    "heldout_accuracy": "accuracy (share)",
    "loss": "loss",
    "entropy": "entropy (nats)",
}
_MENU = {
    "margin": "Reward beyond the best fixed action",
    "heldout_accuracy": "Accuracy",
    "loss": "Loss",
    "entropy": "Entropy of the policy",
}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_PANEL_PX, _AROUND_PX = 230, 190
_CONTROLS = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
_PAGE = """<!DOCTYPE html>
<html lang="en"><head>{refresh}<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Training of {run}</title><link rel="icon" href="data:,">
<style>body {{ margin: 0.5rem auto; max-width: 60rem; font: 1rem/1.4 sans-serif }} header {{ margin: 0 0.5rem }}
h1 {{ font-size: 1.3rem; margin: 0 }} p {{ margin: 0.3rem 0 }}</style></head>
<body><header><h1>Training of <code>{run}</code></h1>
<p>Lines are means over training seeds, bands their range; reward and accuracy are of held-out states, and each
algorithm has a loss of its own. The menu chooses what is shown, a name in the legend hides an algorithm.</p></header>
{figure}<script>{drawing}</script></body></html>
"""
_DRAWING = """(async () => {{
  const packed = Uint8Array.from(atob("{library}"), (byte) => byte.charCodeAt(0));
  const whole = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const waiting = Array.from(document.querySelectorAll("script.waits"), (script) => script.text);
  for (const text of [await new Response(whole).text(), ...waiting]) {{
    const script = document.createElement("script");
    script.text = text;
    document.head.append(script);
  }}
}})();"""


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
    """The share of runs that have not yet come to the level of their asset, by step.

    `shares` as `convergence.under_way` has them.
    """
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
    """The training logs as an interactive figure (Listing 4.11): a panel per asset, one below the other.

    Lines are means over seeds, bands their range, as `style.stretched` has them; a menu chooses what is shown.
    """
    log = log.assign(margin=log["heldout_reward"] - log["heldout_best_fixed"])
    assets, measures = list(log["asset"].unique()), [name for name in _PANELS if log[name].notna().any()]
    page = make_subplots(len(assets), 1, subplot_titles=assets, shared_xaxes=True, vertical_spacing=0.2 / len(assets))
    dashes = dict(zip(log["algorithm"].unique(), cycle(_DASHES)))
    for measure, (row, asset) in product(measures, enumerate(assets, 1)):
        for algorithm, runs in log[log["asset"] == asset].groupby("algorithm", sort=False):
            traces = _traces(runs, measure, str(algorithm), dashes[algorithm])
            page.add_traces(traces, rows=row, cols=1)
    _name_once(page, measures[0])
    page.update_xaxes(title_text="gradient update", row=len(assets), col=1)
    page.update_yaxes(title_text=_PANELS[measures[0]], title_standoff=6, automargin=True)
    page.update_layout(template="plotly_white", height=_AROUND_PX + _PANEL_PX * len(assets), font_size=13)
    page.update_layout(margin={"l": 8, "r": 12, "t": 100, "b": 8}, updatemenus=[_menu(measures, page, len(assets))])
    page.update_layout(legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"})
    return page


def _traces(runs: pd.DataFrame, measure: str, algorithm: str, dash: str) -> list[go.Scatter]:
    """Mean and range of a measure over the runs of an algorithm; none where it has no such measure."""
    by_end = style.stretched(runs, measure)
    if not len(by_end):
        return []
    middle, lowest, highest = (values.astype("float32") for values in (by_end.mean(), by_end.min(), by_end.max()))
    colour, steps = style.STRATEGY_COLOURS[algorithm], middle.index.to_numpy()
    look = {"name": heading(algorithm), "legendgroup": algorithm, "meta": measure}
    band = {"fill": "toself", "fillcolor": colour, "opacity": 0.2, "hoverinfo": "skip"}
    around = {"x": np.append(steps, steps[::-1]), "y": np.append(lowest, highest[::-1])}
    return [
        go.Scatter(x=steps, y=middle, mode="lines", line={"color": colour, "dash": dash, "width": 2}, **look),
        go.Scatter(mode="none", **around, **band, **look),
    ]


def _name_once(page: go.Figure, first: str) -> None:
    """Show the traces of the first measure, and each algorithm once in the legend of each measure."""
    named = set()
    for trace in page.data:
        entry = (trace.meta, trace.name)
        trace.update(visible=trace.meta == first, showlegend=entry not in named)
        named.add(entry)


def _menu(measures: list[str], page: go.Figure, panels: int) -> dict[str, Any]:
    """The menu above the panels, which shows the traces of one measure and names it at their axes."""
    axes = [f"yaxis{number}" if number > 1 else "yaxis" for number in range(1, panels + 1)]
    choices = []
    for measure in measures:
        seen = {"visible": [trace.meta == measure for trace in page.data]}
        titles = {f"{axis}.title.text": _PANELS[measure] for axis in axes}
        choices.append({"label": _MENU[measure], "method": "update", "args": [seen, titles]})
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 34}}
    return {"buttons": choices, **place}


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
    logs = logs_so_far(paths, parameters.assets)
    figure = dashboard(logs[logs["algorithm"].isin(parameters.training.algorithms)])
    refresh = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">'
    shown = figure.to_html(full_html=False, include_plotlyjs=False, div_id="training", config=_CONTROLS)
    waits = shown.replace("<script>", '<script type="text/plain" class="waits">')  # until the library is unpacked
    page = _PAGE.format(run=paths.name, refresh=refresh, figure=waits, drawing=_DRAWING.format(library=_packed()))
    with atomic(paths.outputs / "dashboard.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


@cache
def _packed() -> str:
    """Plotly's library, gzipped: 2 MB instead of 5 in each page, which needs no network."""
    return b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
