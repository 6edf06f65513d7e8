"""How long decisions take, in each precision, and what coarser weights decide."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hyperdapo.evidence.metrics import latency_quantiles
from hyperdapo.params import Parameters, load
from hyperdapo.policy.models import load_base, seeded
from hyperdapo.policy.path import backends, latency
from hyperdapo.policy.prompts import encode_states, instruction
from hyperdapo.policy.states import States
from test_path import COUNT, adapter, states

PARAMETERS = load("smoke", {"inference": {"latency_decisions": 20, "latency_s": 60}})


def to_decide(parameters: Parameters) -> tuple[pd.DataFrame, States]:
    """Features and states of random orders, with rewards."""
    features, parents, distinct = states(parameters)
    prompts = encode_states(features, parents, parameters.policy.actions, parameters.policy.prompt_style)
    rewards = np.random.default_rng(2).normal(size=distinct.shape)
    return features, States(parents.assign(asset="ETH", decision_ns=0), prompts, rewards, distinct)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[latency.Measured]:
    folder = adapter(PARAMETERS, tmp_path_factory.mktemp("adapter"))
    yield latency.measure(PARAMETERS, folder, *to_decide(PARAMETERS))


def test_every_backend_is_timed_part_by_part(measured: latency.Measured) -> None:
    table = latency_quantiles(measured.latency)
    scored = table[table["mode"] == latency.SCORE]
    assert scored["backend"].unique().tolist() == backends.available(PARAMETERS)
    assert (scored.groupby("backend").size() == 4).all() and (scored["decisions"] == 20).all()
    assert (table["p50_ms"] <= table["p90_ms"]).all() and (table["p90_ms"] <= table["p99_ms"]).all()
    times = measured.latency[measured.latency["backend"] == backends.INT8].groupby("part")["ms"].sum()
    assert times.drop(latency.TOTAL).sum() == pytest.approx(times[latency.TOTAL])
    assert set(latency.GENERATED) <= set(table["mode"])


def test_coarser_weights_are_smaller(measured: latency.Measured) -> None:
    table = measured.precisions.set_index("backend")
    assert table.loc[backends.FLOAT32, ["agreement", "minus_own_bps"]].tolist() == [1.0, 0.0]
    assert table.loc[backends.NF4, "size_mb"] < table.loc[backends.INT8, "size_mb"] < table.loc["float32", "size_mb"]
    assert table["agreement"].between(0, 1).all() and (table["decisions"] == COUNT).all()
    assert (table["minus_own_bps"][table["agreement"] == 1.0] == 0.0).all()


def test_many_are_decided_together(measured: latency.Measured) -> None:
    assert measured.throughput["batch"].tolist() == list(latency.BATCHES)
    assert (measured.throughput["decisions_per_measured_s"] > 0).all()


def test_a_coarser_layer_is_nearly_the_layer() -> None:
    """Relative errors of a layer of Gaussian weights: int8 about a hundredth, NF4 about a tenth."""
    with seeded(0):
        layer, entering = nn.Linear(256, 128), torch.randn(64, 256)
    exact = layer(entering)
    for backend, (least, most) in {backends.INT8: (1e-3, 0.03), backends.NF4: (0.05, 0.15)}.items():
        layers = nn.Sequential(deepcopy(layer))
        backends._CONVERSIONS[backend](SimpleNamespace(model=layers))
        with torch.inference_mode():
            assert least < ((layers(entering) - exact).norm() / exact.norm()).item() < most, backend


def test_the_finer_the_weights_the_nearer_the_probabilities(tmp_path: Path) -> None:
    folder, prompts = adapter(PARAMETERS, tmp_path), to_decide(PARAMETERS)[1].prompts
    decided = {}
    for name in backends.available(PARAMETERS):
        with backends.open_path(name, PARAMETERS, folder) as (path, _):
            decided[name] = path.probabilities_of(prompts)
    errors = [np.abs(found - decided[backends.FLOAT32]).mean() for found in decided.values()]
    assert errors == sorted(errors) and errors[0] == 0.0 < errors[1]


def test_the_time_ends_it(tmp_path: Path) -> None:
    hurried = load("smoke", {"inference": {"latency_decisions": 20, "latency_s": 1e-6}})
    table = latency_quantiles(latency.measure(hurried, None, *to_decide(hurried)).latency)
    assert (table["decisions"] == 1).all()


def test_a_policy_of_four_bits_has_no_finer_weights() -> None:
    four_bits = load("smoke", {"policy": {"four_bit": True}})
    assert backends.available(four_bits) == [backends.NF4]


def test_text_is_that_of_a_base_which_has_not_read_the_instruction() -> None:
    base, tokenizer = load_base(PARAMETERS.policy)
    writer = latency.Writer(base, tokenizer, instruction(PARAMETERS.policy.actions))
    for prompt in to_decide(PARAMETERS)[1].prompts[:3]:
        ids = tokenizer([prompt], return_tensors="pt")
        with torch.inference_mode():
            plain = base.generate(**ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
        assert writer.write(prompt, 6) == tokenizer.decode(plain[0, -6:])
