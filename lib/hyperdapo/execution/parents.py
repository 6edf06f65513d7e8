"""Parent orders: what is to be executed, from which every strategy starts; the candidate orders of the policy; and the
simplest ways to choose among them, in hindsight or once for all."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.execution.orders import uniform
from hyperdapo.execution.simulator import replay_orders
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, Floats, Integers, Mask, Nanoseconds
from hyperdapo.market.grid import move_price, snap_price, snap_size
from hyperdapo.params import Parameters
from hyperdapo.sections import Orders
from hyperdapo.times import SECOND_NS

STATE = ("volatility_5m_bps", "bid_ask_spread_bps", "book_imbalance")
"""Features that a parent remembers, for strategies and regimes."""
AT_ANY_PRICE = ("take", "wait")
"""Kinds of action without a limit price: taken whole, now or at the deadline."""
LATENCY_S = 10.0  # what latencies may add to an order's life: a parent needs so much uninterrupted market more


def life_s(orders: Orders) -> float:
    """How long after a decision the market must be known: horizon, latencies and mark-outs."""
    return orders.longest_horizon_s + max(orders.markouts_s) + LATENCY_S


def starts(features: pd.DataFrame, orders: Orders) -> pd.DataFrame:
    """Rows of `features.parquet` in which a parent order is to start: those of the test `orders.test_every_s` apart.

    Raises DataError as `evenly_spaced`.
    """
    chosen = evenly_spaced(features, orders.most)
    if orders.test_every_s is None:
        return chosen
    slot = chosen["decision_ns"] // round(orders.test_every_s * SECOND_NS)
    return chosen[(chosen["split"] != "test") | ~slot.duplicated()]


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
    (m, 12): what `wanted` gives.
    """
    usable = features["warm"].to_numpy(bool) & (features["split"] != "").to_numpy()
    parents = wanted(features, parameters, market)
    decision_ns = parents["decision_ns"].to_numpy(np.int64)
    usable &= ~market.interrupted(decision_ns, decision_ns + life_ns(parents, parameters.orders))
    return parents[usable].reset_index(drop=True)


def parents_in_parts(
    folder: Path, features: pd.DataFrame, parameters: Parameters
) -> Iterator[tuple[Market, pd.DataFrame]]:
    """The market of a folder part by part, and the parent orders that start in each; raises as `Market.load`."""
    chosen = starts(features, parameters.orders)
    for part, market in Market.in_parts(folder, after_s=life_s(parameters.orders)):
        states = chosen[chosen["decision_ns"].between(*part, inclusive="left")]
        if len(states):
            yield market, parent_orders(states, parameters, market)


def life_ns(parents: pd.DataFrame, orders: Orders) -> Nanoseconds:
    """(n,) how long after its decision the market of each order must be known: `life_s` of its own horizon."""
    known_s = parents["horizon_s"].to_numpy(float) + max(orders.markouts_s) + LATENCY_S
    return np.asarray(np.rint(known_s * SECOND_NS), dtype=np.int64)


