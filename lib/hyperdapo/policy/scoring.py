"""The policy as a distribution over K letters: one forward pass, nothing generated (docs/design.md, State and action).

The adapter is an activated LoRA (arXiv:2504.12397): it acts from the cue at the end of the prompt on, so that all that
comes before the cue is read by the frozen base alone. Its keys and values therefore never change: they are computed
once for a state, whatever the adapter and however long it trains, and those of the instruction once for all states. The
same holds for the cue in the layers below the adapter (`lora.layers`). What is left for each pass are the few tokens of
the cue in the adapter's layers, and K rows of the output layer. Since an adapter is shown the cue alone, a plain LoRA
layer does here; saved adapters say from which tokens on they act (PEFT's `alora_invocation_tokens`).
`tests/test_models.py` holds the result to PEFT's forward pass over whole prompts.

A plain LoRA (`lora.activated: false`, `WholePromptScorer`) acts on every token, as servers and merged weights have it.
Only what enters its lowest layer is then read once; a pass costs as much as reading the prompt in its layers, but for
the instruction, which is read once for the states of a pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import ModuleList
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import DynamicCache

from hyperdapo.errors import ModelError
from hyperdapo.market.columns import Floats, Mask
from hyperdapo.params import Parameters
from hyperdapo.policy.prompts import CUE, instruction, letters

_BATCH = 32  # states that are read at once
_NEVER = -1e4  # a logit whose probability is 0 in float32, and which times 0 is 0
_SCORED = 64  # states that are scored at once


@dataclass(frozen=True)
class Encoded:
    """n states as the base reads them, as far up as the adapter's layers.

    `memory` (n, layers, 2, heads, T, d) are keys and values of the state's tokens in those layers, padded on the
    right, or for a plain LoRA (n, T, width) what enters the lowest of them; `lengths` (n,) tokens; `cue` (n, c, width)
    is what enters the lowest of those layers at the cue; `distinct` (n, K) are the actions among which there is a
    choice.
    """

    memory: Tensor
    lengths: Tensor
    cue: Tensor
    distinct: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: Any) -> "Encoded":
        return Encoded(self.memory[rows], self.lengths[rows], self.cue[rows], self.distinct[rows])

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept of these states."""
        return sum(part.nbytes for part in vars(self).values())

    def to(self, device: torch.device) -> "Encoded":
        """The same on a device."""
        return Encoded(*(part.to(device) for part in vars(self).values()))


