"""What the service is asked and what it answers. Limits stand in the models, so that a refusal says what is wrong."""

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hyperdapo.errors import nearest
from hyperdapo.policy.prompts import FEATURES
from hyperdapo.sections import Objective

_MOST = 1e9  # of a feature
_COLUMNS = [feature.column for feature in FEATURES]
_EXAMPLE = {"time": 1754006400000, "levels": [[{"px": "4299.9", "sz": "3.5"}], [{"px": "4300.0", "sz": "1.25"}]]}


def whole(value: Any) -> Any:
    """3.0 as 3: JSON does not tell them apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Nanoseconds = Annotated[int, Field(ge=0, lt=2**63, strict=True), BeforeValidator(whole)]
Price = Annotated[float, Field(gt=0, lt=1e9, strict=True)]
Size = Annotated[float, Field(gt=0, lt=1e12, strict=True)]
Finite = Annotated[float, Field(ge=-_MOST, le=_MOST, strict=True)]
Asset = Annotated[str, Field(min_length=1, max_length=32)]
Message = Annotated[
    dict[str, Any],
    Field(
        json_schema_extra={
            "required": ["channel", "data"],
            "properties": {"channel": {"enum": ["l2Book", "bbo", "trades"]}},
            "examples": [{"channel": "l2Book", "data": {"coin": "ETH"} | _EXAMPLE}],
        }
    ),
]


class Body(BaseModel):
    """Unknown keys are errors, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _with_columns(schema: dict[str, Any]) -> None:
    """Name the columns of the prompt in the document of the interface."""
    schema["properties"] |= {column: {"type": "number", "minimum": -_MOST, "maximum": _MOST} for column in _COLUMNS}
    schema["required"] += _COLUMNS
    schema["additionalProperties"] = False


class Features(Body):
    """A row of `features.parquet`: when it was known, the best quotes, and the columns that the prompt reads."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_with_columns)
    __pydantic_extra__: dict[str, Finite] = Field(init=False)

    decision_ns: Nanoseconds
    best_bid: Price
    best_ask: Price
    notice: Annotated[str, Field(max_length=200)] = ""
    notice_age_s: Annotated[float, Field(ge=0, le=86400, strict=True)] = 0.0

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        columns = self.columns
        if missing := [name for name in _COLUMNS if name not in columns]:
            raise ValueError(f"the prompt reads {', '.join(missing)}, which is not there")
        if unknown := [name for name in columns if name not in _COLUMNS]:
            raise ValueError(f"no prompt reads {unknown[0]!r}{nearest(unknown[0], _COLUMNS)}")
        for feature in FEATURES:
            with np.errstate(divide="ignore", invalid="ignore"):
                if not np.isfinite(feature.scale(np.array(columns[feature.column]))):
                    raise ValueError(f"{feature.column} cannot be {columns[feature.column]:g}")
        return self

    @property
    def columns(self) -> dict[str, float]:
        """The features themselves, by name."""
        return self.__pydantic_extra__


class OwnOrder(Body):
    """What of the order rests in the book already."""

    limit_price: Price
    size: Size


def _either(schema: dict[str, Any]) -> None:
    """Features or messages, not both."""
    kinds = (("features", "object", "messages"), ("messages", "array", "features"))
    schema["oneOf"] = [
        {"required": [one], "properties": {one: {"type": kind}, other: {"type": "null"}}} for one, kind, other in kinds
    ]


class DecideRequest(Body):
    """An order to be placed, and what is known of the market: the features of a state, or messages of the exchange.

    `size` is in coin. The age of what is known is measured against `now_ns` (UTC; left out: the clock of the service).
    """

    model_config = ConfigDict(json_schema_extra=_either)

    asset: Asset
    side: Literal["buy", "sell"]
    size: Size
    objective: Objective
    now_ns: Nanoseconds | None = None
    features: Features | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    own_order: OwnOrder | None = None

    @model_validator(mode="after")
    def _check_state(self) -> Self:
        if (self.features is None) == (self.messages is None):
            raise ValueError("give either features or messages")
        return self


class Order(BaseModel):
    """What to send. Without `limit_price` at any price, and where it `waits` at the horizon only.

    `keep`: the own order is this one already; left where it is, it keeps its place in the queue.
    """

    side: Literal["buy", "sell"]
    size: float
    limit_price: float | None
    post_only: bool
    waits: bool
    keep: bool


class Decided(BaseModel):
    """The action, its order, and how probable each action is, calibrated; 0 for one that is the order of another.

    `cold_because` says what the messages lack for a state as those that the policy was trained on. `timing_ms` are the
    milliseconds of each part: of the queue the own, of the others those of all that were decided together.
    """

    asset: str
    objective: Objective
    decision_ns: int
    mid: float
    horizon_s: float
    action: str
    order: Order
    probabilities: dict[str, float]
    cold_because: str
    timing_ms: dict[str, float]


class Fault(BaseModel):
    """Why a request was refused, in one sentence."""

    message: str
    type: str
    param: str | None = None
    code: int


class Refusal(BaseModel):
    """The body of each answer that is no success, in the form that vLLM has."""

    error: Fault


class Health(BaseModel):
    """Whether decisions can be had, of which assets, and which upstreams are well."""

    status: Literal["ok"]
    assets: list[str]
    waiting: int
    upstreams: dict[str, bool]


class ModelCard(BaseModel):
    """One model that answers scoring requests: the adapter of an asset, by its name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hyperdapo"
    root: str | None = None
    parent: str | None = None


class ModelList(BaseModel):
    """Those of this service."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
