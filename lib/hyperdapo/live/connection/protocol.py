"""What a client of the exchange's public WebSocket sends, and what it is answered besides market data.

Source: "Websocket" and "Subscriptions" of the exchange's API documentation. A subscription is acknowledged, a ping
answered by a pong; what cannot be understood is answered by a message of channel `error`, whose data is a sentence.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from hyperdapo.market.native import CHANNELS

PING = json.dumps({"method": "ping"})
UNKNOWN = "Invalid subscription"
"""How the error begins of a subscription to a channel or coin that there is not."""
PONG = b'{"channel":"pong"}'


class Subscription(msgspec.Struct, frozen=True, omit_defaults=True):
    """One channel of one coin; `fast` and `nSigFigs` ask for another book than the whole one."""

    type: str
    coin: str
    fast: bool | None = None
    nSigFigs: int | None = None


class Request(msgspec.Struct, omit_defaults=True):
    """What a client sends."""

    method: str
    subscription: Subscription | None = None


class Control(NamedTuple):
    """A message that is no market data: its channel, and the data of an acknowledgement or an error."""

    channel: str
    data: Any


def subscriptions(coins: Sequence[str]) -> list[Subscription]:
    """Every channel of each coin."""
    return [Subscription(channel, coin) for coin in coins for channel in CHANNELS]


def subscribe(subscription: Subscription) -> str:
    """The request for a channel."""
    return msgspec.json.encode(Request("subscribe", subscription)).decode()


def acknowledged(request: Request) -> bytes:
    """The answer to a subscription, or to its end."""
    return msgspec.json.encode({"channel": "subscriptionResponse", "data": request})


def refused(why: str) -> bytes:
    """The answer to what is not understood."""
    return msgspec.json.encode({"channel": "error", "data": why})


def control(text: bytes) -> Control | None:
    """A message that is no market data; None where it is no message of the exchange at all."""
    try:
        return Control(*_decode_control(text))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def request(text: bytes | str) -> Request:
    """What a client asks for.

    Raises
    ------
    ValueError
        If it is no request.
    """
    return _decode_request(text)


class _Any(msgspec.Struct):
    channel: str
    data: Any = None

    def __iter__(self) -> Any:
        return iter((self.channel, self.data))


_decode_control = msgspec.json.Decoder(_Any).decode
_decode_request = msgspec.json.Decoder(Request).decode
