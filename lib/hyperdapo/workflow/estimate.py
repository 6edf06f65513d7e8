"""What a run asks of a machine, before anyone rents it: states, tokens, FLOPs, memory, hours and dollars a stage.

Counted are 05, 06 and 07, which have the model; the others need no GPU. A state's text is read once by the base, every
update passes its cue through the adapter's layers, and so does every look at held-out states (`policy.scoring`). Time
is counts times three rates: seconds a token read, a state passed, an update. They are measured on the machine at hand
(`workflow.probe`), or estimated from a data sheet; what is printed says which.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hyperdapo.errors import HyperdapoError, ParameterError, nearest
from hyperdapo.params import Parameters
from hyperdapo.policy.losses import settings_of
from hyperdapo.times import SECOND_NS

BATCH = 32  # states that are read at once, see `policy.scoring`
_CONTEXT_GB = 1.0  # what CUDA and its libraries take
_NF4_BYTES = 0.516  # a weight: 4 bits, and its share of a scale that is quantised too (arXiv:2305.14314, §3)
_ADAM_BYTES = 16  # an adapter's parameter in float32, its gradient, and two moments

PLACES = 5
"""At which an order that is decided on again may stand, each of which is asked about (`sequential.states`)."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder as its config has them; `kv` is the width of its keys, `query` that of its queries."""

    layers: int
    width: int
    inner: int
    query: int
    kv: int
    vocabulary: int
    tied: bool

    @staticmethod
    def of(config: Any) -> "Shape":
        """Those of a config of transformers."""
        heads, width = config.num_attention_heads, config.hidden_size
        each = getattr(config, "head_dim", None) or width // heads
        kv = config.num_key_value_heads * each
        sizes = (config.num_hidden_layers, width, config.intermediate_size, heads * each, kv, config.vocab_size)
        return Shape(*sizes, tied=config.tie_word_embeddings)

    @property
    def layer(self) -> int:
        """Weights of a layer that multiply each token."""
        return 2 * self.width * (self.query + self.kv) + 3 * self.width * self.inner

    @property
    def embeddings(self) -> int:
        """Weights of the embedding and of the output layer."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    def flops(self, layers: int, context: int) -> float:
        """Of one token in so many layers behind `context` tokens."""
        return layers * (2.0 * self.layer + 4.0 * self.query * context)

    def adapter(self, layers: int, rank: int) -> int:
        """Weights of an adapter on q, k, v and o of so many layers."""
        return layers * rank * (2 * (self.width + self.query) + 2 * (self.width + self.kv))


SHAPES = {
    "Qwen/Qwen2.5-7B": Shape(28, 3584, 18944, 3584, 512, 152064, tied=False),
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(24, 896, 4864, 896, 128, 151936, tied=True),
    "smollm2-135m": Shape(30, 576, 1536, 576, 192, 49152, tied=True),
}
"""Of the bases that profiles name, so that nothing need be fetched; `tests/test_estimate.py` counts their weights."""


@dataclass(frozen=True)
class Gpu:
    """A device as its data sheet has it, and about what an hour of it costs when rented (list prices, early 2025)."""

    memory_gb: float
    tflops: float
    gb_per_s: float
    dollars_per_hour: float


GPUS = {
    "a100-40": Gpu(40, 312, 1555, 1.30),
    "a100-80": Gpu(80, 312, 2039, 1.80),
    "h100-80": Gpu(80, 989, 3350, 3.00),
    "rtx4090-24": Gpu(24, 165, 1008, 0.50),
}
_COMPUTE, _BANDWIDTH = 0.35, 0.6  # shares of a data sheet that such models reach; assumed
_LAYER_S = {False: 0.4e-3, True: 0.8e-3}  # of launching one layer with an adapter, in 16 bits and in 4; assumed
_UPDATE_S = 0.03  # of the trainer's own, an update; assumed


@dataclass(frozen=True)
class Machine:
    """Where a run is to go: its name, memory and price, and how many bytes a number has that it computes with."""

    name: str
    memory_gb: float
    dollars_per_hour: float
    bytes_a_number: int


@dataclass(frozen=True)
class Rates:
    """Seconds a token that the base reads, a state that is passed through the adapter's layers, and an update.

    `source` says where they are from.
    """

    token_s: float
    state_s: float
    update_s: Mapping[str, float]
    source: str

    def __str__(self) -> str:
        updates = (f"{name} {value * 1e3:.3g}" for name, value in self.update_s.items())
        read, passed = f"{self.token_s * 1e3:.3g} a token read", f"{self.state_s * 1e3:.3g} a state passed"
        return f"{read}, {passed}, an update of {', '.join(updates)}"


@dataclass(frozen=True)
class Text:
    """Tokens of a prompt's three parts."""

    opening: int
    state: int
    cue: int


