"""Scoring by others: the contracts of vLLM and SGLang as released, and upstreams that fail, hang, lie and come back."""

import asyncio
import json
import math
import subprocess
import sys
import threading
import time
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pydantic
import pytest
import torch

import wheels
from conftest import REPOSITORY
from hyperdapo.errors import EndpointError
from hyperdapo.params import Parameters, load, remember
from hyperdapo.serving.app import Service
from hyperdapo.serving.server import listen
from hyperdapo.serving.upstream import Upstream, probes
from scoring_server import models
from served import asked, served, train, waited_for

PLAIN = {"policy": {"lora": {"activated": False}}}
SERVING = {"serving": {"health_every_s": 0.2, "upstream_s": 3}}
VLLM, SGLANG = "vllm==0.33.0", "sglang==0.5.23"
GENERATIVE = "vllm/entrypoints/generate/generative_scoring/serving.py"
ENGINE = "vllm/entrypoints/serve/engine/protocol.py"
PROTOCOL, SCORING = "sglang/srt/entrypoints/openai/protocol.py", "sglang/srt/managers/tokenizer_manager_score_mixin.py"
TYPES = {name: getattr(typing, name) for name in typing.__all__} | {
    name: getattr(pydantic, name) for name in pydantic.__all__
}


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parameters]:
    """Plain adapters, which vLLM serves and anybody's forward pass reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDAPO_DATA", str(tmp_path_factory.mktemp("served")))
        parameters = load("smoke", PLAIN | SERVING)
        train(parameters)
        remember(parameters)
        yield parameters


@pytest.fixture(scope="module")
def answering(parameters: Parameters) -> Iterator[tuple[httpx.Client, Service]]:
    with served(parameters) as both:
        yield both


@pytest.fixture(scope="module")
def readers(parameters: Parameters) -> dict[str, Callable[[tuple[int, ...]], torch.Tensor]]:
    """What PEFT makes of whole prompts."""
    return models(parameters)


# --- the contracts, as their wheels have them


@pytest.fixture(scope="module")
def vllm() -> dict[str, Any]:
    """vLLM's own models and its handler of generative scoring, with an engine that the test puts in."""
    texts = wheels.read(VLLM, ENGINE, GENERATIVE)
    ids = {"random_uuid": lambda: "1", "validate_cache_salt": lambda salt: None, "time": time, "asyncio": asyncio}
    around = TYPES | ids | {"logger": types.SimpleNamespace(debug=print, exception=print), "math": math}
    for name in ("EngineClient", "OpenAIServingModels", "RequestLogger", "TokenizerLike", "EngineInput", "Request"):
        around[name] = object
    around |= {"SamplingParams": types.SimpleNamespace, "BaseServing": object, "GenerationError": RuntimeError}
    around["tokens_input"] = lambda ids, cache_salt: tuple(ids)
    usage = ("PromptTokenUsageInfo", "CompletionTokenUsageInfo", "UsageInfo")
    shared = ("OpenAIBaseModel", *usage, "ErrorInfo", "ErrorResponse", "ModelPermission", "ModelCard", "ModelList")
    around = wheels.defined(texts[ENGINE], shared, around)
    own = ("Request", "ItemResult", "Response")
    names = [*(f"GenerativeScoring{name}" for name in own), "ServingGenerativeScoring"]
    return wheels.defined(texts[GENERATIVE], names, around)


@pytest.fixture(scope="module")
def sglang() -> dict[str, Any]:
    """SGLang's own models, and how it makes scores of log-probabilities."""
    texts = wheels.read(SGLANG, PROTOCOL, SCORING)
    around = TYPES | {"time": time, "uuid": types.SimpleNamespace(uuid4=lambda: "1"), "DEFAULT_MODEL_NAME": "default"}
    usage = ("PromptTokensDetails", "CompletionTokensDetails", "UsageInfo")
    names = [*usage, "ModelCard", "ModelList", "ErrorResponse", "ScoringRequest", "ScoringResponse"]
    around = wheels.defined(texts[PROTOCOL], names, around)
    return wheels.defined(texts[SCORING], ["_convert_logprobs_to_scores"], around | {"math": math})


