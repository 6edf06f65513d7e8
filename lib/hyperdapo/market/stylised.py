"""Stylised facts of a market: the moments by which a synthetic market is compared with a recorded one.

Pure functions of a `Market`. All instants are the exchange's, so that the delay of the feed does not blur what follows
what; no interval touches a gap. Definitions of the fields are those of Cont, Empirical properties of asset returns,
2001, and of Bouchaud et al., Trades, Quotes and Prices, 2018.
"""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
import yaml
from scipy.stats import kurtosis

from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, BookSnapshots, Floats, Integers, Mask, Nanoseconds, TopOfBook, Trades, select
from hyperdapo.market.grid import tick_size
from hyperdapo.times import SECOND_NS

_LATE_S = 2.0  # more than a message needs from the exchange to its recorder
RETURNS_S, RESPONSES_S, MARKOUTS_S = (1, 10, 60), (0.2, 10, 60), (1, 10)
DEPTHS, SIGN_LAGS, IMBALANCE_LAGS_S = (1, 2, 5, 10), (1, 10), (1, 10)
CLUSTER = 5  # prints in one block of the exchange
COUNTS_S = 10
NEAR, CLOSE = 2.0, 1.25  # factors
ERRORS = 2.2  # two of the difference: a market of three hours or more has its own, beside that of 35 minutes
TIGHT = (
    *("volatility_1s_bps", "volatility_10s_bps", "volatility_60s_bps", "imbalance_return_1s"),
    *("imbalance_persistence_1s", "spread_ticks", "spread_one_tick", "order_log_sd", "largest_percent_volume"),
    *("clustered_volume", "best_size_log_sd"),
)
RECORDED = Path(__file__).with_name("recorded.yaml")
Rows = TypeVar("Rows", BookSnapshots, TopOfBook, Trades)


def moments(market: Market) -> pd.Series:
    """All moments of a market by name, which holds the unit where there is one; without prints, those of the book."""
    parts = (returns, imbalance, touch, responses, markouts, flow)[: 6 if len(market.trades.price) else 3]
    return pd.Series({name: value for part in parts for name, value in part(market).items()}, dtype=float)


def recorded(asset: str) -> pd.DataFrame:
    """Moments of a real recording of the asset, by name: `value` and sampling `error`; empty where there is none.

    `recorded.yaml`, beside this module, says of which exchange, when and how long; `benchmarks/_fit_world.py` wrote it.
    """
    assets = yaml.safe_load(RECORDED.read_text(encoding="utf-8"))["assets"]
    rows = assets[asset]["moments"] if asset in assets else {}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "error"], dtype=float).rename_axis("moment")


def compare(measured: pd.Series, asset: str) -> pd.DataFrame:
    """The moments of a market beside those of the real recording of the asset.

    Returns
    -------
    One row per moment: `real`, its sampling `error`, `measured`, `ratio`, the bounds `low` and `high`, and whether the
    moment is `within` them. The bounds are a factor of the real value (`CLOSE` or `NEAR`) or `ERRORS` around it,
    whichever is wider; all but `measured` are NaN, and nothing is within, where there is no recording
    """
    real = recorded(asset).reindex(measured.index)
    factor = np.where(measured.index.isin(TIGHT), CLOSE, NEAR)
    scaled = np.sort([real["value"] * factor, real["value"] / factor], axis=0)
    table = pd.DataFrame({"real": real["value"], "error": real["error"], "measured": measured})
    table["ratio"] = table["measured"] / table["real"]
    table["low"] = np.minimum(scaled[0], real["value"] - ERRORS * real["error"])
    table["high"] = np.maximum(scaled[1], real["value"] + ERRORS * real["error"])
    table["within"] = table["measured"].between(table["low"], table["high"])
    return table.rename_axis("moment").reset_index()


def sampling_errors(market: Market, block_s: float) -> pd.Series:
    """Standard error of each moment: the jackknife over blocks of the exchange's time, each left out once.

    Source: Kunsch, The jackknife and the bootstrap for general stationary observations, 1989.
    """
    first, last = market.top.exchange_ns[[0, -1]]
    count = blocks(market, block_s)
    bounds = np.linspace(first, last + 1, count + 1).astype(np.int64)
    left_out = pd.DataFrame([moments(_without(market, *block)) for block in pairwise(bounds)])
    return left_out.std(ddof=0) * (count - 1) ** 0.5


def blocks(market: Market, block_s: float) -> int:
    """How many whole blocks of that length the market has, at least two."""
    first, last = market.top.exchange_ns[[0, -1]]
    return max(int((last - first) / (block_s * SECOND_NS)), 2)


