"""Full-information DAPO: rollouts of states, several clipped updates on each.

How it differs from the DAPO paper (arXiv:2503.14476) is told in `objectives`. Dynamic sampling happens before any
forward pass: a state whose rewards do not differ between actions is replaced by the next one at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from hyperdapo.errors import DataError
from hyperdapo.market.columns import Floats
from hyperdapo.policy import objectives
from hyperdapo.policy.scoring import Encoded, Encodings, Scorer
from hyperdapo.sections import Dapo

_LARGEST_GRADIENT = 1.0

Row = dict[str, float]


@dataclass(frozen=True)
class _Rollout:
    """States drawn together: as encoded, log-probabilities under the rollout policy, rewards and advantages (n, K)."""

    states: Encoded
    old: Tensor
    rewards: Tensor
    advantage: Tensor
    filtered: int


def train(
    model: Any,
    scorer: Scorer,
    states: Encodings,
    rewards: Floats,
    settings: Dapo,
    rng: np.random.Generator,
    look: Callable[[int, int], Row],
) -> list[Row]:
    """Train the adapter of `model`.

    Parameters
    ----------
    states : of n training states
    rewards : (n, K) what every action earned in them, bps
    look : called with (step, last step) after each update; what it returns is added to the row

    Returns
    -------
    One row per update: `step, loss, reward_mean, entropy, clip_fraction, filtered_groups, learning_rate, elapsed_s`.

    Raises
    ------
    DataError
        If no state tells the actions apart.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, settings.learning_rate, weight_decay=0.0)
    warmup = round(settings.warmup_share * settings.steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, settings.steps)
    updates = _updates(scorer, states, rewards, settings, rng)
    rows: list[Row] = []
    begun = perf_counter()
    steps = range(1, settings.steps + 1)
    for step, (rollout, batch) in tqdm(
        zip(steps, updates, strict=False), "dapo", settings.steps, unit="step", delay=2, mininterval=5, leave=False
    ):
        row = _update(scorer, rollout, batch, settings, optimizer)
        row |= {"step": step, "learning_rate": schedule.get_last_lr()[0], "elapsed_s": perf_counter() - begun}
        schedule.step()
        rows.append(row | look(step, settings.steps))
    return rows


def _updates(
    scorer: Scorer, states: Encodings, rewards: Floats, settings: Dapo, rng: np.random.Generator
) -> Iterator[tuple[_Rollout, Tensor]]:
    """Endless: a rollout and the rows of it that one update learns from."""
    size, count = settings.states_per_update, settings.updates_per_rollout
    for rows, filtered in _groups(rewards, settings.states_per_rollout, rng):
        rollout = _roll_out(scorer, states[rows], rewards[rows], filtered, settings)
        order = islice(_endless(len(rows), rng), size * count)
        yield from ((rollout, torch.tensor(batch)) for batch in np.array_split(np.fromiter(order, np.int64), count))


def _groups(rewards: Floats, size: int, rng: np.random.Generator) -> Iterator[tuple[list[int], int]]:
    """States drawn without replacement, epoch after epoch, and how many without a difference were passed over."""
    signal = objectives.has_signal(torch.tensor(rewards)).numpy()
    if not signal.any():
        raise DataError(
            "no training state tells the actions apart: every reward is the same for all policy.offsets_bps"
        )
    stream = _endless(len(rewards), rng)
    while True:
        rows: list[int] = []
        filtered = 0
        while len(rows) < min(size, int(signal.sum())):
            row = next(stream)
            if signal[row]:
                rows.append(row)
            else:
                filtered += 1
        yield rows, filtered


def _endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(count).tolist()


@torch.no_grad()
def _roll_out(scorer: Scorer, states: Encoded, rewards: Floats, filtered: int, settings: Dapo) -> _Rollout:
    old = scorer.log_probabilities(states)
    earned = torch.tensor(rewards).to(old)
    return _Rollout(states, old, earned, objectives.advantages(earned, old, settings.temperature_bps), filtered)


def _update(scorer: Scorer, rollout: _Rollout, batch: Tensor, settings: Dapo, optimizer: torch.optim.Optimizer) -> Row:
    new = scorer.log_probabilities(rollout.states[batch])
    surrogate = objectives.clipped_surrogate(
        new, rollout.old[batch], rollout.advantage[batch], settings.clip_low, settings.clip_high
    )
    entropy = objectives.entropy(new)
    loss = surrogate.loss - settings.entropy_bonus * entropy
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], _LARGEST_GRADIENT)
    optimizer.step()
    return {
        "loss": float(loss.detach()),
        "reward_mean": float((new.detach().exp() * rollout.rewards[batch]).sum(dim=-1).mean()),
        "entropy": float(entropy.detach()),
        "clip_fraction": float(surrogate.clip_fraction),
        "filtered_groups": float(rollout.filtered),
    }
