"""The base's pass over the tokens of a state, without what a general library spends between two matrix products.

Llama and Qwen2 are the same but for a bias: RMS norms, rotary positions, grouped heads, a gated block. On few tokens
the forward pass of transformers takes a fifth of its time to prepare these for any other case; `tests/test_path.py`
holds this one to it. Of the last layer only keys and values are computed, since nothing reads what it makes of a state.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import LlamaModel, Qwen2Model

from hyperdapo.policy.path.packed import Gated, Packed


class Reader:
    """A decoder of packed layers, with adapters on its projections at most."""

    def __init__(self, model: Any) -> None:
        """`model` is one that `fits`."""
        self._model = model
        self._layers = [_Layer(model.config, layer, _without_adapters(layer)) for layer in model.layers]
        self._adapted = [_Layer(model.config, layer, _projections(layer)) for layer in model.layers]

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether this is a model whose forward pass is known here, and packed."""
        known = isinstance(model, LlamaModel | Qwen2Model) and not model.config.attention_dropout
        return known and all(
            isinstance(part, Packed | Gated)
            for layer in model.layers
            for part in (*_without_adapters(layer), layer.mlp)
        )

    def read(self, tokens: Tensor, cache: Any, first: int) -> Tensor:
        """What enters layer `first` (n, t, width), as the base without adapters reads tokens (n, t) behind a cache.

        Keys and values of all layers go into the cache.
        """
        begins, count = cache.get_seq_length(), tokens.shape[1]
        places = torch.arange(begins, begins + count, device=tokens.device)
        hidden = self._model.embed_tokens(tokens)
        turns = self._turns(hidden, places[None])
        seen = torch.arange(begins + count, device=tokens.device) <= places[:, None]
        entering: Tensor = hidden
        for number, layer in enumerate(self._layers):
            entering = hidden if number == first else entering
            queries, *known = layer.project(hidden, turns)
            keys, values = cache.update(*known, number)
            if number < len(self._layers) - 1:
                hidden = layer.finish(hidden, queries, keys, values, seen)
        return entering

    def ascend(self, hidden: Tensor, places: Tensor, cache: Any, mask: Tensor, first: int) -> Tensor:
        """What the adapted layers from `first` on make of tokens (n, t, width) at `places` (n, t) behind a cache.

        `mask` (n, 1, t, all) is added to attention scores.
        """
        turns = self._turns(hidden, places)
        for number, layer in enumerate(self._adapted[first:], first):
            queries, *known = layer.project(hidden, turns)
            keys, values = cache.update(*known, number)
            hidden = layer.finish(hidden, queries, keys, values, mask)
        return _normed(hidden, self._model.norm)

    def _turns(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """Cosine and sine of the angles (n, 1, t, d) of places (n, t)."""
        return tuple(part[:, None] for part in self._model.rotary_emb(hidden, places))


class _Layer:
    """One layer with these projections of queries, keys, values and the output."""

    def __init__(self, config: Any, layer: Any, projections: list[nn.Module]) -> None:
        self._norm, self._second_norm, self._block = layer.input_layernorm, layer.post_attention_layernorm, layer.mlp
        self._query, self._key, self._value, self._out = projections
        self._heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads

    def project(self, hidden: Tensor, turns: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (n, heads, t, d) of what enters the layer."""
        normed = _normed(hidden, self._norm)
        queries, keys = _headed(self._query(normed), self._heads), _headed(self._key(normed), self._key_heads)
        return _turned(queries, *turns), _turned(keys, *turns), _headed(self._value(normed), self._key_heads)

    def finish(self, hidden: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """What leaves the layer (n, t, width), where tokens attend as the mask has it."""
        keys, values = (part.repeat_interleave(self._heads // self._key_heads, dim=1) for part in (keys, values))
        attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        hidden = hidden + self._out(attended.transpose(1, 2).flatten(2))
        leaving: Tensor = hidden + self._block(_normed(hidden, self._second_norm))
        return leaving


def _projections(layer: Any) -> list[nn.Module]:
    """Those of queries, keys, values and the output, with adapters where they have one."""
    attention = layer.self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]


def _without_adapters(layer: Any) -> list[nn.Module]:
    return [getattr(part, "base_layer", part) for part in _projections(layer)]


def _normed(hidden: Tensor, norm: Any) -> Tensor:
    normed: Tensor = rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)
    return normed


def _headed(projected: Tensor, heads: int) -> Tensor:
    """(n, heads, t, d) of (n, t, heads d)."""
    apart: Tensor = projected.unflatten(-1, (heads, -1))
    return apart.transpose(1, 2)


def _turned(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Vectors (n, heads, t, d) turned by the angles of their places (1, 1, t, d): RoFormer, arXiv:2104.09864."""
    left, right = vectors.chunk(2, dim=-1)
    return vectors * cosine + torch.cat([-right, left], dim=-1) * sine
