"""Training LoRA adapters on replayed outcomes (§3.3): every algorithm and seed on the same states, judged alike.

While a run trains it is judged by the reward of its greedy action on held-out (validation) states, beside what the best
fixed action and the per-state oracle earn there. A run that was killed goes on from its last checkpoint.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback, TrainingArguments

from hyperdapo.errors import ParameterError, nearest
from hyperdapo.files import atomic, atomic_folder, read_table
from hyperdapo.params import Parameters
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.policy import runs
from hyperdapo.policy.adapters import card
from hyperdapo.policy.language import calibration
from hyperdapo.policy.losses import SAMPLED, SHARPENED
from hyperdapo.policy.models import add_adapter, load_base, save_adapter, seeded
from hyperdapo.policy.sampled import SampledTrainer, grpo
from hyperdapo.policy.scoring import Encodings, Scorer, make_scorer, score
from hyperdapo.policy.states import States, pooled, read_states
from hyperdapo.policy.trainer import Plan, PolicyTrainer, Row, endless, plan_by_advantage, plan_updates

COLUMNS = [
    *("step", "seed", "loss", "reward_mean", "entropy", "clip_fraction", "filtered_groups", "grad_norm"),
    *("learning_rate", "elapsed_s", "heldout_reward", "heldout_best_fixed", "heldout_oracle", "heldout_accuracy"),
]


def train_asset(
    parameters: Parameters, asset: str, chosen: Sequence[tuple[str, int]], watch: Callable[[], None] = lambda: None
) -> None:
    """Train runs (algorithm, seed) of an asset, `GENERALIST` among the assets, from the tables of 03 and 04.

    Raises
    ------
    MissingInputError
        If 03 or 04 has not run.
    And as `train_runs`.
    """
    paths = Paths(parameters.name, asset)
    sources = parameters.assets if asset == GENERALIST else [asset]
    splits = [read_split(parameters, sources, split) for split in ("train", "validation")]
    training, held_out = (pooled(states) if asset == GENERALIST else states[0] for states in splits)
    train_runs(parameters, paths, training, held_out, chosen, watch)


def runs_of(
    parameters: Parameters, asset: str, algorithm: str | None = None, seed: int | None = None
) -> list[tuple[str, int]]:
    """The runs (algorithm, seed) of an asset, or those of one algorithm, one seed; the generalist's has the first.

    Raises
    ------
    ParameterError
        If the profile does not have the asset, the algorithm or the seed.
    """
    algorithms: list[str] = list(parameters.training.algorithms)
    if asset == GENERALIST:
        algorithms = algorithms[:1]
    else:
        parameters.for_asset(asset)
    if algorithm is not None and algorithm not in algorithms:
        like = nearest(algorithm, algorithms)
        raise ParameterError(f"no algorithm {algorithm!r}{like}; {asset} has {', '.join(algorithms)}")
    if seed is not None and seed not in parameters.training.seeds:
        raise ParameterError(f"no seed {seed}; training.seeds has {parameters.training.seeds}")
    seeds = parameters.training.seeds if seed is None else [seed]
    return [(name, number) for name in ([algorithm] if algorithm else algorithms) for number in seeds]


def train_runs(
    parameters: Parameters,
    paths: Paths,
    training: States,
    held_out: States,
    chosen: Sequence[tuple[str, int]],
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Train some runs (algorithm, seed) of an asset, and leave adapter, log and manifest in the folder of each.

    The base reads the states once for all runs, and no run depends on which others are chosen. One that was trained as
    it would be now (the same parameters, states and code) stays as it is, or is copied from where it was trained.

    Raises
    ------
    DataError
        If the rewards of no training state differ between its actions.
    ModelError
        If the base model cannot be had.
    TrainingError
        If a loss is not finite, or the GPU has no memory left.
    """
    identities = {run: runs.fingerprint(parameters, *run, training, held_out) for run in chosen}
    missing = [run for run, identity in identities.items() if not runs.stands(paths.adapter(*run), identity)]
    bench = Workbench(parameters, paths.asset, training, held_out)
    if missing and parameters.training.processes == 1:
        bench.read()  # before the bar of the updates begins to count

    def follow(looked: bool) -> None:
        bar.update()
        if looked:
            watch()

    with tqdm(total=len(missing) * parameters.training.steps, unit="step", delay=2, mininterval=5, leave=False) as bar:
        for algorithm, seed in missing:
            bar.set_description(f"{algorithm} {seed}")
            folder = paths.run(algorithm, seed)
            runs.open_run(folder, identities[algorithm, seed])
            if (folder / runs.LOG).exists():
                continue
            if parameters.training.processes == 1:
                bench.train(algorithm, seed, folder, follow)
            else:
                runs.launch(runs.Job(parameters, paths.asset, training, held_out, algorithm, seed, folder))
    for run in missing:
        publish(parameters, paths, run)


