"""Base models, adapters, and the scorer against the plain forward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from hyperdapo.actions import Action
from hyperdapo.errors import ModelError
from hyperdapo.params import load
from hyperdapo.policy import models
from hyperdapo.policy.models import add_adapter, load_base, lora_config, parameter_counts
from hyperdapo.policy.prompts import CUE, instruction, letters
from hyperdapo.policy.scoring import Encodings, Scorer, letter_ids, make_scorer
from planted import elsewhere

SMOKE = load("smoke")
POLICY = SMOKE.policy
ACTIONS = POLICY.actions
OPENING = instruction(ACTIONS)
PROMPTS = [OPENING + body + CUE for body in (" BUY flow7 size4", " SELL BTC at 117245: imbalance1", " BUY spread5")]


@pytest.fixture(scope="module")
def adapted():
    """A tiny Qwen2 whose adapter does something: its second factors are not zero."""
    return with_an_adapter(POLICY)


def with_an_adapter(policy):
    model, tokenizer = load_base(policy)
    adapted = add_adapter(model, policy, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return adapted.eval(), tokenizer


def plain(model, tokenizer, prompt: str) -> torch.Tensor:
    """Log-probabilities of the letters by one ordinary forward pass of PEFT's model."""
    tokens = [tokenizer(part)["input_ids"] for part in (OPENING, prompt[len(OPENING) : -len(CUE)], CUE)]
    logits = model(input_ids=torch.tensor([[*tokens[0], *tokens[1], *tokens[2]]])).logits[0, -1]
    return torch.log_softmax(logits[letter_ids(tokenizer, letters(ACTIONS))].float(), dim=-1)


@pytest.fixture(
    scope="module",
    params=[(None, True), (2, True), (None, False), (2, False)],
    ids=["all layers", "upper layers", "all layers, plain", "upper layers, plain"],
)
def layered(request, tmp_path_factory):
    """A model whose adapter acts on all layers or on the upper two, its scorer, and the same as others load it."""
    layers, activated = request.param
    parameters = load("smoke", {"policy": {"lora": {"layers": layers, "activated": activated}}})
    model, tokenizer = with_an_adapter(parameters.policy)
    others = elsewhere(model, parameters, tmp_path_factory.mktemp("adapter"))
    return model, tokenizer, make_scorer(model, tokenizer, parameters), others


def test_scorer_equals_the_forward_pass_of_peft(layered) -> None:
    model, tokenizer, scorer, others = layered
    with torch.no_grad():
        scored = scorer.log_probabilities(scorer.encode(PROMPTS))
        expected = torch.stack([plain(others, tokenizer, prompt) for prompt in PROMPTS])
    torch.testing.assert_close(scored, expected, atol=1e-5, rtol=1e-5)
    with model.disable_adapter(), torch.no_grad():
        untrained = scorer.log_probabilities(scorer.encode(PROMPTS))
    assert (untrained - scored).abs().max() > 0.01, "the adapter must act"


def test_scorer_has_the_gradient_of_the_forward_pass_of_peft(layered) -> None:
    model, tokenizer, scorer, others = layered
    weights, theirs = (
        {name: weight for name, weight in one.named_parameters() if weight.requires_grad} for one in (model, others)
    )
    assert weights.keys() == theirs.keys()
    loss, expected = scorer.log_probabilities(scorer.encode(PROMPTS[:1]))[0, 0], plain(others, tokenizer, PROMPTS[0])[0]
    ours = torch.autograd.grad(loss, list(weights.values()))
    for one, other in zip(ours, torch.autograd.grad(expected, list(theirs.values())), strict=True):
        assert (one - other).norm() <= 3e-5 * other.norm() + 1e-7, "beyond the rounding of float32"


def test_a_base_reads_the_same_whether_an_adapter_lies_in_it_or_not(adapted) -> None:
    model, tokenizer = adapted
    bare = Scorer(load_base(POLICY)[0], tokenizer, OPENING, letters(ACTIONS))
    inside = Scorer(model.get_base_model(), tokenizer, OPENING, letters(ACTIONS))
    for one, other in ((bare, inside), (bare, inside.through(model))):
        torch.testing.assert_close(one.encode(PROMPTS).memory, other.encode(PROMPTS).memory)


