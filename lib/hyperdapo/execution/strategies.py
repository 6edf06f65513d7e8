"""The ways to execute a parent order (§3.5.2), all under the same latency, fees, grid and minimum size."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel

from hyperdapo.errors import DataError
from hyperdapo.execution.costs import HIGHEST_TIER
from hyperdapo.execution.events import DUST
from hyperdapo.execution.parents import (
    STATE,
    Threshold,
    action_orders,
    before_the_other_side,
    best_fixed_action,
    best_threshold,
    lean,
    oracle_actions,
    replay,
    touch,
)
from hyperdapo.execution.simulator import lives
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, Floats, Integers, select
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, snap_price, snap_size
from hyperdapo.params import Parameters
from hyperdapo.sections import Action, Execution
from hyperdapo.times import SECOND_NS, Span

STRATEGIES = {
    "market": "takes at once",
    "twap": "takes in equal slices",
    "vwap": "takes in slices of the usual volume",
    "twap_post_only": "the slices of twap as post-only orders at the best quote",
    "vwap_post_only": "the slices of vwap as post-only orders at the best quote",
    "join_best": "post-only at the best quote, once",
    "touch_requoted": "post-only at the best quote, quoted anew",
    "mid_peg": "post-only at the mid, quoted anew",
    "avellaneda_stoikov": "post-only at the price of Avellaneda and Stoikov (2008), quoted anew",
    "sign_imbalance": "takes where the book leans with the order, joins the best quote where not",
    "sign_momentum_10s": "takes where the price has moved away from the order in 10 s, joins where not",
    "sign_momentum_60s": "the same by 60 s",
    "threshold": "one action below a bound of the book's lean, one above it, cheapest on the training split",
    "best_fixed": "the action that was cheapest on the training split",
    "oracle": "the action that turns out cheapest",
}
"""Beside the policies of 07."""

ORDERS_COLUMNS = (
    *("order_id", "asset", "strategy", "objective", "decision_ns", "side", "size", "horizon_s", "arrival_mid"),
    *("kind", "offset_bps", "target_price", "exec_price", "filled_passive", "maker_share", "filled", "fill_ns"),
    *("status", "fees_bps", "funding_bps", "implementation_shortfall_bps", "total_cost_bps", "slippage_bps"),
    *("spread_bps", "timing_bps", "opportunity_bps"),
    *("queue_ahead", "latency_ms", "split", *STATE),
)
"""Of `orders.parquet`; the mark-outs `markout_{h}s_bps` follow."""
_LEAST_USD = 1.5 * MINIMUM_NOTIONAL_USD  # of a child order: the price may fall between decision and child
_SHALLOWEST_BPS = 0.01  # prints that hug the mid: k stays finite
_DECIMALS = 10  # of columns in bps: equal orders have equal costs, however they were summed
_TAKE_JOIN = (Action("take"), Action("join"))
_MOMENTA_S = (10, 60)
LOOKS_BACK_S = max(_MOMENTA_S)
"""How long before a decision strategies ask for the market."""
_MINUTE = 60  # the volume profile of VWAP is by second of the minute

Quote = Callable[[pd.DataFrame, Floats, Floats], Floats]
"""(children with `decision_ns` and the columns of their parents, seconds left, share of the parent left) -> price."""
Model = TypeVar("Model", bound=BaseModel)


class Trained(NamedTuple):
    """What strategies know from the training split.

    The best fixed action (its position), the best threshold of the book's lean, the share of volume by second of the
    minute (60,), and how far from the mid prints are on average (bps): the decay of intensity with distance, k of
    Avellaneda and Stoikov, is its inverse.
    """

    best_fixed: int
    threshold: Threshold
    volume_profile: Floats
    print_depth_bps: float


def train(parts: Iterable[tuple[Span, Market]], outcomes: pd.DataFrame) -> Trained:
    """Learn from the training split: its outcomes, and the prints of its span in the parts of a market.

    Raises
    ------
    DataError
        If no outcome belongs to the training split.
    """
    chosen = best_fixed_action(outcomes), best_threshold(outcomes)
    ns = outcomes.loc[outcomes["split"] == "train", "decision_ns"]
    volume, depth_bps, prints = np.full(_MINUTE, np.finfo(float).tiny), 0.0, 0
    for (from_ns, to_ns), market in parts:
        inside = np.searchsorted(market.trades.local_ns, [max(from_ns, ns.min()), min(to_ns, ns.max() + 1)])
        trades = select(market.trades, slice(*inside))
        volume += np.bincount(trades.local_ns // SECOND_NS % _MINUTE, weights=trades.size, minlength=_MINUTE)
        depth_bps += float(np.nansum(np.abs(trades.price / market.mid_at(trades.local_ns) - 1)) * BPS)
        prints += len(trades.price)
    return Trained(*chosen, volume / volume.sum(), depth_bps / max(prints, 1))


def policy_actions(decisions: pd.DataFrame) -> dict[str, pd.Series]:
    """The action of each order by `order_id`, for each policy; of several training seeds the first."""
    first = decisions[decisions["seed"] == decisions.groupby("policy")["seed"].transform("min")]
    each = first.set_index("order_id").groupby("policy", sort=False)["action"]
    return {str(policy): action for policy, action in each}


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
        orders.assign(strategy=name)
        for name, orders in _whole(market, parents, trained, outcomes, decisions, parameters.policy.actions).items()
    ]
    replayed = replay(market, pd.concat(whole, ignore_index=True), parameters)
    sliced = [rows.assign(strategy=name) for name, rows in children.items()]
    markouts = [f"markout_{horizon:g}s_bps" for horizon in parameters.orders.markouts_s]
    together = pd.concat([replayed, *sliced], ignore_index=True)[[*ORDERS_COLUMNS, *markouts]]
    together = together.round({name: _DECIMALS for name in together if str(name).endswith("_bps")})
    ranks = {name: rank for rank, name in enumerate([*STRATEGIES, *policy_actions(decisions)])}
    return together.sort_values("strategy", key=lambda names: names.map(ranks), kind="stable", ignore_index=True)


def sensitivity(
    market: Market,
    parents: pd.DataFrame,
    trained: Trained,
    outcomes: pd.DataFrame,
    decisions: pd.DataFrame,
    parameters: Parameters,
) -> pd.DataFrame:
    """The backtest once more under other assumptions, one at a time; what was decided stays.

    Returns
    -------
    `of` (latency, queue, fees), `assumption`, `strategy`, `orders` (count) and `total_cost_bps` (sum over them)
    """
    rows = []
    for (of, assumption), execution in assumptions(parameters.execution).items():
        orders = backtest(market, parents, trained, outcomes, decisions, _changed(parameters, execution=execution))
        sums = orders.groupby("strategy", sort=False)["total_cost_bps"].agg(["size", "sum"]).reset_index()
        sums = sums.set_axis(["strategy", "orders", "total_cost_bps"], axis=1)
        rows.append(sums.assign(of=of, assumption=assumption))
    return pd.concat(rows, ignore_index=True)[["of", "assumption", "strategy", "orders", "total_cost_bps"]]


def assumptions(execution: Execution) -> dict[tuple[str, str], Execution]:
    """Latencies of 0 to 2 s and the two presets, queue models and fee tiers, each with all else as it is."""
    latency = execution.latency
    constant = {
        f"{seconds:g} s": _changed(latency, preset="empirical", policy_ms=0.0, empirical_ms=[seconds * 1000])
        for seconds in (0.0, 0.2, 0.5, 1.0, 2.0)
    }
    latencies = constant | {preset: _changed(latency, preset=preset) for preset in ("thesis", "measured")}
    queues: dict[str, dict[str, Any]] = {
        "fitted": {},
        "evenly": {"queue": "power", "queue_exponent": 1.0},
        "risk averse": {"queue": "risk_averse"},
        "no queue": {"queue": "touch"},
    }
    tiers = {f"tier {tier}": _changed(execution.fees, tier=tier) for tier in (0, 3, HIGHEST_TIER)}
    return (
        {("latency", name): _changed(execution, latency=each) for name, each in latencies.items()}
        | {("queue", name): _changed(execution, **each) for name, each in queues.items()}
        | {("fees", name): _changed(execution, fees=each) for name, each in tiers.items()}
    )


def mean_costs(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Mean total cost (bps) over the parts of a market: a row per assumption, a column per strategy."""
    sums = pd.concat(parts).groupby(["of", "assumption", "strategy"], sort=False)[["orders", "total_cost_bps"]].sum()
    means = sums.assign(mean=sums["total_cost_bps"] / sums["orders"])
    return means.pivot_table(index=["of", "assumption"], columns="strategy", values="mean", sort=False)