def gather_logs(parameters: Parameters, paths: Paths) -> dict[str, pd.DataFrame]:
    """The log of each algorithm, all seeds one below the other, also left as `training_log.csv` in its folder.

    Adapters of seeds that are not asked for any more are removed.

    Returns
    -------
    One row per gradient update, with `COLUMNS`; those of `heldout_*` every `evaluate_every` steps.
    """
    logs = dict[str, pd.DataFrame]()
    for algorithm in parameters.training.algorithms:
        folders = [paths.adapter(algorithm, seed) for seed in parameters.training.seeds]
        logs[algorithm] = pd.concat([pd.read_csv(folder / runs.LOG) for folder in folders], ignore_index=True)
        for former in set(paths.model(algorithm).glob("seed_*")) - set(folders):
            shutil.rmtree(former)
        with atomic(paths.model(algorithm) / runs.LOG) as temporary:
            logs[algorithm].to_csv(temporary, index=False)
    return logs


def read_split(parameters: Parameters, assets: Sequence[str], split: str) -> list[States]:
    """The states of a split of each asset. Raises as `train_asset`."""
    folders = [Paths(parameters.name, asset).data for asset in assets]
    tables = ([read_table(folder, name) for name in ("features", "outcomes")] for folder in folders)
    return [read_states(features, outcomes, parameters, split) for features, outcomes in tables]


class Workbench:
    """What all runs of an asset share: the base, the training states as it read them, and held-out states."""

    def __init__(self, parameters: Parameters, asset: str, training: States, held_out: States) -> None:
        self.parameters, self.asset, self.training = parameters, asset, training
        self._looked_at = held_out.spread(parameters.training.evaluation_states)

    @cached_property
    def _base(self) -> tuple[Any, Any]:
        return load_base(self.parameters.policy)

    @cached_property
    def scorer(self) -> Scorer:
        return make_scorer(*self._base, self.parameters)

    @cached_property
    def states(self) -> Encodings:
        return self._encoded(self.training, self._held_out.nbytes)

    @cached_property
    def _held_out(self) -> Encodings:
        return self._encoded(self._looked_at)

    def _encoded(self, states: States, taken: int = 0) -> Encodings:
        training = self.parameters.training
        left_gb = training.memory_gb / training.processes - taken / 1e9
        return Encodings(self.scorer, states.prompts, left_gb, states.distinct)

    def read(self) -> None:
        """Let the base read all states, if it has not yet."""
        _ = self.states, self._held_out

    @cached_property
    def reference(self) -> Tensor:
        """(n, K) log-probabilities of the untrained base in the training states."""
        return torch.as_tensor(score(self.scorer, self.states), device=self._base[0].device)

    def look(self, scorer: Scorer) -> Row:
        """Reward of the greedy action beside best fixed action and oracle (bps), and how often it is the best."""
        rewards, training = self._looked_at.rewards, self.training.rewards
        earned = rewards[np.arange(len(rewards)), score(scorer, self._held_out).argmax(axis=1)]
        best = rewards.max(axis=1)
        return {
            "heldout_reward": float(earned.mean()),
            "heldout_best_fixed": float(rewards[:, training.mean(axis=0).argmax()].mean()),
            "heldout_oracle": float(best.mean()),
            "heldout_accuracy": float((earned >= best).mean()),
        }

    @cached_property
    def _untrained(self) -> Row:
        """The look at step 0 of every run: a fresh adapter does not change the base."""
        return self.look(self.scorer)

    def train(self, algorithm: str, seed: int, folder: Path, watch: Callable[[bool], None]) -> None:
        """Train one adapter, from the last checkpoint in `folder` if there is one, and leave adapter and log there.

        `watch` is called after each update, with whether the held-out states were looked at.
        """
        settings, (base, tokenizer) = self.parameters.training, self._base
        first = {"step": 0, "seed": seed, "elapsed_s": 0.0} | self._untrained
        _ = self.reference, self.states  # read by the base alone, before an adapter is put into it
        adapted = add_adapter(base, self.parameters.policy, seed)
        scorer = self.scorer.through(adapted)

        def look(step: int, last: int) -> Row:
            return self.look(scorer) if step % settings.evaluate_every == 0 or step == last else {}

        scribe = _Scribe(first, folder / runs.PROGRESS, watch)
        try:
            with seeded(seed):
                trainer = self._trainer(algorithm, seed, folder, adapted, look)
                trainer.add_callback(scribe)
                checkpoint = runs.newest_checkpoint(folder)
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.is_world_process_zero():
                save_adapter(adapted, tokenizer, self.parameters, folder / runs.ADAPTER)
                self._calibrate(scorer, folder / runs.ADAPTER)
                scribe.write(folder / runs.LOG, trainer.state)  # last: where it lies, the run is finished
        finally:
            adapted.unload()

    def _calibrate(self, scorer: Scorer, folder: Path) -> None:
        """Fit the adapter's temperature on the held-out states."""
        known = self._looked_at
        scored = score(scorer, self._held_out)
        calibration.write(folder, calibration.fit_temperature(scored, known.rewards, known.distinct), len(known))

    def _trainer(
        self, algorithm: str, seed: int, folder: Path, adapted: PeftModel, look: Callable[[int, int], Row]
    ) -> PolicyTrainer | SampledTrainer:
        """The trainer of an algorithm: ours for every loss of `losses`, TRL's for sampled groups."""
        settings, rewards = self.parameters.training, self.training.rewards
        shared = runs.arguments(self.parameters, algorithm, seed, folder, f"{self.asset} {algorithm} {seed}")
        rng = np.random.default_rng([seed, zlib.crc32(self.asset.encode())])
        if algorithm == SAMPLED:
            return SampledTrainer(
                adapted,
                self._base[1],
                self.scorer,
                self.states,
                rewards,
                order=list(islice(endless(len(rewards), rng), settings.steps * settings.states_per_update)),
                settings=settings.dapo_sampled,
                arguments=grpo(settings.dapo_sampled, **shared),
                look=look,
            )
        return PolicyTrainer(
            adapted,
            self.scorer,
            self.states,
            self.training,
            self.reference,
            algorithm,
            settings,
            plan=self._plan(algorithm, rng),
            arguments=TrainingArguments(train_sampling_strategy="sequential", **shared),
            look=look,
        )

    def _plan(self, algorithm: str, rng: np.random.Generator) -> Plan:
        """The states of each update."""
        settings = self.parameters.training
        budget = settings.steps, settings.states_per_update
        if algorithm == SHARPENED:
            return plan_by_advantage(self.training, settings.dapo_preference, *budget, rng)
        return plan_updates(self.training, *budget, rng)


