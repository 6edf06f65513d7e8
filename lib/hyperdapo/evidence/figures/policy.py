"""Figures of 05_train and 07_inference: what a policy learned on the way, what it decides, and how fast."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from hyperdapo.actions import Action
from hyperdapo.evidence.figures import style
from hyperdapo.evidence.metrics import WHOLE, Floats
from hyperdapo.evidence.tables import heading

_BINS = 10
_COLOURS = 7  # of the style's cycle


def plot_training(log: pd.DataFrame, asset: str) -> Figure:
    """Held-out reward between best fixed and oracle, entropy and clip fraction by step; bands span the seeds."""
    figure, (left, middle, right) = style.new(1, 3, height=0.4, width_ratios=[2, 1, 1])
    looks = log.dropna(subset="heldout_reward")
    panels = ((left, looks, "heldout_reward"), (middle, log, "entropy"), (right, log, "clip_fraction"))
    for axis, rows, column in panels:
        for algorithm, runs in rows.groupby("algorithm", sort=False):
            style.band(axis, runs, column, str(algorithm))
    left.axhline(looks["heldout_oracle"].iloc[0], color=style.STRATEGY_COLOURS["oracle"], linestyle=":", label="oracle")
    left.axhline(looks["heldout_best_fixed"].iloc[0], color="black", linestyle="--", linewidth=0.9, label="best fixed")
    left.set(xlabel="step", ylabel="held-out reward (bps)", title=asset)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    middle.set(xlabel="step", title="entropy (nats)")
    right.set(xlabel="step", title="clip fraction")
    return figure


def plot_actions(decisions: pd.DataFrame, actions: Sequence[Action], asset: str) -> Figure:
    """Share of the test orders in which each policy takes each action."""
    policies = list(decisions["policy"].unique())
    names = [heading(name) for name in policies]
    shares = pd.crosstab(decisions["policy"], decisions["action"], normalize="index").loc[policies]
    figure, axis = style.new(height=0.36)
    left = np.zeros(len(policies))
    shades = _shades(actions)
    for action in shares.columns:
        label, share = str(actions[action]), shares[action].to_numpy()
        axis.barh(names, share, left=left, color=shades[action], edgecolor="white", label=label)
        left += share
    axis.invert_yaxis()
    axis.set(xlabel="share of test orders", xlim=(0, 1), title=asset)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(shares.columns))
    return figure


def plot_decided(decisions: pd.DataFrame, imbalance: Floats, actions: Sequence[Action], asset: str) -> Figure:
    """How often a policy takes each action by the book imbalance relative to the order's side, in ten equal groups.

    `decisions` (n rows) has `policy` and `action`; `imbalance` (n,) is positive when the book leans with the order.
    """
    group = pd.qcut(imbalance, _BINS, labels=False, duplicates="drop")
    shares = pd.crosstab(group, decisions["action"].to_numpy(), normalize="index")
    shares = shares.reindex(columns=range(len(actions)), fill_value=0.0)
    centre = pd.Series(imbalance).groupby(group).mean()
    figure, axis = style.new(height=0.42)
    labels = [str(action) for action in actions]
    axis.stackplot(centre, *shares.to_numpy().T, colors=_shades(actions), labels=labels)
    axis.set(xlabel="book imbalance, positive when it leans with the order", ylabel="share of decisions")
    axis.set(xlim=(centre.min(), centre.max()), ylim=(0, 1), title=f"{asset}, {heading(decisions['policy'].iloc[0])}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(actions))
    return figure


def plot_sureness(raw: pd.DataFrame, scaled: pd.DataFrame, asset: str) -> Figure:
    """How often decisions were best, by how probable they were, before and after scaling; true ones lie on the line.

    Both are tables of `evidence.calibration.sure_groups`.
    """
    figure, axes = style.new(1, 2, height=0.42, sharex=True, sharey=True)
    for axis, groups, title in zip(axes, (raw, scaled), ("as trained", "after temperature scaling"), strict=True):
        for policy, rows in groups.groupby("policy", sort=False):
            colour = style.STRATEGY_COLOURS.get(str(policy))
            axis.plot(
                rows["probability"], rows["best"], marker="o", markersize=3, color=colour, label=heading(str(policy))
            )
        axis.axline((0, 0), slope=1, color="black", linewidth=0.8)
        axis.set(title=title, xlim=(0, 1), ylim=(0, 1), xlabel="probability of the decision")
    axes[0].set_ylabel(f"share that was best, {asset}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def plot_latency(quantiles: pd.DataFrame, asset: str) -> Figure:
    """Median, 90th and 99th percentile of the time of a decision, ms, for each backend and mode.

    `quantiles` is a table of `evidence.metrics.latency_quantiles`.
    """
    whole = quantiles[quantiles["part"] == WHOLE].reset_index(drop=True)
    figure, axis = style.new(height=0.14 + 0.045 * len(whole))
    axis.hlines(whole.index, whole["p50_ms"], whole["p99_ms"], color="0.6")
    for percentile, mark in (("p50", "o"), ("p90", "D"), ("p99", "|")):
        axis.scatter(whole[f"{percentile}_ms"], whole.index, marker=mark, s=26, zorder=3, label=percentile)
    axis.set_yticks(whole.index, whole["mode"] + ", " + whole["backend"])
    axis.set(xscale="log", xlabel="time of a decision (ms)", title=asset, ylim=(len(whole) - 0.5, -0.5))
    axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def plot_language(gaps: pd.DataFrame) -> Figure:
    """What each policy of the study of language earns beyond the best fixed action, by how notices are worded.

    `gaps` is a table of `evidence.gaps.language_gaps`, of several worlds where it has a column `world`; a panel for
    each asset, with policies that were trained on it, on as many states as they ever were.
    """
    most = gaps.groupby("policy")["states"].transform("max")
    panels = _specialists(gaps[gaps["states"] == most])
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows["policy"]))
    figure, axes = style.new(1, len(panels), height=0.14 + 0.034 * len(names), sharey=True, squeeze=False)
    marks = dict(zip(gaps["wording"].unique(), "os^D", strict=False))
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        wordings = list(rows["wording"].unique())
        for wording, shift in zip(wordings, 0.2 * (np.arange(len(wordings)) - (len(wordings) - 1) / 2), strict=True):
            of_each = rows[rows["wording"] == wording].set_index("policy").reindex(names)
            places = np.arange(len(names)) + shift
            axis.hlines(places, of_each["ci_low"], of_each["ci_high"], color="0.6")
            axis.scatter(of_each["minus_fixed_bps"], places, marker=marks[wording], s=12, zorder=3, label=wording)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(title)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("reward beyond the best fixed action (bps)", fontsize=9)
    _legend_above(figure, axes[0])
    return figure


def plot_language_states(gaps: pd.DataFrame) -> Figure:
    """The same by the number of states that a policy was trained on; of notices those in known wordings.

    `gaps` is as for `plot_language`.
    """
    panels = {title: _several(rows) for title, rows in _specialists(gaps).items()}
    figure, axes = style.new(1, len(panels), height=0.5, squeeze=False)
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows["policy"]))
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        wording = "known" if "known" in set(rows["wording"]) else "all"
        for policy, of_each in rows[rows["wording"] == wording].groupby("policy", sort=False):
            place, of_each = names.index(str(policy)), of_each.sort_values("states")
            colour = f"C{place}" if place < _COLOURS else "0.5"
            beside = of_each["states"] * 1.05 ** (place - len(names) / 2)  # or intervals would lie on each other
            axis.plot(beside, of_each["minus_fixed_bps"], colour, marker="osD^vP<>X"[place % 9], label=policy)
            axis.vlines(beside, of_each["ci_low"], of_each["ci_high"], colour, linewidth=0.7)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xscale="log", title=title if wording == "all" else f"{title}, {wording} wordings")
        axis.set_xticks(sorted(rows["states"].unique()), minor=False)
        axis.xaxis.set(major_formatter="{x:g}", minor_locator=NullLocator())
    axes[0, 0].set_ylabel("reward beyond the best fixed action (bps)")
    figure.supxlabel("training states", fontsize=9)
    _legend_above(figure, axes[0])
    return figure


def _several(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of policies that were trained on more than one number of states."""
    return rows[rows.groupby("policy")["states"].transform("nunique") > 1]


def _legend_above(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend of what several axes show, where it is more than one thing."""
    named = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes]
    handles = {label: handle for pairs in named for handle, label in pairs}
    if len(handles) > 1:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)


def _specialists(gaps: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of policies on the asset that they were trained on, by title of their panel: world and asset."""
    rows = gaps[gaps["asset"] == gaps["trained_on"]]
    titles = rows["world"] + ", " + rows["asset"] if "world" in gaps else rows["asset"]
    return {str(title): of_each for title, of_each in rows.groupby(titles, sort=False)}


def _shades(actions: Sequence[Action]) -> list[str]:
    """Greys from the first action to the last."""
    return [str(shade) for shade in np.linspace(0.9, 0.15, len(actions))]
