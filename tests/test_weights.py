"""The study of the reward's weights: it finds weights that are cheap, and says where they are no better than others."""

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import DataError, ParameterError
from hyperdapo.evidence.metrics import in_blocks
from hyperdapo.evidence.significance import weight_differences, weights_verdict
from hyperdapo.market.features import NAMES
from hyperdapo.params import load
from hyperdapo.policy.rewards import (
    COST,
    DRAFT,
    WEIGHTS,
    Predicted,
    costs_of_weights,
    fixed_weights,
    predict_parts,
    search_weights,
)
from hyperdapo.times import SECOND_NS
from test_metrics import EVIDENCE

STATES, BLOCKS = 240, 12
BLOCK_S = EVIDENCE.block_s
BLOCK_NS = round(BLOCK_S * SECOND_NS)


def world(noise: float = 0.0) -> Predicted:
    """States in which the action of highest `reward_risk` costs nothing, any other 1 bps more for each place it is off.

    The other parts of the reward predict nothing.
    """
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(STATES, 4, 3))
    place = (-parts[..., 1]).argsort(axis=1).argsort(axis=1)
    states = pd.DataFrame({"asset": "BTC", "order_id": np.arange(STATES), "objective": "balanced"})
    states["decision_ns"] = states["order_id"] * BLOCKS // STATES * BLOCK_NS
    return Predicted(states, parts, place + noise * rng.normal(size=place.shape))


def known(predicted: Predicted) -> dict[str, np.ndarray]:
    return fixed_weights(load("smoke").orders, predicted.states)


def studied(predicted: Predicted, trials: pd.DataFrame) -> pd.DataFrame:
    """What each order costs under each set of weights, with its block."""
    return in_blocks(costs_of_weights(predicted, known(predicted), trials, BLOCK_S), BLOCK_S)


