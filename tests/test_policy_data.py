"""Rewards and preference pairs: eq. 3.3 relative to the side, and the best action against the worst."""

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import DataError
from hyperdapo.params import load
from hyperdapo.policy.boosting import decide, fit
from hyperdapo.policy.rewards import reward_parts, with_rewards
from hyperdapo.policy.states import build_pairs, class_balance, dataset_card, prompt_card, reward_matrix

OFFSETS = [-5.0, 0.0, 5.0]


def outcomes_frame(rewards: np.ndarray) -> pd.DataFrame:
    """K rows per state whose reward (weights 1, 0, 1) is `rewards` (n, K), earned at a fee of 1.5 bps."""
    count, actions = rewards.shape
    order = np.repeat(np.arange(count), actions)
    frame = pd.DataFrame({"order_id": order, "action": np.tile(np.arange(actions), count)})
    return frame.assign(
        objective="balanced",
        side=np.where(order % 2, 1, -1),
        split=np.where(order < count // 2, "train", "test"),
        fees_bps=1.5,
        filled_passive=1.0,
        completion_slippage_bps=0.5,
        implementation_shortfall_bps=-rewards.ravel() - 1.5,
        total_cost_bps=-rewards.ravel(),
        **{f"markout_{h}s_bps": -7.0 for h in (1, 5, 10, 60)},
    )


def test_reward_is_minus_total_cost_with_unit_weights() -> None:
    frame = with_rewards(outcomes_frame(np.random.default_rng(0).normal(size=(20, 3))), load("smoke").orders)
    np.testing.assert_allclose(frame["reward"], -frame["total_cost_bps"], atol=1e-12)


def test_weights_of_the_draft_follow_the_objective() -> None:
    frame = with_rewards(outcomes_frame(np.ones((1, 3))), load("thesis").orders)
    parts = reward_parts(frame, 5.0, [1, 5, 10, 60])
    assert parts["reward_risk"].eq(-2.0).all(), "a drawdown of 7 bps is 2 beyond the threshold"
    expected = 0.5 * parts["reward_execution"] + 0.3 * parts["reward_risk"] + 0.2 * parts["reward_cost"]
    np.testing.assert_allclose(frame["reward"], expected)


def test_pairs_prefer_the_best_over_the_worst() -> None:
    rewards = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [2.0, 0.0, -1.0]])
    frame = outcomes_frame(rewards).assign(reward=rewards.ravel())
    prompts = pd.Series(["one", "two", "three"])
    pairs = build_pairs(frame, prompts, OFFSETS)
    assert pairs[["chosen", "rejected", "prompt"]].to_numpy().tolist() == [["B", "A", "one"], ["A", "C", "three"]]
    assert (pairs["chosen_reward"] > pairs["rejected_reward"]).all()


def test_the_dataset_card_counts_sides_and_pairs_of_each_split_and_objective() -> None:
    rewards = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [2.0, 0.0, -1.0], [0.0, 1.0, 2.0]])
    frame = outcomes_frame(rewards).assign(reward=rewards.ravel())
    frame["objective"] = np.where(frame["order_id"] == 3, "urgent", "balanced")
    card = dataset_card(frame, build_pairs(frame, pd.Series(list("abcd")), OFFSETS))
    expected = [
        ("train", "balanced", 2, 1, 1, 0.5, 1, 1),
        ("test", "balanced", 1, 0, 1, 0.0, 1, 0),
        ("test", "urgent", 1, 1, 0, 1.0, 1, 0),
    ]
    assert list(card.itertuples(index=False, name=None)) == expected


def test_class_balance_is_the_share_of_pairs_that_choose_or_reject_an_offset() -> None:
    pairs = pd.DataFrame({"split": ["train"] * 4, "chosen_action": [0, 0, 0, 1], "rejected_action": [1, 2, 2, 2]})
    balance = class_balance(pairs, OFFSETS).set_index("role").drop(columns="split")
    assert list(balance.columns) == ["share_at_-5_bps", "share_at_+0_bps", "share_at_+5_bps"]
    assert balance.loc["chosen"].tolist() == [0.75, 0.25, 0] and balance.loc["rejected"].tolist() == [0, 0.25, 0.75]


def test_the_prompt_card_counts_duplicates_and_what_training_has_seen() -> None:
    texts, splits = pd.Series(list("aabcab")), pd.Series(["train"] * 3 + ["test"] * 3)
    card = prompt_card(texts, splits, np.array([5, 5, 7, 4, 5, 7]), "thesis").set_index("split")
    assert card.loc["train"].tolist() == ["thesis", 3, 1, 0, 5, 5.0, 7]
    assert card.loc["test"].tolist() == ["thesis", 3, 0, 2, 4, 5.0, 7]


def test_a_missing_action_or_reward_is_an_error_that_names_the_rows() -> None:
    frame = outcomes_frame(np.ones((2, 3))).assign(reward=1.0)
    with pytest.raises(DataError, match="order 0 action 0: run 04_preference_pairs again"):
        reward_matrix(frame.iloc[1:])
    frame.loc[[1, 5], "reward"] = np.nan, np.inf
    with pytest.raises(DataError, match=r"reward is .* not finite .* for order 0 action 1, order 1 action 2: run"):
        reward_matrix(frame)
    with pytest.raises(DataError, match="order 0 action 2 and 3 more"):
        reward_matrix(frame.assign(reward=np.nan))
    with pytest.raises(DataError, match="there is no reward"):
        reward_matrix(frame.iloc[:0])


def test_boosting_finds_a_rule_that_is_there() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 4))
    rewards = np.column_stack([x[:, 0], -x[:, 0], np.zeros(1200)]) + rng.normal(0, 0.3, (1200, 3))
    chosen = decide(fit(x[:800], rewards[:800], seed=0), x[800:])
    assert (chosen == np.where(x[800:, 0] > 0, 0, 1)).mean() > 0.85
