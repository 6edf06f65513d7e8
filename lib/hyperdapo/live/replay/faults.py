"""What goes wrong with a feed, on purpose: for tests, and for a demonstration that shows what a session makes of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from hyperdapo.market.native import FAST_LEVELS
from hyperdapo.times import SECOND_NS

_GARBAGE = (
    b"{]",
    b"\x00\xff\xfe",
    b'{"channel":"l2Book","data":{"coin":',
    b"[1,2,3]",
    b'"hello"',
    b'{"channel":"trades"}',
)


@dataclass(frozen=True)
class Faults:
    """Seconds are those of the market since the first message; a period is (from, to).

    `drop_at_s`: the connections are lost, `half_frame_at_s`: in the middle of a frame. `refuse_s`: for so long after
    that (on the wall) no connection is taken. `silent_s`: periods in which connections are taken and nothing is sent.
    `slow_s`: periods in which a book comes every 5 s only. `garbage_every`, `repeat_every`, `swap_every`: each so many
    messages nonsense is sent, a message sent again, or sent after the next; 0: never. `second_book`: each whole book is
    followed by one of 5 levels a side, as a second subscription under the same name brings it; `unmarked`: it does not
    say that it is another.
    """

    drop_at_s: tuple[float, ...] = ()
    half_frame_at_s: tuple[float, ...] = ()
    refuse_s: float = 0.0
    silent_s: tuple[tuple[float, float], ...] = ()
    slow_s: tuple[tuple[float, float], ...] = ()
    garbage_every: int = 0
    repeat_every: int = 0
    swap_every: int = 0
    second_book: bool = False
    unmarked: bool = False


class Mischief:
    """Does to the messages of a replay what `Faults` say."""

    SLOW_NS = 5 * SECOND_NS

    def __init__(self, faults: Faults, begins_ns: int) -> None:
        self._faults, self._begins_ns = faults, begins_ns
        self._sent, self._held, self._book_ns = 0, list[tuple[str, str, bytes]](), dict[str, int]()
        drops = [(at_s, False) for at_s in faults.drop_at_s] + [(at_s, True) for at_s in faults.half_frame_at_s]
        self._drops = sorted(drops, reverse=True)

    def drop(self, ns: int) -> bool | None:
        """Whether the connections are lost by now, and then whether within a frame; None: they are not."""
        if not self._drops or ns < self._at(self._drops[-1][0]):
            return None
        return self._drops.pop()[1]

    def silent(self, ns: int) -> bool:
        """Whether nothing is sent now."""
        return any(self._at(begin) <= ns < self._at(end) for begin, end in self._faults.silent_s)

    def sent(self, ns: int, channel: str, coin: str, text: bytes) -> Iterator[tuple[str, str, bytes]]:
        """Channel, coin and text of what is sent in place of a message; the channel of nonsense is empty."""
        faults, slow = self._faults, any(self._at(begin) <= ns < self._at(end) for begin, end in self._faults.slow_s)
        if channel == "l2Book" and slow and ns - self._book_ns.get(coin, 0) < self.SLOW_NS:
            return
        if channel == "l2Book":
            self._book_ns[coin] = ns
        self._sent += 1
        if faults.garbage_every and self._sent % faults.garbage_every == 0:
            yield "", coin, _GARBAGE[self._sent // faults.garbage_every % len(_GARBAGE)]
        if faults.swap_every and self._sent % faults.swap_every == 0:
            self._held.append((channel, coin, text))
            return
        yield channel, coin, text
        if faults.repeat_every and self._sent % faults.repeat_every == 0:
            yield channel, coin, text
        if channel == "l2Book" and faults.second_book:
            yield channel, coin, _five_levels(text, self._faults.unmarked)
        yield from self._held
        self._held.clear()

    def _at(self, seconds: float) -> int:
        return self._begins_ns + round(seconds * SECOND_NS)


def _five_levels(text: bytes, unmarked: bool) -> bytes:
    """The same book, cut to 5 levels a side; it says that it is a fast one, or not."""
    message = msgspec.json.decode(text)
    data = message["data"]
    data["levels"] = [side[:FAST_LEVELS] for side in data["levels"]]
    return msgspec.json.encode(message if unmarked else message | {"data": data | {"fast": True}})