def returns(market: Market) -> dict[str, float]:
    """Of log returns of the mid every second: volatility (bps), ratios of variance per second, excess kurtosis."""
    at = _grid(market, 1.0)
    moves = {horizon: _move_bps(market, at, horizon) for horizon in RETURNS_S}
    variance = {horizon: float(np.mean(move**2)) for horizon, move in moves.items()}
    volatility = {f"volatility_{horizon}s_bps": variance[horizon] ** 0.5 for horizon in RETURNS_S}
    ratios = {f"variance_ratio_{horizon}s": variance[horizon] / variance[1] / horizon for horizon in RETURNS_S[1:]}
    tails = {f"kurtosis_{horizon}s": float(kurtosis(moves[horizon])) for horizon in RETURNS_S[:2]}
    return volatility | ratios | tails


def market_orders(trades: Trades) -> pd.DataFrame:
    """What one side takes in one block of the exchange, in order of time; who took it is not published.

    Returns
    -------
    `exchange_ns`, `side` (+1 buy), `local_ns` (of the first print), `size` (coin), `usd`
    """
    columns = {name: getattr(trades, name) for name in ("exchange_ns", "side", "local_ns", "size")}
    prints = pd.DataFrame(columns | {"usd": trades.price * trades.size})
    taken = {"local_ns": "first", "size": "sum", "usd": "sum"}
    return prints.groupby(["exchange_ns", "side"], as_index=False).agg(taken)


def responses(market: Market) -> dict[str, float]:
    """Mean move of the mid (bps, positive with the order) from before a market order's block until some time after."""
    orders = market_orders(market.trades)
    at, side = orders["exchange_ns"].to_numpy(), orders["side"].to_numpy()
    return {f"response_{after}s_bps": _mean_move_bps(market, at, side, after) for after in RESPONSES_S}


def markouts(market: Market) -> dict[str, float]:
    """What makers have gained some time after their fills (bps of their volume, fees left out): their mark-out."""
    trades = market.trades
    gains = {}
    for after in MARKOUTS_S:
        later = trades.exchange_ns + round(after * SECOND_NS)
        whole = _whole(market, trades.exchange_ns, later)
        gain = trades.side * (1 - _mid(market, later) / trades.price) * BPS
        weight = trades.price * trades.size
        gains[f"maker_gain_{after}s_bps"] = float(np.sum((gain * weight)[whole]) / weight[whole].sum())
    return gains


def imbalance(market: Market) -> dict[str, float]:
    """Of (bids - asks) / (bids + asks) over all visible levels: correlation with the next return, and with itself."""
    book = market.book
    bids, asks = np.nansum(book.bid_size, axis=1), np.nansum(book.ask_size, axis=1)
    tilt = (bids - asks) / (bids + asks)
    correlations = {}
    for horizon in RETURNS_S:
        later = book.exchange_ns + horizon * SECOND_NS
        whole = _whole(market, book.exchange_ns, later)
        move = np.log(_mid(market, later) / _mid(market, book.exchange_ns))
        correlations[f"imbalance_return_{horizon}s"] = _correlation(tilt[whole], move[whole])
    for lag in IMBALANCE_LAGS_S:
        later = book.exchange_ns + lag * SECOND_NS
        whole = _whole(market, book.exchange_ns, later)
        then = tilt[np.searchsorted(book.exchange_ns, later[whole], side="right") - 1]
        correlations[f"imbalance_persistence_{lag}s"] = _correlation(tilt[whole], then)
    return correlations


def touch(market: Market) -> dict[str, float]:
    """Spread in ticks and its share at one, by time; depth up to some levels (USD, median, a side) and its dispersion.

    The dispersion is the standard deviation of the logarithm of a best level's size.
    """
    top, book = market.top, market.book
    lasting = np.minimum(np.diff(top.exchange_ns, append=top.exchange_ns[-1]), SECOND_NS)
    tick = tick_size(top.mid, market.sz_decimals)
    ticks = np.round((top.ask_price - top.bid_price) / tick)
    usd = np.concatenate([book.bid_price * book.bid_size, book.ask_price * book.ask_size])
    depth = {f"depth_{levels}_usd": float(np.nanmedian(usd[:, :levels].sum(axis=1))) for levels in DEPTHS}
    spread = {"spread_ticks": float(np.average(ticks, weights=lasting))}
    spread["spread_one_tick"] = float(np.average(ticks < 1.5, weights=lasting))
    return spread | depth | {"best_size_log_sd": float(np.nanstd(np.log(usd[:, 0])))}


