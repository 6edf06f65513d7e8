"""One policy in several precisions (§4.5.1, §4.8.4): the base's linear layers as float32, bfloat16, int8 or NF4.

The adapter stays as it was trained. What a precision costs and what it still decides is measured by `latency`.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import nn

from hyperdapo.params import Parameters
from hyperdapo.policy.language import calibration
from hyperdapo.policy.models import load_adapter, load_base
from hyperdapo.policy.path import DecisionPath
from hyperdapo.policy.path.packed import pack
from hyperdapo.policy.path.remembering import make_remembering

FLOAT32, BFLOAT16, INT8, NF4 = "float32", "bfloat16", "int8", "nf4"


def own(parameters: Parameters) -> str:
    """The precision in which the policy was trained, and is served."""
    return NF4 if parameters.policy.four_bit else BFLOAT16 if torch.cuda.is_available() else FLOAT32


def available(parameters: Parameters) -> list[str]:
    """The precisions that this machine can decide in, the policy's own first; one of 4 bits cannot become finer."""
    first = own(parameters)
    if first != FLOAT32:
        return [first]
    others = {BFLOAT16: has_bfloat16(), INT8: torch.backends.quantized.engine != "none", NF4: True}
    return [first, *(name for name, there in others.items() if there)]


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16; one that does not takes six times as long in it."""
    return bool(torch.cpu._is_avx512_bf16_supported())  # type: ignore[no-untyped-call]


def open_path(backend: str, parameters: Parameters, adapter: Path | None) -> tuple[DecisionPath, float]:
    """The policy in one of the `available` precisions, and the size of its weights, MB.

    Raises
    ------
    MissingInputError
        If no adapter is there.
    ModelError
        As `DecisionPath`.
    """
    base, tokenizer = load_base(parameters.policy)
    adapted = base if adapter is None else load_adapter(base, parameters, adapter)
    temperature = 1.0 if adapter is None else calibration.read(adapter)
    _CONVERSIONS[backend](base.model)
    if backend == BFLOAT16 and own(parameters) != BFLOAT16:
        nn.Module.to(base, torch.bfloat16)
    size_mb = serialised_mb(base)
    if backend == FLOAT32:
        pack(base.model)
    scorer = make_remembering(adapted, tokenizer, parameters)
    return DecisionPath.over(parameters, tokenizer, scorer, temperature), size_mb


def serialised_mb(model: nn.Module) -> float:
    """Size of a model's weights as they are saved, MB (1e6 bytes)."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / 1e6


def _as_it_is(layers: nn.Module) -> None:
    pass


def _to_int8(layers: nn.Module) -> None:
    """Weights in 8 bits by output row, activations in 8 bits as they come."""
    config = torch.ao.quantization.per_channel_dynamic_qconfig
    chosen = {name: config for name, module in layers.named_modules() if _is_linear(name, module)}
    with catch_warnings():
        simplefilter("ignore")  # deprecations: the successor is a package of its own
        torch.ao.quantization.quantize_dynamic(layers, chosen, inplace=True)  # type: ignore[no-untyped-call]


def _to_nf4(layers: nn.Module) -> None:
    """Weights in 4 bits with double quantisation (Listing 4.9)."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    for name, layer in list(layers.named_modules()):
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
            layers.set_submodule(name, four_bit.to(linear.weight.device))


_CONVERSIONS: dict[str, Callable[[nn.Module], None]] = {
    FLOAT32: _as_it_is,
    BFLOAT16: _as_it_is,
    INT8: _to_int8,
    NF4: _to_nf4,
}


def _is_linear(name: str, module: nn.Module) -> bool:
    """Whether this is a linear layer of the base, and no factor of an adapter."""
    return type(module) is nn.Linear and "lora_" not in name
