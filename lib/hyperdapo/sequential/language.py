"""A language model that decides again: its prompts, how it learns from exact action values, and what it decides.

A prompt is that of a single decision with the state of the order behind the market, ` left5 queued`: the decisions that
are left, and where it stands. So one reading of the market serves every place at which the order may stand. It learns
as `dapo` does, on groups of K + 1 values instead of K rewards (`policy.losses.clipped_surrogate`): the exact ones, or
what a critic expects of them (`sequential.critic`). Each exact value is that of the one future which came, and a
decision that can be mended in ten seconds is worth a hundredth of what that future moves an order's cost.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from hyperdapo.actions import Action
from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy import runs
from hyperdapo.policy.models import load_adapter, load_base, load_tokenizer
from hyperdapo.policy.prompts import CUE, check_lengths, encode_states
from hyperdapo.policy.scoring import make_scorer
from hyperdapo.policy.states import States, of_split
from hyperdapo.policy.training import Workbench, publish
from hyperdapo.sequential.iteration import DAPO, boosting, matrix
from hyperdapo.sequential.rollouts import decide_every_s
from hyperdapo.sequential.states import PLACES, instants

_KEEP = Action("keep")
_MOST = 9  # decisions left that the text tells apart
_WORDIEST = max(range(len(PLACES)), key=lambda place: len(PLACES[place]))
_READ = 8  # markets that are read at once
_TOGETHER = {"processes": 1, "gradient_accumulation": 1}
_BUDGET, _OF_DAPO = ("steps", "states_per_update"), ("learning_rate", "temperature_bps", "entropy_bonus")


def is_trained(parameters: Parameters, asset: str) -> bool:
    """Whether an asset has a `dapo_sequential`."""
    return parameters.policy.decide_again_s is not None and asset in parameters.sequential.trained


def train(
    parameters: Parameters,
    paths: Paths,
    features: pd.DataFrame,
    outcomes: pd.DataFrame,
    values: pd.DataFrame,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Train `dapo_sequential` of an asset with the first seed, unless it stands trained as it would be now.

    Raises as `policy.training.train_runs`.
    """
    again, seed = _again(parameters), parameters.training.seeds[0]
    training, held_out = (read(again, features, outcomes, values, split) for split in ("train", "validation"))
    if parameters.sequential.critic:
        training = expected(training, boosting(features, values, parameters.seed))
    training = training.spread(parameters.sequential.states)
    identity, run = runs.fingerprint(again, "dapo", seed, training, held_out), (DAPO, seed)
    if runs.stands(paths.adapter(*run), identity):
        return

    def follow(looked: bool) -> None:
        if looked:
            watch()

    folder = paths.run(*run)
    runs.open_run(folder, identity)
    if not (folder / runs.LOG).exists():
        Workbench(again, paths.asset, training, held_out).train("dapo", seed, folder, follow)
    publish(again, paths, run)


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
    worst = np.nanmin(known, axis=1, keepdims=True)
    return States(table, prompts, np.where(np.isfinite(known), known, worst), np.isfinite(known))


def expected(states: States, critic: Callable[[pd.DataFrame], Floats]) -> States:
    """The same states with what a critic expects of each action in place of what it was worth in the one future known.

    What was not allowed has the least value of its state, as in `read`; of an action that was too seldom allowed for
    the critic to know it (-inf), the exact value stays.
    """
    told = critic(states.table)
    predicted = np.where(states.distinct, np.where(np.isfinite(told), told, states.rewards), np.inf)
    worst = predicted.min(axis=1, keepdims=True)
    return replace(states, rewards=np.where(states.distinct, predicted, worst))


@torch.no_grad()
def scores(
    parameters: Parameters, paths: Paths, features: pd.DataFrame, outcomes: pd.DataFrame, states: pd.DataFrame
) -> Floats:
    """(m, K + 1) log-probabilities of `dapo_sequential` in `iteration.hypothetical` states: no action is ruled out yet.

    Raises
    ------
    DataError
        If a prompt is longer than `policy.max_length` tokens.
    MissingInputError
        If 05_train has not trained it.
    ModelError
        If it was trained for something else, see `models.load_adapter`.
    """
    again = _again(parameters)
    base, tokenizer = load_base(again.policy)
    reader = make_scorer(base, tokenizer, again)
    adapted = load_adapter(base, again, paths.adapter(DAPO, parameters.training.seeds[0]))
    table = _with_orders(states, outcomes)
    table = table.assign(market=_markets(again, features, table), left=_left(table, again))
    ends = (order_text(left, _WORDIEST) + CUE for left in table["left"])
    longest = [market + end for market, end in zip(table["market"], ends, strict=True)]
    table["tokens"] = check_lengths(longest, table, tokenizer, again.policy.max_length)
    scored = np.full((len(table), len(again.policy.actions)), np.nan)
    for (left, *_), alike in tqdm(table.groupby(["left", "number", "tokens"]), "deciding again", delay=2, leave=False):
        places = sorted(alike["place"].unique())
        rows = alike.sort_values(["order_id", "number", "place"]).index.to_numpy().reshape(-1, len(places))
        for part in np.array_split(rows, -(-len(rows) // _READ)):
            begun = list(table["market"].loc[part[:, 0]])
            encoded = reader.encode_each(begun, [order_text(left, place) for place in places])
            scored[part.ravel()] = reader.through(adapted).evaluate(encoded).cpu().numpy()
    adapted.unload()  # type: ignore[operator]
    return scored


def order_text(left: int, place: int) -> str:
    """What a prompt says of the order: how many decisions are left, this one included, and where it stands.

    >>> order_text(5, 2)
    ' left5 queued'
    """
    return f" left{min(left, _MOST)} {PLACES[place]}"


def _again(parameters: Parameters) -> Parameters:
    """The same with the action to keep an order, and what `sequential` says of the training.

    It is trained in one process, each update read whole.
    """
    policy = parameters.policy.model_copy(update={"actions": [*parameters.policy.actions, _KEEP]})
    own = parameters.sequential.model_dump(include={*_BUDGET, *_OF_DAPO})
    dapo = parameters.training.dapo.model_copy(update={name: own[name] for name in _OF_DAPO})
    training = parameters.training.model_copy(update={"dapo": dapo} | _TOGETHER | {name: own[name] for name in _BUDGET})
    return parameters.model_copy(update={"policy": policy, "training": training})


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