def as_vllm_answers(vllm: dict[str, Any], tokenizer: Any, read: Any, request: Any) -> Any:
    """What the handler of vLLM makes of a request, over a model that PEFT reads."""
    handler = object.__new__(vllm["ServingGenerativeScoring"])

    async def nothing(*_: Any, **__: Any) -> None:
        return None

    async def reads(_: Any, inputs: Any, params: Any, *__: Any, **___: Any) -> list[Any]:
        once = types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=[0])])
        labels = [one.logprob_token_ids for one in params]
        rows = zip(inputs, labels, strict=True)
        return [types.SimpleNamespace(result=once, logprobs=read(ids)[label].tolist()) for ids, label in rows]

    vllm["next_token_label_reads"] = reads
    handler._check_model = handler._get_trace_headers = nothing
    handler._maybe_get_adapters = handler._log_inputs = lambda *_, **__: None
    handler._base_request_id = lambda *_, **__: "1"
    handler.engine_client = types.SimpleNamespace(errored=False, check_admission=lambda count: None)
    handler.renderer = types.SimpleNamespace(tokenizer=tokenizer)
    sizes = {"get_vocab_size": lambda: len(tokenizer), "max_model_len": 1024}
    handler.model_config = types.SimpleNamespace(**sizes)
    handler.models = types.SimpleNamespace(model_name=lambda lora: request.model)
    return asyncio.run(handler.create_generative_scoring(request))


@pytest.mark.slow
def test_it_answers_as_vllm_does(vllm: dict[str, Any], answering: tuple[httpx.Client, Service], readers: Any) -> None:
    client, service = answering
    path, prompts = service.paths["ETH"], probes(service.parameters, "ETH")
    opening, bodies = path.instruction, [prompt[len(path.instruction) :] for prompt in prompts]
    query, items = path.tokenizer(opening)["input_ids"], path.tokenizer(bodies)["input_ids"]
    some = {"model": "ETH", "label_token_ids": [path._labels[2], path._labels[0], 5]}
    for request in (
        {"query": query, "items": items},
        {"query": opening, "items": bodies, "apply_softmax": False},
        {"query": bodies[0], "items": [opening], "item_first": True, "cache_salt": "salt", "priority": 3},
    ):
        theirs = vllm["GenerativeScoringRequest"](**some, **request)
        expected = as_vllm_answers(vllm, path.tokenizer, readers["ETH"], theirs)
        answer = client.post("/generative_scoring", json=theirs.model_dump())
        found = vllm["GenerativeScoringResponse"].model_validate_json(answer.content)
        assert [one.index for one in found.data] == [one.index for one in expected.data] and found.model == "ETH"
        np.testing.assert_allclose([one.score for one in found.data], [one.score for one in expected.data], atol=1e-4)
        assert found.usage.prompt_tokens == expected.usage.prompt_tokens
        assert answer.json().keys() == expected.model_dump().keys() and not found.model_extra
    for wrong, status in ({"label_token_ids": [10**6]}, 400), ({"items": []}, 400), ({"model": "SOL"}, 404):
        answer = client.post("/generative_scoring", json=some | {"query": opening, "items": bodies} | wrong)
        refused = vllm["ErrorResponse"].model_validate_json(answer.content)
        assert answer.status_code == refused.error.code == status, answer.text
    cards = vllm["ModelList"].model_validate_json(client.get("/v1/models").content)
    assert [card.id for card in cards.data] == ["BTC", "ETH"]


