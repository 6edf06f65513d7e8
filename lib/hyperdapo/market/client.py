"""The client `tardis_dev.replay`: its patience bounded, its retries counted, its failures told as `EndpointError`.

Of `replay` we take the half that fills the cache (the client's own `_fetch_data_to_replay`). The other half unpacks
every slice once more and makes a Python object of every line, which nobody here would read.
"""

import asyncio
import logging
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from tardis_dev import DEFAULT_ENDPOINT, Channel
from tardis_dev.replay import _fetch_data_to_replay, _get_normalized_filters_hash, _normalize_filters

from hyperdapo.days import SECOND_NS
from hyperdapo.errors import DiskFullError, EndpointError
from hyperdapo.paths import disk_error

Tick = Callable[[int, int], object]
"""Told of the minutes and bytes that have come."""

CONNECT_S = 5.0
_SILENCE_S = 135  # of one connection, then the client tries again; its own default
PATIENCE_S = 300.0  # without one more minute of data, then the endpoint counts as failed

_OURS = ("localhost", "127.0.0.1", "::1")
_PROTOCOL = "does it speak Tardis's replay protocol (GET /data-feeds/EXCHANGE, header x-slice-size)?"


@dataclass(frozen=True)
class Feed:
    """What is asked of an endpoint."""

    endpoint: str
    exchange: str
    channels: tuple[str, ...]
    asset: str
    cache: Path


def fetch(feed: Feed, span: tuple[int, int], retries: "Retries", tick: Tick) -> None:
    """Let the client bring the whole minutes of a span (ns) into its cache; `tick` is called with the minutes
    and bytes (compressed) that came.

    The client runs in a thread of its own, since a notebook's kernel already runs an event loop in this one. A slice
    that came damaged is none of its concern: see `slices.cover` and `slices.Description`.

    Raises
    ------
    EndpointError
        If the endpoint refuses, keeps failing, or sends nothing for `PATIENCE_S`.
    DiskFullError
        If the cache takes no more.
    """
    with ThreadPoolExecutor(1) as pool, retries.counting():
        try:
            pool.submit(asyncio.run, _replay(feed, span, tick)).result()
        except TimeoutError:
            raise EndpointError(
                f"{feed.endpoint} sent nothing for {PATIENCE_S:.0f} s, after {retries.count} retries "
                f"(last: {retries.reason}); run again later: what is downloaded is kept"
            ) from None
        except KeyError as error:
            raise EndpointError(f"{feed.endpoint} answered without {error}; {_PROTOCOL}") from None
        except urllib.error.HTTPError as error:
            raise _refusal(error, feed.endpoint) from None
        except (aiohttp.ClientError, OSError) as error:
            if disk := _disk_error(error, feed.cache):
                raise disk from None
            raise EndpointError(f"{feed.endpoint} keeps failing ({error}); run again later") from None


async def _replay(feed: Feed, span: tuple[int, int], tick: Tick) -> None:
    filters = _normalize_filters([Channel(name, [feed.asset]) for name in feed.channels])
    async with asyncio.timeout(PATIENCE_S) as patience:
        await _fetch_data_to_replay(
            exchange=feed.exchange,
            from_date=datetime.fromtimestamp(span[0] / SECOND_NS, UTC),
            to_date=datetime.fromtimestamp(span[1] / SECOND_NS, UTC),
            filters=filters,
            endpoint=feed.endpoint,
            cache_dir=str(feed.cache),
            api_key=os.environ.get("TARDIS_API_KEY", ""),
            timeout=_SILENCE_S,
            http_proxy=None,
            filters_hash=_get_normalized_filters_hash(filters),
            cached_slices=_Arrivals(tick, patience),
        )


class _Arrivals(dict[datetime, Any]):
    """Where the client notes each slice that has come: more patience for it, and a tick."""

    def __init__(self, tick: Tick, patience: asyncio.Timeout) -> None:
        super().__init__()
        self.tick, self.patience = tick, patience

    def __setitem__(self, start: datetime, arrived: Any) -> None:
        super().__setitem__(start, arrived)
        self.patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
        self.tick(arrived.slice_size, os.path.getsize(arrived.path))


class Retries(logging.Handler):
    """Counts the attempts that the client says, at level DEBUG, to have failed; `reason` is that of the last.

    Where the disk of `cache` is what failed, no attempt will mend it: raising from here ends them.
    """

    def __init__(self, cache: Path) -> None:
        super().__init__(logging.DEBUG)
        self.cache = cache
        self.count, self.reason = 0, "none"

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of the client's log."""
        if str(record.msg).startswith("download attempt failed") and isinstance(record.args, tuple):
            cause = record.args[-1]
            if disk := _disk_error(cause, self.cache):
                raise disk
            self.count += 1
            self.reason = str(cause)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Listen while the block runs."""
        logger = logging.getLogger("tardis_dev._http")
        level = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)


def _disk_error(error: object, cache: Path) -> DiskFullError | None:
    """What a failed attempt says of our own disk, if it is that and not the network."""
    if isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError):
        return disk_error(error, cache)
    return None


def _refusal(error: urllib.error.HTTPError, endpoint: str) -> EndpointError:
    if error.code in (401, 403):
        return EndpointError(
            f"{endpoint} refused the request ({error.code}): set TARDIS_API_KEY in the environment to a valid key, "
            "or ask for first days of months only (profile `free`), which need none"
        )
    if error.code == 429:
        wait = f" for {error.headers['Retry-After']} s" if error.headers.get("Retry-After") else ""
        return EndpointError(
            f"{endpoint} refuses more requests{wait} (429); run again then: what is downloaded is kept"
        )
    return EndpointError(f"{endpoint} answered {error.code} ({str(error.msg)[:200]}); {_PROTOCOL}")


def check_connection(endpoint: str) -> None:
    """Connect once, which tells at once what the client would find out after half an hour of retries.

    Raises
    ------
    EndpointError
        If `endpoint` is no HTTP address, or nothing answers there.
    """
    address = urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise EndpointError(f"source.endpoint {endpoint!r} is no address such as {DEFAULT_ENDPOINT}")
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname):
        address = urlsplit(proxy)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_S).close()
    except OSError as error:
        if urlsplit(endpoint).hostname in _OURS:
            mend = f"is down ({error}): start it (hyperdapo serve-recordings DIR --port {port})"
        else:
            mend = f"cannot be reached ({error}): check this machine's network and proxy"
        raise EndpointError(f"the endpoint {endpoint} {mend}, or correct source.endpoint") from None
