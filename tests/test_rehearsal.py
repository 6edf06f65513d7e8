"""The profile `rehearsal` is the thesis's run, but for the source, the width of the base, and how much of all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hyperdapo.params import load
from hyperdapo.policy import models
from hyperdapo.policy.adapters.manifest import Manifest
from hyperdapo.policy.losses import settings_of
from hyperdapo.policy.scoring import make_scorer
from hyperdapo.policy.training import Workbench
from hyperdapo.workflow import probe
from hyperdapo.workflow.estimate import SHAPES, Shape
from smoke import Run, assert_whole

SCALED = {
    *("profile", "name", "assets", "source.kind", "source.endpoint", "source.start", "source.end"),
    *("orders.most", "orders.weight_trials", "truth.hours", "policy.base_model", "evidence.block_s"),
    *("training.seeds", "training.steps", "training.checkpoint_every", "training.evaluate_every"),
    *("training.evaluation_states", "training.memory_gb", "inference.states_across"),
    *("inference.latency_decisions", "inference.latency_s"),
}
"""What may differ: source and span, the base, and counts; blocks of time are as long as the span allows."""


def leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key."""
    if isinstance(values, dict):
        for key, below in values.items():
            yield from leaves(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, values


def test_every_other_key_is_that_of_the_thesis() -> None:
    rehearsal, thesis = (dict(leaves(load(profile).model_dump())) for profile in ("rehearsal", "thesis"))
    assert rehearsal.keys() == thesis.keys()
    assert {key for key, value in thesis.items() if rehearsal[key] != value} <= SCALED


def test_learning_rates_of_the_thesis_go_as_far_as_those_that_were_searched() -> None:
    """Rate times updates is that of `base.yaml`."""
    base, thesis = load("sample").training, load("thesis").training
    for algorithm in thesis.algorithms:
        far, also = (one.steps * settings_of(algorithm, one)["learning_rate"] for one in (base, thesis))
        assert also == pytest.approx(far, rel=0.05), algorithm


def test_its_base_has_the_layers_and_heads_of_the_thesis() -> None:
    config, thesis = models.config_of(load("rehearsal").policy), SHAPES["Qwen/Qwen2.5-7B"]
    shape = Shape.of(config)
    assert config.model_type == "qwen2" and (config.num_attention_heads, config.num_key_value_heads) == (28, 4)
    assert (shape.layers, shape.tied) == (thesis.layers, thesis.tied) and thesis.width == 56 * shape.width


@pytest.mark.parametrize("profile", ["smoke", pytest.param("rehearsal", marks=pytest.mark.slow)])
def test_in_4_bits_a_base_is_quantised_and_an_adapter_learns(profile: str, tmp_path: Path) -> None:
    """On CPUs too, where bitsandbytes has a format for inference that has no gradient."""
    budget = {"steps": 4, "evaluate_every": 4, "checkpoint_every": 4, "evaluation_states": 4}
    parameters = load(profile, {"policy": {"four_bit": True}, "training": budget})
    states = probe._states(parameters, 32)
    bench = Workbench(parameters, "BTC", states, states)
    base = bench._base[0]
    assert type(base.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    whole = models.load_base(parameters.policy.model_copy(update={"four_bit": False}))
    exact = make_scorer(*whole, parameters)
    with torch.no_grad():
        unquantised = exact.log_probabilities(exact.encode(states.prompts))
    assert not torch.equal(bench.reference, unquantised), "policy.four_bit changes nothing"
    bench.train("dapo", 0, tmp_path, lambda looked: None)
    assert Manifest.read(tmp_path / "adapter").four_bit
    log = pd.read_csv(tmp_path / "training_log.csv")
    assert (log["grad_norm"].dropna() > 0).all() and np.isfinite(log["loss"].dropna()).all()


@pytest.mark.slow
def test_all_notebooks_are_rendered(tmp_path: Path) -> None:
    """One asset and the shortest trainings: the whole profile takes minutes."""
    run = Run(tmp_path / "rehearsal", {"assets": ["BTC"], "training": {"seeds": [0], "steps": 4}}, profile="rehearsal")
    run.finish()
    assert_whole(run, 1)
    cards = sorted((run.derived / "models").rglob("README.md"))
    assert len(cards) == len(load("rehearsal").training.algorithms) + 1, "one beside each adapter"
    for card in cards:
        text = card.read_text()
        assert "rehearsal-qwen2" in text and "held-out" in text and str(tmp_path) not in text
