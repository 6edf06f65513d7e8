"""How a language model that decides again is trained: as `dapo`, on groups of K + 1 action values instead of K rewards.

Each exact value is that of the one future which came, and a decision that can be mended in ten seconds is worth a
hundredth of what that future moves an order's cost. So it learns what trees expect of the values (`sequential.critic`),
an actor and its critic, or the values as they are. They are those of the policy that led the rollouts of 04; with
`sequential.refreshes` it is policy iteration: the states are valued anew where the model itself goes on, and it is
trained again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from hyperdapo import dependencies
from hyperdapo.errors import MissingInputError, ModelError, TrainingError
from hyperdapo.files import atomic
from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy import runs
from hyperdapo.policy.states import States
from hyperdapo.policy.training import Workbench, publish
from hyperdapo.sequential import rivals
from hyperdapo.sequential.iteration import DAPO, Asked, boosting, hypothetical, matrix
from hyperdapo.sequential.language import expected, read, scorer, whole, with_keep
from hyperdapo.sequential.states import Policy

_TOGETHER = {"processes": 1, "gradient_accumulation": 1}
_GAINS = "gains.npy"

Follow = Callable[[bool], None]
"""Told after each update whether the held-out states were looked at."""
Revalue = Callable[[pd.Series, Policy], pd.DataFrame]
"""Orders by their id, and who goes on in them -> their states as in `action_values.parquet`, valued anew."""


def train(
    parameters: Parameters,
    paths: Paths,
    features: pd.DataFrame,
    outcomes: pd.DataFrame,
    values: pd.DataFrame,
    revalue: Revalue,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Train `dapo_sequential` of an asset with the first seed, unless it stands trained as it would be now.

    `features`, `outcomes` and `values` are tables of 03 and 04; `revalue` is for refreshes alone. Raises as
    `policy.training.train_runs`.
    """
    again, run = _settings(parameters), (DAPO, parameters.training.seeds[0])
    learned, held_out = (read(again, features, outcomes, values, split) for split in ("train", "validation"))
    learned = learned.spread(parameters.sequential.states)
    lesson = Lesson(parameters, paths.asset, features, outcomes, values, learned, held_out)
    identity = lesson.fingerprint()
    if runs.stands(paths.adapter(*run), identity):
        return

    def follow(looked: bool) -> None:
        if looked:
            watch()

    folder = paths.run(*run)
    runs.open_run(folder, identity)
    for turn in range(parameters.sequential.refreshes):
        lesson = replace(lesson, gains=refresh(lesson, revalue, folder / f"refresh_{turn}", follow))
    lesson.train(folder, follow)
    publish(again, paths, run)


@dataclass(frozen=True)
class Lesson:
    """What is learned from: n states with their exact values as 04 has them, and its `values` of all states.

    `gains` (n, K + 1) is what the exact values rise by where another policy goes on, NaN for what is not allowed.
    """

    parameters: Parameters
    asset: str
    features: pd.DataFrame
    outcomes: pd.DataFrame
    values: pd.DataFrame
    states: States
    held_out: States
    gains: Floats | None = None

    @cached_property
    def told(self) -> States:
        """The states with what the model learns from: the exact values, or what critics expect of each action."""
        told = self.states
        if self.gains is not None:
            told = replace(told, rewards=whole(np.where(told.distinct, told.rewards + self.gains, np.nan)))
        if not self.parameters.sequential.critic:
            return told
        critic = boosting(self.features, self.values, self.parameters.seed)
        if self.gains is None:
            return expected(told, critic)
        rise = rivals.fit(self.features, told.table, self.gains, self.parameters.seed)

        def raised(table: pd.DataFrame) -> Floats:
            rises = rise(table)
            return critic(table) + np.where(np.isfinite(rises), rises, 0.0)

        return expected(told, raised)

    def fingerprint(self) -> str:
        """That of the run, which goes by the code of this room too where it is refreshed."""
        again, refreshes = _settings(self.parameters), self.parameters.sequential.refreshes
        plain = runs.fingerprint(again, "dapo", again.training.seeds[0], self.told, self.held_out)
        if not refreshes:
            return plain
        code = dependencies.digest("import hyperdapo.sequential.training", room="sequential")
        return hashlib.sha256(f"{plain} {refreshes} {code}".encode()).hexdigest()

    def train(self, folder: Path, follow: Follow) -> None:
        """Leave adapter and log in a folder, unless they are there."""
        if (folder / runs.LOG).exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        again = _settings(self.parameters)
        Workbench(again, self.asset, self.told, self.held_out).train("dapo", again.training.seeds[0], folder, follow)

    def of(self, orders: Callable[[pd.Series], pd.Series]) -> "Lesson":
        """The lesson of some orders alone."""
        rows = np.flatnonzero(orders(self.states.table["order_id"]))
        gains = None if self.gains is None else self.gains[rows]
        values = self.values[orders(self.values["order_id"])]
        return replace(self, values=values, states=self.states.select(rows), gains=gains)


