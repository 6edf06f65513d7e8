"""Figures of 03_features for two laws of chapter 2: what was measured, the law, and its rival."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperdapo.evidence import figures

_LAW = {"color": "black", "linestyle": "--"}
_RIVAL = {"color": "#7A7A7A"}


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
    figure, axis = figures.new(height=0.48)
    _draw_measured(axis, share, mean.where(mean > 0), curve.clip(lower=foot), asset)
    below = share[mean <= 0]
    axis.plot(below, np.full(len(below), foot), "v", color=figures.ASSET_COLOURS[asset], markerfacecolor="white")
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
    figure, axis = figures.new(height=0.45)
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


def _draw_measured(axis: Axes, where: pd.Series, values: pd.Series, bounds: pd.DataFrame, asset: str) -> None:
    """Dots with their intervals; what is NaN stays empty."""
    colour = figures.ASSET_COLOURS[asset]
    axis.vlines(where, bounds["ci_low"], bounds["ci_high"], color=colour)
    axis.plot(where, values, "o", color=colour, label=f"{asset}, measured")