@pytest.mark.slow
def test_it_answers_as_sglang_does(
    sglang: dict[str, Any], answering: tuple[httpx.Client, Service], readers: Any
) -> None:
    client, service = answering
    path, prompts = service.paths["BTC"], probes(service.parameters, "BTC")
    bodies = [prompt[len(path.instruction) :] for prompt in prompts[:2]]
    query, items = path.tokenizer(path.instruction)["input_ids"], path.tokenizer(bodies)["input_ids"]
    labels = [path._labels[3], 7, path._labels[1]]
    known = [readers["BTC"](tuple(query + item)) for item in items]
    for request, each in (
        ({"query": query, "items": items}, [labels, labels]),
        ({"query": path.instruction, "items": bodies, "apply_softmax": True, "temperature": 2.5}, [labels, labels]),
        ({"query": query, "items": items, "label_token_ids": [labels, labels[:2]]}, [labels, labels[:2]]),
        ({"query": query, "items": items, "return_token_logprobs": True}, [labels, labels]),
        ({"query": path.instruction, "items": bodies[0], "apply_softmax": True}, [labels]),
    ):
        theirs = sglang["ScoringRequest"](model="BTC", **{"label_token_ids": labels} | request)
        logprobs = [{token: float(row[token]) for token in label} for row, label in zip(known, each, strict=False)]
        convert, how = sglang["_convert_logprobs_to_scores"], (theirs.apply_softmax, theirs.temperature)
        expected = [convert(None, row, label, *how) for row, label in zip(logprobs, each, strict=True)]
        answer = client.post("/v1/score", json=theirs.model_dump(exclude_none=True))
        found = sglang["ScoringResponse"].model_validate_json(answer.content)
        for row, right in zip(found.scores, expected, strict=True):
            np.testing.assert_allclose(row, right, atol=1e-4)
        assert found.model == "BTC" and found.object == "scoring" and found.usage.prompt_tokens > 0
        assert (found.token_logprobs is None) == (not theirs.return_token_logprobs)
    unspoken = {"model": "BTC", "query": query, "items": items, "label_token_ids": labels}
    for more in (
        {"score_extraction_token": "x"},
        {"temperature": 0},
        {"temperature": 2},
        {"items": ["sell everything"]},
    ):
        assert client.post("/v1/score", json=unspoken | more).status_code in (400, 422)


def answered(kind: str, contract: dict[str, Any]) -> httpx.MockTransport:
    """A server that takes what the contract takes: a token is the more probable the larger it and those before are."""

    def handle(request: httpx.Request) -> httpx.Response:
        usage = contract["UsageInfo"](prompt_tokens=1, total_tokens=1)
        if request.method == "GET":
            cards = [contract["ModelCard"](id=name, owned_by=kind) for name in ("ETH", "base")]
            return httpx.Response(200, text=contract["ModelList"](data=cards).model_dump_json())
        assert (
            request.headers["authorization"] == "Bearer key" and request.headers["content-type"] == "application/json"
        )
        known = "GenerativeScoringRequest" if kind == "vllm" else "ScoringRequest"
        asked = contract[known].model_validate_json(request.content)
        assert json.loads(request.content).keys() <= contract[known].model_fields.keys() and asked.model == "ETH"
        assert asked.apply_softmax
        before = [sum(asked.query + item) for item in asked.items]
        rows = [[label + prompt for label in asked.label_token_ids] for prompt in before]
        rows = [[one / sum(row) for one in row] for row in rows]
        if kind == "sglang":
            body = contract["ScoringResponse"](scores=rows, model="ETH", usage=usage)
            return httpx.Response(200, text=body.model_dump_json())
        data = [contract["GenerativeScoringItemResult"](index=place, score=row[0]) for place, row in enumerate(rows)]
        body = contract["GenerativeScoringResponse"](model="ETH", data=data[::-1], usage=usage)
        return httpx.Response(200, text=body.model_dump_json())

    return httpx.MockTransport(handle)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_it_asks_as_they_want_to_be_asked(kind: str, request: pytest.FixtureRequest) -> None:
    upstream = Upstream("http://model.test", "key", 5)
    contract, labels = request.getfixturevalue(kind), [11, 12, 13]
    headers = {"authorization": "Bearer key"}
    transport = answered(kind, contract)
    upstream._client = httpx.Client(transport=transport, base_url="http://model.test", headers=headers)
    assert upstream.look() == {"ETH", "base"} and not upstream.serves("ETH"), "it has not been found well"
    found = upstream.probabilities("ETH", [1, 2], [[3], [4, 5]], labels)
    expected = np.array([[17.0, 18, 19], [23, 24, 25]])
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True))


