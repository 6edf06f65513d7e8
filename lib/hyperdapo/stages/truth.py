"""Orders whose fate is known from every order by its id, hidden from the feed that is replayed: level 3 as the truth.

A stream of every order by its id (`feed.level3`) gives what a recorder would have seen, and what became of each order.
One order at a time is taken out of the published book for as long as it lived, since an order does not see itself, and
is replayed from the rest: by each queue model, until its owner's cancel.

Of an order that was filled nobody knows when it would have been cancelled. Were it given a long life, its length alone
would tell that it was filled. So its cancel is drawn from those of the orders that stood as deep and were still there
(Kaplan and Meier's estimator, fills as censored).

Most real orders are gone in a second and join short queues, so they say little of the queue. Orders are added,
therefore, that wait as long as ours: the ids tell when the turn of an order would have come that stands behind all
others (`queues.join_behind`).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from statsmodels.duration.survfunc import SurvfuncRight

from hyperdapo.errors import MissingInputError
from hyperdapo.evidence.metrics import Draws, ratio_bootstrap
from hyperdapo.execution import validation
from hyperdapo.execution.history import Executions
from hyperdapo.execution.orders import uniform
from hyperdapo.execution.queue_fit import fit_queue, observe_makers
from hyperdapo.feed import level3, queues
from hyperdapo.feed.order_flow import ADD, CANCEL, EXECUTE, OrderFlow
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Integers
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, snap_size
from hyperdapo.params import Parameters
from hyperdapo.times import DAY_NS, SECOND_NS, Span, block_of

DEEPEST = 2  # prices before an order; what stands deeper is one group with it
_FURTHEST = 10  # prices before an order beyond which none is judged
_ADDED = 6000
_ROUNDS, _FEWEST = 30, 30  # books with orders taken out, and the orders for which one is worth its while
_MARGIN_NS = 3 * SECOND_NS  # of data that a replay wants after an order's end


def judge_level3(folder: Path, asset: str, parameters: Parameters) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Orders of every level-3 file of a folder beside their replays, and how cancels split the queues in truth.

    The queue is fitted to what is published, its exponent alone: no order's fate is used.

    Returns
    -------
    Rows of `validation.replay_by_queue_model`, with `asset` that of the file, `kind` (real, added), `depth` (prices
    before the order's own when it came, at most 2), `level` (coin at its price then), `exponent` (fitted; NaN: evenly)
    and `report` (what was left out or mended, by cause); and those of `cancel_splits`

    Raises
    ------
    MissingInputError
        If the folder holds no level-3 file.
    DataError
        If a file is damaged or cannot be rebuilt.
    """
    files = sorted({path for pattern in level3.FILES for path in folder.rglob(pattern)})
    if not files:
        raise MissingInputError(f"truth.level3: {folder} holds no level-3 file; names are {', '.join(level3.FILES)}")
    sz_decimals = parameters.contracts[asset].sz_decimals
    flows = [queues.rebuild(level3.read(file, asset, sz_decimals)) for file in files]
    judged = [judge(flow, parameters) for flow in flows]
    splits = [cancel_splits(flow, parameters) for flow in flows]
    return pd.concat(judged, ignore_index=True), pd.concat(splits, ignore_index=True)


def cancel_splits(flow: OrderFlow, parameters: Parameters) -> pd.DataFrame:
    """How the cancels of a rebuilt flow split its queues, as the ids tell: the exponent of `execution.events.Queue`.

    With the share x of a queue before the order that leaves it, and n the exponent, the mean of x is n / (1 + n).

    Returns
    -------
    A row per depth (prices before the queue's): asset, depth, cancels, exponent, ci_low, ci_high (over blocks of time)
    """
    events = flow.events
    others = events["level"] - events["lots"]
    left = events[(events["kind"] == CANCEL) & events["known"] & ~events["stale"] & (others > 0)]
    share, rows = (left["ahead"] / others[left.index]).clip(upper=1.0), []
    for depth in range(DEEPEST + 1):
        here = left["depth"].clip(upper=DEEPEST) == depth
        blocks = (
            pd.DataFrame({"x": share, "rest": 1 - share})[here]
            .groupby(block_of(left["ns"][here], parameters.laws.block_s))
            .sum()
        )
        draws = Draws(parameters.laws.confidence)
        split = ratio_bootstrap(blocks["x"].to_numpy(), blocks["rest"].to_numpy(), draws, parameters.seed)
        rows.append((flow.asset, depth, int(here.sum()), split.value, split.low, split.high))
    return pd.DataFrame(rows, columns=["asset", "depth", "cancels", "exponent", "ci_low", "ci_high"])


