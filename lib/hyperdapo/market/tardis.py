"""Stage 01: the raw messages of one asset, from Tardis, the exchange's archive or the synthetic exchange, day by day.

The client caches slices of some minutes each. Every slice is decompressed to its end, and fetched again where it is
damaged; a day that is whole is marked, so that no later run asks for it again. A killed run costs what was on its way.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tardis_dev import DEFAULT_ENDPOINT
from tqdm import tqdm

from hyperdapo.errors import DataError, EndpointError, MissingInputError
from hyperdapo.market import archive
from hyperdapo.market.client import Feed, Retries, Tick, check_connection, fetch
from hyperdapo.market.days import MINUTE_NS, by_day, date_of
from hyperdapo.market.slices import SliceFile, cover, damaged, describe
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths, atomic, require

SYNTHETIC_CODE = ("exchange", "matching", "layout", "recorder", "tape", "grid", "replay_server")
"""Modules that decide what the synthetic exchange sends; a change in one makes a new download."""

Bring = Callable[[tuple[int, int], Retries, Tick], None]

_ROUNDS = 10  # of fetching what is missing or damaged


def download(parameters: Parameters, asset: str, paths: Paths) -> dict[str, Any]:
    """Bring the slices of the span onto disk and write `manifest.json`, whose presence means that all is whole.

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
    cache = paths.cache / _origin(parameters, asset)
    _forget_other_worlds(cache)
    spans = _days(parameters)
    missing = [span for span in spans if _marked_day(paths, cache, span) is None]
    if missing:
        (paths.data / "manifest.json").unlink(missing_ok=True)
        with _source(parameters, asset, cache) as bring:
            for span in missing:
                label = f"{asset} {date_of(span[0])} ({spans.index(span) + 1}/{len(spans)})"
                _mark_day(paths, cache, span, _fetch_day(bring, cache, span, label))
    manifest = _manifest(parameters, asset, cache, [_marked_day(paths, cache, span) or {} for span in spans])
    if not sum(manifest["messages"].values()):
        source = parameters.source
        raise DataError(
            f"no message of {asset} from {source.start:%Y-%m-%d %H:%M} to {source.end:%Y-%m-%d %H:%M} at "
            f"{manifest['endpoint']}; check the asset's name, source.from and source.to against what it has recorded"
        )
    with atomic(paths.data / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def downloaded(parameters: Parameters, asset: str, paths: Paths) -> list[SliceFile]:
    """The slices of the span in time order.

    Raises
    ------
    MissingInputError
        If 01_download has not run, or ran for another source.
    """
    manifest = json.loads(require(paths.data / "manifest.json", "01_download", paths.profile).read_text())
    taken, missing = cover(paths.cache / manifest["cache"], parameters.source.start_ns, parameters.source.end_ns)
    if manifest["asked"] != _asked(parameters, asset) or missing:
        command = f"hyperdapo run --profile {paths.profile} --until 01"
        raise MissingInputError(f"what {paths.cache} holds is not what `source` asks for now. Run: {command}")
    return taken


def coverage(parameters: Parameters, paths: Paths) -> pd.DataFrame:
    """Messages received in each minute of the span, as the days were marked: `minute_ns` and a column per channel."""
    frames = []
    for span in _days(parameters):
        day = json.loads(require(_mark(paths, span), "01_download", paths.profile).read_text())
        frames.append(pd.DataFrame(day["by_minute"], index=range(*span, MINUTE_NS)))
    counts = pd.concat(frames).reindex(columns=parameters.source.channels).fillna(0).astype(int)
    return counts.rename_axis("minute_ns").reset_index()


def _fetch_day(bring: Bring, cache: Path, span: tuple[int, int], label: str) -> dict[str, Any]:
    """Fetch what the cache lacks of a day until every slice is whole, and describe the day."""
    retries, refetched = Retries(cache), 0
    for _ in range(_ROUNDS):
        for piece in damaged(cover(cache, *span)[0]):
            piece.path.unlink()
            refetched += 1
        taken, missing = cover(cache, *span)
        if not missing:
            return {"retries": retries.count, "refetched": refetched} | describe(taken, *span)
        minutes = sum(end - start for start, end in missing) // MINUTE_NS
        with _DayBar(total=minutes, desc=label, unit="min", delay=2, mininterval=2, leave=False) as bar:
            for part in missing:
                bring(part, retries, bar.received)
    raise EndpointError(
        f"the endpoint sent damaged slices {_ROUNDS} times over ({refetched} in all, {label}); "
        "try again later, or check the connection. What was whole is kept"
    )


class _DayBar(tqdm):  # type: ignore[type-arg]
    """The minutes of one asset's day, with the size and rate of what came."""

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
        "days": [{name: value for name, value in day.items() if name != "by_minute"} for day in days],
    }


