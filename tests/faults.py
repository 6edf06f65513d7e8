"""A replay endpoint that fails on purpose, or asks for a key: what a client has to live with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

from hyperdapo.synthetic import replay_server
from hyperdapo.synthetic.replay_server import Slices


@dataclass
class Faults:
    """What goes wrong, counted over requests from 1: every n-th, 0 for never."""

    server_error_every: int = 0  # 500
    rate_limit_every: int = 0  # 429, to be tried again after a second
    truncate_every: int = 0  # 200 with half of the compressed body
    requests: int = 0

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count a request, and answer it or fail."""
        self.requests += 1
        if self._due(self.server_error_every):
            return web.json_response({"message": "internal error, on purpose"}, status=500)
        if self._due(self.rate_limit_every):
            return web.json_response({"message": "too many requests"}, status=429, headers={"Retry-After": "1"})
        response = await handler(request)
        if self._due(self.truncate_every) and isinstance(response, web.Response) and isinstance(response.body, bytes):
            response.body = response.body[: len(response.body) // 2]
        return response

    def _due(self, every: int) -> bool:
        return every > 0 and self.requests % every == 0


@contextmanager
def serve(slices: Slices, faults: Faults | None = None, api_key: str | None = None) -> Iterator[str]:
    """`replay_server.serve` with faults, for those who know the key."""

    @web.middleware
    async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        if api_key is not None and request.headers.get("Authorization") != f"Bearer {api_key}":
            return web.json_response({"message": "the API key is missing or wrong"}, status=401)
        return await handler(request)

    with replay_server.serve(slices, middlewares=[(faults or Faults()).answer, check_key]) as endpoint:
        yield endpoint
