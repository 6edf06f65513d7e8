"""Before a request is read: who may ask, how much, and how long it may take to say it. Every request is logged here."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from hyperdapo.serving.metrics import Metrics
from hyperdapo.serving.models import Fault, Refusal

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_READ_ON = 8  # times as much as is allowed
_OPEN = "/healthz"  # is told without a token
_KINDS = {401: "Unauthorized", 404: "NotFoundError", 408: "Timeout", 413: "TooLarge", 503: "Overloaded"}
_LOG = logging.getLogger("hyperdapo.serving")


def refusal(message: str, status: int, param: str | None = None) -> bytes:
    """The body of an answer that says why; ASCII, whatever was asked."""
    fault = Fault(message=message, type=_KINDS.get(status, "BadRequestError"), param=param, code=status)
    return json.dumps(Refusal(error=fault).model_dump()).encode()


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, message: str, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


class Guard:
    """An application behind a token and limits.

    Parameters
    ----------
    token : what clients have to bear; None lets everybody in
    most_bytes : of a body
    most_s : until a body has come whole
    known : the paths that metrics tell apart
    """

    def __init__(
        self, app: App, token: str | None, most_bytes: int, most_s: float, metrics: Metrics, known: frozenset[str]
    ) -> None:
        self._app, self._metrics, self._known = app, metrics, known
        self._bearer = f"Bearer {token}".encode() if token else None
        self._most_bytes, self._most_s = most_bytes, most_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or what else the server asks."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.perf_counter(), 0

        async def counted(event: Event) -> None:
            nonlocal status
            status = event.get("status", status)
            await send(event)

        try:
            body = await self._admitted(scope, receive)
            await self._app(scope, _replayed(body, receive), counted)
        except Refused as refused:
            await _refuse(refused, counted)
        finally:
            path = scope["path"] if scope["path"] in self._known else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            taken_ms = round(1e3 * (time.perf_counter() - begun), 3)
            _LOG.info("request", extra={"fields": {"path": path, "status": status, "ms": taken_ms}})

    async def _admitted(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises Refused: 401, 408 or 413."""
        given = dict(scope["headers"]).get(b"authorization", b"")
        if self._bearer and scope["path"] != _OPEN and not hmac.compare_digest(given, self._bearer):
            raise Refused(
                "give the token of this service: Authorization: Bearer ...", 401, {"www-authenticate": "Bearer"}
            )
        try:
            return await asyncio.wait_for(self._body(receive), self._most_s)
        except TimeoutError:
            raise Refused(f"the body had not come whole after {self._most_s:g} s", 408) from None

    async def _body(self, receive: Receive) -> bytes:
        """The body; one that is somewhat too large is read on without being kept, so that the client hears why."""
        parts, size, more = list[bytes](), 0, True
        while more and size <= _READ_ON * self._most_bytes:
            event = await receive()
            part, more = event.get("body", b""), event.get("more_body", False)
            size += len(part)
            if size <= self._most_bytes:
                parts.append(part)
        if size > self._most_bytes:
            raise Refused(f"the body is larger than {self._most_bytes} bytes", 413)
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What gives the body that was read already, then what else comes."""
    given = False

    async def replay() -> Event:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(refused: Refused, send: Send) -> None:
    body = refusal(str(refused), refused.status)
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    headers |= refused.headers
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
