"""The losses against reference loops of ten lines."""

import math

import pytest
import torch

from hyperdapo.params import load
from hyperdapo.policy.losses import (
    LOSSES,
    Batch,
    adaptive_clip,
    advantages,
    annealed,
    clipped_preference,
    clipped_surrogate,
    entropy,
    halved_preference,
    has_signal,
    preference,
    reward_cross_entropy,
    sampling_weights,
)
from hyperdapo.policy.scoring import _NEVER

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


def ends(rewards: torch.Tensor) -> torch.Tensor:
    """(n, 2) the best and the worst action of each state."""
    return torch.stack([rewards.argmax(dim=-1), rewards.argmin(dim=-1)], dim=-1)


def pairs(new: torch.Tensor, other: torch.Tensor, rewards: torch.Tensor) -> list[tuple[float, float]]:
    """How much the best and the worst action of each state gained, in nats."""
    gains = []
    for state in range(len(new)):
        best = max(range(new.shape[1]), key=lambda a: rewards[state, a].item())
        worst = min(range(new.shape[1]), key=lambda a: rewards[state, a].item())
        gains.append(tuple((new[state, a] - other[state, a]).item() for a in (best, worst)))
    return gains


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


@pytest.mark.parametrize("seed", range(3))
def test_preference_equals_the_reference_loop(seed: int) -> None:
    new, base, rewards = draw(seed)
    expected = -sum(log_sigmoid(0.5 * (best - worst)) for best, worst in pairs(new, base, rewards)) / len(new)
    assert preference(new, base, ends(rewards), 0.5).loss.item() == pytest.approx(expected, rel=1e-4)


def test_listing_4_4_halves_the_gradient_above_its_bound() -> None:
    new, base, rewards = draw(0)
    new.requires_grad_()
    plain = preference(new, base, ends(rewards), 0.5).loss
    listed = halved_preference(new, base, ends(rewards), 0.5, LOW, HIGH)
    assert plain.item() > HIGH and listed.clip_fraction == 1
    assert listed.loss.item() == pytest.approx(plain.item() / 2 + HIGH / 2)
    torch.testing.assert_close(torch.autograd.grad(listed.loss, new)[0], torch.autograd.grad(plain, new)[0] / 2)
    assert halved_preference(new, base, ends(rewards), 0.5, LOW, 10.0).clip_fraction == 0


@pytest.mark.parametrize("seed", range(3))
def test_clipped_preference_equals_the_reference_loop(seed: int) -> None:
    new, old, rewards = draw(seed)
    weight = torch.linspace(0.1, 1.9, len(new))
    total, cut = 0.0, 0
    for (best, worst), share in zip(pairs(new, old, rewards), weight.tolist(), strict=True):
        gained, lost = min(math.exp(best), 1 + HIGH), max(math.exp(worst), 1 - LOW)
        total -= share * log_sigmoid(0.5 * (math.log(gained) - math.log(lost)))
        cut += math.exp(best) > gained or math.exp(worst) < lost
    result = clipped_preference(new, old, ends(rewards), weight, 0.5, LOW, HIGH)
    assert result.loss.item() == pytest.approx(total / len(new), rel=1e-4)
    assert result.clip_fraction == pytest.approx(cut / len(new))


def test_a_preference_that_is_won_and_lost_beyond_both_bounds_moves_nothing() -> None:
    new = torch.tensor([[0.5, -0.5]], requires_grad=True)
    pair = torch.tensor([[0, 1]])
    clipped_preference(new, torch.zeros(1, 2), pair, torch.ones(1), 0.1, LOW, HIGH).loss.backward()
    assert new.grad is not None and not new.grad.any()


def test_sampling_weights_follow_equation_2_9() -> None:
    gap = torch.tensor([0.5, -2.0, 1.0])
    exponents = [math.exp(0.7 * size / 0.4) for size in (0.5, 2.0, 1.0)]
    expected = [3 * exponent / sum(exponents) for exponent in exponents]
    assert sampling_weights(gap, 0.7, 0.4).tolist() == pytest.approx(expected, rel=1e-5)
    assert annealed(1.0, 0.1, 1.0) == pytest.approx(0.1)


def test_clip_shrinks_with_the_divergence_as_equation_3_5_has_it() -> None:
    new, old, _ = draw(4)
    divergence = sum(
        math.exp(old[n, a]) * (old[n, a] - new[n, a]).item() for n in range(len(new)) for a in range(new.shape[1])
    ) / len(new)
    assert adaptive_clip(HIGH, new, old, 2.0) == pytest.approx(HIGH * math.exp(-2.0 * divergence), rel=1e-4)
    assert adaptive_clip(HIGH, old, old, 2.0) == HIGH


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
        pair = ends(rewards[:, :5])
        loss = LOSSES[algorithm](
            Batch(new, old, reference, rewards[:, :actions], pair, distinct[:, :actions], 0.5), training
        ).loss
        measured.append((loss.item(), torch.autograd.grad(loss, made)[0]))
    assert measured[0][0] == pytest.approx(measured[1][0], rel=1e-5)
    torch.testing.assert_close(measured[0][1][:, :5], measured[1][1], atol=1e-6, rtol=1e-4)
    assert not measured[0][1][:, 5].any()
