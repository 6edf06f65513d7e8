"""Losses: tensors in, tensors out. A policy is (n, K) log-probabilities of K actions.

First a function for each algorithm, which picks its parameters, then the formulas. How they differ from the papers (all
side by side: docs/design.md, Algorithms):

`clipped_surrogate`, of `dapo` (DAPO, arXiv:2503.14476): the simulator replays all K candidate orders from each state,
so the group of a state is its whole action set, known in full. The expectation over actions is exact: nothing is
sampled, nothing generated, and an action is one token, so that the paper's mean over tokens is the mean over states.
Advantages are divided by a fixed temperature in bps, not by the group's deviation, and an entropy term keeps the policy
from settling on the best fixed action before it has read the state.

`preference`, of `dpo` (arXiv:2305.18290): the paper's loss on the best action of a state against the worst. Of one
token each, their log-probabilities over K letters and over the whole vocabulary differ by what cancels in the margin;
TRL's trainer would also count the end of text that it adds to each. `tests/test_sampled.py` holds it to TRL's loss.

`listing_4_4`: the thesis draft's listing to the letter. Its branches halve the gradient of a loss above 0.28; the lower
branch is never reached, since a DPO loss is positive; its gradient-norm weight is undefined, and 1 here.

`clipped_preference`, of `dapo_preference` (§4.3, eq. 2.8, 2.9, 3.4 to 3.6): DPO whose two ratios are clipped apart from
each other. The ratios are to the policy of the rollout, the pi_old of eq. 3.5: against the base, a policy could never
make an action more than 1.28 times as probable as it was untrained. Pairs of a batch are weighted by eq. 2.9.

`reward_weighted`: cross-entropy to softmax(reward / temperature), a yardstick that is no reinforcement learning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hyperdapo.sections import Training


@dataclass(frozen=True)
class Batch:
    """n states of one update, (n, K): log-probabilities under policy, rollout policy and base, and rewards in bps.

    `pair` (n, 2) is the best and the worst action of each state, `distinct` (n, K) what there is to choose from,
    `progress` the share of the training that is done.
    """

    new: Tensor
    old: Tensor
    reference: Tensor
    rewards: Tensor
    pair: Tensor
    distinct: Tensor
    progress: float


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
    """DPO, the base being the reference."""
    return preference(batch.new, batch.reference, batch.pair, training.dpo.beta)


def listing_4_4(batch: Batch, training: Training) -> Loss:
    """DPO as Listing 4.4 changes it."""
    settings = training.listing_4_4
    low, high = settings.clip_low, settings.clip_high
    return halved_preference(batch.new, batch.reference, batch.pair, settings.beta, low, high)


def dapo_preference(batch: Batch, training: Training) -> Loss:
    """DPO clipped and weighted as §3.3.2 and §4.3 have it."""
    settings = training.dapo_preference
    gap = (batch.rewards.amax(dim=-1) - batch.rewards.amin(dim=-1)) / settings.gap_unit_bps
    temperature = annealed(*settings.sampling_temperature, batch.progress)
    weight = sampling_weights(gap, settings.sampling_sharpness, temperature)
    low, high = (
        adaptive_clip(clip, batch.new.detach(), batch.old, settings.clip_sensitivity)
        for clip in (settings.clip_low, settings.clip_high)
    )
    return clipped_preference(batch.new, batch.old, batch.pair, weight, settings.beta, low, high)


def reward_weighted(batch: Batch, training: Training) -> Loss:
    """Cross-entropy to what the rewards would choose."""
    rewards = batch.rewards.masked_fill(~batch.distinct, -torch.inf)
    return reward_cross_entropy(batch.new, rewards, training.reward_weighted.temperature_bps)


SAMPLED = "dapo_sampled"  # its loss is TRL's
LOSSES: dict[str, Callable[[Batch, Training], Loss]] = {
    "dapo": dapo,
    "dpo": dpo,
    "listing_4_4": listing_4_4,
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


def preference(new: Tensor, reference: Tensor, pair: Tensor, beta: float) -> Loss:
    """-log sigmoid of beta times how much more the best action gained on the reference than the worst.

    `new` and `reference` (n, K) are log-probabilities, `pair` (n, 2) the best and the worst action of each state.
    """
    best, worst = (new - reference).gather(-1, pair).unbind(-1)
    return Loss(-logsigmoid(beta * (best - worst)).mean())


def halved_preference(
    new: Tensor, reference: Tensor, pair: Tensor, beta: float, clip_low: float, clip_high: float
) -> Loss:
    """Listing 4.4: the DPO loss of a batch, drawn half-way to a bound that it exceeds; tensors as in `preference`."""
    base = preference(new, reference, pair, beta).loss
    if base > clip_high:
        return Loss(base * 0.5 + clip_high * 0.5, 1.0)
    if base < -clip_low:
        return Loss(base * 0.5 - clip_low * 0.5, 1.0)
    return Loss(base)


def clipped_preference(
    new: Tensor, old: Tensor, pair: Tensor, weight: Tensor, beta: float, clip_low: float, clip_high: float
) -> Loss:
    """DPO on the best action's ratio, cut at 1 + high, and the worst's, cut at 1 - low; pairs weighted by (n,)."""
    best, worst = (new - old).gather(-1, pair).unbind(-1)
    gained, lost = best.clamp(max=log(1 + clip_high)), worst.clamp(min=log(1 - clip_low))
    cut = ((best > gained) | (worst < lost)).float().mean()
    return Loss(-(weight * logsigmoid(beta * (gained - lost))).mean(), float(cut))


def sampling_weights(gap: Tensor, sharpness: float, temperature: float) -> Tensor:
    """Eq. 2.9: softmax(beta |A| / tau) over the n pairs of a batch, times n, so that their mean is 1.

    `gap` (n,) is |A|, what the best action earned beyond the worst.
    """
    return torch.softmax(sharpness * gap.abs() / temperature, dim=0) * len(gap)


def annealed(start: float, end: float, progress: float) -> float:
    """The tau_t of eq. 3.6: from `start` to `end` geometrically as progress goes from 0 to 1.

    >>> [round(annealed(1.0, 0.1, progress), 3) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.316, 0.1]
    """
    share: float = (end / start) ** progress
    return start * share


def adaptive_clip(clip: float, new: Tensor, old: Tensor, sensitivity: float) -> float:
    """Eq. 3.5: epsilon_0 exp(-lambda KL(old || new)), the divergence being exact over (n, K) and a mean over states."""
    divergence = (old.exp() * (old - new)).sum(dim=-1).mean()
    return clip * exp(-sensitivity * float(divergence))


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
