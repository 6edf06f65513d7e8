"""The algorithms by name: which objective each has, and which of its parameters goes where.

Every algorithm sees the same states in the same number of updates; they differ in the objective alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hyperdapo.policy import objectives
from hyperdapo.policy.objectives import Loss
from hyperdapo.training_sections import Training


@dataclass(frozen=True)
class Batch:
    """n states of one update, (n, K): log-probabilities under policy, rollout policy and base, and rewards in bps.

    `progress` is the share of the training that is done.
    """

    new: Tensor
    old: Tensor
    reference: Tensor
    rewards: Tensor
    progress: float


Objective = Callable[[Batch, Training], Loss]


def dapo(batch: Batch, training: Training) -> Loss:
    """Full-information DAPO with an entropy term."""
    own = training.dapo
    advantage = objectives.advantages(batch.rewards, batch.old, own.temperature_bps)
    found = objectives.clipped_surrogate(batch.new, batch.old, advantage, own.clip_low, own.clip_high)
    return Loss(found.loss - own.entropy_bonus * objectives.entropy(batch.new), found.clip_fraction)


def dpo(batch: Batch, training: Training) -> Loss:
    """DPO, the base being the reference."""
    return objectives.preference(batch.new, batch.reference, batch.rewards, training.dpo.beta)


def listing_4_4(batch: Batch, training: Training) -> Loss:
    """DPO as Listing 4.4 changes it."""
    own = training.listing_4_4
    return objectives.listing_4_4(batch.new, batch.reference, batch.rewards, own.beta, own.clip_low, own.clip_high)


def dapo_preference(batch: Batch, training: Training) -> Loss:
    """DPO clipped and weighted as §3.3.2 and §4.3 have it."""
    own = training.dapo_preference
    gap = (batch.rewards.amax(dim=-1) - batch.rewards.amin(dim=-1)) / own.gap_unit_bps
    temperature = objectives.annealed(*own.sampling_temperature, batch.progress)
    weight = objectives.sampling_weights(gap, own.sampling_sharpness, temperature)
    low, high = (
        objectives.adaptive_clip(clip, batch.new.detach(), batch.old, own.clip_sensitivity)
        for clip in (own.clip_low, own.clip_high)
    )
    return objectives.clipped_preference(batch.new, batch.old, batch.rewards, weight, own.beta, low, high)


def reward_weighted(batch: Batch, training: Training) -> Loss:
    """Cross-entropy to what the rewards would choose."""
    return objectives.reward_weighted(batch.new, batch.rewards, training.reward_weighted.temperature_bps)


SAMPLED = "dapo_sampled"  # has no objective here: TRL's
OBJECTIVES: dict[str, Objective] = {
    own.__name__: own for own in (dapo, dpo, listing_4_4, dapo_preference, reward_weighted)
}


ALGORITHMS = (*OBJECTIVES, SAMPLED)


def learning_rate(algorithm: str, training: Training) -> float:
    """The peak of its schedule."""
    return float(getattr(training, algorithm).learning_rate)


def updates_per_rollout(algorithm: str, training: Training) -> int:
    """How many updates share one rollout policy; 1 where the objective knows none."""
    return int(getattr(getattr(training, algorithm), "updates_per_rollout", 1))
