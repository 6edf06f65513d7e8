"""The exchange's own messages as types, and the stamp that a recorder puts before each.

A line is `2025-09-04T19:46:56.8699350Z {"channel": "l2Book" | "bbo" | "trades" | "activeAssetCtx", "data": ...}`.
Tardis writes seven decimals of a second; other recorders write none, three, six or nine, and are understood. msgspec
decodes and checks a message at once; numbers may be sent as text, which is how the exchange sends prices.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
import numpy as np

from hyperdapo.market.columns import Nanoseconds
from hyperdapo.times import MS_NS, SECOND_NS

CHANNELS = ("l2Book", "bbo", "trades", "activeAssetCtx")
STAMP_LENGTH = 28  # of 2025-09-04T19:46:56.8699350Z, as Tardis writes it
LAST_MS = (2**63 - 1) // MS_NS
FAST_LEVELS = 5  # of a `fast` book, a side
LAST_SECOND = (2**63 - 1) // SECOND_NS  # the first that no longer fits nanoseconds as a whole
_CHANNEL = re.compile(rb'"channel"\s*:\s*"(\w+)"')
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z(?: |$)")
_POWERS = 100 * 10 ** np.arange(6, -1, -1)  # ns of the seven decimals of a stamp

_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=LAST_MS)]


class Level(msgspec.Struct, gc=False):
    """One price level: USD and coin."""

    px: float
    sz: float


class BookData(msgspec.Struct, gc=False):
    """`l2Book`: bids and asks, best first; stamped in milliseconds.

    A subscription may ask for another book than the whole one: with `fast` for 5 levels a side every half second, with
    `nSigFigs` for prices rounded to so many figures, and only messages of that kind carry a `spread`.
    """

    coin: str
    time: _Milliseconds
    levels: tuple[list[Level], list[Level]]
    fast: bool | None = None
    spread: float | None = None


class QuoteData(msgspec.Struct, gc=False):
    """`bbo`: best bid and ask, each null where there is none."""

    coin: str
    time: _Milliseconds
    bbo: tuple[Level | None, Level | None]


class Print(msgspec.Struct, gc=False):
    """One fill of `trades`; `side` is its aggressor's: B buys, A sells."""

    coin: str
    side: Literal["A", "B"]
    px: float
    sz: float
    time: _Milliseconds
    tid: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Context(msgspec.Struct, gc=False):
    """Mark and oracle price (USD), funding (a share per hour), open interest (coin)."""

    markPx: float
    oraclePx: float
    funding: float
    openInterest: float


class ContextData(msgspec.Struct, gc=False):
    """`activeAssetCtx`."""

    coin: str
    ctx: Context


class BookMessage(msgspec.Struct, gc=False, tag_field="channel", tag="l2Book"):
    """A message of `l2Book`."""

    data: BookData


class QuoteMessage(msgspec.Struct, gc=False, tag_field="channel", tag="bbo"):
    """A message of `bbo`."""

    data: QuoteData


class TradesMessage(msgspec.Struct, gc=False, tag_field="channel", tag="trades"):
    """A message of `trades`."""

    data: list[Print]


class ContextMessage(msgspec.Struct, gc=False, tag_field="channel", tag="activeAssetCtx"):
    """A message of `activeAssetCtx`."""

    data: ContextData


class _AnyMessage(msgspec.Struct):
    channel: str


Message = BookMessage | QuoteMessage | TradesMessage | ContextMessage
_KINDS = (Level, BookData, QuoteData, Print, BookMessage, QuoteMessage, TradesMessage)
FIELDS = ("channel", *sorted({field.encode_name for kind in _KINDS for field in msgspec.structs.fields(kind)}))
"""Names of fields that mean something in a message of books, quotes or prints."""

_decode = msgspec.json.Decoder(Message, strict=False).decode
_decode_any = msgspec.json.Decoder(_AnyMessage).decode


def native(text: bytes) -> Message | None:
    """The message of a line after its stamp, or None where it is not exactly one of ours."""
    try:
        message: Message = _decode(text)
        return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def is_other_channel(text: bytes) -> bool:
    """Whether the text is a message of a channel that is not among `CHANNELS`."""
    try:
        return _decode_any(text).channel not in CHANNELS
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def channel_of(line: bytes) -> str:
    """The channel of a replay line, however its JSON is spaced; empty where it names none."""
    match = _CHANNEL.search(line)
    return match[1].decode() if match else ""


def stamp_length(line: bytes) -> int:
    """How many bytes the stamp has that a line opens with; `STAMP_LENGTH` where it opens with none."""
    return line.find(b"Z", 0, STAMP_LENGTH + 2) + 1 or STAMP_LENGTH


def local_times(lines: Sequence[bytes]) -> Nanoseconds:
    """Nanoseconds UTC of the stamps that (n,) lines open with; -1 where a line opens with none."""
    stamps = np.array([line[:STAMP_LENGTH] for line in lines], dtype=f"S{STAMP_LENGTH}")
    characters = stamps.view(np.uint8).reshape(-1, STAMP_LENGTH)
    fraction = characters[:, 20:27].astype(np.int64) - ord("0")
    valid = (characters[:, 19] == ord(".")) & (characters[:, 27] == ord("Z"))
    valid &= ((fraction >= 0) & (fraction <= 9)).all(axis=1)
    seconds = stamps.astype("S19")
    begins = np.flatnonzero(np.append(True, seconds[1:] != seconds[:-1])[: len(lines)])
    known = np.array([_whole_second(bytes(seconds[row])) for row in begins], dtype=np.int64)
    second = np.repeat(known, np.diff(begins, append=len(lines)))
    times = np.where(valid & (second >= 0), second * SECOND_NS + fraction @ _POWERS, -1)
    for row in np.flatnonzero(~valid).tolist():
        times[row] = _other_time(lines[row])
    return times


def local_time(stamp: bytes) -> int:
    """The same of one stamp."""
    return int(local_times([stamp])[0])


def _other_time(line: bytes) -> int:
    """The same of a stamp that has not seven decimals."""
    match = _STAMP.match(line)
    second = _whole_second(match[1]) if match else -1
    return second * SECOND_NS + int((match[2] or b"0").ljust(9, b"0")) if match and second >= 0 else -1


@lru_cache(maxsize=1024)
def _whole_second(stamp: bytes) -> int:
    try:
        moment = datetime.fromisoformat(stamp.decode("ascii"))
    except ValueError:
        return -1
    second = int(moment.replace(tzinfo=UTC).timestamp())
    return second if moment.tzinfo is None and second < LAST_SECOND else -1
