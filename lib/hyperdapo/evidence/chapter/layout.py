"""A table that one would print: booktabs, numbers aligned at their point, groups of rows, a note below."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PLAIN = re.compile(r"(-?)(\d+)(?:\.(\d+))?")
_BOLD = r"\bfseries "


@dataclass(frozen=True)
class Group:
    """A line across the table, over the rows that follow."""

    title: str


Row = Group | Sequence[str]


@dataclass(frozen=True)
class Table:
    """A designed table, all of its cells as LaTeX.

    columns : of each its head and `l`, `c`, `p{...}`, or `S` (numbers, whose width comes from the rows)
    """

    name: str
    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    note: str

    def latex(self) -> str:
        """The float."""
        lines = [
            "% Generated; do not edit.",
            r"\begin{table}[htbp]\centering\footnotesize\setlength{\tabcolsep}{3.5pt}",
            rf"\caption{{{self.caption}}}\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{@{{}}{''.join(self._specifications())}@{{}}}}",
            r"\toprule",
            rf"{' & '.join(self._heads())} \\",
            r"\midrule",
            *self._body(),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize\emph{{Note.}} {self.note}}}",
            r"\end{table}",
            "",
        ]
        return "\n".join(lines)

    def _heads(self) -> list[str]:
        return [f"{{{head}}}" for head, _ in self.columns]

    def _body(self) -> list[str]:
        lines = list[str]()
        for row in self.rows:
            if isinstance(row, Group):
                lines += [r"\addlinespace"] * bool(lines)
                lines.append(rf"\multicolumn{{{len(self.columns)}}}{{@{{}}l}}{{\emph{{{row.title}}}}} \\*")
            else:
                lines.append(rf"{' & '.join(row)} \\")
        return lines

    def _specifications(self) -> list[str]:
        cells = [row for row in self.rows if not isinstance(row, Group)]
        return [
            number_format([row[place] for row in cells]) if kind == "S" else kind
            for place, (_, kind) in enumerate(self.columns)
        ]


def number_format(cells: Sequence[str]) -> str:
    """The S column that holds all numbers among the cells; what stands in braces is centred.

    >>> number_format(["-1.25", "12", "{--}"])
    'S[table-format=-2.2]'
    """
    found = [match.groups(default="") for cell in cells if (match := _PLAIN.fullmatch(cell.removeprefix(_BOLD)))]
    sign = "-" if any(minus for minus, _, _ in found) else ""
    whole = max((len(digits) for _, digits, _ in found), default=1)
    decimals = max((len(places) for _, _, places in found), default=0)
    return f"S[table-format={sign}{whole}.{decimals}]"


def bold(cell: str) -> str:
    """A number of an S column in bold."""
    return f"{_BOLD}{cell}"


def small(cell: str) -> str:
    """A text in an S column, below a number."""
    return rf"{{\scriptsize {cell}}}"
