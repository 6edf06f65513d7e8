"""A tiny random Qwen2 and its tokenizer, made from nothing: for tests and the profile `smoke`."""

import string

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from hyperdapo.policy.prompts import CUE, FEATURES, instruction

_SEED = 0
_END = "<|endoftext|>"


def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE that has learnt the words of the prompts; each digit and each letter of an action is a token."""
    words = [f" {feature.word}" for feature in FEATURES] + [instruction([-50, -5, 0, 5]), CUE]
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
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_END, pad_token=_END)


def model(tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype = torch.float32) -> Qwen2ForCausalLM:
    """Four layers of width 64, always the same random weights.

    Weights are wide enough for attention to tell tokens apart, so that an adapter can learn to read a prompt.
    """
    config = Qwen2Config(
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
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        made = Qwen2ForCausalLM(config)
    made.to(dtype)  # type: ignore[arg-type]
    return made
