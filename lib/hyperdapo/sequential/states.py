"""What is known when an order is decided on again: the market as every trader sees it, and the order itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.execution.children import Known
from hyperdapo.execution.parents import candidate_orders, touch
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Integers, Mask
from hyperdapo.market.grid import tick_size
from hyperdapo.policy.prompts import digits
from hyperdapo.sections import Action

ORDER = ("seconds_left", "share_left", "rests", "ticks_behind", "ahead_usd")
"""Of an order: the time and the share of it that are left, whether it rests in the book (0 or 1), by how many ticks
behind the best quote of its side (negative: before it), and what stands before it there (USD); 0 where it does not."""


@dataclass(frozen=True)
class Visited:
    """m orders at a decision, or at many.

    `table` (m rows) has order_id, side, decision_ns (of this decision), `parent` (its place among the parents), `number`
    (of the decision, from 0) and `ORDER`; `allowed` (m, K + 1) are the actions that differ from each other and from
    keeping the order, which is the last and allowed where it rests.
    """

    table: pd.DataFrame
    allowed: Mask

    def __len__(self) -> int:
        return len(self.table)


def see(market: Market, orders: pd.DataFrame, known: Known, actions: Sequence[Action]) -> Visited:
    """What `children.decide_again` tells of m orders, as a policy reads it."""
    ns, side, rests = orders["decision_ns"].to_numpy(), orders["side"].to_numpy(float), ~np.isnan(known.limit)
    mid, best = market.mid_at(ns), touch(market, orders)
    each = orders.assign(arrival_mid=mid, order_id=np.arange(len(orders)))  # the same order may be there many times
    moves = candidate_orders(each, market, actions)
    shape = len(orders), len(actions)
    prices = np.round(moves["limit_price"].to_numpy(float).reshape(shape), 6)
    distinct = moves["distinct"].to_numpy(bool).reshape(shape) & (prices != known.limit[:, None])
    ticks = side * (best - known.limit) / tick_size(best, market.sz_decimals)
    table = orders[["order_id", "side", "decision_ns"]].assign(
        parent=known.row,
        number=known.number,
        seconds_left=known.seconds_left,
        share_left=known.share_left,
        rests=rests.astype(float),
        ticks_behind=np.where(rests, np.rint(ticks), 0.0),
        ahead_usd=np.where(rests, known.ahead * mid, 0.0),
    )
    return Visited(table, np.column_stack([distinct, rests]))


def instants(features: pd.DataFrame, ns: Integers) -> Integers:
    """The row of `features` (increasing `decision_ns`) at each of n instants.

    Raises
    ------
    DataError
        If there is none at one of them.
    """
    known = features["decision_ns"].to_numpy(np.int64)
    row = np.minimum(np.searchsorted(known, ns), len(known) - 1)
    if (lost := known[row] != ns).any():
        raise DataError(
            f"features.parquet has no row at {ns[lost][0]}, when an order is decided on again: let "
            "policy.decide_again_s be a multiple of features.decision_interval_s"
        )
    return row


def numbers(features: pd.DataFrame, visited: Visited) -> Floats:
    """(m, 20) what a table can say of m orders at a decision: the digits of the prompt and `ORDER`."""
    table = visited.table
    row = instants(features, table["decision_ns"].to_numpy())
    order = table[list(ORDER)].to_numpy(float)
    order[:, -1] = np.log1p(order[:, -1])
    return np.column_stack([digits(features, table.assign(order_id=row)), order]).astype(float)
