"""Parent orders and the ways to execute them (§3.5.2), all under the same latency, fees, grid and minimum size."""

from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel

from hyperdapo.errors import DataError
from hyperdapo.execution.accounting import SECOND
from hyperdapo.execution.costs import HIGHEST_TIER
from hyperdapo.execution.draws import uniform
from hyperdapo.execution.simulator import replay_orders
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, snap_price, snap_size
from hyperdapo.schema import Parameters

Section = TypeVar("Section", bound=BaseModel)

ORDERS_COLUMNS = (
    *("order_id", "asset", "strategy", "objective", "decision_ns", "side", "size", "horizon_s", "arrival_mid"),
    *("offset_bps", "target_price", "exec_price", "filled_passive", "maker_share", "filled", "fill_ns", "status"),
    *("fees_bps", "funding_bps", "implementation_shortfall_bps", "total_cost_bps", "slippage_bps"),
    *("spread_bps", "timing_bps", "opportunity_bps"),
    *("queue_ahead", "latency_ms", "block", "split"),
)
"""Of `orders.parquet`; the mark-outs `markout_{h}s_bps` follow."""

_LATE_S = 10.0  # what latencies may add to an order's life
_MINUTE = 60  # the volume profile of VWAP is by second of the minute
_LEAST_USD = 1.5 * MINIMUM_NOTIONAL_USD  # of a child order: the price may fall between decision and child


