"""The figure of a session of paper trading: the market, own orders in it, their fills, and what they cost so far."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hyperdapo.evidence.figures import style
from hyperdapo.times import MINUTE_NS

BUY, SELL = "#0072B2", "#D55E00"
_NOTHING, _QUOTES = "#E9E9E9", "#9A9A9A"
_MOST = 4000  # quotes that are drawn


def plot_session(quotes: pd.DataFrame, orders: pd.DataFrame, refused: pd.DataFrame, asset: str) -> Figure:
    """Best quotes over time with own orders and fills, and the cost of all orders that have ended, added up.

    Parameters
    ----------
    quotes : (n, ...) local_ns, bid_price, ask_price (USD), as they were known
    orders : (m, ...) rows of a session's `orders.parquet`
    refused : (k, ...) decision_ns, cause: decision times at which nothing was decided, `every_ns` apart
    """
    figure, (price, cost) = style.new(2, 1, height=0.72, sharex=True, height_ratios=[2.2, 1])
    begin_ns = int(quotes["local_ns"].iloc[0])
    seen = quotes.iloc[:: max(len(quotes) // _MOST, 1)]
    minutes = _minutes(seen["local_ns"], begin_ns)
    price.fill_between(
        minutes, seen["bid_price"], seen["ask_price"], step="post", color=_QUOTES, linewidth=0.4, alpha=0.9
    )
    for axis in (price, cost):
        _draw_refused(axis, refused, begin_ns)
    _draw_orders(price, orders, begin_ns)
    price.set_ylabel(f"{asset} (USD)")
    figure.legend(handles=_legend(), loc="outside upper center", ncols=5)
    ended = orders.sort_values("decision_ns")
    then = _minutes(ended[["completion_ns", "fill_ns", "cancel_ns"]].max(axis=1), begin_ns)
    by_end = np.argsort(then.to_numpy(), kind="stable")
    for column, label, line in (("total_cost_bps", "all", "-"), ("fees_bps", "fees", ":")):
        summed = ended[column].to_numpy()[by_end].cumsum()
        cost.step(then.to_numpy()[by_end], summed, where="post", color="black", linestyle=line, label=label)
    cost.axhline(0, color="black", linewidth=0.5)
    cost.set_ylabel("cost so far\n(sum of bps)")
    cost.set_xlabel("minutes of the market")
    cost.legend(loc="best")
    figure.align_ylabels()
    return figure


def _draw_orders(axis: Axes, orders: pd.DataFrame, begin_ns: int) -> None:
    """Each order from its arrival to its end at its limit, and a mark where it traded last."""
    rests = orders[np.isfinite(orders["limit_price"])]
    for side, colour in ((1, BUY), (-1, SELL)):
        mine = rests[rests["side"] == side]
        ends = np.where(mine["status"] == "filled", mine["fill_ns"], mine["cancel_ns"])
        axis.hlines(
            mine["limit_price"],
            _minutes(mine["arrival_ns"], begin_ns),
            _minutes(ends, begin_ns),
            color=colour,
            linewidth=0.9,
            alpha=0.8,
        )
        traded = orders[orders["side"] == side]
        made = traded[traded["fill_ns"] >= 0]
        at = made["passive_price"].where(made["passive_price"].notna(), made["exec_price"])
        axis.plot(_minutes(made["fill_ns"], begin_ns), at, linestyle="", marker="o", markersize=2.6, color=colour)
        late = traded[traded["completion_ns"] >= 0]
        axis.plot(
            _minutes(late["completion_ns"], begin_ns),
            late["completion_price"],
            linestyle="",
            marker="x",
            markersize=3.4,
            markeredgewidth=0.8,
            color=colour,
        )


def _draw_refused(axis: Axes, refused: pd.DataFrame, begin_ns: int) -> None:
    """Grey where nothing was decided."""
    for begin, end in zip(refused["decision_ns"], refused["decision_ns"] + refused["every_ns"], strict=True):
        axis.axvspan(*_minutes(np.array([begin, end]), begin_ns), color=_NOTHING, linewidth=0, zorder=0)


def _legend() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=BUY, label="buy"),
        Line2D([], [], color=SELL, label="sell"),
        Line2D([], [], color="black", linestyle="", marker="o", markersize=3, label="filled"),
        Line2D([], [], color="black", linestyle="", marker="x", markersize=4, label="completed"),
        Patch(color=_NOTHING, label="no decision"),
    ]


def _minutes(ns: "pd.Series[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]]", begin_ns: int) -> pd.Series:
    return (pd.Series(np.asarray(ns, dtype=np.int64)) - begin_ns) / MINUTE_NS
