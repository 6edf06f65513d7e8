"""Training a LoRA adapter on replayed outcomes (§3.3): `dapo` with the whole action set known, and `dpo` as TRL has it.

Both are judged in the same way while they train: the reward of the greedy action on held-out (validation) states, beside
what the best fixed action and the per-state oracle earn there.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from hyperdapo.errors import DataError
from hyperdapo.market.book import Floats
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths, atomic_folder
from hyperdapo.policy import dpo, objectives
from hyperdapo.policy.models import add_adapter, frozen_layers, load_base
from hyperdapo.policy.pairs import reward_matrix
from hyperdapo.policy.prompts import encode_states, instruction, letters
from hyperdapo.policy.scoring import Hidden, Scorer

_BATCH = 32
_LARGEST_GRADIENT = 1.0

Row = dict[str, float]


@dataclass(frozen=True)
class States:
    """n states of one split: `table` (n rows of outcomes), `prompts` (n,), `rewards` (n, K) bps."""

    table: pd.DataFrame
    prompts: list[str]
    rewards: Floats

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: NDArray[np.int64]) -> "States":
        return States(self.table.iloc[rows], [self.prompts[row] for row in rows], self.rewards[rows])


def read_states(features: pd.DataFrame, outcomes: pd.DataFrame, parameters: Parameters, split: str) -> States:
    """The states of a split as prompts, with what every action earned there.

    Raises
    ------
    DataError
        If the split is empty.
    """
    own = outcomes[outcomes["split"] == split]
    if own.empty:
        raise DataError(f"no order belongs to the {split} split: lengthen the span, or change `split`")
    table, rewards = reward_matrix(own)
    policy = parameters.policy
    return States(table, encode_states(features, table, policy.offsets_bps, policy.prompt_style), rewards)


class Examiner:
    """Looks at a policy on held-out states: the same few at every look, evenly spaced over the split."""

    def __init__(self, held_out: States, best_fixed: int, count: int) -> None:
        rows = np.unique(np.linspace(0, len(held_out) - 1, min(count, len(held_out))).astype(int))
        self._states = held_out.take(rows)
        self._best_fixed = best_fixed

    def look(self, scorer: Scorer) -> Row:
        """Reward of the greedy action, beside the best fixed action and the oracle (bps), and how often it is the best."""
        rewards, chosen = self._states.rewards, log_probabilities(scorer, self._states.prompts).argmax(axis=1)
        earned = rewards[np.arange(len(rewards)), chosen]
        return {
            "heldout_reward": float(earned.mean()),
            "heldout_best_fixed": float(rewards[:, self._best_fixed].mean()),
            "heldout_oracle": float(rewards.max(axis=1).mean()),
            "heldout_accuracy": float((earned >= rewards.max(axis=1)).mean()),
        }


@torch.no_grad()
def log_probabilities(scorer: Scorer, prompts: list[str], batch_size: int = _BATCH) -> Floats:
    """(n, K) of n prompts, in batches."""
    batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    return np.concatenate([scorer.log_probabilities(scorer.trunk(batch)).cpu().numpy() for batch in batches])


def make_scorer(model: Any, tokenizer: Any, parameters: Parameters) -> Scorer:
    """The scorer of a base model, with or without an adapter, for the action set of `parameters`."""
    offsets = parameters.policy.offsets_bps
    frozen = frozen_layers(model.config, parameters.policy.lora)
    return Scorer(model, tokenizer, instruction(offsets), letters(offsets), frozen)


def train(algorithm: str, parameters: Parameters, paths: Paths, training: States, held_out: States, pairs: pd.DataFrame) -> pd.DataFrame:
    """Train one adapter per seed and save them, with `training_log.csv`, into the algorithm's folder.

    Returns
    -------
    The log, one row per gradient update: `step, seed, loss, reward_mean, entropy, clip_fraction, filtered_groups,
    learning_rate, elapsed_s`, and every `evaluate_every` steps the `heldout_*` columns of `Examiner`.

    Raises
    ------
    DataError
        If no training state tells the actions apart.
    ModelError
        If the base model cannot be had.
    """
    best_fixed = int(training.rewards.mean(axis=0).argmax())
    examiner = Examiner(held_out, best_fixed, parameters.training.evaluation_states)
    logs = []
    with atomic_folder(paths.model(algorithm)) as folder:
        for seed in parameters.training.seeds:
            model, tokenizer = load_base(parameters.policy)
            adapted = add_adapter(model, parameters.policy, seed)
            scorer = make_scorer(adapted, tokenizer, parameters)
            run = _Run(parameters, adapted, tokenizer, scorer, examiner, np.random.default_rng([seed, zlib.crc32(paths.asset.encode())]))
            steps = run.dapo(training) if algorithm == "dapo" else run.dpo(pairs, seed, folder / "trainer")
            logs.append(pd.DataFrame(steps).assign(seed=seed))
            adapted.save_pretrained(str(seed_folder(folder, seed)))
        log = pd.concat(logs, ignore_index=True)
        log.to_csv(folder / "training_log.csv", index=False)
    return log


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the adapter of one seed lies in an algorithm's folder."""
    return folder / f"seed_{seed}"


