"""The market that is timed: BTC of the synthetic exchange, with the parameters of the profile `sample`."""

from hyperdapo.market.book import Market
from hyperdapo.params import load
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.tape import Tape
from hyperdapo.times import HOUR_NS

ASSET = "BTC"
CHANNELS = ("l2Book", "bbo", "trades")
PARAMETERS = load("sample", {"execution": {"impact_coefficient_bps": 70, "queue_exponent": 1}})
SZ_DECIMALS = PARAMETERS.contracts[ASSET].sz_decimals


def tape(hours: int) -> Tape:
    """What a recorder sees of it from the start of the profile's span."""
    start_ns = PARAMETERS.source.start_ns
    return World.of(PARAMETERS, ASSET).simulate(start_ns, start_ns + hours * HOUR_NS)


def market(hours: int) -> Market:
    """The same as columns, without the backfill."""
    return tape(hours).market()
