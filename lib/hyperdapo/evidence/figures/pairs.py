"""Figures of 04_preference_pairs: what each candidate order earns, when which is best, which weights are cheap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hyperdapo.actions import Action
from hyperdapo.evidence.figures import style

_WEIGHTS = ("execution", "risk", "cost")
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])  # of the triangle of weights, one each
_TERCILES = ("book leans against the order", "book is balanced", "book leans with the order")


def plot_candidates(outcomes: pd.DataFrame, asset: str) -> Figure:
    """Reward and fill probability of each action; boxes span the quartiles, whiskers 5 % to 95 %."""
    labels, groups = zip(*outcomes.groupby("kind", sort=False), strict=True)
    figure, (left, right) = style.new(1, 2, height=0.42, width_ratios=[3, 2])
    box = {"facecolor": style.ASSET_COLOURS[asset], "alpha": 0.5}
    left.boxplot(
        [group["reward"] for group in groups],
        **{"tick_labels": labels, "whis": (5, 95), "showfliers": False, "showmeans": True, "patch_artist": True},
        boxprops=box,
        medianprops={"color": "black"},
        meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"},
    )
    left.set(ylabel="reward (bps)")
    right.bar(labels, [group["filled"].mean() for group in groups], color=style.ASSET_COLOURS[asset])
    right.set(ylabel="filled before the cancel", ylim=(0, 1))
    for axis in (left, right):
        axis.tick_params(axis="x", rotation=60, labelsize=8)
    return figure


def plot_best_actions(states: pd.DataFrame, best: np.ndarray, actions: Sequence[Action], asset: str) -> Figure:
    """How often each action is best, by tercile of the book imbalance relative to the order's side.

    `states` (n, ...) has `side` and `book_imbalance`; `best` (n,) is the action that earned most.
    """
    pressure = states["book_imbalance"].to_numpy() * states["side"].to_numpy()
    tercile = pd.qcut(pressure, 3, labels=False)
    figure, axes = style.new(1, 3, height=0.36, sharey=True)
    labels = [str(action) for action in actions]
    for third, (axis, name) in enumerate(zip(axes, _TERCILES, strict=True)):
        shares = np.bincount(best[tercile == third], minlength=len(actions)) / max((tercile == third).sum(), 1)
        axis.bar(labels, shares, color=style.ASSET_COLOURS[asset])
        axis.set_title(name, fontsize=8)
        axis.tick_params(axis="x", rotation=60, labelsize=7)
    axes[0].set_ylabel("share of states where best")
    return figure


def plot_weights(trials: pd.DataFrame, marked: pd.DataFrame, asset: str) -> Figure:
    """Every trial of a search as a point of the triangle of weights, coloured by its cost, the costliest 5 % alike.

    Parameters
    ----------
    trials : one row per trial: `execution, risk, cost` (sum 1) and `total_cost_bps`
    marked : weights to be named in the figure: `weights` (the name) and the same three columns; NaN is passed over
    """
    figure, axis = style.new(height=0.55)
    axis.fill(*_CORNERS.T, facecolor="none", edgecolor="black", linewidth=0.8)
    sought = trials.sort_values("total_cost_bps", ascending=False)
    costs, most = sought["total_cost_bps"], sought["total_cost_bps"].quantile(0.95)
    points = axis.scatter(*_places(sought), c=costs, s=14, vmax=most)
    figure.colorbar(points, ax=axis, extend="max", label="mean cost on the validation split (bps)")
    named = marked.dropna(subset=[*_WEIGHTS]).groupby("weights", sort=False)
    mark: dict[str, Any] = {"s": 60, "facecolor": "none", "edgecolor": "#D55E00", "linewidth": 1.3}
    for (name, group), symbol in zip(named, "*sP^v", strict=False):
        axis.scatter(*_places(group), marker=symbol, label=str(name).replace("_", " "), **mark)
    for (x, y), name in zip(_CORNERS, _WEIGHTS, strict=True):
        above = y > 0
        axis.annotate(
            f"{name} only",
            (x, y),
            (0, 6 if above else -6),
            "data",
            "offset points",
            ha="center",
            va="bottom" if above else "top",
        )
    axis.set(title=asset, aspect="equal")
    axis.set_axis_off()
    axis.legend(loc="upper left", fontsize=8)
    return figure


def _places(weights: pd.DataFrame) -> np.ndarray:
    """(2, n) points of the triangle."""
    places: np.ndarray = (weights[list(_WEIGHTS)].to_numpy(float) @ _CORNERS).T
    return places