@dataclass(frozen=True)
class Work:
    """What a stage does for all assets: states read, tokens of them, states passed, updates by algorithm, FLOPs."""

    states: float
    tokens: float
    passed: float
    updates: Mapping[str, float]
    flops: float

    def times(self, count: int) -> "Work":
        """As much, `count` times."""
        updates = {name: count * number for name, number in self.updates.items()}
        return Work(count * self.states, count * self.tokens, count * self.passed, updates, count * self.flops)

    def __add__(self, other: "Work") -> "Work":
        both = self.updates.keys() | other.updates.keys()
        updates = {name: self.updates.get(name, 0.0) + other.updates.get(name, 0.0) for name in both}
        passed = self.passed + other.passed
        return Work(self.states + other.states, self.tokens + other.tokens, passed, updates, self.flops + other.flops)


def rates_of(gpu: Gpu, parameters: Parameters, shape: Shape, text: Text) -> Rates:
    """From a data sheet: reading is bound by arithmetic, a pass of few tokens by fetching weights, or by launches."""
    policy, training = parameters.policy, parameters.training
    layers, weight = adapted(parameters, shape), _NF4_BYTES if policy.four_bit else 2.0
    speed = _COMPUTE * gpu.tflops * 1e12

    def passed(states: int) -> float:
        arithmetic = states * _tokens_a_pass(parameters, text, states) * shape.flops(layers, _length(text)) / speed
        fetched = layers * shape.layer * weight / (_BANDWIDTH * gpu.gb_per_s * 1e9)
        return max(arithmetic, fetched, layers * _LAYER_S[policy.four_bit])

    part = training.states_per_update // training.gradient_accumulation
    updates: dict[str, float] = {}
    for algorithm in training.algorithms:
        rolled_out = settings_of(algorithm, training).get("updates_per_rollout", 1) > 1
        updates[algorithm] = _UPDATE_S + training.gradient_accumulation * passed(part) * (4 if rolled_out else 3)
    token_s = shape.flops(shape.layers, _length(text)) / speed
    return Rates(token_s, passed(BATCH) / BATCH, updates, "estimated from a data sheet, not measured")


def adapted(parameters: Parameters, shape: Shape) -> int:
    """How many layers adapters act on."""
    return min(parameters.policy.lora.layers or shape.layers, shape.layers)


def states_of(parameters: Parameters) -> dict[str, int]:
    """States of one asset by split, at most: every decision time of the span is warm but those of the first warm-up."""
    source, features, split = parameters.source, parameters.features, parameters.split
    span_s = (source.end_ns - source.start_ns) / SECOND_NS - features.warmup_s
    cut_s = 2 * (features.window_s + parameters.orders.longest_horizon_s)
    count = (span_s - cut_s) / features.decision_interval_s
    count = min(count, parameters.orders.most or count) if count > 0 else 0
    shares = {"train": split.train, "validation": split.validation, "test": 1 - split.train - split.validation}
    states = {name: int(count * share) for name, share in shares.items()}
    thinned = max((parameters.orders.test_every_s or 0) / features.decision_interval_s, 1)
    return states | {"test": int(states["test"] / thinned)}


def kept_bytes(parameters: Parameters, shape: Shape, text: Text, bytes_a_number: int) -> int:
    """Host memory of one state that has been read."""
    layers, activated = adapted(parameters, shape), parameters.policy.lora.activated
    token = layers * 2 * shape.kv if activated else shape.width
    return bytes_a_number * (text.state * token + text.cue * shape.width)


