"""The one door to the test orders of a run: who opens it leaves a line in a ledger that only grows.

`outputs/RUN/ledger.jsonl` has a line of JSON for each opening. A line holds the hash of the one before it and its own,
so that one that is changed, taken out or put in between is noticed.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.evidence import provenance
from hyperdapo.files import atomic, read_assets
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths

_FIRST = "0" * 64
_SHOWN = 16  # hex digits of a digest of data


def open_test(paths: Paths, parameters: Parameters, why: str, ledger: Paths | None = None) -> pd.DataFrame:
    """`orders.parquet` of every asset of a run, once a line in its ledger (or in that of another) says so.

    Parameters
    ----------
    why : who asks, such as `09_significance`

    Raises
    ------
    MissingInputError
        If 08 has not run.
    DataError
        If the ledger was altered.
    """
    orders = read_assets(paths, parameters.assets, "orders")
    claimed = parameters.hypotheses
    opened = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": why,
        "commit": provenance.commit(),
        "parameters": parameters.fingerprint(),
        "hypotheses": [f"{claimed.policy} costs less than {reference}" for reference in claimed.references],
        "alpha": claimed.alpha,
        "assets": parameters.assets,
        "orders": _digest(orders),
    }
    append((ledger or paths).outputs / provenance.LEDGER, opened)
    return orders


def append(path: Path, opened: dict[str, Any]) -> None:
    """Add a line to a ledger; raises as `read`."""
    known = read(path)
    line = opened | {"number": len(known) + 1, "before": known[-1]["hash"] if known else _FIRST}
    line |= {"hash": _hash(line)}
    text = path.read_text(encoding="utf-8") if known else ""
    with atomic(path) as temporary:
        temporary.write_text(f"{text}{json.dumps(line)}\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger; none where there is no file.

    Raises
    ------
    DataError
        If a line is damaged, was changed, or does not follow the one before it.
    """
    if not path.exists():
        return []
    lines, before = list[dict[str, Any]](), _FIRST
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            whole = line["hash"] == _hash({name: value for name, value in line.items() if name != "hash"})
        except (ValueError, KeyError, TypeError, AttributeError):
            whole, line = False, {}
        if not whole or (line["before"], line["number"]) != (before, number):
            raise DataError(
                f"{path}: line {number} is not as it was written, or lines are missing before it: the ledger of "
                f"the test split may only grow. Restore it: git checkout -- {path.name}"
            )
        lines.append(line)
        before = line["hash"]
    return lines


def follows(path: Path, earlier: Path) -> bool:
    """Whether a ledger begins with all lines of an earlier state of it; raises as `read`."""
    old: Sequence[dict[str, Any]] = read(earlier)
    return read(path)[: len(old)] == old


def summary(paths: Paths) -> str:
    """How often the test orders of a run were opened, since when, and under how many parameters and commits."""
    lines = read(paths.outputs / provenance.LEDGER)
    if not lines:
        return "ledger: the test orders were never opened"
    data, parameters, commits = (len({line[key] for line in lines}) for key in ("orders", "parameters", "commit"))
    times = "once" if len(lines) == 1 else f"{len(lines)} times"
    others = ", ".join(line["by"] for line in lines if line["by"] != "09_significance")
    return (
        f"ledger: the test orders were opened {times}, first on {lines[0]['at'][:10]}, last on "
        f"{lines[-1]['at'][:10]}: {data} sets of orders, {parameters} of parameters, {commits} commits"
        + (f"; by others than 09: {others}" if others else "")
    )


def _hash(line: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()


def _digest(orders: pd.DataFrame) -> str:
    """Of what is tested: the costs of every order by every strategy."""
    tested = orders[["asset", "strategy", "order_id", "total_cost_bps"]]
    return hashlib.sha256(pd.util.hash_pandas_object(tested, index=False).to_numpy().tobytes()).hexdigest()[:_SHOWN]
