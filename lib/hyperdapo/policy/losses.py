"""Losses: tensors in, tensors out. A policy is (n, K) log-probabilities of K actions.

First a function for each algorithm, which picks its parameters, then the formulas. How they differ from the papers (all
side by side: docs/design.md, Algorithms):

`clipped_surrogate`, of `dapo` (DAPO, arXiv:2503.14476): the simulator replays all K candidate orders from each state,
so the group of a state is its whole action set, known in full. The expectation over actions is exact: nothing is
sampled, nothing generated, and an action is one token, so that the paper's mean over tokens is the mean over states.
Advantages are divided by a fixed temperature in bps, not by the group's deviation, and an entropy term keeps the policy
from settling on the best fixed action before it has read the state.

`preference`, of `dpo` (arXiv:2305.18290): the paper's loss on pairs of actions, one preferred to the other. A state has
K actions whose rewards are known, so all its pairs that earned differently are in the loss, and each state weighs the
same. Of one token each, log-probabilities over K letters and over the whole vocabulary differ by what cancels in the
margin; TRL's trainer would also count the end of text that it adds to each. `tests/test_sampled.py` holds it to TRL's
loss. `dpo_one_pair` and `listing_4_3` are the same with one pair a state (`states`).

`clipped_preference`, of `dapo_preference` (§4.3, eq. 2.8, 3.4 and 3.5): the same pairs, their two ratios clipped apart
from each other. The ratios are to the policy of the rollout, the pi_old of eq. 3.5: against the base, a policy could
never make an action more than 1.28 times as probable as it was untrained. Its states are drawn by eq. 2.9 (`trainer`).

`reward_weighted`: cross-entropy to softmax(reward / temperature), a yardstick that is no reinforcement learning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hyperdapo.sections import Training


@dataclass(frozen=True)
class Batch:
    """n states of one update, (n, K): log-probabilities under policy, rollout policy and base, and rewards in bps.

    `pairs` (n, K, K) is the weight of each pair of actions, the preferred one first; a state's add up to 1. `distinct`
    (n, K) is what there is to choose from.
    """

    new: Tensor
    old: Tensor
    reference: Tensor
    rewards: Tensor
    pairs: Tensor
    distinct: Tensor


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and the share of what it learns from that clipping has cut off."""

    loss: Tensor
    clip_fraction: float = 0.0


def dapo(batch: Batch, training: Training) -> Loss:
    """Full-information DAPO with an entropy term."""
    settings = training.dapo
    advantage = advantages(batch.rewards, batch.old, settings.temperature_bps)
    surrogate = clipped_surrogate(batch.new, batch.old, advantage, settings.clip_low, settings.clip_high)
    return Loss(surrogate.loss - settings.entropy_bonus * entropy(batch.new), surrogate.clip_fraction)


def dpo(batch: Batch, training: Training) -> Loss:
    """DPO on all pairs of a state that earned differently, the base being the reference."""
    return preference(batch.new, batch.reference, batch.pairs, training.dpo.beta)


def dpo_one_pair(batch: Batch, training: Training) -> Loss:
    """DPO on the best action of a state against the worst, drawn among those that tie."""
    return preference(batch.new, batch.reference, batch.pairs, training.dpo_one_pair.beta)


def listing_4_3(batch: Batch, training: Training) -> Loss:
    """DPO on the pair of Listing 4.3, in which the order of the actions decides ties."""
    return preference(batch.new, batch.reference, batch.pairs, training.listing_4_3.beta)


def dapo_preference(batch: Batch, training: Training) -> Loss:
    """DPO clipped as §3.3.2 and §4.3 have it."""
    settings = training.dapo_preference
    low, high = (
        adaptive_clip(clip, batch.new.detach(), batch.old, settings.clip_sensitivity)
        for clip in (settings.clip_low, settings.clip_high)
    )
    return clipped_preference(batch.new, batch.old, batch.pairs, settings.beta, low, high)


def reward_weighted(batch: Batch, training: Training) -> Loss:
    """Cross-entropy to what the rewards would choose."""
    rewards = batch.rewards.masked_fill(~batch.distinct, -torch.inf)
    return reward_cross_entropy(batch.new, rewards, training.reward_weighted.temperature_bps)


