"""From states to orders (Listing 4.10): the decision of each, and its order on the grid, many of them together."""

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
import pandas as pd

from hyperdapo.execution.parents import candidate_orders
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BookSnapshots, TopOfBook, Trades, empty
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
        parents, features = self._parents(states), _features(asset, states)
        candidates = candidate_orders(parents, self._market(asset, states), self._actions)
        limits, post_only, waits, distinct = (
            np.array(candidates[name]).reshape(len(states), -1)
            for name in ("limit_price", "post_only", "waits", "distinct")
        )
        prepared_s = perf_counter() - begun
        objectives = [state.request.objective for state in states]
        decisions = self._paths[asset].decide(features, parents.assign(objective=objectives), distinct)
        taken_s, answers = perf_counter() - begun, []
        for place, (state, decision) in enumerate(zip(states, decisions, strict=True)):
            timing = {"queue": 1e3 * waited_s[place], "features": 1e3 * (state.seconds + prepared_s)}
            timing |= decision.timing_ms | {"total": 1e3 * (waited_s[place] + state.seconds + taken_s)}
            chosen = place, decision.action
            order = _order(state, float(limits[chosen]), bool(post_only[chosen]), bool(waits[chosen]))
            answers.append(self._answer(state, decision, order, timing))
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
        """The states as parent orders, each at an instant of its own."""
        rules = self._parameters.orders.rules
        return pd.DataFrame(
            {
                "order_id": np.arange(len(states)),
                "decision_ns": np.arange(len(states)) + 1,
                "side": [state.side for state in states],
                "horizon_s": [rules[state.request.objective].horizon_s for state in states],
                "arrival_mid": [state.mid for state in states],
            }
        )

    def _market(self, asset: str, states: Sequence[State]) -> Market:
        """The best quotes of the states, each at the instant of its parent order."""
        instants, unknown = np.arange(len(states)) + 1, np.full(len(states), np.nan)
        bid, ask = (np.array([getattr(state, name) for state in states]) for name in ("best_bid", "best_ask"))
        top = TopOfBook(instants, instants, bid, unknown, ask, unknown)
        decimals = self._parameters.contracts[asset].sz_decimals
        return Market(asset, decimals, empty(BookSnapshots), top, empty(Trades), np.zeros((0, 2), np.int64))


def _order(state: State, limit: float, post_only: bool, waits: bool) -> Order:
    request, own = state.request, state.request.own_order
    return Order(
        side=request.side,
        size=request.size,
        limit_price=None if np.isnan(limit) else limit,
        post_only=post_only,
        waits=waits,
        keep=own is not None and post_only and own.limit_price == limit,
    )


def _features(asset: str, states: Sequence[State]) -> pd.DataFrame:
    """(n, ...) what `prompts.encode_states` reads of the states."""
    columns = {name: [state.columns[name] for state in states] for name in states[0].columns}
    known = {"asset": asset, "decision_ns": [state.ns for state in states], "mid": [state.mid for state in states]}
    return pd.DataFrame(columns | known)