def judge(flow: OrderFlow, parameters: Parameters) -> pd.DataFrame:
    """The orders of one rebuilt flow, see `judge_level3`."""
    rebuilt, law = in_the_days_of(flow, parameters.source.start_ns), parameters.laws
    published, last_ns = queues.publish(rebuilt), int(rebuilt.events["ns"].iloc[-1])
    queue = fit_queue(observe_makers(published, 0, last_ns), law.block_s, law.confidence, parameters.seed)
    exponent = 1.0 if np.isnan(queue.exponent) else queue.exponent
    rules = {
        "queue": "power",
        "queue_exponent": exponent,
        "crossing_fills": True,
    }  # here no order is refused for meeting ours
    execution = parameters.execution.model_copy(update=rules)
    span = int(published.top.local_ns[0]) + SECOND_NS, last_ns - _horizon_ns(parameters) - _MARGIN_NS

    def replayed(market: Market, made: Executions, kind: str) -> pd.DataFrame:
        return validation.replay_by_queue_model(market, allowed(made, flow), execution).assign(kind=kind)

    compared = [replayed(published, add_orders(rebuilt, span, parameters), "added")]
    for orders in one_at_a_time(_to_judge(rebuilt, span, parameters)):
        market = queues.publish(rebuilt, hidden=orders["order_id"].to_numpy())
        compared.append(replayed(market, executions(rebuilt, orders), "real"))
    rows = pd.concat(compared, ignore_index=True)
    depth, report = rows["depth"].clip(upper=DEEPEST), str(dict(rebuilt.counted))
    rows = rows.assign(depth=depth, exponent=queue.exponent, report=report)
    order = rows["queue_model"].map({name: place for place, name in enumerate(rows["queue_model"].unique())})
    return rows.assign(place=order).sort_values(["kind", "place", "placed_ns"], ignore_index=True).drop(columns="place")


def add_orders(flow: OrderFlow, span: Span, parameters: Parameters) -> Executions:
    """Orders that nobody sent, at random instants of a span, at the end of the best queue or one or two behind it.

    They are as large as the orders of others in the median, wait for the longest horizon, and change nothing.
    """
    rng = np.random.default_rng([parameters.seed, 3])
    ns, side = np.sort(rng.integers(*span, _ADDED)), rng.choice(np.array([-1, 1]), _ADDED)
    events = flow.events
    size = float(events["lots"][events["kind"] == ADD].median()) * flow.lot
    depth = rng.integers(0, DEEPEST + 1, _ADDED)
    orders, fills = queues.join_behind(flow, ns, side, depth, size, ns + _horizon_ns(parameters))
    price = orders.set_index("order_id")["limit_price"].reindex(fills["order_id"]).to_numpy()
    done = fills.groupby("order_id")["size"].sum().reindex(orders["order_id"], fill_value=0.0).to_numpy()
    status = np.where(done > orders["size"] - flow.lot / 2, "filled", "canceled")
    fills = fills.assign(price=price, crossed=False, tid=np.arange(len(fills)))
    return Executions(orders.assign(status=status, post_only=True), fills)


def _to_judge(flow: OrderFlow, span: Span, parameters: Parameters) -> pd.DataFrame:
    """Orders that joined a queue near the best price within a span."""
    fates = with_patience(queues.fates(flow), _horizon_ns(parameters), parameters.seed)
    joined = (fates["level"] > 0) & (fates["depth"] < _FURTHEST)
    return fates[joined & fates["placed_ns"].between(*span, inclusive="left")]


