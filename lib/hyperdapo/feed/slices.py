"""The raw slices that the tardis-dev client keeps on disk: which minutes they cover, and what they hold.

The client names a slice `…/YYYY/MM/DD/HH/MM[.size-MINUTES].json.{zst,gz}` and moves it into place when its download has
ended, which does not mean that the download was whole.
"""

import gzip
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from hyperdapo.errors import DataError
from hyperdapo.market.columns import Integers
from hyperdapo.market.native import CHANNELS, STAMP_LENGTH, channel_of, local_time
from hyperdapo.times import DAY_NS, MINUTE_NS, SECOND_NS, moment

_NAME = re.compile(r"(\d{4})/(\d\d)/(\d\d)/(\d\d)/(\d\d)(?:\.size-(\d+))?\.json\.(?:zst|gz)$")
_HEADS = (b' {"channel":"', b' {"channel": "')  # between stamp and name of a channel
_PADDING = b"\n" * 64  # longer than stamp, head and name together


@dataclass(frozen=True)
class SliceFile:
    """One slice on disk, which covers `start_ns` <= local_ns < `end_ns`.

    Where it is known what it must be, `sha256` is that of the file, and `remedy` the command that fetches it again.
    """

    path: Path
    start_ns: int
    end_ns: int
    sha256: str = ""
    remedy: str = ""

    def read(self) -> bytes:
        """Decompressed lines.

        Raises
        ------
        DataError
            If the file is lost, truncated, corrupt, or not the one that it must be.
        """
        return self.unpack(self.pack())

    def pack(self) -> bytes:
        """The file as it is; raises as `read`."""
        try:
            packed = self.path.read_bytes()
        except FileNotFoundError:
            raise self._damage("it is not there") from None
        if self.sha256 and hashlib.sha256(packed).hexdigest() != self.sha256:
            raise self._damage("its SHA-256 is not the one that 01_download noted")
        return packed

    def unpack(self, packed: bytes) -> bytes:
        """The lines of the file that `pack` gave; raises as `read`."""
        try:
            if not packed:
                raise EOFError("it is empty")
            return _unpack_zstd(packed) if self.path.suffix == ".zst" else gzip.decompress(packed)
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            raise self._damage(str(error)) from None

    def _damage(self, how: str) -> DataError:
        return DataError(f"{self.path} is damaged ({how}). Run: {self.remedy or 'hyperdapo run --force 01'}")


def slice_path(cache: Path, source: str, start_ns: int, end_ns: int) -> Path:
    """Where a slice of whole minutes from another source than the client stands, under a name as the client gives."""
    minutes = (end_ns - start_ns) // MINUTE_NS
    size = f".size-{minutes}" if minutes > 1 else ""
    return cache / "feeds" / source / "all" / f"{moment(start_ns):%Y/%m/%d/%H/%M}{size}.json.zst"


def cover(cache: Path, start_ns: int, end_ns: int) -> tuple[list[SliceFile], list[tuple[int, int]]]:
    """Slices in `cache` that cover a span without overlap, in time order, and the spans that none covers.

    Of several that begin at the same minute, the longest that fits.
    """
    longest: dict[int, SliceFile] = {}
    for piece in _listed(cache, start_ns, end_ns):
        known = longest.get(piece.start_ns)
        if piece.end_ns <= end_ns and (known is None or piece.end_ns > known.end_ns):
            longest[piece.start_ns] = piece
    chosen: list[SliceFile] = []
    missing: list[tuple[int, int]] = []
    now = start_ns
    while now < end_ns:
        if now in longest:
            chosen.append(longest[now])
            now = longest[now].end_ns
        else:
            begin = missing.pop()[0] if missing and missing[-1][1] == now else now
            now += MINUTE_NS
            missing.append((begin, now))
    return chosen, missing