def test_answers_of_vllm_that_do_not_fit_each_other_are_refused() -> None:
    upstream = Upstream("http://model.test", None, 5)
    lengths = iter([2, 1, 2])

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"index": place, "score": 0.3} for place in range(next(lengths))]})

    upstream._client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://model.test")
    upstream._kind = "vllm"
    with pytest.raises(EndpointError, match="other than 3 x 2"):
        upstream.probabilities("ETH", [1], [[2], [3]], [4, 5, 6])


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"scores": [[0.5, 0.5]]}, EndpointError),
        ({"scores": [[0.2, 0.2, 0.2], [0.2, 0.2, 0.6]]}, EndpointError),
        ({"scores": [[0.2, 0.2, 0.6], [0.5, 0.5]]}, EndpointError),
        ({"scores": [[0.2, 0.2, 0.6], [-0.5, 0.5, 1.0]]}, EndpointError),
        ({"scores": [["x", 0.2, 0.2]]}, pydantic.ValidationError),
        ({"score": 1}, pydantic.ValidationError),
        (None, httpx.HTTPStatusError),
    ],
)
def test_other_answers_are_no_probabilities(body: Any, error: type[Exception]) -> None:
    upstream = Upstream("http://model.test", None, 5)
    transport = httpx.MockTransport(lambda request: httpx.Response(500 if body is None else 200, json=body))
    upstream._client = httpx.Client(transport=transport, base_url="http://model.test")
    with pytest.raises(error):
        upstream.probabilities("ETH", [1], [[2], [3]], [4, 5, 6])


# --- servers that fail and come back


