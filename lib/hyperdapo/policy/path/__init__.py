"""From features to a decision, as fast as it can be taken: what a service and a live session call (Listing 4.10).

The base is read once, and so are the instruction's keys and values. A decision is a prompt, one forward pass over the
K letters, and the most probable of them; n decisions are taken together as each would be alone. `policy.decisions`
decides the same of whole tables.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch

from hyperdapo.market.columns import Floats, Mask
from hyperdapo.params import Parameters
from hyperdapo.policy.language import calibration
from hyperdapo.policy.models import load_adapter, load_base
from hyperdapo.policy.path.packed import pack_layers, sharing
from hyperdapo.policy.path.remembering import Remembering, RememberingWhole
from hyperdapo.policy.prompts import encode_states, instruction
from hyperdapo.policy.scoring import make_scorer


@dataclass(frozen=True)
class Decision:
    """What is done in one state, and why.

    `action` is a position in `policy.actions`; `probabilities` (K,) are at the adapter's temperature, 0 of actions that
    are not distinct; `timing_ms` says how long each part (`prompt`, `forward`, `decode`) took of all that were decided
    together.
    """

    action: int
    probabilities: tuple[float, ...]
    timing_ms: dict[str, float]


class PromptPath(ABC):
    """A policy that decides at once, whoever reads its prompts.

    `adapter` is the folder of a trained one, or None; `tokenizer` is the base's.
    """

    def __init__(self, parameters: Parameters, tokenizer: Any, adapter: Path | None) -> None:
        self.tokenizer, self._policy = tokenizer, parameters.policy
        self.temperature = 1.0 if adapter is None else calibration.read(adapter)
        self.instruction = instruction(parameters.policy.actions, parameters.policy.prompt_style)

    def decide(self, features: pd.DataFrame, parents: pd.DataFrame, distinct: Mask | None = None) -> list[Decision]:
        """The decision of each parent order, n of them together.

        Parameters
        ----------
        features, parents : as `prompts.encode_states` takes them
        distinct : (n, K) False for an action that is the same order as an earlier one; None where all are distinct

        Raises
        ------
        DataError
            If a feature of one of the states is not finite.
        ModelError
            As `probabilities_of`.
        """
        begun = perf_counter()
        prompts = encode_states(features, parents, self._policy.actions, self._policy.prompt_style)
        written = perf_counter()
        probabilities = self.probabilities_of(prompts, distinct)
        read = perf_counter()
        distinct = np.ones(probabilities.shape, dtype=bool) if distinct is None else distinct
        actions = probabilities.argmax(axis=1).tolist()
        scaled = calibrated(probabilities, self.temperature, distinct).tolist()
        seconds = {"prompt": written - begun, "forward": read - written, "decode": perf_counter() - read}
        timing_ms = {part: 1e3 * taken for part, taken in seconds.items()}
        return [Decision(*each, timing_ms) for each in zip(actions, map(tuple, scaled), strict=True)]

    @abstractmethod
    def probabilities_of(self, prompts: Sequence[str], distinct: Mask | None = None) -> Floats:
        """(n, K) of the actions after each of n prompts, not calibrated; `distinct` as for `decide`.

        Raises
        ------
        ModelError
            If they cannot be read.
        """


class DecisionPath(PromptPath):
    """A path whose prompts are read here: by a base, with an adapter or none.

    Parameters
    ----------
    adapter : the folder of a trained adapter, None for the untrained base
    prepare : what is done to the base, the adapter in its layers, before it reads
    loaded : of `load_base`, for several paths: they share its weights, and it stays as it is

    Raises
    ------
    MissingInputError
        If no adapter is there.
    ModelError
        If the base cannot be had, or the adapter was trained for something else, see `models.load_adapter`.
    """

    def __init__(
        self,
        parameters: Parameters,
        adapter: Path | None = None,
        prepare: Callable[[Any], None] = pack_layers,
        loaded: tuple[Any, Any] | None = None,
    ) -> None:
        base, tokenizer = (sharing(loaded[0]), loaded[1]) if loaded else load_base(parameters.policy)
        adapted = base if adapter is None else load_adapter(base, parameters, adapter)
        super().__init__(parameters, tokenizer, adapter)
        prepare(base)
        self._scorer = make_scorer(adapted, tokenizer, parameters, Remembering, RememberingWhole)

    @torch.inference_mode()
    def next_tokens(self, prompts: Sequence[str]) -> Floats:
        """(n, vocabulary) log-probabilities of whatever may come after each of n prompts. Raises as before."""
        log_probabilities = self._scorer.next_tokens(self._scorer.encode(prompts))
        return log_probabilities.double().cpu().numpy()

    @torch.inference_mode()
    def probabilities_of(self, prompts: Sequence[str], distinct: Mask | None = None) -> Floats:
        """See `PromptPath`.

        Raises
        ------
        ModelError
            If a prompt does not begin with the instruction or does not end with the cue.
        """
        log_probabilities = self._scorer.log_probabilities(self._scorer.encode(prompts, distinct))
        return log_probabilities.double().exp().cpu().numpy()


def calibrated(probabilities: Floats, temperature: float, distinct: Mask) -> Floats:
    """(n, K) probabilities at a temperature, 0 of actions that are not distinct; NaN where they are not known."""
    with np.errstate(divide="ignore"):
        scaled: Floats = np.exp(calibration.scale(np.log(probabilities), temperature, distinct))
    return scaled
