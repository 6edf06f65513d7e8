"""A parent order executed by several: slices that take, quotes that are renewed, decisions that are taken again
(eq. 2.7), and the parent's costs as their sum.

Children live in one book. A quote whose price stays the same keeps its place in the queue, and so does one of which too
little is left for a new order (the exchange refuses what is under 10 USD); one that grows joins anew. What a child has
left goes over to the next; the trader knows of a fill, and of his place in the queue, what the newest message that he
has received shows. What is left at the deadline is taken, however little.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.actions import Action
from hyperdapo.errors import OrderError
from hyperdapo.execution.costs import Life
from hyperdapo.execution.events import DUST, PLACE, Arrivals, Fills, made, stream
from hyperdapo.execution.orders import check_ends
from hyperdapo.execution.parents import action_orders
from hyperdapo.execution.simulator import admit, fill, lives, outcome
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, Floats, Integers, Mask
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, snap_size
from hyperdapo.params import Parameters
from hyperdapo.times import SECOND_NS

Quote = Callable[[pd.DataFrame, Floats, Floats], Floats]
"""(children with `decision_ns`, `size` and the numbers of their parents, seconds left, share of the parent left; size
and share as far as the trader knows) -> price."""

_LEAST_USD = 1.5 * MINIMUM_NOTIONAL_USD  # of a slice: the price may fall between decision and child
_SUMMED = (
    *("filled_passive", "maker_share", "filled_queue", "filled_through", "filled_crossed", "fees_bps", "funding_bps"),
    *("implementation_shortfall_bps", "spread_bps", "timing_bps", "opportunity_bps"),
)


class Known(NamedTuple):
    """What a trader knows of m of his orders when he decides on them again.

    `row` (m,) are their places among the parents, `number` counts the decisions from 0; of each (m,) the seconds until
    its deadline, the share of it that is left, the price at which that rests (USD; NaN: nowhere), and the coin before
    it there.
    """

    row: Integers
    number: int
    seconds_left: Floats
    share_left: Floats
    limit: Floats
    ahead: Floats


Choose = Callable[[pd.DataFrame, Known], Integers]
"""(children as for `Quote`, what is known of them) -> positions (m,) in the actions; one beyond the last keeps."""


class _Sent(NamedTuple):
    """m orders: limit prices (USD; NaN: taken at once), whether they are post-only, whether nothing is sent now."""

    price: Floats
    post_only: Mask
    waits: Mask


class _Children(NamedTuple):
    """m children in the order in which they were sent; `row` (m,) are their parents."""

    row: Integers
    arrivals: Arrivals
    life: Life
    fills: Fills


class _Schedule(NamedTuple):
    """When each of (n, rounds) children starts, arrives and gives way to the next, and what is not seen yet when it
    starts; of each parent (n,) how many come in time, less one, and its life with an order in the book, or without."""

    starts_ns: Integers
    arrives_ns: Integers
    until_ns: Integers
    unseen: Integers
    live: Mask
    ends: Integers
    life: Life
    waiting: Life


class _Quotes(NamedTuple):
    """What n parents have in the book, updated from round to round: the last quote of each, and what all have done."""

    limit: Floats
    place: Floats  # (n, PLACE): nothing remains where nothing stands
    done: Floats  # coin
    seen_done: Floats  # of it, what the trader knows when he decides again
    seen_limit: Floats
    seen_ahead: Floats


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


def take_slices(market: Market, parents: pd.DataFrame, weights: Floats, parameters: Parameters) -> pd.DataFrame:
    """Children that take at once, of these shares (n, slices) of their parents, evenly spaced over the horizon."""
    sizes, bounds = slice_sizes(parents, weights, market.sz_decimals), slice_ns(parents, weights.shape[1])
    row, column = np.nonzero(sizes)
    decision_ns = bounds[row, column]
    orders = {name: values[row] for name, values in _numbers(parents).items()}
    orders |= {"decision_ns": decision_ns, "size": sizes[row, column], "limit_price": np.full(len(row), np.nan)}
    orders |= {"horizon_s": (bounds[row, -1] - decision_ns) / SECOND_NS, "post_only": np.zeros(len(row), dtype=bool)}
    life = lives(market.asset, orders, parameters.execution.latency, parameters.seed)
    check_ends(market, pd.DataFrame(orders), life.completion_ns)
    arrivals = admit(market, orders, life, parameters.execution)
    children = _Children(row, arrivals, life, fill(market, arrivals, parameters.execution))
    return _together(market, parents, children, parameters)


def quote_slices(
    market: Market, parents: pd.DataFrame, weights: Floats, quote: Quote, parameters: Parameters
) -> pd.DataFrame:
    """The same shares as post-only orders, each until the next comes and takes over what it has left."""
    starts = slice_ns(parents, weights.shape[1])[:, :-1]
    due = np.cumsum(slice_sizes(parents, weights, market.sz_decimals), axis=1)
    return _renewed(market, parents, starts, due, _quoting(quote), parameters)


def requote(market: Market, parents: pd.DataFrame, quote: Quote, parameters: Parameters) -> pd.DataFrame:
    """All that is left as one post-only order, whose price is chosen anew every `execution.requote_s`."""
    starts = decision_times(parents, parameters.execution.requote_s)
    return _renewed(market, parents, starts, _all(parents, starts), _quoting(quote), parameters)


def decide_again(
    market: Market,
    parents: pd.DataFrame,
    choose: Choose,
    actions: Sequence[Action],
    every_s: float,
    parameters: Parameters,
) -> pd.DataFrame:
    """All that is left as one order on which is decided every so many seconds: one of the actions, or keep it as it is.

    What an action means is counted from the market as it is known then; a move to the price at which the order rests
    already keeps its place. Where the order is filled while the trader thinks nothing is sent; a post-only order that
    would take when it arrives is refused, and comes back at the best quote of its own side. Decided once, an order is
    what `simulator.replay_orders` makes of it.

    Raises
    ------
    OrderError
        If an order is to be kept that does not rest, or cannot be completed within uninterrupted data.
    """
    starts = decision_times(parents, every_s)

    def decide(orders: pd.DataFrame, known: Known) -> _Sent:
        chosen = choose(orders, known)
        keeps = chosen == len(actions)
        if (lost := keeps & np.isnan(known.limit)).any():
            order_id = orders["order_id"].to_numpy()[lost][0]
            raise OrderError(
                f"order {order_id} cannot be kept at decision {known.number}: it does not rest in the book"
            )
        mid = market.mid_at(orders["decision_ns"].to_numpy())
        moved = action_orders(orders.assign(arrival_mid=mid), market, actions, np.where(keeps, 0, chosen))
        price = np.where(keeps, known.limit, moved["limit_price"].to_numpy(float))
        return _Sent(price, keeps | moved["post_only"].to_numpy(bool), ~keeps & moved["waits"].to_numpy(bool))

    return _renewed(market, parents, starts, _all(parents, starts), decide, parameters)


def decision_times(parents: pd.DataFrame, every_s: float) -> Integers:
    """(n, rounds) ns: the decision of each parent, and every so many seconds after it as long as the longest lasts."""
    rounds = int(np.ceil(parents["horizon_s"].max() / every_s)) if len(parents) else 0
    since = np.rint(np.arange(rounds) * every_s * SECOND_NS).astype(np.int64)
    times: Integers = parents["decision_ns"].to_numpy(np.int64)[:, None] + since
    return times


def _all(parents: pd.DataFrame, starts: Integers) -> Floats:
    return np.repeat(parents["size"].to_numpy(float)[:, None], starts.shape[1], axis=1)


def _quoting(quote: Quote) -> Callable[[pd.DataFrame, Known], _Sent]:
    def decide(orders: pd.DataFrame, known: Known) -> _Sent:
        price, never = quote(orders, known.seconds_left, known.share_left), np.zeros(len(orders), dtype=bool)
        return _Sent(price, ~never, never)

    return decide


def _renewed(
    market: Market,
    parents: pd.DataFrame,
    starts: Integers,
    due: Floats,
    decide: Callable[[pd.DataFrame, Known], _Sent],
    parameters: Parameters,
) -> pd.DataFrame:
    """Children that start at (n, rounds) and by then are to have offered `due` coin in all."""
    numbers, size = _numbers(parents), parents["size"].to_numpy(float)
    times = _schedule(market, numbers, starts, parameters)
    check_ends(market, parents.assign(limit_price=np.nan, post_only=True), times.life.completion_ns)
    standing, rounds = _nothing(len(parents)), list[_Children]()
    for column in range(starts.shape[1]):
        left = np.where(times.ends == column, size, due[:, column]) - standing.done
        row = np.flatnonzero(times.live[:, column] & (left > DUST))
        if row.size:
            orders = {name: values[row] for name, values in numbers.items()}
            orders |= {"decision_ns": starts[row, column], "size": left[row]}
            seconds_left = (times.life.expiry_ns[row] - starts[row, column]) / SECOND_NS
            share_left = 1 - standing.seen_done[row] / size[row]
            known = Known(row, column, seconds_left, share_left, standing.seen_limit[row], standing.seen_ahead[row])
            asked = orders | {"size": left[row] + standing.done[row] - standing.seen_done[row]}
            sent = decide(pd.DataFrame(asked), known)
            rounds.append(_lived(market, orders, sent, times, standing, row, column, parameters))
            _remember(standing, rounds[-1])
    return _together(market, parents, _concatenated(rounds), parameters)


def _schedule(market: Market, numbers: dict[str, NDArray[Any]], starts: Integers, parameters: Parameters) -> _Schedule:
    """Children arrive in the order of their rounds."""
    latency, rounds = parameters.execution.latency, starts.shape[1]
    life, waiting = (
        lives(market.asset, numbers | {"limit_price": np.ones(len(starts)), "waits": waits}, latency, parameters.seed)
        for waits in (np.zeros(len(starts), dtype=bool), np.ones(len(starts), dtype=bool))
    )
    each = {name: np.repeat(numbers[name], rounds) for name in ("order_id", "horizon_s", "side")}
    each |= {"decision_ns": starts.ravel(), "limit_price": np.ones(starts.size)}
    arrival_ns = lives(market.asset, each, latency, parameters.seed).arrival_ns.reshape(starts.shape)
    arrives_ns = np.maximum.accumulate(arrival_ns, axis=1)
    seen_ns = market.top_at(starts.ravel()).exchange_ns.reshape(starts.shape)
    live = (arrives_ns < life.cancel_ns[:, None]) & (starts < life.expiry_ns[:, None])
    live[:, 0] = True  # who comes too late for any is completed all the same
    until_ns = np.append(arrives_ns[:, 1:], arrives_ns[:, -1:], axis=1)
    unseen = np.searchsorted(stream(market).ns, seen_ns, side="right")
    return _Schedule(starts, arrives_ns, until_ns, unseen, live, live.sum(axis=1) - 1, life, waiting)


def _lived(
    market: Market,
    orders: dict[str, NDArray[Any]],
    sent: _Sent,
    times: _Schedule,
    standing: _Quotes,
    row: Integers,
    column: int,
    parameters: Parameters,
) -> _Children:
    """A round's children and what becomes of them: those that stand already, new ones, and too little for one."""
    price, remains, left = np.round(sent.price, 6), standing.place[row, 0], orders["size"]
    little = left * price < MINIMUM_NOTIONAL_USD
    stays = (remains > DUST) & (left <= remains + DUST) & ((price == standing.limit[row]) | little)
    waits = sent.waits | (little & ~stays)
    at_once, final = np.isnan(price) & ~waits, times.ends[row] == column
    late, arrives_ns = waits & final, times.arrives_ns[row, column]
    mine, waiting = (Life(*(of[row] for of in life)) for life in (times.life, times.waiting))
    mine = mine._replace(
        latency_ns=np.where(late, waiting.latency_ns, arrives_ns - times.starts_ns[row, column]),
        arrival_ns=np.where(late, waiting.arrival_ns, arrives_ns),
        cancel_ns=np.select(
            [late, at_once, final], [waiting.cancel_ns, arrives_ns, mine.cancel_ns], times.until_ns[row, column]
        ),
        completion_ns=np.select([late, at_once], [waiting.completion_ns, arrives_ns], mine.completion_ns),
    )
    limit = {"limit_price": np.where(stays, standing.limit[row], price), "post_only": sent.post_only | stays}
    arrivals = admit(
        market, orders | limit | {"waits": waits, "completes": final | at_once}, mine, parameters.execution
    )
    arrivals["resumes"], arrivals["place"] = stays, standing.place[row]
    if column + 1 < times.unseen.shape[1]:
        arrivals["look"] = times.unseen[row, column + 1]
    return _Children(row, arrivals, mine, fill(market, arrivals, parameters.execution))


