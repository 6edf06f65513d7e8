"""The compiled scanner and msgspec say the same of every line, to the bit; nearly all real lines take the fast path."""

import gzip
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hyperdapo.feed import messages, scanner
from hyperdapo.feed.messages import AGGREGATED, FAST, WHOLE, Decoder, Slice
from hyperdapo.feed.scanner import Scan, compact, scan
from hyperdapo.market.columns import LEVELS
from hyperdapo.market.native import FIELDS, LAST_MS, LAST_SECOND, local_time
from hyperdapo.params import load
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.tape import CHANNELS

STAMP, LOCAL_NS = "2025-09-04T19:46:56.8699350Z", 1_757_015_216_869_935_000
EVER = (0, 2**63 - 1)
MS = 1_757_015_216_253
LEVEL = '{"px":"4268.9","sz":"10.1152","n":3}'
PRINT = '{"coin":"ETH","side":"B","px":"4268.9","sz":"2.338","time":%s,"hash":"0x%s","tid":664477935311385}'


def book(bids: Sequence[str] = (LEVEL,), asks: Sequence[str] = (LEVEL,), ms: object = MS, stamp: str = STAMP) -> bytes:
    levels = f'"levels":[[{",".join(bids)}],[{",".join(asks)}]]'
    return f'{stamp} {{"channel":"l2Book","data":{{"coin":"ETH","time":{ms},{levels}}}}}'.encode()


def quote(bid: str = LEVEL, ask: str = LEVEL, ms: object = MS, stamp: str = STAMP) -> bytes:
    return f'{stamp} {{"channel":"bbo","data":{{"coin":"ETH","time":{ms},"bbo":[{bid},{ask}]}}}}'.encode()


def trades(prints: Sequence[str], stamp: str = STAMP) -> bytes:
    return f'{stamp} {{"channel":"trades","data":[{",".join(prints)}]}}'.encode()


def fill(ms: object = MS, digits: str = "0" * 64) -> str:
    return PRINT % (ms, digits)


def level(price: str, size: str = "1.0", orders: str = "3") -> str:
    return f'{{"px":"{price}","sz":"{size}","n":{orders}}}'


USERS = fill()[:-1] + f',"users":["0x{"a1" * 20}","0x{"09" * 20}"]}}'


def unread(text: bytes, coin: str) -> Scan:
    """The scanner switched off: every line is left to msgspec."""
    lengths = [len(line) + 1 for line in text.removesuffix(b"\n").split(b"\n")] if text else []
    nothing = scan(b"", coin)
    return nothing._replace(begin=np.cumsum([0, *lengths]), local_ns=np.full(len(lengths), -1))


def regular(lines: Sequence[bytes]) -> list[bool]:
    """Which lines the scanner reads; the batch of each is the whole."""
    return (scan(b"\n".join(lines), "ETH").local_ns >= 0).tolist()


def identical(one: Any, other: Any) -> None:
    """Two slices with the same bits in the same places."""
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), field.name
            assert mine.tobytes() == theirs.tobytes(), field.name
        else:
            identical(mine, theirs)


def decoded(parts: Sequence[bytes], covers: tuple[int, int] = EVER, coin: str = "ETH") -> tuple[Decoder, Slice]:
    """What a decoder makes of slices that follow one another; without the scanner it is the same, state and all."""
    fast, strict = Decoder(coin), Decoder(coin)
    slices = [fast.decode(part, *covers) for part in parts]
    with patch.object(messages, "scan", unread), patch.object(messages, "compact", lambda text: text):
        for part, piece in zip(parts, slices, strict=True):
            identical(piece, strict.decode(part, *covers))
    assert vars(fast) == vars(strict)
    return fast, Slice.joined(slices)


def at(second: float) -> str:
    return f"{(datetime(2025, 9, 4, 19, 46) + timedelta(seconds=second)).isoformat(timespec='microseconds')}0Z"


