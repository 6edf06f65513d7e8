"""What a parameter may be: one model per section of `params/base.yaml`, which holds the units and thesis sections.

Every model forbids unknown keys; `params.Parameters` puts the sections together.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from hyperdapo.actions import ActionWord
from hyperdapo.paths import REPOSITORY
from hyperdapo.times import MINUTE_NS, SECOND_NS

_PERPETUAL = re.compile(r"([a-z0-9]+:)?[A-Za-z0-9]+")


def _without_repetition(values: Sequence[Any]) -> Sequence[Any]:
    repeated = [value for place, value in enumerate(values) if value in values[:place]]
    if repeated:
        raise ValueError(f"{repeated[0]!r} stands there twice")
    return values


def _perpetual(name: str) -> str:
    """A name that is safe as a part of a path, a shell word and a pattern."""
    if name.startswith("@") or "/" in name:
        raise ValueError(f"{name!r} is a spot market: its prices are on another grid, only perpetuals are known here")
    if not _PERPETUAL.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a perpetual, such as BTC, kPEPE or xyz:NVDA")
    return name


def _websocket(address: str) -> str:
    if not re.fullmatch(r"wss?://[^\s/@]+(/\S*)?", address):
        raise ValueError(f"{address!r} is no address of a WebSocket, such as wss://api.hyperliquid.xyz/ws")
    return address


Share = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Positive = Annotated[float, Field(gt=0.0, strict=True)]
NonNegative = Annotated[float, Field(ge=0.0, strict=True)]
Milliseconds = Annotated[float, Field(ge=0.0, le=3000.0, strict=True)]
Confidence = Annotated[float, Field(gt=0.5, lt=1.0, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Asset = Annotated[str, AfterValidator(_perpetual)]
Unique = AfterValidator(_without_repetition)
Objective = Literal["patient", "balanced", "urgent"]
Channel = Literal["l2Book", "bbo", "trades", "activeAssetCtx"]


class Section(BaseModel):
    """Unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )


class Contract(Section):
    """What the exchange says of a perpetual."""

    sz_decimals: Annotated[int, Field(ge=0, le=6, strict=True)]


class Source(Section):
    """Where the market messages come from, and which span."""

    kind: Literal["synthetic", "tardis", "archive", "recordings"]
    endpoint: str | None
    exchange: str
    channels: Annotated[list[Channel], Field(min_length=1), Unique]
    start: datetime = Field(alias="from")
    end: datetime = Field(alias="to")

    @model_validator(mode="after")
    def _check(self) -> "Source":
        for name, moment in (("from", self.start), ("to", self.end)):
            if moment.second or moment.microsecond:
                raise ValueError(f"{name}: {moment.isoformat()} is not a whole minute")
        if self.end_ns - self.start_ns < MINUTE_NS:
            raise ValueError(f"empty time span: from {self.start} to {self.end}; give at least one minute")
        if self.kind == "archive" and (not self.endpoint or self.channels != ["l2Book"]):
            raise ValueError("an archive is a folder with l2Book only: set endpoint to it, and channels: [l2Book]")
        if self.kind == "recordings" and not self.endpoint:
            raise ValueError("recordings are a folder of files ASSET.ndjson.gz: set endpoint to it")
        if self.folder is None and "@" in urlsplit(self.endpoint or "").netloc:
            raise ValueError(
                "endpoint holds a user or password, and parameters are stored with every result: take it out of the "
                "address and put it into ~/.netrc (machine HOST login USER password PASSWORD), which the client reads"
            )
        return self

    @property
    def folder(self) -> Path | None:
        """That of an archive or of recordings; None for an endpoint."""
        return _within_repository(self.endpoint) if self.kind in ("archive", "recordings") else None

    @property
    def start_ns(self) -> int:
        return _nanoseconds(self.start)

    @property
    def end_ns(self) -> int:
        return _nanoseconds(self.end)