def _changed(section: Model, **values: object) -> Model:
    return section.model_copy(update=values)


def _whole(
    market: Market,
    parents: pd.DataFrame,
    trained: Trained,
    outcomes: pd.DataFrame,
    decisions: pd.DataFrame,
    actions: Sequence[Action],
) -> dict[str, pd.DataFrame]:
    """Strategies of one order."""
    ids, side = parents["order_id"], parents["side"].to_numpy(float)
    pushes = {"sign_imbalance": lean(parents)}
    pushes |= {f"sign_momentum_{seconds}s": side * _momentum(market, parents, seconds) for seconds in _MOMENTA_S}
    runs_away = {name: np.where(push > 0, 0, 1) for name, push in pushes.items()}
    always = {"market": 0, "join_best": 1}
    whole = {name: action_orders(parents, market, _TAKE_JOIN, rows) for name, rows in (always | runs_away).items()}
    chosen = {
        "best_fixed": pd.Series(trained.best_fixed, index=ids),
        "threshold": pd.Series(trained.threshold.chosen(lean(parents)), index=ids),
        "oracle": oracle_actions(outcomes[outcomes["order_id"].isin(ids)]),
    }
    for strategy, action in (chosen | policy_actions(decisions)).items():
        if missing := sorted(set(ids) - set(action.index)):
            raise DataError(f"{strategy} decided {len(missing)} of the orders not at all: run 07_inference again")
        whole[strategy] = action_orders(parents, market, actions, action[ids])
    return whole