CONTEXT = '{"coin":"ETH","ctx":{"funding":"0.00001","openInterest":"1.5","oraclePx":"4268.0","markPx":"4268.5"}}'
CORPUS = [
    book([LEVEL, LEVEL], [level("4269.0", "2"), LEVEL], stamp=at(1)),
    quote(stamp=at(1)),
    trades([fill(), fill(MS + 1, "0af9" * 16).replace("B", "A")], stamp=at(2)),
    trades([USERS], stamp=at(3)),
    b"",
    b"",
    trades([fill()], stamp=at(4)),
    trades([USERS, USERS], stamp=at(4)),
    book([LEVEL] * LEVELS, [], stamp=at(5)),
    quote(stamp=at(5)).replace(b'":', b'": '),
    book([LEVEL] * 3, [LEVEL] * LEVELS, stamp=at(6)).replace(b'"px"', b' "px"'),
    quote("null", stamp=at(7)),
    quote(level("4268.95", "0.5"), level("4269.0", "0.25", "12"), stamp=at(61)),
    book([LEVEL] * (LEVELS + 1), stamp=at(62)),
    quote(stamp=at(62)).replace(b"ETH", b"BTC"),
    f'{at(63)} {{"channel":"activeAssetCtx","data":{CONTEXT}}}'.encode(),
    trades([fill(), fill().replace("ETH", "BTC")], stamp=at(64)),
    book([level("0.0000001", "123456789.25")], [level("1", "0.0")], stamp=at(65)),
    book([LEVEL], [f'{LEVEL[:-1]},"x":"a b, c"}}'], stamp=at(65))[:-2] + b',"last":false},"seq":12}',
    quote(f'{LEVEL[:-1]},"px2":1.5,"x":null}}', stamp=at(65))[:-2] + b',"last":true}}',
    trades([f'{fill()[:-1]},"liquidation":null}}', f'{USERS[:-1]},"x":"-1"}}'], stamp=at(65))[:-1] + b',"is_last":0}',
]
READ = [True] * 4 + [False] * 2 + [True] * 3 + [False] * 3 + [True] + [False] * 4 + [True] * 4
TELLING = st.sampled_from([bytes([byte]) for byte in b'0123456789 .-+eE"{}[],:\\/\n\r\t\0ABTZabnulxfx\x7f\x80\xff'])
EDITS = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(["replace", "insert", "delete", "truncate", "repeat"]), TELLING),
    max_size=3,
)


def edited(line: bytes, edits: Sequence[tuple[int, str, bytes]]) -> bytes:
    for position, kind, byte in edits:
        k = position % (len(line) + 1)
        before, after = line[:k], line[k:]
        changed = {"replace": byte + after[1:], "insert": byte + after, "delete": after[1:], "truncate": b""}
        line = before + changed.get(kind, after[:1] + after)
    return line


def test_the_corpus_takes_both_paths() -> None:
    assert regular(CORPUS) == READ
    decoder, piece = decoded([b"\n".join(CORPUS)])
    assert decoder.messages == {"l2Book": 5, "bbo": 5, "trades": 6, "activeAssetCtx": 1}
    assert decoder.dropped == {"l2Book_too_deep": 1, "bbo_one_sided": 1, "other_coin": 2}
    assert decoder.connection == 1 and piece.backfill.tolist() == [True] * 2 + [False] + [True] + [False] * 5


def test_the_compiled_code_knows_every_field_that_means_something() -> None:
    assert sorted(scanner._NAMES) == sorted(FIELDS)


@pytest.mark.parametrize("name", [*FIELDS, "p\\u0078", "a b", "é"])
def test_a_further_field_of_ours_or_of_an_odd_name_is_left_to_msgspec(name: str) -> None:
    """The last of two fields of one name counts, so what repeats a field that matters is not passed over."""
    further = f',"{name}":"7"}}'
    lines = [quote(LEVEL[:-1] + further), trades([fill()[:-1] + further]), book()[:-2] + further.encode() + b"}"]
    assert regular(lines) == [False] * 3
    decoded([b"\n".join(lines)])


@pytest.mark.parametrize("value", ['{"a":1}', "[1]", "-1", "1e5", '"\\n"', '"é"', "01", "nul", "", '"', "Infinity"])
def test_a_further_value_that_is_not_plain_is_left_to_msgspec(value: str) -> None:
    lines = [quote(f'{LEVEL[:-1]},"x":{value}}}'), quote()[:-2] + f',"x":{value}}}}}'.encode(), quote()]
    assert regular(lines) == [False, False, True]
    decoded([b"\n".join(lines)])


def spaced(line: bytes) -> bytes:
    """As Python's `json.dumps` writes it."""
    return line[:29] + json.dumps(json.loads(line[29:]), ensure_ascii=False).encode() if line else line


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(CORPUS) - 1), st.one_of(st.just([]), EDITS)), max_size=12), st.booleans())
def test_any_spaced_lines_decode_the_same(chosen: list[tuple[int, Any]], ordered: bool) -> None:
    chosen = sorted(chosen, key=lambda line: line[0]) if ordered else chosen
    decoded([b"\n".join(edited(spaced(CORPUS[row]), edits) for row, edits in chosen)])


