"""Replay lines in the exchange's spelling, read by compiled code in one pass over their bytes.

There are two paths because two things are wanted. What is not exactly right must be found and counted by its cause:
msgspec does that (`native`), at the price of an object for every level. And nearly all lines are spelled in one regular
way, which needs no objects. So a line is read here only if each of its bytes is as Tardis and the exchange
write it: no other order of fields, no other coin, no null side, sign, exponent or superfluous zero, at most 15 digits
in a decimal and 20 levels a side. Further fields may follow at the end of any object, if they are scalars under names
that mean nothing to us, and the spaces that JSON allows are taken out by `compact`. Every other line is left to
msgspec, and of a line that is read here msgspec would say the same to the bit: 15 digits are an integer below 2**53 and
at most 10**15 divides them, both exact doubles, so their quotient is the double nearest to what is written, as that of
`float` is.

All compiled code is in this module, because numba's cache watches only the file of the function that is called. A
position `i` is an address in memory, and 8 bytes are compared, or become digits, at once. A parser gets the position
where something begins and returns the one where it ends, `_ODD` if it is not as it should be, or began there. It passes
a newline only at the end of a regular line, so none reads further than the 8 bytes from the last newline on.
"""

from typing import Any, NamedTuple

import msgspec
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from hyperdapo.market.columns import LEVELS, Floats, Integers, Nanoseconds
from hyperdapo.market.native import LAST_MS, LAST_SECOND, STAMP_LENGTH
from hyperdapo.times import SECOND_NS

_Text = tuple[tuple[np.uint64, np.uint64, int], ...]

_ODD = -1
_SHORTEST = 64  # bytes: less than any regular line, and than any print in one
_DIGITS, _LAST = 15, 10**16 - 1  # of a decimal; of an integer that has no other bound
_TENS = 10 ** np.arange(_DIGITS + 1)
_DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])  # each month of a common year
_DAYS_TO_1970 = 719_528  # as `_minute` counts them


class Scan(NamedTuple):
    """What a text of n lines holds. Line i is `text[begin[i] : begin[i + 1] - 1]`; `begin` is (n + 1,).

    `local_ns` (n,) is -1 for a line that is not regular. The others hold b books, q quotes and p prints: `book` (b, 2)
    and `quote` (q, 2) are line and time of the exchange in ms, `print` (p, 4) line, time, side (+1 where the aggressor
    buys, else -1) and tid; `levels` (b, 4, 20) and `top` (q, 4) are bid price and size, ask price and size, in USD and
    coin, NaN beyond the visible; `traded` (p, 2) price and size.
    """

    begin: Integers
    local_ns: Nanoseconds
    book: Integers
    quote: Integers
    print: Integers
    levels: Floats
    top: Floats
    traded: Floats


def scan(text: bytes, coin: str) -> Scan:
    """Read the regular lines about a coin; the newline of the last line may be missing."""
    padded = np.frombuffer(text + b"\n" * 8, np.uint8)
    lines, most = int(np.count_nonzero(padded == ord("\n"))) - 7, len(text) // _SHORTEST + 1
    shapes = ((lines + 1,), (lines,), (most, 2), (most, 2), (most, 4), (most, 4, LEVELS), (most, 4), (most, 2))
    columns: list[Any] = [np.empty(shape, np.int64 if row < 5 else float) for row, shape in enumerate(shapes)]
    name = _text(msgspec.json.encode(coin).decode(), 4)  # in quotes, none within
    lines, books, quotes, prints = _scan(padded.ctypes.data, len(text), name, Scan(*columns))
    counts = (lines + 1, lines, books, quotes, prints, books, quotes, prints)
    return Scan(*(column[:count] for column, count in zip(columns, counts, strict=True)))


def compact(text: bytes) -> bytes:
    """The lines without the spaces that may follow `:`, `,`, `[` and `{` in JSON; those in strings and stamps stay."""
    packed = np.empty(len(text), np.uint8)
    return packed[: _compact(np.frombuffer(text, np.uint8), packed)].tobytes()


def _text(text: str, least: int = 1) -> _Text:
    """The characters in eights, so many at least: bytes, all ones where there is one, how many they are."""
    encoded = text.encode()
    eights = [encoded[first : first + 8] for first in range(0, max(len(encoded), 8 * least), 8)]
    return tuple((_uint64(eight), _uint64(b"\xff" * len(eight)), len(eight)) for eight in eights)


def _uint64(text: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(text, "little"))


