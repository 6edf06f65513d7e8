"""Who decides in a session: one action always, or a trained policy."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from hyperdapo.actions import Action
from hyperdapo.errors import ParameterError, nearest
from hyperdapo.live.orders import distinct_actions
from hyperdapo.live.session import Asked
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Mask
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths


class Choice(NamedTuple):
    """An action (its position in `policy.actions`), and how it was come by: a fixed one has neither text nor chance."""

    action: int
    probabilities: tuple[float, ...]
    prompt: str
    timing_ms: dict[str, float]


class Known(NamedTuple):
    """What is known at a decision time: a row of features, the market of late, and the order that is wanted (1, 12)."""

    features: dict[str, Any]
    market: Market
    parents: pd.DataFrame


class Decider(Protocol):
    """Chooses actions."""

    at_once: bool
    """Whether it needs no time to speak of; else it decides in a thread of its own."""

    def choose(self, features: pd.DataFrame, parents: pd.DataFrame, distinct: Mask) -> list[Choice]:
        """One for each of n parents, whose `order_id` are positions in `features`; `distinct` (n, K)."""


class Fixed:
    """The same action for every order."""

    at_once = True

    def __init__(self, actions: Sequence[Action], word: str) -> None:
        """Raises ParameterError where there is no such action."""
        words = [str(action) for action in actions]
        if word not in words:
            raise ParameterError(f"--action {word!r}{nearest(word, words)}: policy.actions are {', '.join(words)}")
        self._choice = Choice(words.index(word), (), "", {})

    def choose(self, features: pd.DataFrame, parents: pd.DataFrame, distinct: Mask) -> list[Choice]:
        """See `Decider.choose`."""
        return [self._choice] * len(parents)


class Policy:
    """A language model, one adapter for each asset."""

    at_once = False

    def __init__(self, parameters: Parameters, assets: Sequence[str], algorithm: str, seed: int) -> None:
        """Raises as `policy.path.DecisionPath`."""
        from hyperdapo.policy.models import load_base
        from hyperdapo.policy.path import DecisionPath

        self._policy = parameters.policy
        folders = {asset: Paths(parameters.name, asset).adapter(algorithm, seed) for asset in assets}
        base, trained = load_base(parameters.policy), algorithm != "untrained"
        self._paths = {
            asset: DecisionPath(parameters, folder if trained else None, loaded=base)
            for asset, folder in folders.items()
        }

    def choose(self, features: pd.DataFrame, parents: pd.DataFrame, distinct: Mask) -> list[Choice]:
        """See `Decider.choose`; orders of one asset are decided on together."""
        from hyperdapo.policy.prompts import encode_states

        choices: list[Choice | None] = [None] * len(parents)
        for asset in parents["asset"].unique():
            rows = np.flatnonzero(parents["asset"] == asset)
            mine = parents.iloc[rows]
            decided = self._paths[asset].decide(features, mine, distinct[rows])
            begun = perf_counter()
            prompts = encode_states(features, mine, self._policy.actions, self._policy.prompt_style)
            noting_ms = {"note": 1e3 * (perf_counter() - begun)}
            for row, one, prompt in zip(rows.tolist(), decided, prompts, strict=True):
                choices[row] = Choice(one.action, one.probabilities, prompt, one.timing_ms | noting_ms)
        return [choice for choice in choices if choice is not None]


def choose(decider: Decider, known: Sequence[Known], parameters: Parameters) -> list[Choice]:
    """What is done in each of the states, one decision for all of them together."""
    parents = pd.concat([one.parents for one in known], ignore_index=True).assign(order_id=range(len(known)))
    features, actions = pd.DataFrame([one.features for one in known]), parameters.policy.actions
    if decider.at_once:
        return decider.choose(features, parents, np.ones((len(known), len(actions)), bool))
    distinct = [distinct_actions(one.parents, one.market, actions) for one in known]
    return decider.choose(features, parents, np.concatenate(distinct))


def decider_of(asked: Asked) -> Decider:
    """Who decides, as a session was asked; raises as `Fixed` and `Policy`."""
    parameters = asked.parameters()
    if asked.action:
        return Fixed(parameters.policy.actions, asked.action)
    return Policy(parameters, asked.assets, asked.policy, asked.seed)
