"""A session of paper trading: the exchange's messages, decisions on the grid of time, orders, and what becomes of them.

Everything happens in the order of `Clock`: a frame gets its stamp when it is read, and is noted with it before anything
is made of it. A decision time is answered when it has passed and all that came by then has been heard, and before
anything later is: what a decision knows is what the record says, and nothing else. What takes long, a language model
and the kernel, works in threads beside.
"""

import asyncio
import json
import signal
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, NamedTuple

import pandas as pd

from hyperdapo.errors import DataError, EndpointError
from hyperdapo.files import atomic, write_table
from hyperdapo.live.connection import protocol
from hyperdapo.live.connection import record as recording
from hyperdapo.live.connection.client import listen
from hyperdapo.live.connection.clock import Clock
from hyperdapo.live.deciding import Choice, Decider, Known, choose, decider_of
from hyperdapo.live.desk import Desk, Due
from hyperdapo.live.health import Cadence, Health
from hyperdapo.live.session import Json, Log, Session
from hyperdapo.market import native
from hyperdapo.times import MINUTE_NS, MS_NS, SECOND_NS

FLUSH_S = 1.0  # on the wall: what a kill loses at most
SETTLE_S = 0.5  # on the wall, between two looks at what has ended
_AT_ONCE = 100  # frames that are heard before others have their turn
_SHOWN = 200  # characters of a frame that is no message
BUSY, AWAY, FRESH = "still deciding", "no connection", "so soon after a connection"


class Heard(NamedTuple):
    """What waits to be taken in: when it came, of which asset, and the message; None: the connection was lost then."""

    ns: int
    asset: str
    message: native.Message | None


