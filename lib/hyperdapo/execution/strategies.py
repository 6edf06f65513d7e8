"""The ways to execute a parent order (§3.5.2), all under the same latency, fees, grid and minimum size."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from hyperdapo.days import SECOND_NS, Span
from hyperdapo.errors import DataError
from hyperdapo.execution.children import quote_slices, requote, slice_ns, take_slices
from hyperdapo.execution.parents import STATE, offset_orders, replay
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, take
from hyperdapo.market.grid import snap_price, tick_size
from hyperdapo.schema import Parameters

STRATEGIES = {
    "market": "takes at once",
    "twap": "takes in equal slices",
    "vwap": "takes in slices of the usual volume",
    "twap_post_only": "the slices of twap as post-only orders at the best quote",
    "vwap_post_only": "the slices of vwap as post-only orders at the best quote",
    "join_best": "post-only at the best quote, once",
    "mid_peg": "post-only at the mid, quoted anew",
    "avellaneda_stoikov": "post-only at the price of Avellaneda and Stoikov (2008), quoted anew",
    "best_fixed": "the offset that was cheapest on the training split",
    "oracle": "the offset that turns out cheapest",
}
"""Beside the policies of 07."""

ORDERS_COLUMNS = (
    *("order_id", "asset", "strategy", "objective", "decision_ns", "side", "size", "horizon_s", "arrival_mid"),
    *("offset_bps", "target_price", "exec_price", "filled_passive", "maker_share", "filled", "fill_ns", "status"),
    *("fees_bps", "funding_bps", "implementation_shortfall_bps", "total_cost_bps", "slippage_bps"),
    *("spread_bps", "timing_bps", "opportunity_bps"),
    *("queue_ahead", "latency_ms", "block", "split", *STATE),
)
"""Of `orders.parquet`; the mark-outs `markout_{h}s_bps` follow."""

_SHALLOWEST_BPS = 0.01  # prints that hug the mid: k stays finite
_DECIMALS = 10  # of what is told in bps: equal orders have equal costs, however they were summed
_MINUTE = 60  # the volume profile of VWAP is by second of the minute


class Trained(NamedTuple):
    """What strategies know from the training split.

    The best fixed offset (bps), the share of volume by second of the minute (60,), and how far from the mid prints are
    on average (bps): the decay of intensity with distance, k of Avellaneda and Stoikov, is its inverse.
    """

    best_fixed_bps: float
    volume_profile: Floats
    print_depth_bps: float


def train(parts: Iterable[tuple[Span, Market]], outcomes: pd.DataFrame) -> Trained:
    """Learn from the training split: its outcomes, and the prints of its span in the parts of a market.

    Raises
    ------
    DataError
        If no outcome belongs to the training split.
    """
    best, ns = best_fixed_offset(outcomes), outcomes.loc[outcomes["split"] == "train", "decision_ns"]
    volume, depth_bps, prints = np.full(_MINUTE, np.finfo(float).tiny), 0.0, 0
    for (from_ns, to_ns), market in parts:
        known = np.searchsorted(market.trades.local_ns, [max(from_ns, ns.min()), min(to_ns, ns.max() + 1)])
        trades = take(market.trades, slice(*known))
        volume += np.bincount(trades.local_ns // SECOND_NS % _MINUTE, weights=trades.size, minlength=_MINUTE)
        depth_bps += float(np.nansum(np.abs(trades.price / market.mid_at(trades.local_ns) - 1)) * 1e4)
        prints += len(trades.price)
    return Trained(best, volume / volume.sum(), depth_bps / max(prints, 1))


def best_fixed_offset(outcomes: pd.DataFrame) -> float:
    """The offset (bps) whose mean total cost over the training split is least.

    Raises
    ------
    DataError
        If no outcome belongs to the training split.
    """
    costs = outcomes[outcomes["split"] == "train"].groupby("offset_bps")["total_cost_bps"].mean()
    if costs.empty:
        raise DataError("no outcome belongs to the training split: lengthen the span or raise split.train")
    return float(costs.index[int(costs.to_numpy().argmin())])


def oracle_offsets(outcomes: pd.DataFrame) -> pd.Series:
    """The offset (bps) that turned out cheapest in each state, by `order_id`: a ceiling, not a strategy."""
    cheapest = outcomes.loc[outcomes.groupby("order_id")["total_cost_bps"].idxmin()]
    return cheapest.set_index("order_id")["offset_bps"]


def backtest(
    market: Market,
    parents: pd.DataFrame,
    trained: Trained,
    outcomes: pd.DataFrame,
    decisions: pd.DataFrame,
    parameters: Parameters,
) -> pd.DataFrame:
    """Each parent order executed by each of `STRATEGIES`, then by every policy of `decisions`.

    Parameters
    ----------
    parents : (n, ...) of `parent_orders`; the orders of a part of the market give the rows that they give in the whole
    outcomes, decisions : those of the parents at least; of several training seeds of a policy the first counts

    Returns
    -------
    (n strategies, ...) with `ORDERS_COLUMNS` and the mark-outs

    Raises
    ------
    DataError
        If a policy decided not all of the orders, or there is none.
    """
    if parents.empty:
        raise DataError("there is no order to execute: lengthen the span or lower split.train")
    parents = parents.reset_index(drop=True)
    children = _by_children(market, parents, trained, parameters)
    whole = [
        orders.assign(strategy=name) for name, orders in _whole(market, parents, trained, outcomes, decisions).items()
    ]
    replayed = replay(market, pd.concat(whole, ignore_index=True), parameters)
    sliced = [rows.assign(strategy=name) for name, rows in children.items()]
    markouts = [f"markout_{horizon:g}s_bps" for horizon in parameters.orders.markouts_s]
    together = pd.concat([replayed, *sliced], ignore_index=True)[[*ORDERS_COLUMNS, *markouts]]
    together = together.round({name: _DECIMALS for name in together if str(name).endswith("_bps")})
    ranks = {name: rank for rank, name in enumerate([*STRATEGIES, *policy_offsets(decisions)])}
    return together.sort_values("strategy", key=lambda names: names.map(ranks), kind="stable", ignore_index=True)


def _whole(
    market: Market, parents: pd.DataFrame, trained: Trained, outcomes: pd.DataFrame, decisions: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Strategies of one order."""
    ids = parents["order_id"]
    mine = outcomes[outcomes["order_id"].isin(ids)]
    offsets = {"best_fixed": pd.Series(trained.best_fixed_bps, index=ids), "oracle": oracle_offsets(mine)}
    whole = {
        "market": parents.assign(offset_bps=np.nan, limit_price=np.nan, post_only=False),
        "join_best": parents.assign(offset_bps=np.nan, limit_price=_touch(market, parents), post_only=True),
    }
    for strategy, offset_bps in (offsets | policy_offsets(decisions)).items():
        if missing := sorted(set(ids) - set(offset_bps.index)):
            raise DataError(f"{strategy} decided {len(missing)} of the orders not at all: run 07_inference again")
        whole[strategy] = offset_orders(parents, market, offset_bps[ids])
    return whole