def parent_orders(features: pd.DataFrame, parameters: Parameters, market: Market) -> pd.DataFrame:
    """One order for each warm row of a split whose whole life, mark-outs included, lies in uninterrupted data.

    Parameters
    ----------
    features : (n, ...) rows of `features.parquet`

    Returns
    -------
    (m, 10): order_id (position of the row in `features`), asset, objective, decision_ns, side, size (coin), horizon_s,
    arrival_mid (USD), split, block. Side and objective depend only on the seed, the asset and `decision_ns`.
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
            "order_id": np.arange(len(features)),
            "asset": market.asset,
            "objective": objective,
            "decision_ns": decision_ns,
            "side": np.where(buys, 1, -1),
            "size": snap_size(rules.notional_usd / features["mid"].to_numpy(float), market.sz_decimals),
            "horizon_s": horizon_s,
            "arrival_mid": features["mid"].to_numpy(float),
            "split": features["split"].to_numpy(str),
            "block": decision_ns // round(parameters.evidence.block_s * SECOND),
        }
    )
    life_ns = np.rint((horizon_s + max(rules.markouts_s) + _LATE_S) * SECOND).astype(np.int64)
    usable &= ~market.interrupted(decision_ns, decision_ns + life_ns)
    return parents[usable].reset_index(drop=True)


def offset_orders(parents: pd.DataFrame, market: Market, offset_bps: ArrayLike) -> pd.DataFrame:
    """Each parent as one limit order at its offset from the arrival mid, on the grid; negative offsets are passive."""
    side, mid = parents["side"].to_numpy(float), parents["arrival_mid"].to_numpy(float)
    offset_bps = np.broadcast_to(np.asarray(offset_bps, dtype=float), side.shape)
    limit_price = snap_price(mid * (1 + side * offset_bps / 1e4), side, market.sz_decimals)
    return parents.assign(offset_bps=offset_bps, limit_price=limit_price, post_only=False)


def candidate_orders(parents: pd.DataFrame, market: Market, offsets_bps: list[float]) -> pd.DataFrame:
    """K limit orders per parent, in the order of the offsets; `action` is the position of an offset."""
    repeated = parents.iloc[np.repeat(np.arange(len(parents)), len(offsets_bps))].reset_index(drop=True)
    action = np.tile(np.arange(len(offsets_bps)), len(parents))
    return offset_orders(repeated.assign(action=action), market, np.array(offsets_bps)[action])


def replay_candidates(market: Market, parents: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """Every candidate order of every state, replayed: (n K, ...), what `replay_orders` returns; no rewards."""
    return _replay(market, candidate_orders(parents, market, parameters.policy.offsets_bps), parameters)


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
    market: Market, parents: pd.DataFrame, outcomes: pd.DataFrame, decisions: pd.DataFrame, parameters: Parameters
) -> pd.DataFrame:
    """Each parent order of the test split executed by each strategy: the rows of `orders.parquet`.

    `market` takes at once; `twap` and `vwap` take in slices; `join_best` is post-only at the best quote of its side;
    `best_fixed` is the best candidate of the training split, `oracle` the best of each state; then every policy of
    `decisions` (columns order_id, policy, seed, offset_bps), of several training seeds the first.

    Returns
    -------
    (n strategies, ...) with `ORDERS_COLUMNS` and the mark-outs

    Raises
    ------
    DataError
        If a policy decided not all of the test orders, or nothing belongs to the training or the test split.
    """
    parents = parents[parents["split"] == "test"].reset_index(drop=True)
    if parents.empty:
        raise DataError("no order belongs to the test split: lengthen the span or lower split.train")
    ids = parents["order_id"]
    offsets = {"best_fixed": pd.Series(best_fixed_offset(outcomes), index=ids), "oracle": oracle_offsets(outcomes)}
    offsets |= policy_offsets(decisions)
    best = market.top_at(parents["decision_ns"].to_numpy())
    joined = np.where(parents["side"] > 0, best.bid_price, best.ask_price)
    whole = {
        "market": parents.assign(offset_bps=np.nan, limit_price=np.nan, post_only=False),
        "join_best": parents.assign(offset_bps=np.nan, limit_price=joined, post_only=True),
    }
    for strategy, offset_bps in offsets.items():
        if missing := sorted(set(ids) - set(offset_bps.index)):
            raise DataError(f"{strategy} decided {len(missing)} of the test orders not at all: run 07_inference again")
        whole[strategy] = offset_orders(parents, market, offset_bps[ids])
    slices = parameters.execution.twap_slices
    even = np.full((len(parents), slices), 1 / slices)
    weights = {"twap": even, "vwap": _vwap_weights(market, parents, outcomes, slices)}
    orders = pd.concat([orders.assign(strategy=name) for name, orders in whole.items()], ignore_index=True)
    sliced = [_replay_slices(market, parents, each, parameters).assign(strategy=name) for name, each in weights.items()]
    markouts = [f"markout_{horizon:g}s_bps" for horizon in parameters.orders.markouts_s]
    replayed = pd.concat([_replay(market, orders, parameters), *sliced], ignore_index=True)
    return replayed[[*ORDERS_COLUMNS, *markouts]]


def sensitivity(
    market: Market, parents: pd.DataFrame, outcomes: pd.DataFrame, decisions: pd.DataFrame, parameters: Parameters
) -> pd.DataFrame:
    """The backtest once more under other assumptions, one at a time; what was decided stays.

    Returns
    -------
    Mean total cost in bps: a row per assumption (`as it is` first), a column per strategy
    """
    execution = parameters.execution
    latency = execution.latency
    other_latency = "thesis" if latency.preset == "measured" else "measured"
    none, slow = (_changed(latency, preset="empirical", policy_ms=0.0, empirical_ms=[ms]) for ms in (0.0, 2000.0))
    assumptions = {
        "as it is": execution,
        f"{other_latency} latency": _changed(execution, latency=_changed(latency, preset=other_latency)),
        "no latency": _changed(execution, latency=none),
        "2 s latency": _changed(execution, latency=slow),
        "risk-averse queue": _changed(execution, queue="risk_averse"),
        "no queue": _changed(execution, queue="touch"),
        "highest fee tier": _changed(execution, fees=_changed(execution.fees, tier=HIGHEST_TIER)),
    }
    rows = {}
    for name, changed in assumptions.items():
        orders = backtest(market, parents, outcomes, decisions, _changed(parameters, execution=changed))
        rows[name] = orders.groupby("strategy", sort=False)["total_cost_bps"].mean()
    return pd.DataFrame(rows).T.rename_axis("assumption")


def policy_offsets(decisions: pd.DataFrame) -> dict[str, pd.Series]:
    """The offset (bps) of each order by `order_id`, for each policy; of several training seeds the first."""
    first = decisions[decisions["seed"] == decisions.groupby("policy")["seed"].transform("min")]
    each = first.set_index("order_id").groupby("policy", sort=False)["offset_bps"]
    return {str(policy): offset_bps for policy, offset_bps in each}


def _changed(section: Section, **values: object) -> Section:
    return section.model_copy(update=values)


def _replay(market: Market, orders: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    return replay_orders(market, orders, parameters.execution, parameters.seed, parameters.orders.markouts_s)


def _slice_ns(parents: pd.DataFrame, slices: int) -> NDArray[np.int64]:
    """(n, slices + 1) bounds of the slices of each horizon."""
    share = np.arange(slices + 1) / slices
    since = np.rint(parents["horizon_s"].to_numpy(float)[:, None] * share * SECOND).astype(np.int64)
    bounds: NDArray[np.int64] = parents["decision_ns"].to_numpy(np.int64)[:, None] + since
    return bounds


def _vwap_weights(market: Market, parents: pd.DataFrame, outcomes: pd.DataFrame, slices: int) -> Floats:
    """(n, slices) shares of volume that the training split's profile by second of the minute puts into each slice."""
    train_ns = outcomes.loc[outcomes["split"] == "train", "decision_ns"]
    trades = market.trades
    known = (trades.local_ns >= train_ns.min()) & (trades.local_ns <= train_ns.max())
    second = trades.local_ns[known] // SECOND % _MINUTE
    profile = np.bincount(second, weights=trades.size[known], minlength=_MINUTE) + np.finfo(float).tiny
    minute_ns = _MINUTE * SECOND
    curve = np.append(0.0, np.cumsum(profile / profile.sum()))
    bounds = _slice_ns(parents, slices)
    volume = bounds // minute_ns + np.interp(bounds % minute_ns / SECOND, np.arange(_MINUTE + 1), curve)
    weights = np.diff(volume, axis=1)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _slice_sizes(parents: pd.DataFrame, weights: Floats, sz_decimals: int) -> Floats:
    """(n, slices) valid sizes that add up to the parent's; what is too small for an order waits for the next slice."""
    size, mid = parents["size"].to_numpy(float), parents["arrival_mid"].to_numpy(float)
    due = snap_size(np.cumsum(weights, axis=1) * size[:, None], sz_decimals)
    due[:, -1] = size
    sizes, sent = np.zeros_like(due), np.zeros(len(due))
    for column in range(due.shape[1]):
        enough = ((due[:, column] - sent) * mid >= _LEAST_USD) & ((size - due[:, column]) * mid >= _LEAST_USD)
        enough |= column == due.shape[1] - 1
        sizes[:, column] = np.where(enough, due[:, column] - sent, 0.0)
        sent += sizes[:, column]
    return np.round(sizes, sz_decimals)


