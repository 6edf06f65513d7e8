"""The policy as a distribution over K letters: one forward pass, nothing generated (DESIGN §6).

The adapter is an activated LoRA (arXiv:2504.12397, PEFT's `alora_invocation_tokens`): it acts from the cue at the end
of the prompt on, so that everything before the cue is read by the frozen base alone. Its keys and values therefore
never change: they are computed once for a state, whatever the adapter and however long it trains, and those of the
instruction once for all states. What is left for each pass are the few tokens of the cue, and K rows of the output
layer. `tests/test_models.py` holds the result to that of the plain forward pass.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from hyperdapo.errors import ModelError
from hyperdapo.policy.prompts import CUE

_BATCH = 32


@dataclass(frozen=True)
class Encoded:
    """n states as the base reads them, cue left out.

    `memory` (n, T, layers, 2, heads, d) are keys and values, padded on the right; `lengths` (n,) tokens.
    """

    memory: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: Any) -> "Encoded":
        return Encoded(self.memory[rows], self.lengths[rows])


class Scorer:
    """Log-probabilities of K letters after a prompt.

    Parameters
    ----------
    model : a causal language model, plain or with activated LoRA adapters of which one is active
    tokenizer : its tokenizer
    instruction : what every prompt begins with
    letters : (K,) the letter of each action

    Raises
    ------
    ModelError
        If a letter is not one token.
    """

    def __init__(self, model: Any, tokenizer: Any, instruction: str, letters: Sequence[str]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._instruction = instruction
        self._base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._letters = self._base.get_output_embeddings().weight[letter_ids(tokenizer, letters)].detach().float()
        self._cue = torch.tensor([cue_ids(tokenizer)], device=model.device)
        opening = torch.tensor([tokenizer(instruction)["input_ids"]], device=model.device)
        self._opening = self._read(opening, DynamicCache())

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """What the base makes of n prompts, without instruction and cue.

        Raises
        ------
        ModelError
            If a prompt does not begin with the instruction or does not end with the cue.
        """
        for prompt in prompts:
            if not (prompt.startswith(self._instruction) and prompt.endswith(CUE)):
                raise ModelError(f"a prompt must begin with the instruction and end with {CUE!r}, not {prompt!r}")
        texts = [prompt[len(self._instruction) : -len(CUE)] for prompt in prompts]
        rows = [torch.tensor(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]
        tokens = pad_sequence(rows, batch_first=True).to(self._model.device)
        opening = self._opening.expand(len(rows), *self._opening.shape[1:])
        memory = self._read(tokens, _as_cache(opening))[:, self._opening.shape[1] :]
        return Encoded(memory, torch.tensor([len(row) for row in rows], device=tokens.device))

    def log_probabilities(self, encoded: Encoded) -> Tensor:
        """(n, K) in float32, with a gradient where the adapter wants one."""
        count = len(encoded)
        memory = torch.cat([self._opening.expand(count, *self._opening.shape[1:]), encoded.memory], dim=1)
        begins = self._opening.shape[1] + encoded.lengths
        places = torch.arange(memory.shape[1] + self._cue.shape[1], device=memory.device)
        seen = (places < begins[:, None]) | (places >= memory.shape[1])
        answer = self._model(
            input_ids=self._cue.expand(count, -1),
            attention_mask=seen.long(),
            position_ids=begins[:, None] + torch.arange(self._cue.shape[1], device=memory.device),
            past_key_values=_as_cache(memory),
            use_cache=True,
            output_hidden_states=True,
            logits_to_keep=torch.empty(0, dtype=torch.long, device=memory.device),  # only the K rows below are needed
        )
        return torch.log_softmax(answer.hidden_states[-1][:, -1].float() @ self._letters.T, dim=-1)

    @torch.no_grad()
    def _read(self, tokens: Tensor, cache: Any) -> Tensor:
        """Keys and values (n, T, layers, 2, heads, d) once the base has read `tokens` (n, t) behind `cache`."""
        with self._model.disable_adapter() if self._model is not self._base else nullcontext():
            self._base.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        layers = [torch.stack([layer.keys, layer.values]) for layer in cache.layers]
        return torch.stack(layers).permute(2, 4, 0, 1, 3, 5)


class Encodings:
    """What the base makes of each of n prompts: computed when first asked for, and kept while `limit_gb` lasts."""

    def __init__(self, scorer: Scorer, prompts: Sequence[str], limit_gb: float) -> None:
        self._scorer = scorer
        self._prompts = prompts
        self._left = limit_gb * 1e9
        self._kept: dict[int, Tensor] = {}

    def __getitem__(self, rows: Sequence[int]) -> Encoded:
        """The states of `rows`, in their order, padded to the longest of them."""
        fresh: dict[int, Tensor] = {}
        missing = [row for row in rows if row not in self._kept]
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            encoded = self._scorer.encode([self._prompts[row] for row in batch])
            for row, memory, length in zip(batch, encoded.memory, encoded.lengths.tolist(), strict=True):
                fresh[row] = memory[:length].clone()
        found = [self._kept[row] if row in self._kept else fresh[row] for row in rows]
        for row, memory in fresh.items():
            self._left -= memory.nbytes
            if self._left >= 0:
                self._kept[row] = memory
        lengths = torch.tensor([len(memory) for memory in found], device=found[0].device)
        return Encoded(pad_sequence(found, batch_first=True), lengths)


def cue_ids(tokenizer: Any) -> list[int]:
    """The tokens of the cue, from which on an adapter acts."""
    ids: list[int] = tokenizer(CUE, add_special_tokens=False)["input_ids"]
    return ids


def letter_ids(tokenizer: Any, letters: Sequence[str]) -> list[int]:
    """The token of each letter as it follows the cue.

    Raises
    ------
    ModelError
        If a letter is not one token.
    """
    tokens = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"] for letter in letters]
    for letter, ids in zip(letters, tokens, strict=True):
        if len(ids) != 1:
            raise ModelError(
                f"{letter!r} is {len(ids)} tokens of this tokenizer, not one: use fewer policy.offsets_bps"
            )
    return [ids[0] for ids in tokens]


def _as_cache(memory: Tensor) -> DynamicCache:
    """Keys and values (n, T, layers, 2, heads, d) in the form that transformers wants."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(memory.permute(2, 3, 0, 4, 1, 5)):
        cache.update(keys, values, layer)
    return cache
