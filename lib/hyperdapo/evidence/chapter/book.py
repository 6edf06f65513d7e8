r"""`numbers.tex`: every number that Chapter 5 shows, as a LaTeX macro that says where it comes from.

A number is entered once under its name, and printed from there: a table shows the digits, a sentence the macro.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hyperdapo.evidence.tables import escape_latex

NONE = "--"
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?!\w)")


@dataclass(frozen=True)
class Source:
    """Where a number stands: a table, the words that know its row, and the column."""

    table: str
    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}.csv, {self.row}, {self.column}" if self.row else f"{self.table}.csv, {self.column}"


@dataclass
class Book:
    """Numbers by the name of their macro: digits as printed, and source."""

    entries: dict[str, tuple[str, Source]] = field(default_factory=dict)

    def enter(self, parts: Sequence[str], value: float, decimals: int, source: Source) -> str:
        r"""Enter a number; return its digits.

        Raises
        ------
        ValueError
            If another number has the name.
        """
        name, text = macro_name(*parts), digits(value, decimals)
        known = self.entries.setdefault(name, (text, source))
        if known[0] != text:
            raise ValueError(f"two numbers are called {name}, {known[0]} and {text}: rename {tuple(parts)}")
        return text

    def cell(self, parts: Sequence[str], value: float, decimals: int, source: Source) -> str:
        """The digits for an S column of siunitx; what is no number stands in braces."""
        text = self.enter(parts, value, decimals, source)
        return text if math.isfinite(value) else f"{{{_shown(text)}}}"

    def say(self, parts: Sequence[str], value: float, decimals: int, source: Source) -> str:
        """The macro, for a sentence."""
        self.enter(parts, value, decimals, source)
        return f"{macro_name(*parts)}{{}}"

    def interval(self, parts: Sequence[str], ends: tuple[float, float], decimals: int, source: Source) -> str:
        """`[low, high]` by their macros, or a dash where there is none."""
        shown = [
            self.say((*parts, side), end, decimals, Source(source.table, source.row, f"{source.column}, {side}"))
            for side, end in zip(("low", "high"), ends, strict=True)
            if not math.isnan(end)
        ]
        return f"[{', '.join(shown)}]" if len(shown) == 2 else NONE

    def words(self, parts: Sequence[str], text: str, source: Source) -> str:
        """A text of a table with every number in it entered."""
        pieces, places = [], 0
        for piece in re.split(f"({_NUMBER.pattern})", text):
            if _NUMBER.fullmatch(piece):
                places += 1
                value, decimals = float(piece.replace(",", "")), len(piece.partition(".")[2])
                pieces.append(self.say((*parts, f"number {places}"), value, decimals, source))
            else:
                pieces.append(escape_latex(piece))
        return "".join(pieces)

    def macros(self) -> str:
        r"""`numbers.tex`: `\newcommand` lines in order of name, each with its source behind it."""
        lines = (rf"\newcommand{{{name}}}{{{_shown(text)}}} % {source}" for name, text, source in self._sorted())
        return "\n".join(["% Generated; do not edit. Needs siunitx.", *lines, ""])

    def index(self) -> str:
        """The same as a page in Markdown."""
        head = ["# The numbers of Chapter 5", "", "| macro | value | table, row, column |", "|---|---:|---|"]
        return "\n".join([*head, *(f"| `{name}` | {text} | {source} |" for name, text, source in self._sorted()), ""])

    def _sorted(self) -> Iterable[tuple[str, str, Source]]:
        return ((name, *self.entries[name]) for name in sorted(self.entries))


def macro_name(*parts: str) -> str:
    r"""A LaTeX command name, letters only.

    >>> macro_name("BTC", "best_fixed", "markout_60s_bps")
    '\\HdBtcBestFixedMarkoutSixZeroSBps'
    """
    words = re.findall(r"[A-Za-z]+|\d", " ".join(parts))
    spelt = [_DIGITS[int(word)] if word.isdigit() else word for word in words]
    return rf"\Hd{''.join(word.capitalize() for word in spelt)}"


def digits(value: float, decimals: int) -> str:
    """A number with so many decimals, no negative zero, infinities as such, a dash for none.

    >>> digits(-0.001, 2), digits(float("inf"), 2), digits(float("nan"), 2)
    ('0.00', 'inf', '--')
    """
    return NONE if math.isnan(value) else f"{value:z.{decimals}f}"


def _shown(text: str) -> str:
    """Digits in a line of text."""
    if text == NONE:
        return text
    return {"inf": r"$\infty$", "-inf": r"$-\infty$"}.get(text, rf"\num{{{text}}}")
