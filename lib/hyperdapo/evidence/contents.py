"""What stands in each kind of file, as items with a name: what two runs are compared by."""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from pathlib import Path
from typing import Any, get_args

import nbformat
import numpy as np
import pandas as pd
import yaml

from hyperdapo.sections import Algorithm

TABLE = Path(__file__).with_name("tolerances.yaml")

Items = dict[str, "Item"]

_MACRO = re.compile(r"\\newcommand\{\\(\w+)\}\{(?:\\num\{)?([^{}]*)\}")
_CAPTION = re.compile(r"^(\\caption\{.*?\})(?: \\label\{.*)?$", re.MULTILINE)
_HEAD = re.compile(r"\\midrule\n|\\endlastfoot\n")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
_UNSHOWN = re.compile(r"<tr>\s*<td>(?:commit|versions|files written)</td>.*?</tr>", re.DOTALL)
_LEAST_ROUNDED = 10_000  # as tables.rounded prints
_MARKUP = re.compile(r"<[^>]+>")
_HTML_TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
_PATHS = re.compile(r"(?:/[\w.+-]+){2,}")
_FIGURE = re.compile(r'Plotly\.newPlot\(\s*"[^"]*",\s*')


@dataclass(frozen=True)
class Bound:
    """Two numbers are the same within `absolute + relative * max(|a|, |b|)`; trained ones may also be missing."""

    kind: str
    absolute: float
    relative: float
    may_be_empty: bool = False

    def width(self, one: float, other: float) -> float:
        return self.absolute + self.relative * max(abs(one), abs(other))

    def __str__(self) -> str:
        parts = [f"{self.absolute:g}"] * bool(self.absolute) + [f"{self.relative:g} relative"] * bool(self.relative)
        return " + ".join(parts) or "exact"


class Tolerances:
    """The table, as questions of the comparison."""

    def __init__(self, path: Path = TABLE) -> None:
        self._table: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        self.identifying = frozenset(self._table["identifying"])
        self.verdicts = frozenset(self._table["verdicts"])
        self.figures: dict[str, float] = self._table["figures"]

    def kind(self, stage: str, file: str = "", quantity: str = "") -> str:
        """`data`, `simulation` or `trained`: of a stage, or of one quantity of a file that it wrote.

        Raises
        ------
        KeyError
            For a stage that the table does not name.
        """
        kinds = self._table["kinds"]
        kind = next((name for name, entry in kinds.items() if stage in entry["stages"]), None)
        if kind is None:
            raise KeyError(f"{TABLE.name} names no kind of the stage {stage}")
        mixed = kind == "simulation" and stage[:2] in ("08", "09")
        return "trained" if mixed and self._of_policy(file, quantity) else kind

    def bound(self, kind: str, quantity: str) -> Bound:
        """The bound of a quantity of this kind."""
        if kind != "trained":
            entry = self._table["kinds"][kind]
            return Bound(kind, float(entry["absolute"]), float(entry["relative"]))
        for entry in self._table["bounds"]:
            if re.search(entry["pattern"], quantity):
                free = bool(entry.get("may_be_empty"))
                return Bound(kind, float(entry["absolute"]), float(entry["relative"]), free)
        raise KeyError(f"{TABLE.name} has no bound for {quantity}")

    def is_time(self, column: str) -> bool:
        return bool(re.search(self._table["not_compared"]["columns"], column))

    def is_time_table(self, name: str) -> bool:
        return bool(re.search(self._table["not_compared"]["tables"], name))

    def is_time_text(self, text: str) -> bool:
        return bool(re.search(self._table["not_compared"]["text"], text))

    def _of_policy(self, file: str, quantity: str) -> bool:
        place, trained = Path(file), self._table["kinds"]["trained"]
        if place.parent.name in ("figures", "notebooks") or place.suffix == ".html" or "shown" in quantity:
            return True  # pictures and texts show trained policies beside the others
        whole = place.stem in trained["tables"] or re.search(trained["quantities"], quantity)
        return bool(whole or self._policies.search(quantity))

    @cached_property
    def _policies(self) -> re.Pattern[str]:
        names = "|".join(["untrained", *get_args(Algorithm)])
        spelt = names.replace("listing_4_3", "listing_four_three|listing_4_3")
        return re.compile(rf"(?<![A-Za-z])(?:{spelt})(?![A-Za-z])")


