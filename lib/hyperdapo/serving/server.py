"""`hyperdapo serve`: the service on an address, until Ctrl-C."""

import asyncio
import ipaddress
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import h11
import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hyperdapo.errors import EndpointError, ParameterError
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.models import load_base
from hyperdapo.serving.app import Service, application
from hyperdapo.serving.metrics import Metrics
from hyperdapo.serving.states import warm_up
from hyperdapo.serving.upstream import ServedPath, Upstream

_TOKEN, _UPSTREAM_TOKEN = "HYPERDAPO_TOKEN", "HYPERDAPO_UPSTREAM_TOKEN"
_SHORTEST = 16  # characters of a token
_HEADERS_S = 5.0
_LOGS = ("hyperdapo.serving", "uvicorn.error")


def serve(
    parameters: Parameters, assets: Sequence[str] | None, host: str, port: int, addresses: Sequence[str] = ()
) -> None:
    """Answer until Ctrl-C, for assets of a run (None: all of them), by the adapters of its registered policy.

    Raises
    ------
    ParameterError
        If an address that others reach has no token, an upstream's is none, or the run lacks an asset.
    EndpointError
        If the port is taken.
    MissingInputError, ModelError
        If an adapter is not there, or was trained for something else.
    """
    token = token_for(host)
    listening = listen(host, port)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))  # one core reads and writes; threads without a core spin
    _log_as_json()
    chosen = assets or parameters.assets
    app = application(service_of(parameters, chosen, addresses), token)
    warm_up(parameters, chosen[0])
    place = f"[{host}]" if ":" in host else host
    print(f"serving http://{place}:{port} for {', '.join(chosen)} until Ctrl-C", flush=True)
    with suppress(KeyboardInterrupt):  # raised again when what was asked has been answered
        server(app, parameters).run([listening])
    print("stopped", flush=True)


def service_of(parameters: Parameters, assets: Sequence[str], addresses: Sequence[str] = ()) -> Service:
    """The service of a run: each asset's adapter of the registered policy, of the first seed. Raises as `serve`."""
    for asset in assets:
        parameters.for_asset(asset)
    metrics, timeout_s = Metrics(), parameters.serving.upstream_s
    upstreams = [Upstream(address, os.environ.get(_UPSTREAM_TOKEN), timeout_s) for address in addresses]
    policy, seed = parameters.hypotheses.policy, parameters.training.seeds[0]
    adapters = {asset: Paths(parameters.name, asset).adapter(policy, seed) for asset in assets}
    base = load_base(parameters.policy)
    paths = {
        asset: ServedPath(parameters, adapter, asset, upstreams, metrics, base) for asset, adapter in adapters.items()
    }
    return Service(parameters, paths, upstreams, metrics)


def server(app: Any, parameters: Parameters) -> uvicorn.Server:
    """What runs the application."""
    config = uvicorn.Config(
        app,
        http=Punctual,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=4 * parameters.serving.queue,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def token_for(host: str) -> str | None:
    """The token that clients have to bear, from the environment: without one the service is for this machine alone.

    Raises ParameterError where there has to be one.
    """
    token = os.environ.get(_TOKEN)
    if token is None and not _is_loopback(host):
        raise ParameterError(f"--host {host} is reached by others: set {_TOKEN} to the token that they have to bear")
    if token is not None and len(token) < _SHORTEST:
        raise ParameterError(f"{_TOKEN} has less than {_SHORTEST} characters, and could be guessed")
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address; port 0 for any that is free. Raises EndpointError if it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise EndpointError(
            f"cannot serve on {host}:{port} ({error.strerror}); choose another --host or --port"
        ) from None


class Punctual(H11Protocol):
    """HTTP as uvicorn speaks it, with clients whose headers do not come within seconds hung up on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the time."""
        super().connection_made(transport)
        self._expect(None)

    def _expect(self, before: Any) -> None:
        """Hang up where no request has begun since the last time, and none is being answered."""
        if self.transport.is_closing():
            return
        if before is not None and self.conn.their_state is h11.IDLE and self.cycle is before[0]:
            self.transport.close()
        else:
            self.loop.call_later(_HEADERS_S, self._expect, (self.cycle,))


class _Json(logging.Formatter):
    """A line of JSON for each event; what it holds besides is in the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry = {"time": self.formatTime(record), "level": record.levelname, "event": record.getMessage()}
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    for name in _LOGS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
