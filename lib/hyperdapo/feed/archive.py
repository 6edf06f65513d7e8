"""The exchange's own archive of `l2Book`, as a second source of the same slices.

A mirror holds `YYYYMMDD/H/l2Book/ASSET.lz4`, an hour a file; a line is
`{"time": ..., "ver_num": ..., "raw": {native message}}`.
It is copied from the exchange's bucket, whose traffic the reader pays. It knows neither trades nor best quotes between
the snapshots, so that features of trades stay undefined.
"""

from collections.abc import Callable
from itertools import compress
from pathlib import Path

import msgspec
import pyarrow as pa
import zstandard

from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.feed.slices import slice_path
from hyperdapo.files import atomic
from hyperdapo.market.native import STAMP_LENGTH, local_times
from hyperdapo.times import HOUR_NS, MINUTE_NS, Span, moment

CHANNEL = "l2Book"


class _Line(msgspec.Struct):
    time: str
    raw: msgspec.Raw


_decode = msgspec.json.Decoder(_Line).decode


def fetch(mirror: Path, asset: str, span: Span, cache: Path, tick: Callable[[int, int], object]) -> None:
    """Write what the mirror has of a span (ns, whole minutes) into the cache as slices, one for each hour.

    `tick` is called with the minutes and bytes of each hour.

    Raises
    ------
    MissingInputError
        If an hour is not in the mirror.
    DataError
        If a file is truncated or corrupt.
    """
    start_ns, end_ns = span
    for hour_ns in range(start_ns // HOUR_NS * HOUR_NS, end_ns, HOUR_NS):
        from_ns, to_ns = max(hour_ns, start_ns), min(hour_ns + HOUR_NS, end_ns)
        lines = [replay_line(line) for line in _unpacked(_file(mirror, asset, hour_ns)).splitlines()]
        local_ns = local_times(lines)
        unasked = (local_ns // HOUR_NS == hour_ns // HOUR_NS) & ((local_ns < from_ns) | (local_ns >= to_ns))
        content = b"".join(compress(lines, ~unasked))
        with atomic(slice_path(cache, "archive", from_ns, to_ns)) as temporary:
            temporary.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(content))
        tick((to_ns - from_ns) // MINUTE_NS, len(content))


def replay_line(line: bytes) -> bytes:
    """The line as Tardis would replay it, to a tenth of a microsecond; what is no line of an archive stays as it is."""
    try:
        entry = _decode(line)
    except msgspec.DecodeError:
        return line + b"\n"
    stamp = entry.time.rstrip("Z").encode()
    whole = stamp if b"." in stamp else stamp + b"."
    return whole.ljust(STAMP_LENGTH - 1, b"0")[: STAMP_LENGTH - 1] + b"Z " + bytes(entry.raw) + b"\n"


def _file(mirror: Path, asset: str, hour_ns: int) -> Path:
    hour = moment(hour_ns)
    name = f"{hour:%Y%m%d}/{hour.hour}/{CHANNEL}/{asset}.lz4"
    if not (mirror / name).exists():
        source = f"s3://hyperliquid-archive/market_data/{name}"
        raise MissingInputError(
            f"{mirror / name} is not there. Copy it: aws s3 cp {source} {mirror / name} --request-payer requester"
        )
    return mirror / name


def _unpacked(path: Path) -> bytes:
    try:
        with pa.CompressedInputStream(pa.OSFile(str(path)), "lz4") as stream:
            content: bytes = stream.read()
    except OSError as error:
        raise DataError(f"{path} is damaged ({error}); copy it again") from None
    if not content.endswith(b"\n"):
        raise DataError(f"{path} ends in the middle of a line; copy it again")
    return content