def _replay_slices(market: Market, parents: pd.DataFrame, weights: Floats, parameters: Parameters) -> pd.DataFrame:
    """Children that take at once, summed into one row per parent and measured against the parent's arrival mid."""
    sizes, bounds = _slice_sizes(parents, weights, market.sz_decimals), _slice_ns(parents, weights.shape[1])
    row, column = np.nonzero(sizes)
    child_size, decision_ns = sizes[row, column], bounds[row, column]
    fixed = {"horizon_s": (bounds[row, -1] - decision_ns) / SECOND, "limit_price": np.nan, "post_only": False}
    children = parents.iloc[row].reset_index(drop=True).assign(decision_ns=decision_ns, size=child_size, **fixed)
    replayed = _replay(market, children, parameters)
    size, side, mid = (parents[name].to_numpy(float) for name in ("size", "side", "arrival_mid"))

    def mean(values: pd.Series) -> Floats:
        return np.asarray(np.bincount(row, weights=values * child_size, minlength=len(parents)) / size)

    exec_price = mean(replayed["exec_price"])
    arrival_mid = replayed["arrival_mid"]
    fees_bps, funding_bps, spread_bps = (
        mean(replayed[name] * arrival_mid) / mid for name in ("fees_bps", "funding_bps", "spread_bps")
    )
    shortfall_bps = side * (exec_price / mid - 1) * 1e4
    markouts = {name: mean(replayed[name]) for name in map(str, replayed) if name.startswith("markout_")}
    return parents.assign(
        offset_bps=np.nan,
        target_price=mid,
        exec_price=exec_price,
        filled_passive=1.0,
        maker_share=0.0,
        filled=True,
        fill_ns=replayed.groupby(row)["fill_ns"].max().to_numpy(),
        status="filled",
        fees_bps=fees_bps,
        funding_bps=funding_bps,
        implementation_shortfall_bps=shortfall_bps,
        total_cost_bps=shortfall_bps + fees_bps + funding_bps,
        slippage_bps=shortfall_bps,
        spread_bps=spread_bps,
        timing_bps=shortfall_bps - spread_bps,
        opportunity_bps=0.0,
        queue_ahead=np.nan,
        latency_ms=mean(replayed["latency_ms"]),
        **markouts,
    )
