"""Tiny markets written down event by event, so that every fill can be worked out by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hyperdapo import sections
from hyperdapo.market.book import Market
from hyperdapo.market.columns import LEVELS, BookSnapshots, TopOfBook, Trades

START = 1_756_000_000 * 10**9  # August 2025: taker 4.5 bps, maker 1.5 bps at tier 0
SECOND = 10**9
FEED_NS = 100_000_000  # the recorder sees everything a tenth of a second late
SZ_DECIMALS = 4

Levels = Sequence[tuple[float, float]]
BIDS: Levels = ((999.9, 5.0), (999.8, 10.0), (999.7, 20.0))
ASKS: Levels = ((1000.1, 4.0), (1000.2, 8.0), (1000.3, 16.0))


def at(seconds: float) -> int:
    """Nanoseconds of the exchange's clock."""
    return START + round(seconds * SECOND)


def known_at(seconds: float) -> int:
    """When the trader knows what happened at `seconds`."""
    return at(seconds) + FEED_NS


def market(
    books: Sequence[tuple[float, Levels, Levels]] = (),
    quotes: Sequence[tuple[float, float, float, float, float]] = (),
    prints: Sequence[tuple[float, float, float, int]] = (),
    gaps: Sequence[tuple[float, float]] = (),
    end: float = 400.0,
) -> Market:
    """A market whose standing book is BIDS and ASKS from 0 s until something else is said; seconds, USD, coin.

    `books` are (seconds, bids, asks), `quotes` (seconds, bid, size, ask, size), `prints` (seconds, price, size, side).
    """
    last = max(books, default=(0.0, BIDS, ASKS), key=lambda book: book[0])
    books = [(0.0, BIDS, ASKS), *books, (end, last[1], last[2])]
    times = np.array([at(book[0]) for book in books])
    sides = [_ladder([book[side] for book in books], part) for side in (1, 2) for part in (0, 1)]
    quote = np.array(quotes, dtype=float).reshape(-1, 5)
    printed = np.array(prints, dtype=float).reshape(-1, 4)
    quote_ns, print_ns = _ns(quote[:, 0]), _ns(printed[:, 0])
    return Market(
        asset="ETH",
        sz_decimals=SZ_DECIMALS,
        book=BookSnapshots(times, times + FEED_NS, *sides),
        bbo=TopOfBook(quote_ns, quote_ns + FEED_NS, *quote.T[1:]),
        trades=Trades(
            exchange_ns=print_ns,
            local_ns=print_ns + FEED_NS,
            price=printed[:, 1],
            size=printed[:, 2],
            side=printed[:, 3].astype(np.int8),
            tid=np.arange(len(printed)),
        ),
        gaps=np.array([[known_at(begin), known_at(finish)] for begin, finish in gaps], dtype=np.int64).reshape(-1, 2),
    )


def order(decision: float = 10.0, side: int = 1, size: float = 3.0, limit: float = np.nan, **others: object) -> dict:
    """One order, 60 s long unless said otherwise; without a limit it takes at once."""
    fixed = {"order_id": 1, "decision_ns": at(decision), "side": side, "size": size, "horizon_s": 60.0}
    return fixed | {"limit_price": limit, "post_only": False} | others


def orders(*rows: dict) -> pd.DataFrame:
    """Rows of `order` as a frame."""
    return pd.DataFrame(list(rows))


def execution(**changes: Any) -> sections.Execution:
    """5-50 ms of latency, tier 0; events a second apart cannot tell one such latency from another."""
    latency = {"preset": "thesis", "policy_ms": 0, "empirical_ms": [100]} | changes.pop("latency", {})
    fixed = {"latency": latency, "fees": {"tier": 0}, "block_ms": 100, "queue": "power", "queue_exponent": 1.0}
    fixed |= {"crossing_fills": True}
    rest = {"impact_coefficient_bps": 10, "twap_slices": 6, "requote_s": 10, "risk_aversion": 0.05}
    return sections.Execution.model_validate(fixed | rest | changes)


def _ladder(levels: Sequence[Levels], part: int) -> np.ndarray:
    table = np.full((len(levels), LEVELS), np.nan)
    for row, side in enumerate(levels):
        table[row, : len(side)] = [level[part] for level in side]
    return table


def _ns(seconds: np.ndarray) -> np.ndarray:
    return START + np.rint(seconds * SECOND).astype(np.int64)
