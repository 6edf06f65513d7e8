"""How far two runs may lie apart, read from `tolerances.yaml`, the one table of it."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_suffix(".yaml")


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
        found = next((name for name, entry in kinds.items() if stage in entry["stages"]), None)
        if found is None:
            raise KeyError(f"{TABLE.name} names no kind of the stage {stage}")
        mixed = found == "simulation" and stage[:2] in ("08", "09")
        return "trained" if mixed and self._of_policy(file, quantity) else found

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
        names = "|".join(map(re.escape, self._table["kinds"]["trained"]["policies"]))
        spelt = names.replace("listing_4_4", "listing_four_four|listing_4_4")
        return re.compile(rf"(?<![A-Za-z])(?:{spelt})(?![A-Za-z])")
