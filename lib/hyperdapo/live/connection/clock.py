"""What time it is in the market that is listened to.

Of the exchange itself it is what the clock on the wall shows. A recording is played at other times and at another pace;
who plays it says so once, in a header of the handshake's answer: what time it is there, how many seconds pass in one of
ours, and when the recording ends. So no message differs from the exchange's, and no stamp in one is changed.
"""

from collections.abc import Callable
from time import perf_counter_ns, time_ns

from hyperdapo.errors import DataError

HEADER = "X-Replay-Clock"
"""`NS SPEED UNTIL_NS` in the answer to the handshake of a replay; the exchange sends none."""

_TICK_NS = 100  # of a recorder's stamp: seven decimals of a second


class Clock:
    """Market time that never goes back, in whole ticks of a recorder's stamp: what is recorded is what was seen.

    `speed` is in seconds of the market a second; `until_ns`, where it is known, when the market ends.
    """

    def __init__(
        self,
        market_ns: int,
        speed: float = 1.0,
        until_ns: int | None = None,
        ticking: Callable[[], int] = perf_counter_ns,
    ) -> None:
        """It is `market_ns` now; `ticking` counts the nanoseconds that pass on the wall."""
        self.speed, self.until_ns = speed, until_ns
        self._ticking, self._begun, self._market_ns, self._latest = ticking, ticking(), market_ns, 0

    @classmethod
    def of(cls, header: str | None) -> "Clock":
        """The wall's, or that of a replay, from the header of its handshake.

        Raises
        ------
        DataError
            If the header is none that a replay sends.
        """
        if header is None:
            return cls(time_ns())
        try:
            market_ns, speed, until_ns = header.split()
            clock = cls(int(market_ns), float(speed), int(until_ns))
        except ValueError:
            raise DataError(f"{HEADER}: {header!r} is no time, speed and end of a replay") from None
        if not clock.speed > 0:
            raise DataError(f"{HEADER}: {header!r} has no speed above 0")
        return clock

    def now(self) -> int:
        """Nanoseconds UTC of the market."""
        passed = (self._ticking() - self._begun) * self.speed
        self._latest = max(self._latest, int(self._market_ns + passed) // _TICK_NS * _TICK_NS)
        return self._latest

    def sent(self, ns: int) -> None:
        """Whom we listen to has stamped something at `ns`: a replay's clock is set forward, so that it is not behind.

        It was set by a header that took a while to come, and that while counts `speed` times. To the exchange's own
        stamps ours is not set: how the two clocks differ is shown.
        """
        if self.until_ns is not None:
            self._market_ns += max(ns - self.now(), 0)

    def header(self) -> str:
        """What a replay says of this clock."""
        return f"{self.now()} {self.speed!r} {self.until_ns}"

    def wall_s(self, market_ns: int) -> float:
        """Seconds on the wall in which so many nanoseconds pass in the market."""
        return market_ns / self.speed / 1e9
