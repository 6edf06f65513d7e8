"""`dapo_sampled`: TRL's loss against a loop, dynamic sampling, and the private methods of TRL that are replaced."""

import inspect
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer

from hyperdapo.errors import TrainingError
from hyperdapo.policy import losses, runs
from hyperdapo.policy.models import add_adapter, load_base, seeded
from hyperdapo.policy.prompts import letters
from hyperdapo.policy.sampled import SampledTrainer, grpo
from hyperdapo.policy.scoring import Encodings, letter_ids, make_scorer
from hyperdapo.policy.states import pairs_of
from hyperdapo.policy.training import Workbench
from planted import elsewhere, planted_splits, settings

SAMPLED = {
    **{"learning_rate": 0.01, "updates_per_rollout": 4, "clip_low": 0.20, "clip_high": 0.28},
    **{"temperature_bps": 2.0, "entropy_bonus": 0.3, "group_size": 6, "refills": 10},
}
STATES = 24


@pytest.fixture(autouse=True)
def generator():
    """TRL seeds the generators of everybody."""
    with seeded(0):
        yield


def trainer(folder: Path, rewards: np.ndarray | None = None, **changes) -> SampledTrainer:
    """Of the first 24 planted states and the tiny model; a rollout is 16 states, an update 4."""
    parameters = settings(steps=8, states_per_update=4, checkpoint_every=4, dapo_sampled=SAMPLED | changes)
    known = planted_splits(parameters)["train"].select(np.arange(STATES))
    model, tokenizer = load_base(parameters.policy)
    scorer = make_scorer(model, tokenizer, parameters)
    states = Encodings(scorer, known.prompts, 1.0)
    adapted = add_adapter(model, parameters.policy, seed=0)
    shared = runs.arguments(parameters, "dapo_sampled", 0, folder, "test") | {"report_to": "none"}
    order = np.random.default_rng(0).permutation(2 * STATES)[:32] % STATES
    arguments = grpo(parameters.training.dapo_sampled, **shared)
    earned = known.rewards if rewards is None else rewards
    return SampledTrainer(
        adapted, tokenizer, scorer, states, earned, order.tolist(),
        parameters.training.dapo_sampled, arguments, lambda *_: {},
    )  # fmt: skip


def stock(sampler: SampledTrainer, folder: Path, model: PeftModel | None = None) -> GRPOTrainer:
    """TRL's trainer as it is, on the same model and prompts."""
    arguments = grpo(sampler._settings, **runs.arguments(settings(steps=4), "dapo_sampled", 0, folder, "stock"))
    arguments.report_to = []
    data = Dataset.from_dict({"prompt": sampler._states._prompts})
    return GRPOTrainer(
        model or sampler.model, lambda completions, **_: [float(len(one)) for one in completions], arguments, data,
        processing_class=sampler.processing_class,
    )  # fmt: skip


def inputs(sampler: SampledTrainer, rows: list[int]) -> list[dict]:
    """What TRL hands over: every state as often as a group is large."""
    return [{"prompt": str(row), "row": row} for row in rows for _ in range(sampler._settings.group_size)]


def some_that_differ(share: int) -> np.ndarray:
    """Rewards that differ between actions in every `share`-th state only."""
    rewards = np.zeros((STATES, 6))
    rewards[::share] = np.arange(6)
    return rewards