_DASH, _T, _COLON, _POINT, _Z, _COMMA, _BRACKET, _BRACE, _ZERO, _NEWLINE = map(_text, "-T:.Z,]}0\n")
_QUOTE, _BOOK = (_text(f' {{"channel":"{channel}","data":{{"coin":') for channel in ("bbo", "l2Book"))
_TIME, _BBO, _LEVELS, _LEVELS_END, _ASKS = map(_text, (',"time":', ',"bbo":[', ',"levels":[[', "]]", "],["))
_PX, _SZ, _N, _LINE_END = map(_text, ('{"px":"', '","sz":"', '","n":', "}\n"))
_TRADES, _PRINT, _SIDE = map(_text, (' {"channel":"trades","data":[', '{"coin":', ',"side":"'))
_FIELD, _VALUE, _NULL, _TRUE, _FALSE = map(_text, (',"', '":', "null", "true", "false"))
_NAMES = ("bbo", "channel", "coin", "data", "fast", "levels", "px", "side", "spread", "sz", "tid", "time")
"""`native.FIELDS`, written out: compiled code is cached until *this* file changes."""
_OURS = tuple(_text(f'{name}"', 2) for name in _NAMES)
_BUYS, _SELLS, _TRADED, _HASH, _TID = map(_text, ('B","px":"', 'A","px":"', '","time":', ',"hash":"0x', '","tid":'))
_USERS, _USER, _USERS_END = map(_text, (',"users":["0x', '","0x', '"]'))
_1, _3, _7, _8, _10, _16, _32, _56, _64 = (np.uint64(number) for number in (1, 3, 7, 8, 10, 16, 32, 56, 64))
_ONES, _ZEROS, _LOW, _HIGH, _LIFT = (_uint64(bytes([byte]) * 8) for byte in (0x01, 0x30, 0x7F, 0x80, 0x76))
_PAIRS, _FIRST, _SECOND = (np.uint64(n) for n in (0x000000FF000000FF, 10**6 * 2**32 + 100, 10**4 * 2**32 + 1))


def _load(_: Any, address: Any) -> Any:
    def load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), align=1)

    return types.uint64(types.int64), load


_eight: Any = intrinsic(_load)  # the 8 bytes at an address, the first lowest


@njit(cache=True)
def _after(i: int, text: _Text) -> int:
    """Where a text ends that begins at i."""
    if i < 0:
        return _ODD
    for eight, mask, length in text:
        if _eight(i) & mask != eight:
            return _ODD
        i += length
    return i


@njit(cache=True)
def _eight_digits(i: int) -> tuple[int, int]:
    """The number that the digits at i make, 8 at most, and how many they are."""
    digits = _eight(i) ^ _ZEROS
    other = (((digits & _LOW) + _LIFT) | digits) & _HIGH  # the highest bit of each byte that is no digit
    before = ((other & (~other + _1)) >> _7) - _1  # all bits of the bytes before the first of them
    count = ((before & _ONES) * _ONES) >> _56
    if count == 0:
        return 0, 0
    digits = (digits & before) << (_64 - (count << _3))  # now with zeros before them
    digits = digits * _10 + (digits >> _8)
    digits = ((digits & _PAIRS) * _FIRST + ((digits >> _16) & _PAIRS) * _SECOND) >> _32
    return np.int64(digits), np.int64(count)  # type: ignore[return-value]


@njit(cache=True)
def _digits(i: int) -> tuple[int, int]:
    """The number that the digits at i make, 16 at most, and how many they are."""
    value, count = _eight_digits(i)
    if count == 8:
        more, further = _eight_digits(i + 8)
        value, count = value * _TENS[further] + more, count + further
    return value, count


@njit(cache=True)
def _number(i: int, count: int) -> tuple[int, int]:
    """The number that exactly so many digits at i make, and where it ends."""
    if i < 0:
        return 0, _ODD
    value, digits = _eight_digits(i)
    return value, i + count if digits == count else _ODD


@njit(cache=True)
def _integer(i: int, most: int) -> tuple[int, int]:
    """A JSON integer at i, of at most 16 digits and at most so great, and where it ends."""
    if i < 0:
        return 0, _ODD
    value, count = _digits(i)
    if count == 0 or value > most or (count > 1 and _after(i, _ZERO) >= 0):
        return 0, _ODD
    return value, i + count


@njit(cache=True)
def _decimal(i: int) -> tuple[float, int]:
    """A plain decimal at i, of at most 15 digits, and where it ends."""
    whole, end = _integer(i, 10**_DIGITS - 1)
    if end < 0 or _after(end, _POINT) < 0:
        return float(whole), end
    fraction, count = _digits(end + 1)
    if count == 0 or end - i + count > _DIGITS:
        return 0.0, _ODD
    return (whole * _TENS[count] + fraction) / float(_TENS[count]), end + 1 + count


