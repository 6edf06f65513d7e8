"""Raw replay lines to arrays on one core: our `Decoder` against `convert` of hftbacktest 2.4.4, and against 120 MB/s.

One hour of a synthetic BTC market (sample parameters), made here. Both get the same messages, the peer behind the time
stamp that its own collector writes, in the gzip file that it asks for; the file is stored, not compressed, and ours
come from memory, so nobody's decompression counts (`read` below is what is left of it). Best of three after a warm-up
that compiles. The peer parses every line but drops `bbo`, turns books into changes of levels, and puts the events in
both orders of time; ours keeps every column of all three channels. That it did its work is checked: it must have all
our prints, and its changes, laid on one another, must end at our last book.
"""

import gzip
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from _hftbacktest import run
from _synthetic import ASSET, CHANNELS, SZ_DECIMALS, tape
from _timing import best_of, one_core

from hyperdapo.feed.messages import Decoder, Slice

TARGET = 8.0
TARGET_MB_PER_S = 120.0

one_core()
hour = tape(hours=1)
start_ns, end_ns = hour.covers
lines = hour.lines(CHANNELS, start_ns, end_ns)


def peer_file() -> bytes:
    """The same lines as `NANOSECONDS {native message}`."""
    stamps, _, messages = zip(*(line.partition(b" ") for line in lines.splitlines()), strict=True)
    ns = np.array([stamp[:-1].decode() for stamp in stamps], dtype="datetime64[ns]").astype(np.int64).tolist()
    return gzip.compress(b"".join(b"%d %s\n" % pair for pair in zip(ns, messages, strict=True)), compresslevel=0)


def decode() -> Slice:
    """All that the hour holds."""
    return Decoder(ASSET).decode(lines, start_ns, end_ns)


seconds, ours = best_of(decode)
with TemporaryDirectory() as folder:
    path = Path(folder) / f"{ASSET}.gz"
    path.write_bytes(peer_file())
    peer = run("_hftbacktest_convert.py", str(path), str(SZ_DECIMALS))

book, trades = ours.book, ours.trades
np.testing.assert_array_equal(peer["prints"], np.stack([trades.local_ns.astype(float), trades.price, trades.size], 1))
for side, prices, sizes in (("bids", book.bid_price, book.bid_size), ("asks", book.ask_price, book.ask_size)):
    np.testing.assert_allclose(peer[side], sorted(zip(prices[-1], sizes[-1], strict=True)), rtol=1e-12)
assert 0.9 * len(np.unique(book.local_ns)) < peer["moments"] <= len(np.unique(book.local_ns))

megabytes = len(lines) / 1e6
print(
    f"decode: {megabytes:.1f} MB, {len(book.local_ns):,} books, {len(ours.bbo.local_ns):,} bbo, {len(trades.tid):,} "
    f"prints, {megabytes / seconds:.0f} MB/s; peer {peer['events']:,} events, {megabytes / peer['seconds']:.0f} MB/s, "
    f"read {peer['reading_s']:.3f} s of {peer['seconds']:.3f} s",
    file=sys.stderr,
)
peer_s, allowed_s = peer["seconds"], megabytes / TARGET_MB_PER_S
print(f"BENCH decode {seconds:.4f} {peer_s:.4f} {peer_s / seconds:.2f} {TARGET:g}")
print(f"BENCH decode_{TARGET_MB_PER_S:g}_mb_per_s {seconds:.4f} {allowed_s:.4f} {allowed_s / seconds:.2f} 1")
