"""Are the simulator's fills true? Orders whose fate is known are replayed from the published messages alone (§3.5.1).

The orders may be probes of the synthetic exchange (`synthetic.probes`) or an account's (`history`). Their times at the
exchange are known, so no latency is charged: what is judged is the queue, and what follows from it.
"""

import numpy as np
import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.execution.costs import fee_rates
from hyperdapo.execution.history import Executions
from hyperdapo.execution.simulator import replay_orders
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, Floats
from hyperdapo.sections import Execution
from hyperdapo.times import SECOND_NS

NO_LATENCY = {"preset": "empirical", "policy_ms": 0.0, "empirical_ms": [0.0]}
_CANCEL_S = 1.0  # within which a cancel has landed
_ROUNDING = 1e-9  # of a share


def queue_models(execution: Execution) -> dict[str, Execution]:
    """The queue of the parameters, cancels spread evenly, and two extremes: only prints help, nobody is before us."""
    models: dict[str, Execution] = {execution.queue: execution}
    for name, queue, exponent in (
        ("evenly", "power", 1.0),
        ("risk_averse", "risk_averse", None),
        ("touch", "touch", None),
    ):
        models.setdefault(name, execution.model_copy(update={"queue": queue, "queue_exponent": exponent}))
    return models


def replay_executions(market: Market, executions: Executions, execution: Execution) -> pd.DataFrame:
    """Each accepted order beside its replay.

    Returns
    -------
    The orders whose life lies in the data, with true_filled and filled (shares before the cancel), filled_queue and
    filled_through (parts of the latter), true_fill_ns and fill_ns (of the last fill, -1 for none), true_cost_bps and
    cost_bps (price and fees against the mid at arrival; what is left at the cancel counts at what taking all of the
    order cost then, in both), arrival_mid, and queue_ahead

    Raises
    ------
    DataError
        If no order was accepted within the data.
    """
    orders = executions.orders[executions.orders["status"] != "rejected"]
    late_ns = orders["cancel_ns"].to_numpy() + round(_CANCEL_S * SECOND_NS)
    orders = orders[~market.interrupted(orders["placed_ns"].to_numpy(), late_ns)].reset_index(drop=True)
    if orders.empty:
        raise DataError(f"{market.asset}: no order was accepted within the span of the market data")
    replayed = replay_orders(market, _as_orders(orders), _at_once(execution), seed=0, markouts_s=())
    at_cancel = _as_orders(orders).assign(
        decision_ns=orders["cancel_ns"], limit_price=np.nan, post_only=False, horizon_s=0.0
    )
    left = replay_orders(market, at_cancel, _at_once(execution), seed=0, markouts_s=())
    fills = executions.fills[executions.fills["order_id"].isin(orders["order_id"])]
    side, size, mid = orders["side"].to_numpy(float), orders["size"].to_numpy(float), replayed["arrival_mid"].to_numpy()
    unit_bps = side * (left["exec_price"] / mid - 1) * BPS + left["fees_bps"]
    true_filled = _sum(orders, fills["order_id"], fills["size"]) / size
    true_bps = _sum(orders, fills["order_id"], _cost(orders, fills, mid, execution.fees.tier)) / size
    filled = replayed["filled_passive"].to_numpy()
    price = np.where(filled > 0, replayed["passive_price"], mid)
    taker, maker = fee_rates(orders["placed_ns"], execution.fees.tier)
    made = replayed["maker_share"].to_numpy()
    replayed_bps = filled * side * (price / mid - 1) * BPS + (made * maker + (filled - made) * taker) * price / mid
    last = fills.groupby("order_id")["exchange_ns"].max().reindex(orders["order_id"], fill_value=-1).to_numpy()
    return orders.assign(
        true_filled=true_filled,
        filled=filled,
        filled_queue=replayed["filled_queue"],
        filled_through=replayed["filled_through"],
        true_fill_ns=last,
        fill_ns=replayed["fill_ns"],
        true_cost_bps=true_bps + (1 - true_filled) * unit_bps,
        cost_bps=replayed_bps + (1 - filled) * unit_bps,
        arrival_mid=mid,
        queue_ahead=replayed["queue_ahead"],
    )


def replay_by_queue_model(market: Market, executions: Executions, execution: Execution) -> pd.DataFrame:
    """`replay_executions` under each of `queue_models`, one below the other; asset and queue_model come first."""
    parts = []
    for name, model in queue_models(execution).items():
        orders = replay_executions(market, executions, model)
        orders.insert(0, "asset", market.asset)
        orders.insert(1, "queue_model", name)
        parts.append(orders)
    return pd.concat(parts, ignore_index=True)


def _as_orders(orders: pd.DataFrame) -> pd.DataFrame:
    horizon_s = (orders["cancel_ns"] - orders["placed_ns"]) / SECOND_NS
    columns = ["order_id", "side", "size", "limit_price", "post_only"]
    return orders[columns].assign(decision_ns=orders["placed_ns"], horizon_s=horizon_s)


def _at_once(execution: Execution) -> Execution:
    latency = execution.latency.model_copy(update=NO_LATENCY)
    return execution.model_copy(update={"latency": latency})


def _cost(orders: pd.DataFrame, fills: pd.DataFrame, mid: Floats, tier: int) -> Floats:
    """Of each fill (m,), bps of its mid times its size, coin; with the fee that was charged, where that is known."""
    row = pd.Index(orders["order_id"]).get_indexer(fills["order_id"])
    taker, maker = fee_rates(fills["exchange_ns"], tier)
    ratio = fills["price"].to_numpy() / mid[row]
    fee = np.where(fills["crossed"], taker, maker) * ratio
    if "fee" in fills:
        charged = fills["fee"].to_numpy(float) / (fills["size"].to_numpy(float) * mid[row]) * BPS
        fee = np.where(np.isnan(charged), fee, charged)
    return np.asarray((orders["side"].to_numpy()[row] * (ratio - 1) * BPS + fee) * fills["size"].to_numpy())


def _sum(orders: pd.DataFrame, order_id: pd.Series, values: Floats | pd.Series) -> Floats:
    row = pd.Index(orders["order_id"]).get_indexer(order_id)
    return np.asarray(np.bincount(row, weights=values, minlength=len(orders)), dtype=float)
