"""Stage 01: raw messages of one asset, from an endpoint that replays as Tardis does or from the exchange's archive.

They come day by day, by Tardis's client, which caches slices of some minutes each. Every slice is decompressed to its
end, and fetched again where it is damaged; a day that is whole is marked with the SHA-256 of each of its slices, so
that no later run asks for it again unless one of them is lost or altered. A killed run costs what was on its way.
"""

import asyncio
import hashlib
import json
import logging
import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pandas as pd
from tardis_dev import DEFAULT_ENDPOINT, Channel
from tardis_dev.replay import _fetch_data_to_replay, _get_normalized_filters_hash, _normalize_filters
from tqdm import tqdm

from hyperdapo.errors import DataError, DiskFullError, EndpointError, MissingInputError
from hyperdapo.feed import archive
from hyperdapo.feed.slices import Description, SliceFile, cover, file_at
from hyperdapo.files import atomic, disk_error, force, require
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths, data_root, option
from hyperdapo.sections import Source
from hyperdapo.times import MINUTE_NS, SECOND_NS, Span, by_day, date_of

Tick = Callable[[int, int], object]
"""Called with the minutes and bytes that have come."""

Serve = Callable[[], AbstractContextManager[str]]
"""Opens the endpoint of a market that is made here, for as long as the block runs."""

Bring = Callable[[Span, "Retries", Tick], None]
"""Brings a span into the cache."""
CONNECT_S = 5.0
_SILENCE_S = 135  # of one connection, then the client tries again; its own default
PATIENCE_S = 300.0  # without one more minute of data, then the endpoint counts as failed
_ROUNDS = 10  # of fetching what is missing or damaged
_CHECK = "check"  # of the mark of a day: a digest of the rest of it
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


