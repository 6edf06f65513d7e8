"""What the matching engine keeps, reads and sends: order book, process, state, messages, probes. Nothing is computed.

Prices are levels of a ladder, sizes lots. Arrays are filled in by `synthetic.matching`, which is compiled; they are of
records, for a compiled function pays for each array that it is handed.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperdapo.market.columns import Integers, Mask

BID, ASK, FREE = 0, 1, 2
NOBODY = -1  # owner of an order that is not a probe
VISIBLE = 20  # levels of a snapshot, a side


QUEUE = np.dtype(
    [
        *((name, np.int64) for name in ("lots", "count", "probes", "first", "last")),
        *((name, np.float64) for name in ("hazard", "soonest")),
    ]
)
"""Of one level: its lots and orders; how many of them are probes, whom the others do not count; the first and the last
order; the hazard of being cancelled, cumulated; the hazard at which the first is, or less."""

ORDER = np.dtype(
    [(name, np.int64) for name in ("lots", "level", "owner", "following", "preceding")] + [("ends", np.float64)]
)
"""Of one order: `owner` is the position of a probe, or NOBODY; `ends` the hazard of its level that cancels it."""

DEPTH = np.dtype([(name, np.float64) for name in ("lots", "orders", "spread")])
"""Of a level so far behind the quote: mean lots and orders that are wanted, deviation of the log of an order's lots."""

PROBE = np.dtype(
    [
        *((name, np.int64) for name in ("arrival_ns", "cancel_ns", "side", "steps", "lots")),
        *((name, np.int64) for name in ("order", "level", "ahead", "placed_ns", "ended_ns")),
        *((name, np.bool_) for name in ("post_only", "early", "rejected")),
    ],
    align=True,
)
"""An order of ours, and what became of it.

It stands `steps` levels behind the best of its side when it arrives, below 0 before it. `early`: it is the first of its
kind in its block (post-only orders, cancels, takers), else the last. `order`: its place in the book, NOBODY while it
has none; `ahead`: lots before it when it came to rest; `placed_ns`: its block, 0 until then; `ended_ns`: the block of
its cancel, 0 for none."""


class OrderBook(NamedTuple):
    """Queues of orders, (levels,) of QUEUE and (orders,) of ORDER."""

    queues: NDArray[Any]
    orders: NDArray[Any]
    free: Integers  # stack of unused orders
    top: Integers  # best bid level, best ask level, height of the stack


class Rules(NamedTuple):
    """One asset's process in natural units: seconds, log price, ladder levels, lots."""

    signal_s: float  # in which the quotes take in what the latent signal knows
    revision_rate: float  # per second
    revised: float  # share of the signal that a revision of the quotes takes in
    informed: float  # log price for each unit of signal
    noise: float  # deviation of the log price per root second that no signal knows
    half_spread: float  # levels between the quoted price and the quotes, before rounding outwards
    depth: NDArray[Any]  # (n,) of DEPTH, by levels behind the quote
    touch_tilt: float  # what one unit of signal does to log depth at the quote
    depth_tilt: float  # and behind it
    flow_tilt: float  # and to the log odds of a buy
    splitting: float  # share of the market orders, while a large order is worked, that are its parts
    minimum_lots: int
    market_order_rate: float  # per second
    branching: float  # market orders that each one brings about
    market_lots: float  # of a market order, median
    market_sd: float  # of their logarithm
    impact: float  # of a median one on the log price
    sniping: float  # market orders at once, on average, that meet the stale quotes of a revision
    pushes: NDArray[Any]  # (n,) of `notices.PUSH`, in the order of time


class State(NamedTuple):
    """What one block hands to the next."""

    block: int  # how many there have been
    exchange_ns: int
    local_ns: int
    next_book_ns: int
    log_price: float  # around which the quotes stand
    level: int  # of the ladder, at or just below it
    signal: float  # what they have not taken in yet, in units of its deviation
    news: float  # likewise what no depth shows, log price
    regime: float
    excitement: float  # market orders per second beyond the base rate
    worked: int  # side of the large order that takers work in parts
    parts: int  # market orders until it is done


class Messages(NamedTuple):
    """Messages of a stretch of time. `used` counts the rows of snapshots, of best quotes and of prints."""

    book_ns: Integers  # (rows, 2): exchange, local
    book: Integers  # (rows, 2 sides, 20, level | lots | orders), level -1 beyond the last
    top_ns: Integers
    top: Integers  # (rows, 2 sides, level | lots | orders)
    print_ns: Integers
    print: Integers  # (rows, level | lots | side of the taker | owner of the maker | owner of the taker)
    used: Integers


class Probes(NamedTuple):
    """n probes by time of arrival, (n,) of PROBE; `passed`: how many have arrived, how many of the first have ended."""

    each: NDArray[Any]
    passed: Integers


def unplaced(
    arrival_ns: Integers,
    cancel_ns: Integers,
    side: Integers,
    steps: Integers,
    lots: Integers,
    post_only: Mask,
    early: Mask,
) -> Probes:
    """Probes (n,) that have not arrived."""
    each = np.zeros(len(arrival_ns), PROBE)
    each["order"] = each["level"] = NOBODY
    each["arrival_ns"], each["cancel_ns"], each["post_only"], each["early"] = arrival_ns, cancel_ns, post_only, early
    each["side"], each["steps"], each["lots"] = side, steps, lots
    return Probes(each, np.zeros(2, np.int64))


def no_probes() -> Probes:
    """A market of others only."""
    return Probes(np.zeros(0, PROBE), np.zeros(2, np.int64))


def empty_book(levels: int, orders: int) -> OrderBook:
    """A book over that many levels, with room for that many resting orders."""
    book = OrderBook(
        np.zeros(levels, QUEUE), np.zeros(orders, ORDER), np.arange(orders), np.array([-1, levels, orders])
    )
    book.queues["first"] = book.queues["last"] = book.orders["owner"] = NOBODY
    return book


def empty_messages(books: int, tops: int, prints: int) -> Messages:
    """Room for that many snapshots, best quotes and prints."""
    return Messages(
        book_ns=np.empty((books, 2), np.int64),
        book=np.empty((books, 2, VISIBLE, 3), np.int64),
        top_ns=np.empty((tops, 2), np.int64),
        top=np.empty((tops, 2, 3), np.int64),
        print_ns=np.empty((prints, 2), np.int64),
        print=np.empty((prints, 5), np.int64),
        used=np.zeros(3, np.int64),
    )