def test_the_action_of_highest_weighted_reward_is_taken() -> None:
    parts = np.array([[[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]], [[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    predicted = Predicted(pd.DataFrame(), parts, np.array([[10.0, 11.0], [20.0, 21.0]]))
    assert predicted.costs_under([1, 0, 1]).tolist() == [11.0, 20.0]
    assert predicted.costs_under([5, 0, 5]).tolist() == [11.0, 20.0], "the scale of the weights does not matter"
    assert predicted.costs_under([[1, 0, 0], [0, 0, 1]]).tolist() == [10.0, 21.0], "each state by its own weights"


def test_the_search_finds_the_part_that_predicts_the_cost() -> None:
    predicted = world()
    trials = search_weights(predicted, known(predicted), 120, seed=0)
    assert len(trials) == 120 and np.allclose(trials[list(WEIGHTS)].sum(axis=1), 1)
    best = trials.loc[trials[COST].idxmin()]
    assert best["risk"] > 0.8 and best[COST] < 0.3 < predicted.costs_under(DRAFT).mean()
    pd.testing.assert_frame_equal(trials, search_weights(predicted, known(predicted), 120, seed=0))


def test_the_known_weights_are_among_the_trials() -> None:
    predicted = world()
    trials = search_weights(predicted, known(predicted), 4, seed=0)
    assert trials[list(WEIGHTS)].to_numpy().tolist() == [[0.5, 0.3, 0.2], [0.5, 0, 0.5], [1, 0, 0], [0, 0, 1]]
    assert trials[COST].tolist() == [predicted.costs_under(weights).mean() for weights in known(predicted).values()]


def test_objectives_that_disagree_weigh_each_state_by_itself() -> None:
    states = pd.DataFrame({"objective": ["patient", "urgent", "patient"]})
    weights = {"patient": {"weights": {"execution": 3, "risk": 1, "cost": 0}}}
    found = fixed_weights(load("smoke", {"orders": {"rules": weights}}).orders, states)
    assert found["profile"].tolist() == [[0.75, 0.25, 0], [0.5, 0, 0.5], [0.75, 0.25, 0]]
    assert fixed_weights(load("thesis").orders, states)["profile"] == pytest.approx(DRAFT)


def test_weights_that_are_all_zero_are_refused() -> None:
    nothing = {"execution": 0, "risk": 0, "cost": 0}
    with pytest.raises(ParameterError, match="one of the weights of the reward must be above 0"):
        load("smoke", {"orders": {"rules": {"urgent": {"weights": nothing}}}})


def test_weights_are_picked_without_the_block_that_they_are_judged_on() -> None:
    """Two trials; the second is better in every block but the last, and so bad there that it is worse on the whole."""
    states = pd.DataFrame({"asset": "BTC", "order_id": range(4), "objective": "balanced"})
    states["decision_ns"] = np.array([1, 1, 2, 3]) * BLOCK_NS
    parts = np.zeros((4, 2, 3))
    parts[:, 0, 0] = parts[:, 1, 2] = 1.0
    predicted = Predicted(states, parts, np.array([[5.0, 4], [5, 4], [5, 4], [5, 25]]))
    trials = pd.DataFrame({"execution": [1.0, 0], "risk": [0.0, 0], "cost": [0.0, 1], COST: [5.0, 9.25]})
    costs = costs_of_weights(predicted, {}, trials, BLOCK_S).groupby("strategy")[COST].apply(list)
    assert costs["best"] == [5, 5, 5, 5]
    assert costs["picked_elsewhere"] == [5, 5, 5, 25], "only without the last block is the second better"


def test_the_table_holds_every_set_against_the_best() -> None:
    predicted = world(noise=0.3)
    trials = search_weights(predicted, known(predicted), 60, seed=0)
    table = weight_differences(studied(predicted, trials), WEIGHTS, EVIDENCE, 0).set_index("weights")
    assert list(table.index) == ["best", "picked_elsewhere", *known(predicted)]
    assert table.loc["best", COST] == pytest.approx(trials[COST].min()) and np.isnan(
        table.loc["best", "difference_bps"]
    )
    rest = table.drop("best")
    np.testing.assert_allclose(rest["difference_bps"], rest[COST] - trials[COST].min(), atol=1e-12)
    assert (rest["difference_low"] <= rest["difference_bps"]).all() and (table["blocks"] == BLOCKS).all()
    assert table.loc["draft", list(WEIGHTS)].tolist() == list(DRAFT)


def test_the_verdict_tells_a_difference_from_noise() -> None:
    predicted = world()
    said = weights_verdict(studied(predicted, search_weights(predicted, known(predicted), 60, 0)), EVIDENCE, 0)
    assert said.count(": more expensive (+") == 4 and "best" not in said
    nothing = Predicted(predicted.states, predicted.parts, np.random.default_rng(1).normal(size=predicted.costs.shape))
    said = weights_verdict(studied(nothing, search_weights(nothing, known(nothing), 60, 0)), EVIDENCE, 0)
    assert said.count("not different beyond noise") >= 3, said


def market_states(count: int = 300) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features, and outcomes of two actions; the book's imbalance tells which of them the price improves."""
    rng = np.random.default_rng(3)
    lean = rng.choice([-1.0, 1.0], count)
    features = pd.DataFrame(0.0, index=range(count), columns=[*NAMES, *(f"{name}_z" for name in NAMES)])
    features["book_imbalance"] = lean
    action, order = np.tile([0, 1], count), np.repeat(np.arange(count), 2)
    won = np.where(action == 0, 1.0, -1.0) * lean[order]
    outcomes = pd.DataFrame({"order_id": order, "action": action, "objective": "balanced", "horizon_s": 60.0})
    outcomes = outcomes.assign(asset="BTC", side=1, reward_risk=0.0, reward_cost=-1.5)
    split = np.where(order < 200, "train", "validation")
    return features, outcomes.assign(split=split, reward_execution=won, total_cost_bps=1.5 - won)


def test_parts_are_predicted_on_states_that_were_not_fitted() -> None:
    features, outcomes = market_states()
    predicted = predict_parts(features, outcomes, seed=0)
    assert predicted.parts.shape == (100, 2, 3) and set(predicted.states["split"]) == {"validation"}
    assert predicted.costs_under([1, 0, 0]).tolist() == [0.5] * 100
    np.testing.assert_allclose(predicted.parts[..., 2], -1.5)
    changed = outcomes.assign(reward_execution=outcomes["reward_execution"].where(outcomes["split"] == "train", 99.0))
    np.testing.assert_array_equal(predict_parts(features, changed, seed=0).parts, predicted.parts)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_named(split: str) -> None:
    features, outcomes = market_states(220)
    with pytest.raises(DataError, match=f"no order belongs to the {split} split"):
        predict_parts(features, outcomes[outcomes["split"] != split], seed=0)
