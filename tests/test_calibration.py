"""Are the probabilities true? Temperature scaling on policies whose truth is known, and what is said of it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

from hyperdapo.errors import ModelError
from hyperdapo.evidence.calibration import calibration_errors, sure_groups, sureness
from hyperdapo.policy.language import calibration

STATES, ACTIONS = 4000, 5
EVERY = np.ones((STATES, ACTIONS), dtype=bool)


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities that are true, and rewards whose best action was drawn from them."""
    rng = np.random.default_rng(seed)
    truth = log_softmax(2 * rng.normal(size=(STATES, ACTIONS)), axis=1)
    best = (truth + rng.gumbel(size=truth.shape)).argmax(axis=1)
    return truth, -1.0 + np.eye(ACTIONS)[best]


@pytest.mark.parametrize("exaggerated", [0.3, 1.0, 4.0])
def test_the_temperature_takes_back_an_exaggeration(exaggerated: float) -> None:
    truth, rewards = world()
    fitted = calibration.fit_temperature(log_softmax(exaggerated * truth, axis=1), rewards, EVERY)
    assert fitted == pytest.approx(exaggerated, rel=0.06)


def test_scaling_keeps_the_order_and_what_is_not_distinct_has_nothing() -> None:
    truth, _ = world()
    distinct = EVERY.copy()
    distinct[:, 2] = False
    scaled = np.exp(calibration.scale(truth, 3.0, distinct))
    assert (scaled[:, 2] == 0).all() and scaled.sum(axis=1) == pytest.approx(1)
    others = [0, 1, 3, 4]
    assert (scaled[:, others].argsort(axis=1) == truth[:, others].argsort(axis=1)).all()


def test_of_actions_that_tie_each_is_best_by_its_share() -> None:
    rewards, distinct = np.array([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0]]), np.array([[True] * 3, [True, False, True]])
    np.testing.assert_allclose(calibration.best_shares(rewards, distinct), [[0, 0.5, 0.5], [0.5, 0, 0.5]])


def test_states_that_tell_nothing_leave_the_probabilities_alone() -> None:
    assert calibration.fit_temperature(world()[0], np.zeros((STATES, ACTIONS)), EVERY) == 1.0


def test_it_is_stored_beside_the_adapter_and_missed_when_lost(tmp_path: Path) -> None:
    calibration.write(tmp_path, 1.25, states=120)
    assert calibration.read(tmp_path) == 1.25
    (tmp_path / calibration.NAME).write_text("{")
    with pytest.raises(ModelError, match=r"calibration\.json is lost or damaged"):
        calibration.read(tmp_path)


def decided(exaggerated: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decisions whose probabilities were drawn apart and scaled back to the truth, and what the actions earned."""
    truth, rewards = world()
    columns = {f"probability_{k}": np.exp(truth[:, k]) for k in range(ACTIONS)}
    frame = pd.DataFrame({"order_id": range(STATES), "decision_ns": np.arange(STATES), "policy": "dapo", "seed": 0})
    frame = frame.assign(action=truth.argmax(axis=1), temperature=exaggerated, **columns)
    outcomes = pd.DataFrame(
        {"order_id": np.repeat(range(STATES), ACTIONS), "reward": rewards.ravel(), "distinct": True}
    )
    return frame, outcomes.assign(action=np.tile(range(ACTIONS), STATES))


def test_true_probabilities_have_no_error_but_noise_and_exaggerated_ones_have() -> None:
    sure = sureness(*decided(exaggerated=3.0))
    (row,) = calibration_errors(sure).to_dict("records")
    assert row["scaled_error"] < 0.02 and row["raw_error"] > 0.15
    assert row["raw"] > row["scaled"] == pytest.approx(row["best"], abs=0.02)
    groups = sure_groups(sure, "scaled")
    np.testing.assert_allclose(groups["probability"], groups["best"], atol=0.06)


def test_a_tie_counts_as_its_share_and_rivals_are_left_out() -> None:
    decisions, outcomes = decided(exaggerated=1.0)
    rival = decisions.assign(policy="linear", temperature=np.nan)
    sure = sureness(pd.concat([decisions, rival]), outcomes.assign(reward=0.0))
    assert set(sure["policy"]) == {"dapo"} and sure["best"].unique().tolist() == [1 / ACTIONS]