def test_the_loss_is_that_of_a_loop_over_letters(tmp_path: Path) -> None:
    sampler = trainer(tmp_path)
    sampler.model.train()
    sampler.current_gradient_accumulation_steps = 1
    draw = torch.Generator().manual_seed(1)
    rows, actions = torch.arange(4), torch.randint(6, (4, 6), generator=draw)
    policy = sampler._scorer.through(sampler.model).log_probabilities(sampler._states[rows.tolist()]).detach()
    ratios = torch.linspace(0.53, 1.63, 12).repeat(2).view(4, 6)
    advantages = torch.tensor([1.5, -0.7]).repeat_interleave(12).view(4, 6)
    seen = torch.ones_like(actions)
    batch = {"prompt_ids": rows[:, None], "prompt_mask": seen[:, :1], "completion_ids": actions}
    batch |= {"completion_mask": seen, "advantages": advantages}
    batch |= {"old_per_token_logps": policy.gather(1, actions) - ratios.log()}
    loss = sampler.compute_loss(sampler.model, batch | {"num_items_in_batch": torch.tensor(4 * 24)})

    terms, clipped = [], []
    for ratio, advantage in zip(ratios.ravel().tolist(), advantages.ravel().tolist(), strict=True):
        bounded = min(max(ratio, 1 - 0.20), 1 + 0.28)
        terms.append(-min(ratio * advantage, bounded * advantage))
        clipped.append(bounded * advantage < ratio * advantage)
    entropy = -(policy.exp() * policy).sum(dim=-1).mean().item()
    assert any(clipped[:12]) and any(clipped[12:]) and not all(clipped)
    assert loss.item() == pytest.approx(np.mean(terms) - 0.3 * entropy, rel=1e-5)
    measured = sampler.measures(1)
    assert measured["clip_fraction"] == pytest.approx(np.mean(clipped))
    assert measured["entropy"] == pytest.approx(entropy, rel=1e-5)


def test_a_letter_scores_as_trl_scores_it_among_the_letters(tmp_path: Path) -> None:
    """TRL reads the prompt and the letter as text; ours knows the state's number: over K letters both agree."""
    sampler = trainer(tmp_path)
    others = elsewhere(sampler.model, settings(), tmp_path / "adapter")
    peer = stock(sampler, tmp_path / "stock", others)
    tokens = letter_ids(sampler.processing_class, letters(range(6)))
    asked = sampler.processing_class(sampler._states._prompts[:1])["input_ids"][0]
    text = torch.tensor([[*asked, token] for token in tokens])
    theirs, _, _ = peer._get_per_token_logps_and_entropies(others, text, torch.ones_like(text), 1)
    numbers = torch.tensor([[0, *range(6)]])
    ours, entropy, _ = sampler._get_per_token_logps_and_entropies(sampler.model, numbers, torch.ones_like(numbers), 6)
    assert ours.shape == entropy.shape == (1, 6) and theirs.shape == (6, 1)
    torch.testing.assert_close(ours, torch.log_softmax(theirs.T, dim=1), atol=1e-4, rtol=1e-4)


class TestContract:
    """What TRL 1.16 promises about the private methods that `sampled` replaces or reads."""

    def test_names_and_parameters(self) -> None:
        known = {
            "_generate_and_score_completions": ["self", "inputs"],
            "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
            "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        }
        for name, expected in known.items():
            names = list(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name))).parameters)[: len(expected)]
            assert names == expected, f"TRL changed {name}{tuple(names)}: adapt policy/sampled.py, or pin TRL back"

    def test_a_rollout_has_what_trl_puts_into_one(self, tmp_path: Path) -> None:
        sampler = trainer(tmp_path)
        peer = stock(sampler, tmp_path / "stock")
        sampler.model.train()
        asked = [{"prompt": sampler._states._prompts[row]} for row in range(4) for _ in range(6)]
        theirs = peer._generate_and_score_completions(asked)
        ours = sampler._generate_and_score_completions(inputs(sampler, [0, 1, 2, 3]))
        assert ours.keys() == theirs.keys(), "TRL changed what a rollout holds: adapt policy/sampled.py"
        for name, made in ours.items():
            assert made.dtype == theirs[name].dtype, name
        shapes = {name: tuple(made.shape) for name, made in ours.items()}
        assert shapes["prompt_ids"] == shapes["prompt_mask"] == (4, 1)
        wide = ("completion_ids", "completion_mask", "advantages", "old_per_token_logps")
        assert {shapes[name] for name in wide} == {(4, 6)}, "a group is a row, a drawn letter a token"
        assert ours["num_items_in_batch"] == theirs["num_items_in_batch"] == 24

    def test_trl_counts_what_the_log_is_made_of(self, tmp_path: Path) -> None:
        sampler = trainer(tmp_path)
        peer = stock(sampler, tmp_path / "stock")
        peer.model.train()
        peer.current_gradient_accumulation_steps = 1
        asked = [{"prompt": sampler._states._prompts[row]} for row in range(2) for _ in range(6)]
        peer.compute_loss(peer.model, peer._generate_and_score_completions(asked))
        for name in ("entropy", "clip_ratio/region_mean"):
            assert len(peer._metrics["train"][name]) == 1, f"TRL no longer counts {name}: adapt SampledTrainer.measures"

    def test_a_training_goes_through_both_replaced_methods(self, tmp_path: Path, monkeypatch) -> None:
        sampler = trainer(tmp_path)
        called: Counter[str] = Counter()
        for name in ("_generate_and_score_completions", "_get_per_token_logps_and_entropies"):
            method = getattr(sampler, name)
            counted = lambda *a, _n=name, _m=method, **k: called.update([_n]) or _m(*a, **k)  # noqa: E731
            monkeypatch.setattr(sampler, name, counted)
        sampler.train()
        assert called == {"_generate_and_score_completions": 2, "_get_per_token_logps_and_entropies": 8}

    def test_the_base_that_others_share_is_left_as_it_was(self, tmp_path: Path) -> None:
        sampler = trainer(tmp_path)
        assert "forward" not in vars(sampler.model.get_base_model())


