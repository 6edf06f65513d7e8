"""Parent orders: what is to be executed, from which every strategy starts, and the candidate orders of the policy."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from hyperdapo.errors import DataError
from hyperdapo.execution.orders import uniform
from hyperdapo.execution.simulator import replay_orders
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS
from hyperdapo.market.grid import snap_price, snap_size
from hyperdapo.params import Parameters
from hyperdapo.sections import Orders
from hyperdapo.times import SECOND_NS

STATE = ("volatility_5m_bps", "bid_ask_spread_bps")  # features that a parent remembers, for strategies and regimes
LATENCY_S = 10.0  # what latencies may add to an order's life: a parent needs so much uninterrupted market more


def life_s(orders: Orders) -> float:
    """How long after a decision the market must be known: horizon, latencies and mark-outs."""
    return orders.longest_horizon_s + max(orders.markouts_s) + LATENCY_S


def evenly_spaced(features: pd.DataFrame, most: int | None) -> pd.DataFrame:
    """Rows of `features.parquet` in which an order may start: warm, and of a split; at most so many, evenly spaced.

    Raises
    ------
    DataError
        If there is no such row.
    """
    usable = features[features["warm"].to_numpy(bool) & (features["split"] != "").to_numpy()]
    if usable.empty:
        raise DataError(
            "features.parquet has no warm row in a split, so no order can start: lengthen the span (source.from, "
            "source.to), or lower features.warmup_s"
        )
    if most is None or len(usable) <= most:
        return usable
    return usable.iloc[np.linspace(0, len(usable) - 1, most).round().astype(np.int64)]


def parent_orders(features: pd.DataFrame, parameters: Parameters, market: Market) -> pd.DataFrame:
    """One order for each warm row of a split whose whole life, mark-outs included, lies in uninterrupted data.

    Parameters
    ----------
    features : (n, ...) rows of `features.parquet`

    Returns
    -------
    (m, 12): order_id (the row's index in `features`), asset, objective, decision_ns, side, size (coin), horizon_s,
    arrival_mid (USD), split, block, and of the features volatility_5m_bps and bid_ask_spread_bps. Side and objective
    depend only on the seed, the asset and `decision_ns`.
    """
    rules = parameters.orders
    usable = features["warm"].to_numpy(bool) & (features["split"] != "").to_numpy()
    decision_ns = features["decision_ns"].to_numpy(np.int64)
    mood = uniform(parameters.seed, f"{market.asset} objective", decision_ns)
    objective = np.array(rules.objectives, dtype=object)[(mood * len(rules.objectives)).astype(int)]
    horizon_s = np.array([rules.rules[name].horizon_s for name in objective], dtype=float)
    buys = uniform(parameters.seed, f"{market.asset} side", decision_ns) < rules.buy_share
    parents = pd.DataFrame(
        {
            "order_id": features.index.to_numpy(np.int64),
            "asset": market.asset,
            "objective": objective,
            "decision_ns": decision_ns,
            "side": np.where(buys, 1, -1),
            "size": snap_size(rules.notional_usd / features["mid"].to_numpy(float), market.sz_decimals),
            "horizon_s": horizon_s,
            "arrival_mid": features["mid"].to_numpy(float),
            "split": features["split"].to_numpy(str),
            **{name: features[name].to_numpy(float) for name in STATE},
        }
    )
    life_ns = np.rint((horizon_s + max(rules.markouts_s) + LATENCY_S) * SECOND_NS).astype(np.int64)
    usable &= ~market.interrupted(decision_ns, decision_ns + life_ns)
    return parents[usable].reset_index(drop=True)


def offset_orders(parents: pd.DataFrame, market: Market, offset_bps: ArrayLike) -> pd.DataFrame:
    """Each parent as one limit order at its offset from the arrival mid, on the grid; negative offsets are passive."""
    side, mid = parents["side"].to_numpy(float), parents["arrival_mid"].to_numpy(float)
    offset_bps = np.broadcast_to(np.asarray(offset_bps, dtype=float), side.shape)
    limit_price = snap_price(mid * (1 + side * offset_bps / BPS), side, market.sz_decimals)
    return parents.assign(offset_bps=offset_bps, limit_price=limit_price, post_only=False)


def candidate_orders(parents: pd.DataFrame, market: Market, offsets_bps: list[float]) -> pd.DataFrame:
    """K limit orders per parent, in the order of the offsets; `action` is the position of an offset."""
    repeated = parents.iloc[np.repeat(np.arange(len(parents)), len(offsets_bps))].reset_index(drop=True)
    action = np.tile(np.arange(len(offsets_bps)), len(parents))
    return offset_orders(repeated.assign(action=action), market, np.array(offsets_bps)[action])


def replay_candidates(market: Market, parents: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """Every candidate order of every state, replayed: (n K, ...), what `replay_orders` returns; no rewards."""
    return replay(market, candidate_orders(parents, market, parameters.policy.offsets_bps), parameters)


def replay(market: Market, orders: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """`replay_orders` under the parameters of a run."""
    return replay_orders(market, orders, parameters.execution, parameters.seed, parameters.orders.markouts_s)
