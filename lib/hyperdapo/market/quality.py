"""What clean market data look like minute by minute, for the cleaning report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from hyperdapo.market.book import Book, Market
from hyperdapo.market.columns import BPS, BookSnapshots, Contexts, Floats, Nanoseconds, TopOfBook, Trades
from hyperdapo.market.native import FAST_LEVELS
from hyperdapo.times import MINUTE_NS, SECOND_NS

LISTING_4_8 = {"BTC": 0.71, "ETH": 0.65, "SOL": 0.68, "HYPE": 0.62}
"""Share of buys from which the draft's Listing 4.8 draws its training states."""
_MINUTES_OF_A_DAY = 1440


def by_minute(book: BookSnapshots, bbo: TopOfBook, trades: Trades, context: Contexts) -> pd.DataFrame:
    """One row per minute in which anything came.

    Returns
    -------
    `minute_ns`; medians over the minute's books of `spread_bps`, `depth_usd` (both best levels together), `reach_bps`
    (how far the visible levels reach, the nearer side) and `delay_s` (received minus stamped); medians over its
    contexts of `mark_price` and `oracle_price` (USD), `funding` (a share per hour) and `mark_error_bps` (published mark
    price against the median of bid, ask and oracle, eq. 2.2); counts of `prints`, `buys`
    (prints whose aggressor buys), `books` and `quotes`; `volume` and `bought` (coin).
    """
    mid = (book.bid_price[:, 0] + book.ask_price[:, 0]) / 2
    ends = [np.nanmax(np.abs(side - mid[:, None]), axis=1, initial=0) for side in (book.bid_price, book.ask_price)]
    books = {
        "spread_bps": (book.ask_price[:, 0] - book.bid_price[:, 0]) / mid * BPS,
        "depth_usd": (book.bid_size[:, 0] + book.ask_size[:, 0]) * mid,
        "reach_bps": np.minimum(*ends) / mid * BPS,
        "delay_s": (book.local_ns - book.exchange_ns) / SECOND_NS,
    }
    updates = {"mark_price": context.mark_price, "oracle_price": context.oracle_price, "funding": context.funding}
    updates["mark_error_bps"] = _mark_error_bps(bbo, context)
    buys = trades.side > 0
    flow = {"prints": 1, "buys": buys, "volume": trades.size, "bought": trades.size * buys}
    minutes = [
        _of_minute(book.local_ns, books).median(),
        _of_minute(book.local_ns, {"books": 1}).sum(),
        _of_minute(bbo.local_ns, {"quotes": 1}).sum(),
        _of_minute(trades.local_ns, flow).sum(),
        _of_minute(context.local_ns, updates).median(),
    ]
    joined = pd.concat(minutes, axis=1).sort_index().astype(float)
    counted = ["books", "quotes", *flow]
    return joined.fillna(dict.fromkeys(counted, 0.0)).rename_axis("minute_ns").reset_index()


def daily_volume(minutes: pd.DataFrame) -> float:
    """V of eq. 2.4: coin traded per 24 hours of the minutes in which anything came (`quality.parquet`)."""
    return float(minutes["volume"].sum()) * _MINUTES_OF_A_DAY / max(len(minutes), 1)


def level_counts(report: Mapping[str, Any]) -> pd.DataFrame:
    """How deep the kept books were, from the cleaning report.

    Returns
    -------
    `levels` visible on the shallower side, `books`, and `share` of all.
    """
    counts = pd.Series(report["levels"], dtype="int64")
    shares = counts / counts.sum()
    return pd.DataFrame({"levels": counts.index.astype(int), "books": counts.to_numpy(), "share": shares.to_numpy()})


def feed_name(report: Mapping[str, Any]) -> str:
    """What kind of book the feed holds, in words, from the cleaning report."""
    deepest, dropped = max(map(int, report["levels"])), report["dropped"]
    kinds = {"fast": "`fast` ones", "aggregated": "rounded ones (`nSigFigs`)", "off_bbo": "ones that contradict `bbo`"}
    others = [f"{dropped[f'l2Book_{kind}']} {name}" for kind, name in kinds.items() if dropped.get(f"l2Book_{kind}")]
    shallow = "only the exchange's `fast` book, 5 levels a side: depth reaches no further"
    name = shallow if deepest <= FAST_LEVELS else f"books of up to {deepest} levels a side"
    return f"{name}; dropped beside them: {', '.join(others)}" if others else name


def visible_levels(market: Market, ns: int) -> pd.DataFrame:
    """D(p) of eq. 2.3 at an instant: a row per visible level, nearest first.

    Returns
    -------
    `side` ("bid" or "ask"), `distance_bps` from mid (negative on the bid), `size_usd`, and `cumulative_usd` from the
    best level on; empty before the first book.
    """
    book = Book.at(market, ns)
    sides = {"bid": (book.bid_price[0], book.bid_size[0]), "ask": (book.ask_price[0], book.ask_size[0])}
    frames = []
    for name, (prices, sizes) in sides.items():
        price, usd = prices[np.isfinite(prices)], (prices * sizes)[np.isfinite(prices)]
        distance = (price / book.mid[0] - 1) * BPS
        levels = {"side": name, "distance_bps": distance, "size_usd": usd, "cumulative_usd": usd.cumsum()}
        frames.append(pd.DataFrame(levels))
    return pd.concat(frames, ignore_index=True)


def _mark_error_bps(bbo: TopOfBook, context: Contexts) -> Floats:
    """Distance of each published mark price from eq. 2.2 on the quote known then; NaN where there is none."""
    known = np.searchsorted(bbo.local_ns, context.local_ns, side="right") - 1
    quoted = np.concatenate([[[np.nan, np.nan]], np.column_stack([bbo.bid_price, bbo.ask_price])])[known + 1]
    median = np.median(np.column_stack([quoted, context.oracle_price]), axis=1)
    return np.asarray(np.abs(context.mark_price / median - 1) * BPS)


def _of_minute(local_ns: Nanoseconds, columns: Mapping[str, Any]) -> "pd.api.typing.DataFrameGroupBy":
    return pd.DataFrame(columns, index=pd.Index(local_ns, dtype="int64")).groupby(local_ns // MINUTE_NS * MINUTE_NS)
