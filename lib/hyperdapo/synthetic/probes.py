"""Orders whose fate is known: probes among the orders of the synthetic exchange, and what its engine did to them.

The simulator of `execution` sees only what the exchange publishes. A probe that was really there shows whether what it
makes of that is true (§3.5.1).
"""

from math import ceil, log

import numpy as np
import pandas as pd

from hyperdapo.execution.history import Executions
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, select
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.order_book import BID, NOBODY, Probes, unplaced
from hyperdapo.synthetic.tape import Tape
from hyperdapo.times import HOUR_NS, SECOND_NS

STEPS = (-2, 8)  # levels behind the best of its side where a probe may stand; below 0 it improves the price, or takes
LIFE_S = (5.0, 120.0)
POST_ONLY = 0.5  # share
NOTIONAL_USD = (15.0, 2000.0)  # uniform in its logarithm


def play_probes(world: World, start_ns: int, end_ns: int, per_hour: float) -> tuple[Market, Executions]:
    """A stretch of the synthetic exchange, played twice: what it publishes without probes, and their truth with them.

    So many probes per hour come at random times, a few levels around the best quote of a random side, small beside a
    level. Both markets have the same news, takers and quotes, and differ by what the probes do: a recorder's book does
    not hold an order of ours, and quotes and prints go through the price at which it stood.
    """
    probes = draw_probes(world, start_ns, end_ns, per_hour)
    tape = world.simulate(start_ns, end_ns, probes)
    usd = np.round(world.ladder * 10.0 ** (world.sz_decimals - 6), 6)
    return world.simulate(start_ns, end_ns).market(), executions(tape, probes, usd)


def draw_probes(world: World, start_ns: int, end_ns: int, per_hour: float) -> Probes:
    """Probes whose lives end within the span, from a stream of their own."""
    rng = world.stream(2)
    last_ns = end_ns - round((LIFE_S[1] + 10) * SECOND_NS)
    count = rng.poisson(max(last_ns - start_ns, 0) / HOUR_NS * per_hour)
    arrival_ns = np.sort(rng.integers(start_ns + SECOND_NS, max(last_ns, start_ns + 2 * SECOND_NS), count))
    life_ns = (np.exp(rng.uniform(log(LIFE_S[0]), log(LIFE_S[1]), count)) * SECOND_NS).astype(np.int64)
    lots = np.exp(rng.uniform(log(NOTIONAL_USD[0]), log(NOTIONAL_USD[1]), count)) / world.lot_usd
    return unplaced(
        arrival_ns=arrival_ns,
        cancel_ns=arrival_ns + life_ns,
        side=rng.integers(0, 2, count),
        steps=rng.integers(STEPS[0], STEPS[1] + 1, count),
        lots=np.maximum(lots, ceil(MINIMUM_NOTIONAL_USD / world.lot_usd)).astype(np.int64),
        post_only=rng.random(count) < POST_ONLY,
        early=rng.random(count) < 0.5,
    )


def executions(tape: Tape, probes: Probes, usd: Floats) -> Executions:
    """The truth of those probes that came into a block of the tape; `usd` is the price of each level."""
    arrived = np.flatnonzero(probes.each["placed_ns"] > 0)
    each = probes.each[arrived]
    coin = 10.0**-tape.sz_decimals
    rows, role = np.nonzero(tape.owners != NOBODY)
    trades = select(tape.trades, rows)
    fills = pd.DataFrame(
        {
            "order_id": tape.owners[rows, role],
            "exchange_ns": trades.exchange_ns,
            "price": trades.price,
            "size": trades.size,
            "crossed": role == 1,
            "tid": trades.tid,
        }
    )
    size = np.round(each["lots"] * coin, 6)
    filled = fills.groupby("order_id")["size"].sum().reindex(arrived, fill_value=0.0).to_numpy() >= size - coin / 2
    status = np.select([each["rejected"], filled], ["rejected", "filled"], "canceled")
    orders = pd.DataFrame(
        {
            "order_id": arrived,
            "side": np.where(each["side"] == BID, 1, -1),
            "size": size,
            "limit_price": usd[each["level"]],
            "post_only": each["post_only"],
            "placed_ns": each["placed_ns"],
            "cancel_ns": np.where(each["ended_ns"] > 0, each["ended_ns"], each["cancel_ns"]),
            "status": status,
        }
    )
    return Executions(orders, fills)