def test_encodings_are_the_same_whether_kept_or_read_again(adapted) -> None:
    model, tokenizer = adapted
    scorer = Scorer(model, tokenizer, OPENING, letters(ACTIONS))
    kept, read_again = Encodings(scorer, PROMPTS, 1.0), Encodings(scorer, PROMPTS, 0.0)
    for rows in ([0, 1, 2], [2, 0], [1]):
        read_again.hold(rows[:1])
        with torch.no_grad():
            first, second = (scorer.log_probabilities(states[rows]) for states in (kept, read_again))
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_only_distinct_actions_have_a_probability(adapted) -> None:
    """Each state's policy is the softmax over its own distinct actions; the others have probability 0, not NaN."""
    scorer = Scorer(*adapted, OPENING, letters(ACTIONS))
    distinct = np.ones((3, len(ACTIONS)), dtype=bool)
    distinct[0, 2], distinct[1, [1, 4]] = False, False
    with torch.no_grad():
        free, bound = (
            scorer.log_probabilities(Encodings(scorer, PROMPTS, 1.0, choice)[[1, 0, 2]]).exp()
            for choice in (None, distinct)
        )
    seen = torch.tensor(distinct[[1, 0, 2]])
    expected = free.where(seen, 0.0)
    torch.testing.assert_close(bound, expected / expected.sum(dim=-1, keepdim=True), atol=1e-5, rtol=1e-5)
    assert (bound[~seen] == 0).all() and torch.isfinite((bound * bound.clamp(min=1e-38).log()).sum())


def test_a_prompt_without_instruction_or_cue_is_refused(adapted) -> None:
    scorer = Scorer(*adapted, OPENING, letters(ACTIONS))
    for prompt in ("BUY flow7" + CUE, OPENING + "BUY flow7"):
        with pytest.raises(ModelError, match="begin with the instruction"):
            scorer.encode([prompt])


def test_a_letter_of_several_tokens_is_refused(adapted) -> None:
    with pytest.raises(ModelError, match="not one"):
        Scorer(*adapted, OPENING, ["A", "liquidation"])


def test_a_fresh_adapter_follows_its_seed_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (add_adapter(load_base(POLICY)[0], POLICY, seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [next(p for n, p in model.named_parameters() if "lora_A" in n) for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_model_that_is_nowhere_names_the_command_that_fetches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    absent = POLICY.model_copy(update={"base_model": "nobody/nothing-at-all"})
    with pytest.raises(ModelError, match="hf download nobody/nothing-at-all"):
        load_base(absent)


@pytest.mark.slow
def test_a_tokenizer_is_had_without_the_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(models, "_convert", lambda *_: pytest.fail("the weights are read"))
    assert models.load_tokenizer("tiny-qwen2").get_vocab() == models.tiny_tokenizer().get_vocab()
    if models._package():
        tokenizer = models.load_tokenizer("smollm2-135m")
        assert tokenizer.pad_token is not None
        assert tokenizer.decode(tokenizer(PROMPTS[1])["input_ids"]) == PROMPTS[1]
    with pytest.raises(ModelError, match="hf download nobody/nothing-at-all"):
        models.load_tokenizer("nobody/nothing-at-all")


def test_tiny_model_and_tokenizer_are_always_the_same() -> None:
    first, second = models.tiny_tokenizer(), models.tiny_tokenizer()
    assert first.get_vocab() == second.get_vocab()
    for one, other in zip(models.tiny_model(first).parameters(), models.tiny_model(second).parameters(), strict=True):
        assert torch.equal(one, other)
    assert np.ndim(letter_ids(first, letters([Action("join")] * 26))) == 1


@pytest.mark.parametrize(
    ("profile", "layers", "shape", "counts"),
    [
        ("thesis", None, (152064, 3584, 18944, 28, 28, 4, False), (10_092_544, 7_615_616_512)),
        ("thesis", 8, (152064, 3584, 18944, 28, 28, 4, False), (8 * 360_448, 7_615_616_512)),
        ("free", 2, (151936, 896, 4864, 24, 14, 2, True), (2 * 90_112, 494_032_768)),
    ],
)
def test_rank_16_on_qwen_trains_so_many_parameters(
    profile: str, layers: int | None, shape: tuple, counts: tuple
) -> None:
    """§4.3.2 prints 10,100,736; rank 16 on q, k, v, o of Qwen2.5-7B gives 10,092,544 of 7,615,616,512 on all layers."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "tie_word_embeddings")
    config = Qwen2Config(**dict(zip(names, shape, strict=True)))
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
        _, total = parameter_counts(base)
        lora = {"policy": {"lora": {"layers": layers}}}
        adapted = get_peft_model(base, lora_config(config, load(profile, lora).policy))
    assert (parameter_counts(adapted)[0], total) == counts
