"""What each policy decides on held-out states, and how long a decision takes (§4.5)."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch

from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy import boosting
from hyperdapo.policy.models import load_adapter, load_base
from hyperdapo.policy.scoring import Encodings, Scorer
from hyperdapo.policy.states import States
from hyperdapo.policy.training import make_scorer, score, seed_folder


def decide_all(
    parameters: Parameters, paths: Paths, features: pd.DataFrame, training: States, tested: States
) -> pd.DataFrame:
    """The rows of `decisions.parquet`: the untrained base, every algorithm and seed, and the boosted yardstick.

    Returns
    -------
    `order_id, asset, decision_ns, split, policy, seed, action, offset_bps, probability_0 … probability_{K-1}`; the
    boosted policy has no probabilities (NaN).

    Raises
    ------
    MissingInputError
        If 05_train has not run.
    ModelError
        If an adapter was trained on another base.
    """
    model: Any
    model, tokenizer = load_base(parameters.policy)
    seeds = parameters.training.seeds
    adapters = [(algorithm, seed) for algorithm in parameters.training.algorithms for seed in seeds]
    for algorithm, seed in adapters:
        folder = seed_folder(paths.model(algorithm), seed)
        model = load_adapter(model, parameters.policy, folder, f"{algorithm}_{seed}")
    scorer = make_scorer(model, tokenizer, parameters)
    states = Encodings(scorer, tested.prompts, parameters.training.memory_gb)
    count, batch = len(tested), parameters.inference.batch_size
    with model.disable_adapter():
        frames = [_frame(tested, "untrained", seeds[0], np.exp(score(scorer, states, count, batch)), parameters)]
    for algorithm, seed in adapters:
        model.set_adapter(f"{algorithm}_{seed}")
        frames.append(_frame(tested, algorithm, seed, np.exp(score(scorer, states, count, batch)), parameters))
    regressors = boosting.fit(boosting.inputs(features, training.table), training.rewards, parameters.seed)
    chosen = boosting.decide(regressors, boosting.inputs(features, tested.table))
    chosen_offsets = np.array(parameters.policy.offsets_bps)[chosen]
    unknown = _frame(tested, "boosting", seeds[0], np.full(tested.rewards.shape, np.nan), parameters)
    frames.append(unknown.assign(action=chosen, offset_bps=chosen_offsets))
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


def _frame(states: States, policy: str, seed: int, probabilities: Floats, parameters: Parameters) -> pd.DataFrame:
    action = np.nan_to_num(probabilities).argmax(axis=1)
    described = states.table[["order_id", "asset", "decision_ns", "split"]].reset_index(drop=True)
    columns = {f"probability_{k}": probabilities[:, k] for k in range(probabilities.shape[1])}
    offsets = np.array(parameters.policy.offsets_bps)[action]
    return described.assign(policy=policy, seed=seed, action=action, offset_bps=offsets, **columns)
