"""A local endpoint that speaks Tardis's HTTP replay protocol, over recordings or over the synthetic exchange.

`GET /v1/data-feeds/hyperliquid?from=ISO&offset=MINUTES&sliceSize=MINUTES&filters=[{"channel", "symbols"}]` answers raw
lines `LOCAL_TIME {native message}`, compressed, a blank line for each disconnect: what `tardis_dev.replay` asks for.
"""

import asyncio
import gzip
import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import zstandard
from aiohttp import web
from aiohttp.typedefs import Middleware

from hyperdapo.errors import DataError, EndpointError, nearest
from hyperdapo.market.native import STAMP_LENGTH, channel_of
from hyperdapo.params import Parameters
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.tape import CHANNELS, Tape
from hyperdapo.times import DAY_NS, MINUTE_NS

EXCHANGE = "hyperliquid"
SUGGESTED_SLICE_MINUTES = 10
MAX_SLICE_MINUTES = 60
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z ")
_FAST = 1  # compression level: the reader is on this machine
Filters = Mapping[str, frozenset[str] | None]  # channel -> coins, None for all of them


class Slices(Protocol):
    """A source of replay lines."""

    def lines(self, filters: Filters | None, from_ns: int, to_ns: int) -> bytes:
        """Lines of `from_ns` <= local time < `to_ns` (whole minutes) that the filters let through; None lets all."""


class SyntheticSlices:
    """The messages of one synthetic asset, played as they are asked for; the latest day of them is kept."""

    def __init__(self, play: Callable[[], Iterator[Tape]]) -> None:
        self._play = play
        self._tapes, self._coming = list[Tape](), play()

    def lines(self, filters: Filters | None, from_ns: int, to_ns: int) -> bytes:
        """See `Slices.lines`."""
        if self._tapes and from_ns < self._tapes[0].covers[0]:
            self._tapes, self._coming = [], self._play()
        while not self._tapes or self._tapes[-1].covers[1] < to_ns:
            self._tapes = [tape for tape in self._tapes if tape.covers[1] > self._tapes[-1].covers[1] - DAY_NS]
            tape = next(self._coming, None)
            if tape is None:
                break
            self._tapes.append(tape)
        asked = [(tape, CHANNELS if filters is None else _channels(filters, tape.asset)) for tape in self._tapes]
        return b"".join(tape.lines(channels, from_ns, to_ns) for tape, channels in asked)