@dataclass(frozen=True)
class _Run:
    parameters: Parameters
    model: PeftModel
    tokenizer: Any
    scorer: Scorer
    examiner: Examiner
    rng: np.random.Generator

    def dapo(self, training: States) -> list[Row]:
        """Full-information DAPO: rollouts of states, several clipped updates on each (see `objectives`)."""
        settings = self.parameters.training.dapo
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], settings.learning_rate, weight_decay=0.0)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(settings.warmup_share * settings.steps), settings.steps)
        rollouts = self._rollouts(training, settings.states_per_rollout)
        rows, begun = [self._look(0)], perf_counter()
        with tqdm(total=settings.steps, desc="dapo", unit="step", delay=2, mininterval=5, leave=False) as progress:
            while len(rows) <= settings.steps:
                rollout = next(rollouts)
                for batch in self._batches(len(rollout.hidden)):
                    if len(rows) > settings.steps:
                        break
                    row = self._update(rollout, batch, optimizer)
                    row |= {"learning_rate": schedule.get_last_lr()[0], "elapsed_s": perf_counter() - begun}
                    schedule.step()
                    rows.append({"step": len(rows)} | row | self._due(len(rows), settings.steps))
                    progress.update()
        return rows

    def dpo(self, pairs: pd.DataFrame, seed: int, folder: Path) -> list[Row]:
        """DPO by TRL's own trainer, looked at like DAPO."""
        untrained = self._look(0)
        return [untrained, *dpo.train(self.model, self.tokenizer, pairs, self.parameters, seed, folder, self._due)]

    def _rollouts(self, training: States, size: int) -> Iterator["_Rollout"]:
        """Groups drawn without replacement, epoch after epoch; those without a difference are replaced at once."""
        signal = objectives.has_signal(torch.from_numpy(training.rewards)).numpy()
        if not signal.any():
            raise DataError("no training state tells the actions apart: every reward is the same for all offsets")
        stream = _endless(len(training), self.rng)
        while True:
            rows, filtered = [], 0
            while len(rows) < min(size, int(signal.sum())):
                row = next(stream)
                filtered += not signal[row]
                rows += [row] if signal[row] else []
            states = training.take(np.array(rows))
            hidden = self.scorer.trunk(states.prompts)
            with torch.no_grad():
                old = self.scorer.log_probabilities(hidden)
            rewards = torch.from_numpy(states.rewards).to(old)
            advantage = objectives.advantages(rewards, old, self.parameters.training.dapo.temperature_bps)
            yield _Rollout(hidden, old, rewards, advantage, filtered)

    def _batches(self, count: int) -> Iterator[NDArray[np.int64]]:
        settings = self.parameters.training.dapo
        order = np.concatenate([self.rng.permutation(count) for _ in range(-(-settings.updates_per_rollout * settings.states_per_update // count))])
        for update in range(settings.updates_per_rollout):
            yield order[update * settings.states_per_update : (update + 1) * settings.states_per_update]

    def _update(self, rollout: "_Rollout", batch: NDArray[np.int64], optimizer: torch.optim.Optimizer) -> Row:
        settings = self.parameters.training.dapo
        rows = torch.from_numpy(batch)
        new = self.scorer.log_probabilities(rollout.hidden[rows])
        surrogate = objectives.clipped_surrogate(new, rollout.old[rows], rollout.advantage[rows], settings.clip_low, settings.clip_high)
        spread = objectives.entropy(new)
        loss = surrogate.loss - settings.entropy_bonus * spread
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        reward = (new.detach().exp() * rollout.rewards[rows]).sum(dim=-1).mean()
        return {
            "loss": float(loss.detach()),
            "reward_mean": float(reward),
            "entropy": float(spread.detach()),
            "clip_fraction": float(surrogate.clip_fraction),
            "filtered_groups": float(rollout.filtered),
        }

    def _due(self, step: int, last: int) -> Row:
        return self.examiner.look(self.scorer) if step % self.parameters.training.evaluate_every == 0 or step == last else {}

    def _look(self, step: int) -> Row:
        return {"step": step, "elapsed_s": 0.0} | self.examiner.look(self.scorer)


@dataclass(frozen=True)
class _Rollout:
    """States drawn together: trunk, log-probabilities under the rollout policy, rewards and advantages (n, K)."""

    hidden: Hidden
    old: Tensor
    rewards: Tensor
    advantage: Tensor
    filtered: int


def _endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(count).tolist()
