"""What the kernel reads and writes: the messages of a market in the order of the exchange, orders, and their fills.

Orders and fills are arrays of records: a kernel that takes few arrays compiles in half the time.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Integers, Mask, Nanoseconds
from hyperdapo.times import HOUR_NS

PRINT, QUOTE, SNAPSHOT = 0, 1, 2
DUST = 1e-9  # coin; less than that is the rounding of floating point
PLACE = 7  # numbers that say where an order stands in the book: the fields of `kernel.Resting`

MOMENT = np.dtype(
    [
        *((name, float) for name in ("price", "size", "funding")),
        *((name, float, (2,)) for name in ("best_price", "best_size")),
        *(("row", np.int64), ("kind", np.int8), ("aggressor", np.int8)),
    ],
    align=True,
)
"""Of one message: price, size and aggressor of a print; the newest best bid and ask after it, their sizes, and the
newest snapshot; what a long of one coin has paid in funding since the first message, USD."""

ARRIVAL = np.dtype(
    [
        *(("side", np.int64), ("size", float), ("limit", float)),
        *((name, np.bool_) for name in ("post_only", "resting", "waits", "completes", "resumes")),
        *((name, np.int64) for name in ("first", "look", "last", "final", "sequence", "parent")),
        *((name, np.int64) for name in ("arrival_ns", "answer_ns", "again_ns", "cancel_ns")),
        ("place", float, (PLACE,)),
    ],
    align=True,
)
FILL = np.dtype(
    [
        *(("queue_ahead", float), ("estimated", np.bool_), ("rejections", np.int64), ("last_event", np.int64)),
        *((name, float) for name in ("taken", "taken_usd", "queued", "through", "crossed")),
        *((name, float) for name in ("made_usd", "made_mid_usd", "made_funding", "abandoned")),
        *((name, float) for name in ("completed", "swept", "swept_usd", "deepest", "limit", "seen_left", "seen_ahead")),
        ("place", float, (PLACE,)),
    ],
    align=True,
)


class Feed(NamedTuple):
    """The k best quotes that the trader is shown: `ns` (k,) when, `exchange_ns` (k,) of when, `price` (k, 2)."""

    ns: Nanoseconds
    exchange_ns: Nanoseconds
    price: Floats


class Events(NamedTuple):
    """n messages in order of `exchange_ns`; of one stamp, prints before the quotes that show what they left.

    `ns` (n,), `moment` (n,) of `MOMENT`; `level_price`, `level_size` (m, 2, 20) are the snapshots, bids first.
    """

    ns: Nanoseconds
    moment: NDArray[Any]
    level_price: Floats
    level_size: Floats
    feed: Feed


class Queue(NamedTuple):
    """How an order advances in its queue.

    A level that loses exactly what it gained last has lost the newcomer, who stood behind us (not where `exponent` is
    0, the bound that puts all before us). Of what else is cancelled there the share (ahead / level) ** `exponent` stood
    before us: 1 spreads cancels evenly over the queue, more puts them behind us, infinity is the risk-averse queue that
    only prints shorten. Not `joined`: nobody stands before us, a yardstick. `crossing`: a quote of the other side that
    comes to our price fills us.
    """

    joined: bool
    exponent: float
    crossing: bool


Arrivals = NDArray[Any]
"""n orders, (n,) of `ARRIVAL`: side +1 / -1, size in coin, limit in USD (NaN where not `resting`: at any price), and
their events. `look` is the first event that the trader has not seen when he decides on the order again. `completes`: what is left when the cancel lands is bought or sold at once, else it is abandoned; one that
`waits` is completed, and nothing else. `first` is the newest event that the arriving order meets, `last` the first that
its cancel precedes, `final` the newest that the order which completes it meets. That a post-only order is refused at
`arrival_ns` is known after `answer_ns`, and the next try arrives `again_ns` after the last, until `cancel_ns`. One that
`resumes` stands at `place` already. Orders are filled in `sequence`, in which those of one `parent` are neighbours, the
first in priority first; -1 has no siblings."""

Fills = NDArray[Any]
"""What became of n orders, (n,) of `FILL`; sizes in coin, notionals in USD. `rejections`: how often it was refused.
`taken`: from the book on arrival. While resting, for `made_usd` in all, when the mid had been `made_mid_usd` and a long
had paid `made_funding` on it: `queued` by prints at the limit, `through` by prints beyond it, `crossed` by quotes of
the other side that came to it. `abandoned`: neither traded nor completed; `completed`: left to the completing order, of
which the visible book gave `swept`, the last of it at `deepest` (USD). `last_event` is that of the latest fill before
the cancel, -1 for none; `queue_ahead` is NaN where nothing rested, `estimated` where no message had shown the level.
`limit` and `place` (a `kernel.Resting`) are where it stood when the cancel landed: NaN and zeros where it never did.
`seen_left` and `seen_ahead` (coin) are what was left of it, and before it, by `look`."""


def made(fills: Fills) -> Floats:
    """(n,) coin filled while resting."""
    return np.asarray(fills["queued"] + fills["through"] + fills["crossed"])


def stream(market: Market) -> Events:
    """The events of a market. It remembers them, for every replay of it reads the same."""
    if "_events" not in vars(market):
        vars(market)["_events"] = _stream(market)
    events: Events = vars(market)["_events"]
    return events


def funding_paid(market: Market, ns: Nanoseconds) -> Floats:
    """(n,) USD that a long of one coin has paid by each instant (n,), since the market begins (eq. 2.1).

    Every whole hour it pays the rate known then, of the oracle price; nothing where no `activeAssetCtx` was recorded.
    """
    first = -(-int(market.top.local_ns[0]) // HOUR_NS)
    hours = np.arange(first, int(market.top.local_ns[-1]) // HOUR_NS + 2) * HOUR_NS
    context = market.context_at(hours)
    paid = np.cumsum(np.nan_to_num(context.funding * context.oracle_price))
    return np.concatenate([[0.0], paid])[np.searchsorted(hours, ns, side="right")]


def _stream(market: Market) -> Events:
    trades, bbo, book = market.trades, market.bbo, market.book
    counts = [len(trades.price), len(bbo.bid_price), len(book.bid_price)]
    ns = np.concatenate([trades.exchange_ns, bbo.exchange_ns, book.exchange_ns])
    kind = np.repeat(np.array([PRINT, QUOTE, SNAPSHOT], dtype=np.int8), counts)
    row = np.concatenate([np.arange(count) for count in counts])
    order = np.lexsort((kind, ns))
    ns, kind, row, printed = ns[order], kind[order], row[order], order < counts[0]

    def of_prints(values: NDArray[Any]) -> NDArray[Any]:
        return np.where(printed, values[np.where(printed, row, 0)], 0) if counts[0] else np.zeros(len(ns), values.dtype)

    def of_quotes(best: Floats, levels: Floats) -> Floats:
        both = np.concatenate([np.full(counts[0], np.nan), best, levels[:, 0]])[order]
        return both[_latest(~np.isnan(both))]

    snapshot, moment = _latest(kind == SNAPSHOT), np.zeros(len(ns), MOMENT)
    moment["kind"], moment["row"] = kind, np.where(kind[snapshot] == SNAPSHOT, row[snapshot], -1)
    for name, values in (("price", trades.price), ("size", trades.size), ("aggressor", trades.side)):
        moment[name] = of_prints(values)
    moment["best_price"][:, 0] = of_quotes(bbo.bid_price, book.bid_price)
    moment["best_price"][:, 1] = of_quotes(bbo.ask_price, book.ask_price)
    moment["best_size"][:, 0] = of_quotes(bbo.bid_size, book.bid_size)
    moment["best_size"][:, 1] = of_quotes(bbo.ask_size, book.ask_size)
    moment["funding"] = funding_paid(market, ns)
    levels = _pair(book.bid_price, book.ask_price), _pair(book.bid_size, book.ask_size)
    return Events(ns, moment, *levels, _feed(market))


def _feed(market: Market) -> Feed:
    return Feed(market.top.local_ns, market.top.exchange_ns, _pair(market.top.bid_price, market.top.ask_price))


def _latest(at: Mask) -> Integers:
    """Position of the latest True at or before each position; 0 before the first."""
    return np.maximum.accumulate(np.where(at, np.arange(len(at)), 0))


def _pair(bid: Floats, ask: Floats) -> Floats:
    return np.ascontiguousarray(np.stack([bid, ask], axis=1))
