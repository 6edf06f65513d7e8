"""The decision path: the same decision alone and among others, and that of `policy.decisions`; what it refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from hyperdapo.errors import DataError, MissingInputError, ModelError
from hyperdapo.params import Parameters, load
from hyperdapo.policy.decisions import Decider
from hyperdapo.policy.language import calibration
from hyperdapo.policy.models import load_base, save_adapter
from hyperdapo.policy.path import Decision, DecisionPath, calibrated
from hyperdapo.policy.path.packed import Packed, pack
from hyperdapo.policy.path.reading import Reader
from hyperdapo.policy.prompts import CUE, FEATURES, encode_states, instruction
from hyperdapo.policy.states import States
from test_models import with_an_adapter

COUNT = 12
TEMPERATURE = 1.7
LORA = {
    "activated, upper layers": {"layers": 2},
    "activated, all layers": {"layers": None},
    "plain, upper layers": {"layers": 2, "activated": False},
}


def states(parameters: Parameters, asset: str = "ETH") -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Features of random states, an order in each, and which of its actions are distinct."""
    rng = np.random.default_rng(5)
    columns = {feature.column: rng.normal(size=COUNT) for feature in FEATURES}
    columns |= {"book_imbalance": rng.uniform(-1, 1, COUNT), "book_pressure_50bps": rng.uniform(-1, 1, COUNT)}
    columns |= {"depth_ratio_10bps": rng.uniform(0.1, 9, COUNT), "volume_profile": rng.uniform(0, 1, COUNT)}
    features = pd.DataFrame(columns).assign(asset=asset, decision_ns=np.arange(COUNT), mid=rng.uniform(9, 9e4, COUNT))
    parents = pd.DataFrame({"order_id": rng.permutation(COUNT), "side": rng.choice([-1, 1], COUNT), "horizon_s": 60.0})
    distinct = rng.uniform(size=(COUNT, len(parameters.policy.actions))) < 0.8
    distinct[:, 0] = True
    return features, parents.assign(objective="balanced"), distinct


def adapter(parameters: Parameters, place: Path) -> Path:
    """A saved adapter that does something, with a temperature."""
    folder = place / "smoke" / "models" / "ETH" / "dapo" / "seed_0"
    save_adapter(*with_an_adapter(parameters.policy), parameters, folder)
    calibration.write(folder, TEMPERATURE, states=3)
    return folder


@pytest.fixture(scope="module", params=LORA)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Parameters, Path]:
    parameters = load("smoke", {"policy": {"lora": LORA[request.param]}})
    return parameters, adapter(parameters, tmp_path_factory.mktemp("adapter"))


def probabilities(decisions: list[Decision]) -> np.ndarray:
    return np.array([decision.probabilities for decision in decisions])


def test_paths_share_a_base_and_decide_as_alone(trained: tuple[Parameters, Path]) -> None:
    parameters, folder = trained
    features, parents, distinct = states(parameters)
    base = load_base(parameters.policy)
    kept = {name: weight.data_ptr() for name, weight in base[0].named_parameters()}
    shared = [DecisionPath(parameters, place, loaded=base) for place in (folder, None, folder)]
    alone = [DecisionPath(parameters, place) for place in (folder, None)]
    decided = [probabilities(path.decide(features, parents, distinct)) for path in (*shared, *alone)]
    np.testing.assert_array_equal(decided[0], decided[3])
    np.testing.assert_array_equal(decided[1], decided[4])
    np.testing.assert_array_equal(decided[2], decided[0])
    assert not np.allclose(decided[0], decided[1])
    assert {name: weight.data_ptr() for name, weight in base[0].named_parameters()} == kept
    packed = [[part._weight for part in modules_of(path) if isinstance(part, Packed)] for path in shared]
    assert packed[0] and all(one is other for one, other in zip(packed[0], packed[1], strict=True))


def modules_of(path: DecisionPath) -> list[torch.nn.Module]:
    return list(path._scorer._base.modules())


def test_one_decides_as_many_and_as_the_tables_do(trained: tuple[Parameters, Path]) -> None:
    parameters, folder = trained
    features, parents, distinct = states(parameters)
    path = DecisionPath(parameters, folder)
    together = path.decide(features, parents, distinct)
    alone = [path.decide(features, parents.iloc[[row]], distinct[[row]])[0] for row in range(COUNT)]
    prompts = encode_states(features, parents, parameters.policy.actions, parameters.policy.prompt_style)
    tested = States(parents.assign(asset="ETH", decision_ns=0), prompts, np.zeros(distinct.shape), distinct)
    raw = Decider(parameters, tested).probabilities(folder)
    for decisions in (together, alone):
        assert [decision.action for decision in decisions] == raw.argmax(axis=1).tolist()
        expected = calibrated(raw, TEMPERATURE, distinct)
        np.testing.assert_allclose(probabilities(decisions), expected, atol=1e-5)
        assert all(decision.timing_ms.keys() == {"prompt", "forward", "decode"} for decision in decisions)
    np.testing.assert_allclose(path.probabilities_of(prompts, distinct), raw, atol=1e-5)
    assert len({decision.action for decision in together}) > 1 and (probabilities(together)[~distinct] == 0).all()