def test_spaces_between_tokens_go_and_no_others() -> None:
    lines = [spaced(line) for line in CORPUS]
    assert sum(regular(lines)) == 0
    packed = compact(b"\n".join(lines)).split(b"\n")
    assert regular(packed) == [read or row in (9, 10) for row, read in enumerate(READ)]
    assert b'"a b, c"' in b"".join(packed)
    for text in (b"", b"\n", b'2025-09-04, [ 1 ] {"a": 1}', STAMP.encode() + b' {"a\\": 1, "b": "c\\", d"}'):
        assert compact(text) == text
    assert compact(STAMP.encode() + b' {"a": 17 000, "b": [ 1, 2]}') == STAMP.encode() + b' {"a":17 000,"b":[1,2]}'


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_compacted_json_means_the_same(value: Any) -> None:
    line = STAMP.encode() + b" " + json.dumps(value).encode()
    assert json.loads(compact(line)[28:]) == value


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(CORPUS) - 1), st.one_of(st.just([]), EDITS)), max_size=12),
    st.lists(st.integers(0, 3000), max_size=2),
    st.sampled_from([b"", b"\n", b"\n\n"]),
    st.sampled_from([1, 700, 2**20]),
    st.sampled_from([EVER, (LOCAL_NS - 54 * 10**9, LOCAL_NS + 5 * 10**9)]),
    st.booleans(),
)
def test_any_edited_lines_decode_the_same(
    chosen: list[tuple[int, Any]], cuts: list[int], end: bytes, batch: int, covers: tuple[int, int], ordered: bool
) -> None:
    """Bytes replaced, inserted, deleted; lines in any order; content cut anywhere, decoded in batches of any size."""
    if ordered:
        chosen = sorted(chosen, key=lambda line: line[0])
    content = b"\n".join(edited(CORPUS[row], edits) for row, edits in chosen) + end
    bounds = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    with patch.object(messages, "_BATCH", batch):
        decoded([content[first:last] for first, last in pairwise(bounds)], covers)


@pytest.mark.parametrize("row", [row for row, read in enumerate(READ) if read])
def test_every_one_edit_of_a_regular_message_decodes_the_same(row: int) -> None:
    """Each byte left out, doubled, replaced by each of a few, and everything after it left out."""
    stamp, message = CORPUS[row][:28], CORPUS[row][28:500]
    bytes_ = [bytes([byte]) for byte in b'0 .-1e"{}[],:\\ABx\x80']
    edits = [("delete", b""), ("repeat", b""), ("truncate", b""), *(("replace", byte) for byte in bytes_)]
    lines = [edited(message, [(k, *edit)]) + CORPUS[row][500:] for k in range(len(message)) for edit in edits]
    decoded([b"\n".join(stamp + line for line in lines)])


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([row for row, read in enumerate(READ) if read]))
def test_any_one_edit_of_a_regular_line_decodes_the_same(data: st.DataObject, row: int) -> None:
    line = CORPUS[row]
    position = data.draw(st.integers(0, len(line)))
    kinds = st.sampled_from(["replace", "insert", "delete", "truncate", "repeat"])
    lines = [edited(line, [(position, data.draw(kinds), data.draw(TELLING))]), quote(stamp=at(66))]
    decoded([b"\n".join(lines)])


PLAIN = st.from_regex(r"(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?", fullmatch=True)
ODD = [
    "",
    ".",
    "1.",
    ".5",
    "00.5",
    "01",
    "00",
    "0",
    "1e5",
    "1e-05",
    "1E5",
    "-1",
    "-0.0",
    "+1",
    "nan",
    "inf",
    "Infinity",
]
ODD += ["1_0", "0x1", "4268,9", " 1", "1 ", "१", "\\u0031", "null", "true"]
DIGITS = st.from_regex(r"[0-9]{0,25}\.?[0-9]{0,25}", fullmatch=True)
NUMBERS = st.one_of(PLAIN, DIGITS, st.sampled_from(ODD))