@njit(cache=True)
def _hexadecimal(i: int, count: int) -> int:
    """Where so many hexadecimal digits end that begin at i."""
    for k in range(i, i + count if i >= 0 else i):
        byte = np.uint8(_eight(k))
        if not (48 <= byte <= 57 or 97 <= byte <= 102):  # 0-9, a-f
            return _ODD
    return i + count if i >= 0 else _ODD


@njit(cache=True)
def _scalar(i: int) -> int:
    """Where a plain value ends that begins at i: a string, an unsigned number, or a word of JSON."""
    if i < 0:
        return _ODD
    if np.uint8(_eight(i)) == 34:  # "
        i += 1
        byte = np.uint8(_eight(i))
        while 32 <= byte <= 126 and byte != 34 and byte != 92:  # printable, no quote, no backslash
            i += 1
            byte = np.uint8(_eight(i))
        return i + 1 if byte == 34 else _ODD
    number = _decimal(i)[1]
    return max(number, _after(i, _NULL), _after(i, _TRUE), _after(i, _FALSE))


@njit(cache=True)
def _further(i: int) -> int:
    """Where the fields end that begin at i and of which we know nothing; i itself where there are none."""
    while i >= 0 and _after(i, _FIELD) >= 0:
        name = i + 2
        for ours in _OURS:
            if _after(name, ours) >= 0:
                return _ODD
        i = name
        byte = np.uint8(_eight(i))
        while 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or byte == 95:  # 0-9, A-Z, a-z, _
            i += 1
            byte = np.uint8(_eight(i))
        i = _scalar(_after(i, _VALUE))
    return i


@njit(cache=True)
def _closed(i: int) -> int:
    """Where a line ends whose `data` goes on at i with further fields only, and its message likewise."""
    return _after(_further(_after(_further(i), _BRACE)), _LINE_END)


@njit(cache=True)
def _level(i: int) -> tuple[float, float, int]:
    """Price and size of the level at i, and where it ends."""
    price, i = _decimal(_after(i, _PX))
    size, i = _decimal(_after(i, _SZ))
    _, i = _integer(_after(i, _N), _LAST)
    return price, size, _after(_further(i), _BRACE)


@njit(cache=True)
def _quote(i: int, top: Floats, row: int) -> tuple[int, int]:
    """Time of the `bbo` message that goes on at i, and where its line ends; fills the row with its levels."""
    ms, i = _integer(_after(i, _TIME), LAST_MS)
    top[row, 0], top[row, 1], i = _level(_after(i, _BBO))
    top[row, 2], top[row, 3], i = _level(_after(i, _COMMA))
    return ms, _closed(_after(i, _BRACKET))


@njit(cache=True)
def _book(i: int, levels: Floats, row: int) -> tuple[int, int]:
    """Time of the `l2Book` message that goes on at i, and where its line ends; fills the row with its levels."""
    ms, i = _integer(_after(i, _TIME), LAST_MS)
    i = _after(i, _LEVELS)
    for side in range(0, 4, 2):
        count = 0
        while i >= 0 and count < LEVELS and _after(i, _BRACKET) < 0:
            i = _after(i, _COMMA) if count else i
            levels[row, side, count], levels[row, side + 1, count], i = _level(i)
            count += 1
        for beyond in range(count, LEVELS if i >= 0 else count):
            levels[row, side, beyond], levels[row, side + 1, beyond] = np.nan, np.nan
        i = _after(i, _ASKS) if side == 0 else _after(i, _LEVELS_END)
    return ms, _closed(i)


@njit(cache=True)
def _trades(i: int, coin: _Text, print_: Integers, traded: Floats, row: int) -> tuple[int, int]:
    """The row after the prints at i, and where their line ends; fills the rows from `row` on."""
    while i >= 0:
        i = _after(_after(_after(i, _PRINT), coin), _SIDE)
        buys, sells = _after(i, _BUYS), _after(i, _SELLS)
        print_[row, 2] = 1 if buys >= 0 else -1
        traded[row, 0], i = _decimal(max(buys, sells))
        traded[row, 1], i = _decimal(_after(i, _SZ))
        print_[row, 1], i = _integer(_after(i, _TRADED), LAST_MS)
        i = _hexadecimal(_after(i, _HASH), 64)
        print_[row, 3], i = _integer(_after(i, _TID), _LAST)
        if _after(i, _USERS) >= 0:
            i = _hexadecimal(_after(i, _USERS), 40)
            i = _after(_hexadecimal(_after(i, _USER), 40), _USERS_END)
        i, row = _after(_further(i), _BRACE), row + 1
        if _after(i, _BRACKET) >= 0:
            return row, _after(_further(_after(i, _BRACKET)), _LINE_END)
        i = _after(i, _COMMA)
    return row, _ODD


