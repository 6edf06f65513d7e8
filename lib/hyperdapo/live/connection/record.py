"""What a session received, as Tardis lines: `ASSET.ndjson.gz`, which every reader of recordings reads.

A file is a row of gzip members, one a minute, so that a killed session loses what was not flushed yet and no more: of
a member that was cut, the lines that are whole are kept. A blank line is a disconnect.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyperdapo.errors import DataError
from hyperdapo.files import atomic, writing_into
from hyperdapo.market.native import STAMP_LENGTH, local_times
from hyperdapo.times import MINUTE_NS, SECOND_NS

_GZIP = 31  # of zlib: a gzip member
_FAST = 1


class Line(NamedTuple):
    """One line of a record: when it came, and its message; none (b"") for a disconnect."""

    ns: int
    text: bytes


class Recorder:
    """Appends the lines of one asset to its file."""

    def __init__(self, folder: Path, asset: str) -> None:
        """Go on after what is there; a member that was cut is mended first. Raises as `read`."""
        self.path = folder / f"{asset}.ndjson.gz"
        with writing_into(folder):
            goes_on = self.path.exists()
            if goes_on:
                mend(self.path)
            self._file = self.path.open("ab", buffering=0)
        self._packer = zlib.compressobj(_FAST, zlib.DEFLATED, _GZIP)
        self._minute, self._waiting, self._heard = 0, list[bytes](), False
        self._second, self._stamp = -1, b""
        if goes_on:  # whatever came last, the connection was lost since
            self._waiting.append(b"\n")
        self.last_ns = 0
        """When the last line came."""

    def write(self, ns: int, frame: bytes) -> None:
        """Note a message that came at `ns` (whole ticks of 100 ns)."""
        minute = ns // MINUTE_NS
        if minute != self._minute:
            if self._minute:
                self._end_member()
            self._minute = minute
        second, rest = divmod(ns, SECOND_NS)
        if second != self._second:
            self._second = second
            self._stamp = str(np.datetime64(second, "s")).encode()
        text = frame if b"\n" not in frame else frame.replace(b"\n", b" ")
        self._waiting.append(b"%s.%07dZ %s\n" % (self._stamp, rest // 100, text))
        self.last_ns, self._heard = ns, True

    def lost(self) -> bool:
        """Note a disconnect, if anything came since the last; whether it was noted."""
        noted, self._heard = self._heard, False
        if noted:
            self._waiting.append(b"\n")
        return noted

    def flush(self) -> None:
        """Hand to the system what was noted so far: from here on it survives a kill."""
        if self._waiting:
            packed = self._packer.compress(b"".join(self._waiting))
            self._waiting.clear()
            with writing_into(self.path.parent):
                self._file.write(packed + self._packer.flush(zlib.Z_SYNC_FLUSH))

    def close(self) -> None:
        """End the file well."""
        self._end_member()
        self._file.close()

    def _end_member(self) -> None:
        self.flush()
        with writing_into(self.path.parent):
            self._file.write(self._packer.flush())
        self._packer = zlib.compressobj(_FAST, zlib.DEFLATED, _GZIP)


def read(path: Path) -> list[Line]:
    """The lines of a record, of a cut one those that are whole; a disconnect has the time of the line before it.

    Raises
    ------
    DataError
        If it is no record.
    """
    texts = _unpacked(path)[0].split(b"\n")[:-1]
    stamps = local_times([text for text in texts if text])
    if (stamps < 0).any():
        raise DataError(f"{path} has a line that does not open with a time: it is no record of a session")
    times, latest, lines = iter(stamps.tolist()), 0, list[Line]()
    for text in texts:
        latest = next(times) if text else latest
        lines.append(Line(latest, text[STAMP_LENGTH + 1 :]))
    return lines


def mend(path: Path) -> None:
    """Put what is whole of a cut record in its place; raises as `read`."""
    content, whole = _unpacked(path)
    if not whole:
        with atomic(path) as temporary:
            temporary.write_bytes(_packed([content[: content.rfind(b"\n") + 1]]))


def _packed(parts: Sequence[bytes]) -> bytes:
    packer = zlib.compressobj(_FAST, zlib.DEFLATED, _GZIP)
    return b"".join([*map(packer.compress, parts), packer.flush()])


def _unpacked(path: Path) -> tuple[bytes, bool]:
    """What can be decompressed of a file, and whether that is all of it."""
    packed, parts = path.read_bytes(), list[bytes]()
    try:
        while packed:
            member = zlib.decompressobj(_GZIP)
            parts.append(member.decompress(packed))
            if not member.eof:
                return b"".join(parts), False
            packed = member.unused_data
    except zlib.error as error:
        if not parts:
            raise DataError(f"{path} is damaged ({error}): it is no record of a session") from None
        return b"".join(parts), False
    return b"".join(parts), True