def wanted(features: pd.DataFrame, parameters: Parameters, market: Market) -> pd.DataFrame:
    """The order that is to be executed from each row of features on, whatever the market does then.

    Returns
    -------
    (n, 12): order_id (the row's index in `features`), asset, objective, decision_ns, side, size (coin), horizon_s,
    arrival_mid (USD), split, and of the features `STATE`. Side and objective depend only on the seed, the asset and
    `decision_ns`.
    """
    rules = parameters.orders
    decision_ns = features["decision_ns"].to_numpy(np.int64)
    mood = uniform(parameters.seed, f"{market.asset} objective", decision_ns)
    objective = np.array(rules.objectives, dtype=object)[(mood * len(rules.objectives)).astype(int)]
    horizon_s = np.array([rules.rules[name].horizon_s for name in objective], dtype=float)
    buys = uniform(parameters.seed, f"{market.asset} side", decision_ns) < rules.buy_share
    return pd.DataFrame(
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


def action_orders(
    parents: pd.DataFrame, market: Market, actions: Sequence[Action], chosen: ArrayLike = 0
) -> pd.DataFrame:
    """Each parent as the one order of its action.

    Parameters
    ----------
    chosen : (n,) or one position in `actions`

    Returns
    -------
    `parents` with action, kind (its word), offset_bps (of the limit price from the arrival mid, negative is passive),
    limit_price (NaN: at any price), post_only, and waits (nothing is sent before the deadline)
    """
    chosen = np.broadcast_to(np.asarray(chosen, dtype=np.int64), len(parents))
    side, mid = parents["side"].to_numpy(float), parents["arrival_mid"].to_numpy(float)
    limit_price = np.full(len(parents), np.nan)
    for place, action in enumerate(actions):
        rows = np.flatnonzero(chosen == place)
        if rows.size and action.kind not in AT_ANY_PRICE:
            limit_price[rows] = _limit_price(action, market, parents.iloc[rows])
    kinds = np.array([action.kind for action in actions])[chosen]
    return parents.assign(
        action=chosen,
        kind=np.array([str(action) for action in actions], dtype=object)[chosen],
        offset_bps=side * (limit_price / mid - 1) * BPS,
        limit_price=limit_price,
        post_only=~np.isin(kinds, (*AT_ANY_PRICE, "bps")),
        waits=kinds == "wait",
    )


def _limit_price(action: Action, market: Market, parents: pd.DataFrame) -> Floats:
    """(n,) USD, on the grid; counted from the touch as known at the decision, unless it is in bps from the mid."""
    side, mid = parents["side"].to_numpy(float), parents["arrival_mid"].to_numpy(float)
    best = market.top_at(parents["decision_ns"].to_numpy())
    return limit_price(action, side, mid, best.bid_price, best.ask_price, market.sz_decimals)


def limit_price(action: Action, side: Floats, mid: Floats, bid: Floats, ask: Floats, sz_decimals: int) -> Floats:
    """The same by side (+1, -1), arrival mid and best quotes (n,) of each order; NaN: at any price."""
    if action.kind in AT_ANY_PRICE:
        return np.full(len(side), np.nan)
    if action.kind == "bps":
        return snap_price(mid * (1 + side * action.amount / BPS), side, sz_decimals)
    ticks = action.amount if action.kind == "improve" else -action.amount
    own, other = np.where(side > 0, bid, ask), np.where(side > 0, ask, bid)
    middle = action.kind == "mid"
    price = snap_price(mid, side, sz_decimals) if middle else move_price(own, side * ticks, sz_decimals)
    return _before(price, other, side, sz_decimals)


def touch(market: Market, orders: pd.DataFrame) -> Floats:
    """The best quote of each order's side (n,), as known at its decision, USD."""
    best = market.top_at(orders["decision_ns"].to_numpy())
    return np.where(orders["side"] > 0, best.bid_price, best.ask_price)


def before_the_other_side(market: Market, orders: pd.DataFrame, price: Floats) -> Floats:
    """Prices (n,) a tick before the other side's best at most, as known at the decision: post-only orders rest."""
    best, side = market.top_at(orders["decision_ns"].to_numpy()), orders["side"].to_numpy(float)
    return _before(price, np.where(side > 0, best.ask_price, best.bid_price), side, market.sz_decimals)


def _before(price: Floats, other: Floats, side: Floats, sz_decimals: int) -> Floats:
    """Prices (n,) a tick before the best of the other side (n,) at most."""
    nearest = move_price(other, -side, sz_decimals)
    return np.where(side * (price - nearest) > 0, nearest, price)


class Candidates(NamedTuple):
    """The K orders of n parents by themselves.

    `limit_price` (n, K) USD, NaN at any price; `post_only` and `waits` (K,); `distinct` (n, K), False for one that an
    earlier action is too.
    """

    limit_price: Floats
    post_only: Mask
    waits: Mask
    distinct: Mask

    @staticmethod
    def of(
        actions: Sequence[Action], side: Floats, mid: Floats, bid: Floats, ask: Floats, sz_decimals: int
    ) -> "Candidates":
        """What `candidate_orders` says of them, by side, arrival mid and best quotes (n,): for a few orders at once."""
        prices = [limit_price(action, side, mid, bid, ask, sz_decimals) for action in actions]
        post_only = np.array([action.kind not in (*AT_ANY_PRICE, "bps") for action in actions])
        waits = np.array([action.kind == "wait" for action in actions])
        price = np.column_stack([np.nan_to_num(each, nan=-1.0) for each in prices])
        like = (post_only[:, None] == post_only) & (waits[:, None] == waits)
        same = (price[:, :, None] == price[:, None, :]) & np.tril(like, -1)
        return Candidates(np.column_stack(prices), post_only, waits, ~same.any(axis=2))


def candidate_orders(parents: pd.DataFrame, market: Market, actions: Sequence[Action]) -> pd.DataFrame:
    """K orders per parent, in the order of the actions.

    `distinct` is False for an order that an earlier action of its parent is too, as `mid` and `join` are where the
    spread is one tick: a choice counts it once.
    """
    repeated = parents.iloc[np.repeat(np.arange(len(parents)), len(actions))].reset_index(drop=True)
    orders = action_orders(repeated, market, actions, np.tile(np.arange(len(actions)), len(parents)))
    return orders.assign(distinct=~orders.duplicated(["order_id", "limit_price", "post_only", "waits"]))


def replay_candidates(market: Market, parents: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """Every candidate order of every state, replayed: (n K, ...), what `replay_orders` returns; no rewards."""
    return replay(market, candidate_orders(parents, market, parameters.policy.actions), parameters)


def replay(market: Market, orders: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """`replay_orders` under the parameters of a run."""
    return replay_orders(market, orders, parameters.execution, parameters.seed, parameters.orders.markouts_s)


class Threshold(NamedTuple):
    """An action (its position) where the book leans with the order by no more than `bound`, another where by more."""

    bound: float
    below: int
    above: int

    def chosen(self, lean: Floats) -> Integers:
        """(n,) actions by how far the book leans with each order (n,), -1 to 1."""
        return np.where(lean > self.bound, self.above, self.below)


def lean(orders: pd.DataFrame) -> Floats:
    """(n,) the imbalance of the book relative to the side of each order: above 0 the price is pushed away from it."""
    leans: Floats = orders["side"].to_numpy(float) * orders["book_imbalance"].to_numpy(float)
    return leans


def best_fixed_action(outcomes: pd.DataFrame) -> int:
    """The action whose mean total cost over the training split is least.

    Raises
    ------
    DataError
        If no outcome belongs to the training split.
    """
    return int(_training_costs(outcomes).mean().to_numpy().argmin())


def best_threshold(outcomes: pd.DataFrame) -> Threshold:
    """The bound of the book's lean and the two actions whose mean total cost over the training split is least.

    Raises as `best_fixed_action`.
    """
    costs = _training_costs(outcomes)
    states = outcomes.drop_duplicates("order_id").set_index("order_id").loc[costs.index]
    order = np.argsort(lean(states), kind="stable")
    leans = np.concatenate([[-np.inf], lean(states)[order], [np.inf]])
    below = np.vstack([np.zeros(costs.shape[1]), np.cumsum(costs.to_numpy()[order], axis=0)])
    above = below[-1] - below
    total = np.where(np.diff(leans) > 0, below.min(axis=1) + above.min(axis=1), np.inf)  # equal leans stay together
    cut = int(total.argmin())
    return Threshold(float(leans[cut]), int(below[cut].argmin()), int(above[cut].argmin()))


def oracle_actions(outcomes: pd.DataFrame) -> pd.Series:
    """The action that turned out cheapest in each state, by `order_id`: a ceiling, not a strategy."""
    cheapest = outcomes.loc[outcomes.groupby("order_id")["total_cost_bps"].idxmin()]
    return cheapest.set_index("order_id")["action"]


def _training_costs(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Total cost (bps): a row for each state of the training split, a column for each action."""
    train = outcomes[outcomes["split"] == "train"]
    if train.empty:
        raise DataError("no outcome belongs to the training split: lengthen the span or raise split.train")
    return train.pivot_table(index="order_id", columns="action", values="total_cost_bps")
