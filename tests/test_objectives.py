"""The objective functions against reference loops of ten lines."""

import math

import pytest
import torch

from hyperdapo.policy.objectives import advantages, clipped_surrogate, entropy, has_signal

LOW, HIGH = 0.20, 0.28


def draw(seed: int, n: int = 12, k: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    new, old = (torch.log_softmax(torch.randn(n, k, generator=generator), dim=-1) for _ in range(2))
    return new, old, 10 * torch.randn(n, k, generator=generator)


def reference(new: torch.Tensor, old: torch.Tensor, rewards: torch.Tensor, temperature: float) -> float:
    """DAPO's objective, state by state and action by action."""
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
    assert 0 < surrogate.clip_fraction.item() < 1


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
    assert surrogate.clip_fraction.item() == 0
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
    assert clipped_surrogate(ratio, old, gain, LOW, HIGH).clip_fraction.item() == 0
    assert clipped_surrogate(ratio, old, gain, LOW, 0.20).clip_fraction.item() == 1


def test_entropy_is_that_of_the_uniform_policy_at_most() -> None:
    assert entropy(torch.full((3, 6), math.log(1 / 6))).item() == pytest.approx(math.log(6))
    new, _, _ = draw(3)
    assert entropy(new).item() < math.log(6)


def test_states_without_a_difference_have_no_signal() -> None:
    assert has_signal(torch.tensor([[1.0, 1.0], [1.0, 2.0]])).tolist() == [False, True]
