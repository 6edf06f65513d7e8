"""Training a LoRA adapter on replayed outcomes (§3.3): `dapo` with the whole action set known, and `dpo` as TRL has it.

Both are judged in the same way while they train: the reward of the greedy action on held-out (validation) states,
beside what the best fixed action and the per-state oracle earn there.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from hyperdapo.errors import DataError
from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths, atomic_folder
from hyperdapo.policy import dapo, dpo
from hyperdapo.policy.models import add_adapter, load_base
from hyperdapo.policy.pairs import reward_matrix
from hyperdapo.policy.prompts import encode_states, instruction, letters
from hyperdapo.policy.scoring import Encodings, Scorer

_BATCH = 64

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

    def __init__(self, scorer: Scorer, held_out: States, best_fixed: int, parameters: Parameters) -> None:
        training = parameters.training
        count = min(training.evaluation_states, len(held_out))
        rows = np.unique(np.linspace(0, len(held_out) - 1, count).astype(int))
        self._rewards = held_out.rewards[rows]
        self._states = Encodings(scorer, held_out.take(rows).prompts, training.memory_gb)
        self._scorer, self._best_fixed, self._every = scorer, best_fixed, training.evaluate_every

    def look(self) -> Row:
        """Reward of the greedy action beside best fixed action and oracle (bps), and how often it is the best."""
        scored = score(self._scorer, self._states, len(self._rewards))
        earned = self._rewards[np.arange(len(scored)), scored.argmax(axis=1)]
        best = self._rewards.max(axis=1)
        return {
            "heldout_reward": float(earned.mean()),
            "heldout_best_fixed": float(self._rewards[:, self._best_fixed].mean()),
            "heldout_oracle": float(best.mean()),
            "heldout_accuracy": float((earned >= best).mean()),
        }

    def look_when_due(self, step: int, last: int) -> Row:
        """A look every `training.evaluate_every` steps and at the last, else nothing."""
        return self.look() if step % self._every == 0 or step == last else {}


@torch.no_grad()
def score(scorer: Scorer, states: Encodings, count: int, batch_size: int = _BATCH) -> Floats:
    """(n, K) log-probabilities of the first `count` states, in batches."""
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    return np.concatenate([scorer.log_probabilities(states[batch]).cpu().numpy() for batch in batches])


def make_scorer(model: Any, tokenizer: Any, parameters: Parameters) -> Scorer:
    """The scorer of a base model, with or without an adapter, for the action set of `parameters`."""
    offsets = parameters.policy.offsets_bps
    return Scorer(model, tokenizer, instruction(offsets), letters(offsets))


def train(
    algorithm: str, parameters: Parameters, paths: Paths, training: States, held_out: States, pairs: pd.DataFrame
) -> pd.DataFrame:
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
    logs = []
    with atomic_folder(paths.model(algorithm)) as folder:
        for seed in parameters.training.seeds:
            model, tokenizer = load_base(parameters.policy)
            adapted = add_adapter(model, tokenizer, parameters.policy, seed)
            scorer = make_scorer(adapted, tokenizer, parameters)
            examiner = Examiner(scorer, held_out, best_fixed, parameters)
            rows = [{"step": 0, "elapsed_s": 0.0} | examiner.look()]
            if algorithm == "dapo":
                states = Encodings(scorer, training.prompts, parameters.training.memory_gb)
                rng = np.random.default_rng([seed, zlib.crc32(paths.asset.encode())])
                settings = parameters.training.dapo
                rows += dapo.train(adapted, scorer, states, training.rewards, settings, rng, examiner.look_when_due)
            else:
                rows += dpo.train(
                    adapted, tokenizer, pairs, parameters, seed, folder / "trainer", examiner.look_when_due
                )
            logs.append(pd.DataFrame(rows).assign(seed=seed))
            adapted.save_pretrained(str(seed_folder(folder, seed)), save_embedding_layers=False)
        log = pd.concat(logs, ignore_index=True)
        log.to_csv(folder / "training_log.csv", index=False)
    return log


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the adapter of one seed lies in an algorithm's folder."""
    return folder / f"seed_{seed}"
