"""Objectives (patient, balanced, urgent) side by side: each order has the horizon, weights and words of its own."""

import re

import numpy as np
import pandas as pd
import pytest

from hyperdapo.execution.parents import parent_orders, replay_candidates
from hyperdapo.market.features import compute_features, decision_grid
from hyperdapo.params import Parameters, load
from hyperdapo.policy.prompts import STYLES, encode_states
from hyperdapo.policy.rewards import with_rewards
from hyperdapo.policy.states import build_pairs
from markets import SECOND, random_market

RULES = {
    "patient": {"horizon_s": 300, "weights": {"execution": 0.5, "risk": 0.3, "cost": 0.2}},
    "balanced": {"horizon_s": 60, "weights": {"execution": 1.0, "risk": 0.0, "cost": 1.0}},
    "urgent": {"horizon_s": 15, "weights": {"execution": 0.0, "risk": 2.0, "cost": 1.0}},
}


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    orders = {"objectives": list(RULES), "rules": RULES, "drawdown_threshold_bps": 0.1}
    execution = {"impact_coefficient_bps": 10, "queue_exponent": 1}
    return load("smoke", {"assets": ["ETH"], "orders": orders, "execution": execution})


@pytest.fixture(scope="module")
def replayed(parameters: Parameters) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Features, parents and rewarded outcomes of one small market."""
    market = random_market(seed=5, seconds=1800)
    features = compute_features(market, decision_grid(market, 10.0), parameters.features).assign(split="train")
    parents = parent_orders(features, parameters, market)
    return features, parents, with_rewards(replay_candidates(market, parents, parameters), parameters.orders)


def test_every_order_lives_as_long_as_its_objective_says(replayed) -> None:
    _, parents, outcomes = replayed
    assert set(parents["objective"]) == set(RULES)
    assert (parents["horizon_s"] == parents["objective"].map(lambda name: RULES[name]["horizon_s"])).all()
    lived = (outcomes["expiry_ns"] - outcomes["decision_ns"]) / SECOND
    late = lived - outcomes["horizon_s"]
    assert late.between(0, 10).all(), "an order expires its horizon, and the latencies, after the decision"


def test_every_reward_has_the_weights_of_its_objective(replayed) -> None:
    outcomes = replayed[2]
    parts = outcomes[["reward_execution", "reward_risk", "reward_cost"]].to_numpy()
    assert (np.abs(parts).max(axis=0) > 0).all()
    weights = [list(RULES[name]["weights"].values()) for name in outcomes["objective"]]
    np.testing.assert_allclose(outcomes["reward"], (parts * weights).sum(axis=1), atol=1e-12)


@pytest.mark.parametrize("style", sorted({*STYLES} - {"numbers"}))
def test_every_prompt_names_its_objective_and_side(replayed, parameters: Parameters, style: str) -> None:
    features, parents, outcomes = replayed
    actions = parameters.policy.actions
    prompts = pd.Series(encode_states(features, parents, actions, style), index=parents["order_id"])
    for prompt, mood, side in zip(prompts, parents["objective"], parents["side"], strict=True):
        verb = "buy" if side > 0 else "sell"
        assert f" {verb} ->" in prompt if style == "absolute" else f"\n{mood} {verb}" in prompt
        assert re.search(r"\n(\w+)", prompt)[1] == mood
    pairs = build_pairs(outcomes, prompts, actions, parameters.seed)
    assert {re.search(r"\n(\w+)", prompt)[1] for prompt in pairs["prompt"]} == set(RULES)
