"""A market of a few made-up messages, through everything that is compiled: nothing is, then, while a real one waits."""

from hyperdapo.live.deciding import Decider, choose
from hyperdapo.live.desk import Desk
from hyperdapo.market import native
from hyperdapo.market.grid import tick_size
from hyperdapo.params import Parameters
from hyperdapo.times import MS_NS, SECOND_NS

_BEGINS_NS = 1_756_684_800 * SECOND_NS  # a full hour, after the last change of fees
_SECONDS = 400
_MIDDLE = 100.0


def rehearse(parameters: Parameters, asset: str, decider: Decider) -> None:
    """Hear, decide, send and settle once; the parameters are those of the asset, as measured."""
    short = parameters.features.model_copy(update={"warmup_s": 0.0})
    desk = Desk(parameters.model_copy(update={"features": short}), asset)
    step = round(parameters.features.decision_interval_s * SECOND_NS)
    tick = float(tick_size(_MIDDLE, parameters.contracts[asset].sz_decimals))
    for second in range(_SECONDS):
        ns = _BEGINS_NS + second * SECOND_NS
        for message in _messages(asset, second, ns // MS_NS, tick):
            desk.hear(message, ns)
        if ns % step == 0 and second:
            known = desk.known(ns)
            if known.features["warm"]:
                desk.send(desk.order(known, choose(decider, [known], parameters)[0]), 0.0)
    desk.standing(ns)
    due = desk.due(ns, last=True)
    if due is not None:
        due.settle("rehearsal", 0)


def _messages(asset: str, second: int, ms: int, tick: float) -> list[native.Message]:
    middle = _MIDDLE + tick * (second // 7 % 5)
    bids, asks = (
        [native.Level(round(middle + side * tick * (place + 1), 6), 50.0 + place) for place in range(20)]
        for side in (-1, 1)
    )
    prints = [native.Print(asset, "A" if second % 2 else "B", bids[0].px, 1.0 + second % 3, ms, second)]
    context = native.Context(middle, middle, 1e-5, 1e6)
    return [
        native.BookMessage(native.BookData(asset, ms, (bids, asks))),
        native.QuoteMessage(native.QuoteData(asset, ms, (bids[0], asks[0]))),
        native.TradesMessage(prints),
        native.ContextMessage(native.ContextData(asset, context)),
    ]
