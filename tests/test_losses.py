"""The losses against reference loops of ten lines."""

import math

import numpy as np
import pytest
import torch

from hyperdapo.params import load
from hyperdapo.policy.losses import (
    LOSSES,
    Batch,
    adaptive_clip,
    advantages,
    clipped_preference,
    clipped_surrogate,
    entropy,
    has_signal,
    preference,
    reward_cross_entropy,
)
from hyperdapo.policy.scoring import _NEVER
from hyperdapo.policy.states import pairs_of

LOW, HIGH = 0.20, 0.28


def draw(seed: int, n: int = 12, k: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    new, old = (torch.log_softmax(torch.randn(n, k, generator=generator), dim=-1) for _ in range(2))
    return new, old, 10 * torch.randn(n, k, generator=generator)


def reference(new: torch.Tensor, old: torch.Tensor, rewards: torch.Tensor, temperature: float) -> float:
    """The loss of DAPO, state by state and action by action."""
    total = 0.0
    for state in range(len(new)):
        expected = sum(math.exp(old[state, a]) * rewards[state, a] for a in range(new.shape[1]))
        for action in range(new.shape[1]):
            advantage = (rewards[state, action] - expected) / temperature
            ratio = math.exp(new[state, action] - old[state, action])
            clipped = min(max(ratio, 1 - LOW), 1 + HIGH)
            total += math.exp(old[state, action]) * min(ratio * advantage, clipped * advantage)
    return -float(total) / len(new)


@pytest.mark.parametrize("seed", range(5))
def test_surrogate_equals_the_reference_loop(seed: int) -> None:
    new, old, rewards = draw(seed)
    surrogate = clipped_surrogate(new, old, advantages(rewards, old, 8.0), LOW, HIGH)
    assert surrogate.loss.item() == pytest.approx(reference(new, old, rewards, 8.0), rel=1e-4)
    assert 0 < surrogate.clip_fraction < 1


def test_expected_advantage_is_zero_in_every_state() -> None:
    _, old, rewards = draw(0)
    torch.testing.assert_close(
        (old.exp() * advantages(rewards, old, 2.0)).sum(dim=-1), torch.zeros(12), atol=1e-5, rtol=0
    )


def test_advantages_ignore_what_all_actions_have_in_common() -> None:
    _, old, rewards = draw(1)
    torch.testing.assert_close(
        advantages(rewards, old, 2.0), advantages(rewards + 100.0, old, 2.0), atol=1e-4, rtol=1e-4
    )


def test_nothing_is_clipped_on_the_rollout_policy_itself() -> None:
    _, old, rewards = draw(2)
    surrogate = clipped_surrogate(old, old, advantages(rewards, old, 2.0), LOW, HIGH)
    assert surrogate.clip_fraction == 0
    assert surrogate.loss.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("shift", "advantage", "moves"), [(0.5, 1, False), (-0.5, 1, True), (0.5, -1, True), (-0.5, -1, False)]
)
def test_clipping_is_pessimistic_for_both_signs(shift: float, advantage: int, moves: bool) -> None:
    """Beyond the bound the gradient ends only where going on would look like a gain (eq. 2.8's max undid that)."""
    new = torch.full((1, 1), shift, requires_grad=True)
    clipped_surrogate(new, torch.zeros(1, 1), torch.full((1, 1), float(advantage)), LOW, HIGH).loss.backward()
    assert new.grad is not None and bool(new.grad.abs().item() > 0) is moves


def test_upper_bound_is_higher_than_the_lower() -> None:
    old, gain = torch.zeros(1, 1), torch.ones(1, 1)
    ratio = torch.tensor([[1.25]]).log()
    assert clipped_surrogate(ratio, old, gain, LOW, HIGH).clip_fraction == 0
    assert clipped_surrogate(ratio, old, gain, LOW, 0.20).clip_fraction == 1


