"""07: what each policy decides on the test states of one asset, and how long a decision takes here."""

from pathlib import Path

from hyperdapo.files import read_table, write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.decisions import Decider, decide_all, measure_latency
from hyperdapo.policy.states import read_states


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Decide with every adapter and the yardsticks, then time single decisions.

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
    return [write_table(table, paths.data, name) for name, table in tables.items()]
