"""Objective functions: tensors in, tensors out (DESIGN §6).

How `dapo` differs from the DAPO paper (arXiv:2503.14476): the simulator replays all K candidate orders from each
state, so the group of a state is its whole action set, known in full. The expectation over actions is exact: nothing
is sampled, nothing generated, and an action is one token, so that the paper's mean over tokens is the mean over states.
Advantages are divided by a fixed temperature in bps, not by the group's deviation, and an entropy term keeps the policy
from settling on the best fixed offset before it has read the state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """The clipped objective of one update: `loss` (scalar, to minimise), the share of probability that was clipped."""

    loss: Tensor
    clip_fraction: Tensor


def advantages(rewards: Tensor, old_log_probabilities: Tensor, temperature_bps: float) -> Tensor:
    """Exact advantage of each action under the rollout policy, in units of the temperature.

    Parameters
    ----------
    rewards : (n, K) in bps
    old_log_probabilities : (n, K) of the policy that made the rollout
    temperature_bps : what one unit of advantage is worth

    Returns
    -------
    (n, K); its expectation under the rollout policy is zero in every state
    """
    expected = (old_log_probabilities.exp() * rewards).sum(dim=-1, keepdim=True)
    return (rewards - expected) / temperature_bps


def clipped_surrogate(
    log_probabilities: Tensor, old_log_probabilities: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> Surrogate:
    """Decoupled clipping (eq. 2.8 as the DAPO paper has it): min(r A, clip(r, 1 - low, 1 + high) A), whatever A's sign.

    All tensors are (n, K). The expectation over actions is under the rollout policy.
    """
    ratio = (log_probabilities - old_log_probabilities).exp()
    plain = ratio * advantage
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    weight = old_log_probabilities.exp()
    loss = -(weight * torch.minimum(plain, clipped)).sum(dim=-1).mean()
    clip_fraction = (weight * (clipped < plain)).sum(dim=-1).mean()
    return Surrogate(loss, clip_fraction.detach())


def entropy(log_probabilities: Tensor) -> Tensor:
    """Mean entropy in nats of the policies in the rows of (n, K)."""
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()


def has_signal(rewards: Tensor) -> Tensor:
    """(n,) whether the rewards of a state differ between its actions; where they do not, no gradient can come of it."""
    return rewards.amax(dim=-1) > rewards.amin(dim=-1)
