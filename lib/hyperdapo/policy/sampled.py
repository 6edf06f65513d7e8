"""`dapo_sampled`: TRL's `GRPOTrainer` with its loss `dapo`, groups sampled from the policy, and dynamic sampling.

How it differs from the paper (arXiv:2503.14476): a completion is one letter, drawn from the softmax over K letters that
the policy is, so nothing is generated and the overlong filter has nothing to do. Advantages are divided by a fixed
temperature, not by the group's deviation: a group that differs by a hundredth of a bp would weigh as much as one that
differs by ten. TRL's entropy term is used. TRL lacks the paper's dynamic sampling: a group whose rewards do not differ
is drawn again from another state here, until `refills` times as many groups as wanted have been drawn; if they are
still too few they are used more than once, and where there are none training ends with an error.

Two private methods of TRL are replaced: what makes the groups, and what scores a batch. `tests/test_sampled.py` holds
both to their contract. A row of a batch is one group: its prompt is the number of a state, its completion those of the
drawn actions, one token each. TRL clips and averages token by token, and an update reads each of its states once.
"""

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from hyperdapo.errors import TrainingError
from hyperdapo.market.columns import Floats
from hyperdapo.policy import losses
from hyperdapo.policy.scoring import Encodings, Scorer
from hyperdapo.policy.trainer import LogMixin, Row
from hyperdapo.sections import DapoSampled

Group = tuple[Tensor, Tensor, Tensor]  # () number of the state, (group_size,) actions, their log-probabilities


class SampledTrainer(LogMixin, GRPOTrainer):
    """DAPO on sampled groups.

    Parameters
    ----------
    model : with one trainable adapter
    scorer, states : of its base, and the m training states as it read them
    rewards : (m, K) bps
    order : the states of all updates, one after the other: a single epoch, which TRL can resume
    look : called with (step, last step) after each update; what it returns is added to the row of the log

    Raises
    ------
    TrainingError
        If no group of a rollout has rewards that differ, or a loss is not finite.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        scorer: Scorer,
        states: Encodings,
        rewards: Floats,
        order: list[int],
        settings: DapoSampled,
        arguments: GRPOConfig,
        look: Callable[[int, int], Row],
    ) -> None:
        rows = Dataset.from_dict({"prompt": [str(row) for row in order], "row": order})
        super().__init__(model, _replayed, arguments, rows, processing_class=tokenizer)
        self.remove_callback(PrinterCallback)
        self.begin(model, look)
        vars(model.get_base_model()).pop("forward", None)  # TRL's output layer: no use here, and the base is shared
        self._scorer, self._states, self._settings = scorer, states, settings
        self._replayed = torch.tensor(rewards, dtype=torch.float32, device=self.accelerator.device)
        self._earned, self._filtered = float("nan"), 0

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """TRL's loss of one update."""
        loss: Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss of dapo_sampled is not finite at step {self.state.global_step + 1}: "
                "lower training.dapo_sampled.learning_rate"
            )
        return loss

    def measures(self, step: int) -> Row:
        """As TRL counted them; groups that were filtered belong to the update after which they were drawn."""
        counted = self._metrics["train"]
        filtered, self._filtered = self._filtered, 0
        return {
            "reward_mean": self._earned,
            "entropy": float(np.mean(counted["entropy"])),
            "clip_fraction": float(np.mean(counted["clip_ratio/region_mean"])),
            "filtered_groups": float(filtered),
        }

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Groups of letters for the states of a rollout; those without a difference are drawn from other states."""
        size = self._settings.group_size
        wanted = [int(one["row"]) for one in inputs[::size]]
        kept = self._groups(wanted, np.random.default_rng([self.args.seed, self.state.global_step]))
        rows, actions, old = (torch.stack(parts) for parts in zip(*kept, strict=True))
        earned = self._replayed[rows[:, None], actions]
        advantage = earned - earned.mean(dim=1, keepdim=True)
        ones = torch.ones_like(actions)
        self._earned = float(earned.mean())
        return {
            "prompt_ids": rows[:, None],
            "prompt_mask": ones[:, :1],
            "completion_ids": actions,
            "completion_mask": ones,
            "advantages": advantage / self._settings.temperature_bps,
            "old_per_token_logps": old,
            "num_items_in_batch": ones.sum(),
        }

    def _groups(self, wanted: list[int], rng: np.random.Generator) -> list[Group]:
        """As many groups with a difference as states are wanted; refilled from other states, up to the bound."""
        others = cycle(rng.permutation(len(self._replayed)).tolist())
        kept, drawn = self._draw(wanted, rng), len(wanted)
        most = self._settings.refills * len(wanted)
        while (pending := len(wanted) - len(kept)) and drawn + pending <= most:
            kept += self._draw([next(others) for _ in range(pending)], rng)
            drawn += pending
        if not kept:
            raise TrainingError(
                f"all {drawn} groups that dapo_sampled drew at step {self.state.global_step} were filtered: no two "
                "actions of one earned differently. Raise training.dapo_sampled.entropy_bonus or group_size"
            )
        self._filtered += drawn - len(kept)
        return list(islice(cycle(kept), len(wanted)))

    def _draw(self, rows: list[int], rng: np.random.Generator) -> list[Group]:
        """A group for each of these states, but for those whose rewards do not differ."""
        policy = self._scorer.through(self.model).evaluate(self._states[rows])
        shares = policy.exp().double().cpu().numpy()
        groups = []
        for row, log_probability, share in zip(rows, policy, shares, strict=True):
            actions = torch.tensor(rng.choice(len(share), self._settings.group_size, p=share / share.sum()))
            actions = actions.to(policy.device)
            if bool(losses.has_signal(self._replayed[row, actions])):
                groups.append((torch.tensor(row, device=actions.device), actions, log_probability[actions]))
        return groups

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        """(n, group_size) log-probability of each drawn letter, and the entropy of the policy of its state."""
        policy = self._scorer.through(model).log_probabilities(self._states[input_ids[:, 0].tolist()])
        drawn = policy.gather(-1, input_ids[:, 1:])
        entropy = -(policy.exp() * policy).sum(dim=-1, keepdim=True)
        return drawn, entropy.expand_as(drawn), None


def _replayed(**_: Any) -> list[float | None]:
    """TRL asks for a reward function; the rewards are looked up where the groups are drawn."""
    raise NotImplementedError


def grpo(settings: DapoSampled, seed: int, **shared: Any) -> GRPOConfig:
    """TRL's settings; `shared` are those that it has in common with the trainer of transformers, of states a batch."""
    letters = shared.pop("per_device_train_batch_size") * settings.group_size
    return GRPOConfig(
        **shared,
        per_device_train_batch_size=letters,
        seed=seed,
        loss_type="dapo",
        beta=0.0,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        entropy_coef=settings.entropy_bonus,
        num_generations=settings.group_size,
        steps_per_generation=settings.updates_per_rollout,
        num_iterations=1,
        max_completion_length=1,
        gradient_checkpointing=False,
        shuffle_dataset=False,
    )
