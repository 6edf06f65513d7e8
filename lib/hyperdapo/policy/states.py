"""States to learn from or to decide on, as prompts with what every action earned there; preference pairs of them.

`dataset_card`, `class_balance` and `prompt_card` describe in numbers what the two are made of.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.market.columns import Floats, Mask
from hyperdapo.params import Parameters
from hyperdapo.policy.prompts import check_lengths, encode_states, letters

_NAMED = 3  # states that an error names


@dataclass(frozen=True)
class States:
    """n states of one split: `table` (n rows of outcomes), `prompts` (n,), `rewards` (n, K) bps.

    `distinct` (n, K) is False for an action that is the same order as an earlier one of its state: a choice counts it
    once.
    """

    table: pd.DataFrame
    prompts: list[str]
    rewards: Floats
    distinct: Mask

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: NDArray[np.int64]) -> "States":
        """The states of these rows."""
        return States(
            self.table.iloc[rows], [self.prompts[row] for row in rows], self.rewards[rows], self.distinct[rows]
        )

    @staticmethod
    def joined(parts: Iterable["States"]) -> "States":
        """The states of several assets, one after the other."""
        parts = list(parts)
        table = pd.concat([part.table for part in parts], ignore_index=True)
        prompts = [prompt for part in parts for prompt in part.prompts]
        rewards, distinct = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("rewards", "distinct")
        )
        return States(table, prompts, rewards, distinct)

    def spread(self, count: int) -> "States":
        """At most `count` of them, evenly spaced."""
        return self.select(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)))


def read_states(features: pd.DataFrame, outcomes: pd.DataFrame, parameters: Parameters, split: str) -> States:
    """The states of a split as prompts, with what every action earned there.

    Raises
    ------
    DataError
        If the split is empty, or a prompt is longer than `policy.max_length` tokens.
    ModelError
        If the base's tokenizer cannot be had.
    """
    from hyperdapo.policy.models import load_tokenizer  # torch takes seconds to import

    rows, policy = of_split(outcomes, split), parameters.policy
    table, rewards = reward_matrix(rows)
    prompts = encode_states(features, table, policy.actions, policy.prompt_style)
    check_lengths(prompts, table, load_tokenizer(policy.base_model), policy.max_length)
    return States(table, prompts, rewards, distinct_actions(rows))


def pooled(parts: Sequence[States]) -> States:
    """What a generalist learns from: as many states as a specialist has, equally many of each asset."""
    count = round(sum(len(part) for part in parts) / len(parts) ** 2)
    return States.joined(part.spread(count) for part in parts)


def of_split(outcomes: pd.DataFrame, split: str) -> pd.DataFrame:
    """The outcomes of a split.

    Raises
    ------
    DataError
        If it has none.
    """
    rows = outcomes[outcomes["split"] == split]
    if rows.empty:
        raise DataError(f"no order belongs to the {split} split: lengthen the span, or change `split`")
    return rows


def reward_matrix(outcomes: pd.DataFrame, measure: str = "reward") -> tuple[pd.DataFrame, Floats]:
    """The n states of `outcomes` (one row each) and what each of the K actions earned there, (n, K).

    Raises
    ------
    DataError
        If there is no state, a state lacks an action, or a reward is not finite: names the first such rows.
    """
    table = outcomes.set_index(["order_id", "action"])[measure].unstack()  # noqa: PD010
    if table.empty:
        raise DataError(f"there is no {measure}: outcomes.parquet has no row here. Run 04_preference_pairs again")
    if (broken := np.argwhere(~np.isfinite(table.to_numpy()))).size:
        rows = [f"order {table.index[row]} action {table.columns[column]}" for row, column in broken[:_NAMED]]
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise DataError(
            f"{measure} is missing or not finite in outcomes.parquet for {', '.join(rows)}{more}: "
            "run 04_preference_pairs again"
        )
    states = outcomes[outcomes["action"] == 0].set_index("order_id").loc[table.index].reset_index()
    return states, table.to_numpy(copy=True)


def distinct_actions(outcomes: pd.DataFrame) -> Mask:
    """(n, K) which actions of the n states of `reward_matrix` are no repetition of an earlier one."""
    distinct: Mask = outcomes.pivot_table(index="order_id", columns="action", values="distinct").to_numpy(bool)
    return distinct


def pairs_of(algorithm: str, rewards: Floats, distinct: Mask, seed: int) -> Floats:
    """(n, K, K) weights of the pairs that an algorithm learns from in each of n states, the preferred action first.

    All that earned differently, alike; for `dpo_one_pair` and `listing_4_3` one: the best against the worst.
    """
    if algorithm == "dpo_one_pair":
        return _one_hot(best_and_worst(rewards, distinct, np.random.default_rng(seed)), rewards)
    if algorithm == "listing_4_3":
        return _one_hot(first_and_last(rewards, distinct), rewards)
    both = distinct[:, :, None] & distinct[:, None, :]
    better = both & (rewards[:, :, None] > rewards[:, None, :])
    count = better.sum(axis=(1, 2), keepdims=True)
    weights: Floats = better / np.maximum(count, 1)
    return weights


def best_and_worst(rewards: Floats, distinct: Mask, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n, 2) the action that earned most and the one that earned least in each state, drawn where several did.

    Ties are the rule: orders that were not filled all earn what their completion does. The first among them would be
    the same action in most states, and a preference for or against its letter.
    """
    drawn = rng.random(rewards.shape)
    best, worst = (
        np.where(distinct & (rewards == ends[:, None]), drawn, -1.0).argmax(axis=1)
        for ends in (rewards.max(axis=1), rewards.min(axis=1))
    )
    return np.column_stack([best, worst])


