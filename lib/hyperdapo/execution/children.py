"""A parent order executed by several: slices that take, quotes that are renewed, and the parent's costs as their sum.

Children live in one book. A quote whose price stays the same keeps its place in the queue, and so does one of which too
little is left for a new order (the exchange refuses what is under 10 USD); one that grows joins anew. What a child has
left goes over to the next; the trader knows of a fill when a message of that time has reached him. What is left at the
deadline is taken, however little.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.execution.costs import Life
from hyperdapo.execution.events import DUST, PLACE, Arrivals, Fills, made, stream
from hyperdapo.execution.orders import check_ends
from hyperdapo.execution.simulator import admit, fill, lives, outcome
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BPS, Floats, Integers, Nanoseconds
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, snap_size
from hyperdapo.params import Parameters
from hyperdapo.times import SECOND_NS

Quote = Callable[[pd.DataFrame, Floats, Floats], Floats]
"""(children with `decision_ns`, `size` and the numbers of their parents, seconds left, share of the parent left as far
as the trader knows) -> price."""

_LEAST_USD = 1.5 * MINIMUM_NOTIONAL_USD  # of a slice: the price may fall between decision and child
_SUMMED = (
    *("filled_passive", "maker_share", "filled_queue", "filled_through", "filled_crossed", "fees_bps", "funding_bps"),
    *("implementation_shortfall_bps", "spread_bps", "timing_bps", "opportunity_bps"),
)


class _Children(NamedTuple):
    """m children in the order in which they were sent; `row` (m,) are their parents."""

    row: Integers
    arrivals: Arrivals
    life: Life
    fills: Fills


class _Quotes(NamedTuple):
    """What n parents have in the book, updated from round to round: the last quote of each, and what it has done."""

    limit: Floats
    place: Floats  # (n, PLACE): nothing remains where nothing stands
    done: Floats  # coin made
    latest: Floats  # of it, by the last quote
    latest_ns: Nanoseconds  # the last of that


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
    return _quoted(market, parents, starts, due, quote, parameters)


def requote(market: Market, parents: pd.DataFrame, quote: Quote, parameters: Parameters) -> pd.DataFrame:
    """All that is left as one post-only order, whose price is chosen anew every `execution.requote_s`."""
    every_s = parameters.execution.requote_s
    rounds = int(np.ceil(parents["horizon_s"].max() / every_s)) if len(parents) else 0
    since = np.rint(np.arange(rounds) * every_s * SECOND_NS).astype(np.int64)
    starts = parents["decision_ns"].to_numpy(np.int64)[:, None] + since
    due = np.repeat(parents["size"].to_numpy(float)[:, None], rounds, axis=1)
    return _quoted(market, parents, starts, due, quote, parameters)


def _quoted(
    market: Market, parents: pd.DataFrame, starts: Integers, due: Floats, quote: Quote, parameters: Parameters
) -> pd.DataFrame:
    """Post-only children that start at (n, rounds) and by then are to have offered `due` coin in all."""
    execution, numbers, size = parameters.execution, _numbers(parents), parents["size"].to_numpy(float)
    life, arrives_ns = _times(market, numbers, starts, parameters)
    check_ends(market, parents.assign(limit_price=np.nan, post_only=True), life.completion_ns)
    seen_ns = market.top_at(starts.ravel()).exchange_ns.reshape(starts.shape)
    live = arrives_ns < life.cancel_ns[:, None]
    live[:, 0] = True  # who comes too late for any is completed all the same
    ends, until_ns = live.sum(axis=1) - 1, np.append(arrives_ns[:, 1:], arrives_ns[:, -1:], axis=1)
    standing = _nothing(starts)
    sent = []
    for column in range(starts.shape[1]):
        final = ends == column
        left = np.where(final, size, due[:, column]) - standing.done
        row = np.flatnonzero(live[:, column] & (left > DUST))
        if not row.size:
            continue
        unknown = np.where(standing.latest_ns > seen_ns[:, column], standing.latest, 0.0)
        share_left = 1 - (standing.done - unknown) / size
        orders = {name: values[row] for name, values in numbers.items()}
        orders |= {"decision_ns": starts[row, column], "size": left[row], "completes": final[row]}
        seconds_left = (life.expiry_ns[row] - starts[row, column]) / SECOND_NS
        price = quote(pd.DataFrame(orders), seconds_left, share_left[row])
        mine = Life(*(times[row] for times in life))._replace(
            latency_ns=arrives_ns[row, column] - starts[row, column],
            arrival_ns=arrives_ns[row, column],
            cancel_ns=np.where(final[row], life.cancel_ns[row], until_ns[row, column]),
        )
        arrivals = _placed(market, orders, price, mine, standing, row, parameters)
        sent.append(_Children(row, arrivals, mine, fill(market, arrivals, execution)))
        _remember(market, standing, sent[-1])
    return _together(market, parents, _concatenated(sent), parameters)


def _times(
    market: Market, numbers: dict[str, NDArray[Any]], starts: Integers, parameters: Parameters
) -> tuple[Life, Integers]:
    """The lives of n parents, and when the children that start at (n, rounds) arrive: in the order of their rounds."""
    latency, rounds = parameters.execution.latency, starts.shape[1]
    life = lives(market.asset, numbers | {"limit_price": np.ones(len(starts))}, latency, parameters.seed)
    each = {name: np.repeat(numbers[name], rounds) for name in ("order_id", "horizon_s", "side")}
    each |= {"decision_ns": starts.ravel(), "limit_price": np.ones(starts.size)}
    arrival_ns = lives(market.asset, each, latency, parameters.seed).arrival_ns.reshape(starts.shape)
    return life, np.maximum.accumulate(arrival_ns, axis=1)


def _placed(
    market: Market,
    orders: dict[str, NDArray[Any]],
    price: Floats,
    life: Life,
    standing: _Quotes,
    row: Integers,
    parameters: Parameters,
) -> Arrivals:
    """A round's children as the kernel reads them: those that stand already, new ones, and too little for one."""
    price, remains, little = np.round(price, 6), standing.place[row, 0], orders["size"] * price < MINIMUM_NOTIONAL_USD
    stays = (remains > DUST) & (orders["size"] <= remains + DUST) & ((price == standing.limit[row]) | little)
    limit = {"limit_price": np.where(stays, standing.limit[row], price), "post_only": np.ones(len(row), dtype=bool)}
    arrivals = admit(market, orders | limit | {"waits": little & ~stays}, life, parameters.execution)
    arrivals["resumes"], arrivals["place"] = stays, standing.place[row]
    return arrivals


def _nothing(starts: Integers) -> _Quotes:
    parents = len(starts)
    done, latest, place = np.zeros(parents), np.zeros(parents), np.zeros((parents, PLACE))
    return _Quotes(np.full(parents, np.nan), place, done, latest, starts[:, 0].copy())


def _remember(market: Market, standing: _Quotes, children: _Children) -> None:
    row, fills = children.row, children.fills
    standing.limit[row], standing.place[row] = fills["limit"], fills["place"]
    standing.done[row] += made(fills)
    standing.latest[row], standing.latest_ns[row] = made(fills), stream(market).ns[fills["last_event"]]


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
    filled = np.bincount(row, fills["completed"] * arrivals["completes"] * arrivals["resting"], len(parents)) <= DUST
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
