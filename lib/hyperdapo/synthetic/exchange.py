"""A synthetic exchange whose truth is known: native Hyperliquid messages from agents on a real matching engine.

The efficient price is a martingale of jumps plus a drift that follows a latent signal. The signal always tilts resting
depth and the sign of market orders; `predictability` sets only which share of the variance of the efficient price's
60 s return is that drift. At 0 nothing visible predicts anything: the null world of docs/design.md, Evidence.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import log, sqrt

import numpy as np

from hyperdapo.errors import ParameterError
from hyperdapo.market.columns import Integers
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, tick_size
from hyperdapo.params import Parameters
from hyperdapo.sections import Notices, SyntheticAsset
from hyperdapo.synthetic import matching
from hyperdapo.synthetic.notices import pushes
from hyperdapo.synthetic.order_book import DEPTH, Probes, Rules, State, empty_book, empty_messages, no_probes
from hyperdapo.synthetic.tape import Recorder, Tape, joined
from hyperdapo.times import HOUR_NS, MINUTE_NS, by_day

PLAYED_NS = 6 * HOUR_NS  # the length of a tape
RETURN_S = 60.0  # horizon of `volatility_bps` and of `predictability`
LADDER_SPAN = 4.0  # how far the price may go, as a factor
WARMUP_NS = MINUTE_NS  # played before the recorder connects
RESTING_ORDERS = 1 << 14  # at most; a block can print each of them
QUOTED_LEVELS, MOVED_LEVELS = 24, 16  # a side, and at most so many more for what the price moves in a second
HALF_SPREAD = 0.55  # ticks for each tick of mean spread beyond the first; measured likewise


@dataclass(frozen=True)
class World:
    """The market of one asset: its description, and the seed from which all its draws descend.

    Each asset draws from its own stream, made of `seed` and its name.
    """

    asset: str
    model: SyntheticAsset
    sz_decimals: int
    predictability: float
    seed: int
    notices: Notices

    @classmethod
    def of(cls, parameters: Parameters, asset: str) -> "World":
        """As the parameters describe it."""
        synthetic, contract = parameters.synthetic, parameters.contracts[asset]
        model, known, seed = synthetic.assets[asset], synthetic.predictability, parameters.seed
        return cls(asset, model, contract.sz_decimals, known, seed, synthetic.notices)

    def play(self, start_ns: int, end_ns: int, among: Probes | None = None) -> Iterator[Tape]:
        """Yield tape by tape what a recorder connected from `start_ns` on sees.

        Probes (`among` the orders of the others) fill in what becomes of them; without, all orders are of the others.
        The same world and start give the same tapes; another `end_ns` gives the same messages up to the earlier end.

        Raises
        ------
        ParameterError
            If a level would hold less than the minimum order, or the price leaves a factor of four around `price_usd`.
        """
        rules, seed = _rules(self, start_ns, end_ns), np.uint64(self.stream().integers(2**64, dtype=np.uint64))
        among = no_probes() if among is None else among
        state, book = _opening(self, start_ns - WARMUP_NS), empty_book(len(self.ladder), RESTING_ORDERS)
        messages = empty_messages(books=2_000, tops=10_000, prints=40_000)  # a quarter of an hour
        recorder = Recorder(self.asset, self.sz_decimals, self.ladder, self.model, self.seed)
        for part in by_day(start_ns, end_ns, PLAYED_NS):
            while state.exchange_ns < part[1]:
                messages.used[:] = 0
                try:
                    state = State(*matching.run(book, state, rules, self.ladder, part[1], messages, seed, among))
                except ValueError as error:
                    raise ParameterError(f"synthetic {self.asset}: {error}") from None
                recorder.add(messages)
            yield recorder.tape(*part)

    def simulate(self, start_ns: int, end_ns: int, among: Probes | None = None) -> Tape:
        """The whole of what `play` yields, for spans that fit into memory."""
        return joined(list(self.play(start_ns, end_ns, among)))

    def stream(self, *purpose: int) -> np.random.Generator:
        """The draws of this world for one purpose; none: its market."""
        return np.random.default_rng([self.seed, zlib.crc32(self.asset.encode()), *purpose])

    @cached_property
    def ladder(self) -> Integers:
        """The prices of its levels, in units of `10 ** (sz_decimals - 6)` USD."""
        return ladder(self.model.price_usd, self.sz_decimals)

    @property
    def lot_usd(self) -> float:
        """The smallest size, at the opening price."""
        return self.model.price_usd * 10.0**-self.sz_decimals


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


def _rules(world: World, start_ns: int, end_ns: int) -> Rules:
    model, lot_usd = world.model, world.lot_usd
    per_root_second = model.volatility_bps * 1e-4 / sqrt(RETURN_S)
    minimum_lots = int(np.ceil(MINIMUM_NOTIONAL_USD / lot_usd))
    ticks_per_second = per_root_second * model.price_usd / float(tick_size(model.price_usd, world.sz_decimals))
    behind = np.arange(QUOTED_LEVELS + min(int(ticks_per_second), MOVED_LEVELS))
    growth = np.maximum(behind, 1.0) ** model.depth_growth
    usd = np.where(behind == 0, model.depth_usd, model.depth_behind_usd * growth)
    orders = np.where(behind == 0, matching.TOUCH_ORDERS, matching.LEVEL_ORDERS * growth)
    depth = np.zeros(len(behind), DEPTH)
    depth["lots"], depth["orders"] = usd / lot_usd, orders
    depth["spread"] = np.where(behind == 0, model.touch_log_sd, matching.LEVEL_SD)
    if (usd / orders / lot_usd).min() < 2 * minimum_lots:
        raise ParameterError(f"depth_usd {model.depth_usd:g} is too little for several orders of 10 USD; raise it")
    revised = min(model.revision_s / model.signal_s, 1.0)
    return Rules(
        signal_s=model.signal_s,
        revision_rate=1 / model.revision_s,
        revised=revised,
        informed=per_root_second * sqrt(world.predictability * model.signal_s / (2 - revised)),
        noise=per_root_second * sqrt(1 - world.predictability),
        half_spread=HALF_SPREAD * (model.spread_ticks - 1),
        depth=depth,
        touch_tilt=model.touch_tilt,
        depth_tilt=model.depth_tilt,
        flow_tilt=model.flow_tilt,
        splitting=model.splitting,
        minimum_lots=minimum_lots,
        market_order_rate=model.orders_per_min / 60,
        branching=model.branching,
        market_lots=model.order_usd / lot_usd,
        market_sd=model.order_log_sd,
        impact=model.impact_bps * 1e-4,
        sniping=model.sniping,
        pushes=pushes(world.notices, world.asset, world.seed, start_ns, end_ns),
    )


def _opening(world: World, at_ns: int) -> State:
    units = world.model.price_usd * 10 ** (6 - world.sz_decimals)
    level = int(np.searchsorted(world.ladder, units, side="right")) - 1
    return State(0, at_ns, at_ns, at_ns, log(units), level, 0.0, 0.0, 0.0, 0.0, 0, 0)
