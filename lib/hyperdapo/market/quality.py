"""What clean market data look like minute by minute, for the cleaning report."""

import numpy as np
import pandas as pd

from hyperdapo.market.book import Market

_MINUTE, _BPS, _NS_PER_S = 60_000_000_000, 1e4, 1e9


def by_minute(market: Market) -> pd.DataFrame:
    """One row per minute with a book.

    Returns
    -------
    `minute_ns`; medians of `spread_bps`, `depth_usd` (both best levels together), `reach_bps` (how far the visible
    levels reach, the nearer side) and `delay_s` (received minus stamped); counts of `prints`, `books` and `quotes`.
    """
    book, trades = market.book, market.trades
    mid = (book.bid_price[:, 0] + book.ask_price[:, 0]) / 2
    ends = [np.nanmax(np.abs(side - mid[:, None]), axis=1) for side in (book.bid_price, book.ask_price)]
    books = pd.DataFrame(
        {
            "minute_ns": book.local_ns // _MINUTE * _MINUTE,
            "spread_bps": (book.ask_price[:, 0] - book.bid_price[:, 0]) / mid * _BPS,
            "depth_usd": (book.bid_size[:, 0] + book.ask_size[:, 0]) * mid,
            "reach_bps": np.minimum(*ends) / mid * _BPS,
            "delay_s": (book.local_ns - book.exchange_ns) / _NS_PER_S,
        }
    )
    grouped = books.groupby("minute_ns")
    minutes = grouped.median().assign(books=grouped.size())
    for name, local_ns in (("prints", trades.local_ns), ("quotes", market.bbo.local_ns)):
        counts = pd.Series(local_ns // _MINUTE * _MINUTE).value_counts()
        minutes[name] = counts.reindex(minutes.index, fill_value=0)
    return minutes.reset_index()


def visible_levels(market: Market, ns: int) -> pd.DataFrame:
    """D(p) of eq. 2.3 at an instant: a row per visible level, nearest first.

    Returns
    -------
    `side` ("bid" or "ask"), `distance_bps` from mid (negative on the bid), `size_usd`, and `cumulative_usd` from the
    best level on; empty before the first book.
    """
    row = int(market.book_at(ns)[0])
    book, mid = market.book, float(market.mid_at(ns)[0])
    sides = {"bid": (book.bid_price, book.bid_size), "ask": (book.ask_price, book.ask_size)} if row >= 0 else {}
    frames = [pd.DataFrame(columns=["side", "distance_bps", "size_usd", "cumulative_usd"])]
    for name, (prices, sizes) in sides.items():
        visible = np.isfinite(prices[row])
        price, usd = prices[row, visible], prices[row, visible] * sizes[row, visible]
        columns = {
            "side": name,
            "distance_bps": (price / mid - 1) * _BPS,
            "size_usd": usd,
            "cumulative_usd": usd.cumsum(),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames[1:] or frames, ignore_index=True)
