"""Saved adapters: what loading refuses, what others make of them (PEFT, merged weights, vLLM), and their cards."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel

import wheels
from hyperdapo.actions import Action
from hyperdapo.errors import MissingInputError, ModelError
from hyperdapo.params import Parameters, load
from hyperdapo.policy import models, prompts
from hyperdapo.policy.adapters import card
from hyperdapo.policy.adapters.manifest import Manifest
from hyperdapo.policy.models import load_adapter, load_base, save_adapter
from hyperdapo.policy.prompts import letters
from hyperdapo.policy.scoring import cue_ids, letter_ids, make_scorer
from test_models import ACTIONS, PROMPTS, SMOKE, with_an_adapter

PLAIN = {"policy": {"lora": {"activated": False}}}
VLLM = "0.33.0"
REFUSED = {
    "modules_to_save": None,
    "use_dora": False,
    "lora_bias": False,
    "init_lora_weights": True,
    "layer_replication": None,
    "use_bdlora": None,
    "use_qalora": False,
    "bias": "none",
}
"""What `vllm/lora/peft_helper.py` of that version looks at, and a value of each that it takes."""


def saved(parameters: Parameters, place: Path) -> tuple[PeftModel, Any, Path]:
    """An adapter that does something, its tokenizer, and the folder that it was saved into."""
    model, tokenizer = with_an_adapter(parameters.policy)
    folder = place / "smoke" / "models" / "BTC" / "dapo" / "seed_0"
    save_adapter(model, tokenizer, parameters, folder)
    return model, tokenizer, folder


def scored(model: Any, tokenizer: Any, parameters: Parameters) -> torch.Tensor:
    scorer = make_scorer(model, tokenizer, parameters)
    with torch.no_grad():
        return scorer.log_probabilities(scorer.encode(PROMPTS))


def read_whole(model: Any, tokenizer: Any) -> torch.Tensor:
    """(n, K) log-probabilities of the letters after each prompt, which is one text here, by any causal model."""
    rows = []
    for prompt in PROMPTS:
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        rows.append(torch.log_softmax(logits[letter_ids(tokenizer, letters(ACTIONS))].float(), dim=-1))
    return torch.stack(rows)


def test_an_adapter_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model, tokenizer, folder = saved(SMOKE, tmp_path)
    base, _ = load_base(SMOKE.policy)
    loaded = load_adapter(base, SMOKE, folder)
    torch.testing.assert_close(scored(loaded, tokenizer, SMOKE), scored(model, tokenizer, SMOKE))
    loaded.unload()
    with pytest.raises(MissingInputError, match="hyperdapo run --profile smoke --until 05"):
        load_adapter(base, SMOKE, folder.with_name("seed_9"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": {"actions": [str(action) for action in ACTIONS[::-1]]}}, r"actions \['take'.*it is \['wait'"),
        ({"policy": {"prompt_style": "anonymous"}}, "prompt_style 'thesis', and now it is 'anonymous'"),
        ({"policy": {"four_bit": True}}, "four_bit False, and now it is True: set policy.four_bit back"),
        ({"policy": {"lora": {"layers": 2}}}, "layers 4, and now it is 2: set policy.lora.layers back"),
        (PLAIN, "activated True, and now it is False"),
        ({"policy": {"base_model": "Qwen/Qwen2.5-7B"}}, "base 'tiny-qwen2', and now it is 'Qwen/Qwen2.5-7B'"),
        ({"orders": {"objectives": ["urgent"]}}, r"objectives \['balanced'\], and now it is \['urgent'\]"),
    ],
    ids=["actions", "prompt style", "bits", "layers", "activated", "base", "objectives"],
)
def test_an_adapter_for_something_else_is_refused(changes: dict, says: str, tmp_path: Path) -> None:
    """Both values are named, the file, and what to do."""
    _, _, folder = saved(SMOKE, tmp_path)
    base, _ = load_base(SMOKE.policy)
    with pytest.raises(ModelError, match=rf"policy\.json: the adapter was trained with {says}.*--force 05"):
        load_adapter(base, load("smoke", changes), folder)


def test_another_precision_or_other_prompts_are_refused(tmp_path: Path) -> None:
    _, _, folder = saved(SMOKE, tmp_path)
    base, _ = load_base(SMOKE.policy)
    recorded = Manifest.read(folder)
    for change, says in (
        ({"dtype": "bfloat16"}, "dtype 'bfloat16', and now it is 'float32': decide where it is the same"),
        ({"prompt": "0" * 16}, "prompt '0000000000000000', and now it is '.*': check out the version"),
        ({"features": recorded.features[:-1]}, "features .*: check out the version"),
        ({"revision": "another"}, "revision 'another', and now it is 'made here, seed 0'"),
    ):
        recorded.model_copy(update=change).write(folder)
        with pytest.raises(ModelError, match=says):
            load_adapter(base, SMOKE, folder)


@pytest.mark.parametrize("text", [None, "{", '{"base": "tiny-qwen2"}'], ids=["lost", "cut", "of an older version"])
def test_a_manifest_that_cannot_be_read_is_refused(text: str | None, tmp_path: Path) -> None:
    _, _, folder = saved(SMOKE, tmp_path)
    (folder / "policy.json").unlink()
    if text is not None:
        (folder / "policy.json").write_text(text)
    with pytest.raises(ModelError, match=r"policy\.json is lost or damaged.*hyperdapo run --profile smoke"):
        load_adapter(load_base(SMOKE.policy)[0], SMOKE, folder)


def test_a_prompt_that_says_anything_else_is_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words, digits and the sentence of a notice too, not only the instruction."""
    first = {style: prompts.version(SMOKE.policy.actions, style) for style in prompts.STYLES}
    assert len(set(first.values())) == len(first)
    assert first["thesis"] == prompts.version(SMOKE.policy.actions, "thesis")
    assert first["thesis"] != prompts.version(SMOKE.policy.actions[:-1], "thesis")
    monkeypatch.setattr(prompts, "_MOST", 3)
    assert first["thesis"] != prompts.version(SMOKE.policy.actions, "thesis")
    monkeypatch.undo()
    monkeypatch.setattr(prompts, "FEATURES", (replace(prompts.FEATURES[0], word="lean"), *prompts.FEATURES[1:]))
    assert first["words"] != prompts.version(SMOKE.policy.actions, "words")


