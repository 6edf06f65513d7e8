"""The client `tardis_dev.replay`: its patience bounded, its retries counted, its failures told as `EndpointError`."""

import asyncio
import gzip
import logging
import os
import socket
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import zstandard
from tardis_dev import DEFAULT_ENDPOINT, Channel, replay

from hyperdapo.errors import EndpointError

CONNECT_S = 5.0
PATIENCE_S = 300.0  # without one more minute of data, then the endpoint counts as failed

_PROTOCOL = "does it speak Tardis's replay protocol (GET /data-feeds/EXCHANGE, header x-slice-size)?"


@dataclass(frozen=True)
class Feed:
    """What is asked of an endpoint."""

    endpoint: str
    exchange: str
    channels: tuple[str, ...]
    asset: str
    cache: Path


def fetch(feed: Feed, span: tuple[int, int], retries: "Retries", tick: Callable[[], object]) -> None:
    """Let the client bring the whole minutes of a span (ns) into its cache; `tick` is called at each minute that came.

    The client runs in a thread of its own, since a notebook's kernel already runs an event loop in this one. A slice
    that came damaged is none of its concern: see `slices.cover` and `slices.damaged`.

    Raises
    ------
    EndpointError
        If the endpoint refuses, keeps failing, or sends nothing for `PATIENCE_S`.
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
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError):
            return
        except urllib.error.HTTPError as error:
            raise _refusal(error, feed.endpoint) from None
        except (aiohttp.ClientError, OSError) as error:
            raise EndpointError(f"{feed.endpoint} keeps failing ({error}); run again later") from None


async def _replay(feed: Feed, span: tuple[int, int], tick: Callable[[], object]) -> None:
    start, end = (datetime.fromtimestamp(ns / 1e9, UTC) for ns in span)
    filters = [Channel(name, [feed.asset]) for name in feed.channels]
    key = os.environ.get("TARDIS_API_KEY", "")
    options = {"api_key": key, "cache_dir": str(feed.cache), "endpoint": feed.endpoint}
    minute = b""
    async with asyncio.timeout(PATIENCE_S) as patience:
        lines = replay(feed.exchange, start, end, filters, decode_response=False, with_disconnects=True, **options)
        async for line in lines:
            if line is not None and line.local_timestamp[:16] != minute:
                minute = line.local_timestamp[:16]
                patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
                tick()


class Retries(logging.Handler):
    """Counts the attempts that the client says, at level DEBUG, to have failed; `reason` is that of the last."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.count, self.reason = 0, "none"

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of the client's log."""
        if str(record.msg).startswith("download attempt failed") and isinstance(record.args, tuple):
            self.count += 1
            self.reason = str(record.args[-1])

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


def _refusal(error: urllib.error.HTTPError, endpoint: str) -> EndpointError:
    if error.code in (401, 403):
        return EndpointError(
            f"{endpoint} refused the request ({error.code}): set TARDIS_API_KEY in the environment to a valid key, "
            "or ask for first days of months only (profile `free`), which need none"
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
        raise EndpointError(
            f"the endpoint {endpoint} is down ({error}): start it (hyperdapo serve-recordings DIR --port {port}), "
            "or correct source.endpoint"
        ) from None
