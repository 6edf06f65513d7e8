"""The scoring requests of vLLM (`/generative_scoring`) and of SGLang (`/v1/score`), asked and answered.

Both ask how probable some tokens are after a query and each of several items. vLLM tells of the first label alone, so
that it is asked once for each; SGLang tells of all. Names and defaults are those of vLLM 0.33 and SGLang 0.5.23, which
`tests/test_protocols.py` reads from their wheels. What is not spoken here is refused: it would mean nothing to a policy
that was trained on prompts which begin with the instruction and end with the cue.
"""

from collections.abc import Mapping, Sequence
from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from scipy.special import softmax

from hyperdapo.errors import RequestError
from hyperdapo.market.columns import Floats
from hyperdapo.policy.path import DecisionPath
from hyperdapo.policy.prompts import CUE
from hyperdapo.serving.models import whole

VLLM, SGLANG = "/generative_scoring", "/v1/score"
MOST_ITEMS = 64
_TEXT = 20_000  # characters

Token = Annotated[int, Field(ge=0, lt=2**31, strict=True), BeforeValidator(whole)]
Text = Annotated[str, Field(max_length=_TEXT)]
Tokens = Annotated[list[Token], Field(max_length=_TEXT)]
Labels = Annotated[list[Token], Field(min_length=1, max_length=256)]
Items = Annotated[list[Text], Field(max_length=MOST_ITEMS)] | Annotated[list[Tokens], Field(max_length=MOST_ITEMS)]


class GenerativeScoringRequest(BaseModel):
    """What vLLM is asked; what it does not know it ignores."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=200)] | None = None
    query: Text | Tokens
    items: Items
    label_token_ids: Labels
    apply_softmax: bool = True
    item_first: bool = False
    add_special_tokens: bool = True


class ScoringRequest(BaseModel):
    """What SGLang is asked."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=200)] = "default"
    query: Text | Tokens
    items: Text | Items
    label_token_ids: Labels | Annotated[list[Labels], Field(min_length=1, max_length=MOST_ITEMS)]
    apply_softmax: bool = False
    temperature: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    item_first: bool = False
    return_token_logprobs: bool = False
    score_extraction_token: None = None
    embed_override_token_id: None = None


class Usage(BaseModel):
    """How many tokens were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ItemScore(BaseModel):
    """The probability of the first label after an item."""

    index: int
    object: Literal["score"] = "score"
    score: float


class GenerativeScoringResponse(BaseModel):
    """What vLLM answers."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ItemScore]
    usage: Usage


class ScoringResponse(BaseModel):
    """What SGLang answers: a row of probabilities for each item."""

    scores: list[list[float]]
    token_logprobs: list[list[float]] | None = None
    model: str
    usage: Usage
    object: Literal["scoring"] = "scoring"


class Scribe:
    """Answers scoring requests by the model of this process; a model is the adapter of an asset, and has its name."""

    def __init__(self, paths: Mapping[str, DecisionPath], most_tokens: int) -> None:
        self._paths, self._most_tokens = paths, most_tokens

    def generative_scoring(self, request: GenerativeScoringRequest) -> GenerativeScoringResponse:
        """The answer of vLLM. Raises RequestError: 404 for another model, 400 for what is not spoken here."""
        name, path = self._model(request.model)
        prompts, usage = self._prompts(path, request.query, request.items, request.item_first)
        label = request.label_token_ids
        known = _of_labels(path.next_tokens(prompts), [label] * len(prompts))
        chances = [softmax(row) if request.apply_softmax else np.exp(row) for row in known]
        return GenerativeScoringResponse(
            id=f"generative-scoring-{uuid4().hex}",
            created=int(time()),
            model=name,
            data=[ItemScore(index=place, score=float(row[0])) for place, row in enumerate(chances)],
            usage=usage,
        )

    def score(self, request: ScoringRequest) -> ScoringResponse:
        """The answer of SGLang. Raises as `generative_scoring`."""
        name, path = self._model(None if request.model == "default" else request.model)
        items = [request.items] if isinstance(request.items, str) else request.items
        if request.temperature != 1.0 and not request.apply_softmax:
            raise RequestError("temperature requires apply_softmax", 400)
        prompts, usage = self._prompts(path, request.query, items, request.item_first)
        labels: Any = request.label_token_ids
        labels = labels if isinstance(labels[0], list) else [labels] * len(prompts)
        if len(labels) != len(prompts):
            raise RequestError("label_token_ids must have one list per item", 400)
        known = _of_labels(path.next_tokens(prompts), labels)
        chances = [_softened(row, request.temperature) if request.apply_softmax else np.exp(row) for row in known]
        return ScoringResponse(
            scores=[row.tolist() for row in chances],
            token_logprobs=[row.tolist() for row in known] if request.return_token_logprobs else None,
            model=name,
            usage=usage,
        )

    def _model(self, name: str | None) -> tuple[str, DecisionPath]:
        if name is None and len(self._paths) == 1:
            return next(iter(self._paths.items()))
        if name is None or name not in self._paths:
            raise RequestError(f"there is no model {name or ''!r}; there are {', '.join(self._paths)}", 404)
        return name, self._paths[name]

    def _prompts(
        self, path: DecisionPath, query: str | list[int], items: Sequence[str] | Sequence[list[int]], item_first: bool
    ) -> tuple[list[str], Usage]:
        """The prompts that a query and n items make, and how long they are."""
        if not items:
            raise RequestError("items must contain at least one item", 400)
        asked, each = _text(path, query), [_text(path, item) for item in items]
        prompts = [item + asked if item_first else asked + item for item in each]
        if not all(prompt.startswith(path.instruction) and prompt.endswith(CUE) for prompt in prompts):
            raise RequestError(f"a prompt must begin with the instruction of this policy and end with {CUE!r}", 400)
        lengths = [len(ids) for ids in path.tokenizer(prompts)["input_ids"]]
        if max(lengths) > self._most_tokens:
            raise RequestError(f"a prompt has {max(lengths)} tokens, and at most {self._most_tokens} are read", 400)
        return prompts, Usage(prompt_tokens=sum(lengths), total_tokens=sum(lengths))


def _text(path: DecisionPath, part: str | list[int]) -> str:
    """A part of a prompt as text, which may have been sent as tokens."""
    if isinstance(part, str):
        return part
    if outside := [token for token in part if token >= len(path.tokenizer)]:
        raise RequestError(f"the token {outside[0]} is none of the vocabulary's {len(path.tokenizer)}", 400)
    return str(path.tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _softened(row: Floats, temperature: float) -> Floats:
    """Softmax at a temperature, however small."""
    with np.errstate(over="ignore"):
        chances: Floats = softmax((row - row.max()) / temperature)
    return chances


def _of_labels(log_probabilities: Floats, labels: Sequence[Sequence[int]]) -> list[Floats]:
    """Of n rows over the vocabulary those of the labels of each."""
    size = log_probabilities.shape[1]
    if outside := [token for row in labels for token in row if token >= size]:
        raise RequestError(f"label_token_id {outside[0]} is out of vocabulary range [0, {size})", 400)
    return [row[list(label)] for row, label in zip(log_probabilities, labels, strict=True)]
