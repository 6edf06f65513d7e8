"""What a request knows of the market: the features of a state as they are sent, or those of the exchange's messages.

Messages go the way of the pipeline: they are decoded and cleaned as 02 does and become features as in 03. What is wrong
is refused, never mended.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from hyperdapo.errors import RequestError, StaleBookError, nearest
from hyperdapo.feed.clean import Cleaner
from hyperdapo.feed.messages import Decoder
from hyperdapo.market.book import Market
from hyperdapo.market.features import compute_features, decision_grid
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, on_grid, snap_size, tick_size
from hyperdapo.market.native import ContextMessage, Message, TradesMessage
from hyperdapo.params import Parameters
from hyperdapo.policy.prompts import FEATURES
from hyperdapo.serving.models import DecideRequest, Features
from hyperdapo.times import MS_NS, SECOND_NS, moment

_AHEAD_NS = 2 * SECOND_NS  # by which clocks may differ
_HARMLESS = {"l2Book_repeated", "bbo_repeated", "trades_repeated"}
_LEAST_TICKS = 1000  # below the touch: every action of `policy.actions` has a price there
_COLUMNS = [feature.column for feature in FEATURES]


@dataclass(frozen=True)
class State:
    """An order to be placed and what was known at `ns`: best quotes (USD) and the `columns` that the prompt reads.

    `cold_because` is that of `features.parquet`, and `seconds` how long it took to find all this out.
    """

    request: DecideRequest
    ns: int
    best_bid: float
    best_ask: float
    columns: Mapping[str, Any]
    cold_because: str = ""
    seconds: float = 0.0

    @property
    def mid(self) -> float:
        """USD."""
        return (self.best_bid + self.best_ask) / 2

    @property
    def side(self) -> int:
        """+1 for a buy, -1 for a sell."""
        return 1 if self.request.side == "buy" else -1

    def timed(self, seconds: float) -> "State":
        """The same, with how long it took."""
        return replace(self, seconds=seconds)


def read_state(request: DecideRequest, parameters: Parameters, assets: Sequence[str], clock_ns: int) -> State:
    """The state that a request describes, as known now: at its `now_ns`, else at `clock_ns`.

    Raises
    ------
    StaleBookError
        If what is known is older than `serving.max_book_age_s`.
    RequestError
        If it cannot be decided on: the message says why.
    """
    if request.asset not in assets:
        known = ", ".join(assets)
        raise RequestError(f"unknown asset {request.asset!r}{nearest(request.asset, assets)}; there are {known}")
    if request.objective not in parameters.orders.objectives:
        trained = ", ".join(parameters.orders.objectives)
        raise RequestError(f"no adapter was trained for the objective {request.objective!r}, only for {trained}")
    now_ns = clock_ns if request.now_ns is None else request.now_ns
    if request.features is not None:
        state = _of_features(request, request.features, now_ns, parameters)
    else:
        state = _of_messages(request, now_ns, parameters)
    _check_order(state, parameters.contracts[request.asset].sz_decimals)
    return state


def warm_up(parameters: Parameters, asset: str) -> None:
    """Read a book of two levels, so that what is compiled when it is first called is compiled now."""
    levels = [[{"px": price, "sz": 1.0}] for price in (1000.0, 1001.0)]
    book = {"channel": "l2Book", "data": {"coin": asset, "time": 0, "levels": levels}}
    objective = parameters.orders.objectives[0]
    asked = DecideRequest(asset=asset, side="buy", size=1.0, objective=objective, now_ns=0, messages=[book])
    with suppress(RequestError):  # a single book tells too little
        read_state(asked, parameters, [asset], 0)


def _of_features(request: DecideRequest, features: Features, now_ns: int, parameters: Parameters) -> State:
    _check_age("state", features.decision_ns, now_ns, parameters.serving.max_book_age_s)
    columns = features.columns | {"notice": features.notice, "notice_age_s": features.notice_age_s}
    return State(request, features.decision_ns, features.best_bid, features.best_ask, columns)


def _of_messages(request: DecideRequest, now_ns: int, parameters: Parameters) -> State:
    """What these messages tell at `now_ns`; each counts as received when it was stamped."""
    settings, asset = parameters.features, request.asset
    reach_s = settings.large_trade_window_s + settings.window_s
    lines = sorted(_stamped(_decoded(request.messages or ())), key=lambda line: line[0])
    if lines:
        _check_age("newest message", lines[-1][0], now_ns, parameters.serving.max_book_age_s)
        _check_age("oldest message", lines[0][0], now_ns, reach_s)
    market = _market(lines, asset, parameters)
    if not len(market.book.local_ns):
        raise RequestError(f"there is no l2Book of {asset} among the messages")
    _check_age("book", int(market.book.local_ns[-1]), now_ns, parameters.serving.max_book_age_s)
    known_ns = max(now_ns, int(market.top.local_ns[-1]))
    grid = decision_grid(market, settings.decision_interval_s, (int(market.top.local_ns[0]), known_ns))
    rows = compute_features(market, np.append(grid, known_ns), settings, max_gap_s=parameters.clean.max_gap_s)
    row = rows.iloc[-1]
    if undefined := [name for name in _COLUMNS if not np.isfinite(row[name])]:
        raise RequestError(
            f"{', '.join(undefined)} cannot be told from these messages: send books and trades of the last "
            f"{settings.window_s:g} s or more, or the features"
        )
    columns = {name: float(row[name]) for name in _COLUMNS} | {"notice": "", "notice_age_s": 0.0}
    bid, ask = float(row["best_bid"]), float(row["best_ask"])
    return State(request, known_ns, bid, ask, columns, str(row["cold_because"]))


def _decoded(sent: Sequence[Mapping[str, Any]]) -> Iterator[Message]:
    for place, message in enumerate(sent):
        try:
            yield msgspec.convert(message, Message, strict=False)
        except (msgspec.ValidationError, OverflowError) as error:
            raise RequestError(f"messages[{place}] is none of the exchange: {error}") from None


def _stamped(messages: Iterator[Message]) -> Iterator[tuple[int, bytes]]:
    """Stamp (ns) and line of each message that has one, each print by itself: so backfill is as good as any other."""
    for message in messages:
        if isinstance(message, ContextMessage):  # has no stamp, and no feature reads it
            continue
        parts = [message]
        if isinstance(message, TradesMessage):
            parts = [TradesMessage([each]) for each in message.data]
        for part in parts:
            ms = part.data[0].time if isinstance(part, TradesMessage) else part.data.time
            yield ms * MS_NS, msgspec.json.encode(part)


def _market(lines: Sequence[tuple[int, bytes]], asset: str, parameters: Parameters) -> Market:
    """The market that stamped lines tell of, as 02 reads it.

    Raises RequestError where 02 would drop any but a repeated one.
    """
    decoder, cleaner = Decoder(asset), Cleaner(parameters, asset)
    text = b"".join(b"%s %s\n" % (_stamp(ns), line) for ns, line in lines)
    piece = decoder.decode(text, 0, 2**62)
    piece = replace(piece, backfill=np.zeros_like(piece.backfill))
    book, bbo, trades, context = cleaner.clean(piece, decoder.ended_ns)
    gaps = np.array(cleaner.report(decoder)["gaps"], dtype=np.int64).reshape(-1, 2)
    if wrong := {
        cause: count for cause, count in (decoder.dropped + cleaner.dropped).items() if cause not in _HARMLESS
    }:
        told = ", ".join(f"{count} {cause}" for cause, count in sorted(wrong.items()))
        raise RequestError(f"not all messages can be trusted: {told}")
    return Market(asset, parameters.contracts[asset].sz_decimals, book, bbo, trades, gaps, context)


def _stamp(ns: int) -> bytes:
    return f"{moment(ns):%Y-%m-%dT%H:%M:%S}.{ns // MS_NS % 1000:03d}Z".encode()


def _check_age(what: str, ns: int, now_ns: int, most_s: float) -> None:
    age_s = (now_ns - ns) / SECOND_NS
    if age_s > most_s:
        raise StaleBookError(f"the {what} is {age_s:.1f} s old, and at most {most_s:g} s are allowed")
    if ns > now_ns + _AHEAD_NS:
        raise RequestError(f"the {what} is stamped {-age_s:.1f} s after now: set the clocks, or send now_ns")


def _check_order(state: State, decimals: int) -> None:
    """Raises RequestError where prices or sizes are not such as the exchange has."""
    request, bid, ask, own = state.request, state.best_bid, state.best_ask, state.request.own_order
    if bid >= ask:
        raise RequestError(f"the book is crossed: its best bid is {bid:g}, its best ask {ask:g}")
    for price in (bid, ask) if own is None else (bid, ask, own.limit_price):
        if not on_grid(price, decimals):
            raise RequestError(f"{price:g} is not on the price grid of {request.asset}")
    if bid < _LEAST_TICKS * tick_size(bid, decimals):
        raise RequestError(f"a best bid of {bid:g} has less than {_LEAST_TICKS} ticks below it")
    if abs(snap_size(request.size, decimals) - request.size) > 1e-9 * request.size:
        raise RequestError(f"the size {request.size:g} is no multiple of {10.0**-decimals:g}")
    if request.size * state.mid < MINIMUM_NOTIONAL_USD:
        value = request.size * state.mid
        raise RequestError(
            f"the order is worth {value:.2f} USD, and the exchange takes {MINIMUM_NOTIONAL_USD:g} at least"
        )
    if own is not None and state.side * (own.limit_price - (ask if state.side > 0 else bid)) >= 0:
        raise RequestError(
            f"an own {request.side} order at {own.limit_price:g} cannot rest between {bid:g} and {ask:g}"
        )
