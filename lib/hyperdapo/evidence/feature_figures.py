"""Figures of 03_features: how the 15 features look over time, how they are distributed, what they share."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from hyperdapo.evidence import figures
from hyperdapo.evidence.tables import heading

_SHOWN_QUANTILES = (0.005, 0.995)
_LAGS = 60


def plot_state(features: pd.DataFrame, asset: str) -> Figure:
    """The mid and three features over time; splits are grey, the upper third of warm volatility is filled.

    `features` as in `features.parquet`.
    """
    shown = figures.thinned(features)
    time = pd.to_datetime(shown["decision_ns"], unit="ns")
    rows = {
        "mid": "mid (USD)",
        "volatility_5m_bps": "volatility (bps)",
        "book_imbalance": "imbalance",
        "trade_flow_5m_z": "flow (z)",
    }
    figure, axes = figures.new(len(rows), 1, height=0.78, sharex=True)
    moments = pd.to_datetime(features["decision_ns"], unit="ns")
    spans = {name: (inside.iloc[0], inside.iloc[-1]) for name, inside in moments.groupby(features["split"]) if name}
    colour = figures.ASSET_COLOURS[asset]
    for axis, (column, label) in zip(axes, rows.items(), strict=True):
        axis.plot(time, shown[column], color=colour, linewidth=0.8)
        axis.set_ylabel(label)
        for begin, end in spans.values():
            axis.axvspan(begin, end, color="black", alpha=0.06, linewidth=0)
    volatility = shown["volatility_5m_bps"]
    high = features["volatility_5m_bps"][features["warm"]].quantile(2 / 3)
    axes[1].fill_between(time, volatility, high, where=volatility > high, color=colour, alpha=0.4, linewidth=0)
    for name, (begin, end) in spans.items():
        where = (begin + (end - begin) / 2, 1.04)
        axes[0].annotate(name, where, xycoords=("data", "axes fraction"), fontsize=8, ha="center")
    axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(axes[-1].xaxis.get_major_locator(), show_offset=False))
    axes[-1].set_xlabel("time (UTC)")
    figure.align_ylabels()
    return figure


def plot_distributions(features: pd.DataFrame, names: list[str], asset: str) -> Figure:
    """One histogram per feature, between its 0.5 % and 99.5 % quantiles."""
    figure, axes = figures.new(-(-len(names) // 3), 3, height=1.05)
    for axis, name in zip(axes.flat, names, strict=False):
        low, high = features[name].quantile(list(_SHOWN_QUANTILES))
        axis.hist(features[name], bins=40, range=(low, high), color=figures.ASSET_COLOURS[asset])
        axis.set_title(heading(name), fontsize=8)
        axis.set_yticks([])
    figure.supylabel("decision times", fontsize=9)
    return figure


def plot_correlations(features: pd.DataFrame, names: list[str]) -> Figure:
    """Rank correlation (Spearman) of every pair of features."""
    table = features[names].rename(columns=heading).corr(method="spearman")
    hidden = np.triu(np.ones(table.shape, dtype=bool), k=1)
    figure, axis = figures.new(height=0.8)
    sns.heatmap(
        table,
        **{"mask": hidden, "vmin": -1, "vmax": 1, "cmap": "RdBu_r", "fmt": ".1f", "ax": axis},
        annot=table.round(1) + 0.0,
        annot_kws={"fontsize": 6},
        cbar_kws={"label": "rank correlation", "shrink": 0.7},
    )
    axis.tick_params(length=0, labelsize=7)
    axis.grid(visible=False)
    return figure


def plot_autocorrelations(features: pd.DataFrame, names: list[str], asset: str, interval_s: float) -> Figure:
    """Autocorrelation of at most four features up to `_LAGS` decision times."""
    figure, axis = figures.new(height=0.4)
    lags = np.arange(1, _LAGS + 1)
    for name, line in zip(names, ("-", "--", "-.", ":"), strict=True):
        values = [features[name].autocorr(int(lag)) for lag in lags]
        axis.plot(lags * interval_s, values, line, color=figures.ASSET_COLOURS[asset], label=heading(name))
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set(xlabel="lag (s)", ylabel="autocorrelation")
    axis.legend(ncols=2, fontsize=7)
    return figure