def test_letters_are_drawn_as_the_policy_has_them(tmp_path: Path) -> None:
    sampler = trainer(tmp_path, group_size=4000)
    ((row, actions, old),) = sampler._draw([3], np.random.default_rng(0))
    policy = sampler._scorer.through(sampler.model).log_probabilities(sampler._states[[3]])[0].detach()
    share = policy.exp().numpy()
    drawn = np.bincount(actions.numpy(), minlength=6) / 4000
    assert (np.abs(drawn - share) < 4 * np.sqrt(share * (1 - share) / 4000)).all()
    assert row == 3 and torch.equal(old, policy[actions])


def test_groups_without_a_difference_are_refilled_from_other_states(tmp_path: Path) -> None:
    sampler = trainer(tmp_path, some_that_differ(4))
    made = sampler._generate_and_score_completions(inputs(sampler, list(range(16))))
    earned = made["completion_ids"].float()
    assert (made["prompt_ids"] % 4 == 0).all() and earned.shape == (16, 6)
    assert (earned.amax(dim=1) > earned.amin(dim=1)).all(), "the rewards of each group that is kept differ"
    expected = (earned - earned.mean(dim=1, keepdim=True)) / 2.0
    torch.testing.assert_close(made["advantages"], expected)
    assert sampler._filtered >= 12, "at least the twelve of the sixteen without a difference"


def test_refills_follow_from_seed_and_step_alone(tmp_path: Path) -> None:
    sampler, other = (trainer(tmp_path, some_that_differ(4)) for _ in range(2))
    wanted = inputs(sampler, list(range(16)))
    first, second = sampler._generate_and_score_completions(wanted), sampler._generate_and_score_completions(wanted)
    again = other._generate_and_score_completions(wanted)
    sampler.state.global_step = 4
    later = sampler._generate_and_score_completions(wanted)
    for name in ("prompt_ids", "completion_ids"):
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], again[name])
        assert not torch.equal(first[name], later[name])


def test_refills_are_bounded(tmp_path: Path) -> None:
    sampler = trainer(tmp_path, np.ones((STATES, 6)), refills=5)
    drawn: list[int] = []
    draw = sampler._draw
    sampler._draw = lambda rows, rng: drawn.append(len(rows)) or draw(rows, rng)  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="all 80 groups that dapo_sampled drew at step 0 were filtered"):
        sampler.train()
    assert sum(drawn) == 5 * 16


def test_groups_are_used_more_than_once_where_the_bound_leaves_too_few(tmp_path: Path) -> None:
    sampler = trainer(tmp_path, some_that_differ(STATES), refills=2)
    made = sampler._generate_and_score_completions(inputs(sampler, list(range(16))))
    assert made["prompt_ids"].shape == (16, 1) and (made["prompt_ids"] == 0).all()


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    rewards = some_that_differ(1)
    rewards[:, 0] = -np.inf
    with pytest.raises(TrainingError, match=r"not finite at step 1: lower training.dapo_sampled.learning_rate"):
        trainer(tmp_path, rewards).train()