def first_and_last(rewards: Floats, distinct: Mask) -> NDArray[np.int64]:
    """(n, 2) first and last action of each state as Listing 4.3 sorts them: highest reward first, ties as listed."""
    place = np.argsort(np.where(distinct, -rewards, np.inf), axis=1, kind="stable")
    last = distinct.sum(axis=1) - 1
    return np.column_stack([place[:, 0], place[np.arange(len(place)), last]])


def advantages_of_best(rewards: Floats, distinct: Mask) -> Floats:
    """(n,) bps: Q - V of eq. 3.6 for the best action of a state, V being the mean over its distinct actions."""
    best: Floats = rewards.max(axis=1) - (rewards * distinct).sum(axis=1) / distinct.sum(axis=1)
    return best


def _one_hot(pair: NDArray[np.int64], rewards: Floats) -> Floats:
    weights = np.zeros((*rewards.shape, rewards.shape[1]))
    weights[np.arange(len(pair)), pair[:, 0], pair[:, 1]] = 1.0
    return weights


def build_pairs(outcomes: pd.DataFrame, prompts: pd.Series, actions: Sequence[Action], seed: int) -> pd.DataFrame:
    """One pair per state in which the actions differ; which of those that tied is drawn.

    Parameters
    ----------
    outcomes : K rows per state, with `reward`
    prompts : text by `order_id`
    actions : (K,)

    Returns
    -------
    `order_id, split, prompt, chosen, rejected` (letters), `chosen_action, rejected_action, chosen_kind, rejected_kind,
    chosen_reward, rejected_reward`; the states without a difference, from which nothing can be learned, are left out.
    """
    states, rewards = reward_matrix(outcomes)
    names, kinds = np.array(letters(actions)), np.array([str(action) for action in actions])
    best, worst = best_and_worst(rewards, distinct_actions(outcomes), np.random.default_rng(seed)).T
    rows = np.arange(len(rewards))
    pairs = pd.DataFrame(
        {
            "order_id": states["order_id"],
            "split": states["split"],
            "prompt": prompts.loc[states["order_id"]].to_numpy(),
            "chosen": names[best],
            "rejected": names[worst],
            "chosen_action": best,
            "rejected_action": worst,
            "chosen_kind": kinds[best],
            "rejected_kind": kinds[worst],
            "chosen_reward": rewards[rows, best],
            "rejected_reward": rewards[rows, worst],
        }
    )
    return pairs[pairs["chosen_reward"] > pairs["rejected_reward"]].reset_index(drop=True)


def dataset_card(outcomes: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """What the data set is made of, by split and objective: orders to buy and to sell (§4.8.3), and their pairs.

    Returns
    -------
    `split, objective, states, buys, sells, buy_share, pairs, without_difference`
    """
    states = outcomes[outcomes["action"] == 0]
    states = states.assign(
        buys=states["side"] > 0, sells=states["side"] < 0, pairs=states["order_id"].isin(pairs["order_id"])
    )
    card = states.groupby(["split", "objective"], sort=False).agg(
        states=("order_id", "size"),
        buys=("buys", "sum"),
        sells=("sells", "sum"),
        buy_share=("buys", "mean"),
        pairs=("pairs", "sum"),
    )
    return card.assign(without_difference=card["states"] - card["pairs"]).reset_index()


def class_balance(pairs: pd.DataFrame, actions: Sequence[Action]) -> pd.DataFrame:
    """How often each action is the chosen and the rejected one of a pair, by split.

    Returns
    -------
    `split, role` (chosen, rejected) and for each action its share, named after its word; a row adds up to 1
    """
    rows = [
        {"split": split, "role": role}
        | {str(action): float((part[f"{role}_kind"] == str(action)).mean()) for action in actions}
        for split, part in pairs.groupby("split", sort=False)
        for role in ("chosen", "rejected")
    ]
    return pd.DataFrame(rows)


def prompt_card(prompts: pd.Series, splits: pd.Series, tokens: NDArray[np.int64], style: str) -> pd.DataFrame:
    """Duplicates and lengths of the prompts of one style, by split.

    Parameters
    ----------
    prompts, splits, tokens : (n,) text, split and number of tokens of each state

    Returns
    -------
    `style, split, prompts, duplicates` (that an earlier state of the split has), `also_in_train` (that the training
    split has: a policy could have learned them by heart), `shortest_tokens, median_tokens, longest_tokens`
    """
    frame = pd.DataFrame({"prompt": prompts.to_numpy(), "split": splits.to_numpy(), "tokens": tokens})
    learned = set(frame.loc[frame["split"] == "train", "prompt"])
    rows = [
        {
            "style": style,
            "split": split,
            "prompts": len(part),
            "duplicates": int(part["prompt"].duplicated().sum()),
            "also_in_train": 0 if split == "train" else int(part["prompt"].isin(learned).sum()),
            "shortest_tokens": int(part["tokens"].min()),
            "median_tokens": float(part["tokens"].median()),
            "longest_tokens": int(part["tokens"].max()),
        }
        for split, part in frame.groupby("split", sort=False)
    ]
    return pd.DataFrame(rows)
