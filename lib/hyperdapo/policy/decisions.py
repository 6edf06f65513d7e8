"""What each policy decides on held-out states, and how long a decision takes (§4.5)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.policy import rivals
from hyperdapo.policy.language import calibration
from hyperdapo.policy.models import load_adapter, load_base
from hyperdapo.policy.path import calibrated
from hyperdapo.policy.scoring import Encodings, Scorer, make_scorer, score
from hyperdapo.policy.states import States


def decide_all(
    parameters: Parameters, paths: Paths, features: pd.DataFrame, training: States, tested: States, decider: "Decider"
) -> pd.DataFrame:
    """The rows of `decisions.parquet`: the untrained base, every algorithm and seed, and the rivals.

    `decider` is that of the tested states.

    Returns
    -------
    `order_id, asset, decision_ns, split, policy, seed, action, kind, temperature, probability_0 … probability_{K-1}`,
    the probabilities at the temperature of the adapter (1: of the untrained base); the rivals have neither (NaN).

    Raises
    ------
    MissingInputError
        If 05_train has not run.
    ModelError
        If an adapter was trained for something else, see `models.load_adapter`.
    """
    seeds = parameters.training.seeds
    frames = [_frame(tested, "untrained", seeds[0], decider.probabilities(), 1.0, parameters)]
    adapters = [(algorithm, seed) for algorithm in parameters.training.algorithms for seed in seeds]
    for algorithm, seed in tqdm(adapters, "deciding", delay=2, mininterval=5, leave=False):
        adapter = paths.adapter(algorithm, seed)
        probabilities, temperature = decider.probabilities(adapter), calibration.read(adapter)
        frames.append(_frame(tested, algorithm, seed, probabilities, temperature, parameters))
    known, unseen = (rivals.inputs(features, states.table) for states in (training, tested))
    for rival in rivals.RIVALS:
        fitted = rivals.fit(rival, known, training.rewards, parameters.seed)
        action, unknown = rivals.decide(fitted, unseen, tested.distinct), np.full(tested.rewards.shape, np.nan)
        frames.append(_frame(tested, rival, seeds[0], unknown, np.nan, parameters, action))
    return pd.concat(frames, ignore_index=True)


def decide_across(parameters: Parameters, paths: Paths, tested: Mapping[str, States], algorithm: str) -> pd.DataFrame:
    """What every specialist, and the generalist, earns on the states of every asset (§4.4).

    Parameters
    ----------
    tested : held-out states by asset

    Returns
    -------
    `asset` (of the state), `decision_ns, trained_on, seed, reward`: one row per state, adapter and seed.
    """
    together = States.joined(tested.values())
    decider, rows = Decider(parameters, together), np.arange(len(together))
    adapters = [(source, seed) for source in [*tested, GENERALIST] for seed in parameters.training.seeds]
    frames = []
    for source, seed in tqdm(adapters, "deciding", delay=2, mininterval=5, leave=False):
        action = decider.probabilities(paths.of(source).adapter(algorithm, seed)).argmax(axis=1)
        earned = together.table[["asset", "decision_ns"]].assign(reward=together.rewards[rows, action])
        frames.append(earned.assign(trained_on=source, seed=seed))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def measure_latency(
    scorer: Scorer, model: Any, tokenizer: Any, prompts: Sequence[str], tokens: int = 8
) -> pd.DataFrame:
    """Time of one decision by scoring the letters in one pass, and by generating text, one prompt at a time.

    Returns
    -------
    `way, decisions, median_measured_ms, p99_measured_ms`: wall times of this machine, not of the market.
    """

    def read_letters(prompt: str) -> None:
        scorer.log_probabilities(scorer.encode([prompt]))

    def generate(prompt: str) -> None:
        encoded = tokenizer([prompt], return_tensors="pt").to(model.device)
        model.generate(
            **encoded,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )

    rows = []
    for way, decide in (("score K letters in one pass", read_letters), (f"generate {tokens} tokens", generate)):
        decide(prompts[0])
        times = []
        for prompt in prompts:
            begun = perf_counter()
            decide(prompt)
            times.append((perf_counter() - begun) * 1e3)
        rows.append((way, len(times), float(np.median(times)), float(np.quantile(times, 0.99))))
    return pd.DataFrame(rows, columns=["way", "decisions", "median_measured_ms", "p99_measured_ms"])


class Decider:
    """A base and n states that it has read once, for one policy after the other.

    Raises
    ------
    ModelError
        If the base model cannot be had.
    """

    def __init__(self, parameters: Parameters, states: States) -> None:
        self._parameters, self._batch = parameters, parameters.inference.batch_size
        self.base, self.tokenizer = load_base(parameters.policy)
        self.scorer = make_scorer(self.base, self.tokenizer, parameters)
        self._states = Encodings(self.scorer, states.prompts, parameters.training.memory_gb, states.distinct)

    def probabilities(self, adapter: Path | None = None) -> Floats:
        """(n, K) of the actions: of the untrained base, or with the adapter in a folder.

        Raises
        ------
        MissingInputError
            If no adapter is there.
        ModelError
            If it was trained for something else, see `models.load_adapter`.
        """
        if adapter is None:
            return np.exp(score(self.scorer, self._states, self._batch))
        model = load_adapter(self.base, self._parameters, adapter)
        scored = score(self.scorer.through(model), self._states, self._batch)
        model.unload()  # type: ignore[operator]
        return np.exp(scored)


def _frame(
    states: States,
    policy: str,
    seed: int,
    probabilities: Floats,
    temperature: float,
    parameters: Parameters,
    action: NDArray[np.int64] | None = None,
) -> pd.DataFrame:
    """Rows of one policy; its action is the most probable one where it is not given.

    That is read from the probabilities as they are, so that no temperature can break a tie in another way.
    """
    action = probabilities.argmax(axis=1) if action is None else action
    probabilities = calibrated(probabilities, temperature, states.distinct)
    table = states.table[["order_id", "asset", "decision_ns", "split"]].reset_index(drop=True)
    columns = {f"probability_{k}": probabilities[:, k] for k in range(probabilities.shape[1])}
    kind = np.array([str(each) for each in parameters.policy.actions], dtype=object)[action]
    return table.assign(policy=policy, seed=seed, action=action, kind=kind, temperature=temperature, **columns)