def publish(parameters: Parameters, paths: Paths, run: tuple[str, int]) -> None:
    """Move adapter, log and what TensorBoard reads of a finished run to its place, with a manifest."""
    (algorithm, seed), source = run, paths.run(*run)
    manifest: dict[str, Any] = {
        "algorithm": algorithm,
        "seed": seed,
        "asset": paths.asset,
        "run": (source / runs.IDENTITY).read_text(),
        "parameters": parameters.model_dump(mode="json"),
    }
    with atomic_folder(paths.adapter(*run)) as folder:
        shutil.copytree(source / runs.ADAPTER, folder, dirs_exist_ok=True)
        shutil.copy(source / runs.LOG, folder)
        card.write(folder, parameters, paths.asset, *run, pd.read_csv(source / runs.LOG))
        if (source / "runs").exists():
            shutil.copytree(source / "runs", folder / "tensorboard")
        manifest["files"] = runs.digests(folder)
        (folder / runs.MANIFEST).write_text(json.dumps(manifest, indent=1, default=str))
    shutil.rmtree(source)
    for folder in (source.parent, paths.runs):
        with suppress(OSError):  # another run of the asset is not finished
            folder.rmdir()


class _Scribe(TrainerCallback):
    """Writes the rows so far at each look at held-out states."""

    def __init__(self, first: Row, file: Path, watch: Callable[[bool], None]) -> None:
        self._first, self._file, self._watch = first, file, watch

    def on_log(self, args: Any, state: Any, control: Any, logs: Row | None = None, **_: Any) -> None:
        looked = "heldout_reward" in (logs or {})
        if looked and state.is_world_process_zero:
            self.write(self._file, state)
        self._watch(looked)

    def write(self, file: Path, state: Any) -> None:
        """The rows of the training log."""
        rows = [self._first] + [row | {"seed": self._first["seed"]} for row in state.log_history if "loss" in row]
        with atomic(file) as temporary:
            pd.DataFrame(rows).reindex(columns=COLUMNS).to_csv(temporary, index=False)
