"""The folder of a session: what was received, what was decided on it and why not, and what became of the orders.

`data/RUN/paper/SESSION/`: `session.json` (what it was asked to do), `ASSET.ndjson.gz` (`record`), `decisions.jsonl`
(one line for each order and for each refusal), `odd.jsonl` (frames that are no message), `orders.parquet`,
`health.json`, and, once it was reconciled, `reconcile.csv`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyperdapo.errors import DataError, MissingInputError, ParameterError, nearest
from hyperdapo.execution.laws import EVENLY, as_measured
from hyperdapo.files import atomic, read_json, read_table, writing_into
from hyperdapo.params import Parameters, load, merge, overrides_of
from hyperdapo.paths import Paths, data_root
from hyperdapo.times import SECOND_NS

_UNMEASURED = {"lambda_bps": 100.0, "queue_exponent": EVENLY}
"""Where 03 has not run: cancels spread over the queue, and eq. 2.4 is above what it was measured to be anywhere."""

Json = dict[str, Any]


@dataclass
class Asked:
    """What a session does: a run, its assets, and who decides.

    `action` is a word of `policy.actions`, taken always; else `policy` (an algorithm, or "untrained") and `seed` name
    an adapter. `measured` are the numbers of 03 by asset, `daily_volume` is V of eq. 2.4 by asset, coin, from the first
    decision on: orders are judged by the same numbers whenever they are replayed.
    """

    run: str
    profile: str
    overrides: Json
    assets: list[str]
    action: str = ""
    policy: str = ""
    seed: int = -1
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    daily_volume: dict[str, float] = field(default_factory=dict)

    def parameters(self, asset: str | None = None) -> Parameters:
        """Those of the run; of an asset, with the market's own numbers where `execution` has none."""
        parameters = load(self.profile, self.overrides).model_copy(update={"name": self.run})
        if asset is None:
            return parameters
        rows = self.measured[asset].items()
        laws = pd.DataFrame(rows, columns=["parameter", "value"])
        return as_measured(parameters, laws)

    @property
    def strategy(self) -> str:
        """What `orders.parquet` calls it."""
        return {"take": "market", "join": "join_best"}.get(self.action, self.action) or self.policy


class Session:
    """Files of one session."""

    def __init__(self, folder: Path, asked: Asked) -> None:
        self.folder, self.asked = folder, asked

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.name

    @classmethod
    def begin(cls, parameters: Parameters, assets: Sequence[str], name: str | None, **who: Any) -> "Session":
        """A new session, or one that goes on: `name` is then that of one that was begun.

        Raises
        ------
        ParameterError
            If the run does not cover an asset, orders would come between decision times, or a session of this name was
            begun with something else in mind.
        """
        for asset in assets:
            parameters.for_asset(asset)
        every_s, grid_s = parameters.live.order_every_s, parameters.features.decision_interval_s
        if round(every_s * SECOND_NS) % round(grid_s * SECOND_NS):
            raise ParameterError(
                f"live.order_every_s ({every_s:g}) must be a multiple of features.decision_interval_s ({grid_s:g}): "
                "decisions need features"
            )
        folder = sessions(parameters.name) / (name or f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}")
        asked = Asked(parameters.name, parameters.profile, overrides_of(parameters), list(assets), **who)
        asked.measured = {asset: _measured(Paths(parameters.name, asset)) for asset in assets}
        asked.daily_volume = {
            asset: volume for asset in assets if (volume := _volume(Paths(parameters.name, asset))) is not None
        }
        session = cls(folder, asked)
        if (folder / "session.json").exists():
            begun = _read_asked(folder)
            if (begun.assets, begun.strategy, begun.seed) != (asked.assets, asked.strategy, asked.seed):
                raise ParameterError(
                    f"session {folder.name} was begun for {' '.join(begun.assets)} and {begun.strategy}: choose "
                    "another --session, or go on with the same"
                )
            begun.overrides = merge(begun.overrides, {"live": {"endpoint": parameters.live.endpoint}})
            return cls(folder, begun)
        session.save()
        return session

    @classmethod
    def find(cls, name: str, run: str | None = None) -> "Session":
        """A session by its folder, or by its name, in whatever run.

        Raises
        ------
        MissingInputError
            If there is none.
        """
        folders = [Path(name)] if (Path(name) / "session.json").exists() else []
        folders += sorted(data_root().glob(f"{run or '*'}/paper/{name}"))
        if not folders:
            known = [path.parent.name for path in data_root().glob("*/paper/*/session.json")]
            raise MissingInputError(
                f"there is no session {name!r}{nearest(name, known)} under {data_root()}; hyperdapo paper makes one"
            )
        return cls(folders[0], _read_asked(folders[0]))

    def save(self) -> None:
        """Write down what it was asked to do."""
        with atomic(self.folder / "session.json") as temporary:
            temporary.write_text(json.dumps(asdict(self.asked), indent=1) + "\n")

    def entries(self) -> list[Json]:
        """Its decisions and refusals, in the order in which they were noted; a line that a kill cut is left out."""
        path = self.folder / "decisions.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")
        if lines.pop():  # what no newline ends was cut
            with atomic(path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in lines))
        return [json.loads(line) for line in lines]

    def orders(self) -> pd.DataFrame:
        """`orders.parquet`; raises as `files.read_table`."""
        return read_table(self.folder, "orders")


class Log:
    """Appends lines of JSON to a file of a session; each survives a kill once it is written."""

    def __init__(self, path: Path) -> None:
        with writing_into(path.parent):
            self._file = path.open("ab", buffering=0)

    def write(self, entry: Mapping[str, Any]) -> None:
        """One line; NaN is written as such."""
        self._file.write((json.dumps(entry, default=_plain) + "\n").encode())

    def close(self) -> None:
        """The file is done."""
        self._file.close()


def sessions(run: str) -> Path:
    """The folder of a run's sessions."""
    return data_root() / run / "paper"


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _read_asked(folder: Path) -> Asked:
    try:
        return Asked(**json.loads((folder / "session.json").read_text()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder / 'session.json'} is damaged ({error}): begin another session") from None


def _measured(paths: Paths) -> dict[str, float]:
    """What 03 measured of an asset's market, where it has."""
    if not (paths.data / "laws.parquet").exists():
        return dict(_UNMEASURED)
    laws = read_table(paths.data, "laws").set_index("parameter")["value"].astype(float)
    return {name: float(laws[name]) for name in _UNMEASURED}


def _volume(paths: Paths) -> float | None:
    """V of eq. 2.4 as 02 measured it, where it has."""
    if not (paths.data / "cleaning.json").exists():
        return None
    return float(read_json(paths.data, "cleaning.json")["daily_volume"])