def download(
    parameters: Parameters, asset: str, paths: Paths, served: Serve | None = None, code: str = ""
) -> dict[str, Any]:
    """Bring the slices of the span onto disk and write `manifest.json`, whose presence means that all is whole.

    Parameters
    ----------
    served : for what is served from here (a synthetic market, recordings), opens its endpoint; called only if a day is
        missing
    code : digest of the code that makes that market: other code could make other lines, so it has a cache of its own

    Returns
    -------
    The manifest: `messages` by channel, `disconnects`, `empty_minutes`, `first_ns` and `last_ns` (local), `slices`,
    `bytes` (compressed), `content_bytes`, `retries` (of the client), `refetched` (damaged slices); and `days`, each
    with the same and the `sha256` of its lines in time order.

    Raises
    ------
    EndpointError
        If the endpoint is down, refuses the key, keeps failing, or keeps sending damaged slices.
    MissingInputError
        If the mirror of the archive lacks an hour.
    DataError
        If the span holds no message of the asset, or a file of the archive is damaged.
    DiskFullError
        If the disk takes no more; what is whole stays.
    """
    cache = paths.cache / _origin(parameters, asset, code)
    spans = _days(parameters)
    whole = {span: day for span in spans if (day := _whole_day(paths, cache, span))}
    if len(whole) < len(spans):
        (paths.data / "manifest.json").unlink(missing_ok=True)
        with _source(parameters, asset, cache, served) as bring:
            for number, span in enumerate(spans, start=1):
                if span not in whole:
                    label = f"{asset} {date_of(span[0])} ({number}/{len(spans)})"
                    whole[span] = _mark_day(paths, cache, span, _fetch_day(bring, cache, span, label))
    manifest = _manifest(parameters, asset, cache, [whole[span] for span in spans])
    if not sum(manifest["messages"].values()):
        source = parameters.source
        raise DataError(
            f"no message of {asset} from {source.start:%Y-%m-%d %H:%M} to {source.end:%Y-%m-%d %H:%M} at "
            f"{manifest['endpoint']}; check the asset's name, source.from and source.to against what it has recorded"
        )
    with atomic(paths.data / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
    _forget_other_worlds(cache)
    return manifest


def downloaded(parameters: Parameters, asset: str, paths: Paths) -> list[SliceFile]:
    """The slices of the span in time order, each with the SHA-256 that 01_download noted of it.

    Raises
    ------
    MissingInputError
        If 01_download has not run, or ran for another source or span.
    DataError
        If a slice is lost, or what was noted of a day is damaged.
    """
    path, remedy = paths.data / "manifest.json", force(paths.name, "01_download")
    manifest, spans = _read(require(path, "01_download", paths.name)) or {}, _days(parameters)
    try:
        asked, days = manifest["asked"], {tuple(day["span"]): day for day in manifest["days"]}
        cache = paths.cache / manifest["cache"]
    except (KeyError, TypeError):
        raise DataError(f"{path} is damaged. Run: {remedy}") from None
    if asked != _asked(parameters, asset) or list(days) != spans:
        command = f"hyperdapo run {option(paths.name)} --until 01"
        raise MissingInputError(f"what {paths.cache} holds is not what `source` asks for now. Run: {command}")
    slices = []
    for span in spans:
        mark = _read_mark(paths, span) or {}
        if _noted(mark) != days[span]:
            raise DataError(f"{_mark(paths, span)} is lost, damaged, or not the day of {path}. Run: {remedy}")
        for name, sha256 in mark["files"].items():
            slices.append(replace(file_at(cache / name), sha256=sha256, remedy=remedy))
    if lost := [piece.path for piece in slices if not piece.path.exists()]:
        raise DataError(f"{lost[0]} is lost ({len(lost)} of {len(slices)} slices are). Run: {remedy}")
    return slices


def coverage(parameters: Parameters, paths: Paths) -> pd.DataFrame:
    """Messages received in each minute of the span, as the days were marked: `minute_ns` and a column per channel."""
    frames = []
    for span in _days(parameters):
        day = json.loads(require(_mark(paths, span), "01_download", paths.name).read_text())
        frames.append(pd.DataFrame(day["by_minute"], index=range(*span, MINUTE_NS)))
    counts = pd.concat(frames).reindex(columns=parameters.source.channels).fillna(0).astype(int)
    return counts.rename_axis("minute_ns").reset_index()


def _fetch_day(bring: Bring, cache: Path, span: Span, label: str) -> dict[str, Any]:
    """Fetch what the cache lacks of a day until every slice is whole, and describe the day."""
    retries, refetched = Retries(cache), 0
    for _ in range(_ROUNDS):
        missing = cover(cache, *span)[1]
        minutes = sum(end - start for start, end in missing) // MINUTE_NS
        with _DayBar(total=minutes, desc=label, unit="min", delay=2, mininterval=2, leave=False) as bar:
            for part in missing:
                bring(part, retries, bar.received)
        slices, missing = cover(cache, *span)
        day = Description(*span)
        damaged = [piece.path for piece in slices if not day.add(piece)]
        if not damaged and not missing:
            files = {path.relative_to(cache).as_posix(): sha256 for path, sha256 in day.files}
            return {"retries": retries.count, "refetched": refetched} | day.summary() | {"files": files}
        for path in damaged:
            path.unlink()
        refetched += len(damaged)
    raise EndpointError(
        f"the endpoint sent damaged slices {_ROUNDS} times over ({refetched} in all, {label}); "
        "try again later, or check the connection. What was whole is kept"
    )


class _DayBar(tqdm):  # type: ignore[type-arg]
    """The minutes of one asset's day, with the size and rate of what was received."""

    size = 0

    def received(self, minutes: int, size: int) -> None:
        """Move on."""
        self.size += size
        rate = self.size / max(self.format_dict["elapsed"], 1e-3)
        self.set_postfix_str(f"{self.size / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s", refresh=False)
        self.update(minutes)


def _manifest(parameters: Parameters, asset: str, cache: Path, days: list[dict[str, Any]]) -> dict[str, Any]:
    source = parameters.source
    totals = ("slices", "bytes", "content_bytes", "disconnects", "empty_minutes", "retries", "refetched")
    return {
        "asset": asset,
        "endpoint": "the synthetic exchange" if source.kind == "synthetic" else source.endpoint or DEFAULT_ENDPOINT,
        "asked": _asked(parameters, asset),
        "cache": cache.name,
        "messages": {name: sum(day["messages"].get(name, 0) for day in days) for name in source.channels},
        "first_ns": min((day["first_ns"] for day in days if day["first_ns"]), default=0),
        "last_ns": max(day["last_ns"] for day in days),
        **{name: sum(day[name] for day in days) for name in totals},
        "days": [_noted(day) for day in days],
    }


def _days(parameters: Parameters) -> list[Span]:
    """The span of `source`, cut at midnights UTC."""
    start_ns, end_ns = parameters.source.start_ns, parameters.source.end_ns
    start_ns, end_ns = start_ns - start_ns % MINUTE_NS, end_ns - end_ns % MINUTE_NS
    return by_day(start_ns, end_ns)


def _asked(parameters: Parameters, asset: str) -> str:
    """Digest of all parameters on which the lines depend, and for a synthetic market its span, on which they do too."""
    source = parameters.source
    asked: list[Any] = [asset, source.kind, source.endpoint, source.exchange, sorted(source.channels)]
    if source.kind == "synthetic":
        world = parameters.model_dump(mode="json", include={"seed", "synthetic", "contracts"})
        asked += [world, source.start_ns, source.end_ns]
    return _digest(asked)


def _origin(parameters: Parameters, asset: str, code: str) -> str:
    """Name of the cache folder: two sources that could send different lines never share one."""
    asked = [_asked(parameters, asset)]
    if parameters.source.kind == "synthetic":
        asked.append(code)
    return f"{parameters.source.kind}-{_digest(asked)}"


def _digest(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _forget_other_worlds(cache: Path) -> None:
    """Delete the slices of synthetic markets that no run asks for any more; real ones stay."""
    kept = {cache.name}
    for manifest in data_root().glob(f"*/{cache.parent.name}/manifest.json"):
        kept.add((_read(manifest) or {}).get("cache", ""))
    for folder in cache.parent.glob("synthetic-*"):
        if folder.name not in kept:
            shutil.rmtree(folder)


def _mark(paths: Paths, span: Span) -> Path:
    return paths.data / "days" / f"{date_of(span[0])}.json"


def _mark_day(paths: Paths, cache: Path, span: Span, day: dict[str, Any]) -> dict[str, Any]:
    """Write down what is known of a day that is whole, and return it."""
    marked = {"date": date_of(span[0]), "span": list(span), "cache": cache.name} | day
    with atomic(_mark(paths, span)) as temporary:
        temporary.write_text(json.dumps(marked | {_CHECK: _digest([marked])}) + "\n")
    return marked


def _read_mark(paths: Paths, span: Span) -> dict[str, Any] | None:
    """What is written of a day; None where nothing is, or it is damaged."""
    day = _read(_mark(paths, span)) or {}
    return day if day.pop(_CHECK, None) == _digest([day]) else None


def _whole_day(paths: Paths, cache: Path, span: Span) -> dict[str, Any] | None:
    """What is written of a day, if it was downloaded whole into this cache and each slice is still what it was.

    Slices that are not are deleted, so that they are fetched again.
    """
    day = _read_mark(paths, span)
    if day is None or day["span"] != list(span) or day["cache"] != cache.name:
        return None
    altered = [cache / name for name, sha256 in day["files"].items() if not _holds(cache / name, sha256)]
    for path in altered:
        path.unlink(missing_ok=True)
    return None if altered else day


def _holds(path: Path, sha256: str) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _noted(day: dict[str, Any]) -> dict[str, Any]:
    """Of what is written of a day, what the manifest repeats."""
    return {name: value for name, value in day.items() if name not in ("by_minute", "files")}


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@contextmanager
def _source(parameters: Parameters, asset: str, cache: Path, served: Serve | None) -> Iterator[Bring]:
    """What brings a span into the cache; what is served from here is so while the block runs."""
    source = parameters.source
    if source.kind == "archive":
        mirror = source.folder
        assert mirror is not None
        yield lambda part, retries, tick: archive.fetch(mirror, asset, part, cache, tick)
        return
    with _endpoint(source, served) as endpoint:
        yield partial(fetch, Feed(endpoint, source.exchange, tuple(source.channels), asset, cache))


def _endpoint(source: Source, served: Serve | None) -> AbstractContextManager[str]:
    """The one that is served from here, or another that answers."""
    if served is not None:
        return served()
    assert source.kind == "tardis", f"source.kind is {source.kind}: give what serves it"
    endpoint = (source.endpoint or DEFAULT_ENDPOINT).rstrip("/")
    check_connection(endpoint)
    return nullcontext(endpoint)


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
            remedy = f"is down ({error}): start it (hyperdapo serve-recordings DIR --port {port})"
        else:
            remedy = f"cannot be reached ({error}): check this machine's network and proxy"
        raise EndpointError(f"the endpoint {endpoint} {remedy}, or correct source.endpoint") from None


def fetch(feed: Feed, span: Span, retries: "Retries", tick: Tick) -> None:
    """Let the client bring the whole minutes of a span (ns) into its cache; `tick` is called with the minutes
    and bytes (compressed) received.

    The client runs in a thread of its own, since a notebook's kernel already runs an event loop in this one. A slice
    that came damaged is not its concern: see `slices.cover` and `slices.Description`.

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


async def _replay(feed: Feed, span: Span, tick: Tick) -> None:
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

    Where the disk of `cache` is what failed, no attempt will help: raising from here ends them.
    """

    def __init__(self, cache: Path) -> None:
        super().__init__(logging.DEBUG)
        self.cache = cache
        self.count, self.reason = 0, "none"

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line of the client's log."""
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
