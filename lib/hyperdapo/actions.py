"""What a policy can do with an order, and the word for it in the parameters."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer

from hyperdapo.errors import nearest


@dataclass(frozen=True, repr=False)
class Action:
    """What a policy can do with a parent order; `str` is its word in the parameters (docs/design.md, State and action).

    `keep`, which is no word there, leaves an order that is decided on again as it is. `amount` is in ticks for
    `improve` and `behind`, in bps from the arrival mid for `bps`, and 0 for the other kinds.
    """

    kind: Literal["take", "mid", "improve", "join", "behind", "wait", "bps", "keep"]
    amount: float = 0.0

    def __str__(self) -> str:
        if self.kind == "bps":
            return f"{self.amount:+g} bps"
        return f"{self.kind} {self.amount:g}" if self.amount else self.kind

    def __repr__(self) -> str:
        return repr(str(self))

    @staticmethod
    def parse(word: Any) -> "Action":
        """The action that a word of `policy.actions` means.

        Raises
        ------
        ValueError
            If there is no such action, with the nearest one that there is.

        Examples
        --------
        >>> Action.parse("behind 2"), Action.parse("-5 bps").amount
        ('behind 2', -5.0)
        """
        if isinstance(word, Action):
            return word
        match = _ACTION.fullmatch(word) if isinstance(word, str) else None
        if not match:
            raise ValueError(f"{word!r} is no action{_nearest_action(word)}; there are {_ACTIONS}")
        if match["kind"]:
            return Action(match["kind"])  # type: ignore[arg-type]
        if match["ticks"]:
            return Action(match["of_ticks"], float(match["ticks"]))  # type: ignore[arg-type]
        return Action("bps", float(match["bps"]))


_ACTION = re.compile(
    r"(?P<kind>take|mid|join|wait)|(?P<of_ticks>improve|behind) (?P<ticks>[1-9]\d{0,2})"
    r"|(?P<bps>[+-]?\d{1,4}(\.\d+)?) bps"  # below 10,000: there a buy's price is 0
)
_ACTIONS = (
    "take, mid, improve N, join, behind N, wait (N ticks, 1 to 999), and the distance from the mid, as in '-5 bps'"
)


def _nearest_action(word: Any) -> str:
    if isinstance(word, int | float) and math.isfinite(word):
        return f" (did you mean '{word:+g} bps'?)"
    if not isinstance(word, str):
        return ""
    number = re.search(r"[1-9]\d{0,2}", word)
    ticks = number[0] if number else "1"
    return nearest(word, ["take", "mid", f"improve {ticks}", "join", f"behind {ticks}", "wait"])


ActionWord = Annotated[Action, BeforeValidator(Action.parse), PlainSerializer(str)]