def _by_children(
    market: Market, parents: pd.DataFrame, trained: Trained, parameters: Parameters
) -> dict[str, pd.DataFrame]:
    """Strategies of several orders."""
    execution, slices = parameters.execution, parameters.execution.twap_slices
    even = np.full((len(parents), slices), 1 / slices)
    usual = volume_weights(trained.volume_profile, parents, slices)

    def at_touch(children: pd.DataFrame, seconds_left: Floats, share_left: Floats) -> Floats:
        return _touch(market, children)

    def at_mid(children: pd.DataFrame, seconds_left: Floats, share_left: Floats) -> Floats:
        side, mid = children["side"].to_numpy(float), market.mid_at(children["decision_ns"].to_numpy())
        return _behind_the_other_side(market, children, snap_price(mid, side, market.sz_decimals))

    def at_reservation(children: pd.DataFrame, seconds_left: Floats, share_left: Floats) -> Floats:
        side, mid = children["side"].to_numpy(float), market.mid_at(children["decision_ns"].to_numpy())
        distance = reservation_distance_bps(
            children["volatility_5m_bps"].to_numpy(float),
            seconds_left,
            share_left,
            execution.risk_aversion,
            1 / max(trained.print_depth_bps, _SHALLOWEST_BPS),
        )
        quoted = snap_price(mid * (1 - side * distance / 1e4), side, market.sz_decimals)
        return _behind_the_other_side(market, children, quoted)

    return {
        "twap": take_slices(market, parents, even, parameters),
        "vwap": take_slices(market, parents, usual, parameters),
        "twap_post_only": quote_slices(market, parents, even, at_touch, parameters),
        "vwap_post_only": quote_slices(market, parents, usual, at_touch, parameters),
        "mid_peg": requote(market, parents, at_mid, parameters),
        "avellaneda_stoikov": requote(market, parents, at_reservation, parameters),
    }


