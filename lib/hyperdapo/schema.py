"""All parameters of one run. `hyperdapo.params.load` reads the files and makes a `Parameters`."""

import hashlib
import json
from typing import Annotated

from pydantic import Field, model_validator

from hyperdapo.errors import ParameterError, nearest
from hyperdapo.sections import (
    Asset,
    AssetFacts,
    Clean,
    Evidence,
    Execution,
    Facts,
    Features,
    Inference,
    Orders,
    Section,
    Source,
    Split,
    Synthetic,
    Truth,
    Unique,
    Whole,
)
from hyperdapo.training_sections import Policy, Training


class Parameters(Section):
    """All parameters of one run. `load` makes it; `for_asset` checks an asset's name."""

    profile: str
    seed: Whole
    assets: Annotated[list[Asset], Field(min_length=1), Unique]
    asset_facts: dict[Asset, AssetFacts]
    source: Source
    synthetic: Synthetic
    clean: Clean
    split: Split
    features: Features
    facts: Facts
    orders: Orders
    execution: Execution
    truth: Truth
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