class Scorer:
    """Log-probabilities of K letters after a prompt.

    Parameters
    ----------
    model : a causal language model, plain or with a LoRA adapter
    tokenizer : its tokenizer
    instruction : what every prompt begins with
    letters : (K,) the letter of each action
    layers : how many upper layers adapters act on; None for all

    Raises
    ------
    ModelError
        If a letter is not one token.
    """

    def __init__(
        self, model: Any, tokenizer: Any, instruction: str, letters: Sequence[str], layers: int | None = None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._instruction = instruction
        self._base = model.get_base_model() if hasattr(model, "get_base_model") else model
        count = self._base.config.num_hidden_layers
        self._first = 0 if layers is None else max(0, count - layers)
        self._letters = self._base.get_output_embeddings().weight[letter_ids(tokenizer, letters)].detach().float()
        self._cue = cue_ids(tokenizer)
        opening = torch.tensor([tokenizer(instruction)["input_ids"]], device=model.device)
        self._opening: Any = DynamicCache()
        self._entering_opening = self._read(opening, self._opening)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self._letters.device
        return device

    def through(self, model: Any) -> "Scorer":
        """This scorer with another `model`: the same base with an adapter, or wrapped for many GPUs."""
        other = copy(self)
        other._model = model
        return other

    def encode(self, prompts: Sequence[str], distinct: Mask | None = None) -> Encoded:
        """What the base makes of n prompts; `distinct` (n, K) as in `States`, None where all actions are.

        Raises
        ------
        ModelError
            If a prompt does not begin with the instruction or does not end with the cue.
        """
        for prompt in prompts:
            if not (prompt.startswith(self._instruction) and prompt.endswith(CUE)):
                raise ModelError(f"a prompt must begin with the instruction and end with {CUE!r}, not {prompt!r}")
        texts = [prompt[len(self._instruction) : -len(CUE)] for prompt in prompts]
        states = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        device = self._opening.layers[0].keys.device
        tokens = pad_sequence([torch.tensor(ids + self._cue) for ids in states], batch_first=True).to(device)
        lengths = torch.tensor([len(ids) for ids in states], device=device)
        cache: Any = DynamicCache()
        for layer, opening in enumerate(self._opening.layers):
            cache.update(*(part.expand(len(states), -1, -1, -1) for part in (opening.keys, opening.values)), layer)
        return self._encoded(cache, self._read(tokens, cache), lengths, distinct)

    def _encoded(self, cache: Any, entering: Tensor, lengths: Tensor, distinct: Mask | None) -> Encoded:
        """Of n states of so many tokens (n,) before the cue, from what was read of them behind the instruction."""
        places = lengths[:, None] + torch.arange(len(self._cue), device=lengths.device)
        cue = entering.gather(1, places[..., None].expand(-1, -1, entering.shape[-1]))
        choice = torch.ones(len(lengths), len(self._letters), dtype=torch.bool) if distinct is None else distinct
        memory = self._memory(cache, entering, int(lengths.max()))
        return Encoded(memory, lengths, cue, torch.as_tensor(choice, device=lengths.device))

    def encode_each(self, beginnings: Sequence[str], endings: Sequence[str]) -> Encoded:
        """What the base makes of n m prompts: each of n beginnings, read once, then each of m endings and the cue.

        Raises
        ------
        ModelError
            If beginnings do not begin with the instruction, or differ in their number of tokens.
        """
        if not all(beginning.startswith(self._instruction) for beginning in beginnings):
            raise ModelError("a prompt must begin with the instruction")
        begun, ended = (
            self._tokenizer(texts, add_special_tokens=False)["input_ids"]
            for texts in ([beginning[len(self._instruction) :] for beginning in beginnings], list(endings))
        )
        if len({len(ids) for ids in begun}) > 1:
            raise ModelError("prompts that are read together must have the same number of tokens before their endings")
        device, count = self._opening.layers[0].keys.device, len(endings)
        cache: Any = DynamicCache()
        for layer, opening in enumerate(self._opening.layers):
            cache.update(*(part.expand(len(begun), -1, -1, -1) for part in (opening.keys, opening.values)), layer)
        beginning = self._read(torch.tensor(begun, device=device), cache)
        cache.batch_repeat_interleave(count)
        tails = pad_sequence([torch.tensor(ids + self._cue) for ids in ended], batch_first=True).to(device)
        ending = self._read(tails.repeat(len(begun), 1), cache)
        entering = torch.cat([beginning.repeat_interleave(count, dim=0), ending], dim=1)
        tokens = torch.tensor([len(ids) for ids in ended], device=device).repeat(len(begun))
        return self._encoded(cache, entering, beginning.shape[1] + tokens, None)

    def log_probabilities(self, encoded: Encoded) -> Tensor:
        """(n, K) in float32, with a gradient where the adapter wants one; `_NEVER` less for what is not distinct."""
        logits = self._last(encoded).float() @ self._letters.T
        return torch.log_softmax(logits.masked_fill(~encoded.distinct, _NEVER), dim=-1)

    @torch.no_grad()
    def next_tokens(self, encoded: Encoded) -> Tensor:
        """(n, vocabulary) log-probabilities of whatever may come next, in float32."""
        weight = self._base.get_output_embeddings().weight
        return torch.log_softmax(self._last(encoded).float() @ weight.float().T, dim=-1)

    def _memory(self, cache: Any, entering: Tensor, longest: int) -> Tensor:
        """What is kept of the tokens of states before the cue, at most `longest`: their keys and values."""
        begins = self._opening.get_seq_length()
        layers = [torch.stack([layer.keys, layer.values], dim=1) for layer in cache.layers[self._first :]]
        return torch.stack(layers, dim=1)[..., begins : begins + longest, :]

    def _last(self, encoded: Encoded) -> Tensor:
        """(n, width) what the policy makes of the last token."""
        memory = _Memory(self._opening, encoded.memory, self._first)
        return self._forward(encoded.cue, self._cue_places(encoded), memory, self._mask(encoded))

    def _cue_places(self, encoded: Encoded) -> Tensor:
        """(n, c) positions of the cue in each prompt."""
        places = torch.arange(encoded.cue.shape[1], device=encoded.lengths.device)
        before: int = self._opening.get_seq_length()
        return before + encoded.lengths[:, None] + places

    def _forward(self, entering: Tensor, places: Tensor, cache: Any, mask: Tensor) -> Tensor:
        """(n, width) what the adapter's layers make of the last of t tokens (n, t, width) behind a cache."""
        with self._upper_layers():
            answer = self._model(
                inputs_embeds=entering,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
                logits_to_keep=torch.empty(0, dtype=torch.long, device=places.device),  # only the K rows of letters
            )
        last: Tensor = answer.hidden_states[-1][:, -1]
        return last

    @torch.no_grad()
    def evaluate(self, encoded: Encoded) -> Tensor:
        """(n, K) as `log_probabilities`, without a gradient and without dropout: what the policy is."""
        training = self._model.training
        self._model.eval()
        try:
            return self.log_probabilities(encoded)
        finally:
            self._model.train(training)

    def _mask(self, encoded: Encoded) -> Tensor:
        """(n, 1, c, opening + T + c) to be added to attention scores: 0 where a token of the cue may look."""
        width, opening, padded = encoded.cue.shape[1], self._opening.get_seq_length(), encoded.memory.shape[-2]
        places = torch.arange(opening + padded + width, device=encoded.lengths.device)
        state = places < opening + encoded.lengths[:, None, None]
        before = places - opening - padded <= torch.arange(width, device=places.device)[:, None]
        seen = state | ((places >= opening + padded) & before)
        return _added(seen, encoded.cue.dtype)

    @torch.no_grad()
    def _read(self, tokens: Tensor, cache: Any) -> Tensor:
        """Let the base read `tokens` (n, t) behind `cache`; what enters the lowest adapted layer (n, t, width)."""
        with _without_adapters(self._base):
            read = self._base.model(input_ids=tokens, past_key_values=cache, use_cache=True, output_hidden_states=True)
        entering: Tensor = read.hidden_states[self._first]
        return entering

    @contextmanager
    def _upper_layers(self) -> Iterator[None]:
        """Only the layers that an adapter acts on, while the block runs."""
        stack = self._base.model
        whole = stack.layers
        stack.layers = ModuleList(whole[self._first :])
        try:
            yield
        finally:
            stack.layers = whole


class WholePromptScorer(Scorer):
    """The same with a plain LoRA, which acts on every token of the prompt."""

    def _memory(self, cache: Any, entering: Tensor, longest: int) -> Tensor:
        return entering[:, :longest]

    def _last(self, encoded: Encoded) -> Tensor:
        """The instruction, the same for all states, is read first, by itself; then states and cues."""
        opening = self._entering_opening
        begins, longest = opening.shape[1], encoded.memory.shape[1]
        cache, places = _Growing(), torch.arange(begins + longest, device=opening.device)
        causal = places <= places[:, None]
        self._forward(opening, places[None, :begins], cache, _added(causal[None, :begins, :begins], opening.dtype))
        cache.expand(len(encoded))
        width = encoded.cue.shape[1]
        state = pad(causal[begins:], (0, width)).expand(len(encoded), -1, -1)
        mask = torch.cat([_added(state, opening.dtype), self._mask(encoded)], dim=2)
        positions = torch.cat([places[begins:].expand(len(encoded), -1), self._cue_places(encoded)], dim=1)
        return self._forward(torch.cat([encoded.memory, encoded.cue], dim=1), positions, cache, mask)


def make_scorer(
    model: Any,
    tokenizer: Any,
    parameters: Parameters,
    activated: type[Scorer] = Scorer,
    plain: type[Scorer] = WholePromptScorer,
) -> Scorer:
    """The scorer of a base model, with or without an adapter, for the action set of `parameters`.

    Of one kind for an activated LoRA, of another for a plain one.
    """
    policy = parameters.policy
    kind = activated if policy.lora.activated else plain
    opening = instruction(policy.actions, policy.prompt_style)
    return kind(model, tokenizer, opening, letters(policy.actions), policy.lora.layers)


class Encodings:
    """What the base makes of each of n prompts, read once and kept as far as `limit_gb` reaches, else read when asked.

    It is kept in the host's memory, and brought to the model's device when asked. What is kept is read in batches that
    depend on the prompts alone, so that a resumed training has the same numbers. Of the others `hold` keeps some.
    """

    def __init__(self, scorer: Scorer, prompts: Sequence[str], limit_gb: float, distinct: Mask | None = None) -> None:
        self._scorer = scorer
        self._prompts = prompts
        self._distinct = distinct
        self._kept: dict[int, Encoded] = {}
        self._held: dict[int, Encoded] = {}
        self.nbytes = 0
        for batch in tqdm(self._batches(range(len(prompts))), "reading states", delay=2, mininterval=5, leave=False):
            if self.nbytes >= limit_gb * 1e9:
                break
            self._kept |= self._read(batch)
            self.nbytes += sum(self._kept[row].nbytes for row in batch)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, rows: Sequence[int]) -> Encoded:
        """The states of `rows`, in their order, padded to the longest of them."""
        known = self._held | self._fresh(rows)
        states = [self._kept[row] if row in self._kept else known[row] for row in rows]
        longest = max(int(state.lengths) for state in states)
        memory = torch.stack([pad(state.memory, (0, 0, 0, longest - state.memory.shape[-2])) for state in states])
        others = (torch.stack([getattr(state, name) for state in states]) for name in ("lengths", "cue", "distinct"))
        return Encoded(memory, *others).to(self._scorer.device)

    def hold(self, rows: Sequence[int]) -> None:
        """Keep the states of `rows`, and none but these, until the next call, beside those that are always kept."""
        self._held = {}  # all of them anew, so that a resumed training reads them in the same batches
        self._held = self._fresh(rows)

    def _fresh(self, rows: Sequence[int]) -> dict[int, Encoded]:
        """Those of `rows` that are neither kept nor held, as they are read now."""
        fresh: dict[int, Encoded] = {}
        missing = [row for row in dict.fromkeys(rows) if row not in self._kept and row not in self._held]
        for batch in self._batches(missing):
            fresh |= self._read(batch)
        return fresh

    def _batches(self, rows: Iterable[int]) -> list[list[int]]:
        """Shortest first, so that little is padded."""
        ordered = sorted(rows, key=lambda row: len(self._prompts[row]))
        return [ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH)]

    def _read(self, batch: list[int]) -> dict[int, Encoded]:
        distinct = None if self._distinct is None else self._distinct[batch]
        encoded = self._scorer.encode([self._prompts[row] for row in batch], distinct).to(torch.device("cpu"))
        states: dict[int, Encoded] = {}
        for place, row in enumerate(batch):
            length = encoded.lengths[place]
            memory = encoded.memory[place, ..., : int(length), :].clone()
            states[row] = Encoded(memory, length, encoded.cue[place].clone(), encoded.distinct[place])
        return states


