"""A synthetic exchange whose truth is known: native Hyperliquid messages from agents on a real matching engine.

The efficient price is a martingale of jumps plus a drift that follows a latent signal. The signal always tilts resting
depth and the sign of market orders; `predictability` sets only which share of the variance of the efficient price's
60 s return is that drift. At 0 nothing visible foretells anything: the null world of DESIGN §7.
"""

import zlib
from math import exp, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hyperdapo.errors import ParameterError
from hyperdapo.market import matching
from hyperdapo.market.book import BookSnapshots, Floats, TopOfBook, Trades
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, tick_size
from hyperdapo.market.layout import BID, Integers, Record, Rules, State, empty_book, empty_record
from hyperdapo.market.tape import Tape
from hyperdapo.schema import SyntheticAsset

RETURN_S = 60.0  # horizon of `volatility_bps` and of `predictability`
NEWS_RATE = 0.4  # jumps of the efficient price per second
LADDER_SPAN = 4.0  # how far the price may go, as a factor
WARMUP_NS = 60_000_000_000  # played before the recorder connects
BACKFILL = 10  # prints of the opening trades message
RESTING_ORDERS = 1 << 14  # at most; a block can print each of them
PRINTS_PER_MARKET_ORDER = 2.75  # measured on long runs of the four assets
ORDERS_AT_TOUCH = 5.7  # mean number at a best level; measured likewise
HALF_SPREAD = 0.55  # ticks for each tick of mean spread beyond the first; measured likewise


