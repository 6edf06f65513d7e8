"""A small world that is worth reading, for tests of training: only the imbalance in the prompt tells what to do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel

from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths
from hyperdapo.policy.losses import ALGORITHMS
from hyperdapo.policy.models import load_base, save_adapter
from hyperdapo.policy.states import States, read_states
from hyperdapo.policy.training import gather_logs, runs_of, train_runs
from hyperdapo.times import SECOND_NS
from test_prompts import features as neutral

COUNT = 240


def settings(**changes) -> Parameters:
    """All algorithms with one seed; rates high enough for the tiny model to learn in 60 updates."""
    quick = {"learning_rate": 0.01}
    algorithms = {name: quick | {"beta": 0.1} for name in ("dpo", "dpo_one_pair", "listing_4_3")}
    algorithms |= {name: quick | {"temperature_bps": 2, "entropy_bonus": 0.3} for name in ("dapo", "dapo_sampled")}
    algorithms |= {"reward_weighted": quick | {"temperature_bps": 2}}
    algorithms |= {"dapo_preference": {"learning_rate": 0.003, "beta": 0.1, "advantage_unit_bps": 25}}
    common = {"steps": 60, "checkpoint_every": 20, "evaluate_every": 20, "seeds": [0], "algorithms": list(ALGORITHMS)}
    actions = ["wait", "behind 5", "behind 2", "behind 1", "join", "take"]
    return load("smoke", {"training": common | algorithms | changes, "policy": {"actions": actions}})


def planted_world(parameters: Parameters) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features and outcomes: where the imbalance leans with the order, the last action (take) is best; against it,
    the first (wait)."""
    rng = np.random.default_rng(0)
    lean = rng.choice([-0.9, 0.9], COUNT)
    side = rng.choice([-1, 1], COUNT)
    decision_ns = np.arange(COUNT) * 50 * SECOND_NS  # six to a block of 300 s
    features = neutral(COUNT).assign(decision_ns=decision_ns, book_imbalance=lean * side, warm=True)
    actions = len(parameters.policy.actions)
    orders = pd.DataFrame({"order_id": range(COUNT), "asset": "BTC", "objective": "balanced", "side": side})
    split = np.repeat(["train", "validation", "test"], [140, 40, 60])
    orders = orders.assign(decision_ns=features["decision_ns"], split=split, horizon_s=60.0, distinct=True)
    outcomes = orders.loc[orders.index.repeat(actions)].assign(action=np.tile(np.arange(actions), COUNT))
    tilt = np.linspace(-1, 1, actions)[outcomes["action"]]
    return features, outcomes.assign(reward=6.0 * tilt * np.repeat(lean, actions)).reset_index(drop=True)


def planted_splits(parameters: Parameters) -> dict[str, States]:
    world = planted_world(parameters)
    return {name: read_states(*world, parameters, name) for name in ("train", "validation", "test")}


def train(
    parameters: Parameters, paths: Paths, training: States, held_out: States, watch: Callable[[], None] = lambda: None
) -> dict[str, pd.DataFrame]:
    """Train what 05 trains of an asset, on these states, and return the logs."""
    train_runs(parameters, paths, training, held_out, runs_of(parameters, paths.asset), watch)
    return gather_logs(parameters, paths)


def elsewhere(adapted: PeftModel, parameters: Parameters, folder: Path) -> PeftModel:
    """A saved adapter as anybody loads it, by PEFT on a base of their own."""
    base, tokenizer = load_base(parameters.policy)
    save_adapter(adapted, tokenizer, parameters, folder)
    return PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()


def same_curve(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Two training logs are equal to the last digit, but for the time they took."""
    pd.testing.assert_frame_equal(one.drop(columns="elapsed_s"), other.drop(columns="elapsed_s"), check_exact=True)