class RecordedSlices:
    """Recordings `**/ASSET.ndjson.gz` under a folder: lines as Tardis replays them, blank for a disconnect.

    Stamps may have any number of decimals; they are served with the seven of Tardis, which its client counts on.
    """

    def __init__(self, folder: Path) -> None:
        """Read and index every recording.

        Raises
        ------
        DataError
            If the folder holds no recording or one is damaged; the message names the file.
        """
        files = sorted(folder.glob("**/*.ndjson.gz"))
        if not files:
            raise DataError(f"no recordings ASSET.ndjson.gz under {folder}; give the folder that holds them")
        self._minutes: dict[str, dict[int, list[bytes]]] = {}
        for path in files:
            asset = path.name.removesuffix(".ndjson.gz")
            for minute, lines in _recorded_minutes(path):
                self._minutes.setdefault(asset, {}).setdefault(minute, []).append(zlib.compress(lines, _FAST))

    def lines(self, filters: Filters | None, from_ns: int, to_ns: int) -> bytes:
        """See `Slices.lines`; of several assets merged by local time."""
        kept: list[tuple[bytes, bytes]] = []
        for asset, minutes in self._minutes.items():
            channels = None if filters is None else _channels(filters, asset)
            if channels is None or channels:
                for minute in range(from_ns // MINUTE_NS, to_ns // MINUTE_NS):
                    for block in minutes.get(minute, ()):
                        kept += _let_through(zlib.decompress(block), channels)
        kept.sort(key=lambda line: line[0])
        return b"".join(line for _, line in kept)

    def spans(self) -> dict[str, tuple[str, str]]:
        """First and last recorded minute of each asset, ISO."""
        return {asset: (_iso(min(minutes)), _iso(max(minutes) + 1)) for asset, minutes in self._minutes.items()}


def market_of(parameters: Parameters, asset: str) -> Slices:
    """What `parameters.source` serves from here: its recordings, or the synthetic market.

    Raises
    ------
    DataError
        If there is no recording, or one is damaged.
    """
    folder = parameters.source.folder
    return synthetic_market(parameters, asset) if folder is None else RecordedSlices(folder)


def synthetic_market(parameters: Parameters, asset: str) -> SyntheticSlices:
    """The synthetic market of one asset over the span of `parameters.source`."""
    source = parameters.source
    return SyntheticSlices(partial(World.of(parameters, asset).play, source.start_ns, source.end_ns))


@contextmanager
def serve(slices: Slices, port: int = 0, middlewares: Sequence[Middleware] = ()) -> Iterator[str]:
    """Serve `slices` on 127.0.0.1 from a thread of its own, and yield the endpoint; port 0: a free one.

    Raises
    ------
    EndpointError
        If the port is taken.
    """
    app = web.Application(middlewares=middlewares)
    app.router.add_get("/v1/data-feeds/{exchange}", _Endpoint(slices).answer)
    runner, loop = web.AppRunner(app, access_log=None, shutdown_timeout=1.0), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="replay-server", daemon=True)
    thread.start()

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return int(runner.addresses[0][1])

    try:
        try:
            bound = asyncio.run_coroutine_threadsafe(start(), loop).result()
        except OSError as error:
            raise EndpointError(f"cannot serve on port {port} ({error.strerror}); choose another with --port") from None
        yield f"http://127.0.0.1:{bound}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def serve_recordings(folder: Path, port: int) -> None:
    """Serve the recordings under `folder` until Ctrl-C, and print the endpoint and what it holds.

    Raises
    ------
    DataError
        If there is no recording, or one is damaged.
    EndpointError
        If the port is taken.
    """
    slices = RecordedSlices(folder)
    with serve(slices, port) as endpoint:
        print(f"serving {endpoint} until Ctrl-C", flush=True)
        for asset, (first, last) in slices.spans().items():
            print(f"  {asset}: {first} to {last}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("stopped", flush=True)


class _Endpoint:
    """The request handler: it knows one source of lines."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices

    async def answer(self, request: web.Request) -> web.Response:
        try:
            from_ns, minutes, filters = _read(request)
        except ValueError as error:
            return web.json_response({"code": 400, "message": str(error)}, status=400)
        lines = self.slices.lines(filters, from_ns, from_ns + minutes * MINUTE_NS)
        accepts_zstd = "zstd" in request.headers.get("Accept-Encoding", "")
        zstd = zstandard.ZstdCompressor(_FAST, write_checksum=True)
        body = zstd.compress(lines) if accepts_zstd else gzip.compress(lines, _FAST, mtime=0)
        headers = {
            "Content-Encoding": "zstd" if accepts_zstd else "gzip",
            "x-slice-size": str(minutes),
            "x-suggested-slice-size": str(SUGGESTED_SLICE_MINUTES),
        }
        return web.Response(body=body, headers=headers)


def _read(request: web.Request) -> tuple[int, int, Filters | None]:
    """Start (ns), minutes and filters of a request; ValueError says what is wrong with it."""
    exchange, query = request.match_info["exchange"], request.query
    if exchange != EXCHANGE:
        raise ValueError(f"unknown exchange {exchange!r}{nearest(exchange, [EXCHANGE])}")
    try:
        start = datetime.fromisoformat(query["from"])
        offset, minutes = int(query.get("offset", "0")), int(query.get("sliceSize", "1"))
    except (KeyError, ValueError):
        raise ValueError("give from (ISO 8601 format), offset and sliceSize (whole minutes)") from None
    if offset < 0 or not 1 <= minutes <= MAX_SLICE_MINUTES:
        raise ValueError(f"offset must not be negative, and sliceSize within 1 and {MAX_SLICE_MINUTES}")
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    return (int(start.timestamp()) // 60 + offset) * MINUTE_NS, minutes, _read_filters(query.get("filters"))


def _read_filters(text: str | None) -> Filters | None:
    try:
        filters = json.loads(text) if text else None
        if not filters:
            return None
        return {entry["channel"]: frozenset(entry["symbols"]) if entry.get("symbols") else None for entry in filters}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError('filters must be JSON such as [{"channel":"trades","symbols":["BTC"]}]') from None


def _channels(filters: Filters, asset: str) -> set[str]:
    return {channel for channel, coins in filters.items() if coins is None or asset in coins}


def _let_through(lines: bytes, channels: set[str] | None) -> list[tuple[bytes, bytes]]:
    """(local time, line) of the lines of these channels, and of the disconnects."""
    kept, stamp = [], b""
    for line in lines.splitlines(keepends=True):
        stamp = line[:28] if len(line) > 1 else stamp
        if channels is None or len(line) <= 1 or channel_of(line) in channels:
            kept.append((stamp, line if line.endswith(b"\n") else line + b"\n"))
    return kept


def _recorded_minutes(path: Path) -> Iterator[tuple[int, bytes]]:
    """(minute since 1970, its lines) of a recording; a blank line belongs to the minute of the line before it."""
    minute, stamp, lines = 0, b"", list[bytes]()
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                if len(line) > 1 and line[:16] != stamp:
                    if stamp:
                        yield minute, b"".join(lines)
                        lines = []
                    stamp = line[:16]
                    minute = int(datetime.fromisoformat(stamp.decode()).replace(tzinfo=UTC).timestamp()) // 60
                lines.append(line if line[STAMP_LENGTH - 1 : STAMP_LENGTH] == b"Z" else _with_seven_decimals(line))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); record or copy it again, or move it out of the folder") from None
    except ValueError:
        raise DataError(f"{path} has a line that does not open with a time such as 2025-09-04T19:46:56.869Z") from None
    if stamp:
        yield minute, b"".join(lines)


def _with_seven_decimals(line: bytes) -> bytes:
    """A line whose stamp is right but has other decimals; any other as it is."""
    match = _STAMP.match(line)
    return b"%s.%sZ %s" % (match[1], (match[2] or b"").ljust(7, b"0")[:7], line[match.end() :]) if match else line


def _iso(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%dT%H:%MZ")