def flow(market: Market) -> dict[str, float]:
    """Market orders: signs, sizes, clustering; and cancels at the best levels."""
    trades = market.trades
    orders = market_orders(trades)
    sign, usd = orders["side"].to_numpy(float), np.sort(orders["usd"].to_numpy())
    signs = {f"sign_autocorrelation_{lag}": _correlation(sign[:-lag], sign[lag:]) for lag in SIGN_LAGS}
    top = max(len(usd) // 100, 1)
    sizes = {"order_usd": float(np.median(usd)), "order_log_sd": float(np.std(np.log(usd)))}
    sizes |= {"largest_percent_volume": float(usd[-top:].sum() / usd.sum())}
    _, block, prints = np.unique(trades.exchange_ns, return_inverse=True, return_counts=True)
    clustered = float(trades.size[prints[block] >= CLUSTER].sum() / trades.size.sum())
    minutes = (market.top.exchange_ns[-1] - market.top.exchange_ns[0]) / (60 * SECOND_NS)
    counted = {"prints_per_min": len(trades.size) / minutes, "orders_per_min": len(usd) / minutes}
    return (
        signs
        | sizes
        | counted
        | {
            "clustered_volume": clustered,
            "count_dispersion": _dispersion(market, orders["exchange_ns"].to_numpy()),
            "cancels_per_trade": cancels_per_trade(market),
        }
    )


def cancels_per_trade(market: Market) -> float:
    """Decreases of the best levels' sizes that prints do not explain, for each coin that prints explain."""
    top, trades = market.top, market.trades
    gone, printed = 0.0, 0.0
    for side, price, size in ((1, top.bid_price, top.bid_size), (-1, top.ask_price, top.ask_size)):
        taken = trades.side == -side
        sold = np.append(0, np.cumsum(trades.size[taken]))
        traded = np.diff(sold[np.searchsorted(trades.exchange_ns[taken], top.exchange_ns, "right")])
        step = np.diff(price) * side
        decrease = np.where(step == 0, np.maximum(-np.diff(size), 0), np.where(step < 0, size[:-1], 0))
        gone, printed = gone + decrease.sum(), printed + np.minimum(traded, decrease).sum()
    return float(gone / printed - 1)


def _dispersion(market: Market, order_ns: Nanoseconds) -> float:
    """Variance over mean of the number of market orders in each stretch of time."""
    at = _grid(market, COUNTS_S)
    later = at + COUNTS_S * SECOND_NS
    whole = _whole(market, at, later)
    counts = np.diff(np.searchsorted(order_ns, np.column_stack([at, later])[whole]), axis=1)
    return float(counts.var() / counts.mean())


def _without(market: Market, from_ns: int, to_ns: int) -> Market:
    """The market without what the exchange stamped within an interval, which is a gap then."""

    def kept(rows: Rows) -> Rows:
        return select(rows, np.flatnonzero((rows.exchange_ns < from_ns) | (rows.exchange_ns >= to_ns)))

    gaps = np.vstack([market.gaps, [from_ns, to_ns]])
    gaps = gaps[np.argsort(gaps[:, 0])]
    return replace(market, book=kept(market.book), bbo=kept(market.bbo), trades=kept(market.trades), gaps=gaps)


def _grid(market: Market, every_s: float) -> Nanoseconds:
    first, last = market.top.exchange_ns[[0, -1]]
    return np.arange(first, last, round(every_s * SECOND_NS))


def _whole(market: Market, from_ns: Nanoseconds, to_ns: Nanoseconds) -> Mask:
    """Whether what the exchange stamped from one instant to the other was received without a gap."""
    return ~market.interrupted(from_ns, to_ns + round(_LATE_S * SECOND_NS))


def _mid(market: Market, exchange_ns: Nanoseconds, side: Literal["left", "right"] = "right") -> Floats:
    """Mid after what was stamped until each instant (n,), or `left`: before it; NaN before the first quote."""
    row = np.searchsorted(market.top.exchange_ns, exchange_ns, side=side)
    return np.asarray(np.concatenate([[np.nan], market.top.mid])[row])


def _move_bps(market: Market, at: Nanoseconds, horizon_s: float) -> Floats:
    later = at + round(horizon_s * SECOND_NS)
    whole = _whole(market, at, later)
    return np.asarray(np.log(_mid(market, later[whole]) / _mid(market, at[whole])) * BPS)


def _mean_move_bps(market: Market, at: Nanoseconds, side: Integers, after_s: float) -> float:
    later = at + round(after_s * SECOND_NS)
    before = _mid(market, at, "left")
    whole = _whole(market, at, later) & np.isfinite(before)
    return float(np.mean(side[whole] * np.log(_mid(market, later[whole]) / before[whole])) * BPS)


def _correlation(first: Floats, second: Floats) -> float:
    return float(np.corrcoef(first, second)[0, 1])