def test_without_an_adapter_the_base_decides() -> None:
    parameters = load("smoke")
    features, parents, distinct = states(parameters)
    decisions = DecisionPath(parameters).decide(features, parents)
    np.testing.assert_allclose(probabilities(decisions).sum(axis=1), 1.0)
    prompts = encode_states(features, parents, parameters.policy.actions, parameters.policy.prompt_style)
    every = np.ones_like(distinct)
    base = Decider(parameters, States(parents, prompts, np.zeros(distinct.shape), every)).probabilities()
    np.testing.assert_allclose(probabilities(decisions), base, atol=1e-5)


def test_another_adapter_is_refused(tmp_path: Path) -> None:
    parameters = load("smoke")
    folder = adapter(parameters, tmp_path)
    other = load("smoke", {"policy": {"prompt_style": "anonymous"}})
    with pytest.raises(ModelError, match="trained with prompt_style 'thesis'"):
        DecisionPath(other, folder)
    (folder / calibration.NAME).unlink()
    with pytest.raises(ModelError, match=r"calibration\.json is lost"):
        DecisionPath(parameters, folder)
    with pytest.raises(MissingInputError, match="hyperdapo run --profile smoke --until 05"):
        DecisionPath(parameters, folder.with_name("seed_9"))


def test_a_state_or_prompt_that_cannot_be_read_is_refused() -> None:
    parameters = load("smoke")
    path = DecisionPath(parameters)
    features, parents, _ = states(parameters)
    features.loc[3, "momentum_1m_bps_z"] = np.nan
    with pytest.raises(DataError, match="momentum_1m_bps_z of the state at 3 is not finite"):
        path.decide(features, parents)
    with pytest.raises(ModelError, match="must begin with the instruction"):
        path.probabilities_of(["sell everything ->"])


@pytest.mark.parametrize("bias", [False, True])
def test_the_pass_over_a_state_is_that_of_transformers(bias: bool) -> None:
    """Of a Llama, as SmolLM2 is one; tiny-qwen2 is held to it by what it decides. Two states, behind what was read."""
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 50}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "attention_bias": bias}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        model = LlamaModel(LlamaConfig(**shape, **heads)).eval()
        tokens, theirs, ours = torch.randint(0, 50, (2, 17)), DynamicCache(), DynamicCache()
        for cache in (theirs, ours):
            model(input_ids=tokens[:, :6], past_key_values=cache)
        expected = model(input_ids=tokens[:, 6:], past_key_values=theirs, output_hidden_states=True)
        assert not Reader.fits(model)
        pack(model)
        assert Reader.fits(model)
        reader = Reader(model)
        entering = reader.read(tokens[:, 6:], ours, first=2)
    torch.testing.assert_close(entering, expected.hidden_states[2], atol=1e-5, rtol=1e-5)
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        for name in ("keys", "values"):
            torch.testing.assert_close(getattr(layer, name), getattr(other, name), atol=1e-5, rtol=1e-5)


def test_what_the_last_prompts_began_with_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = load("smoke")
    path, tokens = DecisionPath(parameters), list[int]()
    read = path._scorer._reader.read
    monkeypatch.setattr(
        path._scorer._reader, "read", lambda new, *rest: tokens.append(new.shape[1]) or read(new, *rest)
    )
    opening = instruction(parameters.policy.actions, parameters.policy.prompt_style)
    texts = ["balanced buy ETH at 4000.1: imbalance1 depth5", "balanced buy ETH at 4000.1: imbalance1 depth6"]
    texts += ["balanced sell ETH at 3999.9: imbalance1 depth5", texts[0], "balanced buy ETH at 4000.1:", texts[1]]
    prompts = [opening + text + CUE for text in texts]
    one_by_one = np.concatenate([path.probabilities_of([prompt]) for prompt in prompts])
    assert tokens[0] > tokens[2] > tokens[1] > tokens[3] == tokens[4] == tokens[5]
    np.testing.assert_allclose(one_by_one, path.probabilities_of(prompts), atol=1e-5)
