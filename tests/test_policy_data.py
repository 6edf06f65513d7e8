"""Rewards and preference pairs: eq. 3.3 relative to the side, and the best action against the worst."""

import numpy as np
import pandas as pd
import pytest

from hyperdapo.actions import Action
from hyperdapo.errors import DataError
from hyperdapo.params import load
from hyperdapo.policy.rewards import reward_parts, with_rewards
from hyperdapo.policy.rivals import RIVALS, decide, fit
from hyperdapo.policy.states import (
    advantages_of_best,
    best_and_worst,
    build_pairs,
    class_balance,
    dataset_card,
    pairs_of,
    prompt_card,
    reward_matrix,
)

ACTIONS = [Action.parse(word) for word in ("-5 bps", "join", "take")]


def outcomes_frame(rewards: np.ndarray) -> pd.DataFrame:
    """K rows per state whose reward (weights 1, 0, 1) is `rewards` (n, K), earned at a fee of 1.5 bps."""
    count, actions = rewards.shape
    order = np.repeat(np.arange(count), actions)
    frame = pd.DataFrame({"order_id": order, "action": np.tile(np.arange(actions), count)})
    return frame.assign(
        objective="balanced",
        side=np.where(order % 2, 1, -1),
        split=np.where(order < count // 2, "train", "test"),
        distinct=True,
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
    pairs = build_pairs(frame, prompts, ACTIONS, seed=0)
    assert pairs[["chosen", "rejected", "prompt"]].to_numpy().tolist() == [["B", "A", "one"], ["A", "C", "three"]]
    assert pairs[["chosen_kind", "rejected_kind"]].to_numpy().tolist() == [["join", "-5 bps"], ["-5 bps", "take"]]
    assert (pairs["chosen_reward"] > pairs["rejected_reward"]).all()


def test_ties_are_drawn_among_what_is_distinct() -> None:
    """Actions 0, 1 and 3 tie for the worst in every state; 3 is the order of 1 in the states of the second half."""
    rewards = np.tile([-1.0, -1.0, 2.0, -1.0], (3000, 1))
    distinct = np.ones(rewards.shape, dtype=bool)
    distinct[1500:, 3] = False
    pair = best_and_worst(rewards, distinct, np.random.default_rng(0))
    assert (pair[:, 0] == 2).all()
    for half, shares in ((pair[:1500, 1], [1 / 3, 1 / 3, 0, 1 / 3]), (pair[1500:, 1], [1 / 2, 1 / 2, 0, 0])):
        np.testing.assert_allclose(np.bincount(half, minlength=4) / 1500, shares, atol=0.04)
    np.testing.assert_array_equal(pair, best_and_worst(rewards, distinct, np.random.default_rng(0)))


def test_all_pairs_that_differ_weigh_a_state_alike() -> None:
    rewards = np.array([[1.0, 3.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    distinct = np.ones(rewards.shape, dtype=bool)
    weights = pairs_of("dpo", rewards, distinct, seed=0)
    preferred = {(1, 0), (1, 2), (1, 3), (3, 0), (3, 2)}
    assert {tuple(pair) for pair in np.argwhere(weights[0]).tolist()} == preferred
    assert set(weights[0][weights[0] > 0]) == {1 / 5} and not weights[1].any()
    distinct[0, 2] = False
    assert {tuple(pair) for pair in np.argwhere(pairs_of("dpo", rewards, distinct, 0)[0])} == {(1, 0), (1, 3), (3, 0)}


def test_the_pair_of_listing_4_3_is_that_of_its_sort() -> None:
    rewards = np.round(np.random.default_rng(0).normal(0, 1, (200, 6)))
    distinct = np.random.default_rng(1).random((200, 6)) < 0.8
    distinct[:, 0] = True
    weights = pairs_of("listing_4_3", rewards, distinct, seed=0)
    for state in range(200):
        candidates = [(action, rewards[state, action]) for action in range(6) if distinct[state, action]]
        candidates.sort(key=lambda x: x[1], reverse=True)
        assert weights[state, candidates[0][0], candidates[-1][0]] == weights[state].sum() == 1


def test_the_advantage_of_the_best_is_beyond_the_mean_of_what_is_distinct() -> None:
    rewards, distinct = np.array([[1.0, 3.0, 3.0]]), np.array([[True, True, False]])
    assert advantages_of_best(rewards, distinct).tolist() == [1.0]


def test_the_dataset_card_counts_sides_and_pairs_of_each_split_and_objective() -> None:
    rewards = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [2.0, 0.0, -1.0], [0.0, 1.0, 2.0]])
    frame = outcomes_frame(rewards).assign(reward=rewards.ravel())
    frame["objective"] = np.where(frame["order_id"] == 3, "urgent", "balanced")
    card = dataset_card(frame, build_pairs(frame, pd.Series(list("abcd")), ACTIONS, seed=0))
    expected = [
        ("train", "balanced", 2, 1, 1, 0.5, 1, 1),
        ("test", "balanced", 1, 0, 1, 0.0, 1, 0),
        ("test", "urgent", 1, 1, 0, 1.0, 1, 0),
    ]
    assert list(card.itertuples(index=False, name=None)) == expected


def test_class_balance_is_the_share_of_pairs_that_choose_or_reject_an_action() -> None:
    words = np.array([str(action) for action in ACTIONS])
    chosen, rejected = words[[0, 0, 0, 1]], words[[1, 2, 2, 2]]
    pairs = pd.DataFrame({"split": ["train"] * 4, "chosen_kind": chosen, "rejected_kind": rejected})
    balance = class_balance(pairs, ACTIONS).set_index("role").drop(columns="split")
    assert list(balance.columns) == ["-5 bps", "join", "take"]
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


@pytest.mark.parametrize("rival", RIVALS)
def test_a_rival_finds_a_rule_that_is_there(rival: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 4))
    rewards = np.column_stack([x[:, 0], -x[:, 0], np.zeros(1200)]) + rng.normal(0, 0.3, (1200, 3))
    fitted, every = fit(rival, x[:800], rewards[:800], seed=0), np.ones((400, 3), dtype=bool)
    assert (decide(fitted, x[800:], every) == np.where(x[800:, 0] > 0, 0, 1)).mean() > 0.85
    assert set(decide(fitted, x[800:], every & [False, True, True])) == {1, 2}, "what is not distinct is not chosen"
