"""Each table is written as full-precision CSV and, rounded for reading, as booktabs LaTeX, and shown as HTML."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML

from hyperdapo.evidence import provenance
from hyperdapo.files import atomic, require
from hyperdapo.paths import Paths

CSV_FLOAT = "%.12g"
LONGEST_FLOAT = 40
"""Rows beyond which the LaTeX table is a `longtable`, which may break across pages."""
PRINTED = 400
"""Rows beyond which there is no LaTeX table."""

_INSTANT_NS = 10**18  # September 2001; what is less is a duration
_ROUNDING = 1e-15  # what equal sums may differ by
_UNITS = {
    "bps": "bps",
    "s": "s",
    "ms": "ms",
    "ns": "ns",
    "usd": "USD",
    "coin": "coin",
    "gb": "GB",
    "mb": "MB",
    "utc": "UTC",
}
_NAMES = {
    "avellaneda_stoikov": "Avellaneda-Stoikov",
    "market": "Market order",
    "twap_post_only": "TWAP, post-only",
    "vwap_post_only": "VWAP, post-only",
    "join_best": "Join once",
    "touch_requoted": "Touch, requoted",
    "requote_unless_against": "Requoted unless against",
    "threshold_requoted": "One threshold, requoted",
    "mid_peg": "Mid peg",
    "sign_imbalance": "Sign of imbalance",
    "sign_momentum_10s": "Sign of momentum, 10 s",
    "sign_momentum_60s": "Sign of momentum, 60 s",
    "threshold": "One threshold",
    "best_fixed": "Best fixed action",
    "untrained": "Untrained model",
    "dapo_sampled": "DAPO, sampled",
    "dapo_preference": "DAPO on pairs",
    "dpo_one_pair": "DPO, one pair",
    "listing_4_3": "Listing 4.3",
    "reward_weighted": "Reward-weighted",
    "linear": "Linear model",
    "boosting": "Boosting",
    "boosting_sequential": "Boosting, again",
    "dapo_sequential": "DAPO, again",
}
_ACRONYMS = {
    "ci": "CI",
    "iid": "i.i.d.",
    "dapo": "DAPO",
    "dpo": "DPO",
    "twap": "TWAP",
    "vwap": "VWAP",
    "mlp": "MLP",
    "stoikov": "Stoikov",
    "p": "p",
    "t": "t",
}
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "§": r"\S{}", "–": "--"}
    | {"−": "$-$", "±": r"$\pm$", "≤": r"$\le$", "≥": r"$\ge$", "∞": r"$\infty$"}
)


def save(frame: pd.DataFrame, paths: Paths, name: str, caption: str, rows: int = 24) -> HTML:
    """Write `tables/NAME.csv` and `tables/NAME.tex`; return the table for the notebook, its first `rows` rows.

    A table of more than `PRINTED` rows, which nobody prints, is CSV alone. A named index becomes leading columns. Units
    stand in the headers (`total_cost_bps` reads "Total cost (bps)").
    """
    frame = _flat(frame)
    with atomic(paths.tables / f"{name}.csv") as temporary:
        frame.to_csv(temporary, index=False, float_format=CSV_FLOAT, lineterminator="\n")
    provenance.note(paths.tables / f"{name}.csv")
    if len(frame) <= PRINTED:
        with atomic(paths.tables / f"{name}.tex") as temporary:
            temporary.write_text(latex(frame, caption, label=f"tab:{name}"), encoding="utf-8")
        provenance.note(paths.tables / f"{name}.tex")
    return show(frame, caption, rows)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, each as its values by column."""
    rows: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    return rows


def listed(words: Iterable[object]) -> str:
    """`BTC, ETH and SOL`; nothing of none."""
    *others, last = [*map(str, words)] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts in Markdown, without a line's end behind it."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def read(paths: Paths, name: str, stage: str) -> pd.DataFrame:
    """A table that another stage saved.

    Raises
    ------
    MissingInputError
        If `stage` has not run.
    """
    return pd.read_csv(require(paths.tables / f"{name}.csv", stage, paths.name))


def show(frame: pd.DataFrame, caption: str = "", rows: int = 24) -> HTML:
    """The table for the notebook only: headers with units, rounded values, the first `rows` rows.

    Of an empty one only that it is empty.
    """
    frame = _flat(frame)
    if frame.empty:
        return HTML(f"<p><em>{escape(caption)}: nothing here</em></p>")
    shown = _text(_dated(frame.head(rows)))
    more = f" (first {rows} of {len(frame)} rows)" if len(frame) > rows else ""
    heading_line = f"<p><em>{escape(caption)}{more}</em></p>" if caption or more else ""
    return HTML(heading_line + shown.to_html(index=False, border=0))


def latex(frame: pd.DataFrame, caption: str, label: str) -> str:
    """A booktabs table, of more than `LONGEST_FLOAT` rows a `longtable`: text left, numbers right, all escaped."""
    alignment = "".join("r" if _is_number(frame[name]) else "l" for name in frame)
    text = _text(frame).style.hide(axis="index").format(escape_latex).format_index(escape_latex, axis="columns")
    layout = {"column_format": alignment, "hrules": True, "label": label, "caption": escape_latex(caption)}
    if len(frame) > LONGEST_FLOAT:
        return str(text.to_latex(environment="longtable", **layout))
    return str(text.to_latex(position="htbp", position_float="centering", **layout))


def heading(column: str) -> str:
    """`implementation_shortfall_bps` -> `Implementation shortfall (bps)`."""
    *words, last = _NAMES.get(column, column).split("_")
    unit = _UNITS.get(last) if words else None
    words = words if unit else [*words, last]
    words = [_ACRONYMS.get(word, word) for word in words]
    first = words[0] if words[0] in _ACRONYMS.values() else words[0][:1].upper() + words[0][1:]
    return " ".join([first, *words[1:]]) + (f" ({unit})" if unit else "")


def escape_latex(text: str) -> str:
    """`text` with every character that LaTeX would act on, or has no glyph for, made literal."""
    return text.translate(_LATEX)


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
    value = 0.0 if abs(value) < _ROUNDING else value
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


def _dated(frame: pd.DataFrame) -> pd.DataFrame:
    """Instants in ns as dates, for the eye alone: a table in LaTeX is held against its CSV."""
    instants = [
        str(name)
        for name in frame
        if str(name).endswith("_ns") and _is_number(frame[name]) and (frame[name] > _INSTANT_NS).all()
    ]
    dates = {name: pd.to_datetime(frame[name]).dt.strftime("%Y-%m-%d %H:%M:%S") for name in instants}
    return frame.assign(**dates).rename(columns={name: f"{name.removesuffix('_ns')}_utc" for name in instants})


def _is_number(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column))


def _column_text(column: pd.Series) -> list[str]:
    if pd.api.types.is_bool_dtype(column):
        return ["yes" if value else "no" for value in column]
    if _is_number(column):
        return rounded(column.astype(float))
    return ["–" if pd.isna(value) else str(value) for value in column]
