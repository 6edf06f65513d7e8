"""Preference pairs from replayed outcomes (§4.2.3, Listing 4.3): the best action of a state against the worst.

States come from the market, never from a random price (Listing 4.8), and all K candidates are replayed from each.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.market.columns import Floats
from hyperdapo.policy.prompts import letters


def reward_matrix(outcomes: pd.DataFrame, measure: str = "reward") -> tuple[pd.DataFrame, Floats]:
    """The n states of `outcomes` (one row each) and what each of the K actions earned there, (n, K).

    Raises
    ------
    DataError
        If a state lacks an action, or a reward is not finite.
    """
    table = outcomes.set_index(["order_id", "action"])[measure].unstack()  # noqa: PD010
    if table.empty or not np.isfinite(table.to_numpy()).all():
        raise DataError(f"{measure} is missing or not finite for some orders: run 04_preference_pairs again")
    states = outcomes[outcomes["action"] == 0].set_index("order_id").loc[table.index].reset_index()
    return states, table.to_numpy(copy=True)


def build_pairs(outcomes: pd.DataFrame, prompts: pd.Series, offsets_bps: Sequence[float]) -> pd.DataFrame:
    """One pair per state in which the actions differ.

    Parameters
    ----------
    outcomes : K rows per state, with `reward`
    prompts : text by `order_id`
    offsets_bps : (K,)

    Returns
    -------
    `order_id, split, prompt, chosen, rejected` (letters), `chosen_action, rejected_action, chosen_reward,
    rejected_reward`; the states without a difference, from which nothing can be learned, are left out.
    """
    states, rewards = reward_matrix(outcomes)
    names = np.array(letters(offsets_bps))
    best, worst, rows = rewards.argmax(axis=1), rewards.argmin(axis=1), np.arange(len(rewards))
    pairs = pd.DataFrame(
        {
            "order_id": states["order_id"],
            "split": states["split"],
            "prompt": prompts.loc[states["order_id"]].to_numpy(),
            "chosen": names[best],
            "rejected": names[worst],
            "chosen_action": best,
            "rejected_action": worst,
            "chosen_reward": rewards[rows, best],
            "rejected_reward": rewards[rows, worst],
        }
    )
    return pairs[pairs["chosen_reward"] > pairs["rejected_reward"]].reset_index(drop=True)


def dataset_card(outcomes: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """What the data set is made of, by split: states, pairs, buys, duplicate prompts, prompt length in words."""
    states = outcomes[outcomes["action"] == 0]
    rows: dict[str, dict[str, Any]] = {}
    for split, group in states.groupby("split", sort=False):
        chosen = pairs[pairs["split"] == split]
        rows[str(split)] = {
            "states": len(group),
            "pairs": len(chosen),
            "without_difference": len(group) - len(chosen),
            "buy_share": float((group["side"] > 0).mean()),
            "duplicate_prompts": int(chosen["prompt"].duplicated().sum()),
            "longest_prompt_words": int(chosen["prompt"].str.split().str.len().max()) if len(chosen) else 0,
        }
    return pd.DataFrame(rows).T.rename_axis("split").reset_index()
