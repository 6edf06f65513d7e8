"""The policy as llama.cpp's server decides it, on GGUF files of the base that llama.cpp's own tools wrote (§4.8.4).

The server is a process of ours. It is given tokens, not text, keeps what the last prompt began with, and tells how
probable the K letters are among each other. An activated LoRA goes to it as a plain one that is switched on once all
but the cue has been read: as an activated one the server would have it act from the token before the cue on.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from os import environ, pathsep
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError

from hyperdapo.errors import MissingInputError, ModelError
from hyperdapo.market.columns import Floats, Mask
from hyperdapo.params import Parameters
from hyperdapo.paths import REPOSITORY
from hyperdapo.policy.models import config_of, load_tokenizer
from hyperdapo.policy.path import PromptPath
from hyperdapo.policy.prompts import CUE, letters
from hyperdapo.policy.scoring import cue_ids, letter_ids
from hyperdapo.processes import GRACE_S

_SERVER, _CONVERTER = "llama-server", "convert_lora_to_gguf.py"
_HOST = "127.0.0.1"
_STARTS_S, _ANSWERS_S, _ENDS_S, _POLL_S = 120.0, 60.0, 1.0, 0.05
_AHEAD = 60.0  # by so much letters are ahead of all other tokens, in logits; among each other they are as they were
_LAST = 6  # lines that an error shows


def available(parameters: Parameters) -> dict[str, Path]:
    """The GGUF file of each backend, by its name: `llama.cpp` and the file's; none where `inference.gguf` is null.

    Raises
    ------
    MissingInputError
        If the folder has no GGUF file, or llama.cpp's server or converter is not there.
    """
    if parameters.inference.gguf is None:
        return {}
    folder = REPOSITORY / parameters.inference.gguf
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise MissingInputError(
            f"inference.gguf: there is no GGUF file in {folder}; make one of the base with llama.cpp's "
            "convert_hf_to_gguf.py (docs/deploy.md), or set inference.gguf: null"
        )
    _program(parameters)
    _converter(parameters)
    return {f"llama.cpp {file.stem}": file for file in files}


@contextmanager
def open_path(parameters: Parameters, adapter: Path | None, model: Path) -> Iterator[tuple["LlamaPath", float]]:
    """The policy on one GGUF file of the base while the block runs, and the size of what the server reads, MB.

    Raises
    ------
    MissingInputError
        As `available`.
    ModelError
        If the adapter cannot be converted or the server does not come up, with the last lines of what they said.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = [model] if adapter is None else [model, _converted(parameters, adapter, folder)]
        arguments = ["--model", str(model), *(each for file in files[1:] for each in ("--lora", str(file)))]
        with _serving([_program(parameters), *arguments, *_settings(parameters)], folder / "log") as server:
            path = LlamaPath(parameters, adapter, server)
            yield path, sum(file.stat().st_size for file in files) / 1e6


class LlamaPath(PromptPath):
    """A decision path whose prompts a server of llama.cpp reads, one after the other."""

    def __init__(self, parameters: Parameters, adapter: Path | None, server: "Server") -> None:
        super().__init__(parameters, load_tokenizer(parameters.policy.base_model), adapter)
        self._opening: list[int] = self.tokenizer(self.instruction)["input_ids"]
        self._cue = cue_ids(self.tokenizer)
        self._letters = letter_ids(self.tokenizer, letters(parameters.policy.actions))
        self._server = server
        self._switched = adapter is not None and parameters.policy.lora.activated

    def probabilities_of(self, prompts: Sequence[str], distinct: Mask | None = None) -> Floats:
        """See `PromptPath`.

        Raises
        ------
        ModelError
            If the server dies, does not answer in time, or answers with other than the K letters.
        """
        found = np.array([self._read(prompt) for prompt in prompts])
        chosen: Floats = found if distinct is None else np.where(distinct, found, 0.0)
        shares: Floats = chosen / chosen.sum(axis=1, keepdims=True)
        return shares

    def _read(self, prompt: str) -> list[float]:
        """(K,) of the letters after a prompt."""
        state = prompt[len(self.instruction) : -len(CUE)]
        before = self._opening + self.tokenizer(state, add_special_tokens=False)["input_ids"]
        if self._switched:
            self._server.scale(0.0)
            self._server.complete(before, n_predict=0)
            self._server.scale(1.0)
        return self._server.probabilities(before + self._cue, self._letters)


class _Token(BaseModel):
    id: int
    prob: Annotated[float, Field(gt=0.0, le=1.0)]


class _Place(BaseModel):
    top_probs: list[_Token]


class _Answer(BaseModel):
    """What is read of the answer of `/completion`."""

    completion_probabilities: Annotated[list[_Place], Field(min_length=1)]


