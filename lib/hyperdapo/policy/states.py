"""States to learn from or to decide on: prompts, and what every action earned there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.errors import DataError
from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.policy.bases import load_tokenizer
from hyperdapo.policy.pairs import reward_matrix
from hyperdapo.policy.prompts import check_lengths, encode_states


@dataclass(frozen=True)
class States:
    """n states of one split: `table` (n rows of outcomes), `prompts` (n,), `rewards` (n, K) bps."""

    table: pd.DataFrame
    prompts: list[str]
    rewards: Floats

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: NDArray[np.int64]) -> "States":
        """The states of these rows."""
        return States(self.table.iloc[rows], [self.prompts[row] for row in rows], self.rewards[rows])

    @staticmethod
    def joined(parts: Iterable["States"]) -> "States":
        """The states of several assets, one after the other."""
        parts = list(parts)
        table = pd.concat([part.table for part in parts], ignore_index=True)
        prompts = [prompt for part in parts for prompt in part.prompts]
        return States(table, prompts, np.concatenate([part.rewards for part in parts]))

    def spread(self, count: int) -> "States":
        """At most so many of them, evenly spaced."""
        return self.take(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)))


def pooled(parts: Sequence[States]) -> States:
    """What a generalist learns from: as many states as a specialist has, the same number of each asset."""
    count = round(sum(len(part) for part in parts) / len(parts) ** 2)
    return States.joined(part.spread(count) for part in parts)


def read_states(features: pd.DataFrame, outcomes: pd.DataFrame, parameters: Parameters, split: str) -> States:
    """The states of a split as prompts, with what every action earned there.

    Raises
    ------
    DataError
        If the split is empty, or a prompt is longer than `policy.max_length` tokens.
    ModelError
        If the base's tokenizer cannot be had.
    """
    own = outcomes[outcomes["split"] == split]
    if own.empty:
        raise DataError(f"no order belongs to the {split} split: lengthen the span, or change `split`")
    table, rewards = reward_matrix(own)
    policy = parameters.policy
    prompts = encode_states(features, table, policy.offsets_bps, policy.prompt_style)
    check_lengths(prompts, table, load_tokenizer(policy.base_model), policy.max_length)
    return States(table, prompts, rewards)
