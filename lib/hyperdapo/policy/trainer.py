"""One trainer for every loss on replayed outcomes: that of transformers, on batches of states instead of text.

How it differs from the trainers of the papers: the rewards of all actions are known before training, so dynamic
sampling (arXiv:2503.14476) happens in the plan. A state whose rewards do not differ between actions is skipped before
any forward pass, and the whole order of states is known in advance. A training that is resumed from a checkpoint
therefore meets the same states and, a rollout being never split by a checkpoint, the same numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from hyperdapo.errors import DataError, TrainingError
from hyperdapo.policy import losses
from hyperdapo.policy.losses import LOSSES, Batch, settings_of
from hyperdapo.policy.scoring import Encodings, Scorer
from hyperdapo.policy.states import States, advantages_of_best, pairs_of
from hyperdapo.sections import DapoPreference, Training

Row = dict[str, float]
_NO_SIGNAL = "no training state tells the actions apart: every reward is the same for all policy.actions"


@dataclass(frozen=True)
class Plan:
    """Which states each update learns from: `rows` (steps, n), and `filtered` (steps,), how many it skipped."""

    rows: NDArray[np.int64]
    filtered: NDArray[np.int64]


def plan_updates(known: States, steps: int, size: int, rng: np.random.Generator) -> Plan:
    """States drawn without replacement, epoch after epoch; within an update the shortest prompt comes first.

    Raises
    ------
    DataError
        If the rewards of no state differ between its actions.
    """
    signal = losses.has_signal(torch.tensor(known.rewards)).numpy()
    if not signal.any():
        raise DataError(_NO_SIGNAL)
    lengths, stream = _lengths(known), endless(len(known), rng)
    rows, filtered = np.zeros((steps, size), np.int64), np.zeros(steps, np.int64)
    for step in range(steps):
        place = 0
        while place < size:
            row = next(stream)
            if signal[row]:
                rows[step, place] = row
                place += 1
            else:
                filtered[step] += 1
        rows[step] = rows[step][np.argsort(lengths[rows[step]], kind="stable")]
    return Plan(rows, filtered)


def plan_by_advantage(known: States, settings: DapoPreference, steps: int, size: int, rng: np.random.Generator) -> Plan:
    """States drawn by eq. 2.9 and 3.6: softmax(beta |A| / tau), ever more those in which much is at stake.

    |A| is Q - V of the best action of a state, in units of `advantage_unit_bps`; tau falls during training. States
    without a difference are never drawn.

    Raises
    ------
    DataError
        As `plan_updates`.
    """
    advantage = advantages_of_best(known.rewards, known.distinct) / settings.advantage_unit_bps
    if not (signal := advantage > 0).any():
        raise DataError(_NO_SIGNAL)
    lengths, rows = _lengths(known), np.zeros((steps, size), np.int64)
    for step in range(steps):
        temperature = annealed(*settings.sampling_temperature, step / steps)
        exponent = settings.sampling_sharpness * (advantage - advantage.max()) / temperature
        weight = np.where(signal, np.exp(exponent), 0.0)
        drawn = rng.choice(len(known), size, p=weight / weight.sum())
        rows[step] = drawn[np.argsort(lengths[drawn], kind="stable")]
    return Plan(rows, np.zeros(steps, np.int64))


def annealed(start: float, end: float, progress: float) -> float:
    """The tau_t of eq. 3.6: from `start` to `end` geometrically as progress goes from 0 to 1.

    >>> [round(annealed(1.0, 0.1, progress), 3) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.316, 0.1]
    """
    share: float = (end / start) ** progress
    return start * share


def _lengths(known: States) -> NDArray[np.int64]:
    return np.array([len(prompt) for prompt in known.prompts])


class LogMixin:
    """What every trainer of this room does besides training: rows of the log, looks at held-out states, small files."""

    _look: Callable[[int, int], Row]
    _adapted: PeftModel
    _logged_at: float

    def begin(self, adapted: PeftModel, look: Callable[[int, int], Row]) -> None:
        """Call this once, before training. `look` gets (step, last step) and may add to the row of an update."""
        self._adapted, self._look, self._logged_at = adapted, look, perf_counter()

    def measures(self, step: int) -> Row:
        """`reward_mean, entropy, clip_fraction, filtered_groups` of the update that ended in `step`."""
        raise NotImplementedError

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the update measured, and what a look at held-out states shows."""
        if "loss" in logs:
            step = self.state.global_step
            logs |= self.measures(step) | {"elapsed_s": self._elapsed_s()} | self._look(step, self.state.max_steps)
        super().log(logs, start_time)  # type: ignore[misc]

    def save_model(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter alone."""
        if self.is_world_process_zero():
            self._adapted.save_pretrained(str(output_dir or self.args.output_dir), save_embedding_layers=False)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the states were read before training."""
        return 0

    def _elapsed_s(self: Any) -> float:
        """Seconds of training, those before a resumption included."""
        former = [row["elapsed_s"] for row in self.state.log_history if "elapsed_s" in row]
        now, before = perf_counter(), self._logged_at
        self._logged_at = now
        elapsed: float = sum(former[-1:]) + now - before
        return elapsed


class PolicyTrainer(LogMixin, Trainer):
    """Minimises one of the `LOSSES` over a plan.

    Parameters
    ----------
    model : with one trainable adapter
    scorer : of its base; `Scorer.through` lends it the adapter
    states : of the m training states
    known : those states
    reference : (m, K) log-probabilities under the untrained base
    look : called with (step, last step) after each update; what it returns is added to the row of the log

    Raises
    ------
    TrainingError
        If a loss is not finite, or the GPU has no memory left.
    """

    def __init__(
        self,
        model: PeftModel,
        scorer: Scorer,
        states: Encodings,
        known: States,
        reference: Tensor,
        algorithm: str,
        training: Training,
        plan: Plan,
        arguments: TrainingArguments,
        look: Callable[[int, int], Row],
    ) -> None:
        items = [{"row": row} for row in plan.rows.ravel().tolist()]
        super().__init__(model=model, args=arguments, train_dataset=items)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False
        self.begin(model, look)
        self._scorer, self._states = scorer, states
        self._training, self._plan = training, plan
        self._algorithm, self._loss = algorithm, LOSSES[algorithm]
        self._updates = settings_of(algorithm, training).get("updates_per_rollout", 1)
        pairs = pairs_of(algorithm, known.rewards, known.distinct, arguments.seed)
        rewards, weights = (torch.tensor(each, dtype=torch.float32) for each in (known.rewards, pairs))
        tensors = {"rewards": rewards, "pairs": weights, "distinct": torch.tensor(known.distinct)}
        self._known = {"reference": reference} | {name: each.to(reference.device) for name, each in tensors.items()}
        self._old = torch.full_like(reference, torch.nan)
        self._rolled_out = -1
        self._parts: list[Row] = []

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss on the states of one micro-batch."""
        step, rows = self.state.global_step, inputs["row"].tolist()
        try:
            if step // self._updates != self._rolled_out and self._updates > 1:
                self._roll_out(step // self._updates)
            new = self._scorer.through(model).log_probabilities(self._states[rows])
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the GPU has no memory for {len(rows)} states at once: raise training.gradient_accumulation "
                f"(now {self._training.gradient_accumulation}), or lower training.memory_gb"
            ) from error
        old = self._old[rows] if self._updates > 1 else new.detach()
        known = {name: each[rows] for name, each in self._known.items()}
        batch = Batch(new, old, **known)
        result = self._loss(batch, self._training)
        if not torch.isfinite(result.loss):
            raise TrainingError(
                f"the loss of {self._algorithm} is not finite at step {step + 1}: "
                f"lower training.{self._algorithm}.learning_rate"
            )
        earned = (new.detach().exp() * batch.rewards).sum(dim=-1).mean()
        entropy = float(losses.entropy(new.detach()))
        self._parts.append({"reward_mean": float(earned), "entropy": entropy, "clip_fraction": result.clip_fraction})
        return (result.loss, None) if return_outputs else result.loss

    def measures(self, step: int) -> Row:
        """Means over the parts of an update, and over the processes that share it."""
        names, parts = list(self._parts[0]), [[*part.values()] for part in self._parts]
        self._parts.clear()
        shared = self.accelerator.reduce(
            torch.tensor(parts, dtype=torch.float64, device=self.args.device).mean(0), "mean"
        )
        means = dict(zip(names, shared.tolist(), strict=True))
        return means | {"filtered_groups": float(self._plan.filtered[step - 1])}

    def _roll_out(self, number: int) -> None:
        """Keep the policy's log-probabilities in the states of a rollout, as they are before the updates on them."""
        rows = np.unique(self._plan.rows[number * self._updates : (number + 1) * self._updates]).tolist()
        self._states.hold(rows)
        scorer = self._scorer.through(self.model)
        size = self.args.per_device_train_batch_size
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            self._old[batch] = scorer.evaluate(self._states[batch])
        self._rolled_out = number


def endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    """All numbers below `count` in a random order, then in another, and so on."""
    while True:
        yield from rng.permutation(count).tolist()
