"""The routes: what is asked over HTTP, who answers it, and what is said where it cannot be answered."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

from hyperdapo.errors import HyperdapoError, RequestError, StaleBookError
from hyperdapo.params import Parameters
from hyperdapo.policy.models import hub_id
from hyperdapo.serving import protocols
from hyperdapo.serving.batching import Batcher
from hyperdapo.serving.desk import Desk
from hyperdapo.serving.guard import Guard, refusal
from hyperdapo.serving.metrics import Metrics
from hyperdapo.serving.models import Decided, DecideRequest, Health, ModelCard, ModelList, Refusal
from hyperdapo.serving.protocols import (
    GenerativeScoringRequest,
    GenerativeScoringResponse,
    ScoringRequest,
    ScoringResponse,
    Scribe,
)
from hyperdapo.serving.states import State, read_state
from hyperdapo.serving.upstream import ServedPath, Upstream, Watch

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": why}
    for status, why in {
        400: "it cannot be read",
        401: "the token is wrong",
        404: "there is no such model",
        408: "the body did not come",
        413: "the body is too large",
        422: "it cannot be decided on, or is not what is expected",
        500: "a fault of the service",
        503: "too many wait",
    }.items()
}
_RETRY_S = "1"


class Service:
    """All that answers: paths by asset, the desk behind its queue, the scribe, upstreams and metrics."""

    def __init__(
        self, parameters: Parameters, paths: Mapping[str, ServedPath], upstreams: Sequence[Upstream], metrics: Metrics
    ) -> None:
        self.parameters, self.paths, self.upstreams, self.metrics = parameters, paths, upstreams, metrics
        self._watch = Watch(upstreams, paths, parameters, metrics)
        self._scribe = Scribe(paths, parameters.policy.max_length)
        workers = max(1, len(upstreams))
        self._desk = Desk(parameters, paths)
        self.decisions: Batcher[State, Decided] = Batcher(self._decided, parameters.serving, workers)
        alone = parameters.serving.model_copy(update={"batch": 1})
        self.scores: Batcher[Callable[[], Any], Any] = Batcher(_all, alone)
        metrics.observe_queue(lambda: len(self.decisions) + len(self.scores))

    async def decide(self, request: DecideRequest) -> Decided:
        """What to do. Raises RequestError, BusyError."""
        begun = time.perf_counter()
        read = partial(read_state, request, self.parameters, list(self.paths), time.time_ns())
        try:
            state = read() if request.messages is None else await asyncio.to_thread(read)
        except StaleBookError:
            self.metrics.stale.labels(request.asset).inc()
            raise
        decided = await asyncio.wrap_future(self.decisions.submit(state.timed(time.perf_counter() - begun)))
        self.metrics.observe_decision(decided.asset, decided.action, decided.timing_ms)
        return decided

    async def generative_scoring(self, request: GenerativeScoringRequest) -> GenerativeScoringResponse:
        """What vLLM would answer. Raises as `decide`."""
        answer: GenerativeScoringResponse = await self._scored(partial(self._scribe.generative_scoring, request))
        return answer

    async def score(self, request: ScoringRequest) -> ScoringResponse:
        """What SGLang would answer. Raises as `decide`."""
        answer: ScoringResponse = await self._scored(partial(self._scribe.score, request))
        return answer

    def _decided(self, states: Sequence[State], waited_s: Sequence[float]) -> list[Decided]:
        self.metrics.batches.observe(len(states))
        return self._desk.decide(states, waited_s)

    async def _scored(self, answer: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self.scores.submit(answer))

    def health(self) -> Health:
        """What can be had now."""
        upstreams = {upstream.name: upstream.well for upstream in self.upstreams}
        return Health(status="ok", assets=list(self.paths), waiting=len(self.decisions), upstreams=upstreams)

    def models(self) -> ModelList:
        """The adapters, by asset."""
        base = self.parameters.policy.base_model
        parent, root, now = hub_id(base) or base, self.parameters.name, int(time.time())
        return ModelList(data=[ModelCard(id=asset, created=now, root=root, parent=parent) for asset in self.paths])

    def close(self) -> None:
        """Answer what waits, and end."""
        self.decisions.close()
        self.scores.close()
        self._watch.close()


def _all(asked: Sequence[Callable[[], Any]], _: Sequence[float]) -> list[Any]:
    return [each() for each in asked]


def application(service: Service, token: str | None = None) -> Guard:
    """The service as an ASGI application; its document is at `/openapi.json`. It closes the service when it ends."""

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="HyperDAPO", version="0.1.0", lifespan=alive, docs_url=None, redoc_url=None)
    _add_routes(app, service)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HyperdapoError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    serving, known = service.parameters.serving, frozenset(_document(app, service)["paths"])
    return Guard(app, token, round(serving.max_body_mb * 1e6), serving.request_s, service.metrics, known)


def _document(app: FastAPI, service: Service) -> dict[str, Any]:
    """The document of the interface, which knows what is served."""
    document = app.openapi()
    asked = document["components"]["schemas"]["DecideRequest"]["properties"]
    asked["asset"]["enum"], asked["objective"]["enum"] = list(service.paths), service.parameters.orders.objectives
    return document


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/decide", responses=_REFUSALS)
    async def decide(request: DecideRequest) -> Decided:
        """Choose an order."""
        return await service.decide(request)

    @app.post(protocols.VLLM, responses=_REFUSALS)
    async def generative_scoring(request: GenerativeScoringRequest) -> GenerativeScoringResponse:
        """Say how probable the first label is after each prompt, as vLLM does."""
        return await service.generative_scoring(request)

    @app.post(protocols.SGLANG, responses=_REFUSALS)
    async def score(request: ScoringRequest) -> ScoringResponse:
        """Say how probable each label is after each prompt, as SGLang does."""
        return await service.score(request)

    @app.get("/v1/models", responses=_REFUSALS)
    async def models() -> ModelList:
        """List the adapters."""
        return service.models()

    @app.get("/healthz", responses=_REFUSALS)
    async def health() -> Health:
        """Say what can be had."""
        return service.health()

    @app.get("/metrics", response_class=PlainTextResponse, responses=_REFUSALS)
    async def metrics() -> PlainTextResponse:
        """Tell Prometheus."""
        return PlainTextResponse(service.metrics.text())


async def _invalid(_: Request, error: Exception) -> Response:
    """What does not fit its model, in one sentence of the first fault."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if part != "body"]
    place = ".".join(part for part in parts if part.isidentifier() or part.isdecimal())  # not the kinds of a union
    said = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return _answer(f"the body is no JSON: {first.get('ctx', {}).get('error', said)}", 400)
    return _answer(f"{place}: {said}" if place else said, 422, place or None)


async def _refused(_: Request, error: Exception) -> Response:
    """What was refused on purpose, or a fault that this package knows of."""
    if isinstance(error, HTTPException):
        return _answer(str(error.detail), error.status_code, headers=error.headers)
    status = error.status if isinstance(error, RequestError) else 500
    return _answer(str(error), status, headers={"Retry-After": _RETRY_S} if status == 503 else None)


async def _failed(_: Request, __: Exception) -> Response:
    """What nobody thought of; the server logs it."""
    return _answer("a fault of the service: see its log", 500, headers={"Connection": "close"})


def _answer(message: str, status: int, param: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    return Response(refusal(message, status, param), status, dict(headers or {}), "application/json")
