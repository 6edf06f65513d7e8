"""A synthetic exchange whose truth is known: native Hyperliquid messages from agents on a real matching engine.

The efficient price is a martingale of jumps plus a drift that follows a latent signal. The signal always tilts resting
depth and the sign of market orders; `predictability` sets only which share of the variance of the efficient price's
60 s return is that drift. At 0 nothing visible predicts anything: the null world of docs/design.md, Evidence.
"""

import zlib
from collections.abc import Iterator
from math import exp, log, sqrt

import numpy as np

from hyperdapo.errors import ParameterError
from hyperdapo.market.columns import Integers
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, tick_size
from hyperdapo.sections import SyntheticAsset
from hyperdapo.synthetic import matching
from hyperdapo.synthetic.matching import BID, Probes, Rules, State, empty_book, empty_messages, no_probes
from hyperdapo.synthetic.tape import Recorder, Tape, joined
from hyperdapo.times import HOUR_NS, MINUTE_NS, by_day

PLAYED_NS = 6 * HOUR_NS  # the length of a tape
RETURN_S = 60.0  # horizon of `volatility_bps` and of `predictability`
NEWS_RATE = 0.4  # jumps of the efficient price per second
LADDER_SPAN = 4.0  # how far the price may go, as a factor
WARMUP_NS = MINUTE_NS  # played before the recorder connects
RESTING_ORDERS = 1 << 14  # at most; a block can print each of them
PRINTS_PER_MARKET_ORDER = 2.75  # measured on long runs of the four assets
ORDERS_AT_TOUCH = 5.7  # mean number at a best level; measured likewise
HALF_SPREAD = 0.55  # ticks for each tick of mean spread beyond the first; measured likewise


def play(
    asset: str,
    model: SyntheticAsset,
    sz_decimals: int,
    predictability: float,
    seed: int,
    start_ns: int,
    end_ns: int,
    among: Probes | None = None,
) -> Iterator[Tape]:
    """Play the market of `asset` and yield tape by tape what a recorder connected from `start_ns` on sees.

    Probes (`among` the orders of the others) fill in what becomes of them; without, all orders are of the others.

    The same arguments give the same tapes; another `end_ns` gives the same messages up to the earlier end. Each asset
    draws from its own stream, made of `seed` and its name.

    Raises
    ------
    ParameterError
        If a level would hold less than the minimum order, or the price leaves a factor of four around `price_usd`.
    """
    prices = ladder(model.price_usd, sz_decimals)
    rules = _rules(model, sz_decimals, predictability)
    rng = np.random.default_rng([seed, zlib.crc32(asset.encode())])
    among = no_probes() if among is None else among
    state, book = _opening(model, sz_decimals, prices, start_ns - WARMUP_NS), empty_book(len(prices), RESTING_ORDERS)
    messages = empty_messages(books=2_000, tops=10_000, prints=40_000)  # a quarter of an hour
    recorder = Recorder(asset, sz_decimals, prices, model, seed)
    for part in by_day(start_ns, end_ns, PLAYED_NS):
        while state.exchange_ns < part[1]:
            messages.used[:] = 0
            try:
                state = State(*matching.run(book, state, rules, prices, part[1], messages, rng, among))
            except ValueError as error:
                raise ParameterError(f"synthetic {asset}: {error}") from None
            recorder.add(messages)
        yield recorder.tape(*part)


def simulate(
    asset: str,
    model: SyntheticAsset,
    sz_decimals: int,
    predictability: float,
    seed: int,
    start_ns: int,
    end_ns: int,
    among: Probes | None = None,
) -> Tape:
    """The whole of what `play` yields, for spans that fit into memory."""
    return joined(list(play(asset, model, sz_decimals, predictability, seed, start_ns, end_ns, among)))


def ladder(price_usd: float, sz_decimals: int) -> Integers:
    """Every valid price within a factor of four, ascending, in units of `10 ** (sz_decimals - 6)` USD."""
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
    ratio = RETURN_S / model.signal_s
    integrated_signal = model.signal_s * sqrt(2 * (ratio - 1 + exp(-ratio)))  # deviation of its sum over 60 s
    noise = per_second * sqrt(1 - predictability)
    lot_usd = model.price_usd * 10.0**-sz_decimals
    mean_lots = model.depth_usd / ORDERS_AT_TOUCH / lot_usd
    minimum_lots = int(np.ceil(MINIMUM_NOTIONAL_USD / lot_usd))
    if mean_lots < 2 * minimum_lots:
        raise ParameterError(f"depth_usd {model.depth_usd:g} is too little for several orders of 10 USD; raise it")
    ticks_per_second = per_second * model.price_usd / float(tick_size(model.price_usd, sz_decimals))
    return Rules(
        signal_s=model.signal_s,
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