class SyntheticAsset(Section):
    """One asset of the synthetic exchange."""

    price_usd: Positive
    volatility_bps: Positive
    signal_s: Positive
    revision_s: Positive
    depth_usd: Positive
    depth_behind_usd: Positive
    depth_growth: NonNegative
    depth_tilt: NonNegative
    touch_tilt: NonNegative
    touch_log_sd: NonNegative
    spread_ticks: Annotated[float, Field(ge=1.0, strict=True)]
    orders_per_min: Positive
    branching: Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]
    order_usd: Positive
    order_log_sd: NonNegative
    flow_tilt: NonNegative
    splitting: Share
    impact_bps: NonNegative
    sniping: NonNegative


class Notices(Section):
    """Notices in words, and how far the price drifts after those that matter."""

    per_hour: NonNegative
    drift_bps: NonNegative
    after_s: Positive
    lasts_s: Positive

    @model_validator(mode="after")
    def _check_pace(self) -> "Notices":
        if self.per_hour * (self.after_s + self.lasts_s) > 3600:
            raise ValueError(
                "synthetic.notices.per_hour is too high: a notice comes when the price has followed the last"
            )
        return self


class Synthetic(Section):
    """The synthetic exchange: its knob of predictability, its notices and its assets."""

    predictability: Share
    notices: Notices
    assets: dict[Asset, SyntheticAsset]


class Clean(Section):
    """What counts as a gap."""

    max_gap_s: Positive


class Split(Section):
    """Shares of the span, in time order; the gaps between them are cut out."""

    train: Share
    validation: Share

    @model_validator(mode="after")
    def _check_sum(self) -> "Split":
        if self.train + self.validation >= 1.0:
            raise ValueError("split.train + split.validation must leave a share for the test")
        return self


class Features(Section):
    """When a decision may be taken, and the windows of the features."""

    warmup_s: NonNegative
    decision_interval_s: Positive
    window_s: Positive
    large_trade_window_s: Positive
    normalisation_s: Positive


class Laws(Section):
    """How two laws of chapter 2 are measured."""

    impact_after_s: Positive
    block_s: Positive
    confidence: Confidence


class RewardWeights(Section):
    """Weights of eq. 3.3."""

    execution: NonNegative
    risk: NonNegative
    cost: NonNegative

    @model_validator(mode="after")
    def _check_sum(self) -> "RewardWeights":
        if self.execution + self.risk + self.cost == 0:
            raise ValueError("one of the weights of the reward must be above 0")
        return self


class ObjectiveRules(Section):
    """What a trader in this mood asks for: how long the order may wait, and what is rewarded."""

    horizon_s: Positive
    weights: RewardWeights


class Orders(Section):
    """The parent orders, from which every strategy starts."""

    notional_usd: Annotated[float, Field(ge=10.0, strict=True)]
    buy_share: Share
    most: Count | None
    test_every_s: Positive | None
    objectives: Annotated[list[Objective], Field(min_length=1), Unique]
    rules: dict[Objective, ObjectiveRules]
    drawdown_threshold_bps: NonNegative
    weight_trials: Count
    markouts_s: Annotated[list[Positive], Field(min_length=1), Unique]

    @property
    def longest_horizon_s(self) -> float:
        return max(self.rules[name].horizon_s for name in self.objectives)


class Latency(Section):
    """One-way delay from decision to the exchange's block."""

    preset: Literal["thesis", "measured", "empirical"]
    policy_ms: NonNegative | list[Milliseconds]
    empirical_ms: list[Milliseconds] = Field(min_length=1)

    @field_validator("policy_ms")
    @classmethod
    def _check_sample(cls, value: float | list[float]) -> float | list[float]:
        if value == []:
            raise ValueError("policy_ms: an empty sample; give one time, or those that were measured")
        return value


class Fees(Section):
    """The account's volume tier."""

    tier: Annotated[int, Field(ge=0, le=6, strict=True)]


class Execution(Section):
    """Latency, fees, queue, impact and slicing of the replay."""

    latency: Latency
    fees: Fees
    block_ms: NonNegative
    queue: Literal["power", "risk_averse", "touch"]
    queue_exponent: NonNegative | None
    crossing_fills: bool
    impact_coefficient_bps: NonNegative | None
    twap_slices: Count
    requote_s: Positive
    risk_aversion: Positive