class Server:
    """A running server of llama.cpp; it reads one prompt at a time."""

    def __init__(self, process: "subprocess.Popen[bytes]", client: httpx.Client, log: Path) -> None:
        self._process, self._client, self._log = process, client, log

    def wait(self) -> None:
        """Until it has read its model. Raises ModelError if it ends before, or takes too long."""
        begun = time.monotonic()
        while time.monotonic() < begun + _STARTS_S:
            if self._process.poll() is not None:
                raise self._error("ended before it was ready")
            with suppress(httpx.HTTPError):
                if self._client.get("/health").is_success:
                    return
            time.sleep(_POLL_S)
        raise self._error(f"was not ready after {_STARTS_S:g} s")

    def scale(self, factor: float) -> None:
        """Let the adapter act by so much on what is read from now on. Raises ModelError as `complete`."""
        self._post("/lora-adapters", [{"id": 0, "scale": factor}])

    def complete(self, tokens: Sequence[int], **options: Any) -> bytes:
        """The answer to tokens, of which it reads those that it did not read last. Raises ModelError if none comes."""
        return self._post("/completion", {"prompt": list(tokens), "cache_prompt": True, **options})

    def probabilities(self, tokens: Sequence[int], labels: Sequence[int]) -> list[float]:
        """(K,) how probable each label is after tokens, among the labels. Raises ModelError as `complete`."""
        sampling = {"samplers": ["top_k"], "top_k": len(labels), "logit_bias": [[label, _AHEAD] for label in labels]}
        content = self.complete(tokens, n_predict=1, n_probs=len(labels), post_sampling_probs=True, **sampling)
        try:
            told = _Answer.model_validate_json(content).completion_probabilities[0].top_probs
        except ValidationError:
            raise self._error(f"answered {content[:200]!r}") from None
        shares = {token.id: token.prob for token in told}
        if missing := set(labels) - set(shares):
            raise self._error(f"told nothing of {len(missing)} of {len(labels)} letters")
        return [shares[label] for label in labels]

    def _post(self, address: str, body: Any) -> bytes:
        try:
            answer = self._client.post(address, json=body)
        except httpx.HTTPError as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDS_S)
            ended = self._process.returncode is not None
            raise self._error("ended" if ended else f"did not answer ({type(error).__name__})") from None
        if not answer.is_success:
            raise self._error(f"refused {address} with {answer.status_code}: {answer.text[:200]}")
        return answer.content

    def _error(self, what: str) -> ModelError:
        return ModelError(f"{_SERVER} {what}; its last lines: {_last(self._log.read_text(errors='replace'))}")


@contextmanager
def _serving(command: Sequence[str], log: Path) -> Iterator[Server]:
    """A server that is up, at a free port of this machine, and that ends with the block or with us."""
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port = free.getsockname()[1]
    bound = [sys.executable, "-m", "hyperdapo.processes", *command, "--host", _HOST, "--port", str(port)]
    with log.open("wb") as said:
        process = subprocess.Popen(bound, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        with httpx.Client(base_url=f"http://{_HOST}:{port}", timeout=_ANSWERS_S, trust_env=False) as client:
            server = Server(process, client, log)
            server.wait()
            yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        process.kill()
        process.wait()


def _settings(parameters: Parameters) -> list[str]:
    """As many threads as torch has, one prompt at a time, nothing fetched, and attention in float32 as ours is.

    What the server calls flash attention rounds to float16 on a CPU.
    """
    options = {
        "threads": torch.get_num_threads(),
        "parallel": 1,
        "ctx-size": parameters.policy.max_length + 1,
        "cache-type-k": "f32",
        "cache-type-v": "f32",
        "flash-attn": "off",
        "cache-ram": 0,
    }
    return ["--offline", *(each for name, value in options.items() for each in (f"--{name}", str(value)))]


def _converted(parameters: Parameters, adapter: Path, folder: Path) -> Path:
    """The adapter as GGUF, by llama.cpp's converter, as one that acts on every token that is read with it."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"alora_invocation_tokens": None}))
    shutil.copy(adapter / "adapter_model.safetensors", folder)
    config_of(parameters.policy).save_pretrained(folder / "base")
    made = folder / "adapter.gguf"
    command = [sys.executable, str(_converter(parameters)), str(folder), "--base", str(folder / "base")]
    done = subprocess.run(
        [*command, "--outtype", "f32", "--outfile", str(made)],
        capture_output=True,
        text=True,
        env=environ | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode or not made.exists():
        raise ModelError(f"{_CONVERTER} could not convert {adapter}: {_last(done.stderr)}")
    return made


def _program(parameters: Parameters) -> str:
    built = REPOSITORY / parameters.inference.llama_cpp / "build" / "bin"
    found = shutil.which(_SERVER, path=pathsep.join([str(built), environ.get("PATH", "")]))
    if found is None:
        raise MissingInputError(
            f"{_SERVER} is neither in {built} nor on the PATH: build llama.cpp and set inference.llama_cpp to its "
            "folder (docs/deploy.md), or set inference.gguf: null"
        )
    return found


def _converter(parameters: Parameters) -> Path:
    script = REPOSITORY / parameters.inference.llama_cpp / _CONVERTER
    if not script.exists():
        raise MissingInputError(f"inference.llama_cpp: there is no {script}: set it to llama.cpp's source folder")
    return script


def _last(said: str) -> str:
    return " | ".join(line.strip() for line in said.splitlines()[-_LAST:])
