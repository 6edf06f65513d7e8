"""Native lines to columns: what is right comes out exactly, what is not is a counted drop, never a wrong row."""

import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperdapo.feed.clean import book_faults, context_faults, print_faults
from hyperdapo.feed.messages import Decoder, Slice
from hyperdapo.market.native import local_time

STAMP, LOCAL_NS = "2025-09-04T19:46:56.8699350Z", 1_757_015_216_869_935_000
FROM_NS, TO_NS = LOCAL_NS - 10**9, LOCAL_NS + 60 * 10**9
BOOK = {
    "coin": "ETH",
    "time": 1_757_015_216_253,
    "levels": [
        [{"px": "4268.9", "sz": "10.1152", "n": 1}, {"px": "4268.8", "sz": "0.1465", "n": 2}],
        [{"px": "4269.0", "sz": "820.6318", "n": 3}],
    ],
}
QUOTE = {
    "coin": "ETH",
    "time": 1_757_015_216_323,
    "bbo": [{"px": "4268.9", "sz": "4.8"}, {"px": "4269.0", "sz": "827.3"}],
}
PRINT = {
    "coin": "ETH",
    "side": "A",
    "px": "4268.9",
    "sz": "2.338",
    "time": 1_757_015_216_528,
    "tid": 664_477_935_311_385,
}


def line(channel: str, data: Any, stamp: str = STAMP) -> bytes:
    return f"{stamp} {json.dumps({'channel': channel, 'data': data})}\n".encode()


def decode(lines: Iterable[bytes], coin: str = "ETH") -> tuple[Decoder, Slice]:
    decoder = Decoder(coin)
    return decoder, decoder.decode(b"".join(lines), FROM_NS, TO_NS)


def rows(piece: Slice) -> int:
    return len(piece.book.local_ns) + len(piece.bbo.local_ns) + len(piece.trades.local_ns)


def test_a_book_a_quote_and_a_print_come_out_exactly() -> None:
    decoder, piece = decode([line("l2Book", BOOK), line("bbo", QUOTE), line("trades", [PRINT])])
    assert decoder.messages == {"l2Book": 1, "bbo": 1, "trades": 1, "activeAssetCtx": 0} and not decoder.dropped
    assert piece.book.exchange_ns.tolist() == [1_757_015_216_253_000_000] and piece.book.local_ns.tolist() == [LOCAL_NS]
    assert piece.book.bid_price[0, :2].tolist() == [4268.9, 4268.8] and np.isnan(piece.book.bid_price[0, 2:]).all()
    assert piece.book.ask_size[0, 0] == 820.6318 and np.isnan(piece.book.ask_size[0, 1:]).all()
    assert (piece.bbo.bid_size[0], piece.bbo.ask_price[0]) == (4.8, 4269.0)
    assert (piece.trades.price[0], piece.trades.size[0], piece.trades.side[0]) == (4268.9, 2.338, -1)
    assert piece.trades.tid[0] == 664_477_935_311_385


def test_the_first_prints_of_every_connection_are_backfill() -> None:
    two = [PRINT, PRINT | {"side": "B"}]
    decoder, piece = decode([line("trades", two), line("trades", [PRINT]), b"\n", b"\n", line("trades", two)])
    assert piece.backfill.tolist() == [True, True, False, True, True]
    assert decoder.connection == 1 and decoder.ended_ns == {0: LOCAL_NS}


def test_other_coins_and_channels_are_left_out() -> None:
    context = line("webData2", {"coin": "ETH", "ctx": {"markPx": "4268.0"}})
    decoder, piece = decode([line("l2Book", BOOK), line("bbo", QUOTE), line("trades", [PRINT]), context], coin="BTC")
    assert rows(piece) == 0 and decoder.dropped == {"other_coin": 3, "other_channel": 1}


def test_a_quote_without_a_side_is_dropped() -> None:
    decoder, piece = decode([line("bbo", QUOTE | {"bbo": [None, QUOTE["bbo"][1]]})])
    assert rows(piece) == 0 and decoder.dropped == {"bbo_one_sided": 1}


def test_lines_out_of_their_time_are_dropped() -> None:
    earlier, later = "2025-09-04T19:46:56.0000000Z", "2025-09-04T23:00:00.0000000Z"
    decoder, piece = decode([line("bbo", QUOTE), line("bbo", QUOTE, earlier), line("bbo", QUOTE, later)])
    assert rows(piece) == 1 and decoder.dropped == {"time_goes_back": 1, "outside_slice": 1}


@pytest.mark.parametrize(
    ("stamp", "ns"),
    [
        (b"2025-09-04T19:46:56.8699350Z", LOCAL_NS),
        (b"1970-01-01T00:00:00.0000001Z", 100),
        (b"2025-09-04T19:46:56.869935Z", LOCAL_NS),
        (b"2025-09-04T19:46:56.869935000Z", LOCAL_NS),
        (b"2025-09-04T19:46:56.869Z {", LOCAL_NS - 935_000),
        (b"2025-09-04T19:46:56Z", LOCAL_NS - 869_935_000),
        (b"2025-09-04T19:46:56.Z", -1),
        (b"2025-09-04T19:46:56.869Z1", -1),
        (b"2025-09-04T25:46:56.869Z", -1),
        (b"2025-13-04T19:46:56.8699350Z", -1),
        (b"2025-09-04T19:46+02.8699350Z", -1),
        (b"2025-09-04T19:46:56.86_9350Z", -1),
        (b"2025-09-04T19:46:56.8699350+", -1),
        (b"", -1),
    ],
)
def test_local_time(stamp: bytes, ns: int) -> None:
    assert local_time(stamp) == ns


