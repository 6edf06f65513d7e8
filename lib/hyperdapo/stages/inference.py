"""07: what each policy decides on the test states of one asset, and how long a decision takes here."""

from pathlib import Path

import pandas as pd

from hyperdapo.files import read_table, write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.decisions import Decider, decide_all, measure_latency
from hyperdapo.policy.states import read_states
from hyperdapo.sequential.iteration import BOOSTING, boosting, decided, hypothetical
from hyperdapo.sequential.states import last_known


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Decide with every adapter and the yardsticks, once and again, then time single decisions.

    Raises
    ------
    ModelError
        If the base model cannot be had, or an adapter was trained on another.
    """
    features, outcomes = read_table(paths.data, "features"), read_table(paths.data, "outcomes")
    training, tested = (read_states(features, outcomes, parameters, split) for split in ("train", "test"))
    decider = Decider(parameters, tested)
    decisions = decide_all(parameters, paths, features, training, tested, decider)
    prompts = tested.prompts[: parameters.inference.latency_decisions]
    latency = measure_latency(decider.scorer, decider.base, decider.tokenizer, prompts)
    tables = {"decisions": decisions, "latency": latency}
    tables["again"] = decide_again(parameters, paths, last_known(features), tested.table)
    return [write_table(table, paths.data, name) for name, table in tables.items()]


def decide_again(parameters: Parameters, paths: Paths, features: pd.DataFrame, orders: pd.DataFrame) -> pd.DataFrame:
    """The rows of `again.parquet`: every state into which a test order can come, decided by boosted trees."""
    states = hypothetical(orders, parameters)
    predicted = boosting(features, read_table(paths.data, "action_values"), parameters.seed)
    return decided(states, predicted(states), BOOSTING)