def with_patience(fates: pd.DataFrame, horizon_ns: int, seed: int) -> pd.DataFrame:
    """The fates with `cancel_ns`: the owner's cancel, or `horizon_ns` after the order came, whichever is first.

    That of a filled order is drawn; the draw is the order's own.
    """
    life = (fates["ended_ns"] - fates["placed_ns"]).to_numpy()
    filled, patience = (fates["status"] == "filled").to_numpy(), np.minimum(life, horizon_ns)
    draws = uniform(seed, "patience", fates["order_id"].to_numpy(np.int64))
    for depth in range(DEEPEST + 1):
        here = (fates["depth"].clip(upper=DEEPEST) == depth).to_numpy()
        if (drawn := here & filled & (life < horizon_ns)).any():
            patience[drawn] = _drawn(
                patience[here], (here & ~filled & (life < horizon_ns))[here], life[drawn], draws[drawn]
            )
    return fates.assign(cancel_ns=fates["placed_ns"] + np.minimum(patience, horizon_ns))


def _drawn(lives: Integers, cancelled: np.ndarray, survived: Integers, draws: np.ndarray) -> Integers:
    """How long orders that had `survived` so long (m,) would have waited, by (n,) lives, some of them cancelled.

    Beyond the longest where the estimator knows no end.
    """
    estimate = SurvfuncRight(lives, cancelled.astype(int))
    alive = np.concatenate([[1.0], estimate.surv_prob])[np.searchsorted(estimate.surv_times, survived, side="right")]
    place = np.searchsorted(-estimate.surv_prob, -draws * alive, side="left")
    times = np.append(estimate.surv_times, np.iinfo(np.int64).max).astype(np.int64)
    return np.asarray(np.maximum(times[place], survived + 1))


def one_at_a_time(orders: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Rounds of orders of which none begins before the one before it has ended, really and in every replay.

    The next is the first to come: whether an order is judged depends on the past alone.
    """
    left = orders.sort_values("placed_ns", kind="stable", ignore_index=True)
    for _ in range(_ROUNDS):
        placed, ended = left["placed_ns"].to_numpy(), left[["ended_ns", "cancel_ns"]].max(axis=1).to_numpy()
        chosen, row = [], 0
        while row < len(left):
            chosen.append(row)
            row = int(np.searchsorted(placed, ended[row], side="right"))
        if len(chosen) < _FEWEST:
            return
        yield left.iloc[chosen].reset_index(drop=True)
        left = left.drop(index=chosen).reset_index(drop=True)


def executions(flow: OrderFlow, orders: pd.DataFrame) -> Executions:
    """Those of the orders, until each is judged."""
    events = flow.events[(flow.events["kind"] == EXECUTE) & flow.events["order_id"].isin(orders["order_id"])]
    cancel_ns = orders.set_index("order_id")["cancel_ns"].reindex(events["order_id"]).to_numpy()
    events = events[events["ns"].to_numpy() < cancel_ns]
    fills = pd.DataFrame(
        {
            "order_id": events["order_id"],
            "exchange_ns": events["ns"],
            "price": events["price"],
            "size": events["lots"] * flow.lot,
            "crossed": False,
            "tid": events.index,
        }
    )
    columns = ["order_id", "side", "limit_price", "size", "depth", "level", "placed_ns", "cancel_ns", "status"]
    return Executions(orders[columns].assign(post_only=True), fills)


def allowed(made: Executions, flow: OrderFlow) -> Executions:
    """Those that the simulator takes: sizes cut to its decimals, with their fills in proportion, and of 10 USD."""
    size = snap_size(made.orders["size"], flow.sz_decimals)
    part = pd.Series(size / made.orders["size"].to_numpy(), made.orders["order_id"].to_numpy())
    kept = size * made.orders["limit_price"] >= MINIMUM_NOTIONAL_USD
    fills = made.fills[made.fills["order_id"].isin(made.orders["order_id"][kept])]
    scaled = fills["size"] * part.reindex(fills["order_id"]).to_numpy()
    return Executions(made.orders.assign(size=size)[kept].reset_index(drop=True), fills.assign(size=scaled))


def in_the_days_of(flow: OrderFlow, start_ns: int) -> OrderFlow:
    """The flow moved by whole days to those of the run, whose fees it is charged: other exchanges have others."""
    move = (start_ns - int(flow.events["ns"].iloc[0])) // DAY_NS * DAY_NS
    return replace(flow, events=flow.events.assign(ns=flow.events["ns"] + move), gaps=flow.gaps + move)


def _horizon_ns(parameters: Parameters) -> int:
    return round(parameters.orders.longest_horizon_s * SECOND_NS)
