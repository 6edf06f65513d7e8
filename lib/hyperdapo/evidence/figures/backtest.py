"""Figures of 08_backtest: the life of one order on the book, and the strategies compared on the same parent orders."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperdapo.evidence.figures import style
from hyperdapo.evidence.metrics import FEES, PRICE, TOTAL
from hyperdapo.evidence.tables import heading
from hyperdapo.times import SECOND_NS

BUY, SELL = "#0072B2", "#D55E00"
_PARTS = {FEES: ("fees", "#B8B8B8"), PRICE: ("price", "#0072B2")}
ROUTES = {
    "filled_queue": ("prints at the price", "#0072B2"),
    "filled_through": ("prints through it", "#56B4E9"),
    "filled_crossed": ("quotes that came to it", "#E69F00"),
}
_LARGEST_DOT = 90.0  # area in points squared of the largest print
MODEL_COLOURS = style.Colours(power="#D55E00", evenly="#E69F00", risk_averse="#0072B2", touch="#7A7A7A")
_MARKERS = {"power": "o", "evenly": "D", "risk_averse": "v", "touch": "^"}


def plot_order_life(trace: pd.DataFrame, order: pd.Series, asset: str) -> Figure:
    """Best quotes and prints around one resting order, the queue before it, and what is filled of it, over time.

    Parameters
    ----------
    trace : the events that the order lived through: exchange_ns, bid, ask, print_price, print_size, aggressor,
        queue_ahead, filled
    order : its decision_ns, arrival_ns, side, size, limit_price, arrival_mid
    """
    figure, (price, queue, filled) = style.new(3, 1, height=0.78, sharex=True, height_ratios=[3, 1.4, 1])
    seconds = (trace["exchange_ns"] - order["decision_ns"]) / SECOND_NS
    _draw_market(price, trace, seconds, order)
    queue.fill_between(seconds, trace["queue_ahead"], step="post", color="#7A7A7A", alpha=0.35, linewidth=0)
    queue.step(seconds, trace["queue_ahead"], where="post", color="#7A7A7A")
    queue.set_ylabel(f"queue ahead\n({asset})")
    filled.step(seconds, trace["filled"] / order["size"], where="post", color="black")
    filled.set_ylabel("filled")
    filled.set_ylim(-0.05, 1.1)
    filled.set_xlabel("seconds after the decision")
    arrival = (order["arrival_ns"] - order["decision_ns"]) / SECOND_NS
    for axis in (price, queue, filled):
        axis.axvspan(0, arrival, color="#E69F00", alpha=0.25, linewidth=0)
    queue.set_ylim(bottom=0)
    figure.align_ylabels()
    return figure


def plot_strategies(summary: pd.DataFrame, differences: pd.DataFrame, reference: str) -> Figure:
    """Mean total cost of each strategy, and what its difference to the reference is made of; bars are intervals.

    Parameters
    ----------
    summary : strategy, metric, value, ci_low, ci_high
    differences : strategy, part, difference_bps, ci_low, ci_high
    """
    total = summary[summary["metric"] == TOTAL].set_index("strategy")
    strategies = [name for name in style.STRATEGY_COLOURS if name in total.index][::-1]
    figure, (cost, parts) = style.new(1, 2, height=0.08 + 0.045 * len(strategies), sharey=True)
    _draw_intervals(cost, total.loc[strategies, ["value", "ci_low", "ci_high"]], style.STRATEGY_COLOURS)
    cost.axvline(total.loc[reference, "value"], color="black", linewidth=0.6, linestyle=":")
    cost.set_yticks(range(len(strategies)), [heading(name) for name in strategies])
    cost.set_xlabel("mean total cost (bps)")
    by_part = {part: rows.set_index("strategy").reindex(strategies) for part, rows in differences.groupby("part")}
    for shift, (part, (label, colour)) in zip((0.19, -0.19), _PARTS.items(), strict=True):
        rows = np.arange(len(strategies)) + shift
        parts.barh(rows, by_part[part]["difference_bps"], height=0.36, color=colour, label=label)
    _draw_intervals(parts, by_part[TOTAL][["difference_bps", "ci_low", "ci_high"]], dict.fromkeys(strategies, "black"))
    parts.axvline(0, color="black", linewidth=0.6)
    parts.set_xlabel(f"difference to {heading(reference).lower()} (bps)")
    figure.legend(*parts.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def plot_fills(orders: pd.DataFrame, strategies: list[str]) -> Figure:
    """By which route the volume of each strategy was filled, and what of it was taken.

    Of `ROUTES` those are drawn that had any.
    """
    shares = orders.groupby("strategy")[list(ROUTES)].mean().loc[strategies[::-1]]
    shares = shares.loc[:, shares.any()].assign(taken=1 - shares.sum(axis=1))
    looks = ROUTES | {"taken": ("taken", "#D9D9D9")}
    figure, axis = style.new(height=0.1 + 0.035 * len(strategies))
    left = np.zeros(len(shares))
    for name in shares:
        label, colour = looks[str(name)]
        axis.barh([heading(strategy) for strategy in shares.index], shares[name], left=left, color=colour, label=label)
        left += shares[name].to_numpy()
    axis.set(xlabel="share of the volume", xlim=(0, 1))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def plot_markouts(orders: pd.DataFrame, strategies: list[str]) -> Figure:
    """How the mid moves in the trader's favour, for each strategy: after fills while resting, and after takings.

    From just before the fill; horizons in seconds. Means over the orders, weighted by what was made or taken of each.
    """
    weights = {"maker": orders["maker_share"], "taker": 1 - orders["maker_share"]}
    figure, axes = style.new(1, 2, height=0.45, sharey=True)
    for axis, (kind, title) in zip(axes, (("maker", "filled while resting"), ("taker", "taken")), strict=True):
        columns = [name for name in orders if str(name).startswith(f"{kind}_markout_")]
        seconds = [float(str(name).removeprefix(f"{kind}_markout_").removesuffix("s_bps")) for name in columns]
        weight = orders[columns].notna().mul(weights[kind], axis=0).groupby(orders["strategy"]).sum()
        means = orders[columns].mul(weights[kind], axis=0).groupby(orders["strategy"]).sum() / weight.where(weight > 0)
        for strategy in strategies:
            colour = style.STRATEGY_COLOURS[strategy]
            marks = {"marker": style.marker(strategy), "markersize": 3}
            axis.plot(seconds, means.loc[strategy], color=colour, label=heading(strategy), **marks)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_xscale("log")
        axis.set_xticks(seconds, [f"{second:g}" for second in seconds])
        axis.minorticks_off()
        axis.set(title=title, xlabel="seconds after the last fill")
    axes[0].set_ylabel("mark-out (bps)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def plot_sensitivity(costs: pd.DataFrame, strategies: list[str]) -> Figure:
    """Mean total cost under other latencies, queues and fees, a line per strategy.

    Parameters
    ----------
    costs : bps; rows (`of`, assumption) with `of` latency, queue or fees, a column per strategy
    """
    figure, axes = style.new(1, 3, height=0.5, sharey=True, width_ratios=[1.6, 1, 0.8])
    for axis, of in zip(axes, ("latency", "queue", "fees"), strict=True):
        table = costs.loc[of]
        for strategy in strategies:
            colour = style.STRATEGY_COLOURS[strategy]
            marks = {"marker": style.marker(strategy), "markersize": 3}
            axis.plot(range(len(table)), table[strategy], color=colour, label=heading(strategy), **marks)
        axis.set_xticks(range(len(table)), table.index, rotation=30, ha="right", rotation_mode="anchor")
        axis.set_xlabel(of)
    figure.supylabel("mean total cost (bps)", fontsize="medium")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _draw_market(axis: Axes, trace: pd.DataFrame, seconds: pd.Series, order: pd.Series) -> None:
    """Quotes as steps, prints as dots, the order as a line from its arrival on."""
    axis.fill_between(seconds, trace["bid"], trace["ask"], step="post", color="#E6E6E6", linewidth=0)
    axis.step(seconds, trace["bid"], where="post", color=BUY, linewidth=0.8, label="best bid")
    axis.step(seconds, trace["ask"], where="post", color=SELL, linewidth=0.8, label="best ask")
    largest = trace["print_size"].max()
    for aggressor, colour, label in ((1, BUY, "print, buyer takes"), (-1, SELL, "print, seller takes")):
        rows = trace["aggressor"] == aggressor
        area = _LARGEST_DOT * trace.loc[rows, "print_size"] / largest
        look = {"s": area, "color": colour, "alpha": 0.5, "linewidth": 0, "label": label}
        axis.scatter(seconds[rows], trace.loc[rows, "print_price"], **look)
    word = "buy" if order["side"] > 0 else "sell"
    axis.axhline(order["limit_price"], color="black", linewidth=1.4, label=f"our {word}, {order['limit_price']:g}")
    axis.axhline(order["arrival_mid"], color="black", linewidth=0.8, linestyle=":", label="mid at the decision")
    axis.set_ylabel("price (USD)")
    axis.ticklabel_format(useOffset=False)
    handles = axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.28), ncols=3).legend_handles
    for handle in handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([18])


def _draw_intervals(axis: Axes, intervals: pd.DataFrame, colours: Mapping[str, str]) -> None:
    """A dot and a line per row: value, lower and upper bound; rows that are NaN stay empty."""
    for row, (strategy, (value, low, high)) in enumerate(zip(intervals.index, intervals.to_numpy(float), strict=True)):
        axis.plot([low, high], [row, row], color=colours[strategy], linewidth=1.6, solid_capstyle="butt")
        axis.plot(value, row, marker="o", color=colours[strategy])


def plot_calibration(groups: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Predicted against true share of fills, and how far each queue model is from the truth; bars are intervals.

    Parameters
    ----------
    groups : of `reliability`
    scores : queue_model, brier, cost_bias_bps
    """
    models = list(scores["queue_model"])
    figure, (reliable, miss, brier) = style.new(1, 3, height=0.4, width_ratios=[1.2, 1.4, 1])
    reliable.plot([0, 1], [0, 1], color="black", linewidth=0.6, linestyle=":")
    for name in models:
        rows = groups[groups["queue_model"] == name].sort_values("observed")
        look = {"color": MODEL_COLOURS[name], "marker": _MARKERS.get(name, "s"), "markersize": 4}
        reliable.plot(rows["predicted"], rows["observed"], linestyle="", **look)
        miss.plot(rows["observed"], rows["predicted"] - rows["observed"], linewidth=0.8, label=heading(name), **look)
    first = groups[groups["queue_model"] == models[0]]
    reliable.vlines(first["predicted"], first["ci_low"], first["ci_high"], color=MODEL_COLOURS[models[0]], linewidth=1)
    reliable.set_xlabel("share filled, simulator")
    reliable.set_ylabel("share filled, truth")
    miss.axhline(0, color="black", linewidth=0.6)
    miss.set_xlabel("share filled, truth")
    miss.set_ylabel("simulator minus truth")
    place = np.arange(len(models))
    brier.barh(place, scores["brier"], color=[MODEL_COLOURS[name] for name in models], height=0.6)
    brier.set_yticks(place, [""] * len(models))
    brier.invert_yaxis()
    brier.set_xlabel("Brier score")
    figure.legend(*miss.get_legend_handles_labels(), loc="outside upper center", ncols=len(models))
    return figure