def work(parameters: Parameters, shape: Shape, text: Text, bytes_a_number: int) -> dict[str, Work]:
    """What 05, 06 and 07 do, for all assets of a run."""
    training, inference, states = parameters.training, parameters.inference, states_of(parameters)
    assets, seeds = len(parameters.assets), len(training.seeds)
    looked_at = min(training.evaluation_states, states["validation"])
    room = training.memory_gb * 1e9 / kept_bytes(parameters, shape, text, bytes_a_number) - looked_at
    missing = 1 - min(1.0, max(0.0, room) / max(1, states["train"]))  # share of the states that is read again and again

    def trainings(algorithms: list[str]) -> Work:
        """Of one asset."""
        drawn = training.steps * training.states_per_update
        runs = len(algorithms) * seeds
        read = looked_at + states["train"] * (1 + missing) + runs * drawn * missing
        looks = runs * (training.steps // training.evaluate_every + 1) * looked_at
        updates = dict.fromkeys(algorithms, float(seeds * training.steps))
        return _work(parameters, shape, text, read, states["train"] + looks, updates)

    tested = states["test"]
    again, deciding = _again(parameters, shape, text, looked_at, tested)
    across = assets * min(inference.states_across, tested)
    policies = len(training.algorithms) * seeds
    return {
        "05_train": trainings(list(training.algorithms)).times(assets) + again,
        "06_convergence": trainings(list(training.algorithms[:1]))
        + _work(parameters, shape, text, across, across * (assets + 1) * seeds, {}),
        "07_inference": _work(parameters, shape, text, tested, tested * (policies + 1), {}).times(assets) + deciding,
    }


def _again(parameters: Parameters, shape: Shape, text: Text, looked_at: int, tested: int) -> tuple[Work, Work]:
    """What 05 and 07 do for the policy that decides again; nothing where orders are decided on once."""
    policy, training, own = parameters.policy, parameters.training, parameters.sequential
    assets = len({*own.trained} & {*parameters.assets}) if policy.decide_again_s else 0
    decisions = math.ceil(parameters.orders.longest_horizon_s / (policy.decide_again_s or math.inf))
    trainings, asked = 1 + 2 * own.refreshes, own.refreshes * own.states * decisions  # at most: an order a state
    looks = (own.steps // training.evaluate_every + 1) * looked_at
    steps = trainings * own.steps * own.states_per_update / training.states_per_update
    read, passed = trainings * (own.states + looked_at) + asked, trainings * (own.states + looks) + asked * PLACES
    trained = _work(parameters, shape, text, read, passed, {training.algorithms[0]: steps})
    instants = min(own.tested_orders, tested) * decisions
    decided = _work(parameters, shape, text, instants, instants * PLACES, {})
    return trained.times(assets), decided.times(assets)


def memory_gb(parameters: Parameters, shape: Shape, text: Text, number: int) -> float:
    """Peak of 05: base, adapter with its optimiser, and the greater of reading a batch and an update.

    A number has so many bytes. Reading keeps, of every layer, keys, values and what leaves it, and for a moment three
    tensors of the inner width. An update keeps, in the adapter's layers, some forty numbers of the width for each token
    that it learns from.
    """
    policy, training, layers = parameters.policy, parameters.training, adapted(parameters, shape)
    weights = shape.layers * shape.layer * (_NF4_BYTES if policy.four_bit else number) + shape.embeddings * number
    adapter = shape.adapter(layers, policy.lora.rank) * _ADAM_BYTES
    read = BATCH * _length(text) * number * (shape.layers * (2 * shape.kv + shape.width) + 3 * shape.inner)
    part = training.states_per_update // (training.gradient_accumulation * training.processes)
    tokens = part * _tokens_a_pass(parameters, text, part)
    update = tokens * layers * (40 * shape.width + 6 * shape.inner) * number
    update += 3 * part * _length(text) * layers * 2 * shape.kv * number
    return _CONTEXT_GB + (weights + adapter + max(read, update)) / 1e9


def table(parameters: Parameters, shape: Shape, text: Text, machine: Machine, rates: Rates) -> pd.DataFrame:
    """`stage, states, tokens, pflop, hours, dollars`: a row a stage, and one for all."""
    rows = []
    for stage, done in work(parameters, shape, text, machine.bytes_a_number).items():
        hours = seconds(done, rates) / 3600
        rows.append((stage, done.states, done.tokens, done.flops / 1e15, hours, hours * machine.dollars_per_hour))
    stages = pd.DataFrame(rows, columns=["stage", "states", "tokens", "pflop", "hours", "dollars"])
    total = stages.drop(columns="stage").sum().to_frame().T.assign(stage="all")
    return pd.concat([stages, total], ignore_index=True)[stages.columns]


def report(parameters: Parameters, shape: Shape, text: Text, machine: Machine, rates: Rates) -> str:
    """What `hyperdapo plan` prints; raises as `check_memory`."""
    training, states = parameters.training, states_of(parameters)
    wanted = check_memory(parameters, shape, text, machine)
    kept = kept_bytes(parameters, shape, text, machine.bytes_a_number)
    all_gb = kept * (states["train"] + min(training.evaluation_states, states["validation"])) / 1e9
    held = "all are read once" if all_gb <= training.memory_gb else f"the rest is read again: raise it to {all_gb:.0f}"
    rows = table(parameters, shape, text, machine, rates)
    lines = [
        f"{parameters.name} on {machine.name}: {parameters.policy.base_model}, adapters on "
        f"{adapted(parameters, shape)} of {shape.layers} layers",
        f"states of an asset, at most: {', '.join(f'{count} {name}' for name, count in states.items())}",
        f"tokens of a prompt: {text.opening} instruction, {text.state} state, {text.cue} cue",
        f"memory in 05: {wanted:.1f} of {machine.memory_gb:.0f} GB",
        f"states kept by the host: {kept / 1e6:.2f} MB each, {all_gb:.1f} GB for those of an asset; training.memory_gb "
        f"is {training.memory_gb:g}: {held}",
        f"rates {rates.source}, in ms: {rates}",
        rows.to_string(index=False, float_format=lambda value: f"{value:,.2f}"),
        "01 to 04, 08 and 09 need no GPU and are not counted",
    ]
    return "\n".join(lines)


def seconds(done: Work, rates: Rates) -> float:
    """Of a stage, assets one after the other."""
    learnt = sum(count * rates.update_s[algorithm] for algorithm, count in done.updates.items())
    return done.tokens * rates.token_s + done.passed * rates.state_s + learnt


def check_memory(parameters: Parameters, shape: Shape, text: Text, machine: Machine) -> float:
    """GB that 05 wants of a machine.

    Raises
    ------
    HyperdapoError
        If it has less, with what to lower.
    """
    wanted = memory_gb(parameters, shape, text, machine.bytes_a_number)
    if wanted > machine.memory_gb:
        base = "" if parameters.policy.four_bit else "set policy.four_bit: true, "
        raise HyperdapoError(
            f"05_train wants {wanted:.0f} GB and {machine.name} has {machine.memory_gb:.0f}: {base}raise "
            f"training.gradient_accumulation (now {parameters.training.gradient_accumulation}), lower "
            "policy.lora.layers, or take a smaller policy.base_model"
        )
    return wanted


def gpu(name: str) -> Gpu:
    """A device by its name. Raises ParameterError if it is not known."""
    if name not in GPUS:
        raise ParameterError(f"no GPU {name!r}{nearest(name, GPUS)}; there are {', '.join(GPUS)}")
    return GPUS[name]


def _work(
    parameters: Parameters, shape: Shape, text: Text, read: float, passed: float, updates: Mapping[str, float]
) -> Work:
    size, layers = parameters.training.states_per_update, adapted(parameters, shape)
    tokens = read * (text.state + text.cue)
    learnt = size * sum(updates.values()) * 3  # forward, and about twice as much backward
    a_pass = _tokens_a_pass(parameters, text, BATCH) * shape.flops(layers, _length(text))
    flops = tokens * shape.flops(shape.layers, _length(text)) + (passed + learnt) * a_pass
    return Work(read, tokens, passed, updates, flops)


def _tokens_a_pass(parameters: Parameters, text: Text, states: int) -> float:
    """Tokens of one state that a pass moves through the adapter's layers: its cue, or its whole prompt."""
    if parameters.policy.lora.activated:
        return text.cue
    return text.state + text.cue + text.opening / states


def _length(text: Text) -> int:
    return text.opening + text.state + text.cue