BAD = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.lists(st.integers(), max_size=3),
)


@settings(deadline=None)  # the first that decodes may have to compile the scanner
@given(st.binary(max_size=200))
def test_any_bytes_are_no_row(text: bytes) -> None:
    _, piece = decode([text])
    assert rows(piece) == 0


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_after_a_stamp_are_no_row(text: bytes) -> None:
    decoder, piece = decode([f"{STAMP} ".encode(), text.replace(b"\n", b""), b"\n"])
    assert rows(piece) == 0 and sum(decoder.dropped.values()) == 1


@settings(deadline=None)
@given(st.data(), st.sampled_from(["l2Book", "bbo", "trades"]))
def test_a_missing_or_foreign_field_is_a_drop_or_an_equal_value(data: st.DataObject, channel: str) -> None:
    """Any one field left out or replaced: either nothing comes out, or the very value that was sent."""
    message = {"l2Book": BOOK, "bbo": QUOTE, "trades": PRINT}[channel]
    field = data.draw(st.sampled_from(sorted(message)))
    value = data.draw(BAD)
    changed = {name: old for name, old in message.items() if name != field}
    if data.draw(st.booleans()):
        changed[field] = value
    decoder, piece = decode([line(channel, [changed] if channel == "trades" else changed)])
    if rows(piece):
        assert field in changed
        number = {
            "time": piece.book.exchange_ns,
            "tid": piece.trades.tid,
            "px": piece.trades.price,
            "sz": piece.trades.size,
        }
        if channel == "trades" and field in ("px", "sz"):
            assert not valid(piece) or number[field][0] == float(value)
        elif channel == "trades" and field == "tid":
            assert number[field][0] == int(value)
    else:
        assert sum(decoder.dropped.values()) == 1


CONTEXT = {"funding": "0.0000125", "openInterest": "28120.5", "oraclePx": "4268.0", "markPx": "4268.5", "premium": "0"}


@settings(deadline=None)
@given(st.sampled_from(sorted(CONTEXT)), BAD, st.booleans())
def test_a_context_is_whole_or_dropped(field: str, value: object, left_out: bool) -> None:
    """Any one field left out or replaced: nothing comes out, or all that was sent, unless it is found to be faulty."""
    sent = {name: old for name, old in CONTEXT.items() if name != field} | ({} if left_out else {field: value})
    decoder, piece = decode([line("activeAssetCtx", {"coin": "ETH", "ctx": sent})])
    found = piece.context
    if len(found.local_ns) == 0:
        no_json = isinstance(value, float) and not math.isfinite(
            value
        )  # the line then holds Infinity, which is no JSON
        assert sum(decoder.dropped.values()) == 1 and (field != "premium" or no_json)
    elif not any(faulty.any() for faulty in context_faults(found).values()):
        columns = {"funding": found.funding, "openInterest": found.open_interest}
        columns |= {"oraclePx": found.oracle_price, "markPx": found.mark_price}
        assert {name: column[0] for name, column in columns.items()} == {name: float(sent[name]) for name in columns}


SENT = st.one_of(st.floats(), st.sampled_from([-1.0, 0.0, float("nan"), float("inf"), 4268.95]))


@settings(deadline=None)
@given(st.lists(st.tuples(SENT, SENT), max_size=25), st.lists(st.tuples(SENT, SENT), max_size=25))
def test_a_valid_book_is_sorted_positive_and_whole(
    bids: list[tuple[float, float]], asks: list[tuple[float, float]]
) -> None:
    sides = [[{"px": str(price), "sz": str(size)} for price, size in side] for side in (bids, asks)]
    decoder, piece = decode([line("l2Book", BOOK | {"levels": sides})])
    if max(len(bids), len(asks)) > 20:
        assert rows(piece) == 0 and decoder.dropped == {"l2Book_too_deep": 1}
    elif rows(piece) and valid(piece):
        for side, sent in ((piece.book.bid_price, bids), (piece.book.ask_price, asks)):
            assert (
                side[0, : len(sent)].tolist() == [price for price, _ in sent] and np.isnan(side[0, len(sent) :]).all()
            )
        assert all(price > 0 and size > 0 for price, size in bids + asks) and bids and asks
        assert bids == sorted(bids, reverse=True) and asks == sorted(asks) and bids[0][0] < asks[0][0]


def valid(piece: Slice) -> bool:
    faults = [*book_faults(piece.book).values(), *book_faults(piece.bbo).values(), *print_faults(piece.trades).values()]
    return not any(found.any() for found in faults)


@pytest.mark.parametrize(
    ("asset", "books", "quotes", "prints"),
    [("BTC", 3785, 13896, 2213), ("ETH", 3785, 15259, 2571), ("SOL", 3785, 13211, 1796)],
)
def test_a_real_recording_decodes_without_a_drop(
    recordings: Path, asset: str, books: int, quotes: int, prints: int
) -> None:
    content = gzip.decompress((recordings / "hyperliquid" / "2025-09-04" / f"{asset}.ndjson.gz").read_bytes())
    decoder = Decoder(asset)
    piece = decoder.decode(content, 0, 2**63)
    assert (
        decoder.messages
        == {
            "l2Book": books,
            "bbo": quotes,
            "trades": prints,
            "activeAssetCtx": 0,
        }
        and not decoder.dropped
    )
    assert decoder.connection == 1 and piece.backfill.sum() == 60
    assert valid(piece) and np.isfinite(piece.book.bid_price).all()