@dataclass(frozen=True)
class Item:
    """One value: its text, the name by which its bound is found, its row, and whether it is printed rounded."""

    text: str
    quantity: str
    row: str = ""
    printed: bool = False

    @property
    def unit(self) -> float:
        """One unit of the last printed place."""
        return printed_unit(self.text) if self.printed and number(self.text) is not None else 0.0


def items(path: Path, tolerances: Tolerances) -> Items:
    """What a file holds, by name; a PNG or PDF holds none."""
    if path.name == "numbers.tex":
        return _macros(path)
    readers = {".csv": _table, ".tex": _latex, ".ipynb": _render, ".html": _page}
    reader = readers.get(path.suffix)
    return reader(path, tolerances) if reader else {}


def number(text: str) -> float | None:
    """The number that a text is, thousands separated or not."""
    plain = text.strip().replace(",", "").replace("−", "-").replace(r"$-$", "-")
    try:
        return float(plain)
    except ValueError:
        return None


def printed_unit(text: str) -> float:
    """One unit of the last printed place: 0.01 of `3.14`; whole numbers below 10,000 are not rounded."""
    mantissa, _, exponent = text.replace(",", "").lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    exact = not decimals and not exponent and abs(number(text) or 0.0) < _LEAST_ROUNDED
    return 0.0 if exact else 10.0 ** (int(exponent or 0) - decimals)


def stamps(render: Path) -> dict[str, str]:
    """The provenance that a rendered notebook shows."""
    code = [cell for cell in nbformat.read(render, as_version=4).cells if cell.cell_type == "code"]
    html = "\n".join(output.get("data", {}).get("text/html", "") for cell in code for output in cell.outputs)
    pairs = re.findall(r"<td>(\w[\w ]*)</td>\s*<td>(.*?)</td>", html[html.rfind("<th>Provenance") :], re.DOTALL)
    return {name: unescape(value) for name, value in pairs}


def untrue_cells(table: Path) -> list[str]:
    """Cells of a `.tex` table that do not show the value of their CSV, within one unit of the last printed place."""
    source = table.with_suffix(".csv")
    if not source.is_file():
        return [f"{source.name} is not there to hold it against"]
    values = pd.read_csv(source, dtype=str, keep_default_na=False).to_numpy()
    body = _HEAD.split(table.read_text(encoding="utf-8"))[-1]
    lines = [line.removesuffix(r"\\").strip() for line in body.splitlines() if line.endswith(r"\\")]
    rows = [re.split(r"(?<!\\) &(?: |$)", line) for line in lines]  # the last cell of a row may be empty
    if len(rows) != len(values):
        return [f"{len(rows)} rows where {source.name} has {len(values)}"]
    pairs = [(i, text, value) for i, row in enumerate(rows, 1) for text, value in zip(row, values[i - 1], strict=False)]
    return [f"row {i}: {text} where {source.name} has {value}" for i, text, value in pairs if not _shows(text, value)]


def _table(path: Path, tolerances: Tolerances) -> Items:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tolerances.is_time_table(path.stem):
        return {}
    known = [str(name) for name in table if name in tolerances.identifying]
    compared = [str(name) for name in table if name not in known and not tolerances.is_time(str(name))]
    seen, values = Counter[str](), dict[str, Item]()
    for row in table.to_dict("records"):
        words = " ".join(f"{name} {row[name]}" if row[name].isdecimal() else row[name] for name in known)
        seen[words] += 1
        key = words if seen[words] == 1 else f"{words} #{seen[words]}"
        values |= {f"{key}, {name}".strip(", "): Item(row[name], f"{words}, {name}", key) for name in compared}
        if not compared:
            values[key] = Item(key, key, key)
    return values