def test_entropy_is_that_of_the_uniform_policy_at_most() -> None:
    assert entropy(torch.full((3, 6), math.log(1 / 6))).item() == pytest.approx(math.log(6))
    new, _, _ = draw(3)
    assert entropy(new).item() < math.log(6)


def test_states_without_a_difference_have_no_signal() -> None:
    assert has_signal(torch.tensor([[1.0, 1.0], [1.0, 2.0]])).tolist() == [False, True]


def one_pair(rewards: torch.Tensor) -> torch.Tensor:
    """(n, K, K) the best action of each state against the worst."""
    weights = torch.zeros(*rewards.shape, rewards.shape[1])
    weights[torch.arange(len(rewards)), rewards.argmax(dim=-1), rewards.argmin(dim=-1)] = 1.0
    return weights


def all_pairs(rewards: torch.Tensor, distinct: torch.Tensor | None = None) -> torch.Tensor:
    known = np.ones(rewards.shape, dtype=bool) if distinct is None else distinct.numpy()
    return torch.tensor(pairs_of("dpo", rewards.numpy(), known, seed=0), dtype=torch.float32)


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def compared(rewards: list[float]) -> list[tuple[int, int]]:
    """All ordered pairs of a state of which the first earned more."""
    return [(a, b) for a in range(len(rewards)) for b in range(len(rewards)) if rewards[a] > rewards[b]]


