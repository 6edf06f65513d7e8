"""Small markets for tests: random but valid messages of one asset, in the order received."""

from pathlib import Path

import numpy as np

from hyperdapo.feed import clean
from hyperdapo.files import write_json
from hyperdapo.market.book import Market
from hyperdapo.market.columns import LEVELS, BookSnapshots, TopOfBook, Trades
from hyperdapo.market.grid import tick_size
from hyperdapo.market.storage import writer
from hyperdapo.params import load

SECOND = 1_000_000_000
START_NS = 1_754_006_400 * SECOND


def random_market(seed: int, seconds: int = 900, price: float = 4000.0, sz_decimals: int = 4) -> Market:
    """A market whose mid walks by ticks: a book every 0.5 s, quotes and prints at random times, some received late."""
    rng = np.random.default_rng(seed)
    tick = float(tick_size(price, sz_decimals))

    def times(count: int) -> tuple[np.ndarray, np.ndarray]:
        exchange = START_NS + np.sort(rng.integers(0, seconds * 1000, count)) * 1_000_000
        local = exchange + rng.integers(300_000_000, 600_000_000, count)
        order = np.argsort(local, kind="stable")
        return exchange[order], local[order]

    walk = np.cumsum(rng.integers(-1, 2, seconds * 4))

    def bids(exchange: np.ndarray) -> np.ndarray:
        return np.round(price + tick * walk[np.minimum((exchange - START_NS) // (SECOND // 4), len(walk) - 1)], 6)

    n_books, n_quotes, n_trades = 2 * seconds, 4 * seconds, seconds
    book_exchange, book_local = times(n_books)
    steps, best = np.arange(LEVELS) * tick, bids(book_exchange)[:, None]
    visible = rng.integers(5, LEVELS + 1, n_books)[:, None]
    hidden = np.arange(LEVELS) >= visible
    sides = {
        "bid_price": np.where(hidden, np.nan, np.round(best - steps, 6)),
        "bid_size": np.where(hidden, np.nan, rng.integers(1, 500, (n_books, LEVELS)) / 10),
        "ask_price": np.where(hidden, np.nan, np.round(best + tick + steps, 6)),
        "ask_size": np.where(hidden, np.nan, rng.integers(1, 500, (n_books, LEVELS)) / 10),
    }
    quote_exchange, quote_local = times(n_quotes)
    quote_bid = bids(quote_exchange)
    quotes = TopOfBook(
        quote_exchange,
        quote_local,
        quote_bid,
        rng.integers(1, 500, n_quotes) / 10,
        np.round(quote_bid + tick, 6),
        rng.integers(1, 500, n_quotes) / 10,
    )
    trade_exchange, trade_local = times(n_trades)
    side = rng.choice(np.array([-1, 1], dtype=np.int8), n_trades)
    trade_price = np.round(bids(trade_exchange) + np.where(side > 0, tick, 0.0), 6)
    trades = Trades(
        trade_exchange, trade_local, trade_price, rng.integers(1, 2000, n_trades) / 100, side, np.arange(n_trades)
    )
    book = BookSnapshots(book_exchange, book_local, **sides)
    return Market("ETH", sz_decimals, book, quotes, trades, np.zeros((0, 2), dtype=np.int64))


def recorded(path: Path, asset: str, sz_decimals: int) -> Market:
    """A real recording, cleaned."""
    market = clean.recorded(path, asset, load("smoke"))
    assert market.sz_decimals == sz_decimals
    return market


def save(market: Market, folder: Path) -> None:
    """Write what `Market.load` reads: the tables, and what it asks of `cleaning.json`."""
    with writer(folder) as append:
        append(market.book, market.bbo, market.trades, market.context)
    begins_ns, ends_ns = market.top.local_ns[[0, -1]].tolist()
    known = {"asset": market.asset, "sz_decimals": market.sz_decimals, "gaps": market.gaps.tolist()}
    write_json(known | {"begins_ns": begins_ns, "ends_ns": ends_ns}, folder, "cleaning.json")
