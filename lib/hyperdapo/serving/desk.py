"""From states to orders (Listing 4.10): the decision of each, and its order on the grid, many of them together."""

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
import pandas as pd

from hyperdapo.execution.parents import Candidates
from hyperdapo.params import Parameters
from hyperdapo.policy.path import Decision, DecisionPath
from hyperdapo.serving.models import Decided, Order
from hyperdapo.serving.states import State


class Desk:
    """Decides for several assets, by the path of each."""

    def __init__(self, parameters: Parameters, paths: Mapping[str, DecisionPath]) -> None:
        self._parameters, self._paths = parameters, paths
        self._actions = parameters.policy.actions
        self._words = [str(action) for action in self._actions]

    def decide(self, states: Sequence[State], waited_s: Sequence[float]) -> list[Decided]:
        """What to do in each of n states, those of one asset together; `waited_s` (n,) is how long each has waited.

        Raises
        ------
        ModelError
            If the model cannot read a prompt.
        """
        decided: dict[int, Decided] = {}
        for asset in dict.fromkeys(state.request.asset for state in states):
            places = [place for place, state in enumerate(states) if state.request.asset == asset]
            answers = self._decide(asset, [states[place] for place in places], [waited_s[place] for place in places])
            decided |= dict(zip(places, answers, strict=True))
        return [decided[place] for place in range(len(states))]

    def _decide(self, asset: str, states: Sequence[State], waited_s: Sequence[float]) -> list[Decided]:
        begun = perf_counter()
        parents, candidates = self._parents(states), self._candidates(asset, states)
        features = _features(asset, states)
        prepared_s = perf_counter() - begun
        decisions = self._paths[asset].decide(features, parents, candidates.distinct)
        taken_s, answers = perf_counter() - begun, []
        for place, (state, decision) in enumerate(zip(states, decisions, strict=True)):
            timing = {"queue": 1e3 * waited_s[place], "features": 1e3 * (state.seconds + prepared_s)}
            timing |= decision.timing_ms | {"total": 1e3 * (waited_s[place] + state.seconds + taken_s)}
            answers.append(self._answer(state, decision, _order(state, candidates, place, decision.action), timing))
        return answers

    def _answer(self, state: State, decision: Decision, order: Order, timing_ms: dict[str, float]) -> Decided:
        request = state.request
        return Decided(
            asset=request.asset,
            objective=request.objective,
            decision_ns=state.ns,
            mid=state.mid,
            horizon_s=self._parameters.orders.rules[request.objective].horizon_s,
            action=self._words[decision.action],
            order=order,
            probabilities=dict(zip(self._words, decision.probabilities, strict=True)),
            cold_because=state.cold_because,
            timing_ms=timing_ms,
        )

    def _parents(self, states: Sequence[State]) -> pd.DataFrame:
        """The states as parent orders: what `prompts.encode_states` reads of them."""
        objectives, rules = [state.request.objective for state in states], self._parameters.orders.rules
        horizons = [rules[objective].horizon_s for objective in objectives]
        sides = [state.side for state in states]
        columns = {"side": sides, "objective": objectives, "horizon_s": horizons}
        return pd.DataFrame({"order_id": np.arange(len(states))} | columns)

    def _candidates(self, asset: str, states: Sequence[State]) -> Candidates:
        """The orders of all K actions in each of n states."""
        names = ("side", "mid", "best_bid", "best_ask")
        side, mid, bid, ask = np.array([[getattr(state, name) for state in states] for name in names], dtype=float)
        return Candidates.of(self._actions, side, mid, bid, ask, self._parameters.contracts[asset].sz_decimals)


def _order(state: State, candidates: Candidates, place: int, action: int) -> Order:
    request, own = state.request, state.request.own_order
    limit, post_only = float(candidates.limit_price[place, action]), bool(candidates.post_only[action])
    return Order(
        side=request.side,
        size=request.size,
        limit_price=None if np.isnan(limit) else limit,
        post_only=post_only,
        waits=bool(candidates.waits[action]),
        keep=own is not None and post_only and own.limit_price == limit,
    )


def _features(asset: str, states: Sequence[State]) -> pd.DataFrame:
    """(n, ...) what `prompts.encode_states` reads of the states."""
    columns = {name: [state.columns[name] for state in states] for name in states[0].columns}
    known = {"asset": asset, "decision_ns": [state.ns for state in states], "mid": [state.mid for state in states]}
    return pd.DataFrame(columns | known)
