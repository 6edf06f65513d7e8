"""A language model that decides again: its prompts, with the value of every action, and what it decides.

A prompt is that of a single decision with the state of the order behind the market, ` left5 queued`: the decisions that
are left, and where it stands. So one reading of the market serves every place at which the order may stand.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from hyperdapo.actions import Action
from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.policy.models import load_adapter, load_base, load_tokenizer
from hyperdapo.policy.prompts import CUE, check_lengths, encode_states
from hyperdapo.policy.scoring import make_scorer
from hyperdapo.policy.states import States, of_split
from hyperdapo.sequential.iteration import matrix
from hyperdapo.sequential.rollouts import decide_every_s
from hyperdapo.sequential.states import PLACES, instants

_KEEP = Action("keep")
_MOST = 9  # decisions left that the text tells apart
_WORDIEST = max(range(len(PLACES)), key=lambda place: len(PLACES[place]))
_READ = 8  # markets that are read at once


def read(
    parameters: Parameters, features: pd.DataFrame, outcomes: pd.DataFrame, values: pd.DataFrame, split: str
) -> States:
    """States of the last iteration in the order of time, as prompts with the value of every action (n, K + 1) in bps.

    What was not allowed there has the least value of its state, and is not `distinct`.

    Raises
    ------
    DataError
        If the split has none, or a prompt is longer than `policy.max_length` tokens.
    ModelError
        If the base's tokenizer cannot be had.
    """
    rows = of_split(values[values["iteration"] == values["iteration"].max()], split)
    rows = rows.sort_values("decision_ns", kind="stable", ignore_index=True)
    known, table, policy = matrix(rows, "value"), _with_orders(rows, outcomes), parameters.policy
    parts = zip(_markets(parameters, features, table), _left(table, parameters), table["place"], strict=True)
    prompts = [market + order_text(left, place) + CUE for market, left, place in parts]
    check_lengths(prompts, table, load_tokenizer(policy.base_model), policy.max_length)
    return States(table, prompts, whole(known), np.isfinite(known))


def expected(states: States, critic: Callable[[pd.DataFrame], Floats]) -> States:
    """The same states with what a critic expects of each action, beyond the mean of its state, in place of the exact
    values, each of the one future that came.

    What was not allowed has the least value of its state, as in `read`; of an action that was too seldom allowed for
    the critic to know it (-inf), what it was worth beyond that mean stays.
    """
    exact = np.where(states.distinct, states.rewards, np.nan)
    told, beyond = critic(states.table), exact - np.nanmean(exact, axis=1, keepdims=True)
    return replace(states, rewards=whole(np.where(states.distinct, np.where(np.isfinite(told), told, beyond), np.nan)))


def whole(values: Floats) -> Floats:
    """(n, K + 1) the same with the least of its state for what was not allowed (NaN)."""
    return np.where(np.isfinite(values), values, np.nanmin(values, axis=1, keepdims=True))


def scorer(
    parameters: Parameters, adapter: Path, features: pd.DataFrame, outcomes: pd.DataFrame
) -> Callable[[pd.DataFrame], Floats]:
    """What an adapter thinks of `iteration.hypothetical` states: (m, ...) -> log-probabilities (m, K + 1).

    No action is ruled out yet. The returned function raises DataError if a prompt is longer than `policy.max_length`.

    Raises
    ------
    MissingInputError
        If there is no such adapter: 05_train has not trained it.
    ModelError
        If it was trained for something else, see `models.load_adapter`.
    """
    again = with_keep(parameters)
    base, tokenizer = load_base(again.policy)
    reader = make_scorer(base, tokenizer, again)
    adapted = reader.through(load_adapter(base, again, adapter))

    def scored(states: pd.DataFrame) -> Floats:
        table = _with_orders(states, outcomes)
        table = table.assign(market=_markets(again, features, table), left=_left(table, again))
        ends = (order_text(left, _WORDIEST) + CUE for left in table["left"])
        longest = [market + end for market, end in zip(table["market"], ends, strict=True)]
        table["tokens"] = check_lengths(longest, table, tokenizer, again.policy.max_length)
        found = np.full((len(table), len(again.policy.actions)), np.nan)
        for (left, *_), alike in tqdm(
            table.groupby(["left", "number", "tokens"]), "deciding again", delay=2, leave=False
        ):
            places = sorted(alike["place"].unique())
            rows = alike.sort_values(["order_id", "number", "place"]).index.to_numpy().reshape(-1, len(places))
            for part in np.array_split(rows, -(-len(rows) // _READ)):
                begun = list(table["market"].loc[part[:, 0]])
                encoded = reader.encode_each(begun, [order_text(left, place) for place in places])
                found[part.ravel()] = adapted.evaluate(encoded).cpu().numpy()
        return found

    return scored


def order_text(left: int, place: int) -> str:
    """What a prompt says of the order: how many decisions are left, this one included, and where it stands.

    >>> order_text(5, 2)
    ' left5 queued'
    """
    return f" left{min(left, _MOST)} {PLACES[place]}"


def with_keep(parameters: Parameters) -> Parameters:
    """The same with one more action, to keep an order."""
    policy = parameters.policy.model_copy(update={"actions": [*parameters.policy.actions, _KEEP]})
    return parameters.model_copy(update={"policy": policy})


def _with_orders(states: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """What a prompt and an error name beside the state: asset and objective of the parent."""
    orders = outcomes.loc[outcomes["action"] == 0, ["order_id", "asset", "objective"]]
    return states.merge(orders, on="order_id", how="left", validate="many_to_one")


def _markets(parameters: Parameters, features: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """(m,) prompts up to the state of the order."""
    row = instants(features, table["decision_ns"].to_numpy())
    policy = parameters.policy
    prompts = encode_states(features, table.assign(order_id=row), policy.actions, policy.prompt_style)
    return [prompt[: -len(CUE)] for prompt in prompts]


def _left(table: pd.DataFrame, parameters: Parameters) -> list[int]:
    """(m,) decisions until the deadline, the present one included."""
    return [math.ceil(seconds / decide_every_s(parameters)) for seconds in table["seconds_left"]]
