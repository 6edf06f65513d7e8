"""What is known when an order is decided on again: the market as every trader sees it, and the order itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.execution.children import Known
from hyperdapo.execution.parents import action_orders, touch
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Integers, Mask
from hyperdapo.market.grid import tick_size
from hyperdapo.policy.prompts import digits

PLACES = ("nowhere", "first", "queued", "behind", "far")
"""Where an order stands as it is decided on again: at the best quote of its side or before it with little before it
there (`first`: up to `LITTLE` times its own value) or more, up to `NEAR` ticks behind the best quote, or further."""
LITTLE, NEAR = 5.0, 5.0


@dataclass(frozen=True)
class Visited:
    """m orders at a decision, or at many.

    `table` (m rows) has order_id, side, decision_ns (of this decision), `parent` (its place among the parents),
    `number` (of the decision, from 0), seconds_left, share_left, ticks_behind the best quote of its side (negative:
    before it), ahead_usd (both NaN where it does not rest), and `place` in `PLACES`. Of the K + 1 actions the last is
    to keep the order. `means` (m, K + 1) is the first that does the same: -1 to keep what does not rest.
    """

    table: pd.DataFrame
    means: Integers

    @property
    def allowed(self) -> Mask:
        """(m, K + 1) the actions that differ."""
        return np.asarray(self.means == np.arange(self.means.shape[1]))

    def __len__(self) -> int:
        return len(self.table)


Policy = Callable[[Visited], Integers]
"""Orders at a decision -> an allowed action of each (m,)."""


def see(market: Market, orders: pd.DataFrame, known: Known, actions: Sequence[Action]) -> Visited:
    """What `children.decide_again` tells of m orders, as a policy reads it."""
    ns, side, rests = orders["decision_ns"].to_numpy(), orders["side"].to_numpy(float), ~np.isnan(known.limit)
    mid, best = market.mid_at(ns), touch(market, orders)
    each = orders.assign(arrival_mid=mid).iloc[np.repeat(np.arange(len(orders)), len(actions))]
    moves = action_orders(each, market, actions, np.tile(np.arange(len(actions)), len(orders)))
    price, post_only, waits = (
        moves[name].to_numpy(float).reshape(len(orders), -1) for name in ("limit_price", "post_only", "waits")
    )
    alike = [np.nan_to_num(np.round(price, 6)), post_only, waits]
    same = np.logical_and.reduce([values[:, :, None] == values[:, None, :] for values in alike])
    means = np.where(np.round(price, 6) == known.limit[:, None], len(actions), same.argmax(axis=2))
    ticks = np.rint(side * (best - known.limit) / tick_size(best, market.sz_decimals))
    at_touch, worth = ticks <= 0, LITTLE * orders["size"].to_numpy(float)
    table = orders[["order_id", "side", "decision_ns"]].assign(
        parent=known.row,
        number=known.number,
        seconds_left=known.seconds_left,
        share_left=known.share_left,
        ticks_behind=ticks,
        ahead_usd=known.ahead * mid,
        place=np.select([~rests, at_touch & (known.ahead <= worth), at_touch, ticks <= NEAR], range(4), 4),
    )
    means = np.column_stack([means, np.where(rests, len(actions), -1)])
    return Visited(table, means)


def last_known(features: pd.DataFrame) -> pd.DataFrame:
    """Features as they were last defined: where nothing has printed for long, orders are decided on all the same."""
    return features.ffill()


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


def numbers(features: pd.DataFrame, states: pd.DataFrame) -> Floats:
    """(m, 21) what a table can say of m orders at a decision: the digits of the prompt, seconds left, one of `PLACES`.

    Parameters
    ----------
    states : (m, ...) with side, decision_ns, seconds_left and place
    """
    row = instants(features, states["decision_ns"].to_numpy())
    place = states["place"].to_numpy()[:, None] == np.arange(len(PLACES))
    return np.column_stack([digits(features, states.assign(order_id=row)), states["seconds_left"], place]).astype(float)