@pytest.mark.slow
def test_it_learns_more_than_the_best_fixed_action_and_clips(tmp_path: Path) -> None:
    """In the planted world no fixed action earns anything: what is earned comes from the state."""
    parameters = settings(steps=60, dapo_sampled=SAMPLED)
    known = planted_splits(parameters)
    bench = Workbench(parameters, "BTC", known["train"], known["validation"])
    bench.train("dapo_sampled", 0, tmp_path, lambda _: None)
    log = pd.read_csv(tmp_path / runs.LOG)
    last = log.iloc[-1]
    assert last["heldout_reward"] > last["heldout_best_fixed"] + 2.0
    updates = log[log["step"] > 0]
    assert updates["clip_fraction"].max() > 0 and (updates["clip_fraction"].iloc[::4] == 0).all()


def test_full_information_is_trls_loss_where_each_action_is_drawn_once(tmp_path: Path) -> None:
    """The surrogate of `dapo` on a uniform rollout policy, against TRL's loss `dapo` on groups of all K actions."""
    sampler = trainer(tmp_path, entropy_bonus=0.0)
    sampler.model.train()
    sampler.current_gradient_accumulation_steps = 1
    rows, draw = [0, 1, 2, 3], torch.Generator().manual_seed(3)
    for name, weight in sampler.model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=draw) / 4
    old = torch.full((4, 6), 1 / 6).log()
    rewards = 5 * torch.randn(4, 6, generator=draw)
    advantage = losses.advantages(rewards, old, 2.0)
    actions, seen = torch.arange(6).repeat(4, 1), torch.ones(4, 6, dtype=torch.long)
    batch = {"prompt_ids": torch.tensor(rows)[:, None], "prompt_mask": seen[:, :1], "completion_ids": actions}
    batch |= {"completion_mask": seen, "advantages": advantage, "old_per_token_logps": old}
    theirs = sampler.compute_loss(sampler.model, batch | {"num_items_in_batch": torch.tensor(4 * 24)})
    policy = sampler._scorer.through(sampler.model).log_probabilities(sampler._states[rows])
    ours = losses.clipped_surrogate(policy, old, advantage, 0.20, 0.28)
    assert ours.clip_fraction > 0
    torch.testing.assert_close(ours.loss, theirs)
    weights = [weight for weight in sampler.model.parameters() if weight.requires_grad]
    for one, other in zip(*(torch.autograd.grad(loss, weights) for loss in (ours.loss, theirs)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_preference_is_trls_dpo(tmp_path: Path) -> None:
    """The loss of TRL's `DPOTrainer` on the letters as text, without the end of text that it adds."""
    sampler = trainer(tmp_path)
    draw = torch.Generator().manual_seed(4)
    prompts, names = sampler._states._prompts[:4], letters(range(6))
    rewards = torch.randn(4, 6, generator=draw)
    data = {"prompt": prompts, "chosen": [f" {names[k]}" for k in rewards.argmax(1)]}
    data |= {"rejected": [f" {names[k]}" for k in rewards.argmin(1)]}
    arguments = DPOConfig(str(tmp_path / "dpo"), beta=0.5, use_cpu=True, bf16=False, report_to=[])
    others = elsewhere(sampler.model, settings(), tmp_path / "adapter")
    peer = DPOTrainer(
        others, args=arguments, train_dataset=Dataset.from_dict(data), processing_class=sampler._tokenizer
    )
    theirs_by_name = dict(others.named_parameters())
    for name, weight in sampler.model.named_parameters():
        if "lora_B.default" in name:
            weight.data = torch.randn(weight.shape, generator=draw) / 4
            theirs_by_name[name].data = weight.data.clone()
    batch = peer.data_collator([peer.train_dataset[row] for row in range(4)])
    ends = batch["input_ids"] == sampler._tokenizer.eos_token_id
    batch["completion_mask"] = batch["completion_mask"].masked_fill(ends, 0)
    assert (batch["completion_mask"].sum(dim=1) == 1).all()
    theirs = peer.compute_loss(peer.model, batch)
    with torch.no_grad(), sampler.model.disable_adapter():
        reference = sampler._scorer.log_probabilities(sampler._states[[0, 1, 2, 3]])
    policy = sampler._scorer.through(sampler.model).log_probabilities(sampler._states[[0, 1, 2, 3]])
    pairs = torch.tensor(pairs_of("dpo_one_pair", rewards.numpy(), np.ones((4, 6), dtype=bool), seed=0))
    ours = losses.preference(policy, reference, pairs.float(), 0.5).loss
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