def reservation_distance_bps(
    volatility_bps: Floats, seconds_left: Floats, share_left: Floats, risk_aversion: float, decay: float
) -> Floats:
    """How far from the mid an order stands, on its own side, by Avellaneda and Stoikov (2008), eq. (3.8) ff.; bps (n,).

    Half the optimal spread, gamma sigma^2 tau / 2 + ln(1 + gamma / k) / gamma, less the shift of the reservation price
    by what is still to be traded, q gamma sigma^2 tau with q the share of the order that is left. Negative: beyond mid.

    Parameters
    ----------
    volatility_bps : sigma, bps per square root of a second
    seconds_left : tau
    risk_aversion : gamma, per bps
    decay : k, per bps
    """
    variance = risk_aversion * volatility_bps**2 * seconds_left
    return np.asarray(variance / 2 + np.log1p(risk_aversion / decay) / risk_aversion - share_left * variance)


def policy_offsets(decisions: pd.DataFrame) -> dict[str, pd.Series]:
    """The offset (bps) of each order by `order_id`, for each policy; of several training seeds the first."""
    first = decisions[decisions["seed"] == decisions.groupby("policy")["seed"].transform("min")]
    each = first.set_index("order_id").groupby("policy", sort=False)["offset_bps"]
    return {str(policy): offset_bps for policy, offset_bps in each}


def volume_weights(profile: Floats, parents: pd.DataFrame, slices: int) -> Floats:
    """(n, slices) shares of volume that a profile by second of the minute (60,) puts into each slice of a horizon."""
    minute_ns, curve = _MINUTE * SECOND_NS, np.append(0.0, np.cumsum(profile))
    bounds = slice_ns(parents, slices)
    volume = bounds // minute_ns + np.interp(bounds % minute_ns / SECOND_NS, np.arange(_MINUTE + 1), curve)
    weights = np.diff(volume, axis=1)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _touch(market: Market, orders: pd.DataFrame) -> Floats:
    """The best quote of each order's side (n,), as known at its decision."""
    best = market.top_at(orders["decision_ns"].to_numpy())
    return np.where(orders["side"] > 0, best.bid_price, best.ask_price)


def _behind_the_other_side(market: Market, orders: pd.DataFrame, price: Floats) -> Floats:
    """Prices (n,) a step before the other side's best at most, as known at the decision: post-only orders rest."""
    best, side = market.top_at(orders["decision_ns"].to_numpy()), orders["side"].to_numpy(float)
    other = np.where(side > 0, best.ask_price, best.bid_price)
    nearest = snap_price(other - side * tick_size(other, market.sz_decimals), side, market.sz_decimals)
    return np.where(side * (price - nearest) > 0, nearest, price)
