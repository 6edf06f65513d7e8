"""Figures of 03_features: the 15 features over time, their distributions, and the laws of impact and of fills."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from hyperdapo.evidence.figures import style
from hyperdapo.evidence.tables import heading

_SHOWN_QUANTILES = (0.005, 0.995)
_LAGS = 60
_RATIOS = (0.2, 5.0)  # between which ratios are drawn
_LAW = {"color": "black", "linestyle": "--"}
_RIVAL = {"color": "#7A7A7A"}


def plot_state(features: pd.DataFrame, asset: str) -> Figure:
    """The mid and three features over time; splits are grey, the upper third of warm volatility is filled.

    `features` as in `features.parquet`.
    """
    shown = style.thinned(features)
    time = pd.to_datetime(shown["decision_ns"], unit="ns")
    rows = {
        "mid": "mid (USD)",
        "volatility_5m_bps": "volatility (bps)",
        "book_imbalance": "imbalance",
        "trade_flow_5m_z": "flow (z)",
    }
    figure, axes = style.new(len(rows), 1, height=0.78, sharex=True)
    moments = pd.to_datetime(features["decision_ns"], unit="ns")
    spans = {name: (inside.iloc[0], inside.iloc[-1]) for name, inside in moments.groupby(features["split"]) if name}
    colour = style.ASSET_COLOURS[asset]
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
    figure, axes = style.new(-(-len(names) // 3), 3, height=1.05)
    for axis, name in zip(axes.flat, names, strict=False):
        low, high = features[name].quantile(list(_SHOWN_QUANTILES))
        axis.hist(features[name], bins=40, range=(low, high), color=style.ASSET_COLOURS[asset])
        axis.set_title(heading(name), fontsize=8)
        axis.set_yticks([])
    figure.supylabel("decision times", fontsize=9)
    return figure


def plot_correlations(features: pd.DataFrame, names: list[str]) -> Figure:
    """Rank correlation (Spearman) of every pair of features."""
    table = features[names].rename(columns=heading).corr(method="spearman")
    hidden = np.triu(np.ones(table.shape, dtype=bool), k=1)
    figure, axis = style.new(height=0.8)
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
    """Autocorrelation of four features by lag."""
    figure, axis = style.new(height=0.4)
    lags = np.arange(1, _LAGS + 1)
    for name, line in zip(names, ("-", "--", "-.", ":"), strict=True):
        values = [features[name].autocorr(int(lag)) for lag in lags]
        axis.plot(lags * interval_s, values, line, color=style.ASSET_COLOURS[asset], label=heading(name))
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set(xlabel="lag (s)", ylabel="autocorrelation")
    axis.legend(ncols=2, fontsize=7)
    return figure


def plot_impact(curve: pd.DataFrame, parameters: pd.DataFrame, asset: str) -> Figure:
    """Mean impact of aggressive orders by size with intervals, eq. 2.4, and the power with a free exponent; log-log.

    A triangle at the foot is a mean that is not above zero; the foot cuts off intervals that reach below it.

    Parameters
    ----------
    curve : share_of_day, impact_bps, ci_low, ci_high, law_bps, free_bps, by share_of_day
    parameters : parameter (`lambda_bps`, `beta` and others), value
    """
    value = parameters.set_index("parameter")["value"]
    share, mean = curve["share_of_day"], curve["impact_bps"]
    drawn = curve[["impact_bps", "law_bps", "free_bps"]].to_numpy()
    foot = 0.6 * float(drawn[drawn > 0].min(initial=1.0))
    figure, axis = style.new(height=0.48)
    _draw_measured(axis, share, mean.where(mean > 0), curve.clip(lower=foot), asset)
    below = share[mean <= 0]
    axis.plot(below, np.full(len(below), foot), "v", color=style.ASSET_COLOURS[asset], markerfacecolor="white")
    axis.plot(share, curve["law_bps"], label=rf"eq. 2.4, $\lambda$ = {value['lambda_bps']:.0f} bps", **_LAW)
    if np.isfinite(value["beta"]):
        label = rf"free exponent, $\beta$ = {value['beta'].round(2) + 0.0:.2f}"
        axis.plot(share, curve["free_bps"], label=label, **_RIVAL)
    axis.set(xscale="log", yscale="log", xlabel="size over daily volume, |Q| / V", ylabel="impact (bps)")
    axis.set_ylim(bottom=foot / 1.15)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def plot_fill_curve(curve: pd.DataFrame, parameters: pd.DataFrame, asset: str) -> Figure:
    """Share of limit orders that the price traded through by distance, eq. 2.5 as fitted, and with the draft's alpha.

    Parameters
    ----------
    curve : distance_bps, filled, ci_low, ci_high, by distance_bps
    parameters : parameter (`alpha`, `lambda`, `lambda_draft`), value, draft
    """
    value, alpha = parameters.set_index("parameter")["value"], parameters["draft"].max()
    distance = curve["distance_bps"]
    fine = np.geomspace(distance.min(), distance.max(), 200)
    figure, axis = style.new(height=0.45)
    _draw_measured(axis, distance, curve["filled"], curve, asset)
    label = rf"eq. 2.5, $\alpha$ = {alpha:g} as in the draft"
    axis.plot(fine, -np.expm1(-value["lambda_draft"] * fine**-alpha), label=label, **_LAW)
    if np.isfinite(value["alpha"]):
        label = rf"eq. 2.5 fitted, $\alpha$ = {value['alpha']:.2f}"
        axis.plot(fine, -np.expm1(-value["lambda"] * fine ** -value["alpha"]), label=label, **_RIVAL)
    axis.set(xscale="log", xlabel="distance from mid (bps)", ylabel="share traded through", ylim=(-0.02, 1.02))
    axis.set_xticks(distance, [f"{bps:g}" for bps in distance])
    axis.minorticks_off()
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def plot_moments(table: pd.DataFrame, asset: str) -> Figure:
    """Each moment of this market over that of a real recording, with the bounds that it is held to; log axis.

    A ratio below 0, or one that leaves the axis, stands at its end as a triangle; moments outside their bounds are
    filled.

    Parameters
    ----------
    table : moment, real, measured, ratio, low, high, within; as in `moments.parquet`
    """
    rows = table.iloc[::-1].reset_index(drop=True)
    bounds = np.sort(rows[["low", "high"]].div(rows["real"], axis=0).clip(*_RATIOS), axis=1)
    ratio, colour = rows["ratio"].clip(*_RATIOS), style.ASSET_COLOURS[asset]
    figure, axis = style.new(height=0.95)
    axis.hlines(rows.index, bounds[:, 0], bounds[:, 1], color="black", alpha=0.15, linewidth=5)
    for inside, face in ((True, "white"), (False, colour)):
        for end, marker in ((_RATIOS[0], "<"), (_RATIOS[1], ">"), (None, "o")):
            at_end = ratio.isin(_RATIOS) if end is None else ratio == end
            shown = (rows["within"] == inside) & (~at_end if end is None else at_end)
            axis.plot(ratio[shown], rows.index[shown], marker, color=colour, markerfacecolor=face, markersize=4)
    if rows["real"].isna().all():
        axis.annotate(f"no recording of {asset}", (0.5, 0.5), xycoords="axes fraction", ha="center")
    axis.axvline(1, color="black", linewidth=0.6)
    axis.set_yticks(rows.index, [heading(name) for name in rows["moment"]], fontsize=6)
    axis.set(xscale="log", xlim=(_RATIOS[0] / 1.1, _RATIOS[1] * 1.1), xlabel="this market / real")
    axis.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axis.minorticks_off()
    return figure


def _draw_measured(axis: Axes, where: pd.Series, values: pd.Series, bounds: pd.DataFrame, asset: str) -> None:
    """Dots with their intervals; what is NaN stays empty."""
    colour = style.ASSET_COLOURS[asset]
    axis.vlines(where, bounds["ci_low"], bounds["ci_high"], color=colour)
    axis.plot(where, values, "o", color=colour, label=f"{asset}, measured")