def _momentum(market: Market, orders: pd.DataFrame, seconds: int) -> Floats:
    """(n,) how much the mid has risen in so many seconds before each decision, as known then; a share of it."""
    ns = orders["decision_ns"].to_numpy(np.int64)
    return np.asarray(market.mid_at(ns) / market.mid_at(ns - seconds * SECOND_NS) - 1)


def _by_children(
    market: Market, parents: pd.DataFrame, trained: Trained, parameters: Parameters
) -> dict[str, pd.DataFrame]:
    """Strategies of several orders."""
    execution, slices = parameters.execution, parameters.execution.twap_slices
    even = np.full((len(parents), slices), 1 / slices)
    usual = volume_weights(trained.volume_profile, parents, slices)

    def at_touch(children: pd.DataFrame, seconds_left: Floats, share_left: Floats) -> Floats:
        return touch(market, children)

    def at_mid(children: pd.DataFrame, seconds_left: Floats, share_left: Floats) -> Floats:
        side, mid = children["side"].to_numpy(float), market.mid_at(children["decision_ns"].to_numpy())
        return before_the_other_side(market, children, snap_price(mid, side, market.sz_decimals))

    def at_reservation(children: pd.DataFrame, seconds_left: Floats, share_left: Floats) -> Floats:
        side, mid = children["side"].to_numpy(float), market.mid_at(children["decision_ns"].to_numpy())
        distance = reservation_distance_bps(
            children["volatility_5m_bps"].to_numpy(float),
            seconds_left,
            share_left,
            execution.risk_aversion,
            1 / max(trained.print_depth_bps, _SHALLOWEST_BPS),
        )
        quoted = snap_price(mid * (1 - side * distance / BPS), side, market.sz_decimals)
        return before_the_other_side(market, children, quoted)

    return {
        "twap": take_slices(market, parents, even, parameters),
        "vwap": take_slices(market, parents, usual, parameters),
        "twap_post_only": quote_slices(market, parents, even, at_touch, parameters),
        "vwap_post_only": quote_slices(market, parents, usual, at_touch, parameters),
        "touch_requoted": requote(market, parents, at_touch, parameters),
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


def volume_weights(profile: Floats, parents: pd.DataFrame, slices: int) -> Floats:
    """(n, slices) shares of volume that a profile by second of the minute (60,) puts into each slice of a horizon."""
    minute_ns, curve = _MINUTE * SECOND_NS, np.append(0.0, np.cumsum(profile))
    bounds = slice_ns(parents, slices)
    volume = bounds // minute_ns + np.interp(bounds % minute_ns / SECOND_NS, np.arange(_MINUTE + 1), curve)
    weights = np.diff(volume, axis=1)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def take_slices(market: Market, parents: pd.DataFrame, weights: Floats, parameters: Parameters) -> pd.DataFrame:
    """Children that take at once, of these shares (n, slices) of their parents, evenly spaced over the horizon."""
    sizes, bounds = slice_sizes(parents, weights, market.sz_decimals), slice_ns(parents, weights.shape[1])
    row, column = np.nonzero(sizes)
    child_size, decision_ns = sizes[row, column], bounds[row, column]
    fixed = {"horizon_s": (bounds[row, -1] - decision_ns) / SECOND_NS, "limit_price": np.nan, "post_only": False}
    children = parents.iloc[row].reset_index(drop=True).assign(decision_ns=decision_ns, size=child_size, **fixed)
    return _together(parents, replay(market, children.assign(completes=True), parameters), row)


def quote_slices(
    market: Market, parents: pd.DataFrame, weights: Floats, quote: Quote, parameters: Parameters
) -> pd.DataFrame:
    """The same shares as post-only orders, each until the next comes and takes over what it has left."""
    starts = slice_ns(parents, weights.shape[1])[:, :-1]
    return _quoted(
        market, parents, starts, np.cumsum(slice_sizes(parents, weights, market.sz_decimals), axis=1), quote, parameters
    )


def requote(market: Market, parents: pd.DataFrame, quote: Quote, parameters: Parameters) -> pd.DataFrame:
    """All that is left as one post-only order, whose price is chosen anew every `execution.requote_s`."""
    every_s = parameters.execution.requote_s
    rounds = int(np.ceil(parents["horizon_s"].max() / every_s)) if len(parents) else 0
    starts = parents["decision_ns"].to_numpy()[:, None] + np.rint(np.arange(rounds) * every_s * SECOND_NS).astype(
        np.int64
    )
    due = np.repeat(parents["size"].to_numpy(float)[:, None], rounds, axis=1)
    return _quoted(market, parents, starts, due, quote, parameters)


def slice_ns(parents: pd.DataFrame, slices: int) -> Integers:
    """(n, slices + 1) bounds of the slices of each horizon."""
    share = np.arange(slices + 1) / slices
    since = np.rint(parents["horizon_s"].to_numpy(float)[:, None] * share * SECOND_NS).astype(np.int64)
    bounds: Integers = parents["decision_ns"].to_numpy(np.int64)[:, None] + since
    return bounds


def slice_sizes(parents: pd.DataFrame, weights: Floats, sz_decimals: int) -> Floats:
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


def _quoted(
    market: Market,
    parents: pd.DataFrame,
    starts: Integers,
    due: Floats,
    quote: Quote,
    parameters: Parameters,
) -> pd.DataFrame:
    """Children that start at (n, rounds) and by then are to have offered `due` coin in all."""
    latency, seed = parameters.execution.latency, parameters.seed
    unpriced = parents.assign(limit_price=0.0)
    life = lives(market.asset, unpriced, latency, seed)
    arrives = [lives(market.asset, unpriced.assign(decision_ns=ns), latency, seed).arrival_ns for ns in starts.T]
    arrives_ns = np.maximum.accumulate(np.array(arrives), axis=0).T
    end_ns = parents["decision_ns"].to_numpy() + np.rint(parents["horizon_s"].to_numpy() * SECOND_NS).astype(np.int64)
    live = starts < end_ns[:, None]
    last = live.sum(axis=1) - 1
    size, done = parents["size"].to_numpy(float), np.zeros(len(parents))
    rounds, rows = [], []
    for column in range(starts.shape[1]):
        row = np.flatnonzero(live[:, column] & (due[:, column] - done > DUST))
        if not row.size:
            continue
        final, left = last[row] == column, due[row, column] - done[row]
        until_ns = np.where(final, life.cancel_ns[row], arrives_ns[row, min(column + 1, starts.shape[1] - 1)])
        child = parents.iloc[row].reset_index(drop=True).assign(decision_ns=starts[row, column], size=left)
        seconds = (end_ns[row] - starts[row, column]) / SECOND_NS
        priced = child.assign(limit_price=quote(child, seconds, (size[row] - done[row]) / size[row]), post_only=True)
        times = {"horizon_s": seconds, "arrives_ns": arrives_ns[row, column], "until_ns": until_ns, "completes": final}
        replayed = replay(market, priced.assign(**times), parameters)
        done[row] += left * replayed["filled_passive"].to_numpy()
        rounds.append(replayed)
        rows.append(row)
    return _together(parents, pd.concat(rounds, ignore_index=True), np.concatenate(rows))


def _together(parents: pd.DataFrame, children: pd.DataFrame, row: Integers) -> pd.DataFrame:
    """One row per parent: its children summed, and measured against its arrival mid."""
    size, side, mid = (parents[name].to_numpy(float) for name in ("size", "side", "arrival_mid"))
    child_size, child_mid, passive = (
        children[name].to_numpy(float) for name in ("size", "arrival_mid", "filled_passive")
    )
    completed = np.where(children["completes"], child_size * (1 - passive), 0.0)
    traded, worth = child_size * passive + completed, size * mid

    def total(values: Floats) -> Floats:
        return np.asarray(np.bincount(row, weights=values, minlength=len(parents)), dtype=float)

    def mean(name: str) -> Floats:
        return np.asarray(total(np.where(traded > 0, children[name] * traded, 0.0)) / size, dtype=float)

    def bps(name: str) -> Floats:
        return np.asarray(total(children[name].to_numpy(float) * child_size * child_mid) / worth, dtype=float)

    exec_price, fees_bps, funding_bps, spread_bps = (
        mean("exec_price"),
        bps("fees_bps"),
        bps("funding_bps"),
        bps("spread_bps"),
    )
    shortfall_bps = side * (exec_price / mid - 1) * BPS
    moved_usd = children["side"].to_numpy() * completed * (child_mid - mid[row])
    opportunity_bps = bps("opportunity_bps") + total(moved_usd) / worth * BPS
    filled = total(completed) <= DUST
    return parents.assign(
        kind="",
        offset_bps=np.nan,
        target_price=mid,
        exec_price=exec_price,
        filled_passive=total(child_size * passive) / size,
        maker_share=total(child_size * children["maker_share"].to_numpy()) / size,
        filled=filled,
        fill_ns=children.groupby(row)["fill_ns"].max().to_numpy(),
        status=np.where(filled, "filled", "completed"),
        fees_bps=fees_bps,
        funding_bps=funding_bps,
        implementation_shortfall_bps=shortfall_bps,
        total_cost_bps=shortfall_bps + fees_bps + funding_bps,
        slippage_bps=shortfall_bps,
        spread_bps=spread_bps,
        timing_bps=shortfall_bps - spread_bps - opportunity_bps,
        opportunity_bps=opportunity_bps,
        queue_ahead=children.groupby(row)["queue_ahead"].first().to_numpy(),
        latency_ms=total(children["latency_ms"].to_numpy() * child_size) / total(child_size),
        **{name: mean(name) for name in map(str, children) if name.startswith("markout_")},
    )