@settings(max_examples=150, deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_any_numbers_decode_the_same(price: str, size: str, orders: str, ms: str) -> None:
    odd = level(price, size)
    lines = [
        book([odd, LEVEL], [LEVEL, odd]),
        quote(odd),
        quote(LEVEL, odd),
        quote(level("1", "2", orders)),
        quote(ms=ms),
    ]
    numbers = fill().replace("4268.9", price).replace("2.338", size), fill(ms), fill().replace("664477935311385", ms)
    decoded([b"\n".join([*lines, *(trades([number]) for number in numbers), book(ms=ms)])])


@settings(max_examples=150, deadline=None)
@given(PLAIN)
@example("0.000000000000001")
@example("999999999999999")
@example("9007199254740993")
@example("123456789012.345")
@example("0.1234567890123456")
def test_a_decimal_is_the_float_that_python_reads(text: str) -> None:
    """Fifteen digits are read at once, more are left to msgspec; either way the bits are those of `float`."""
    lines = [quote(level(text, "0.1"), level("0.1", text)), book([LEVEL, level(text)], [level("3", text)])]
    assert regular(lines) == [len(text.replace(".", "")) <= 15] * 2
    _, piece = decoded([b"\n".join(lines)])
    values = [piece.bbo.bid_price[0], piece.bbo.ask_size[0], piece.book.bid_price[0, 1], piece.book.ask_size[0, 0]]
    assert {value.tobytes() for value in values} == {np.float64(text).tobytes()} == {np.float64(float(text)).tobytes()}


@pytest.mark.parametrize("make", [lambda ms: quote(ms=ms), lambda ms: book(ms=ms), lambda ms: trades([fill(ms)])])
def test_times_are_read_up_to_their_bound(make: Callable[[object], bytes]) -> None:
    times = [0, 1, 10**8, MS, LAST_MS, LAST_MS + 1, 10**15, 10**16, 10**17, "00", "01", "-1", "1.0", '"1"', ""]
    lines = [make(ms) for ms in times]
    assert regular(lines) == [True] * 5 + [False] * 10
    decoder, piece = decoded([b"\n".join(lines)])
    sent = [0, 1, 10**8, MS, LAST_MS, 1, 1]  # msgspec takes 1.0 and "1" for one
    ns = np.concatenate([piece.book.exchange_ns, piece.bbo.exchange_ns, piece.trades.exchange_ns])
    assert (ns // 10**6).tolist() == sent and decoder.dropped == {"malformed": len(times) - len(sent)}


def test_trade_ids_are_read_up_to_their_bound() -> None:
    ids = [0, 7, 2**50, 10**16 - 1, 10**16, 2**63 - 1, 2**63, "00", ""]
    lines = [trades([fill().replace("664477935311385", str(tid))]) for tid in ids]
    assert regular(lines) == [True] * 4 + [False] * 5
    assert decoded([b"\n".join(lines)])[1].trades.tid.tolist() == ids[:6]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 25), st.integers(0, 25))
def test_any_depth_decodes_the_same(bids: int, asks: int) -> None:
    sides = [[level(f"{4268 + step}.5", f"0.{step + 1}") for step in range(count)] for count in (bids, asks)]
    line = book(*sides)
    assert regular([line]) == [max(bids, asks) <= LEVELS]
    decoder, piece = decoded([line])
    assert decoder.dropped == ({} if max(bids, asks) <= LEVELS else {"l2Book_too_deep": 1})
    assert np.isfinite(piece.book.ask_price).sum() == (asks if max(bids, asks) <= LEVELS else 0)


def test_a_book_that_says_which_it_is_decodes_the_same() -> None:
    """Marked books are left to msgspec, among regular ones, and each row keeps its mark."""
    marks = ["", ',"fast":true', ',"spread":"0.1"', ',"fast":false', ',"spread":null', ',"fast":1', ',"fast":"x"']
    lines = [book(ms=MS + row).replace(b"]]}}", f"]]{mark}}}}}".encode()) for row, mark in enumerate(marks)]
    assert regular(lines) == [True] + [False] * 6
    decoder, piece = decoded([b"\n".join(lines)])
    told = dict(zip((piece.book.exchange_ns // 10**6 - MS).tolist(), piece.book_stream.tolist(), strict=True))
    assert told == {0: WHOLE, 1: FAST, 2: AGGREGATED, 3: WHOLE, 4: WHOLE, 5: FAST}
    assert decoder.dropped == {"malformed": 1}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 20)), max_size=25), st.integers(0, 20))
def test_lines_in_any_order_with_any_decimals_decode_the_same(lines: list[tuple[int, int]], cut: int) -> None:
    """Whatever the order and precision of stamps, both paths keep and drop the same lines."""
    spelled = [
        f"{at(second)[:20]}{'0' * decimals}Z" if decimals else f"{at(second)[:19]}Z" for decimals, second in lines
    ]
    rows = [quote(stamp=stamp, ms=MS + row) for row, stamp in enumerate(spelled)]
    decoded([b"\n".join([*rows[:cut], b""]), b"\n".join(rows[cut:])])