def with_ties(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards of which two or three tie in every state."""
    return rewards.clamp(min=rewards.median(dim=-1, keepdim=True).values)


@pytest.mark.parametrize("seed", range(3))
def test_preference_equals_the_reference_loop(seed: int) -> None:
    """Each pair that differs counts, those of a state alike, and each state as much as any other."""
    new, base, rewards = draw(seed)
    rewards = with_ties(rewards)
    total = 0.0
    for state in range(len(new)):
        gain = (new - base)[state].tolist()
        pairs = compared(rewards[state].tolist())
        assert len(pairs) < 15
        total -= sum(log_sigmoid(0.5 * (gain[a] - gain[b])) for a, b in pairs) / len(pairs)
    measured = preference(new, base, all_pairs(rewards), 0.5)
    assert measured.loss.item() == pytest.approx(total / len(new), rel=1e-4)


def test_one_pair_is_the_papers_loss() -> None:
    new, base, rewards = draw(0)
    gain, rows = new - base, torch.arange(len(new))
    margin = gain[rows, rewards.argmax(dim=-1)] - gain[rows, rewards.argmin(dim=-1)]
    expected = -torch.nn.functional.logsigmoid(0.5 * margin).mean()
    torch.testing.assert_close(preference(new, base, one_pair(rewards), 0.5).loss, expected)


@pytest.mark.parametrize("seed", range(3))
def test_clipped_preference_equals_the_reference_loop(seed: int) -> None:
    new, old, rewards = draw(seed)
    rewards = with_ties(rewards)
    low, high = torch.full((len(new), 1), LOW), torch.full((len(new), 1), HIGH)
    low[0], high[0] = LOW / 2, HIGH / 3
    total, cut = 0.0, 0.0
    for state in range(len(new)):
        ratio = (new - old)[state].exp().tolist()
        pairs = compared(rewards[state].tolist())
        for a, b in pairs:
            won, lost = min(ratio[a], 1 + high[state].item()), max(ratio[b], 1 - low[state].item())
            total -= log_sigmoid(0.5 * (math.log(won) - math.log(lost))) / len(pairs)
            cut += (ratio[a] > won or ratio[b] < lost) / len(pairs)
    result = clipped_preference(new, old, all_pairs(rewards), 0.5, low, high)
    assert result.loss.item() == pytest.approx(total / len(new), rel=1e-4)
    assert result.clip_fraction == pytest.approx(cut / len(new))


def test_a_preference_that_is_won_and_lost_beyond_both_bounds_moves_nothing() -> None:
    new = torch.tensor([[0.5, -0.5]], requires_grad=True)
    low, high = torch.tensor([[LOW]]), torch.tensor([[HIGH]])
    clipped_preference(new, torch.zeros(1, 2), all_pairs(torch.tensor([[1.0, 0.0]])), 0.1, low, high).loss.backward()
    assert new.grad is not None and not new.grad.any()


def test_clip_shrinks_with_the_divergence_of_each_state_as_equation_3_5_has_it() -> None:
    new, old, _ = draw(4)
    bounds = adaptive_clip(HIGH, new, old, 2.0)
    for state in range(len(new)):
        divergence = sum(math.exp(old[state, a]) * (old[state, a] - new[state, a]).item() for a in range(new.shape[1]))
        assert bounds[state].item() == pytest.approx(HIGH * math.exp(-2.0 * divergence), rel=1e-4)
    assert (adaptive_clip(HIGH, old, old, 2.0) == HIGH).all()


def test_reward_weighted_equals_the_reference_loop() -> None:
    new, _, rewards = draw(5)
    total = 0.0
    for state in range(len(new)):
        exponents = [math.exp(reward / 2.0) for reward in rewards[state].tolist()]
        total -= sum(e / sum(exponents) * new[state, a].item() for a, e in enumerate(exponents))
    assert reward_cross_entropy(new, rewards, 2.0).loss.item() == pytest.approx(total / len(new), rel=1e-4)


@pytest.mark.parametrize("algorithm", LOSSES)
def test_an_action_that_is_not_distinct_counts_for_nothing(algorithm: str) -> None:
    """The last of six actions is the order of the first: the loss, and the gradient, are those of the other five."""
    training, (logits, old_logits, rewards) = load("smoke").training, draw(6)
    base = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7))
    rewards[:, 5] = rewards[:, 0]
    distinct = torch.ones(rewards.shape, dtype=torch.bool)
    distinct[:, 5] = False
    measured = []
    for actions in (6, 5):
        made = logits[:, :actions].clone().requires_grad_()
        new, old, reference = (
            torch.log_softmax(each[:, :actions].masked_fill(~distinct[:, :actions], _NEVER), dim=-1)
            for each in (made, old_logits, base)
        )
        seen = distinct[:, :actions]
        pairs = pairs_of(algorithm, rewards[:, :actions].numpy(), seen.numpy(), seed=0)
        batch = Batch(new, old, reference, rewards[:, :actions], torch.tensor(pairs, dtype=torch.float32), seen)
        loss = LOSSES[algorithm](batch, training).loss
        measured.append((loss.item(), torch.autograd.grad(loss, made)[0]))
    assert measured[0][0] == pytest.approx(measured[1][0], rel=1e-5)
    torch.testing.assert_close(measured[0][1][:, :5], measured[1][1], atol=1e-6, rtol=1e-4)
    assert not measured[0][1][:, 5].any()


@pytest.mark.parametrize("algorithm", LOSSES)
def test_parts_of_an_update_add_up_to_the_update(algorithm: str) -> None:
    """Loss and gradient of twelve states are the means of those of four parts: what accumulation makes of them."""
    training, (logits, old_logits, rewards) = load("smoke").training, draw(8)
    base, distinct = torch.log_softmax(draw(9)[0], dim=-1), torch.ones(rewards.shape, dtype=torch.bool)
    pairs = all_pairs(with_ties(rewards))
    logits.requires_grad_()

    def loss_of(states: slice) -> torch.Tensor:
        new = torch.log_softmax(logits[states], dim=-1)
        known = (each[states] for each in (old_logits, base, rewards, pairs, distinct))
        return LOSSES[algorithm](Batch(new, *known), training).loss

    parts = sum(loss_of(slice(start, start + 3)) for start in range(0, 12, 3)) / 4
    whole = loss_of(slice(0, 12))
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (parts, whole)))
