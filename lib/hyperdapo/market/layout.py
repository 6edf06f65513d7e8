"""What the compiled exchange keeps in memory: book, rules of one asset, state between blocks, record of messages.

Prices are levels, that is positions on the ladder of valid prices (`exchange.ladder`); sizes are lots of
`10 ** -sz_decimals` coin. A side is `BID` or `ASK`; a taker's side is `BID` when it buys.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BID, ASK, FREE = 0, 1, 2
NOBODY = -1  # owner of an order that is not a probe
VISIBLE = 20  # levels of a snapshot, a side

Integers = NDArray[np.int64]


class Book(NamedTuple):
    """Queues of orders: per level the resting lots, orders, first and last order; of each order what it is."""

    lots: Integers
    orders: Integers
    first: Integers
    last: Integers
    order_lots: Integers
    order_level: Integers
    owner: Integers  # of an order: position of a probe, or NOBODY
    following: Integers
    preceding: Integers
    free: Integers  # stack of unused orders
    top: Integers  # best bid level, best ask level, height of the stack


class Rules(NamedTuple):
    """One asset's process in natural units: seconds, log price, ladder levels, lots."""

    signal_s: float  # time constant of the latent signal
    drift: float  # of the log price per second and unit of signal
    news_rate: float  # per second
    news_size: float  # mean absolute jump of the log price (Laplace)
    half_spread: float  # levels between the efficient price and the quotes, before rounding outwards
    mean_lots: float  # of a resting order
    minimum_lots: int
    quoted_levels: int  # a side
    market_order_rate: float  # per second


class State(NamedTuple):
    """What one block hands to the next."""

    exchange_ns: int
    local_ns: int
    next_book_ns: int
    log_price: float  # the efficient price
    level: int  # of the ladder, at or just below it
    signal: float
    regime: float
    excitement: float  # market orders per second beyond the base rate
    taker: int  # side of the latest market order: BID buys, ASK sells


class Record(NamedTuple):
    """Messages of a stretch of time. `used` counts the rows of snapshots, of best quotes and of prints."""

    book_ns: Integers  # (rows, 2): exchange, local
    book: Integers  # (rows, 2 sides, 20, level | lots | orders), level -1 beyond the last
    top_ns: Integers
    top: Integers  # (rows, 2 sides, level | lots | orders)
    print_ns: Integers
    print: Integers  # (rows, level | lots | side of the taker | owner of the maker | owner of the taker)
    used: Integers


class Probes(NamedTuple):
    """n orders of one tagged owner among the others, by time of arrival, and what became of them.

    A probe stands `steps` levels behind the best of its side when it arrives, below 0 before it. `early`: it is the
    first of its kind in its block (post-only orders, cancels, takers), else the last.
    """

    arrival_ns: Integers
    cancel_ns: Integers
    side: Integers
    steps: Integers
    lots: Integers
    post_only: NDArray[np.bool_]
    early: NDArray[np.bool_]
    order: Integers  # its place in the book, NOBODY while it has none
    level: Integers
    ahead: Integers  # lots before it when it came to rest
    rejected: NDArray[np.bool_]
    placed_ns: Integers  # its block; 0 until then
    ended_ns: Integers  # the block of its cancel; 0 for none
    passed: Integers  # how many have arrived, how many of the first have ended


def probes(
    arrival_ns: Integers,
    cancel_ns: Integers,
    side: Integers,
    steps: Integers,
    lots: Integers,
    post_only: NDArray[np.bool_],
    early: NDArray[np.bool_],
) -> Probes:
    """Probes (n,) that have not arrived."""
    count = len(arrival_ns)
    given = (arrival_ns, cancel_ns, side, steps, lots, post_only, early)
    order, level, ahead, placed_ns, ended_ns = (np.full(count, start) for start in (NOBODY, NOBODY, 0, 0, 0))
    return Probes(*given, order, level, ahead, np.zeros(count, np.bool_), placed_ns, ended_ns, np.zeros(2, np.int64))


def no_probes() -> Probes:
    """A market of others only."""
    none, never = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    return probes(none, none, none, none, none, never, never)


def empty_book(levels: int, orders: int) -> Book:
    """A book over that many levels, with room for that many resting orders."""
    return Book(
        lots=np.zeros(levels, np.int64),
        orders=np.zeros(levels, np.int64),
        first=np.full(levels, -1),
        last=np.full(levels, -1),
        order_lots=np.zeros(orders, np.int64),
        order_level=np.zeros(orders, np.int64),
        owner=np.full(orders, NOBODY),
        following=np.zeros(orders, np.int64),
        preceding=np.zeros(orders, np.int64),
        free=np.arange(orders),
        top=np.array([-1, levels, orders]),
    )


def empty_record(books: int, tops: int, prints: int) -> Record:
    """A record with room for that many snapshots, best quotes and prints."""
    return Record(
        book_ns=np.empty((books, 2), np.int64),
        book=np.empty((books, 2, VISIBLE, 3), np.int64),
        top_ns=np.empty((tops, 2), np.int64),
        top=np.empty((tops, 2, 3), np.int64),
        print_ns=np.empty((prints, 2), np.int64),
        print=np.empty((prints, 5), np.int64),
        used=np.zeros(3, np.int64),
    )
