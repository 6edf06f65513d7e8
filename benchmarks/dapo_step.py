"""One step of `dapo`, 64 states in four updates, on one core: ours, against TRL's plain `GRPOTrainer`.

Both train the same adapter of SmolLM2 (the parameters of `sample`) on the same prompts of 107 tokens and the same
rewards, K = 6. Ours knows what all six actions earn; TRL generates six completions of one token for each prompt, scores
them, and learns from them in as many updates. TRL is given what suits it best here: weights in the same bfloat16
without autocast, no gradient checkpointing, fused attention, `TOGETHER` sequences read at once (24 and 6 were slower).
It generates all completions of a rollout at once, which for 64 states took more than 24 GB: it is timed on a quarter of
the prompts, after a rollout that warms up, and the time multiplied by four, as it reads one small batch after the
other. `dapo_step` counts our rollout and its updates on states that were read before, as in all epochs but the first;
`dapo_step_with_reading` counts reading the 64 states, too. Neither counts loading and construction.
"""

import sys
import tempfile
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from _timing import best_of, one_core
from datasets import Dataset
from transformers import PrinterCallback, TrainingArguments
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from hyperdapo.params import load
from hyperdapo.policy import runs
from hyperdapo.policy.models import add_adapter, load_base
from hyperdapo.policy.prompts import CUE, FEATURES, instruction, letters
from hyperdapo.policy.scoring import Encodings, make_scorer
from hyperdapo.policy.states import States as Known
from hyperdapo.policy.trainer import PolicyTrainer, plan_updates

TARGET = 8.0
STATES, UPDATES = 64, 4
ACTIONS = ["take", "join", "improve 1", "behind 1", "behind 5", "wait"]
TOGETHER = 12  # sequences that TRL reads at once
SHARE = 4  # TRL is timed on one state of so many

one_core()
torch.set_num_threads(1)
budget = {"steps": UPDATES, "states_per_update": STATES // UPDATES, "warmup_share": 0.0, "algorithms": ["dapo"]}
training = budget | {"dapo": {"updates_per_rollout": UPDATES}}
parameters = load("sample", {"training": training, "policy": {"actions": ACTIONS}})
settings, choice = parameters.training.dapo, parameters.policy.actions
rng = np.random.default_rng(0)
rewards = rng.normal(0, 4, (STATES, len(choice)))
digits = rng.integers(1, 10, (STATES, len(FEATURES)))
signals = ["".join(f" {one.word}{digit}" for one, digit in zip(FEATURES, row, strict=True)) for row in digits]
prompts = [f"{instruction(choice)}balanced buy ETH at 3710.1:{text}{CUE}" for text in signals]
known = Known(pd.DataFrame(), prompts, rewards, np.ones(rewards.shape, dtype=bool))
folder = tempfile.TemporaryDirectory()
quiet = {"output_dir": folder.name, "save_strategy": "no", "report_to": "none"}
shared = {**runs.arguments(parameters, "dapo", 0, folder.name, "benchmark"), **quiet}


def ours() -> float:
    """Seconds of a rollout and its updates; the states are read before."""
    plan = plan_updates(known, UPDATES, STATES // UPDATES, np.random.default_rng(0))
    adapted = add_adapter(base, parameters.policy, seed=0)
    arguments = TrainingArguments(train_sampling_strategy="sequential", **shared)
    nothing = torch.zeros(STATES, len(choice))  # the reference, which `dapo` has none of
    trainer = PolicyTrainer(
        adapted, scorer, states, known, nothing, "dapo", parameters.training, plan, arguments, lambda *_: {}
    )
    seconds = timed(trainer)
    adapted.unload()
    return seconds


def peer(states: int, together: int) -> float:
    """Seconds of TRL's rollout of so many states and its updates, `together` sequences read at once."""
    size = len(choice)
    parts = states * size // UPDATES // together
    batches = {"per_device_train_batch_size": together, "gradient_accumulation_steps": parts}
    arguments = GRPOConfig(
        **(shared | batches),
        beta=0.0,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        entropy_coef=settings.entropy_bonus,
        loss_type="dapo",
        scale_rewards="none",
        num_generations=size,
        steps_per_generation=UPDATES * parts,
        max_completion_length=1,
        gradient_checkpointing=False,
    )
    model, its_tokenizer = load_base(parameters.policy)
    model.set_attn_implementation("sdpa")
    adapted = add_adapter(model, parameters.policy, seed=0)
    data = Dataset.from_dict({"prompt": prompts[:states], "row": range(states)})
    return timed(GRPOTrainer(adapted, earned, arguments, data, processing_class=its_tokenizer))


def earned(completions: list[str], row: list[int], **_: Any) -> list[float]:
    """Bps of each generated letter; what is no letter earns nothing."""
    places = {letter: place for place, letter in enumerate(letters(choice))}
    actions = [places.get(completion.strip()) for completion in completions]
    return [0.0 if action is None else float(rewards[one, action]) for one, action in zip(row, actions, strict=True)]


def timed(trainer: Any) -> float:
    """Seconds of `trainer.train()`."""
    trainer.remove_callback(PrinterCallback)
    begun = perf_counter()
    trainer.train()
    assert trainer.state.global_step == UPDATES
    return perf_counter() - begun


base, tokenizer = load_base(parameters.policy)
scorer = make_scorer(base, tokenizer, parameters)
reading_s, states = best_of(lambda: Encodings(scorer, prompts, parameters.training.memory_gb), times=1)
ours()
own_s = ours()
peer(4, 6)
quarter_s = peer(STATES // SHARE, TOGETHER)
peer_s = SHARE * quarter_s
print(
    f"dapo_step: reading {reading_s:.2f} s, step {own_s:.2f} s; TRL {quarter_s:.1f} s for {STATES // SHARE} states",
    file=sys.stderr,
)
for name, seconds in (("dapo_step", own_s), ("dapo_step_with_reading", reading_s + own_s)):
    print(f"BENCH {name} {seconds:.4f} {peer_s:.4f} {peer_s / seconds:.1f} {TARGET:g}")
