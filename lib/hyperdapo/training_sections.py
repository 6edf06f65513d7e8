"""What a parameter of the policy and of its training may be; `params/base.yaml` holds units and thesis sections."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hyperdapo.sections import Count, NonNegative, Positive, Section, Share, Unique, Whole

Offset = Annotated[float, Field(gt=-10_000.0, lt=10_000.0, strict=True)]  # bps; at -10,000 the price is 0
Algorithm = Literal["dapo", "dapo_sampled", "dpo", "listing_4_4", "dapo_preference", "reward_weighted"]


class Lora(Section):
    """The low-rank adapter."""

    rank: Count
    alpha: Count
    dropout: Share
    targets: Annotated[list[str], Field(min_length=1), Unique]
    layers: Count | None


class Policy(Section):
    """Base model, action set and prompt."""

    base_model: str
    four_bit: bool
    lora: Lora
    offsets_bps: Annotated[list[Offset], Field(min_length=2, max_length=26), Unique]
    prompt_style: Literal["thesis", "anonymous"]
    max_length: Count


class Clip(Section):
    """Decoupled clipping, eq. 2.8."""

    clip_low: Share
    clip_high: Share


class Dapo(Clip):
    """Full-information DAPO (docs/design.md, Algorithms)."""

    learning_rate: Positive
    updates_per_rollout: Count
    temperature_bps: Positive
    entropy_bonus: NonNegative


class DapoSampled(Dapo):
    """DAPO on sampled groups, by TRL."""

    group_size: Annotated[int, Field(ge=2, strict=True)]
    refills: Annotated[int, Field(ge=2, strict=True)]


class Dpo(Section):
    """DPO on the best action against the worst."""

    learning_rate: Positive
    beta: Positive


class Listing44(Dpo, Clip):
    """DPO as Listing 4.4 changes it."""


class DapoPreference(Dpo, Clip):
    """DPO with the clipping, weights and annealing of §3.3.2 and §4.3."""

    updates_per_rollout: Count
    clip_sensitivity: NonNegative
    sampling_sharpness: NonNegative
    sampling_temperature: tuple[Positive, Positive]
    gap_unit_bps: Positive


class RewardWeighted(Section):
    """Cross-entropy to softmax(reward / temperature)."""

    learning_rate: Positive
    temperature_bps: Positive


class Training(Section):
    """Algorithms, seeds, their common budget, and how often the policy is looked at."""

    algorithms: Annotated[list[Algorithm], Field(min_length=1), Unique]
    seeds: Annotated[list[Whole], Field(min_length=1), Unique]
    steps: Count
    states_per_update: Count
    gradient_accumulation: Count
    processes: Count
    warmup_share: Share
    checkpoint_every: Count
    evaluate_every: Count
    evaluation_states: Count
    memory_gb: NonNegative
    report_to: Literal["tensorboard", "wandb"]
    dapo: Dapo
    dapo_sampled: DapoSampled
    dpo: Dpo
    listing_4_4: Listing44
    dapo_preference: DapoPreference
    reward_weighted: RewardWeighted

    @model_validator(mode="after")
    def _check_sizes(self) -> "Training":
        parts = self.gradient_accumulation * self.processes
        if self.states_per_update % parts:
            raise ValueError(
                f"training.states_per_update ({self.states_per_update}) must be a multiple of "
                f"gradient_accumulation x processes ({parts})"
            )
        if "dapo_sampled" in self.algorithms and parts > 1:
            raise ValueError("dapo_sampled trains in one process and one part: leave it out of training.algorithms")
        for name in ("dapo", "dapo_sampled", "dapo_preference"):
            if self.checkpoint_every % (updates := getattr(self, name).updates_per_rollout):
                raise ValueError(
                    f"training.checkpoint_every ({self.checkpoint_every}) must be a multiple of "
                    f"{name}.updates_per_rollout ({updates}): a rollout is not kept in a checkpoint"
                )
        return self
