"""What is language for? The study's rows: who reads what, who is shown solved states, who counts words, who is told."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import DataError
from hyperdapo.evidence.gaps import language_gaps
from hyperdapo.files import write_table
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths
from hyperdapo.policy.language import study
from hyperdapo.policy.models import UNTAUGHT, adapter_size, load_base, load_tokenizer
from hyperdapo.policy.prompts import STYLES, instruction
from hyperdapo.policy.states import States
from planted import planted_world, settings

TEXTS = ("Coins were stolen.", "A fund has bought.")


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    """A short training; the tiny tokenizer spells the words of notices out, so that prompts are long."""
    quick = settings(steps=4, checkpoint_every=4, evaluate_every=4)
    return quick.model_copy(update={"policy": quick.policy.model_copy(update={"max_length": 1024})})


@pytest.fixture(scope="module")
def heard(parameters: Parameters) -> study.World:
    """A world in which a notice alone tells what to do: bad news lets a buyer wait and a seller take."""
    features, outcomes = planted_world(parameters)
    rng, orders = np.random.default_rng(1), outcomes.drop_duplicates("order_id")
    good = rng.random(len(orders)) < 0.5
    notices = np.where(good, TEXTS[1], TEXTS[0])
    features = features.assign(
        book_imbalance=0.0,
        notice=notices,
        notice_kind=np.where(good, "up", "down"),
        notice_wording="known",
        notice_age_s=10.0,
    )
    tilt = np.linspace(-1, 1, len(parameters.policy.actions))[outcomes["action"]]
    lean = np.where(good, 1, -1)[outcomes["order_id"]] * outcomes["side"]
    return study.World(features, outcomes.assign(reward=6.0 * tilt * lean))


def splits(world: study.World, parameters: Parameters) -> tuple[States, States]:
    training, tested = (world.states(parameters, split, 1000) for split in ("train", "test"))
    return training, tested


def test_every_style_fewer_states_and_a_base_that_was_taught_nothing_are_read(parameters: Parameters) -> None:
    chosen = study.readers(parameters)
    assert {reader.style for reader in chosen} == {*STYLES} - {"news"}, "of which there is none in this world"
    assert {reader.style for reader in study.readers(load("notices"))} == set(STYLES)
    assert [reader.base_model for reader in chosen].count(UNTAUGHT) == 1
    assert {reader.states for reader in chosen} == {study.MOST, *study.FEWER}
    assert [reader.name for reader in chosen if reader.placebo] == ["placebo thesis"]
    assert len({(reader.name, reader.states) for reader in chosen}) == len(chosen), "each has a folder of its own"
    under = chosen[3].under(parameters)
    assert under.policy.prompt_style == chosen[3].style and under.training.algorithms == [study.ALGORITHM]


def test_the_untaught_base_has_the_size_and_tokenizer_of_the_taught_one(parameters: Parameters) -> None:
    taught, untaught = (
        parameters.policy.model_copy(update={"base_model": base}) for base in ("smollm2-135m", UNTAUGHT)
    )
    assert adapter_size(taught) == adapter_size(untaught)
    assert load_tokenizer(UNTAUGHT).get_vocab() == load_tokenizer("smollm2-135m").get_vocab()


def test_the_untaught_base_is_quantised_where_the_taught_one_is() -> None:
    policy = load("sample").policy.model_copy(update={"base_model": UNTAUGHT, "four_bit": True})
    assert type(load_base(policy)[0].model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"


def test_a_placebo_keeps_prompts_and_rewards_and_loses_which_belongs_to_which(
    parameters: Parameters, heard: study.World
) -> None:
    training, _ = splits(heard, parameters)
    training = replace(training, prompts=[str(row) for row in range(len(training))])
    dealt = study.dealt(training, seed=0)
    assert sorted(dealt.prompts) == sorted(training.prompts)
    assert np.array_equal(dealt.rewards, training.rewards) and np.array_equal(dealt.distinct, training.distinct)
    assert sum(map(str.__eq__, dealt.prompts, training.prompts)) < 10, "one stays where it was, in the mean"
    assert dealt.prompts == study.dealt(training, seed=0).prompts != study.dealt(training, seed=1).prompts


def test_solved_states_end_with_a_best_letter(parameters: Parameters, heard: study.World) -> None:
    training, _ = splits(heard, parameters)
    shown = study.solved(training, parameters)
    opening = instruction(parameters.policy.actions)
    best = "ABCDEF"
    texts = {
        prompt.removeprefix(opening): best[row.argmax()]
        for prompt, row in zip(training.prompts, training.rewards, strict=True)
    }
    assert len(shown) == study.SHOTS
    assert all(texts[text[:-3]] == text[-2] and text[-3:-2] == " " and text[-1] == "\n" for text in shown)


def test_solved_states_beyond_the_limit_are_refused(parameters: Parameters, heard: study.World) -> None:
    training, tested = splits(heard, parameters)
    probabilities = study.few_shot(parameters, training, tested)
    assert probabilities.shape == tested.rewards.shape and probabilities.sum(axis=1) == pytest.approx(1)
    short = parameters.policy.model_copy(update={"max_length": 200})
    with pytest.raises(DataError, match=r"policy\.max_length is 200"):
        study.few_shot(parameters.model_copy(update={"policy": short}), training, tested)


@pytest.mark.slow
def test_rivals_that_count_words_and_the_one_that_is_told_solve_a_world_of_words(
    parameters: Parameters, heard: study.World
) -> None:
    decided = pd.concat(study._rivals(parameters, "BTC", heard), ignore_index=True)
    closed = language_gaps(decided, parameters.evidence, 0).set_index(["policy", "states", "wording"])["gap_closed"]
    for policy in ("TF-IDF linear", "TF-IDF boosting", "by heart", "told the kind"):
        assert closed[policy, study.MOST, "all"] > 0.95
    for rival in ("linear", "mlp", "boosting"):
        assert abs(closed[rival, study.MOST, "all"]) < 0.3


@pytest.mark.slow
def test_the_study_leaves_a_row_for_each_policy_and_asset(
    parameters: Parameters, heard: study.World, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    for asset in parameters.assets:
        features, outcomes = (table.assign(asset=asset) for table in (heard.features, heard.outcomes))
        paths = Paths(parameters.name, asset)
        write_table(features, paths.data, "features")
        write_table(outcomes, paths.data, "outcomes")
    base = parameters.policy.base_model
    monkeypatch.setattr(study, "readers", lambda _: [study.Reader(base, "thesis"), study.Reader(base, "words", 50)])
    table = language_gaps(pd.concat(study.decide(parameters), ignore_index=True), parameters.evidence, 0)
    rows = (
        table[table["wording"] == "all"]
        .groupby("policy")[["asset", "trained_on"]]
        .apply(lambda row: set(map(tuple, row.to_numpy())))
    )
    across = {(one, other) for one in parameters.assets for other in parameters.assets}
    assert rows["thesis"] == rows["words"] == across
    assert (
        rows["zero-shot thesis"]
        == rows["few-shot thesis"]
        == rows["TF-IDF linear"]
        == {(a, a) for a in parameters.assets}
    )


def test_gaps_are_measured_on_the_same_states_over_seeds() -> None:
    state = pd.DataFrame({"asset": "BTC", "decision_ns": np.arange(8) * 10**12, "wording": ["known", "new"] * 4})
    state = state.assign(trained_on="BTC", policy="words", states=50, best_fixed=-2.0, oracle=2.0)
    decided = pd.concat([state.assign(seed=0, reward=0.0), state.assign(seed=1, reward=1.0)])
    table = language_gaps(decided, load("smoke").evidence, 0).set_index("wording")
    assert table.index.tolist() == ["all", "known", "new"] and table["tested"].tolist() == [8, 4, 4]
    np.testing.assert_allclose(table["gap_closed"], 0.625)
    np.testing.assert_allclose(table[["lowest_seed", "highest_seed"]], [[0.5, 0.75]] * 3)
