"""One policy in several precisions (§4.5.1, §4.8.4): the base's linear layers as float32, bfloat16, int8 or NF4.

And as llama.cpp has it, where GGUF files of the base are at hand. The adapter stays as it was trained. What a precision
costs and what it still decides is measured by `latency`.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import nn

from hyperdapo.params import Parameters
from hyperdapo.policy.path import DecisionPath, PromptPath, llama_cpp
from hyperdapo.policy.path.packed import pack_layers

FLOAT32, BFLOAT16, INT8, NF4 = "float32", "bfloat16", "int8", "nf4"


def own(parameters: Parameters) -> str:
    """The precision in which the policy was trained, and is served."""
    return NF4 if parameters.policy.four_bit else BFLOAT16 if torch.cuda.is_available() else FLOAT32


def available(parameters: Parameters) -> list[str]:
    """The precisions that this machine can decide in, the policy's own first; one of 4 bits cannot become finer.

    Raises
    ------
    MissingInputError
        As `llama_cpp.available`.
    """
    first, others = own(parameters), dict[str, bool]()
    if first == FLOAT32:
        others = {BFLOAT16: has_bfloat16(), INT8: torch.backends.quantized.engine != "none", NF4: True}
    return [first, *(name for name, there in others.items() if there), *llama_cpp.available(parameters)]


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16; one that does not takes six times as long in it."""
    return bool(torch.cpu._is_avx512_bf16_supported())  # type: ignore[no-untyped-call]


@contextmanager
def open_path(backend: str, parameters: Parameters, adapter: Path | None) -> Iterator[tuple[PromptPath, float]]:
    """The policy in one of the `available` precisions while the block runs, and the size of its weights, MB.

    Raises
    ------
    MissingInputError
        If no adapter is there, or as `available`.
    ModelError
        As `DecisionPath` and `llama_cpp.open_path`.
    """
    if model := llama_cpp.available(parameters).get(backend):
        with llama_cpp.open_path(parameters, adapter, model) as opened:
            yield opened
        return
    sizes_mb = []

    def prepare(base: Any) -> None:
        _CONVERSIONS[backend](base)
        sizes_mb.append(serialised_mb(base))
        if backend == FLOAT32:
            pack_layers(base)

    path = DecisionPath(parameters, adapter, prepare)
    yield path, sizes_mb[0]


def serialised_mb(model: nn.Module) -> float:
    """Size of a model's weights as they are saved, MB (1e6 bytes)."""
    file = _Counted()
    torch.save(model.state_dict(), file)
    return file.written / 1e6


class _Counted(io.BytesIO):
    """A file that keeps nothing but its length: the weights may be larger than what memory is left."""

    written = 0

    def write(self, data: Any) -> int:
        self.written += len(data)
        return len(data)


def _as_it_is(base: Any) -> None:
    pass


def _to_bfloat16(base: Any) -> None:
    nn.Module.to(base, torch.bfloat16)


def _to_int8(base: Any) -> None:
    """Weights in 8 bits by output row, activations in 8 bits as they come."""
    config = torch.ao.quantization.per_channel_dynamic_qconfig
    chosen = {name: config for name, module in base.model.named_modules() if _is_linear(name, module)}
    with catch_warnings():
        simplefilter("ignore")  # deprecations: the successor is a package of its own
        torch.ao.quantization.quantize_dynamic(base.model, chosen, inplace=True)  # type: ignore[no-untyped-call]


def _to_nf4(base: Any) -> None:
    """Weights in 4 bits with double quantisation (Listing 4.9)."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    for name, layer in list(base.model.named_modules()):
        if _is_linear(name, layer):
            linear: Any = layer
            four_bit = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=linear.weight.dtype,
                quant_type="nf4",
            )
            four_bit.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
            four_bit.bias = linear.bias
            base.model.set_submodule(name, four_bit.to(linear.weight.device))


_CONVERSIONS: dict[str, Callable[[Any], None]] = {
    FLOAT32: _as_it_is,
    BFLOAT16: _to_bfloat16,
    INT8: _to_int8,
    NF4: _to_nf4,
}


def _is_linear(name: str, module: nn.Module) -> bool:
    """Whether this is a linear layer of the base, and no factor of an adapter."""
    return type(module) is nn.Linear and "lora_" not in name