SHAPE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z", re.ASCII)
STAMPS = st.one_of(
    st.builds(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:07}Z".format,
        st.sampled_from([0, 1, 1600, 1900, 1969, 1970, 1972, 2000, 2024, 2025, 2100, 2200, 2261, 2262, 2263, 9999]),
        *(st.integers(0, 13), st.integers(0, 32), st.integers(0, 25), st.integers(0, 61), st.integers(0, 61)),
        st.integers(0, 9_999_999),
    ),
    st.datetimes(datetime(1969, 12, 1), datetime(2263, 1, 1)).map(
        lambda time: f"{time.isoformat('T', 'microseconds')}0Z"
    ),
    st.tuples(st.integers(0, 27), st.characters(max_codepoint=127)).map(
        lambda edit: STAMP[: edit[0]] + edit[1] + STAMP[edit[0] + 1 :]
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STAMPS, min_size=1, max_size=5))
@example(["1970-01-01T00:00:00.0000000Z", "1969-12-31T23:59:59.9999999Z", "2262-04-11T23:46:59.9999999Z"])
@example(["2262-04-11T23:47:15.9999999Z", "2262-04-11T23:47:16.0000000Z", "2024-02-29T00:00:00.0000000Z"])
@example(["2025-02-29T00:00:00.0000000Z", "2100-02-29T00:00:00.0000000Z", "2000-02-29T23:59:59.9999999Z"])
@example(["2025-W36-4T19:46:56.8699350Z", "2025-09-04 19:46:56.8699350Z", "20250904T194656.123.869935Z", "2025-09-04"])
def test_stamps_are_those_of_native(stamps: list[str]) -> None:
    """A stamp of the one shape is read where `native` knows its time, but for the last minute; any other is left."""
    lines = [quote(stamp=stamp) for stamp in stamps]
    content = b"\n".join(lines)
    for stamp, ns in zip(stamps, scan(content, "ETH").local_ns.tolist(), strict=False):
        if "\n" in stamp:
            return
        known = local_time(stamp.encode())
        shaped = SHAPE.fullmatch(stamp) is not None
        assert ns == (known if shaped and known // 60_000_000_000 < LAST_SECOND // 60 else -1)
    decoded([content])
    decoded([b"\n".join(sorted(lines))])


def test_a_name_is_met_as_json_spells_it() -> None:
    names = ["ETH", "kPEPE", "xyz:XYZ100", 'E"', "E\\", "É", "a long name of thirty-nine characters ...", ""]
    for coin in names:
        spelled = json.dumps(coin, ensure_ascii=False).encode()
        lines = [line.replace(b'"ETH"', spelled) for line in (quote(), book(), trades([USERS]))]
        text = b"\n".join([*lines, quote(), quote().replace(b'"ETH"', json.dumps(coin + "2").encode())])
        decoder, piece = decoded([text], coin=coin)
        assert (scan(text, coin).local_ns >= 0).tolist() == [True] * 3 + [coin == "ETH", False]
        assert len(piece.trades.tid) == 1 and decoder.dropped == {"other_coin": 1 if coin == "ETH" else 2}


def share_left(content: bytes, coin: str) -> dict[str, float]:
    """Of the lines of each channel, the share that is left to msgspec."""
    found = scan(content, coin)
    left: dict[str, list[bool]] = {}
    for line, ns in zip(content.splitlines(), found.local_ns.tolist(), strict=True):
        if line:
            left.setdefault(json.loads(line[29:])["channel"], []).append(ns < 0)
    return {channel: float(np.mean(lines)) for channel, lines in left.items()}


@pytest.mark.parametrize(("asset", "most"), [("BTC", 0.04), ("ETH", 0.0), ("SOL", 0.0)])
def test_nearly_all_real_lines_are_read_and_all_are_the_same(recordings: Path, asset: str, most: float) -> None:
    """The recorder of BTC wrote sizes of one lot as `1e-05`, which the exchange does not."""
    content = gzip.decompress((recordings / "hyperliquid" / "2025-09-04" / f"{asset}.ndjson.gz").read_bytes())
    left = share_left(content, asset)
    assert left.keys() == {"l2Book", "bbo", "trades"} and max(left.values()) <= most
    middle = content.index(b"\n", len(content) // 2) + 1
    decoded([content[:middle], content[middle:]], coin=asset)


@pytest.mark.parametrize("asset", ["BTC", "ETH", "SOL", "HYPE"])
def test_all_lines_of_the_synthetic_exchange_are_read(asset: str) -> None:
    parameters = load("sample")
    start_ns, end_ns = parameters.source.start_ns, parameters.source.start_ns + 600 * 10**9
    content = World.of(parameters, asset).simulate(start_ns, end_ns).lines(CHANNELS, start_ns, end_ns)
    assert share_left(content, asset) == {"l2Book": 0, "bbo": 0, "trades": 0, "activeAssetCtx": 1}
    decoded([content], (start_ns, end_ns), asset)
