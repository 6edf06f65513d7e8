"""Scorers that read of a prompt only what none of the last prompts began with.

What a token is to the base depends on the tokens before it alone. A session asks about few assets, whose prompts begin
with the same words and, from one decision to the next, with most digits of the same price; their keys and values are
kept, as servers keep those of prefixes (RadixAttention, arXiv:2312.07104).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from hyperdapo.market.columns import Mask
from hyperdapo.policy.path.reading import Reader
from hyperdapo.policy.prompts import CUE
from hyperdapo.policy.scoring import Encoded, Scorer, WholePromptScorer

_KEPT = 8  # prompts; of SmolLM2-135M 5 MB each


@dataclass(frozen=True)
class _Read:
    """What was read of a prompt: its tokens behind the instruction, keys and values, and what `Scorer._read` gave."""

    tokens: list[int]
    cache: Any
    entering: Tensor

    def shared(self, tokens: Sequence[int]) -> int:
        """How many tokens another prompt begins with that this one begins with too."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.tokens, tokens, strict=False)))


class Remembering(Scorer):
    """A `Scorer` that remembers the last prompts that it read one at a time; several are read together, as before."""

    _reader: Reader | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._remembered = deque[_Read](maxlen=_KEPT)
        self._reader = Reader(self._base.model) if Reader.fits(self._base.model) else None

    def encode(self, prompts: Sequence[str], distinct: Mask | None = None) -> Encoded:
        if len(prompts) != 1 or not (prompts[0].startswith(self._instruction) and prompts[0].endswith(CUE)):
            return super().encode(prompts, distinct)
        text = prompts[0][len(self._instruction) : -len(CUE)]
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        known = max(self._remembered, key=lambda read: read.shared(tokens), default=self._nothing())
        count, opening, cache = known.shared(tokens), self._opening.get_seq_length(), DynamicCache()
        for layer, kept in enumerate(known.cache.layers):
            cache.update(kept.keys[..., : opening + count, :], kept.values[..., : opening + count, :], layer)
        fresh = self._read(torch.tensor([tokens[count:] + self._cue], device=known.entering.device), cache)
        entering = torch.cat([known.entering[:, :count], fresh], dim=1)
        self._remembered.append(_Read(tokens, cache, entering))
        return self._encoded(cache, entering, torch.tensor([len(tokens)], device=entering.device), distinct)

    @torch.no_grad()
    def _read(self, tokens: Tensor, cache: Any) -> Tensor:
        return self._reader.read(tokens, cache, self._first) if self._reader else super()._read(tokens, cache)

    def _forward(self, entering: Tensor, places: Tensor, cache: Any, mask: Tensor) -> Tensor:
        if not self._reader:
            return super()._forward(entering, places, cache, mask)
        return self._reader.ascend(entering, places, cache, mask, self._first)[:, -1]

    def _nothing(self) -> _Read:
        return _Read([], self._opening, self._entering_opening[:, :0])


class RememberingWhole(Remembering, WholePromptScorer):
    """The same of a plain LoRA, for which what enters its lowest layer is kept."""
