"""04: what each candidate order would have earned in every state of one asset, as rewards, text and pairs; and what
every action is worth where orders are decided on again."""

from functools import partial
from pathlib import Path

import pandas as pd

from hyperdapo.execution.laws import as_measured
from hyperdapo.execution.parents import parents_in_parts, replay_candidates
from hyperdapo.files import read_table, write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy import rewards
from hyperdapo.policy.models import load_tokenizer
from hyperdapo.policy.prompts import check_lengths, encode_states
from hyperdapo.policy.states import build_pairs, prompt_card
from hyperdapo.sections import PromptStyle
from hyperdapo.sequential.iteration import action_values

_COMPARED: tuple[PromptStyle, ...] = ("thesis", "anonymous")


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Replay the candidates, write the states down as text, pair the actions, and study the reward's weights.

    Raises
    ------
    DataError
        If no order can start, a split has none, or a prompt is longer than `policy.max_length` tokens.
    ModelError
        If the base's tokenizer cannot be had.
    """
    features, laws = read_table(paths.data, "features"), read_table(paths.data, "laws")
    parameters = as_measured(parameters, laws)
    parents, outcomes = replay(parameters, paths, features)
    prompts, card = describe(parameters, features, parents)
    trials, costs = study_weights(parameters, features, outcomes)
    tables = {"outcomes": outcomes, "pairs": build_pairs(outcomes, prompts, parameters.policy.actions, parameters.seed)}
    tables |= {"prompts": card, "weight_trials": trials, "weight_costs": costs}
    tables["action_values"] = action_values(
        partial(parents_in_parts, paths.data, features, parameters), features, parameters
    )
    return [write_table(table, paths.data, name) for name, table in tables.items()]


def replay(parameters: Parameters, paths: Paths, features: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parent orders (n rows) from the market, a part of the span at a time, and their K candidates' outcomes (n K)."""
    parents, outcomes = [], []
    for market, begun in parents_in_parts(paths.data, features, parameters):
        parents.append(begun)
        outcomes.append(rewards.with_rewards(replay_candidates(market, begun, parameters), parameters.orders))
    return pd.concat(parents, ignore_index=True), pd.concat(outcomes, ignore_index=True)


def describe(parameters: Parameters, features: pd.DataFrame, parents: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """The prompt of each parent order in the style of the profile, by `order_id`, and a card of its lengths.

    `thesis` and `anonymous` are always on the card: does hiding the price level make prompts alike?
    """
    policy, cards, texts = parameters.policy, [], {}
    tokenizer = load_tokenizer(policy.base_model)
    for style in dict.fromkeys((*_COMPARED, policy.prompt_style)):
        texts[style] = encode_states(features, parents, policy.actions, style)
        lengths = check_lengths(texts[style], parents, tokenizer, policy.max_length)
        cards.append(prompt_card(pd.Series(texts[style]), parents["split"], lengths, style))
    return pd.Series(texts[policy.prompt_style], index=parents["order_id"]), pd.concat(cards, ignore_index=True)


def study_weights(
    parameters: Parameters, features: pd.DataFrame, outcomes: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trials of the weights of eq. 3.3, and what each state's order costs under the best and the known ones."""
    predicted = rewards.predict_parts(features, outcomes, parameters.seed)
    known = rewards.fixed_weights(parameters.orders, predicted.states)
    trials = rewards.search_weights(predicted, known, parameters.orders.weight_trials, parameters.seed)
    return trials, rewards.costs_of_weights(predicted, known, trials, parameters.laws.block_s)