def score(scorer: Scorer, states: Encodings, batch_size: int = _SCORED) -> Floats:
    """(n, K) log-probabilities in n states, in batches."""
    count = len(states)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    return np.concatenate([scorer.evaluate(states[batch]).cpu().numpy() for batch in batches])


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
            raise ModelError(f"{letter!r} is {len(ids)} tokens of this tokenizer, not one: use fewer policy.actions")
    return [ids[0] for ids in tokens]


class _Memory:
    """Keys and values before the cue, in the shape of a cache of transformers; what comes after is not kept."""

    def __init__(self, opening: Any, memory: Tensor, first: int) -> None:
        self._opening, self._memory, self._first = opening, memory, first

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (n, heads, opening + T + c, d) of a layer, those of the cue last."""
        opening, state = self._opening.layers[layer], self._memory[:, layer - self._first]
        before = [part.expand(len(keys), -1, -1, -1) for part in (opening.keys, opening.values)]
        return torch.cat([before[0], state[:, 0], keys], dim=2), torch.cat([before[1], state[:, 1], values], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        """Tokens before the cue, padding included."""
        return int(self._opening.get_seq_length() + self._memory.shape[-2])


class _Growing:
    """Keys and values as they come, with their gradient, in the shape of a cache of transformers."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, those of the tokens that come behind the former ones."""
        before = self._kept.get(layer, (keys[..., :0, :], values[..., :0, :]))
        self._kept[layer] = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        return self._kept[layer]

    def expand(self, count: int) -> None:
        """Have `count` prompts begin with what was read so far."""
        self._kept = {
            layer: (keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1))
            for layer, (keys, values) in self._kept.items()
        }

    def get_seq_length(self, *_: Any) -> int:
        """Tokens so far."""
        return next((keys.shape[2] for keys, _ in self._kept.values()), 0)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, 1, q, k) to be added to attention scores: 0 where a token may look (n, q, k)."""
    blind = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, blind)[:, None]


@contextmanager
def _without_adapters(base: Any) -> Iterator[None]:
    """The base as it was before any adapter was put into it, while the block runs."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # see `models`: takes seconds

    active = [module for module in base.modules() if isinstance(module, BaseTunerLayer) and not module.disable_adapters]
    for module in active:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in active:
            module.enable_adapters(True)
