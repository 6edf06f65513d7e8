"""Rates of the machine at hand for `estimate`: the real code on made-up states, a minute or two."""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pandas as pd
import psutil
import torch

from hyperdapo.params import Parameters
from hyperdapo.policy.models import config_of, hub_id, load_tokenizer
from hyperdapo.policy.prompts import CUE, FEATURES, encode_states, instruction
from hyperdapo.policy.states import States
from hyperdapo.policy.training import Workbench
from hyperdapo.workflow.estimate import SHAPES, Machine, Rates, Shape, Text

_READ, _LOOKED_AT = 64, 32  # states that the base reads, and held-out ones
_WARM, _TIMED = 4, 8  # updates before, and those that are timed: whole rollouts
_NOTICE = "The venue lists the token today, as was announced."
_STAND_IN = "smollm2-135m"


def here() -> Machine:
    """This one: its first GPU, or its processors."""
    if torch.cuda.is_available():
        return Machine("this machine", torch.cuda.get_device_properties(0).total_memory / 1e9, 0.0, 2)
    return Machine("this machine", psutil.virtual_memory().total / 1e9, 0.0, 4)


def text_of(parameters: Parameters) -> Text:
    """Tokens of a typical prompt, by the base's tokenizer or, where that is not here, by SmolLM2's.

    On these prompts the two differ by 3 % (docs/LOG.md).
    """
    base = parameters.policy.base_model
    here = hub_id(base) is None or base == _STAND_IN or Path(base).exists()
    tokenizer = load_tokenizer(base if here else _STAND_IN)
    opening, state = _opening(parameters), _states(parameters, 1).prompts[0]
    parts = (opening, state[len(opening) : -len(CUE)], CUE)
    return Text(*(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts))


def shape_of(parameters: Parameters) -> Shape:
    """Sizes of the base: of those that profiles name they are known, of others transformers is asked.

    Raises
    ------
    ModelError
        If the base's config cannot be had.
    """
    base = parameters.policy.base_model
    return SHAPES[base] if base in SHAPES else Shape.of(config_of(parameters.policy))


def measure(parameters: Parameters) -> Rates:
    """Let the base read some states, pass them, and update an adapter by every algorithm of a run.

    Raises as `policy.training.Workbench.train`.
    """
    settings = {"steps": _WARM + _TIMED + 1, "evaluate_every": 10**6, "checkpoint_every": 10**6, "processes": 1}
    training = parameters.training.model_copy(update=settings | {"evaluation_states": _LOOKED_AT})
    short = parameters.model_copy(update={"training": training})
    states = _states(short, max(_READ, training.states_per_update))
    text = text_of(parameters)
    bench = Workbench(short, short.assets[0], states, states)
    _ = bench.scorer
    begun = perf_counter()
    bench.read()
    token_s = (perf_counter() - begun) / ((len(states) + _LOOKED_AT) * (text.state + text.cue))
    bench.look(bench.scorer)
    begun = perf_counter()
    bench.look(bench.scorer)
    state_s = (perf_counter() - begun) / _LOOKED_AT
    updates: dict[str, float] = {algorithm: _update_s(bench, algorithm) for algorithm in training.algorithms}
    return Rates(token_s, state_s, updates, "measured on this machine, now")


def _update_s(bench: Workbench, algorithm: str) -> float:
    """Mean seconds of an update, warm."""
    times: list[float] = []
    with TemporaryDirectory() as folder:
        bench.train(algorithm, 0, Path(folder), lambda looked: times.append(perf_counter()))
    return (times[_WARM + _TIMED - 1] - times[_WARM - 1]) / _TIMED


def _opening(parameters: Parameters) -> str:
    return instruction(parameters.policy.actions, parameters.policy.prompt_style)


def _states(parameters: Parameters, count: int) -> States:
    """Prompts as those of the market, with random digits, a notice where there are any, and rewards that differ."""
    rng, policy = np.random.default_rng(0), parameters.policy
    features = pd.DataFrame(rng.uniform(0, 1, (count, len(FEATURES))), columns=[one.column for one in FEATURES])
    features = features.assign(decision_ns=0, asset=parameters.assets[0], mid=110_234.0)
    if parameters.synthetic.notices.per_hour:
        features = features.assign(notice=_NOTICE, notice_age_s=20.0)
    orders = pd.DataFrame({"order_id": range(count), "side": 1, "objective": "balanced", "horizon_s": 60.0})
    rewards = rng.normal(0, 4, (count, len(policy.actions)))
    prompts = encode_states(features, orders, policy.actions, policy.prompt_style)
    return States(orders, prompts, rewards, rewards < np.inf)
