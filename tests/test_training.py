"""Training and decisions on a small planted world, with the tiny model."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hyperdapo.errors import DataError
from hyperdapo.files import write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.decisions import Decider, decide_all, measure_latency
from hyperdapo.policy.losses import ALGORITHMS
from hyperdapo.policy.models import load_base
from hyperdapo.policy.rivals import RIVALS
from hyperdapo.policy.scoring import make_scorer
from hyperdapo.policy.states import States, read_states
from hyperdapo.policy.trainer import plan_updates
from planted import planted_splits, planted_world, same_curve, settings, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return settings()


@pytest.fixture(scope="module")
def world(parameters: Parameters) -> tuple[pd.DataFrame, pd.DataFrame]:
    return planted_world(parameters)


@pytest.fixture(scope="module")
def splits(parameters: Parameters) -> dict[str, States]:
    return planted_splits(parameters)


@pytest.fixture(scope="module")
def trained(splits, parameters: Parameters, tmp_path_factory) -> tuple[Paths, dict[str, pd.DataFrame]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDAPO_DATA", str(tmp_path_factory.mktemp("data")))
        paths = Paths("smoke", "BTC")
        yield paths, train(parameters, paths, splits["train"], splits["validation"])


def test_dapo_learns_to_read_the_state(trained) -> None:
    """No fixed action earns anything here: what is earned comes from the imbalance in the prompt."""
    last = trained[1]["dapo"].iloc[-1]
    assert last["heldout_oracle"] == pytest.approx(5.4)
    assert abs(last["heldout_best_fixed"]) < 2.0
    assert last["heldout_reward"] > 0.8 * last["heldout_oracle"]


def test_clipping_acts(trained) -> None:
    assert trained[1]["dapo"]["clip_fraction"].max() > 0
    assert trained[1]["dapo_preference"]["clip_fraction"].max() > 0


@pytest.mark.parametrize("algorithm", ["dapo_sampled", "dpo", "reward_weighted"])
def test_others_learn_to_read_the_state(trained, algorithm: str) -> None:
    last = trained[1][algorithm].iloc[-1]
    assert last["heldout_reward"] > 0.8 * last["heldout_oracle"]


def test_log_has_a_row_per_update_and_looks_when_due(trained, parameters: Parameters) -> None:
    for log in trained[1].values():
        assert log["step"].tolist() == list(range(parameters.training.steps + 1))
        assert log.dropna(subset="heldout_reward")["step"].tolist() == [0, 20, 40, 60]
        assert (log["elapsed_s"].diff().dropna() > 0).all()
    assert trained[1]["dpo"]["loss"].iloc[1] == pytest.approx(np.log(2), abs=0.01)


def test_folder_holds_safetensors_manifest_and_log(trained) -> None:
    for algorithm, log in trained[1].items():
        folder = trained[0].model(algorithm)
        assert (folder / "seed_0" / "adapter_model.safetensors").is_file()
        assert json.loads((folder / "seed_0" / "training.json").read_text())["algorithm"] == algorithm
        assert list((folder / "seed_0" / "tensorboard").rglob("events.*"))
        assert len(pd.read_csv(folder / "training_log.csv")) == len(log)
        assert not list(folder.parent.glob(".*"))
    assert not trained[0].runs.exists()


def test_same_seed_same_numbers(trained, splits, parameters: Parameters, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    for algorithm, again in train(parameters, Paths("smoke", "BTC"), splits["train"], splits["validation"]).items():
        same_curve(again, trained[1][algorithm])


def plan(rewards: np.ndarray, steps: int, size: int):
    return plan_updates(rewards, steps, size, np.random.default_rng(0), np.arange(len(rewards)))


def test_states_without_a_difference_are_passed_over() -> None:
    rewards = np.zeros((40, 3))
    rewards[::4, 1] = 1.0
    planned = plan(rewards, 10, 6)
    assert planned.rows.shape == (10, 6) and (planned.rows % 4 == 0).all()
    assert planned.filtered.sum() == pytest.approx(3 * 60, rel=0.2)
    assert set(planned.rows[:5].ravel()) == set(range(0, 40, 4)), "every state is met before one comes again"
    assert (np.diff(planned.rows, axis=1) >= 0).all(), "the shortest prompt of an update comes first"


def test_rewards_that_never_differ_are_an_error() -> None:
    with pytest.raises(DataError, match="no training state tells the actions apart"):
        plan(np.ones((5, 3)), 1, 4)


def test_an_empty_split_is_an_error(world, parameters: Parameters) -> None:
    with pytest.raises(DataError, match="no order belongs to the holdout split"):
        read_states(*world, parameters, "holdout")


def test_decisions_of_every_policy(trained, world, splits, parameters: Parameters, tmp_path: Path) -> None:
    decisions = decide_all(
        parameters, trained[0], world[0], splits["train"], splits["test"], Decider(parameters, splits["test"])
    )
    assert decisions.groupby("policy").size().eq(60).all()
    assert set(decisions["policy"]) == {"untrained", *RIVALS, *ALGORITHMS}
    scored = decisions[~decisions["policy"].isin(RIVALS)].filter(like="probability_")
    np.testing.assert_allclose(scored.sum(axis=1), 1.0, atol=1e-5)
    rewards = splits["test"].rewards
    earned = {name: rewards[np.arange(60), group["action"]].mean() for name, group in decisions.groupby("policy")}
    assert earned["dapo"] > 0.8 * rewards.max(axis=1).mean() > earned["untrained"]
    assert min(earned[rival] for rival in RIVALS) > 0.8 * rewards.max(axis=1).mean()
    assert write_table(decisions, tmp_path, "decisions").name == "decisions.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "decisions.parquet"), decisions)


def test_latency_is_measured_for_scoring_and_generating(splits, parameters: Parameters) -> None:
    model, tokenizer = load_base(parameters.policy)
    scorer = make_scorer(model, tokenizer, parameters)
    latency = measure_latency(scorer, model, tokenizer, splits["test"].prompts[:2], tokens=3)
    assert latency["way"].str.startswith(("score", "generate")).all() and (latency["median_measured_ms"] > 0).all()


def test_training_leaves_the_generator_of_torch_alone(splits, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    before = torch.random.get_rng_state()
    short = settings(steps=1, algorithms=["dapo"])
    train(short, Paths("smoke", "BTC"), splits["train"], splits["validation"])
    assert torch.equal(before, torch.random.get_rng_state())
