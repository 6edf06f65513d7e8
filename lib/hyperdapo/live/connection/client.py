"""A client of the exchange's public WebSocket that stays connected.

It subscribes to every channel of its coins, pings, and connects anew, after a wait that doubles and is drawn from the
upper half of itself, when the connection is lost or silent. What it receives it hands on as it came.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from time import monotonic
from typing import Protocol
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidURI

from hyperdapo.errors import EndpointError
from hyperdapo.live.connection import protocol
from hyperdapo.live.connection.clock import HEADER
from hyperdapo.sections import Live

_FIRST_WAIT_S = 0.5
_LARGEST = 2**23  # bytes of a frame
_OPEN_S = 10.0
_QUEUED = 512  # frames that are read ahead


class Listener(Protocol):
    """Who is told what happens on the connection."""

    def opened(self, header: str | None) -> None:
        """A connection stands; the header is that of a replay's clock."""

    def received(self, frame: bytes) -> bool:
        """A frame came; True where it is a message of the exchange."""

    def lost(self, cause: str) -> None:
        """The connection is gone, or could not be made."""


async def listen(live: Live, coins: Sequence[str], listener: Listener, seed: int) -> None:
    """Connect, subscribe and receive until cancelled; `seed` is that of the waits.

    Raises
    ------
    EndpointError
        If the address is none.
    """
    waits, wait_s = random.Random(seed), _FIRST_WAIT_S
    while True:
        heard = False
        try:
            async with connect(
                live.endpoint,
                compression=None,
                ping_interval=None,
                open_timeout=_OPEN_S,
                close_timeout=1,
                max_size=_LARGEST,
                max_queue=_QUEUED,
                proxy=None if _here(live.endpoint) else True,
            ) as connection:
                assert connection.response is not None
                listener.opened(connection.response.headers.get(HEADER))
                heard, cause = await _attend(connection, live, coins, listener)
        except InvalidURI as error:
            raise EndpointError(f"live.endpoint: {error}") from None
        except (OSError, InvalidHandshake, InvalidMessage) as error:
            cause = f"no connection: {str(error) or type(error).__name__}"
        listener.lost(cause)
        wait_s = _FIRST_WAIT_S if heard else min(2 * wait_s, live.longest_wait_s)
        await asyncio.sleep(wait_s * waits.uniform(0.5, 1.0))


async def _attend(
    connection: ClientConnection, live: Live, coins: Sequence[str], listener: Listener
) -> tuple[bool, str]:
    """Subscribe and receive until the connection is lost: whether anything came, and why it ended."""
    latest, heard, silent = monotonic(), False, False

    async def ping() -> None:
        while True:
            await asyncio.sleep(live.ping_s)
            await connection.send(protocol.PING)

    async def watch() -> None:
        nonlocal silent
        while (left_s := latest + live.silent_s - monotonic()) > 0:
            await asyncio.sleep(left_s)
        silent = True
        connection.transport.abort()

    watchers = [asyncio.create_task(ping()), asyncio.create_task(watch())]
    try:
        for subscription in protocol.subscriptions(coins):
            await connection.send(protocol.subscribe(subscription))
        while True:
            frame = await connection.recv(decode=False)
            if listener.received(frame):
                latest, heard = monotonic(), True
    except ConnectionClosed as closed:
        said = closed.rcvd.reason if closed.rcvd and closed.rcvd.reason else "lost"
        return heard, f"silent for {live.silent_s:g} s" if silent else said
    finally:
        for watcher in watchers:
            watcher.cancel()
            with suppress(asyncio.CancelledError, ConnectionClosed):
                await watcher


def _here(endpoint: str) -> bool:
    """Whether an address is of this machine, which no proxy leads to."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