def _nothing(parents: int) -> _Quotes:
    nowhere, none = np.full(parents, np.nan), np.zeros(parents)
    return _Quotes(nowhere, np.zeros((parents, PLACE)), none, none.copy(), nowhere.copy(), nowhere.copy())


def _remember(standing: _Quotes, children: _Children) -> None:
    row, arrivals, fills = children.row, children.arrivals, children.fills
    in_book = arrivals["resting"] & ~np.isnan(fills["limit"])
    remains = in_book & (fills["seen_left"] > DUST)
    standing.seen_done[row] = standing.done[row] + np.where(in_book, arrivals["size"] - fills["seen_left"], 0.0)
    standing.seen_limit[row] = np.where(remains, fills["limit"], np.nan)
    standing.seen_ahead[row] = np.where(remains, fills["seen_ahead"], np.nan)
    standing.limit[row], standing.place[row] = fills["limit"], fills["place"]
    standing.done[row] += made(fills) + fills["taken"] + np.where(arrivals["resting"], 0.0, fills["completed"])


def _concatenated(rounds: list[_Children]) -> _Children:
    row, arrivals, lived, fills = zip(*rounds, strict=True)
    life = Life(*(np.concatenate(times) for times in zip(*lived, strict=True)))
    return _Children(np.concatenate(row), np.concatenate(arrivals), life, np.concatenate(fills))


