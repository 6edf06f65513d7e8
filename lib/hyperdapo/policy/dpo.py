"""DPO by TRL's trainer as it is: the best action of a state against the worst, one letter each (Listings 4.3, 4.6)."""

import logging
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from hyperdapo.params import Parameters

Row = dict[str, float]


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: pd.DataFrame,
    parameters: Parameters,
    seed: int,
    folder: Path,
    look: Callable[[int, int], Row],
) -> list[Row]:
    """Train the adapter of `model` on the training pairs; the base without it is the reference policy.

    Parameters
    ----------
    pairs : rows of `pairs.parquet`, of which the training split is used
    folder : where the trainer may put files of its own
    look : called with (step, last step) after each update; what it returns is added to the row

    Returns
    -------
    One row per update: `step, loss, reward_mean` (TRL's implicit reward margin), `learning_rate, elapsed_s`.
    """
    settings = parameters.training.dpo
    own = pairs[pairs["split"] == "train"]
    texts = {"prompt": own["prompt"], "chosen": " " + own["chosen"], "rejected": " " + own["rejected"]}
    data = Dataset.from_dict({name: column.tolist() for name, column in texts.items()})
    config = DPOConfig(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.pairs_per_step,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_share * settings.steps),
        weight_decay=0.0,
        beta=settings.beta,
        max_length=parameters.policy.max_length,
        seed=seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
    )
    recorder = _Recorder(settings.steps, look)
    logging.getLogger("trl").setLevel(logging.ERROR)
    trainer = DPOTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[recorder])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.delete_adapter("ref")  # the trainer's copy of the untrained adapter
    model.eval()
    return recorder.rows


class _Recorder(TrainerCallback):
    """Keeps what TRL logs after each update, and looks at the policy when it is due."""

    def __init__(self, steps: int, look: Callable[[int, int], Row]) -> None:
        self.rows: list[Row] = []
        self._steps, self._look, self._begun = steps, look, perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            row = {
                "step": state.global_step,
                "loss": logs["loss"],
                "reward_mean": logs.get("rewards/margins", float("nan")),
                "learning_rate": logs["learning_rate"],
                "elapsed_s": perf_counter() - self._begun,
            }
            self.rows.append(row | self._look(state.global_step, self._steps))
