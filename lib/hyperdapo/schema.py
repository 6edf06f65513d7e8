"""What a parameter may be: one model per section of `params/base.yaml`, which holds the units and thesis sections.

Every model forbids unknown keys. `hyperdapo.params.load` reads the files and makes a `Parameters`.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hyperdapo.errors import ParameterError, nearest

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(gt=0)]
Objective = Literal["patient", "balanced", "urgent"]
Algorithm = Literal["dapo", "dpo"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


class AssetFacts(_Section):
    """What the exchange says of a perpetual."""

    sz_decimals: Annotated[int, Field(ge=0, le=6)]


class Source(_Section):
    """Where the market messages come from, and which span."""

    kind: Literal["synthetic", "tardis", "archive"]
    endpoint: str | None
    exchange: str
    channels: list[str]
    start: datetime = Field(alias="from")
    end: datetime = Field(alias="to")

    @model_validator(mode="after")
    def _check(self) -> "Source":
        if self.end_ns - self.start_ns < 60_000_000_000:
            raise ValueError(f"empty time span: from {self.start} to {self.end}; give at least one minute")
        if self.kind == "archive" and (not self.endpoint or self.channels != ["l2Book"]):
            raise ValueError("an archive is a folder with l2Book only: set endpoint to it, and channels: [l2Book]")
        return self

    @property
    def start_ns(self) -> int:
        return _nanoseconds(self.start)

    @property
    def end_ns(self) -> int:
        return _nanoseconds(self.end)


class SyntheticAsset(_Section):
    """One asset of the synthetic exchange."""

    price_usd: Positive
    volatility_bps: Positive
    depth_usd: Positive
    spread_ticks: Positive
    trades_per_min: Positive


class Synthetic(_Section):
    """The synthetic exchange: its knob of predictability and its assets."""

    predictability: Share
    assets: dict[str, SyntheticAsset]


class Clean(_Section):
    """What counts as a gap."""

    max_gap_s: Positive


class Split(_Section):
    """Shares of the span, in time order; the gaps between them are cut out."""

    train: Share
    validation: Share

    @model_validator(mode="after")
    def _check_sum(self) -> "Split":
        if self.train + self.validation >= 1.0:
            raise ValueError("split.train + split.validation must leave a share for the test")
        return self


class Features(_Section):
    """When a decision may be taken, and the windows of the features."""

    warmup_s: NonNegative
    decision_interval_s: Positive
    window_s: Positive
    large_trade_window_s: Positive
    normalisation_s: Positive


class Facts(_Section):
    """How two laws of chapter 2 are measured."""

    impact_after_s: Positive
    block_s: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]


class RewardWeights(_Section):
    """Weights of eq. 3.3."""

    execution: float
    risk: NonNegative
    cost: NonNegative


class ObjectiveRules(_Section):
    """What a trader in this mood asks for: how long the order may wait, and what is rewarded."""

    horizon_s: Positive
    weights: RewardWeights


class Orders(_Section):
    """The parent orders, from which every strategy starts."""

    notional_usd: Annotated[float, Field(ge=10.0)]
    buy_share: Share
    objectives: list[Objective] = Field(min_length=1)
    rules: dict[Objective, ObjectiveRules]
    drawdown_threshold_bps: NonNegative
    markouts_s: list[Positive]

    @property
    def longest_horizon_s(self) -> float:
        return max(self.rules[name].horizon_s for name in self.objectives)


class Latency(_Section):
    """One-way delay from decision to the exchange's block."""

    preset: Literal["thesis", "measured", "empirical"]
    policy_ms: NonNegative
    empirical_ms: list[NonNegative] = Field(min_length=1)


class Fees(_Section):
    """The account's volume tier."""

    tier: Annotated[int, Field(ge=0, le=6)]


class Execution(_Section):
    """Latency, fees, queue, impact and slicing of the replay."""

    latency: Latency
    fees: Fees
    block_ms: NonNegative
    queue: Literal["power", "risk_averse", "touch"]
    queue_exponent: NonNegative | None
    impact_coefficient_bps: NonNegative | None
    twap_slices: Count


class Lora(_Section):
    """The low-rank adapter."""

    rank: Count
    alpha: Count
    dropout: Share
    targets: list[str]
    layers: Count | None


class Policy(_Section):
    """Base model, action set and prompt."""

    base_model: str
    dtype: Literal["float32", "bfloat16"]
    four_bit: bool
    lora: Lora
    offsets_bps: list[float] = Field(min_length=2, max_length=26)
    prompt_style: Literal["thesis", "anonymous"]
    max_length: Count


class Dapo(_Section):
    """Full-information DAPO (DESIGN §6)."""

    steps: Count
    states_per_rollout: Count
    updates_per_rollout: Count
    states_per_update: Count
    learning_rate: Positive
    warmup_share: Share
    clip_low: Share
    clip_high: Share
    temperature_bps: Positive
    entropy_bonus: NonNegative


class Dpo(_Section):
    """TRL's DPO trainer."""

    steps: Count
    pairs_per_step: Count
    learning_rate: Positive
    warmup_share: Share
    beta: Positive


class Training(_Section):
    """Algorithms, seeds, and how often the policy is looked at."""

    algorithms: list[Algorithm] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    evaluate_every: Count
    evaluation_states: Count
    memory_gb: NonNegative
    dapo: Dapo
    dpo: Dpo


class Inference(_Section):
    """How decisions are taken."""

    batch_size: Count
    latency_decisions: Count


class Evidence(_Section):
    """Blocks, intervals, and the tolerance of `verify`."""

    block_s: Positive
    bootstrap: Count
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    verify_tolerance: NonNegative


class Parameters(_Section):
    """All parameters of one run. `load` makes it; `for_asset` checks an asset's name."""

    profile: str
    seed: int
    assets: list[str] = Field(min_length=1)
    asset_facts: dict[str, AssetFacts]
    source: Source
    synthetic: Synthetic
    clean: Clean
    split: Split
    features: Features
    facts: Facts
    orders: Orders
    execution: Execution
    policy: Policy
    training: Training
    inference: Inference
    evidence: Evidence

    @model_validator(mode="after")
    def _check_assets(self) -> "Parameters":
        for asset in self.assets:
            if asset not in self.asset_facts:
                raise ValueError(
                    f"unknown asset {asset!r}{nearest(asset, self.asset_facts)}; to add it, give its size decimals: "
                    f"asset_facts: {{{asset}: {{sz_decimals: N}}}}"
                )
            if self.source.kind == "synthetic" and asset not in self.synthetic.assets:
                raise ValueError(f"the synthetic exchange does not list {asset!r}; describe it in synthetic.assets")
        if missing := [name for name in self.orders.objectives if name not in self.orders.rules]:
            raise ValueError(f"orders.rules says nothing of the objectives {missing}")
        return self

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of every value, first 16 hex digits."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def for_asset(self, asset: str) -> "Parameters":
        """These parameters, once `asset` is known to be one of `assets`.

        Raises
        ------
        ParameterError
            If the run does not cover the asset.
        """
        if asset not in self.assets:
            raise ParameterError(
                f"unknown asset {asset!r}{nearest(asset, self.assets)}; profile {self.profile!r} runs {self.assets}. "
                f"Add it to `assets` (and `asset_facts`) in params/{self.profile}.yaml or in a --params file"
            )
        return self


def _nanoseconds(moment: datetime) -> int:
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000
