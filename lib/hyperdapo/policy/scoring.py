"""The policy as a distribution over K letters: one forward pass, nothing generated (DESIGN §6).

Three things are computed less often than a plain forward pass would: the instruction, which every prompt begins with
(once for a batch); the layers below the lowest adapter, the trunk, which training never changes (once for a state);
and the logits, of which only the K letters after the last token are needed. `tests/test_models.py` holds the result
to that of the plain forward pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyperdapo.errors import ModelError


@dataclass(frozen=True)
class Hidden:
    """What the trunk makes of n states: `states` (n, T, d), padded on the right, `last` (n,) the place of the last token."""

    states: Tensor
    last: Tensor

    def __getitem__(self, rows: Any) -> "Hidden":
        return Hidden(self.states[rows], self.last[rows])

    def __len__(self) -> int:
        return len(self.states)


class _SharedPrefix:
    """Keys and values of the instruction: computed for one row, seen by every row of the batches that follow."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if layer not in self._layers:
            self._layers[layer] = keys, values
            return keys, values
        before = (tensor.expand(len(keys), -1, -1, -1) for tensor in self._layers[layer])
        return tuple(torch.cat(pair, dim=-2) for pair in zip(before, (keys, values), strict=True))  # type: ignore[return-value]


class Scorer:
    """Log-probabilities of K letters after a prompt.

    Parameters
    ----------
    model : a causal language model of the Llama or Qwen2 kind, with or without a LoRA adapter
    tokenizer : its tokenizer
    instruction : what every prompt begins with
    letters : (K,) the letter of each action
    frozen : the number of layers, from the lowest, that no adapter touches

    Raises
    ------
    ModelError
        If a letter is not one token.
    """

    def __init__(self, model: Any, tokenizer: Any, instruction: str, letters: Sequence[str], frozen: int = 0) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder: Any = base.model
        self._tokenizer = tokenizer
        self._instruction = instruction
        self._frozen, self._trained = self._decoder.layers[:frozen], self._decoder.layers[frozen:]
        self._letters = base.get_output_embeddings().weight[_letter_ids(tokenizer, letters)].detach().float()
        opening = torch.tensor([tokenizer(instruction)["input_ids"]], device=self._letters.device)
        self._length = opening.shape[1]
        self._frozen_prefix = _SharedPrefix()
        with torch.no_grad():
            self._opening = self._run(self._frozen, self._decoder.embed_tokens(opening), self._frozen_prefix, 0)

    @torch.no_grad()
    def trunk(self, prompts: Sequence[str]) -> Hidden:
        """The states of `prompts` below the lowest adapter.

        Raises
        ------
        ModelError
            If a prompt does not begin with the instruction.
        """
        for prompt in prompts:
            if not prompt.startswith(self._instruction):
                raise ModelError(f"this prompt does not begin with the instruction: {prompt[:80]!r}")
        texts = [prompt[len(self._instruction) :] for prompt in prompts]
        rows = [torch.tensor(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._letters.device)
        last = torch.tensor([len(row) - 1 for row in rows], device=tokens.device)
        embedded = self._decoder.embed_tokens(tokens)
        return Hidden(self._run(self._frozen, embedded, self._frozen_prefix, self._length), last)

    def log_probabilities(self, hidden: Hidden) -> Tensor:
        """(n, K) in float32, with a gradient where the adapter wants one."""
        prefix = _SharedPrefix()
        self._run(self._trained, self._opening, prefix, 0)
        outputs = self._run(self._trained, hidden.states, prefix, self._length)
        rows = torch.arange(len(hidden), device=outputs.device)
        answers = self._decoder.norm(outputs[rows, hidden.last])
        return torch.log_softmax(answers.float() @ self._letters.T, dim=-1)

    def _run(self, layers: Iterable[nn.Module], states: Tensor, prefix: _SharedPrefix, start: int) -> Tensor:
        """`states` (n, T, d) of tokens `start`, `start` + 1, … through `layers`."""
        positions = torch.arange(start, start + states.shape[1], device=states.device)[None]
        rotary = self._decoder.rotary_emb(states, positions)
        unseen = torch.arange(int(positions[0, -1]) + 1, device=states.device) > positions[0, :, None]
        mask = torch.zeros(unseen.shape, dtype=states.dtype, device=states.device).masked_fill(unseen, -torch.inf)
        for layer in layers:
            states = layer(
                states,
                attention_mask=mask[None, None],
                position_embeddings=rotary,
                position_ids=positions,
                past_key_values=prefix,
            )
        return states


def _letter_ids(tokenizer: Any, letters: Sequence[str]) -> list[int]:
    tokens = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"] for letter in letters]
    for letter, ids in zip(letters, tokens, strict=True):
        if len(ids) != 1:
            raise ModelError(f"{letter!r} is {len(ids)} tokens of this tokenizer; an action must be one: use fewer offsets")
    return [ids[0] for ids in tokens]
