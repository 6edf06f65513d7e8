"""The ways to execute a parent order (§3.5.2), all under the same latency, fees, grid and minimum size."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel

from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.execution.children import Known, decide_again, quote_slices, requote, slice_ns, take_slices
from hyperdapo.execution.costs import HIGHEST_TIER, fee_rates
from hyperdapo.execution.orders import OPTIONAL_COLUMNS, ORDER_COLUMNS
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
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, Floats, Integers, select
from hyperdapo.market.features import imbalance_at
from hyperdapo.market.grid import snap_price
from hyperdapo.params import Parameters
from hyperdapo.sections import Execution
from hyperdapo.times import SECOND_NS, Span

STRATEGIES = {
    "market": "takes at once",
    "twap": "takes in equal slices",
    "vwap": "takes in step with the volume: what has printed, and what is usual for the rest",
    "twap_post_only": "the slices of twap as post-only orders at the best quote",
    "vwap_post_only": "the slices of vwap as post-only orders at the best quote",
    "join_best": "post-only at the best quote, once",
    "touch_requoted": "post-only at the best quote, quoted anew",
    "requote_unless_against": "touch_requoted, but takes the rest once the book leans with the order by more than 0.8",
    "threshold_requoted": "an action anew, the rest taken beyond a bound of the lean, cheapest on the training split",
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

_PARENT = (
    *("order_id", "asset", "objective", "decision_ns", "side", "size", "horizon_s", "arrival_mid", "split"),
    *STATE,
)
ORDERS_COLUMNS = (
    *("order_id", "asset", "strategy", "seed", "objective", "decision_ns", "side", "size", "horizon_s", "arrival_mid"),
    *("kind", "offset_bps", "target_price", "exec_price", "filled_passive", "maker_share"),
    *("filled_queue", "filled_through", "filled_crossed", "filled", "fill_ns", "status", "rejections"),
    *("fees_bps", "funding_bps", "implementation_shortfall_bps", "total_cost_bps", "slippage_bps"),
    *("spread_bps", "timing_bps", "opportunity_bps", "cost_all_ahead_bps", "cost_all_behind_bps"),
    *("queue_ahead", "latency_ms", "split", *STATE),
)
"""Of `orders.parquet`; the mark-outs `markout_{h}s_bps`, `maker_markout_{h}s_bps`, `taker_markout_{h}s_bps` follow."""

BOUNDS: dict[str, dict[str, Any]] = {
    "all ahead": {"queue": "power", "queue_exponent": 0.0, "crossing_fills": True},
    "all behind": {"queue": "risk_averse", "crossing_fills": False},
}
"""The most and the least favourable rules: where all that is cancelled stood, and whether a quote of the other side
fills us that comes to our price. A claim has to hold under both."""

AS_TIMED = "as timed"
"""The assumption that each decision takes one of the times that 07 measured, in place of `latency.policy_ms`."""

UNTRAINED = -1
"""The seed of what no training made."""

LOOKS_BACK_S = 60
"""How long before a decision strategies ask for the market."""
_MOMENTA_S = (10, LOOKS_BACK_S)
_TAKE, _JOIN = _TAKE_JOIN = (Action("take"), Action("join"))
_BOUNDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, np.inf)  # of the lean, tried on the training split; inf never takes
_SHALLOWEST_BPS = 0.01  # prints that hug the mid: k stays finite
_DECIMALS = 10  # of columns in bps: equal orders have equal costs, however they were summed
_QUARTER_S, _QUARTERS = 900, 96  # the usual volume is by quarter of an hour of the day
_ENOUGH_DAYS = 5  # on which a quarter of an hour must have been seen to have a volume of its own

Model = TypeVar("Model", bound=BaseModel)
Run = tuple[str, int]
"""A strategy, and the seed of its training."""

Play = Callable[[Market, pd.DataFrame, Parameters], pd.DataFrame]
"""Executes parent orders by a policy that decides on them again: rows as of `children.decide_again`."""


class Requoting(NamedTuple):
    """An action anew at every decision, until the book leans with the order by more than `bound`: the rest is taken."""

    action: Action
    bound: float

    @staticmethod
    def cheapest(tried: pd.DataFrame, actions: Sequence[Action]) -> "Requoting":
        """The one that cost least of what `try_requoting` tried, with one of the actions."""
        best = tried.loc[tried["total_cost_bps"].idxmin()]
        return Requoting(next(action for action in actions if str(action) == best["kind"]), float(best["bound"]))


_UNLESS_AGAINST = Requoting(_JOIN, 0.8)


class Trained(NamedTuple):
    """What strategies know from the training split.

    The best fixed action (its position), the best threshold of the book's lean, the best way to quote anew, the usual
    volume by quarter of an hour of the day (96,) in coin per second, and how far from the mid prints are on average
    (bps): the decay of intensity with distance, k of Avellaneda and Stoikov, is its inverse.
    """

    best_fixed: int
    threshold: Threshold
    requoting: Requoting
    usual_volume: Floats
    print_depth_bps: float


def try_requoting(parts: Iterable[tuple[Span, Market]], outcomes: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """What the orders of the training split cost by every action anew, with every bound of the book's lean.

    Parameters
    ----------
    parts : of the training split's market, each with what its orders live through (`parents.life_s`)

    Returns
    -------
    A row per rule: `kind` (of the action), `bound`, `orders`, `total_cost_bps` (mean)
    """
    parents = outcomes.loc[outcomes["split"] == "train", [*_PARENT]].drop_duplicates("order_id")
    actions = [action for action in parameters.policy.actions if action != _TAKE]
    rules = [Requoting(action, bound) for action in actions for bound in _BOUNDS]
    costs, orders = np.zeros(len(rules)), 0
    for (from_ns, to_ns), market in parts:
        here = parents[parents["decision_ns"].between(from_ns, to_ns, inclusive="left")].reset_index(drop=True)
        if len(here):
            costs += [requoted(market, here, rule, parameters)["total_cost_bps"].sum() for rule in rules]
            orders += len(here)
    table = pd.DataFrame(rules).astype({"action": str}).rename(columns={"action": "kind"})
    return table.assign(orders=orders, total_cost_bps=costs / max(orders, 1))


def train(parts: Iterable[tuple[Span, Market]], outcomes: pd.DataFrame, requoting: Requoting) -> Trained:
    """Learn from the training split: its outcomes, and the prints of its span in the parts of a market.

    Parameters
    ----------
    requoting : `Requoting.cheapest` of what was tried there

    Raises
    ------
    DataError
        If no outcome belongs to the training split.
    """
    chosen = best_fixed_action(outcomes), best_threshold(outcomes), requoting
    ns = outcomes.loc[outcomes["split"] == "train", "decision_ns"]
    volumes, depth_bps, prints = [], 0.0, 0
    first_ns, last_ns = int(ns.min()), int(ns.max())
    for (from_ns, to_ns), market in parts:
        inside = np.searchsorted(market.trades.local_ns, [max(from_ns, first_ns), min(to_ns, last_ns + 1)])
        trades = select(market.trades, slice(*inside))
        volumes.append(pd.Series(trades.size).groupby(trades.local_ns // (_QUARTER_S * SECOND_NS)).sum())
        depth_bps += float(np.nansum(np.abs(trades.price / market.mid_at(trades.local_ns) - 1)) * BPS)
        prints += len(trades.price)
    return Trained(*chosen, usual_volume(pd.concat(volumes), first_ns, last_ns), depth_bps / max(prints, 1))


def usual_volume(volumes: pd.Series, from_ns: int, to_ns: int) -> Floats:
    """Coin per second (96,) by quarter of an hour of the day, of a span; its mean where too few days show the quarter.

    `volumes` are coin by quarter of an hour since 1970; quarters without prints may be missing.
    """
    quarter = np.arange(from_ns // (_QUARTER_S * SECOND_NS), to_ns // (_QUARTER_S * SECOND_NS) + 1)
    bounds = np.append(quarter, quarter[-1] + 1) * _QUARTER_S * SECOND_NS
    seconds = np.diff(np.clip(bounds, from_ns, max(to_ns, from_ns + 1))) / SECOND_NS
    coin = volumes.groupby(level=0).sum().reindex(quarter, fill_value=0.0).to_numpy()
    of_day = quarter % _QUARTERS
    days, whole = np.bincount(of_day, minlength=_QUARTERS), coin.sum() / seconds.sum()
    usual = np.bincount(of_day, coin, _QUARTERS) / np.maximum(np.bincount(of_day, seconds, _QUARTERS), 1.0)
    return np.asarray(np.maximum(np.where(days >= _ENOUGH_DAYS, usual, whole), np.finfo(float).tiny))


def policy_actions(decisions: pd.DataFrame) -> dict[Run, pd.Series]:
    """The action of each order by `order_id`, for each policy and training seed."""
    each = decisions.set_index("order_id").groupby(["policy", "seed"], sort=False)["action"]
    return {(str(policy), int(seed)): action for (policy, seed), action in each}


def backtest(
    market: Market,
    parents: pd.DataFrame,
    trained: Trained,
    outcomes: pd.DataFrame,
    decisions: pd.DataFrame,
    parameters: Parameters,
    again: Mapping[str, Play] = MappingProxyType({}),
) -> pd.DataFrame:
    """Each parent order executed by each of `STRATEGIES`, then by every policy and seed of `decisions`, and by `again`.

    Parameters
    ----------
    parents : (n, ...) of `parent_orders`; the orders of a part of the market give the rows that they give in the whole
    outcomes, decisions : those of the parents at least

    Returns
    -------
    (n runs, ...) with `ORDERS_COLUMNS` and the mark-outs

    Raises
    ------
    DataError
        If a policy decided not all of the orders, or there is none.
    """
    if parents.empty:
        raise DataError("there is no order to execute: lengthen the span or lower split.train")
    parents = parents.reset_index(drop=True)
    whole = _whole(market, parents, trained, outcomes, decisions, parameters.policy.actions)
    orders = _executed(market, parents, whole, trained, again, parameters)
    for name, queue in BOUNDS.items():
        costs = _costs(market, parents, whole, trained, again, parameters, _changed(parameters.execution, **queue))
        orders[_bound(name)] = costs
    markouts = [name for name in orders if "markout_" in str(name)]
    orders = orders[[*ORDERS_COLUMNS, *markouts]]
    return orders.round({name: _DECIMALS for name in orders if str(name).endswith("_bps")})


def sensitivity(
    market: Market,
    parents: pd.DataFrame,
    trained: Trained,
    outcomes: pd.DataFrame,
    decisions: pd.DataFrame,
    parameters: Parameters,
    orders: pd.DataFrame,
    again: Mapping[str, Play] = MappingProxyType({}),
    timed_ms: Sequence[float] | Floats = (),
) -> pd.DataFrame:
    """The backtest once more under other assumptions, one at a time; what was decided stays.

    Parameters
    ----------
    orders : what `backtest` has made of the same: other fees and the bounds of the queue are read from it
    timed_ms : how long decisions took where they were timed; charged under `AS_TIMED`

    Returns
    -------
    `of` (latency, queue, fees), `assumption`, `strategy`, `orders` (count) and `total_cost_bps` (sum over them)
    """
    parents = parents.reset_index(drop=True)
    whole = _whole(market, parents, trained, outcomes, decisions, parameters.policy.actions)
    base, rows = parameters.execution, []
    for (of, assumption), execution in assumptions(base, timed_ms).items():
        if execution == base:
            costs = orders["total_cost_bps"]
        elif assumption in BOUNDS:
            costs = orders[_bound(assumption)]
        elif of == "fees":
            costs = _at_tier(orders, base.fees.tier, execution.fees.tier)
        else:
            costs = _costs(market, parents, whole, trained, again, parameters, execution)
        sums = costs.groupby(orders["strategy"], sort=False).agg(["size", "sum"]).reset_index()
        sums = sums.set_axis(["strategy", "orders", "total_cost_bps"], axis=1)
        rows.append(sums.assign(of=of, assumption=assumption))
    return pd.concat(rows, ignore_index=True)[["of", "assumption", "strategy", "orders", "total_cost_bps"]]


def _bound(name: str) -> str:
    """The column of the total cost under one of `BOUNDS`."""
    return f"cost_{name.replace(' ', '_')}_bps"


def _at_tier(orders: pd.DataFrame, tier: int, other: int) -> pd.Series:
    """Total costs (bps) with the fees of another tier: they are linear in what was made and what was taken."""
    (taker, maker), rates = fee_rates(orders["decision_ns"], tier), fee_rates(orders["decision_ns"], other)
    notional = orders["exec_price"] / orders["arrival_mid"]
    made = (taker * notional - orders["fees_bps"]) / (taker - maker)
    fees: pd.Series = (notional - made) * rates[0] + made * rates[1]
    return orders["total_cost_bps"] - orders["fees_bps"] + fees


def assumptions(execution: Execution, timed_ms: Sequence[float] | Floats = ()) -> dict[tuple[str, str], Execution]:
    """Latencies of 0 to 2 s, the two presets and decision times as measured, queue models and fee tiers, each with all
    else as it is."""
    latency = execution.latency
    constant = {
        f"{seconds:g} s": _changed(latency, preset="empirical", policy_ms=0.0, empirical_ms=[seconds * 1000])
        for seconds in (0.0, 0.2, 0.5, 1.0, 2.0)
    }
    latencies = constant | {preset: _changed(latency, preset=preset) for preset in ("thesis", "measured")}
    if len(timed_ms):
        latencies[AS_TIMED] = _changed(latency, policy_ms=list(timed_ms))
    queues: dict[str, dict[str, Any]] = {
        "fitted": {},
        "evenly": {"queue": "power", "queue_exponent": 1.0},
        "quotes fill": {"crossing_fills": True},
        **BOUNDS,
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


def _executed(
    market: Market,
    parents: pd.DataFrame,
    whole: Mapping[Run, pd.DataFrame],
    trained: Trained,
    again: Mapping[str, Play],
    parameters: Parameters,
) -> pd.DataFrame:
    """Rows of `orders.parquet` without the bounds, run by run; what several send alike is replayed once."""
    orders = pd.concat(whole.values(), ignore_index=True)
    alike = [name for name in (*ORDER_COLUMNS, *OPTIONAL_COLUMNS) if name in orders]
    group = orders.groupby(alike, dropna=False, sort=False).ngroup().to_numpy()
    replayed = replay(market, orders.loc[np.unique(group, return_index=True)[1], alike], parameters)
    columns = [name for name in replayed if name not in orders]
    rows = pd.concat([orders, replayed[columns].iloc[group].reset_index(drop=True)], axis=1)
    each = dict(zip(whole, np.split(np.arange(len(rows)), len(whole)), strict=True))
    parts = {run: rows.iloc[place] for run, place in each.items()}
    renewed = _by_children(market, parents, trained, parameters)
    renewed |= {name: play(market, parents, parameters) for name, play in again.items()}
    parts |= {(name, UNTRAINED): executed for name, executed in renewed.items()}
    rules = [(name, UNTRAINED) for name in STRATEGIES]
    ordered = [*(run for run in rules if run in parts), *(run for run in parts if run not in rules)]
    return pd.concat([parts[run].assign(strategy=run[0], seed=run[1]) for run in ordered], ignore_index=True)


def _costs(
    market: Market,
    parents: pd.DataFrame,
    whole: Mapping[Run, pd.DataFrame],
    trained: Trained,
    again: Mapping[str, Play],
    parameters: Parameters,
    execution: Execution,
) -> pd.Series:
    """Total cost (bps) of each of their rows under other assumptions."""
    orders = _changed(parameters.orders, markouts_s=[])
    changed = _changed(parameters, execution=execution, orders=orders)
    costs: pd.Series = _executed(market, parents, whole, trained, again, changed)["total_cost_bps"]
    return costs


def _whole(
    market: Market,
    parents: pd.DataFrame,
    trained: Trained,
    outcomes: pd.DataFrame,
    decisions: pd.DataFrame,
    actions: Sequence[Action],
) -> dict[Run, pd.DataFrame]:
    """Strategies of one order."""
    ids, side = parents["order_id"], parents["side"].to_numpy(float)
    pushes = {"sign_imbalance": lean(parents)}
    pushes |= {f"sign_momentum_{seconds}s": side * _momentum(market, parents, seconds) for seconds in _MOMENTA_S}
    runs_away = {name: np.where(push > 0, 0, 1) for name, push in pushes.items()}
    always = {"market": 0, "join_best": 1}
    rules = (always | runs_away).items()
    whole = {(name, UNTRAINED): action_orders(parents, market, _TAKE_JOIN, rows) for name, rows in rules}
    chosen = {
        ("best_fixed", UNTRAINED): pd.Series(trained.best_fixed, index=ids),
        ("threshold", UNTRAINED): pd.Series(trained.threshold.chosen(lean(parents)), index=ids),
        ("oracle", UNTRAINED): oracle_actions(outcomes[outcomes["order_id"].isin(ids)]),
    }
    for run, action in (chosen | policy_actions(decisions)).items():
        if missing := sorted(set(ids) - set(action.index)):
            raise DataError(f"{run[0]} decided {len(missing)} of the orders not at all: run 07_inference again")
        whole[run] = action_orders(parents, market, actions, action[ids])
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
    usual = volume_weights(market, parents, slices, trained.usual_volume)

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
        "requote_unless_against": requoted(market, parents, _UNLESS_AGAINST, parameters),
        "threshold_requoted": requoted(market, parents, trained.requoting, parameters),
        "mid_peg": requote(market, parents, at_mid, parameters),
        "avellaneda_stoikov": requote(market, parents, at_reservation, parameters),
    }


def requoted(market: Market, parents: pd.DataFrame, rule: Requoting, parameters: Parameters) -> pd.DataFrame:
    """Parents executed by such a rule, every `execution.requote_s`: rows as of `children.decide_again`."""

    def choose(children: pd.DataFrame, known: Known) -> Integers:
        leans = children["side"].to_numpy(float) * imbalance_at(market, children["decision_ns"].to_numpy(np.int64))
        return np.where(leans > rule.bound, 0, 1)

    return decide_again(market, parents, choose, (_TAKE, rule.action), parameters.execution.requote_s, parameters)


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


def volume_weights(market: Market, parents: pd.DataFrame, slices: int, usual: Floats) -> Floats:
    """(n, slices) shares of a parent that follow the volume: of each slice, by what is known when it begins.

    By the end of a slice that share of the parent is to be traded which the volume of the horizon until then has of
    all: what has printed, and what is usual (`usual_volume`, (96,)) for the slice, of that and what is usual for the
    rest.
    """
    bounds, trades = slice_ns(parents, slices), market.trades
    printed = np.append(0.0, np.cumsum(trades.size))[np.searchsorted(trades.local_ns, bounds, side="right")]
    so_far = printed[:, :-1] - printed[:, :1]
    quarter = _QUARTER_S * SECOND_NS
    until = np.append(0.0, np.cumsum(usual)) * _QUARTER_S
    day, of_day = np.divmod(bounds, _QUARTERS * quarter)
    usually = day * until[-1] + np.interp(of_day / quarter, np.arange(_QUARTERS + 1), until)
    expected = np.diff(usually, axis=1)
    rest = np.cumsum(expected[:, ::-1], axis=1)[:, ::-1]
    due = np.maximum.accumulate((so_far + expected) / (so_far + rest), axis=1)
    return np.diff(due, axis=1, prepend=0.0)