def _together(market: Market, parents: pd.DataFrame, children: _Children, parameters: Parameters) -> pd.DataFrame:
    """One row per parent: its children summed, all of them measured against its arrival mid."""
    row, arrivals, life, fills = children
    size, side, mid = (parents[name].to_numpy(float) for name in ("size", "side", "arrival_mid"))
    each = outcome(market, arrivals, life, fills, mid[row], parameters.execution, parameters.orders.markouts_s)
    weight, first = arrivals["size"] / size[row], np.unique(row, return_index=True)[1]

    def total(values: NDArray[Any]) -> Floats:
        return np.asarray(np.bincount(row, values * weight, len(parents)), dtype=float)

    sums = {name: total(each[name]) for name in _SUMMED}
    shortfall = sums["implementation_shortfall_bps"]
    late = arrivals["resting"] | arrivals["waits"]
    filled = np.bincount(row, fills["completed"] * arrivals["completes"] * late, len(parents)) <= DUST
    fill_ns = np.full(len(parents), -1, dtype=np.int64)
    np.maximum.at(fill_ns, row, each["fill_ns"])
    columns = sums | dict(
        kind=np.full(len(parents), "", dtype=object),
        offset_bps=np.full(len(parents), np.nan),
        target_price=mid,
        exec_price=mid * (1 + side * shortfall / BPS),
        filled=filled,
        fill_ns=fill_ns,
        status=np.where(filled, "filled", "completed"),
        rejections=np.bincount(row, fills["rejections"], len(parents)).astype(np.int64),
        total_cost_bps=shortfall + sums["fees_bps"] + sums["funding_bps"],
        slippage_bps=shortfall,
        queue_ahead=each["queue_ahead"][first],
        latency_ms=total(each["latency_ms"]) / total(np.ones(len(row))),
        **_markouts(each, arrivals, total),
    )
    return pd.concat([parents, pd.DataFrame(columns, index=parents.index)], axis=1)


def _markouts(
    each: dict[str, NDArray[Any]], arrivals: Arrivals, total: Callable[[NDArray[Any]], Floats]
) -> dict[str, Floats]:
    """Means over what the children made and took."""
    traded = np.where(arrivals["completes"], 1.0, each["filled_passive"])
    shares = {"markout": traded, "maker": each["maker_share"], "taker": traded - each["maker_share"]}
    means = {}
    for name in each:
        if "markout_" in name:
            share = shares[name.split("_")[0]]
            with np.errstate(invalid="ignore"):
                means[name] = total(np.where(share > DUST, each[name] * share, 0.0)) / total(
                    np.where(share > DUST, share, 0.0)
                )
    return means


def _numbers(parents: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """The columns that orders and quotes need: text would be copied with every round."""
    return {str(name): values.to_numpy() for name, values in parents.select_dtypes("number").items()}
