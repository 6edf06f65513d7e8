"""The raw slices that the tardis-dev client keeps on disk: which minutes they cover, and what they hold.

The client names a slice `…/YYYY/MM/DD/HH/MM[.size-MINUTES].json.{zst,gz}` and moves it into place when its download has
ended, which does not mean that the download was whole.
"""

import gzip
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zstandard

from hyperdapo.errors import DataError
from hyperdapo.market.days import DAY_NS, MINUTE_NS, moment
from hyperdapo.market.native import STAMP_LENGTH, channel_of, local_time

_NAME = re.compile(r"(\d{4})/(\d\d)/(\d\d)/(\d\d)/(\d\d)(?:\.size-(\d+))?\.json\.(?:zst|gz)$")


@dataclass(frozen=True)
class SliceFile:
    """One slice on disk, which covers `start_ns` <= local_ns < `end_ns`."""

    path: Path
    start_ns: int
    end_ns: int

    def read(self) -> bytes:
        """Decompressed lines.

        Raises
        ------
        DataError
            If the file is truncated or corrupt.
        """
        packed = self.path.read_bytes()
        try:
            if not packed:
                raise EOFError("it is empty")
            return _unpack_zstd(packed) if self.path.suffix == ".zst" else gzip.decompress(packed)
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            raise DataError(f"{self.path} is damaged ({error}); delete it and run 01_download again") from None


def slice_path(cache: Path, source: str, start_ns: int, end_ns: int) -> Path:
    """Where a slice of whole minutes from another source than the client stands, under a name as the client gives."""
    minutes = (end_ns - start_ns) // MINUTE_NS
    size = f".size-{minutes}" if minutes > 1 else ""
    return cache / "feeds" / source / "all" / f"{moment(start_ns):%Y/%m/%d/%H/%M}{size}.json.zst"


def cover(cache: Path, start_ns: int, end_ns: int) -> tuple[list[SliceFile], list[tuple[int, int]]]:
    """Slices in `cache` that cover a span without overlap, in time order, and the spans that none covers.

    Where several begin at the same minute, the longest that fits is taken.
    """
    longest: dict[int, SliceFile] = {}
    for found in _listed(cache, start_ns, end_ns):
        known = longest.get(found.start_ns)
        if found.end_ns <= end_ns and (known is None or found.end_ns > known.end_ns):
            longest[found.start_ns] = found
    taken: list[SliceFile] = []
    missing: list[tuple[int, int]] = []
    now = start_ns
    while now < end_ns:
        if now in longest:
            taken.append(longest[now])
            now = longest[now].end_ns
        else:
            begin = missing.pop()[0] if missing and missing[-1][1] == now else now
            now += MINUTE_NS
            missing.append((begin, now))
    return taken, missing


def damaged(slices: Sequence[SliceFile]) -> Iterator[SliceFile]:
    """Those that do not decompress to their end."""
    for piece in slices:
        try:
            piece.read()
        except DataError:
            yield piece


def describe(slices: Sequence[SliceFile], start_ns: int, end_ns: int) -> dict[str, Any]:
    """What a span holds, read once from slices that cover it.

    Returns
    -------
    `sha256` of the lines in time order, `slices`, `bytes` (compressed), `content_bytes`, `messages` by channel,
    `disconnects`, `first_ns` and `last_ns` (local time of the first and last message, 0 where there is none),
    `empty_minutes`, and `by_minute`: for each channel the count of messages received in each minute of the span.
    """
    digest, counts = hashlib.sha256(), Counter[tuple[bytes, str]]()
    minutes = (end_ns - start_ns) // MINUTE_NS
    content_bytes = disconnects = 0
    connected, first, last = True, b"", b""
    for piece in slices:
        content = piece.read()
        digest.update(content)
        content_bytes += len(content)
        for line in content.splitlines():
            if len(line) <= 1:
                disconnects += connected
                connected = False
            elif channel := channel_of(line):
                connected = True
                first, last = first or line[:STAMP_LENGTH], line[:STAMP_LENGTH]
                counts[line[:16] + b":00.0000000Z", channel] += 1
    by_minute = {name: [0] * minutes for name in sorted({name for _, name in counts})}
    for (stamp, name), count in counts.items():
        minute = (local_time(stamp) - start_ns) // MINUTE_NS
        if 0 <= minute < minutes:
            by_minute[name][minute] += count
    busy = [any(received) for received in zip(*by_minute.values(), strict=True)]
    return {
        "sha256": digest.hexdigest(),
        "slices": len(slices),
        "bytes": sum(piece.path.stat().st_size for piece in slices),
        "content_bytes": content_bytes,
        "messages": {name: sum(received) for name, received in by_minute.items()},
        "disconnects": disconnects,
        "first_ns": max(local_time(first), 0),
        "last_ns": max(local_time(last), 0),
        "empty_minutes": minutes - sum(busy),
        "by_minute": by_minute,
    }


def _listed(cache: Path, start_ns: int, end_ns: int) -> Iterator[SliceFile]:
    for day_ns in range(start_ns // DAY_NS * DAY_NS, end_ns, DAY_NS):
        for path in sorted(cache.glob(f"*/*/*/{moment(day_ns):%Y/%m/%d}/*/*.json.*")):
            if match := _NAME.search(path.as_posix()):
                *begin, minutes = match.groups(default="1")
                start = int(datetime(*map(int, begin), tzinfo=UTC).timestamp()) * 10**9  # type: ignore[misc, arg-type]
                yield SliceFile(path, start, start + int(minutes) * MINUTE_NS)


def _unpack_zstd(packed: bytes) -> bytes:
    parts: list[bytes] = []
    while packed or not parts:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(packed))
        if not frame.eof:
            raise EOFError("the compressed stream ends too early")
        packed = frame.unused_data
    return b"".join(parts)
