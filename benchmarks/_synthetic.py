"""The market that is timed: BTC of the synthetic exchange, with the parameters of the profile `sample`."""

import numpy as np

from hyperdapo.market.book import Market
from hyperdapo.market.columns import select
from hyperdapo.params import load
from hyperdapo.synthetic.exchange import simulate
from hyperdapo.synthetic.tape import Tape
from hyperdapo.times import HOUR_NS

ASSET = "BTC"
CHANNELS = ("l2Book", "bbo", "trades")
PARAMETERS = load("sample", {"execution": {"impact_coefficient_bps": 70, "queue_exponent": 1}})
SZ_DECIMALS = PARAMETERS.contracts[ASSET].sz_decimals


def tape(hours: int) -> Tape:
    """What a recorder sees of it from the start of the profile's span."""
    synthetic, start_ns = PARAMETERS.synthetic, PARAMETERS.source.start_ns
    model, end_ns = synthetic.assets[ASSET], start_ns + hours * HOUR_NS
    return simulate(ASSET, model, SZ_DECIMALS, synthetic.predictability, PARAMETERS.seed, start_ns, end_ns)


def market(hours: int) -> Market:
    """The same as columns, without the backfill."""
    made = tape(hours)
    trades = select(made.trades, slice(made.backfilled, None))
    return Market(made.asset, made.sz_decimals, made.book, made.bbo, trades, gaps=np.zeros((0, 2), dtype=np.int64))
