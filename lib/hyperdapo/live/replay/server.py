"""A local WebSocket server that plays a recording, or the synthetic exchange, in the exchange's public protocol.

Subscriptions are acknowledged, pings answered, mistakes named as the exchange names them, and the first `trades`
message of a subscription repeats old prints. Messages are sent as they were recorded, at the recorded times and `speed`
times as fast; what time it is in the recording stands in the handshake's answer (`connection.clock`). The recording
begins when the first client comes. A blank line of it, where its recorder lost the connection, loses ours.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from websockets.asyncio.server import Server, ServerConnection, broadcast
from websockets.asyncio.server import serve as listen_for_clients
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from hyperdapo.errors import EndpointError
from hyperdapo.live.connection import protocol
from hyperdapo.live.connection.clock import HEADER, Clock
from hyperdapo.live.replay.faults import Faults, Mischief
from hyperdapo.live.replay.source import Sent, Source
from hyperdapo.market.native import CHANNELS
from hyperdapo.times import SECOND_NS

BACKFILL = 10
"""Messages of prints that the first `trades` message of a subscription repeats."""
ENDED = "the recording has ended"

_LEAD_S = 0.5  # on the wall, from the first connection to the first message
_STEP_S = 0.002  # the shortest sleep
_MOST_WAITING = 2**24  # bytes that a client may leave unread: then it is cut off, as the exchange does with slow ones
_HALF_FRAME = b'\x81\x7e\x01\x00{"channel":"l2Book","data":{'  # a head that promises 256 bytes, and too few
_ANSWERED = 0.2  # s within which the last frames go out

Channel = tuple[str, str]
"""Name of a channel, and coin."""


class Exchange:
    """What plays a source to whoever connects."""

    def __init__(self, source: Source, speed: float, faults: Faults = Faults()) -> None:  # noqa: B008
        self.source, self.speed, self.ended = source, speed, asyncio.Event()
        self._minutes, self._faults = source.minutes(), faults
        self._minute = next(self._minutes, [])  # a synthetic market is played now, before anybody waits for it
        self._begins_ns = self._minute[0].ns if self._minute else source.span[0]
        self._mischief = Mischief(faults, self._begins_ns)
        self._clock: Clock | None = None
        self._begun = asyncio.Event()
        self._listeners: dict[Channel, set[ServerConnection]] = {}
        self._connections: set[ServerConnection] = set()
        self._prints: dict[str, deque[bytes]] = {coin: deque(maxlen=BACKFILL) for coin in source.coins}
        self._refused_until = 0.0
        self._opening = set(source.coins)  # coins whose next `trades` message is the recorder's own backfill
        self._heard = False

    async def serve(self, port: int) -> Server:
        """Listen on 127.0.0.1; port 0: a free one.

        Raises
        ------
        EndpointError
            If the port is taken.
        """
        try:
            return await listen_for_clients(
                self._attend,
                "127.0.0.1",
                port,
                process_request=self._process_request,
                process_response=self._process_response,
                compression=None,
                ping_interval=None,
                close_timeout=1,
            )
        except OSError as error:
            raise EndpointError(f"cannot serve on port {port} ({error.strerror}); choose another with --port") from None

    async def play(self) -> None:
        """Send the recording once somebody has connected, and close the connections when it has ended."""
        await self._begun.wait()
        minute = self._minute
        while minute:
            following = asyncio.create_task(asyncio.to_thread(next, self._minutes, []))
            for sent in minute:
                await self._until(sent.ns)
                self._play(sent)
            minute = await following
        await self._until(self.source.span[1])
        await asyncio.sleep(_ANSWERED)
        self.ended.set()
        for connection in list(self._connections):
            await connection.close(1001, ENDED)

    def drop(self, half_frame: bool = False) -> None:
        """Lose all connections at once, as an exchange that goes down does."""
        self._refused_until = asyncio.get_running_loop().time() + self._faults.refuse_s
        for connection in list(self._connections):
            if half_frame:
                connection.transport.write(_HALF_FRAME)
                connection.transport.close()
            else:
                connection.transport.abort()
            self._forget(connection)

    @property
    def now(self) -> int:
        """Nanoseconds of the recording."""
        return self._clock.now() if self._clock else self._begins_ns

    async def _until(self, ns: int) -> None:
        assert self._clock is not None
        while (left_s := self._clock.wall_s(ns - self._clock.now())) > 0:
            await asyncio.sleep(max(left_s, _STEP_S))

    def _play(self, sent: Sent) -> None:
        how = self._mischief.drop(sent.ns)
        if how is not None:
            self.drop(how)
        if not sent.channel:
            if self._heard:
                self.drop()
            self._heard, self._opening = False, set(self.source.coins)
            return
        self._heard = True
        if sent.channel == "trades":
            self._prints[sent.coin].append(sent.text)
            if sent.coin in self._opening:
                self._opening.discard(sent.coin)
                return
        if self._mischief.silent(sent.ns):
            return
        for channel, coin, text in self._mischief.sent(*sent):
            listeners = self._listeners.get((channel, coin), set()) if channel else self._connections
            broadcast(listeners, text, text=True)
            for connection in [one for one in listeners if one.transport.get_write_buffer_size() > _MOST_WAITING]:
                connection.transport.abort()
                self._forget(connection)

    async def _attend(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        try:
            async for text in connection:
                if not self._mischief.silent(self.now):
                    for answer in self._answers(connection, text):
                        await connection.send(answer, text=True)
        except ConnectionClosed:
            pass
        finally:
            self._forget(connection)

    def _answers(self, connection: ServerConnection, text: bytes | str) -> Iterator[bytes]:
        shown = text if isinstance(text, str) else text.decode(errors="replace")
        try:
            request = protocol.request(text)
        except ValueError:
            yield protocol.refused(f"Error parsing JSON into valid websocket request: {shown}")
            return
        wanted = request.subscription
        if request.method == "ping":
            yield protocol.PONG
        elif request.method not in ("subscribe", "unsubscribe") or wanted is None:
            yield protocol.refused(f"Error parsing JSON into valid websocket request: {shown}")
        elif wanted.type not in CHANNELS or wanted.coin not in self.source.coins:
            yield protocol.refused(f"{protocol.UNKNOWN} {shown}")
        else:
            yield from self._subscribed(connection, request, wanted, shown)

    def _subscribed(
        self, connection: ServerConnection, request: protocol.Request, wanted: protocol.Subscription, shown: str
    ) -> Iterator[bytes]:
        listeners = self._listeners.setdefault((wanted.type, wanted.coin), set())
        begins = request.method == "subscribe"
        if begins == (connection in listeners):
            yield protocol.refused(f"Already {'subscribed' if begins else 'unsubscribed'}: {shown}")
            return
        yield protocol.acknowledged(request)
        if not begins:
            listeners.discard(connection)
            return
        listeners.add(connection)
        if wanted.type == "trades" and self._prints[wanted.coin]:
            yield _joined(self._prints[wanted.coin])

    def _forget(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)
        for listeners in self._listeners.values():
            listeners.discard(connection)

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if asyncio.get_running_loop().time() < self._refused_until:
            return connection.respond(503, "the exchange is down\n")
        return None

    def _process_response(self, connection: ServerConnection, request: Request, response: Response) -> None:
        if self._clock is None:
            lead_ns = round(_LEAD_S * self.speed * SECOND_NS)
            self._clock = Clock(self._begins_ns - lead_ns, self.speed, self.source.span[1])
            self._begun.set()
        response.headers[HEADER] = self._clock.header()


def _joined(messages: Sequence[bytes]) -> bytes:
    """Several `trades` messages as one."""
    prints = [text[text.index(b"[") + 1 : text.rindex(b"]")] for text in messages]
    return b'{"channel":"trades","data":[%s]}' % b",".join(prints)


class Serving:
    """A replay that another thread plays: its address, and what tests do to it."""

    def __init__(self, address: str, exchange: Exchange, loop: asyncio.AbstractEventLoop) -> None:
        self.address, self.exchange, self._loop = address, exchange, loop

    def drop(self, half_frame: bool = False) -> None:
        """Lose all connections, now."""
        self._loop.call_soon_threadsafe(self.exchange.drop, half_frame)


@contextmanager
def serve(source: Source, speed: float, port: int = 0, faults: Faults = Faults()) -> Iterator[Serving]:  # noqa: B008
    """Play a source on 127.0.0.1 from a thread of its own; raises as `Exchange.serve`."""
    loop, exchange = asyncio.new_event_loop(), Exchange(source, speed, faults)
    thread = threading.Thread(target=loop.run_forever, name="replay-live", daemon=True)
    thread.start()

    async def start() -> tuple[Server, asyncio.Task[None]]:
        return await exchange.serve(port), asyncio.create_task(exchange.play())

    async def stop(server: Server, playing: asyncio.Task[None]) -> None:
        playing.cancel()
        with suppress(asyncio.CancelledError):
            await playing
        server.close()
        await server.wait_closed()

    try:
        server, playing = asyncio.run_coroutine_threadsafe(start(), loop).result()
        address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        try:
            yield Serving(address, exchange, loop)
        finally:
            asyncio.run_coroutine_threadsafe(stop(server, playing), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def replay(source: Source, speed: float, port: int, faults: Faults) -> None:
    """Play a source until it has ended or Ctrl-C is pressed, and say where; raises as `Exchange.serve`."""

    async def play() -> None:
        exchange = Exchange(source, speed, faults)
        server = await exchange.serve(port)
        bound = server.sockets[0].getsockname()[1]
        coins = " ".join(source.coins)
        print(f"ws://127.0.0.1:{bound}/ws plays {coins} {speed:g} times as fast once somebody connects", flush=True)
        await exchange.play()
        print(ENDED, flush=True)
        server.close()
        await server.wait_closed()

    try:
        asyncio.run(play())
    except KeyboardInterrupt:
        print("stopped", flush=True)
