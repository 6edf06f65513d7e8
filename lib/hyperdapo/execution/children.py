"""Parents that are executed by several orders one after another: slices of time, and quotes that follow the market.

A parent has one child in the market at a time. A child that is replaced hands over what it has left at the instant at
which its successor arrives (the exchange's `modify`), so that nothing is executed twice; what is left at the horizon is
taken at once, as for every other order.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.days import SECOND_NS
from hyperdapo.execution.kernel import DUST
from hyperdapo.execution.parents import replay
from hyperdapo.execution.simulator import lives
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, snap_size
from hyperdapo.schema import Parameters

Quote = Callable[[pd.DataFrame, Floats, Floats], Floats]
"""(children with `decision_ns` and the columns of their parents, seconds left, share of the parent left) -> price."""

_LEAST_USD = 1.5 * MINIMUM_NOTIONAL_USD  # of a child order: the price may fall between decision and child


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


def slice_ns(parents: pd.DataFrame, slices: int) -> NDArray[np.int64]:
    """(n, slices + 1) bounds of the slices of each horizon."""
    share = np.arange(slices + 1) / slices
    since = np.rint(parents["horizon_s"].to_numpy(float)[:, None] * share * SECOND_NS).astype(np.int64)
    bounds: NDArray[np.int64] = parents["decision_ns"].to_numpy(np.int64)[:, None] + since
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
    starts: NDArray[np.int64],
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


def _together(parents: pd.DataFrame, children: pd.DataFrame, row: NDArray[np.int64]) -> pd.DataFrame:
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
    shortfall_bps = side * (exec_price / mid - 1) * 1e4
    moved_usd = children["side"].to_numpy() * completed * (child_mid - mid[row])
    opportunity_bps = bps("opportunity_bps") + total(moved_usd) / worth * 1e4
    filled = total(completed) <= DUST
    return parents.assign(
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