def simulate(
    asset: str,
    model: SyntheticAsset,
    sz_decimals: int,
    predictability: float,
    seed: int,
    start_ns: int,
    end_ns: int,
) -> Tape:
    """Play the market of `asset` and return what a recorder connected from `start_ns` to `end_ns` (local time) sees.

    The same arguments give the same tape; another `end_ns` gives the same messages up to the earlier end. Each asset
    draws from its own stream, made of `seed` and its name.

    Raises
    ------
    ParameterError
        If a level would hold less than the minimum order, or the price leaves a factor of four around `price_usd`.
    """
    prices = ladder(model.price_usd, sz_decimals)
    rules = _rules(model, sz_decimals, predictability)
    rng = np.random.default_rng([seed, zlib.crc32(asset.encode())])
    state, book = _opening(model, sz_decimals, prices, start_ns - WARMUP_NS), empty_book(len(prices), RESTING_ORDERS)
    stretches: list[list[Integers]] = []
    record = empty_record(books=2_000, tops=10_000, prints=40_000)  # a quarter of an hour
    with tqdm(total=(end_ns - start_ns) // 10**9, desc=f"synthetic {asset}", unit="s", mininterval=0.5) as progress:
        while state.exchange_ns < end_ns:
            record.used[:] = 0
            try:
                state = State(*matching.run(book, state, rules, prices, end_ns, record, rng))
            except ValueError as error:
                raise ParameterError(f"synthetic {asset}: {error}") from None
            stretches.append(_stretch(record))
            progress.update(min(max(state.exchange_ns - start_ns, 0) // 10**9, progress.total) - progress.n)
    columns = [np.concatenate(parts) for parts in zip(*stretches, strict=True)]
    return _tape(asset, sz_decimals, _round(prices * 10.0 ** (sz_decimals - 6)), columns, start_ns, end_ns)


def ladder(price_usd: float, sz_decimals: int) -> Integers:
    """Every valid price within a factor of four, ascending, in units of `10 ** (sz_decimals - 6)` USD (DESIGN §4)."""
    units = 10 ** (6 - sz_decimals)
    low, high = price_usd / LADDER_SPAN * units, price_usd * LADDER_SPAN * units
    decades = []
    for magnitude in range(-(6 - sz_decimals), 16):
        tick = round(float(tick_size(10.0**magnitude, sz_decimals)) * units)
        decade = round(10.0**magnitude * units)
        decades.append(np.arange(max(decade, int(low) // tick * tick), min(decade * 10, high), tick, dtype=np.int64))
    return np.concatenate(decades)


def _rules(model: SyntheticAsset, sz_decimals: int, predictability: float) -> Rules:
    per_second = model.volatility_bps * 1e-4 / sqrt(RETURN_S)
    ratio = RETURN_S / matching.SIGNAL_S
    integrated_signal = matching.SIGNAL_S * sqrt(2 * (ratio - 1 + exp(-ratio)))  # deviation of its sum over 60 s
    noise = per_second * sqrt(1 - predictability)
    lot_usd = model.price_usd * 10.0**-sz_decimals
    mean_lots = model.depth_usd / ORDERS_AT_TOUCH / lot_usd
    minimum_lots = int(np.ceil(MINIMUM_NOTIONAL_USD / lot_usd))
    if mean_lots < 2 * minimum_lots:
        raise ParameterError(f"depth_usd {model.depth_usd:g} is too little for several orders of 10 USD; raise it")
    ticks_per_second = per_second * model.price_usd / float(tick_size(model.price_usd, sz_decimals))
    return Rules(
        drift=sqrt(predictability) * per_second * sqrt(RETURN_S) / integrated_signal,
        news_rate=NEWS_RATE,
        news_size=noise * sqrt(1 / (2 * NEWS_RATE)),
        half_spread=HALF_SPREAD * (model.spread_ticks - 1),
        mean_lots=mean_lots,
        minimum_lots=minimum_lots,
        quoted_levels=min(24 + int(3 * ticks_per_second), 80),
        market_order_rate=model.trades_per_min / 60 / PRINTS_PER_MARKET_ORDER,
    )


def _opening(model: SyntheticAsset, sz_decimals: int, prices: Integers, at_ns: int) -> State:
    units = model.price_usd * 10 ** (6 - sz_decimals)
    level = int(np.searchsorted(prices, units, side="right")) - 1
    return State(at_ns, at_ns, at_ns, log(units), level, 0.0, 0.0, 0.0, BID)


def _stretch(record: Record) -> list[Integers]:
    used = np.repeat(record.used, 2)
    return [rows[:count].copy() for rows, count in zip(record[:-1], used, strict=True)]


def _tape(asset: str, sz_decimals: int, usd: Floats, columns: list[Integers], start_ns: int, end_ns: int) -> Tape:
    """Cut the messages to the connection, put its backfill first, and turn levels and lots into USD and coin."""
    book_ns, book, top_ns, top, print_ns, prints = columns
    changed = np.append(True, np.any(top[1:] != top[:-1], axis=(1, 2)))
    top_ns, top = top_ns[changed], top[changed]
    tid = (np.arange(len(prints)) + zlib.crc32(asset.encode())) * 0x2545F4914F6CD % 2**50  # odd factor: one to one
    seen = [_within(times, start_ns, end_ns) for times in (book_ns, top_ns, print_ns)]
    earlier = np.arange(max(seen[2].start - BACKFILL, 0), seen[2].start)
    first = [times[rows][:1, 1] for times, rows in zip((book_ns, top_ns, print_ns), seen, strict=True)]
    print_ns[earlier, 1] = np.concatenate(first).min()
    rows = slice(int(seen[2].start) - len(earlier), seen[2].stop)
    coin = 10.0**-sz_decimals
    book_ns, book, top_ns, top = book_ns[seen[0]], book[seen[0]], top_ns[seen[1]], top[seen[1]]
    price, size = _priced(book, usd, coin)
    best_price, best_size = _priced(top, usd, coin)
    return Tape(
        asset=asset,
        sz_decimals=sz_decimals,
        book=BookSnapshots(book_ns[:, 0], book_ns[:, 1], price[:, 0], size[:, 0], price[:, 1], size[:, 1]),
        bbo=TopOfBook(top_ns[:, 0], top_ns[:, 1], best_price[:, 0], best_size[:, 0], best_price[:, 1], best_size[:, 1]),
        trades=Trades(
            exchange_ns=print_ns[rows, 0],
            local_ns=print_ns[rows, 1],
            price=usd[prints[rows, 0]],
            size=_round(prints[rows, 1] * coin),
            side=np.where(prints[rows, 2] == BID, 1, -1).astype(np.int8),
            tid=tid[rows],
        ),
        book_orders=book[..., 2].astype(np.int32),
        bbo_orders=top[..., 2].astype(np.int32),
        backfilled=len(earlier),
    )


def _within(times: Integers, start_ns: int, end_ns: int) -> slice:
    """Rows that the recorder saw from `start_ns` to `end_ns`; times are (n, 2): exchange, local."""
    first, last = np.searchsorted(times[:, 1], [start_ns, end_ns])
    return slice(int(first), int(last))


def _priced(rows: Integers, usd: Floats, coin: float) -> tuple[Floats, Floats]:
    """Prices in USD and sizes in coin of (..., level | lots | orders), NaN where there is no level."""
    absent = rows[..., 0] < 0
    return np.where(absent, np.nan, usd[rows[..., 0]]), np.where(absent, np.nan, _round(rows[..., 1] * coin))


def _round(values: NDArray[Any]) -> Floats:
    """Rid of what floating point added: no price or size has more than six decimals."""
    return np.asarray(np.round(values, 6), dtype=np.float64)
