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