@njit(cache=True)
def _minute(i: int) -> int:
    """Nanoseconds at which the minute at i (2025-09-04T19:46) begins, `_ODD` where it is none, or before 1970."""
    year, i = _number(i, 4)
    month, i = _number(_after(i, _DASH), 2)
    day, i = _number(_after(i, _DASH), 2)
    hour, i = _number(_after(i, _T), 2)
    minute, i = _number(_after(i, _COLON), 2)
    if i < 0 or year < 1970 or not 1 <= month <= 12 or hour > 23 or minute > 59:
        return _ODD
    leap = int(year % 4 == 0 and (year % 100 != 0 or year % 400 == 0))
    before, through = _DAYS_BEFORE[month - 1] + leap * (month > 2), _DAYS_BEFORE[month] + leap * (month > 1)
    leaps = (year - 1) // 4 - (year - 1) // 100 + (year - 1) // 400
    days = year * 365 + leaps + before + day - _DAYS_TO_1970
    second = ((days * 24 + hour) * 60 + minute) * 60
    return second * SECOND_NS if 1 <= day <= through - before and second + 60 <= LAST_SECOND else _ODD


@njit(cache=True)
def _within(i: int) -> int:
    """Nanoseconds since its minute began of the stamp that goes on at i (:56.8699350Z), `_ODD` where it does not."""
    second, i = _number(_after(i, _COLON), 2)
    fraction, i = _number(_after(i, _POINT), 7)
    return second * SECOND_NS + fraction * 100 if second <= 59 and _after(i, _Z) >= 0 else _ODD


@njit(cache=True, nogil=True)
def _scan(first: int, size: int, coin: _Text, columns: Scan) -> tuple[int, int, int, int]:
    """Fill the columns from the text of that size at `first`; how many lines, books, quotes and prints there are."""
    begin, local_ns, book, quote, print_, levels, top, traded = columns
    lines, books, quotes, prints = 0, 0, 0, 0
    date, clock, minute_ns = np.uint64(0), np.uint64(0), _ODD  # of the stamp before
    i = first
    while i < first + size:
        begin[lines], local_ns[lines] = i - first, _ODD
        message, ns, end = i + STAMP_LENGTH, _ODD, _ODD
        if message < first + size:
            if _eight(i) != date or _eight(i + 8) != clock:
                date, clock, minute_ns = _eight(i), _eight(i + 8), _minute(i)
            ns = _within(i + 16)
        if minute_ns >= 0 and ns >= 0:
            quote[quotes, 0], book[books, 0] = lines, lines
            quote[quotes, 1], end = _quote(_after(_after(message, _QUOTE), coin), top, quotes)
            quotes += end >= 0
            if end < 0:
                book[books, 1], end = _book(_after(_after(message, _BOOK), coin), levels, books)
                books += end >= 0
            if end < 0:
                row, end = _trades(_after(message, _TRADES), coin, print_, traded, prints)
                row = row if end >= 0 else prints
                print_[prints:row, 0], prints = lines, row
            local_ns[lines] = minute_ns + ns if end >= 0 else _ODD
        if end < 0:
            while _after(i, _NEWLINE) < 0:
                i += 1
            end = i + 1
        i, lines = end, lines + 1
    begin[lines] = i - first
    return lines, books, quotes, prints


@njit(cache=True, nogil=True)
def _compact(text: NDArray[np.uint8], packed: NDArray[np.uint8]) -> int:
    """Fill `packed` (as long as `text`); how many bytes there are. A line with a backslash stays as it is after it."""
    used, column, quoted, verbatim, before = 0, 0, False, False, np.uint8(0)
    for byte in text:
        if byte == 10:  # a newline
            column, quoted, verbatim = -1, False, False
        elif column > STAMP_LENGTH and not verbatim:
            if byte == 32 and not quoted and (before == 58 or before == 44 or before == 91 or before == 123):  # :,[{
                continue
            if byte == 34:  # "
                quoted = not quoted
            verbatim = byte == 92  # a backslash
        packed[used], before = byte, byte
        used, column = used + 1, column + 1
    return used