class Description:
    """What a span of whole minutes holds, slice by slice in time order; each is read and decompressed once."""

    def __init__(self, start_ns: int, end_ns: int) -> None:
        self.start_ns, self.minutes = start_ns, (end_ns - start_ns) // MINUTE_NS
        self.files: list[tuple[Path, str]] = []
        self._digest, self._counts = hashlib.sha256(), Counter[tuple[bytes, str]]()
        self._names = ["", *CHANNELS]
        self._bytes = self._content_bytes = self._disconnects = 0
        self._connected, self._first, self._last = True, b"", b""

    def add(self, piece: SliceFile) -> bool:
        """Count the next slice in; False where it is damaged, and then left out."""
        try:
            packed = piece.pack()
            content = piece.unpack(packed)
        except DataError:
            return False
        self.files.append((piece.path, hashlib.sha256(packed).hexdigest()))
        self._digest.update(content)
        self._bytes += len(packed)
        self._content_bytes += len(content)
        self._count(content)
        return True

    def summary(self) -> dict[str, Any]:
        """What was counted in.

        Returns
        -------
        `sha256` of the lines in time order, `slices`, `bytes` (compressed), `content_bytes`, `messages` by channel,
        `disconnects`, `first_ns` and `last_ns` (local time of the first and last message, 0 where there is none),
        `empty_minutes`, and `by_minute`: for each channel the count of messages received in each minute of the span.
        """
        by_minute = {name: [0] * self.minutes for name in sorted({name for _, name in self._counts})}
        for (stamp, name), count in self._counts.items():
            minute = (local_time(stamp + b":00.0000000Z") - self.start_ns) // MINUTE_NS
            if 0 <= minute < self.minutes:
                by_minute[name][minute] += count
        busy = [any(received) for received in zip(*by_minute.values(), strict=True)]
        return {
            "sha256": self._digest.hexdigest(),
            "slices": len(self.files),
            "bytes": self._bytes,
            "content_bytes": self._content_bytes,
            "messages": {name: sum(received) for name, received in by_minute.items()},
            "disconnects": self._disconnects,
            "first_ns": max(local_time(self._first), 0),
            "last_ns": max(local_time(self._last), 0),
            "empty_minutes": self.minutes - sum(busy),
            "by_minute": by_minute,
        }

    def _count(self, content: bytes) -> None:
        """Messages by minute and channel, first and last stamp, and disconnects: blank lines after a message."""
        begin, end = _lines(content)
        padded = content + _PADDING
        eights = np.ndarray(len(padded) - 7, np.dtype("<u8"), padded, strides=(1,))  # the 8 bytes at every position
        channel = _channels(content, eights, begin, end, self._names)
        blank = end - begin <= 1
        ends = blank[(channel > 0) | blank]  # a message, or a disconnect
        if not len(ends):
            return
        before = np.concatenate([[not self._connected], ends[:-1]])
        self._disconnects += int((ends & ~before).sum())
        self._connected = not ends[-1]
        begin, channel = begin[channel > 0], channel[channel > 0]
        if len(begin):
            self._first = self._first or content[begin[0] : begin[0] + STAMP_LENGTH]
            self._last = content[begin[-1] : begin[-1] + STAMP_LENGTH]
            date, clock = eights[begin], eights[begin + 8]  # of 2025-09-04T19:46
            minute = np.cumsum(np.append(False, (date[1:] != date[:-1]) | (clock[1:] != clock[:-1])))
            counts = np.bincount(minute * len(self._names) + channel)
            firsts = begin[np.searchsorted(minute, np.arange(minute[-1] + 1))]
            for cell in np.flatnonzero(counts).tolist():
                first = firsts[cell // len(self._names)]
                self._counts[content[first : first + 16], self._names[cell % len(self._names)]] += int(counts[cell])


def _lines(content: bytes) -> tuple[Integers, Integers]:
    """Where each line (n,) begins, and where it ends, its newline left out; the last newline may be missing."""
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
    if content and not content.endswith(b"\n"):
        ends = np.append(ends, len(content))
    return np.concatenate([[0], ends[:-1] + 1])[: len(ends)], ends


def _channels(content: bytes, eights: NDArray[np.uint64], begin: Integers, end: Integers, names: list[str]) -> Integers:
    """The channel of each line (n,), as its position in `names`; 0 where it names none. Other names are appended."""
    channel = np.zeros(len(begin), dtype=np.int64)
    for head in _HEADS:
        for number, name in enumerate(CHANNELS, start=1):
            text = head + name.encode() + b'"'
            fits = np.flatnonzero((end - begin >= STAMP_LENGTH + len(text)) & (channel == 0))
            for first in (len(text) - 8, *range(0, len(text) - 8, 8)):
                wanted = int.from_bytes(text[first : first + 8], "little")
                fits = fits[eights[begin[fits] + (STAMP_LENGTH + first)] == wanted]
            channel[fits] = number
    for line in np.flatnonzero((channel == 0) & (end - begin > 1)).tolist():  # spelled otherwise, or another channel
        name = channel_of(content[begin[line] : end[line]])
        if name not in names:
            names.append(name)
        channel[line] = names.index(name)
    return channel


def file_at(path: Path) -> SliceFile:
    """The slice whose place and name these are.

    Raises
    ------
    DataError
        If no slice has such a name.
    """
    match = _NAME.search(path.as_posix())
    if match is None:
        raise DataError(f"{path} is not the name of a slice")
    *begin, minutes = map(int, match.groups(default="1"))
    start = int(datetime(*begin, tzinfo=UTC).timestamp()) * SECOND_NS  # type: ignore[misc, arg-type]
    return SliceFile(path, start, start + minutes * MINUTE_NS)


def _listed(cache: Path, start_ns: int, end_ns: int) -> Iterator[SliceFile]:
    for day_ns in range(start_ns // DAY_NS * DAY_NS, end_ns, DAY_NS):
        for path in sorted(cache.glob(f"*/*/*/{moment(day_ns):%Y/%m/%d}/*/*.json.*")):
            if _NAME.search(path.as_posix()):
                yield file_at(path)


def _unpack_zstd(packed: bytes) -> bytes:
    parts: list[bytes] = []
    while packed or not parts:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(packed))
        if not frame.eof:
            raise EOFError("the compressed stream ends too early")
        packed = frame.unused_data
    return b"".join(parts)
