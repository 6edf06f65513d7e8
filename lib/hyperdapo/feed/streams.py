"""One coin, one book: what of a feed belongs to another of the exchange's books, or came twice.

A subscription to `l2Book` can ask for three books of a coin: the whole one (20 levels a side), with `fast` one of 5
levels a side every half second, with `nSigFigs` (and `mantissa`) one whose prices are rounded to so many figures. Who
records two of them under one name gets them mixed. Source: "Subscriptions" of the exchange's websocket documentation,
and its announcements of June 2026 on `fast`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.feed.messages import AGGREGATED, FAST
from hyperdapo.market.columns import BookSnapshots, Integers, Mask, Nanoseconds, TopOfBook
from hyperdapo.market.grid import tick_size
from hyperdapo.market.native import FAST_LEVELS

_SPIKE = 10  # so many books of exactly 5 levels for each of nearly as many are cut there, not thin
_ENOUGH = 20  # levels: by chance so many prices are all even in one of 2**20 books
_STEPS = (2, 5)  # ticks: what is rounded to fewer figures is a multiple of one of them


def depths(book: BookSnapshots) -> tuple[Integers, Integers]:
    """Visible levels of bid and ask, each (n,)."""
    return np.isfinite(book.bid_price).sum(axis=1), np.isfinite(book.ask_price).sum(axis=1)


def repeated(keys: Sequence[NDArray[np.generic]]) -> Mask:
    """Which rows (n,) have come before, from their columns (n,) or (n, m): the same in all of them, NaN where NaN.

    The first column is a time; rows that share it with no other are not compared.
    """
    again = np.zeros(len(keys[0]), dtype=bool)
    near = np.flatnonzero(pd.Series(keys[0]).duplicated(keep=False))
    again[near] = pd.concat([pd.DataFrame(key[near]) for key in keys], axis=1, ignore_index=True).duplicated()
    return again


def aggregated(book: BookSnapshots, stream: NDArray[np.int8], sz_decimals: int) -> Mask:
    """Which books (n,) have rounded prices: all are multiples of 2 or of 5 ticks, and that is no chance.

    It is none where the book says so (`spread`), has many levels, or has few where the others have many: rounding makes
    one level of several. A book that says so and yet names other prices is asked for with as many figures as there are,
    and whole.
    """
    price = np.concatenate([book.bid_price, book.ask_price], axis=1)
    visible = np.isfinite(price)
    ticks = np.rint(np.where(visible, price / tick_size(np.where(visible, price, 1.0), sz_decimals), 0))
    coarse = np.logical_or.reduce([(ticks % step == 0).all(axis=1) for step in _STEPS])
    levels, deep = visible.sum(axis=1), np.maximum(*depths(book)) > FAST_LEVELS
    usual = float(np.median(levels[deep & ~coarse])) if (deep & ~coarse).any() else 0.0
    few = (levels < usual / 2) & (usual >= _ENOUGH)
    return np.asarray(coarse & ((stream == AGGREGATED) | (levels >= _ENOUGH) | few))


def off_bbo(book: BookSnapshots, bbo: TopOfBook) -> Mask:
    """Which books (n,) name other best prices than every `bbo` of the same stamp of the exchange: of the same block."""
    best = pd.MultiIndex.from_arrays([book.exchange_ns, book.bid_price[:, 0], book.ask_price[:, 0]])
    quoted = pd.MultiIndex.from_arrays([bbo.exchange_ns, bbo.bid_price, bbo.ask_price])
    return np.asarray(np.isin(book.exchange_ns, bbo.exchange_ns) & ~best.isin(quoted))


def shallow(book: BookSnapshots, stream: NDArray[np.int8], last_deep_ns: int, max_gap_ns: int) -> Mask:
    """Which books (n,) are `fast` ones beside a whole one: not needed, and shallower.

    A book is a fast one if it says so, or if it has exactly 5 levels on both sides in a feed in which such books stand
    out: a thin market has others of 4 and 6 levels too. Where no deeper book came for half of `max_gap_ns`
    before (`last_deep_ns`: the last one before these) nor comes so soon after, a fast one is all there is, and stays.
    """
    bids, asks = depths(book)
    five = (bids == FAST_LEVELS) & (asks == FAST_LEVELS)
    near = (np.abs(bids - FAST_LEVELS) <= 1) | (np.abs(asks - FAST_LEVELS) <= 1)
    spike = five.sum() >= _SPIKE * max((near & ~five).sum(), 1)
    fast = (stream == FAST) | (five & spike)
    deep_ns = np.concatenate([[last_deep_ns], book.local_ns[~fast & (np.maximum(bids, asks) > FAST_LEVELS)]])
    return np.asarray(fast & _near(book.local_ns, deep_ns, max_gap_ns // 2))


def _near(ns: Nanoseconds, others: Nanoseconds, reach_ns: int) -> Mask:
    """Whether one of the others (m,), in order, is within reach of each time (n,)."""
    after = np.searchsorted(others, ns)
    before_ns, after_ns = others[np.maximum(after - 1, 0)], others[np.minimum(after, len(others) - 1)]
    return np.asarray((np.abs(ns - before_ns) <= reach_ns) | (np.abs(after_ns - ns) <= reach_ns))
