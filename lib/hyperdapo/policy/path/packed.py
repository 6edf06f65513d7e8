"""Linear layers whose weights lie as oneDNN reads them, for passes of few tokens on a CPU.

`torch.nn.functional.linear` has MKL pack the weights anew in each call, and MKL knows the widest instructions of one
vendor only. Packed once they are read two to three times as fast (`benchmarks/decision.py`). The sums are float32 as
before, in another order.
"""

from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.activations import SiLUActivation

_PACKED = WeakTensorKeyDictionary()  # of weights that several models share: packed once, while any model has them
_USUAL = 48  # tokens of a state: the layout is chosen for so many rows, and right for any


class Packed(nn.Module):
    """A linear layer for inference."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        if layer.weight not in _PACKED:
            _PACKED[layer.weight] = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _USUAL)
        self._weight = _PACKED[layer.weight]
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, entering: Tensor, then: str = "none") -> Tensor:
        """(..., out) of (..., in), each through the function `then`."""
        leaving: Tensor = torch.ops.mkldnn._linear_pointwise(entering, self._weight, self._bias, then, [], "")
        return leaving

    def times(self, entering: Tensor, factor: Tensor) -> Tensor:
        """(..., out) of (..., in), each times its factor (..., out)."""
        leaving: Tensor = torch.ops.mkldnn._linear_pointwise.binary(entering, factor, self._weight, self._bias, "mul")
        return leaving


class Gated(nn.Module):
    """The feed-forward block of Llama and Qwen2: down(silu(gate(x)) up(x)), without a pass over memory in between."""

    def __init__(self, gate: Packed, up: Packed, down: Packed) -> None:
        super().__init__()
        self._gate, self._up, self._down = gate, up, down

    def forward(self, entering: Tensor) -> Tensor:
        """(..., width) of (..., width)."""
        leaving: Tensor = self._down(self._up.times(entering, self._gate(entering, "swish")))
        return leaving


def pack(layers: nn.Module) -> None:
    """Pack what is linear in float32 on a CPU that oneDNN knows, the base of an adapted layer too; the rest stays.

    Packed layers have no weights that could be trained, saved or merged.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for module in list(layers.modules()):
        if not isinstance(module, nn.ModuleDict):  # in which PEFT keeps its factors: small, and asked for their dtype
            for name, layer in list(module.named_children()):
                if type(layer) is nn.Linear and layer.weight.dtype == torch.float32 and layer.weight.is_cpu:
                    setattr(module, name, Packed(layer))
    for module in list(layers.modules()):
        if isinstance(block := getattr(module, "mlp", None), nn.Module) and (parts := _gated(block)):
            module.mlp = Gated(*parts)


def sharing(base: Any) -> Any:
    """A model whose weights are those of `base` in memory; an adapter that is put into it is not put into `base`."""
    return deepcopy(base, {id(weight): weight for weight in chain(base.parameters(), base.buffers())})


def pack_layers(base: Any) -> None:
    """`pack` all of a base but its output layer, of which a policy reads K rows."""
    pack(base.model)


def _gated(block: Any) -> tuple[Packed, Packed, Packed] | None:
    """Gate, up and down of a block that is only these, packed and without an adapter; None of another."""
    parts = tuple(getattr(block, f"{name}_proj", None) for name in ("gate", "up", "down"))
    whole = len(list(block.children())) == 4 and isinstance(getattr(block, "act_fn", None), SiLUActivation)
    return parts if whole and all(isinstance(part, Packed) for part in parts) else None  # type: ignore[return-value]
