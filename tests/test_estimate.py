"""What `hyperdapo plan` counts: against the code that does it, and against the clock."""

import re
from dataclasses import replace
from pathlib import Path
from time import process_time

import pytest
import torch
from transformers import Qwen2Config

from conftest import REPOSITORY
from hyperdapo import cli
from hyperdapo.errors import HyperdapoError
from hyperdapo.params import load
from hyperdapo.policy.models import add_adapter, load_base, parameter_counts
from hyperdapo.policy.scoring import Encodings, make_scorer
from hyperdapo.policy.training import Workbench
from hyperdapo.sequential.states import PLACES
from hyperdapo.workflow import estimate, probe
from hyperdapo.workflow.estimate import GPUS, SHAPES, Machine, Rates, Shape, Text

THESIS = load("thesis")
QWEN = SHAPES["Qwen/Qwen2.5-7B"]
TEXT = Text(opening=79, state=43, cue=1)
A100 = Machine("a100-40", 40, 1.3, 2)
PER_TOKEN = Rates(1.0, 0.0, dict.fromkeys(THESIS.training.algorithms, 0.0), "a second a token")


def test_known_shapes_count_the_weights_that_the_models_have() -> None:
    """7,615,616,512 and 494,032,768: those of transformers, less norms and biases."""
    for base, total in (("Qwen/Qwen2.5-7B", 7_615_616_512), ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768)):
        shape = SHAPES[base]
        counted = shape.layers * shape.layer + shape.embeddings
        assert 0 < total - counted < 1e-3 * total
    assert QWEN.adapter(28, 16) == 10_092_544
    config = Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    assert Shape.of(config) == QWEN