@contextmanager
def other(kind: str, port: int, parameters: Parameters) -> Iterator[subprocess.Popen]:
    """A process that speaks as one of the two do, killed at the end."""
    script = str(REPOSITORY / "tests/scoring_server.py")
    command = [sys.executable, "-W", "ignore", script, kind, str(port), parameters.name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with listen("127.0.0.1", 0) as one:
        return int(one.getsockname()[1])


def counted(client: httpx.Client, name: str) -> float:
    lines = [line.split()[-1] for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(map(float, lines))


class Load:
    """Clients that ask without pause, and what they were answered."""

    def __init__(self, client: httpx.Client, threads: int) -> None:
        self.statuses: list[int] = []
        self._client, self._ended = client, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        while not self._ended.is_set():
            request = asked({"book_imbalance": number / 10}, side="buy" if number % 2 else "sell")
            self.statuses.append(self._client.post("/decide", json=request).status_code)

    def more(self, count: int) -> None:
        """Wait until so many more were answered."""
        until = len(self.statuses) + count
        waited_for(lambda: len(self.statuses) >= until)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_no_request_fails_while_an_upstream_is_killed_and_comes_back(kind: str, parameters: Parameters) -> None:
    port = free_port()
    address, name = f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
    scored, here = (f'hyperdapo_scored_prompts_total{{by="{by}"}}' for by in (name, "in-process"))
    with (
        other(kind, port, parameters) as first,
        served(parameters, [address]) as (client, service),
        Load(client, 4) as load,
    ):
        assert client.get("/healthz").json()["upstreams"] == {name: True}
        load.more(15)
        assert counted(client, scored) >= 15 and counted(client, here) == 0, "the upstream reads all there is"
        remote = client.post("/decide", json=asked()).json()["probabilities"]
        first.kill()
        waited_for(lambda: not service.upstreams[0].well)
        load.more(15)
        assert counted(client, "hyperdapo_failovers_total") >= 1 and counted(client, here) >= 15
        assert client.get("/healthz").json() | {"waiting": 0} == {
            "status": "ok",
            "assets": ["BTC", "ETH"],
            "waiting": 0,
            "upstreams": {name: False},
        }
        local = client.post("/decide", json=asked()).json()["probabilities"]
        np.testing.assert_allclose(list(remote.values()), list(local.values()), atol=1e-4)
        with other(kind, port, parameters):
            waited_for(lambda: service.upstreams[0].well)
            before = counted(client, scored)
            load.more(15)
            assert counted(client, scored) > before, "it is used again"
            load.__exit__()
    assert set(load.statuses) == {200} and len(load.statuses) >= 45


def test_one_service_reads_for_another(parameters: Parameters, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "a token that nobody guesses"
    monkeypatch.setenv("HYPERDAPO_UPSTREAM_TOKEN", token)
    with served(parameters, token=token) as (behind, _):
        address = str(behind.base_url)
        with served(parameters, [address, address]) as (client, service):
            assert [one.well for one in service.upstreams] == [True, True]
            service.upstreams[0].load = 5
            here = client.post("/decide", json=asked()).json()
            assert (service.upstreams[0].load, service.upstreams[1].load) == (5, 0), "the other one was asked"
            assert counted(client, 'hyperdapo_scored_prompts_total{by="in-process"}') == 0
            own = behind.post("/decide", json=asked(), headers={"authorization": f"Bearer {token}"}).json()
            assert own["order"] == here["order"]
            np.testing.assert_allclose(*(list(one["probabilities"].values()) for one in (own, here)), atol=1e-4)


def faulty(fault: str, real: httpx.Client) -> httpx.MockTransport:
    """An upstream between the service and a real one, that does not answer, has no time, takes long, or lies."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and fault != "silent":
            return real.request(request.method, request.url.path)
        if fault == "busy":
            return httpx.Response(503, json={"error": {}})
        if fault == "lying":
            asked = json.loads(request.content)
            row = [0.94] + [0.01] * 6
            return httpx.Response(200, json={"scores": [row] * len(asked["items"])})
        if fault == "slow":
            time.sleep(1)
        raise httpx.ReadTimeout("nothing came")

    return httpx.MockTransport(answer)


@pytest.mark.parametrize("fault", ["silent", "busy", "lying", "slow"])
def test_an_upstream_that_fails_or_lies_is_passed_over(fault: str, parameters: Parameters) -> None:
    quick = parameters.model_copy(update={"serving": parameters.serving.model_copy(update={"upstream_s": 0.5})})
    with served(parameters) as (behind, _), served(quick, [str(behind.base_url)]) as (client, service):
        (upstream,) = service.upstreams
        waited_for(lambda: upstream.well)
        real = upstream._client
        upstream._client = httpx.Client(transport=faulty(fault, real), base_url=str(behind.base_url))
        if fault == "lying":
            upstream.well = False  # as after a failure: the next look compares its probabilities with those here
            time.sleep(3 * parameters.serving.health_every_s)
            assert not upstream.well
        for _ in range(3):
            assert client.post("/decide", json=asked()).status_code == 200
        assert counted(client, 'hyperdapo_scored_prompts_total{by="in-process"}') == 3
        assert counted(client, "hyperdapo_failovers_total") == 3 or fault != "busy"
        assert upstream.well == (fault == "busy")
        upstream._client = real
        waited_for(lambda: upstream.well)
        client.post("/decide", json=asked())
        assert counted(client, f'hyperdapo_scored_prompts_total{{by="{upstream.name}"}}') == 1
