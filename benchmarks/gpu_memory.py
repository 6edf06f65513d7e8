"""Peak GPU memory and speed of one training step of Qwen2.5-7B: 4 bits against bf16, with checkpointing and without.

Weights are random, of the real shapes, made on the GPU from the config: nothing is fetched. The plain way is Listing
4.5 in 4 bits (Listing 4.9): a LoRA adapter on the whole prompt, `BATCH` prompts of `TOKENS` tokens, forward and
backward. The draft says that checkpointing and mixed precision save 60 % (§4.8.2), and that it must fit into 40 GB.
Beside it stands the way of this project, which reads the prompt once without a gradient and trains on the cue alone: it
keeps no activations of the prompt, so that checkpointing has nothing to save. Without a GPU nothing is measured, and
the line says so.
"""

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from hyperdapo.params import load
from hyperdapo.policy import models
from hyperdapo.policy.models import lora_config, parameter_counts
from hyperdapo.policy.prompts import CUE
from hyperdapo.policy.scoring import Scorer

BATCH, TOKENS, STEPS = 8, 1024, 3
LIMIT_BYTES, SAVED = 40e9, 0.6
QWEN_7B = Qwen2Config(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)


def build(config: Qwen2Config, four_bit: bool, device: str) -> Any:
    """A model of random bfloat16 weights; in 4 bits all linear layers but the last are NF4, doubly quantised."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, module in list(model.model.named_modules()) if four_bit else []:
        if isinstance(module, torch.nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.model.get_submodule(parent), leaf, _nf4(module, device))
    return model.requires_grad_(False)


def _nf4(linear: torch.nn.Linear, device: str) -> bnb.nn.Linear4bit:
    packed = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, torch.bfloat16, True, "nf4"
    )
    packed.weight = bnb.nn.Params4bit(linear.weight.data.cpu(), False, compress_statistics=True, quant_type="nf4")
    if linear.bias is not None:
        packed.bias = torch.nn.Parameter(linear.bias.data.cpu(), requires_grad=False)
    return packed.to(device)


def plain_step(model: Any, checkpointing: bool, vocabulary: int) -> Callable[[], None]:
    """Listing 4.5 over the whole prompt; the loss is that of one letter after it."""
    lora = load("thesis").policy.lora
    adapted = get_peft_model(model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets))
    if checkpointing:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    prompts = torch.randint(vocabulary, (BATCH, TOKENS), device=adapted.device)
    adapted.train()

    def step() -> None:
        adapted.zero_grad()
        adapted(input_ids=prompts, use_cache=False, logits_to_keep=1).logits.float().logsumexp(-1).mean().backward()

    return step


def our_step(model: Any) -> Callable[[], None]:
    """Reading as many tokens, then the letters after the cue with the adapter of the thesis."""
    tokenizer, policy = models.tiny_tokenizer(), load("thesis").policy
    adapted = get_peft_model(model, lora_config(model.config, policy))
    opening = "Choose:"
    scorer = Scorer(adapted, tokenizer, opening, ["A", "B", "C", "D", "E", "F"], policy.lora.layers)
    filler = TOKENS - len(tokenizer(opening + CUE)["input_ids"])
    prompts = [opening + "9" * filler + CUE] * BATCH

    def step() -> None:
        adapted.zero_grad()
        scorer.log_probabilities(scorer.encode(prompts)).mean().backward()

    return step


def measured(step: Callable[[], None], device: str) -> tuple[float, float]:
    """Peak memory in bytes (0 without a GPU) and tokens a second of a step that has been warmed up."""
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begun = perf_counter()
    for _ in range(STEPS):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    speed = STEPS * BATCH * TOKENS / (perf_counter() - begun)
    return float(torch.cuda.max_memory_allocated()) if device == "cuda" else 0.0, speed


def compare(config: Qwen2Config, device: str) -> dict[str, tuple[float, float]]:
    """Peak bytes and tokens a second of each way; what does not fit has an infinite peak."""
    ways: dict[str, tuple[bool, Callable[[Any], Callable[[], None]]]] = {
        "nf4_checkpointing": (True, lambda model: plain_step(model, True, config.vocab_size)),
        "nf4": (True, lambda model: plain_step(model, False, config.vocab_size)),
        "bf16_checkpointing": (False, lambda model: plain_step(model, True, config.vocab_size)),
        "nf4_cue_only": (True, our_step),
        "bf16_cue_only": (False, our_step),
    }
    measurements = {}
    for name, (four_bit, make) in ways.items():
        try:
            peak, rate = measured(make(build(config, four_bit, device)), device)
        except torch.OutOfMemoryError:
            peak, rate = float("inf"), 0.0
        measurements[name] = peak, rate
        if device == "cuda":
            torch.cuda.empty_cache()
        print(
            f"gpu_memory: {name} {peak / 1e9:.1f} GB, {rate:.0f} tokens/s",
            file=sys.stderr,
        )
    return measurements


def main() -> None:
    if not torch.cuda.is_available():
        print("BENCH gpu_memory_skipped_no_gpu 1 1 1 1")
        return
    measurements = compare(QWEN_7B, "cuda")
    with torch.device("meta"):
        assert parameter_counts(AutoModelForCausalLM.from_config(QWEN_7B))[1] == 7_615_616_512
    peak = measurements["nf4_checkpointing"][0]
    print(f"BENCH gpu_peak_40_gb {peak:.0f} {LIMIT_BYTES:.0f} {LIMIT_BYTES / peak:.2f} 1")
    without = measurements["nf4"][0]
    print(f"BENCH gpu_checkpointing_saves {peak:.0f} {without:.0f} {without / peak:.2f} {1 / (1 - SAVED):g}")
    ours = measurements["nf4_cue_only"][0]
    print(f"BENCH gpu_cue_only {ours:.0f} {peak:.0f} {peak / ours:.2f} 1")


if __name__ == "__main__":
    main()