def plot_fill_truth(groups: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Orders whose fate level 3 tells: reliability, and the error of each queue model by depth; a row per kind.

    Parameters
    ----------
    groups : of `reliability`, with `kind`
    table : of `scores_by_depth`, one asset
    """
    kinds, models = list(table["kind"].unique()), list(table["queue_model"].unique())
    figure, axes = style.new(len(kinds), 2, height=0.4 * len(kinds), squeeze=False)
    for kind, (reliable, error) in zip(kinds, axes, strict=True):
        reliable.plot([0, 1], [0, 1], color="black", linewidth=0.6, linestyle=":")
        for place, name in enumerate(models):
            look = {"color": MODEL_COLOURS[name], "marker": _MARKERS.get(name, "s"), "markersize": 4, "linestyle": ""}
            rows = groups[(groups["kind"] == kind) & (groups["queue_model"] == name)]
            reliable.plot(rows["predicted"], rows["observed"], **look)
            scores = table[(table["kind"] == kind) & (table["queue_model"] == name) & (table["depth"] != "all")]
            error.plot(np.arange(len(scores)) + 0.12 * (place - 1.5), scores["brier"], label=heading(name), **look)
        error.set_xticks(np.arange(len(scores)), scores["depth"])
        error.set_ylim(bottom=0)
        error.set_xlabel("prices before the order")
        error.set_ylabel(f"Brier score, {kind}")
        reliable.set_xlabel("share filled, simulator")
        reliable.set_ylabel(f"share filled, {kind}")
    figure.legend(*error.get_legend_handles_labels(), loc="outside upper center", ncols=len(models))
    return figure