def _macros(path: Path) -> Items:
    macros = _MACRO.findall(path.read_text(encoding="utf-8"))
    quantities = {name: re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name, _ in macros}
    return {f"\\{name}": Item(text, quantities[name], "", True) for name, text in macros}


def _latex(path: Path, tolerances: Tolerances) -> Items:
    """The caption: what a row says stands in the CSV, against which `untrue_cells` holds it."""
    if tolerances.is_time_table(path.stem):
        return {}
    caption = _CAPTION.search(path.read_text(encoding="utf-8"))
    return _tokens(caption[1] if caption else "", "caption", "caption")


def _render(path: Path, tolerances: Tolerances) -> Items:
    """Text and HTML outputs of a rendered notebook, without paths, times, and the rows that name another machine."""
    shown: Items = {}
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [(f"output {place}.{i}", o) for place, cell in enumerate(code, 1) for i, o in enumerate(cell.outputs, 1)]
    for name, output in outputs:
        data = output.get("data", {})
        html = _UNSHOWN.sub("", data.get("text/html", ""))
        shown |= _cells(html, name, tolerances)
        text = _MARKUP.sub(" ", unescape(_MARKUP.sub(" ", _HTML_TABLE.sub("", html))))
        if not data:
            text = output.get("text", "")
        elif not html and "image/png" not in data:
            text = data.get("text/plain", "")
        if not tolerances.is_time_text(text):
            shown |= _tokens(text, name)
    return shown


def _cells(html: str, name: str, tolerances: Tolerances) -> Items:
    """The cells of the tables that a render shows, by row, under the name of their column."""
    heads = [unescape(head).lower().replace(" ", "_") for head in re.findall(r"<th[^>]*>(.*?)</th>", html, re.DOTALL)]
    cells: Items = {}
    for i, row in enumerate(re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL), 1):
        texts = [unescape(cell).replace("−", "-") for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        texts = [_PATHS.sub("PATH", text) for text in texts]
        words = " ".join(text for text in texts if number(text) is None)
        for head, text in zip(heads, texts, strict=False):
            if not tolerances.is_time_text(head.replace("_", " ")):
                cells[f"{name}, row {i}, {head}"] = Item(text, f"shown {words}, {head}", f"{name}, row {i}", True)
    return cells


def _tokens(text: str, name: str, quantity: str = "shown") -> Items:
    """The numbers of a text one by one, and the words between them."""
    text = _PATHS.sub("PATH", text.replace("−", "-"))
    numbers = {f"{name}, number {i}": Item(n, quantity, "", True) for i, n in enumerate(_NUMBER.findall(text), 1)}
    words = _NUMBER.sub("#", text).split()
    return numbers | {f"{name}, word {i}": Item(word, f"{quantity} words") for i, word in enumerate(words, 1)}


def _page(path: Path, tolerances: Tolerances) -> Items:
    """The values of every trace of the dashboard's figure, and its words."""
    text = path.read_text(encoding="utf-8")
    start = _FIGURE.search(text)
    if start is None:
        return _tokens(re.sub(r"<script.*?</script>|<[^>]+>", " ", text, flags=re.DOTALL), "page")
    traces, end = json.JSONDecoder().raw_decode(text, start.end())
    layout, _ = json.JSONDecoder().raw_decode(text, text.index("{", end))
    leaves = [*_leaves(traces, "trace"), *_leaves(layout.get("title", {}), "title")]
    return {name: Item(value, name) for name, value in leaves if not tolerances.is_time_text(name)}


def _leaves(value: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and "bdata" in value:
        value = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"]).tolist()
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} {key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{name} {place}")
    else:
        yield name, str(value)


def _shows(text: str, value: str) -> bool:
    shown, stored = number(text), number(value)
    if shown is None or stored is None:
        return (shown is None) == (stored is None) or not np.isfinite(stored or 0.0)
    unit = printed_unit(text.replace(r"$-$", "-")) or float(not stored.is_integer())  # a column may be rounded to units
    return abs(shown - stored) <= unit
