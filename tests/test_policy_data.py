"""Rewards and preference pairs: eq. 3.3 relative to the side, and the best action against the worst."""

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import DataError
from hyperdapo.params import load
from hyperdapo.policy.boosting import decide, fit
from hyperdapo.policy.pairs import build_pairs, dataset_card, reward_matrix
from hyperdapo.policy.rewards import reward_parts, with_rewards

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
    assert dataset_card(frame, pairs)["without_difference"].sum() == 1


def test_a_missing_action_or_reward_is_an_error() -> None:
    frame = outcomes_frame(np.ones((2, 3))).assign(reward=1.0)
    with pytest.raises(DataError, match="04_preference_pairs"):
        reward_matrix(frame.iloc[1:])
    frame.loc[0, "reward"] = np.nan
    with pytest.raises(DataError, match="not finite"):
        reward_matrix(frame)


def test_boosting_finds_a_rule_that_is_there() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 4))
    rewards = np.column_stack([x[:, 0], -x[:, 0], np.zeros(1200)]) + rng.normal(0, 0.3, (1200, 3))
    chosen = decide(fit(x[:800], rewards[:800], seed=0), x[800:])
    assert (chosen == np.where(x[800:, 0] > 0, 0, 1)).mean() > 0.85