def test_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    policy = load("rehearsal", {"policy": {"four_bit": False}}).policy
    model, _ = load_base(policy)
    model.set_attn_implementation("eager")  # whose attention is counted too
    tokens = torch.zeros(2, 50, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model(input_ids=tokens)
    expected = 2 * 50 * Shape.of(model.config).flops(28, 50)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("activated", [True, False])
def test_a_kept_state_is_as_large_as_is_said(activated: bool) -> None:
    parameters = load("rehearsal", {"policy": {"lora": {"activated": activated}}})
    model, tokenizer = load_base(parameters.policy)
    scorer, states = make_scorer(model, tokenizer, parameters), probe._states(parameters, 4)
    encodings = Encodings(scorer, states.prompts, 1.0)
    said = estimate.kept_bytes(parameters, Shape.of(model.config), probe.text_of(parameters), 4)
    assert encodings.nbytes / 4 == pytest.approx(said, rel=0.01)
    assert len(encodings._kept) == 4


def test_memory_is_shared_by_what_is_learned_from_and_what_is_looked_at() -> None:
    """`training.memory_gb` counts both, and no more of the training states are kept than it leaves room for."""
    parameters = load("smoke", {"training": {"evaluation_states": 32}})
    states = probe._states(parameters, 96)
    whole = Workbench(parameters, "BTC", states, states)
    a_state = whole._held_out.nbytes / 32
    room = {"memory_gb": 64.5 * a_state / 1e9}
    tight = parameters.model_copy(update={"training": parameters.training.model_copy(update=room)})
    bench = Workbench(tight, "BTC", states, states)
    assert len(bench._held_out._kept) == 32 and len(bench.states._kept) == 64, "a batch of 32 more than there is room"
    assert torch.equal(bench.reference, whole.reference), "read again, the same"


def test_the_thesis_reads_each_state_once_where_memory_reaches() -> None:
    states = estimate.states_of(THESIS)
    assert states == {"train": 60_000, "validation": 10_000, "test": 30_000}
    once = estimate.work(THESIS, QWEN, TEXT, 2)["05_train"]
    assert once.states == 4 * (60_000 + 512), "all runs of an asset share one reading"
    assert once.updates == dict.fromkeys(THESIS.training.algorithms, 4 * 3 * 5000)
    assert estimate.seconds(once, PER_TOKEN) == once.states * 44
    nothing = THESIS.model_copy(update={"training": THESIS.training.model_copy(update={"memory_gb": 0})})
    again = estimate.work(nothing, QWEN, TEXT, 2)["05_train"]
    runs = len(THESIS.training.algorithms) * 3
    assert again.states == 4 * (512 + 2 * 60_000 + runs * 5000 * 32), "once in an update"


def test_the_cost_that_the_readme_names_is_that_of_the_plan() -> None:
    said = re.search(r"about (\d+) hours and (\d+) dollars", (REPOSITORY / "README.md").read_text())
    rates = estimate.rates_of(GPUS["a100-40"], THESIS, QWEN, TEXT)
    planned = estimate.table(THESIS, QWEN, TEXT, A100, rates).iloc[-1]
    assert said and [*map(int, said.groups())] == [round(planned["hours"]), round(planned["dollars"])]


def test_states_are_those_of_sample() -> None:
    """2,448 decision times of 8 hours are warm and not cut out between the splits; of the test each twelfth."""
    hours = {"source": {"to": "2025-08-01T08:00:00Z"}}
    every, few = (estimate.states_of(load("sample", hours | {"orders": {"test_every_s": s}})) for s in (None, 120))
    assert sum(every.values()) == pytest.approx(2448, abs=2)
    assert few == every | {"test": every["test"] // 12}


def test_a_policy_that_decides_again_is_planned_for() -> None:
    """Of BTC alone: 400 states are read to learn from, and 6 instants of each of 60 orders to decide."""
    once, again = (
        estimate.work(load("sample", {"policy": {"decide_again_s": every_s}}), QWEN, TEXT, 2) for every_s in (None, 10)
    )
    looked_at = min(120, estimate.states_of(load("sample"))["validation"])
    assert again["05_train"].states - once["05_train"].states == 400 + looked_at
    assert again["05_train"].updates["dapo"] - once["05_train"].updates["dapo"] == 1000 * 64 / 16
    assert again["07_inference"].states - once["07_inference"].states == 60 * 6
    assert again["06_convergence"] == once["06_convergence"]
    assert len(PLACES) == estimate.PLACES


@pytest.mark.parametrize("profile", ["sample", "notices"])
def test_a_probe_reads_prompts_of_the_profile_s_own_style(profile: str) -> None:
    parameters = load(profile)
    states = probe._states(parameters, 8)
    assert all(prompt.startswith(probe._opening(parameters)) and prompt.endswith(" ->") for prompt in states.prompts)
    assert ("For me this news is" in states.prompts[0]) == (profile == "notices")


def test_a_plain_adapter_passes_whole_prompts() -> None:
    plain = load("thesis", {"policy": {"lora": {"activated": False}}})
    rates, cue = (estimate.rates_of(GPUS["a100-40"], one, QWEN, TEXT) for one in (plain, THESIS))
    assert rates.state_s > 5 * cue.state_s and rates.token_s == cue.token_s


def test_what_does_not_fit_is_refused_with_what_to_lower(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = estimate.check_memory(THESIS, QWEN, TEXT, A100)
    assert 6 < wanted < 12, "Qwen2.5-7B in 4 bits is 5.5 GB"
    sixteen = load("thesis", {"policy": {"four_bit": False}})
    with pytest.raises(HyperdapoError, match=r"rtx4090-8 has 8: set policy\.four_bit: true, raise training\.grad"):
        estimate.check_memory(sixteen, QWEN, TEXT, Machine("rtx4090-8", 8, 0.3, 2))
    larger = replace(QWEN, layers=80, width=8192, inner=28672, query=8192)
    with pytest.raises(HyperdapoError, match=r"a100-40 has 40: raise .*lower policy\.lora\.layers, or take a smaller"):
        estimate.check_memory(THESIS, larger, TEXT, A100)
    assert cli.main(["plan", "--profile", "thesis", "--gpu", "a10-40"]) == 1
    assert "did you mean 'a100-40'" in capsys.readouterr().err
    assert cli.main(["plan", "--profile", "thesis"]) == 1
    assert "--calibrate to measure this one" in capsys.readouterr().err


@pytest.mark.slow
def test_the_plan_of_the_thesis_says_states_tokens_memory_hours_and_dollars(capsys) -> None:
    assert cli.main(["plan", "--profile", "thesis", "--gpu", "a100-40"]) == 0
    said = capsys.readouterr().out
    for part in ("60000 train", "all are read once", "not measured", "pflop", "hours", "dollars", "05_train", "all"):
        assert part in said, part


@pytest.mark.slow
def test_the_clock_agrees_with_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """05 of one asset that decides once, shortened, with the base of `sample`: within a factor of 1.5.

    In seconds of the processor, so that what else runs on the machine counts for neither.
    """
    budget = {"algorithms": ["dapo", "dpo"], "seeds": [0], "steps": 60, "evaluate_every": 20, "evaluation_states": 60}
    parameters = load("sample", {"assets": ["BTC"], "training": budget, "policy": {"decide_again_s": None}})
    training, held_out = probe._states(parameters, 160), probe._states(parameters, 60)
    monkeypatch.setattr(estimate, "states_of", lambda _: {"train": 160, "validation": 60, "test": 0})
    shape, text = probe.shape_of(parameters), probe.text_of(parameters)
    monkeypatch.setattr(probe, "perf_counter", process_time)
    rates = probe.measure(parameters)
    planned = estimate.seconds(estimate.work(parameters, shape, text, 4)["05_train"], rates)
    bench = Workbench(parameters, "BTC", training, held_out)
    _ = bench.scorer
    begun = process_time()
    bench.read()
    for algorithm in parameters.training.algorithms:
        bench.train(algorithm, 0, tmp_path / algorithm, lambda looked: None)
    took = process_time() - begun
    print(f"{planned:.1f} s planned, {took:.1f} s taken")
    assert 1 / 1.5 < planned / took < 1.5, f"{planned:.1f} s planned, {took:.1f} s taken"


def test_the_adapter_of_a_plan_is_that_of_peft() -> None:
    policy = load("rehearsal", {"policy": {"four_bit": False}}).policy
    model, _ = load_base(policy)
    counted = Shape.of(model.config).adapter(8, policy.lora.rank)
    assert parameter_counts(add_adapter(model, policy, 0))[0] == counted
