"""07: what each policy decides on the test states of one asset, and how long a decision takes here."""

from pathlib import Path

import pandas as pd

from hyperdapo.files import read_table, write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.decisions import Decider, decide_all
from hyperdapo.policy.path import latency
from hyperdapo.policy.states import States, read_states
from hyperdapo.sequential import language
from hyperdapo.sequential.iteration import BOOSTING, DAPO, boosting, decided, hypothetical, is_trained
from hyperdapo.sequential.states import last_known


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Decide with every adapter and the yardsticks, once and again, and time single decisions.

    Raises
    ------
    ModelError
        If the base model cannot be had, or an adapter was trained on another.
    """
    features, outcomes = read_table(paths.data, "features"), read_table(paths.data, "outcomes")
    training, tested = (read_states(features, outcomes, parameters, split) for split in ("train", "test"))
    decisions = decide_all(parameters, paths, features, training, tested, Decider(parameters, tested))
    tables = {"decisions": decisions} | vars(time_decisions(parameters, paths, features, tested))
    tables["again"] = decide_again(parameters, paths, last_known(features), outcomes, tested)
    return [write_table(table, paths.data, name) for name, table in tables.items()]


def time_decisions(parameters: Parameters, paths: Paths, features: pd.DataFrame, tested: States) -> latency.Measured:
    """How long the first algorithm's decisions take, for the assets of `inference.timed`; nothing of the others."""
    if paths.asset not in parameters.inference.timed:
        return latency.NOT_MEASURED
    adapter = paths.adapter(parameters.training.algorithms[0], parameters.training.seeds[0])
    return latency.measure(parameters, adapter, features, tested)


def decide_again(
    parameters: Parameters, paths: Paths, features: pd.DataFrame, outcomes: pd.DataFrame, tested: States
) -> pd.DataFrame:
    """The rows of `again.parquet`: every state into which a test order can come, decided by boosted trees.

    And by the language model, where it was trained, for so many orders as `sequential.tested_orders` says.
    """
    states = hypothetical(tested.table, parameters)
    predicted = boosting(features, read_table(paths.data, "action_values"), parameters.seed)
    tables = [decided(states, predicted(states), BOOSTING)]
    if is_trained(parameters, paths.asset):
        few = hypothetical(tested.spread(parameters.sequential.tested_orders).table, parameters)
        adapter = paths.adapter(DAPO, parameters.training.seeds[0])
        tables.append(decided(few, language.scorer(parameters, adapter, features, outcomes)(few), DAPO))
    return pd.concat(tables, ignore_index=True)
