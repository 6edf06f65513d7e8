"""Figures of 06_convergence: what happened in training, over all assets and algorithms (§4.6, Listing 4.11)."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from hyperdapo.evidence import figures

_MEASURES = {"loss": "loss", "entropy": "entropy (nats)", "clip_fraction": "clip fraction", "filtered_groups": "filtered groups"}
_LINES = {"dapo": "-", "dpo": "--"}


def plot_learning(log: pd.DataFrame) -> Figure:
    """Held-out reward by step, one axis per asset, between the best fixed offset and the oracle.

    `log` is the training logs of all assets, with `asset`, `algorithm`, `seed`, `step` and the `heldout_*` columns.
    """
    assets = list(log["asset"].unique())
    figure, axes = figures.new(-(-len(assets) // 2), min(len(assets), 2), height=0.36 * -(-len(assets) // 2), squeeze=False)
    seen = log.dropna(subset="heldout_reward")
    for axis, asset in zip(axes.flat, assets, strict=False):
        own = seen[seen["asset"] == asset]
        for (algorithm, _), run in own.groupby(["algorithm", "seed"], sort=False):
            axis.plot(run["step"], run["heldout_reward"], color=figures.STRATEGY_COLOURS[algorithm], label=algorithm.upper())
        axis.axhline(own["heldout_oracle"].iloc[0], color=figures.STRATEGY_COLOURS["oracle"], linestyle=":", label="oracle")
        axis.axhline(own["heldout_best_fixed"].iloc[0], color="black", linestyle="--", linewidth=0.9, label="best fixed")
        axis.set_title(asset)
        axis.set(xlabel="step", ylabel="held-out reward (bps)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique))
    for axis in axes.flat[len(assets) :]:
        axis.set_visible(False)
    return figure


def plot_training(log: pd.DataFrame) -> Figure:
    """Loss, entropy, clip fraction and filtered groups by step; colour is the asset, line the algorithm."""
    figure, axes = figures.new(2, 2, height=0.66, sharex=True)
    for axis, (column, label) in zip(axes.flat, _MEASURES.items(), strict=True):
        for (asset, algorithm, _), run in log.groupby(["asset", "algorithm", "seed"], sort=False):
            if run[column].notna().any():
                line, colour = _LINES.get(str(algorithm), ":"), figures.ASSET_COLOURS[str(asset)]
                axis.plot(run["step"], run[column], line, color=colour, label=f"{asset} {str(algorithm).upper()}")
        axis.set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def dashboard(log: pd.DataFrame) -> go.Figure:
    """The training logs as an interactive page (Listing 4.11): step against loss, accuracy, reward and entropy."""
    shown = {"loss": "loss", "heldout_accuracy": "held-out accuracy", "heldout_reward": "held-out reward (bps)", "entropy": "entropy (nats)"}
    page = make_subplots(rows=2, cols=2, subplot_titles=list(shown.values()), shared_xaxes=True)
    for (asset, algorithm, seed), run in log.groupby(["asset", "algorithm", "seed"], sort=False):
        line = {"color": figures.ASSET_COLOURS[str(asset)], "dash": "solid" if algorithm == "dapo" else "dash"}
        for place, column in enumerate(shown):
            points = run.dropna(subset=column)
            trace = go.Scatter(
                x=points["step"], y=points[column], name=f"{asset} {algorithm} {seed}", line=line, legendgroup=f"{asset}{algorithm}{seed}", showlegend=place == 0
            )
            page.add_trace(trace, row=place // 2 + 1, col=place % 2 + 1)
    page.update_layout(template="plotly_white", title="Training", height=700, hovermode="x unified")
    return page


def convergence_table(log: pd.DataFrame, first_steps: int = 100) -> pd.DataFrame:
    """What the draft claims of convergence (§4.6.2), measured per asset, algorithm and seed.

    Returns
    -------
    `asset, algorithm, seed, steps`; `loss_decrease` (share, over the first 100 steps or all of fewer),
    `best_heldout_reward_bps` and the step at which 90 % of the way there was first reached (`steps_to_level`),
    `final_accuracy` (share of held-out states whose best action is chosen).
    """
    rows = []
    for (asset, algorithm, seed), run in log.groupby(["asset", "algorithm", "seed"], sort=False):
        seen = run.dropna(subset="heldout_reward")
        reward = seen["heldout_reward"].to_numpy()
        level = reward[0] + 0.9 * (reward.max() - reward[0])
        loss = run["loss"].dropna().to_numpy()[:first_steps]
        decrease = 1 - loss[-3:].mean() / loss[:3].mean() if len(loss) > 1 and loss[:3].mean() > 0 else np.nan
        reached = int(seen["step"].to_numpy()[np.argmax(reward >= level)])
        accuracy = float(seen["heldout_accuracy"].iloc[-1])
        rows.append((asset, algorithm, seed, int(run["step"].max()), decrease, reward.max(), reached, accuracy))
    names = ["loss_decrease", "best_heldout_reward_bps", "steps_to_level", "final_accuracy"]
    return pd.DataFrame(rows, columns=["asset", "algorithm", "seed", "steps", *names])