class Truth(Section):
    """What the simulator is checked against: probes in the synthetic exchange, and records of real executions."""

    hours: Positive
    probes_per_hour: Positive
    account: str | None
    node_fills: str | None
    level3: str | None

    @property
    def account_folder(self) -> Path | None:
        """Where an account's `historicalOrders.json` and `userFills.json` lie."""
        return _within_repository(self.account)

    @property
    def node_fills_file(self) -> Path | None:
        return _within_repository(self.node_fills)

    @property
    def level3_folder(self) -> Path | None:
        """Where files of every order by its id lie."""
        return _within_repository(self.level3)


class Inference(Section):
    """How decisions are taken."""

    batch_size: Count
    states_across: Count
    timed: Annotated[list[Asset], Unique]
    latency_decisions: Count
    latency_s: Positive
    gguf: str | None
    llama_cpp: str


class Live(Section):
    """Paper trading: the exchange's messages as they come, and on which of them nothing is decided."""

    endpoint: Annotated[str, AfterValidator(_websocket)]
    order_every_s: Positive
    max_book_age_s: Positive
    settle_s: NonNegative
    ping_s: Positive
    silent_s: Positive
    longest_wait_s: Positive


class Serving(Section):
    """How the decision service batches, what it refuses, and when it passes an upstream over."""

    batch: Count
    batch_wait_ms: NonNegative
    queue: Count
    max_book_age_s: Positive
    max_body_mb: Positive
    request_s: Positive
    upstream_s: Positive
    upstream_within: Share
    health_every_s: Positive


class Evidence(Section):
    """How intervals are drawn, and the shortest block of time: no shorter than what a policy reads lasts."""

    block_s: Positive
    bootstrap: Count
    confidence: Confidence


def _within_repository(path: str | None) -> Path | None:
    """A relative path starts at the repository; `params.read` makes it so for a file of the command line."""
    return None if path is None else REPOSITORY / path


def _nanoseconds(moment: datetime) -> int:
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * SECOND_NS


PromptStyle = Literal["thesis", "anonymous", "absolute", "shuffled", "numbers", "words", "news"]
Algorithm = Literal["dapo", "dapo_sampled", "dpo", "dpo_one_pair", "listing_4_3", "dapo_preference", "reward_weighted"]


class Lora(Section):
    """The low-rank adapter."""

    rank: Count
    alpha: Count
    dropout: Share
    targets: Annotated[list[str], Field(min_length=1), Unique]
    layers: Count | None
    activated: bool


class Policy(Section):
    """Base model, action set and prompt."""

    base_model: str
    four_bit: bool
    lora: Lora
    actions: Annotated[list[ActionWord], Field(min_length=2, max_length=26), Unique]  # a letter each
    decide_again_s: Positive | None
    prompt_style: PromptStyle
    max_length: Count


class Sequential(Section):
    """Decisions that are taken again: policy iteration, and what the language model reads of it."""

    iterations: Count
    intervals_s: Annotated[list[Positive], Unique]
    trained: Annotated[list[Asset], Unique]
    states: Count
    critic: bool
    refreshes: Whole
    steps: Count
    states_per_update: Count
    learning_rate: Positive
    temperature_bps: Positive
    entropy_bonus: NonNegative
    tested_orders: Count


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
    """DPO on pairs of actions, all of a state or one."""

    learning_rate: Positive
    beta: Positive


class DapoPreference(Dpo, Clip):
    """DPO with the clipping, sampling and annealing of §3.3.2 and §4.3."""

    updates_per_rollout: Count
    clip_sensitivity: NonNegative
    sampling_sharpness: NonNegative
    sampling_temperature: tuple[Positive, Positive]
    advantage_unit_bps: Positive


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
    dpo_one_pair: Dpo
    listing_4_3: Dpo
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


class Hypotheses(Section):
    """What is claimed of one policy, registered for every run in `params/registered.yaml`."""

    policy: Algorithm
    references: Annotated[list[str], Field(min_length=1), Unique]
    measure: Literal["total_cost_bps"]
    test: Literal["studentised_max_t"]
    alpha: Annotated[float, Field(gt=0.0, lt=0.5, strict=True)]
    smallest_effect_bps: Positive
