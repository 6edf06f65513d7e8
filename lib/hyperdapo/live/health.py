"""How the feed is: what came and how fast, what of it did not count, how old it was, and why nothing was decided."""

from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

import numpy as np

from hyperdapo.times import MS_NS, SECOND_NS

_RECENT = 200  # messages over which delays are shown
_BOOKS = 20  # intervals over which the cadence is shown
_CHANGE = 3.0  # the factor by which a cadence must change to be called a change
_RATE_S = 5.0  # wall seconds over which messages are counted


@dataclass
class Cadence:
    """How often the exchange stamps books of one asset: seconds, now and usually, and how often the latter changed."""

    usual_s: float = 0.0
    changes: int = 0
    _times: deque[int] = field(default_factory=lambda: deque(maxlen=_BOOKS + 1))

    def book(self, ns: int) -> None:
        """A book was stamped."""
        self._times.append(ns)
        if len(self._times) <= _BOOKS // 2:
            return
        now_s = self.now_s
        if not self.usual_s:
            self.usual_s = now_s
        elif not 1 / _CHANGE < now_s / self.usual_s < _CHANGE:
            self.usual_s, self.changes = now_s, self.changes + 1

    @property
    def now_s(self) -> float:
        """The median interval of the last books, market seconds."""
        return float(np.median(np.diff(list(self._times)))) / SECOND_NS if len(self._times) > 1 else 0.0


class Health:
    """Counts of one session, since this process began; `away` says why there is no connection, where there is none."""

    def __init__(self) -> None:
        self.frames = self.malformed = self.connections = 0
        self.drops, self.refused, self.dropped = Counter[str](), Counter[str](), Counter[str]()
        self.orders, self.voided, self.control = Counter[str](), Counter[str](), Counter[str]()
        self.cadence: dict[str, Cadence] = {}
        self.away = ""
        self.lag_ms = self.longest_lag_ms = 0.0
        self.least_delay_ms = np.inf
        self._delays: deque[float] = deque(maxlen=_RECENT)
        self._rate: deque[tuple[float, int]] = deque()

    def frame(self) -> None:
        """A frame came."""
        self.frames += 1

    def delayed(self, delay_ns: int) -> None:
        """How long after the exchange's stamp a message came, by our clock: below zero, our clock is behind."""
        self._delays.append(delay_ns / MS_NS)
        self.least_delay_ms = min(self.least_delay_ms, delay_ns / MS_NS)

    def waited(self, lag_ms: float) -> None:
        """How long on the wall a message waited for the ones before it."""
        self.lag_ms, self.longest_lag_ms = lag_ms, max(self.longest_lag_ms, lag_ms)

    def rate(self) -> float:
        """Messages a second on the wall, of late."""
        self._rate.append((monotonic(), self.frames))
        while len(self._rate) > 2 and self._rate[0][0] < self._rate[-1][0] - _RATE_S:
            self._rate.popleft()
        (begin, first), (end, last) = self._rate[0], self._rate[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    @property
    def delay_ms(self) -> float:
        """The median of late."""
        return float(np.median(self._delays)) if self._delays else 0.0

    def line(self) -> str:
        """All that matters in one line."""
        cadence = " ".join(f"{asset} {one.now_s:.2f} s" for asset, one in self.cadence.items())
        return f"({self.away}) " * bool(self.away) + (
            f"{self.rate():.0f} messages/s, books every {cadence or '-'}, delay {self.delay_ms:.0f} ms, "
            f"queue lag {self.lag_ms:.1f} ms (most {self.longest_lag_ms:.0f}), connections {self.connections}, "
            f"drops {self.drops.total()}, malformed {self.malformed}, not counted {self.dropped.total()}, "
            f"refused {self.refused.total()}, orders {self.orders.total()}, void {self.voided.total()}"
        )

    def summary(self) -> dict[str, Any]:
        """The same as plain values, for `health.json`."""
        counts = {
            name: dict(sorted(getattr(self, name).items()))
            for name in ("drops", "refused", "dropped", "orders", "voided", "control")
        }
        numbers = {name: getattr(self, name) for name in ("frames", "malformed", "connections", "longest_lag_ms")}
        least = None if np.isinf(self.least_delay_ms) else self.least_delay_ms
        cadence = {
            asset: {key: value for key, value in asdict(one).items() if key[0] != "_"} | {"now_s": one.now_s}
            for asset, one in self.cadence.items()
        }
        return numbers | counts | {"least_delay_ms": least, "delay_ms": self.delay_ms, "cadence": cadence}