def refresh(lesson: Lesson, revalue: Revalue, folder: Path, follow: Follow) -> Floats:
    """(n, K + 1) what the exact values rise by where the model itself goes on, trained in `folder` on the lesson.

    In the orders of either half of the time a model goes on that has learned from the orders of the other half: one
    that has learned how an order ends knows what no trader knows, and waiting looks better than it is.

    Raises
    ------
    TrainingError
        If what an earlier, killed training left in `folder` cannot be used.
    """
    if (folder / _GAINS).exists():
        return np.asarray(np.load(folder / _GAINS))
    states = lesson.states
    middle = states.table["order_id"].median()  # orders are called after their rows in the order of time
    valued = np.full(states.rewards.shape, np.nan)
    for name, learned in (("earlier", lambda orders: orders < middle), ("later", lambda orders: orders >= middle)):
        lesson.of(learned).train(folder / name, follow)
        asked = ~learned(states.table["order_id"])
        valued[asked] = _valued(lesson, states.table[asked], folder / name, revalue)
    gains = valued - states.rewards
    with atomic(folder / _GAINS) as temporary, temporary.open("wb") as file:
        np.save(file, gains)
    return gains


def _valued(lesson: Lesson, table: pd.DataFrame, trained: Path, revalue: Revalue) -> Floats:
    """(n, K + 1) exact values of some states where a trained model goes on; NaN for what is not allowed."""
    parameters, orders = lesson.parameters, table["order_id"].drop_duplicates()
    parents = lesson.outcomes[lesson.outcomes["order_id"].isin(orders)].drop_duplicates("order_id")
    try:
        model = scorer(parameters, trained / runs.ADAPTER, lesson.features, lesson.outcomes)
    except (MissingInputError, ModelError) as error:
        raise TrainingError(f"{trained} holds no adapter that can go on: remove it and run 05 again") from error
    values = revalue(orders, Asked(hypothetical(parents, parameters), model))
    state = ["order_id", "number"]
    return matrix(values.set_index(state).loc[pd.MultiIndex.from_frame(table[state])], "value")


def _settings(parameters: Parameters) -> Parameters:
    """The same with the action to keep an order, and what `sequential` says of the training.

    It is trained in one process, each update read whole.
    """
    again = with_keep(parameters)
    own = {
        "learning_rate": parameters.sequential.learning_rate,
        "temperature_bps": parameters.sequential.temperature_bps,
        "entropy_bonus": parameters.sequential.entropy_bonus,
    }
    budget = {
        "steps": parameters.sequential.steps,
        "states_per_update": parameters.sequential.states_per_update,
        "dapo": parameters.training.dapo.model_copy(update=own),
    }
    return again.model_copy(update={"training": parameters.training.model_copy(update=budget | _TOGETHER)})