def _days(parameters: Parameters) -> list[tuple[int, int]]:
    """The span of `source`, cut at midnights UTC."""
    start_ns, end_ns = parameters.source.start_ns, parameters.source.end_ns
    start_ns, end_ns = start_ns - start_ns % MINUTE_NS, end_ns - end_ns % MINUTE_NS
    return by_day(start_ns, end_ns)


def _mark(paths: Paths, span: tuple[int, int]) -> Path:
    return paths.data / "days" / f"{date_of(span[0])}.json"


def _mark_day(paths: Paths, cache: Path, span: tuple[int, int], day: dict[str, Any]) -> None:
    with atomic(_mark(paths, span)) as temporary:
        temporary.write_text(json.dumps({"date": date_of(span[0]), "span": span, "cache": cache.name} | day) + "\n")


def _marked_day(paths: Paths, cache: Path, span: tuple[int, int]) -> dict[str, Any] | None:
    """What is written of a day, if it was downloaded whole into this cache and its slices are still there."""
    mark = _mark(paths, span)
    if not mark.exists():
        return None
    day: dict[str, Any] = json.loads(mark.read_text())
    same = day["span"] == list(span) and day["cache"] == cache.name and not cover(cache, *span)[1]
    return day if same else None


@contextmanager
def _source(parameters: Parameters, asset: str, cache: Path) -> Iterator[Bring]:
    """What brings a span into the cache; the synthetic exchange is served while the block runs."""
    source = parameters.source
    if source.kind == "archive":
        mirror = Path(source.endpoint or "")
        yield lambda part, retries, tick: archive.fetch(mirror, asset, part, cache, tick)
        return
    channels = tuple(source.channels)
    if source.kind == "synthetic":
        from hyperdapo.market.replay_server import serve, synthetic_market  # its engine takes seconds to import

        with serve(synthetic_market(parameters, asset)) as endpoint:
            yield partial(fetch, Feed(endpoint, source.exchange, channels, asset, cache))
    else:
        endpoint = (source.endpoint or DEFAULT_ENDPOINT).rstrip("/")
        check_connection(endpoint)
        yield partial(fetch, Feed(endpoint, source.exchange, channels, asset, cache))


def _asked(parameters: Parameters, asset: str) -> str:
    """Digest of all parameters on which the lines depend, and for a synthetic market its span, on which they do too."""
    source = parameters.source
    asked: list[Any] = [asset, source.kind, source.endpoint, source.exchange, sorted(source.channels)]
    if source.kind == "synthetic":
        world = parameters.model_dump(mode="json", include={"seed", "synthetic", "asset_facts"})
        asked += [world, source.start_ns, source.end_ns]
    return _digest(asked)


def _origin(parameters: Parameters, asset: str) -> str:
    """Name of the cache folder: two sources that could send different lines never share one."""
    asked = [_asked(parameters, asset)]
    if parameters.source.kind == "synthetic":
        asked += [Path(__file__).with_name(f"{name}.py").read_text() for name in SYNTHETIC_CODE]
    return f"{parameters.source.kind}-{_digest(asked)}"


def _digest(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _forget_other_worlds(cache: Path) -> None:
    """Delete the slices of synthetic markets that nobody asks for any more; real ones stay."""
    for folder in cache.parent.glob("synthetic-*"):
        if folder != cache:
            shutil.rmtree(folder)