def test_an_adapter_that_decides_again_knows_how_often(tmp_path: Path) -> None:
    often, seldom = (load("smoke", {"policy": {"decide_again_s": every_s}}) for every_s in (10, 20))
    for each in (often, seldom):
        keeping = each.policy.model_copy(update={"actions": [*each.policy.actions, Action("keep")]})
        manifests = Manifest.of(each.model_copy(update={"policy": keeping}), "base", "1", 2, "float32")
        assert manifests.decide_again_s == each.policy.decide_again_s
        assert Manifest.of(each, "base", "1", 2, "float32").decide_again_s is None


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_half_an_adapter_is_refused(file: str, tmp_path: Path) -> None:
    _, _, folder = saved(SMOKE, tmp_path)
    cut = folder / file
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(ModelError, match=f"the adapter in {folder} is damaged .*: copy it back, or run 05 again"):
        load_adapter(load_base(SMOKE.policy)[0], SMOKE, folder)


@pytest.mark.parametrize("profile", ["smoke", pytest.param("sample", marks=pytest.mark.slow)])
def test_a_plain_adapter_decides_the_same_in_peft_and_merged(profile: str, tmp_path: Path) -> None:
    """Others know nothing of this package: they give whole prompts as text to a base of their own."""
    parameters = load(profile, PLAIN)
    model, tokenizer, folder = saved(parameters, tmp_path)
    ours = scored(model, tokenizer, parameters)
    theirs = PeftModel.from_pretrained(load_base(parameters.policy)[0], str(folder)).eval()
    torch.testing.assert_close(read_whole(theirs, tokenizer), ours, atol=1e-4, rtol=1e-4)
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(read_whole(merged, tokenizer), ours, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        untrained = scored(load_base(parameters.policy)[0], tokenizer, parameters)
    assert (untrained - ours).abs().max() > 0.01, "the adapter must act"


def test_a_config_names_the_base_as_the_hub_does(tmp_path: Path) -> None:
    assert models.hub_id("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert models.hub_id("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"
    _, tokenizer, folder = saved(SMOKE, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None, "tiny-qwen2 is on no hub"
    assert config["alora_invocation_tokens"] == cue_ids(tokenizer)
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text()


def vllm_helper() -> Any:
    """`PEFTHelper` of vLLM as released, by itself: what it imports of vLLM is a logger and the name of a type."""
    (text,) = wheels.read(f"vllm=={VLLM}", "vllm/lora/peft_helper.py").values()
    stubs = {name: types.ModuleType(name) for name in ("vllm", "vllm.config", "vllm.config.lora", "vllm.logger")}
    stubs["vllm.config.lora"].LoRAConfig = object
    stubs["vllm.logger"].init_logger = lambda name: None
    helper = types.ModuleType("peft_helper")
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in {**stubs, "peft_helper": helper}.items():
            patch.setitem(sys.modules, name, stub)
        exec(compile(text, "peft_helper.py", "exec"), vars(helper))
    return helper.PEFTHelper


@pytest.mark.slow
def test_vllm_takes_a_plain_adapter_and_refuses_an_activated_one(tmp_path: Path) -> None:
    """By its own rules (`PEFTHelper.validate_legal`) with its default of rank 16 at most."""
    helper, limits = vllm_helper(), types.SimpleNamespace(max_lora_rank=16)
    for profile in ("smoke", "sample", "thesis", "rehearsal", "notices"):
        parameters = load(profile, PLAIN | {"policy": PLAIN["policy"] | {"base_model": "tiny-qwen2"}})
        _, _, folder = saved(parameters, tmp_path / profile)
        served = helper.from_local_dir(str(folder), max_position_embeddings=1024)
        served.validate_legal(limits)
        assert served.vllm_lora_scaling_factor == 2.0
    _, _, folder = saved(SMOKE, tmp_path / "activated")
    with pytest.raises(ValueError, match="does not support Activated LoRA"):
        helper.from_local_dir(str(folder), max_position_embeddings=1024).validate_legal(limits)


def test_a_plain_config_has_nothing_that_vllm_refuses(tmp_path: Path) -> None:
    _, _, folder = saved(load("smoke", PLAIN), tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config.get("alora_invocation_tokens")
    assert {name: config[name] for name in REFUSED} == {**REFUSED, "use_bdlora": config["use_bdlora"]}
    assert not config["use_bdlora"] and config["r"] <= 16


def test_a_card_says_what_was_learned_and_how_to_load_it(tmp_path: Path) -> None:
    log = pd.DataFrame({"step": [0, 4, 8], "heldout_reward": [-3.0, np.nan, -2.25]})
    log = log.assign(heldout_best_fixed=-2.5, heldout_oracle=-1.0)
    for name, parameters, serves in (
        ("activated", SMOKE, "vLLM refuses it"),
        ("plain", load("smoke", PLAIN), "--enable-lora --max-lora-rank 16"),
    ):
        _, _, folder = saved(parameters, tmp_path / name)
        card.write(folder, parameters, "BTC", "dapo", 0, log)
        written = ModelCard.load(folder / "README.md")
        assert written.data.library_name == "peft" and written.data.base_model is None
        assert written.data.eval_results[0].metric_value == -2.25
        for part in (
            "- A: take",
            "balanced",
            "| 8 | -2.25 | -2.50 | -1.00 |",
            "on no hub",
            "--asset BTC --force 05",
            serves,
        ):
            assert part in written.text, part
        assert str(tmp_path) not in written.content, "it is read elsewhere"
