"""How long a decision takes on this machine, part by part, and what a coarser precision changes (§4.5, §4.8.4).

Each way of deciding is timed for so many decisions one after the other as are asked for, or as fit into a time; where
there are fewer states, they come again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import DynamicCache

from hyperdapo.market.columns import Integers
from hyperdapo.params import Parameters
from hyperdapo.policy.models import load_base
from hyperdapo.policy.path import Decision, PromptPath
from hyperdapo.policy.path.backends import available, open_path, own
from hyperdapo.policy.prompts import instruction
from hyperdapo.policy.states import States

SCORE, TOTAL = "score the letters", "all"  # mode, and the part that stands for all
GENERATED = {"generate 1 token": 1, "generate 50 tokens": 50}
"""What the draft does (Listing 4.10), with the instruction's keys and values kept as well: by mode, new tokens."""
BATCHES = (1, 4, 16, 64)
LATENCY = {"backend": object, "mode": object, "part": object, "ms": float}
PRECISIONS = {"backend": object, "size_mb": float, "decisions": int, "agreement": float, "minus_own_bps": float}
THROUGHPUT = {"backend": object, "batch": int, "decisions_per_measured_s": float}
_WARM_UP = 3  # decisions that are not counted


@dataclass(frozen=True)
class Measured:
    """`latency`: a row per decision and part, with `LATENCY`; `precisions` and `throughput` with theirs."""

    latency: pd.DataFrame
    precisions: pd.DataFrame
    throughput: pd.DataFrame


NOT_MEASURED = Measured(
    *(
        pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in of.items()})
        for of in (LATENCY, PRECISIONS, THROUGHPUT)
    )
)


def measure(parameters: Parameters, adapter: Path | None, features: pd.DataFrame, states: States) -> Measured:
    """Time every backend on states, one decision at a time, and compare what they decide.

    Parameters
    ----------
    adapter : folder of the policy; None for the untrained base
    features, states : as `DecisionPath.decide` reads them

    Raises
    ------
    MissingInputError, ModelError
        As `backends.open_path`.
    """
    desk = _Desk(parameters, features, states)
    latency, precisions, throughput, reference = [], [], [], np.zeros(0, dtype=np.int64)
    for backend in tqdm(available(parameters), "timing decisions", delay=2, mininterval=5, leave=False):
        with open_path(backend, parameters, adapter) as (path, size_mb):
            decisions = desk.one_by_one(path)
            actions = np.array([decision.action for decision in decisions])
            if backend == own(parameters):
                reference = actions
                throughput = [(backend, batch, desk.throughput(path, batch)) for batch in BATCHES]
        latency.append(_parts(backend, decisions))
        precisions.append((backend, size_mb, *desk.compared(actions, reference)))
    latency.append(desk.generated(own(parameters)))
    return Measured(
        pd.concat(latency, ignore_index=True),
        pd.DataFrame(precisions, columns=list(PRECISIONS)),
        pd.DataFrame(throughput, columns=list(THROUGHPUT)),
    )


def _parts(backend: str, decisions: list[Decision]) -> pd.DataFrame:
    times = pd.DataFrame([decision.timing_ms for decision in decisions])
    long = times.assign(**{TOTAL: times.sum(axis=1)}).melt(var_name="part", value_name="ms")
    return long.assign(backend=backend, mode=SCORE)[list(LATENCY)]


class _Desk:
    """States, one after the other, for whoever decides on them."""

    def __init__(self, parameters: Parameters, features: pd.DataFrame, states: States) -> None:
        self._parameters, self._features, self._states = parameters, features, states
        self._most = parameters.inference.latency_decisions

    def one_by_one(self, path: PromptPath) -> list[Decision]:
        """A decision on each state, as far as the time goes."""

        def decide(row: int) -> Decision:
            return self._decide(path, [row % len(self._states)])[0]

        for row in range(min(_WARM_UP, len(self._states))):
            decide(row)
        return [decision for _, decision in self._timed(decide)]

    def compared(self, actions: Integers, reference: Integers) -> tuple[int, float, float]:
        """On how many states both decided, how often alike, and what the first earn more there, bps."""
        both = min(len(actions), len(reference), len(self._states))
        first, second, rewards = actions[:both], reference[:both], self._states.rewards[:both]
        earned = rewards[np.arange(both), first] - rewards[np.arange(both), second]
        return both, float((first == second).mean()), float(earned.mean())

    def throughput(self, path: PromptPath, batch: int) -> float:
        """Decisions a second of a path that takes so many together."""

        def decide(row: int) -> list[Decision]:
            return self._decide(path, [(row + each) % len(self._states) for each in range(batch)])

        seconds = [taken for taken, _ in self._timed(decide, step=batch, share=0.1)]
        return batch * len(seconds) / sum(seconds)

    def generated(self, backend: str) -> pd.DataFrame:
        """The same prompts answered in text by the untrained base; a row per decision, with `LATENCY`."""
        base, tokenizer = load_base(self._parameters.policy)
        writer = Writer(
            base, tokenizer, instruction(self._parameters.policy.actions, self._parameters.policy.prompt_style)
        )
        rows = []
        for mode, tokens in GENERATED.items():

            def write(row: int, tokens: int = tokens) -> None:
                writer.write(self._states.prompts[row % len(self._states)], tokens)

            write(0)
            rows += [(backend, mode, TOTAL, 1e3 * taken) for taken, _ in self._timed(write)]
        return pd.DataFrame(rows, columns=list(LATENCY))

    def _decide(self, path: PromptPath, rows: list[int]) -> list[Decision]:
        return path.decide(self._features, self._states.table.iloc[rows], self._states.distinct[rows])

    def _timed(self, decide: Callable[[int], Any], step: int = 1, share: float = 1.0) -> Iterator[tuple[float, Any]]:
        """Seconds and result of each call, until all states have had theirs or a share of the time is over."""
        left_s = share * self._parameters.inference.latency_s
        for row in range(0, self._most, step):
            begun = perf_counter()
            result = decide(row)
            taken = perf_counter() - begun
            yield taken, result
            left_s -= taken
            if left_s <= 0.0:
                return


class Writer:
    """A base that answers prompts in text, and has read what they all begin with."""

    def __init__(self, base: Any, tokenizer: Any, opening: str) -> None:
        self._base, self._tokenizer = base, tokenizer
        self._read: Any = DynamicCache()
        ids = torch.tensor([tokenizer(opening)["input_ids"]], device=base.device)
        with torch.inference_mode():
            base(input_ids=ids, past_key_values=self._read, use_cache=True)
        self._known = ids.shape[1]

    @torch.inference_mode()
    def write(self, prompt: str, tokens: int) -> str:
        """Exactly so many tokens after a prompt, the most probable ones."""
        encoded = self._tokenizer([prompt], return_tensors="pt").to(self._base.device)
        answer = self._base.generate(
            **encoded,
            past_key_values=self._read,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        self._read.crop(self._known - self._read.get_seq_length())  # less than 0: so many are forgotten
        text: str = self._tokenizer.decode(answer[0, encoded["input_ids"].shape[1] :])
        return text