SAMPLED = "dapo_sampled"  # its loss is TRL's
SHARPENED = "dapo_preference"  # its states are drawn by eq. 2.9
LOSSES: dict[str, Callable[[Batch, Training], Loss]] = {
    "dapo": dapo,
    "dpo": dpo,
    "dpo_one_pair": dpo_one_pair,
    "listing_4_3": listing_4_3,
    "dapo_preference": dapo_preference,
    "reward_weighted": reward_weighted,
}
ALGORITHMS = (*LOSSES, SAMPLED)


def settings_of(algorithm: str, training: Training) -> dict[str, Any]:
    """The parameters of an algorithm, by name."""
    settings: dict[str, Any] = training.model_dump()[algorithm]
    return settings


def advantages(rewards: Tensor, old: Tensor, temperature_bps: float) -> Tensor:
    """Exact advantage of each action under the rollout policy, in units of the temperature.

    Parameters
    ----------
    rewards : (n, K) in bps
    old : (n, K) log-probabilities of the policy that made the rollout
    temperature_bps : what one unit of advantage is worth

    Returns
    -------
    (n, K); its expectation under the rollout policy is zero in every state
    """
    expected = (old.exp() * rewards).sum(dim=-1, keepdim=True)
    return (rewards - expected) / temperature_bps


def clipped_surrogate(new: Tensor, old: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Loss:
    """Decoupled clipping (eq. 2.8 as the DAPO paper has it): min(r A, clip(r, 1 - low, 1 + high) A), whatever A's sign.

    All tensors are (n, K). The expectation over actions is under the rollout policy.
    """
    ratio = (new - old).exp()
    plain = ratio * advantage
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    weight = old.exp()
    loss = -(weight * torch.minimum(plain, clipped)).sum(dim=-1).mean()
    return Loss(loss, float((weight * (clipped < plain)).sum(dim=-1).mean().detach()))


def preference(new: Tensor, reference: Tensor, pairs: Tensor, beta: float) -> Loss:
    """-log sigmoid of beta times how much more the preferred action gained on the reference than the other.

    `new` and `reference` (n, K) are log-probabilities, `pairs` (n, K, K) the weights of each pair, preferred one first.
    """
    gained = new - reference
    return Loss(_over_pairs(-logsigmoid(beta * _margins(gained, gained)), pairs))


def clipped_preference(
    new: Tensor, old: Tensor, pairs: Tensor, beta: float, clip_low: Tensor, clip_high: Tensor
) -> Loss:
    """DPO on the preferred action's ratio, cut at 1 + high, and the other's, cut at 1 - low; both bounds are (n, 1)."""
    gain = new - old
    won, lost = torch.minimum(gain, torch.log1p(clip_high)), torch.maximum(gain, torch.log1p(-clip_low))
    cut = (gain > won)[:, :, None] | (gain < lost)[:, None, :]
    loss = _over_pairs(-logsigmoid(beta * _margins(won, lost)), pairs)
    return Loss(loss, float(_over_pairs(cut.float(), pairs)))


def _margins(preferred: Tensor, other: Tensor) -> Tensor:
    """(n, K, K): `preferred` of the first action of a pair minus `other` of the second."""
    return preferred[:, :, None] - other[:, None, :]


def _over_pairs(values: Tensor, pairs: Tensor) -> Tensor:
    """The mean over states of (n, K, K) values, a state's pairs by their weights."""
    return (pairs * values).sum(dim=(1, 2)).mean()


def adaptive_clip(clip: float, new: Tensor, old: Tensor, sensitivity: float) -> Tensor:
    """Eq. 3.5: epsilon_0 exp(-lambda KL(old || new)), (n, 1): each state by its own divergence, exact over K actions.

    So a bound does not depend on which states are read together.
    """
    divergence = (old.exp() * (old - new)).sum(dim=-1, keepdim=True)
    return clip * torch.exp(-sensitivity * divergence)


def reward_cross_entropy(new: Tensor, rewards: Tensor, temperature_bps: float) -> Loss:
    """Cross-entropy of the policy to softmax(reward / temperature); tensors (n, K), rewards in bps, -inf for never."""
    target = torch.softmax(rewards / temperature_bps, dim=-1)
    return Loss(-(target * new).sum(dim=-1).mean())


def entropy(new: Tensor) -> Tensor:
    """Mean entropy in nats of the policies in the rows of (n, K)."""
    return -(new.exp() * new).sum(dim=-1).mean()


def has_signal(rewards: Tensor) -> Tensor:
    """(n,) whether the rewards of a state differ between its actions; where they do not, there is no gradient."""
    return rewards.amax(dim=-1) > rewards.amin(dim=-1)