class Paper:
    """One session while it runs, as the listener of its connection."""

    def __init__(self, session: Session, decider: Decider | None = None) -> None:
        asked = session.asked
        self.session, self.asked, self.parameters = session, asked, asked.parameters()
        self.decider = decider or decider_of(asked)
        self.desks = {
            asset: Desk(asked.parameters(asset), asset, asked.daily_volume.get(asset)) for asset in asked.assets
        }
        self.health, self.clock = Health(), None
        self.health.cadence = {asset: Cadence() for asset in asked.assets}
        self.policy_ms: deque[dict[str, float]] = deque(maxlen=1000)
        self.begins_ns = self.ends_ns = self._minutes_ns = 0
        self._step_ns = round(self.parameters.features.decision_interval_s * SECOND_NS)
        self._every_ns = round(self.parameters.live.order_every_s * SECOND_NS)
        self._next_ns, self._opened_ns, self._connected = 0, 0, False
        self._queue, self._draining = deque[Heard](), False
        self._deciding: asyncio.Future[list[Choice]] | None = None
        self._failed: asyncio.Future[None] | None = None
        self._threads = ThreadPoolExecutor(1, "decisions"), ThreadPoolExecutor(1, "kernel")
        for name in ("orders.parquet", "health.json"):  # those of an end that is none any more
            (session.folder / name).unlink(missing_ok=True)
        self._resume()
        self.recorders = {asset: recording.Recorder(session.folder, asset) for asset in asked.assets}
        self._log, self._odd = Log(session.folder / "decisions.jsonl"), Log(session.folder / "odd.jsonl")

    clock: Clock | None

    # What the connection tells.

    def opened(self, header: str | None) -> None:
        """See `client.Listener`."""
        if self.clock is None:
            self.clock = Clock.of(header)
            now_ns = self.clock.now()
            if now_ns < self._next_ns - self._step_ns:
                raise DataError(
                    f"session {self.session.name} ends later than the market begins that is listened to now: a replay "
                    "begins anew when its server does; begin another session"
                )
            self.begins_ns, self.ends_ns = now_ns, now_ns + self._minutes_ns
            self._next_ns = self._next_ns or -(-now_ns // self._step_ns) * self._step_ns
        self.health.connections += 1
        self.health.away = ""
        self._connected, self._opened_ns = True, self.clock.now()

    def received(self, frame: bytes) -> bool:
        """See `client.Listener`."""
        assert self.clock is not None
        message = native.native(frame)
        if isinstance(message, native.BookMessage | native.QuoteMessage):
            self.clock.sent(message.data.time * MS_NS)
        ns = self.clock.now()
        self.health.frames += 1
        if message is None:
            return self._other(ns, frame)
        asset = _coin(message)
        if asset not in self.desks:
            self.health.dropped["other_coin"] += 1
            return True
        self.recorders[asset].write(ns, frame)
        self._queue.append(Heard(ns, asset, message))
        self._go_on()
        return True

    def lost(self, cause: str) -> None:
        """See `client.Listener`."""
        self.health.drops[cause] += 1
        self.health.away, self._connected = cause, False
        if self.clock is not None:
            for asset, recorder in self.recorders.items():
                if recorder.lost():
                    self._queue.append(Heard(recorder.last_ns, asset, None))
            self._go_on()

    def _other(self, ns: int, frame: bytes) -> bool:
        """A frame without market data: an answer of the exchange, or none of its messages at all."""
        control = protocol.control(frame)
        known = control is not None and (control.channel not in native.CHANNELS)
        if control is None or not known:
            self.health.malformed += 1
            self._odd.write({"ns": ns, "frame": frame[:_SHOWN].decode("latin-1"), "bytes": len(frame)})
            return False
        self.health.control[control.channel] += 1
        if control.channel == "error":
            self._odd.write({"ns": ns, "error": str(control.data)})
            if protocol.UNKNOWN in str(control.data):
                self._fail(EndpointError(f"the exchange says: {control.data}; does it list {self.asked.assets}?"))
        return True

    # In the order of time.

    def _go_on(self) -> None:
        if not self._draining:
            self._draining = True
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        """Hear what waits, a part of it, and answer the decision times that have passed."""
        assert self.clock is not None
        self._draining = False
        if self._queue:
            self.health.waited(1e3 * self.clock.wall_s(self.clock.now() - self._queue[0].ns))
        for _ in range(_AT_ONCE):
            if not self._queue:
                break
            heard = self._queue[0]
            if heard.message is not None and heard.ns > self._next_ns:
                self._decide(self._next_ns)
            else:
                self._hear(self._queue.popleft())
        now_ns = self.clock.now()
        if self._queue:
            self._go_on()
        elif now_ns > self._next_ns:  # what comes from now on is stamped later
            self._decide(self._next_ns)
            self._go_on()

    def _hear(self, heard: Heard) -> None:
        desk = self.desks[heard.asset]
        if heard.message is None:
            desk.lose(heard.ns)
            return
        cause, data = desk.hear(heard.message, heard.ns), heard.message.data
        if cause:
            self.health.dropped[cause] += 1
        elif isinstance(heard.message, native.BookMessage):
            self.health.cadence[heard.asset].book(heard.message.data.time * MS_NS)
        if not cause and isinstance(data, native.BookData | native.QuoteData):
            self.health.delayed(heard.ns - data.time * MS_NS)

    # Decisions.

    def _decide(self, ns: int) -> None:
        """Answer one decision time of all assets."""
        self._next_ns = ns + self._step_ns
        if ns % self._every_ns or ns >= self.ends_ns:
            return
        begun, known = perf_counter(), dict[str, Known]()
        for asset, desk in self.desks.items():
            if cause := self._away(ns) or desk.refusal(ns):
                self._refuse(asset, ns, cause)
            else:
                known[asset] = desk.known(ns)
        if known:
            self._choose(ns, known, 1e3 * (perf_counter() - begun))

    def _away(self, ns: int) -> str:
        """Why nothing is decided, as far as that is the connection's fault."""
        if not self._connected or ns < self._opened_ns:
            return AWAY
        if ns - self._opened_ns < self.parameters.live.settle_s * SECOND_NS:
            return FRESH
        return BUSY if self._deciding is not None and not self._deciding.done() else ""

    def _refuse(self, asset: str, ns: int, cause: str) -> None:
        self.health.refused[cause] += 1
        self._log.write({"asset": asset, "decision_ns": ns, "refused": cause})

    def _choose(self, ns: int, known: Mapping[str, Known], features_ms: float) -> None:
        """Have the orders chosen, at once or in a thread, and send them then."""
        asked = self.decider, list(known.values()), self.parameters
        if self.decider.at_once:
            self._send(ns, known, choose(*asked), features_ms)
            return
        self._deciding = asyncio.get_running_loop().run_in_executor(self._threads[0], choose, *asked)
        self._deciding.add_done_callback(lambda chosen: self._chosen(ns, known, chosen, features_ms))

    def _chosen(
        self, ns: int, known: Mapping[str, Known], chosen: "asyncio.Future[list[Choice]]", features_ms: float
    ) -> None:
        if chosen.cancelled():
            return
        if error := chosen.exception():
            self._fail(error)
            return
        self._send(ns, known, chosen.result(), features_ms)

    def _send(self, ns: int, known: Mapping[str, Known], choices: list[Choice], features_ms: float) -> None:
        """Place the orders and note them; what they stand on is handed to the system first."""
        assert self.clock is not None
        for (asset, one), choice in zip(known.items(), choices, strict=True):
            desk, begun = self.desks[asset], perf_counter()
            order = desk.order(one, choice)
            policy_ms = 1e3 * self.clock.wall_s(self.clock.now() - ns)
            order = desk.send(order, policy_ms)
            self.health.orders[asset] += 1
            timing = {"features": features_ms} | choice.timing_ms | {"order": 1e3 * (perf_counter() - begun)}
            self.policy_ms.append(timing | {"policy": policy_ms})
            self.recorders[asset].flush()
            if asset not in self.asked.daily_volume and desk.daily_volume is not None:
                self.asked.daily_volume[asset] = desk.daily_volume
                self.session.save()
            self._log.write(_entry(asset, ns, one, choice, order, timing, dict(desk.stream.kept)))

    # What becomes of the orders.

    def standing(self) -> dict[str, pd.DataFrame]:
        """How the open orders of each asset stand, as far as is known."""
        if self.clock is None:
            return {}
        now_ns = self.clock.now()
        found = {asset: desk.standing(now_ns) for asset, desk in self.desks.items()}
        return {asset: orders for asset, orders in found.items() if orders is not None}

    async def _settle(self, last: bool = False) -> None:
        """Say for good what became of the orders that have ended."""
        assert self.clock is not None
        due = [found for desk in self.desks.values() if (found := desk.due(self.clock.now(), last)) is not None]
        for one in due:
            await self._settle_one(one, last)

    async def _settle_one(self, due: Due, last: bool) -> None:
        loop, asked = asyncio.get_running_loop(), self.asked
        rows, void = await loop.run_in_executor(self._threads[1], due.settle, asked.strategy, asked.seed)
        if len(rows):
            due.desk.ended.append(rows)
        if len(void):
            self.health.voided["the session ended" if last else "the data were interrupted"] += len(void)

    # The whole of it.

    async def run(self, minutes: float, show: Callable[["Paper"], None], show_s: float) -> None:
        """Trade for so many minutes of the market, and listen on until the orders have ended; Ctrl-C ends it at once.

        Raises
        ------
        EndpointError, DataError
            If there is nothing to listen to.
        """
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self._minutes_ns = round(minutes * MINUTE_NS)
        self._failed = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(listen(self.parameters.live, self.asked.assets, self, self.parameters.seed)),
            asyncio.create_task(self._keep_time(stopped)),
            asyncio.create_task(_every(FLUSH_S, self._flush)),
            asyncio.create_task(_every(show_s, lambda: show(self))),
            asyncio.create_task(stopped.wait()),
        ]
        try:
            ends: list[asyncio.Future[Any]] = [*tasks, self._failed]
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                end.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await self._end()
        show(self)

    async def _keep_time(self, stopped: asyncio.Event) -> None:
        """Answer decision times on which nothing comes, settle, and stop when all is done."""
        while self.clock is None:
            await asyncio.sleep(SETTLE_S / 10)
        until_ns, looked = self.clock.until_ns, 0.0
        loop = asyncio.get_running_loop()
        while True:
            now_ns = self.clock.now()
            if until_ns is not None and now_ns > until_ns:
                break
            if loop.time() > looked + SETTLE_S:
                looked = loop.time()
                await self._settle()
                if now_ns > self.ends_ns and not any(desk.open for desk in self.desks.values()):
                    break
            self._go_on()
            await asyncio.sleep(min(max(self.clock.wall_s(self._next_ns - now_ns), 0.001), SETTLE_S))
        stopped.set()

    async def _end(self) -> None:
        """Hear what is left, and write down everything."""
        if self.clock is not None:
            self.ends_ns = min(self.ends_ns, self._next_ns)
            while self._queue:
                self._drain()
            if self._deciding is not None:
                await asyncio.wait([self._deciding])
                await asyncio.sleep(0)
            await self._settle(last=True)
        for recorder in self.recorders.values():
            recorder.close()
        self._log.close()
        self._odd.close()
        for threads in self._threads:
            threads.shutdown()
        orders = self.orders()
        if len(orders):
            write_table(orders, self.session.folder, "orders")
        with atomic(self.session.folder / "health.json") as temporary:
            temporary.write_text(json.dumps(self.health.summary() | self._heard(), indent=1) + "\n")

    def _heard(self) -> Json:
        """What counted of each asset, what did not, and what a later message spoke against."""
        streams = {asset: desk.stream for asset, desk in self.desks.items()}
        names = ("kept", "dropped", "hindsight")
        return {
            "streams": {asset: {name: dict(getattr(one, name)) for name in names} for asset, one in streams.items()}
        }

    def orders(self) -> pd.DataFrame:
        """The orders that have ended, in the order of their decisions: `orders.parquet`."""
        rows = [frame for desk in self.desks.values() for frame in desk.ended]
        if not rows:
            return pd.DataFrame()
        return pd.concat(rows).sort_values(["decision_ns", "asset"], kind="stable", ignore_index=True)

    def _flush(self) -> None:
        for recorder in self.recorders.values():
            recorder.flush()

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    # What was recorded before.

    def _resume(self) -> None:
        """Hear the record of a session that goes on, with the orders that it had sent."""
        sent: dict[str, deque[Json]] = {asset: deque() for asset in self.desks}
        for entry in self.session.entries():
            self._next_ns = max(self._next_ns, entry["decision_ns"] + self._step_ns)
            if "action" in entry:
                sent[entry["asset"]].append(entry)
        for asset, desk in self.desks.items():
            path = self.session.folder / f"{asset}.ndjson.gz"
            if path.exists() and (lines := recording.read(path)):
                for line in [*lines, recording.Line(lines[-1].ns, b"")]:
                    while line.text and sent[asset] and line.ns > sent[asset][0]["decision_ns"]:
                        self._send_again(desk, sent[asset].popleft())
                    if not line.text:
                        desk.lose(line.ns)
                    elif (message := native.native(line.text)) is not None:
                        desk.hear(message, line.ns)
                while sent[asset]:
                    self._send_again(desk, sent[asset].popleft())
                self._next_ns = max(self._next_ns, -(-(lines[-1].ns + 1) // self._step_ns) * self._step_ns)

    def _send_again(self, desk: Desk, entry: Json) -> None:
        known = desk.known(entry["decision_ns"])
        desk.send(desk.order(known, Choice(entry["action"], (), "", {})), entry["policy_ms"])


def _coin(message: native.Message) -> str:
    if isinstance(message, native.TradesMessage):
        return message.data[0].coin if message.data else ""
    return message.data.coin


def _entry(
    asset: str, ns: int, known: Known, choice: Choice, order: pd.DataFrame, timing: Mapping[str, float], kept: Json
) -> Json:
    """A line of `decisions.jsonl`."""
    names = ("order_id", "side", "size", "arrival_mid", "kind", "limit_price", "post_only", "policy_ms")
    row = {name: order[name].iloc[0] for name in names}
    said = {"action": choice.action, "probabilities": choice.probabilities, "prompt": choice.prompt}
    decision = {"asset": asset, "decision_ns": ns} | row | said | {"timing_ms": dict(timing), "kept": kept}
    return decision | {"features": {name: value for name, value in known.features.items() if name != "asset"}}


async def _every(seconds: float, call: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        call()
