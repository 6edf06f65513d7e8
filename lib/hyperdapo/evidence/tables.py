"""Each table is written twice, as full-precision CSV and as booktabs LaTeX rounded for reading, and shown as HTML."""

import math
from collections.abc import Iterable
from html import escape

import numpy as np
import pandas as pd
from IPython.display import HTML

from hyperdapo.evidence import provenance
from hyperdapo.files import atomic, require
from hyperdapo.paths import Paths

CSV_FLOAT = "%.12g"
LONGEST_FLOAT = 40
"""Rows beyond which the LaTeX table is a `longtable`, which may break across pages."""

_UNITS = {"bps": "bps", "s": "s", "ms": "ms", "ns": "ns", "usd": "USD", "coin": "coin", "gb": "GB", "mb": "MB"}
_NAMES = {"listing_4_4": "Listing 4.4", "avellaneda_stoikov": "Avellaneda-Stoikov"}
_ACRONYMS = {
    "ci": "CI",
    "iid": "i.i.d.",
    "dapo": "DAPO",
    "dpo": "DPO",
    "twap": "TWAP",
    "vwap": "VWAP",
    "stoikov": "Stoikov",
    "p": "p",
    "t": "t",
}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"} | {
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "§": r"\S{}",
    "–": "--",
}


def save(frame: pd.DataFrame, paths: Paths, name: str, caption: str, rows: int = 24) -> HTML:
    """Write `tables/NAME.csv` and `tables/NAME.tex`; return the table for the notebook, its first `rows` rows.

    A named index becomes leading columns. Units stand in the headers (`total_cost_bps` reads "Total cost (bps)").
    """
    frame = _flat(frame)
    with atomic(paths.tables / f"{name}.csv") as temporary:
        frame.to_csv(temporary, index=False, float_format=CSV_FLOAT, lineterminator="\n")
    with atomic(paths.tables / f"{name}.tex") as temporary:
        temporary.write_text(latex(frame, caption, label=f"tab:{name}"), encoding="utf-8")
    for ending in ("csv", "tex"):
        provenance.note(paths.tables / f"{name}.{ending}")
    return show(frame, caption, rows)


def read(paths: Paths, name: str, stage: str) -> pd.DataFrame:
    """A table that another stage saved.

    Raises
    ------
    MissingInputError
        If `stage` has not run.
    """
    return pd.read_csv(require(paths.tables / f"{name}.csv", stage, paths.name))


def show(frame: pd.DataFrame, caption: str = "", rows: int = 24) -> HTML:
    """The table for the notebook only: headers with units, rounded values, the first `rows` rows."""
    frame = _flat(frame)
    shown = _text(frame.head(rows))
    more = f" (first {rows} of {len(frame)} rows)" if len(frame) > rows else ""
    heading_line = f"<p><em>{escape(caption)}{more}</em></p>" if caption or more else ""
    return HTML(heading_line + shown.to_html(index=False, border=0, na_rep="–"))


def latex(frame: pd.DataFrame, caption: str, label: str) -> str:
    """A booktabs table: text left, numbers right, every special character escaped."""
    numeric = [pd.api.types.is_numeric_dtype(dtype) and dtype != np.dtype(bool) for dtype in frame.dtypes]
    alignment = "".join("r" if right else "l" for right in numeric)
    text = _text(frame)
    header = " & ".join(escape_latex(column) for column in text.columns) + r" \\"
    body = [" & ".join(escape_latex(value) for value in row) + r" \\" for row in text.itertuples(index=False)]
    titled = f"\\caption{{{escape_latex(caption)}}}\n\\label{{{label}}}"
    if len(frame) > LONGEST_FLOAT:
        opening = [
            rf"\begin{{longtable}}{{{alignment}}}",
            titled + r" \\",
            r"\toprule",
            header,
            r"\midrule",
            r"\endhead",
        ]
        return "\n".join([*opening, *body, r"\bottomrule", r"\end{longtable}", ""])
    opening = [r"\begin{table}[htbp]", r"\centering", titled, rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    return "\n".join([*opening, header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def heading(column: str) -> str:
    """`implementation_shortfall_bps` -> `Implementation shortfall (bps)`."""
    *words, last = _NAMES.get(column, column).split("_")
    unit = _UNITS.get(last) if words else None
    words = words if unit else [*words, last]
    words = [_ACRONYMS.get(word, word) for word in words]
    first = words[0] if words[0] in _ACRONYMS.values() else words[0][:1].upper() + words[0][1:]
    return " ".join([first, *words[1:]]) + (f" ({unit})" if unit else "")


def escape_latex(text: str) -> str:
    """`text` with every character that LaTeX would act on made literal."""
    return "".join(_LATEX.get(character, character) for character in text)


def rounded(values: Iterable[float]) -> list[str]:
    """Numbers of one column as text, with the decimals its largest magnitude needs; what would read 0 stays visible."""
    numbers = [float(value) for value in values]
    finite = [abs(value) for value in numbers if math.isfinite(value)]
    largest = max(finite, default=0.0)
    whole = all(value == int(value) for value in finite)
    decimals = 0 if whole or largest >= 10_000 else 2 if largest >= 1 else 3 if largest >= 0.1 else 4
    return [_number(value, decimals) for value in numbers]


def _number(value: float, decimals: int) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{decimals}f}"
    if value != 0 and float(text.replace(",", "")) == 0:
        text = f"{value:.1e}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    named = any(name is not None for name in frame.index.names)
    return frame.reset_index() if named else frame.reset_index(drop=True)


def _text(frame: pd.DataFrame) -> pd.DataFrame:
    columns = {heading(str(name)): _column_text(frame[name]) for name in frame.columns}
    return pd.DataFrame(columns, dtype=object)


def _column_text(column: pd.Series) -> list[str]:
    if pd.api.types.is_bool_dtype(column):
        return ["yes" if value else "no" for value in column]
    if pd.api.types.is_numeric_dtype(column):
        return rounded(column.astype(float))
    return ["–" if pd.isna(value) else str(value) for value in column]
