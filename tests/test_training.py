"""Training and decisions on a small planted world, with the tiny model."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel

from hyperdapo.errors import DataError
from hyperdapo.files import write_table
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths
from hyperdapo.policy.decisions import Decider, decide_all
from hyperdapo.policy.losses import ALGORITHMS
from hyperdapo.policy.models import add_adapter
from hyperdapo.policy.rivals import RIVALS
from hyperdapo.policy.states import States, read_states
from hyperdapo.policy.trainer import annealed, plan_by_advantage, plan_updates
from hyperdapo.policy.training import Workbench
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


@pytest.mark.parametrize("algorithm", ["dapo_sampled", "dpo", "dpo_one_pair", "reward_weighted"])
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


def known(rewards: np.ndarray) -> States:
    """States whose prompts are the longer, the later they come."""
    prompts = ["." * row for row in range(len(rewards))]
    return States(pd.DataFrame(index=range(len(rewards))), prompts, rewards, np.ones(rewards.shape, dtype=bool))


def test_states_without_a_difference_are_passed_over() -> None:
    rewards = np.zeros((40, 3))
    rewards[::4, 1] = 1.0
    planned = plan_updates(known(rewards), 10, 6, np.random.default_rng(0))
    assert planned.rows.shape == (10, 6) and (planned.rows % 4 == 0).all()
    assert planned.filtered.sum() == pytest.approx(3 * 60, rel=0.2)
    assert set(planned.rows[:5].ravel()) == set(range(0, 40, 4)), "every state is met before one comes again"
    assert (np.diff(planned.rows, axis=1) >= 0).all(), "the shortest prompt of an update comes first"


def test_states_are_drawn_as_equations_2_9_and_3_6_have_it(parameters: Parameters) -> None:
    """Shares of the draws early and late in training; the fourth state has no difference and is never drawn."""
    rewards = np.array([[0.0, 3.0], [0.0, 6.0], [0.0, -9.0], [2.0, 2.0]])
    chosen = parameters.training.dapo_preference.model_copy(
        update={"sampling_sharpness": 0.7, "sampling_temperature": (1.0, 0.1), "advantage_unit_bps": 2.0}
    )
    advantages = np.array([1.5, 3.0, 4.5]) / 2.0  # best minus mean
    planned = plan_by_advantage(known(rewards), chosen, 2, 20_000, np.random.default_rng(0))
    for rows, temperature in zip(planned.rows, (1.0, 0.1**0.5), strict=True):
        expected = np.exp(0.7 * advantages / temperature)
        np.testing.assert_allclose(np.bincount(rows, minlength=4)[:3] / 20_000, expected / expected.sum(), atol=0.02)
        assert rows.max() == 2 and (np.diff(rows) >= 0).all()
    assert annealed(1.0, 0.1, 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("algorithm", ["dapo", "dapo_preference"])
def test_rewards_that_never_differ_are_an_error(algorithm: str, parameters: Parameters) -> None:
    rng, nothing = np.random.default_rng(0), known(np.ones((5, 3)))
    with pytest.raises(DataError, match="no training state tells the actions apart"):
        if algorithm == "dapo":
            plan_updates(nothing, 1, 4, rng)
        else:
            plan_by_advantage(nothing, parameters.training.dapo_preference, 1, 4, rng)


@pytest.fixture
def dropping(splits: dict[str, States]) -> tuple[Workbench, PeftModel]:
    """An adapter in training, half of whose inputs are dropped; its weights are drawn, or it would change nothing."""
    parameters = load("smoke", {"policy": {"lora": {"dropout": 0.5}, "actions": settings().policy.actions}})
    bench = Workbench(parameters, "BTC", splits["train"], splits["validation"])
    adapted = add_adapter(bench._base[0], parameters.policy, seed=0).train()
    draw = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=draw)
    return bench, adapted


def test_looks_and_rollouts_are_without_dropout(dropping: tuple[Workbench, PeftModel]) -> None:
    """Half of what enters an adapter is dropped in training; what the policy is, is asked of the whole adapter."""
    bench, adapted = dropping
    scorer, states = bench.scorer.through(adapted), bench.states[[0, 1, 2]]
    assert not torch.equal(scorer.log_probabilities(states), scorer.log_probabilities(states))
    assert torch.equal(scorer.evaluate(states), scorer.evaluate(states))
    assert bench.look(scorer) == bench.look(scorer)
    assert adapted.training, "training goes on with dropout"


def test_what_a_rollout_keeps_is_without_dropout(dropping: tuple[Workbench, PeftModel], tmp_path: Path) -> None:
    """Of the exact and of the sampled groups: asked twice, a policy in training says the same."""
    bench, adapted = dropping
    exact = bench._trainer("dapo", 0, tmp_path, adapted, lambda *_: {})
    kept = []
    for _ in range(2):
        adapted.train()
        exact._roll_out(0)
        kept.append(exact._old.clone())
    torch.testing.assert_close(*kept, rtol=0, atol=0, equal_nan=True)
    assert kept[0].isfinite().any()
    sampled = bench._trainer("dapo_sampled", 0, tmp_path, adapted, lambda *_: {})
    groups = []
    for _ in range(2):
        adapted.train()
        groups.append(sampled._draw([0, 1, 2, 3], np.random.default_rng(0)))
    assert groups[0] and all(torch.equal(a[2], b[2]) for a, b in zip(*groups, strict=True))


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


def test_training_leaves_the_generator_of_torch_alone(splits, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    before = torch.random.get_rng_state()
    short = settings(steps=1, algorithms=["dapo"])
    train(short, Paths("smoke", "BTC"), splits["train"], splits["validation"])
    assert torch.equal(before, torch.random.get_rng_state())
