"""Other servers that read prompts: vLLM, SGLang or this service elsewhere, and the model of this process behind them.

An upstream is used while it is well: it answers, serves the adapter of the asset under the asset's name, and on a few
probes its probabilities are those of the model here. The least loaded of them is asked. Whoever fails is passed over
until the next look finds it well again; the prompt is read by another one, or here, so that no request fails with it.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from hyperdapo.errors import EndpointError, ParameterError
from hyperdapo.market.columns import Floats, Mask
from hyperdapo.params import Parameters
from hyperdapo.policy.path import DecisionPath
from hyperdapo.policy.prompts import CUE, FEATURES, encode_states, letters
from hyperdapo.policy.scoring import cue_ids, letter_ids
from hyperdapo.serving import protocols
from hyperdapo.serving.metrics import Metrics
from hyperdapo.serving.models import ModelList

HERE = "in-process"
_BUSY = (429, 503)  # it is well, and has too much to do
_LOG = logging.getLogger("hyperdapo.serving")
_FAULTS = (httpx.HTTPError, ValidationError, EndpointError, TimeoutError)


class _Scores(BaseModel):
    """What is read of the answer of SGLang."""

    scores: list[list[float]]


class _Data(BaseModel):
    """What is read of the answer of vLLM."""

    data: list[protocols.ItemScore]


class Upstream:
    """One server, by its address.

    Raises
    ------
    ParameterError
        If the address is none of HTTP, or holds a user or password.
    """

    def __init__(self, address: str, token: str | None, timeout_s: float) -> None:
        parts = urlsplit(address)
        try:
            known = parts.scheme in ("http", "https") and bool(httpx.URL(address).host) and parts.port != 0
        except (httpx.InvalidURL, ValueError):
            known = False
        if not known:
            raise ParameterError(f"--upstream {address}: give an address such as http://127.0.0.1:8001")
        if parts.username or parts.password:
            raise ParameterError("--upstream: an address with a password would be logged; set HYPERDAPO_UPSTREAM_TOKEN")
        self.name = parts.netloc
        self.well = False
        self.load = 0
        self._counting = threading.Lock()
        self._timeout_s, self._kind = timeout_s, ""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=address, timeout=timeout_s, headers=headers, trust_env=False)
        self._threads = ThreadPoolExecutor(32, f"upstream {self.name}")
        self._models: frozenset[str] = frozenset()

    def serves(self, asset: str) -> bool:
        """Whether it may be asked about an asset."""
        return self.well and asset in self._models

    @contextmanager
    def loaded(self, prompts: int) -> Iterator[None]:
        """Count so many prompts as under way while the block runs."""
        with self._counting:
            self.load += prompts
        try:
            yield
        finally:
            with self._counting:
                self.load -= prompts

    def look(self) -> frozenset[str]:
        """The assets whose adapters it serves now. Raises `_FAULTS` where it does not answer."""
        answer = self._threads.submit(self._client.get, "/v1/models").result(self._timeout_s).raise_for_status()
        cards = ModelList.model_validate_json(answer.content).data
        self._kind = cards[0].owned_by if cards else ""
        self._models = frozenset(card.id for card in cards)
        return self._models

    def probabilities(self, asset: str, query: Sequence[int], items: Sequence[list[int]], labels: list[int]) -> Floats:
        """(n, K) of the labels after the query and each of n items, all as tokens; rows sum to 1. Raises `_FAULTS`."""
        found = self._told(asset, query, items, labels)
        sums = found.sum(axis=1, keepdims=True)
        if not np.allclose(sums, 1, atol=1e-2):
            raise EndpointError(f"{self.name} answered with probabilities that do not sum to 1")
        shares: Floats = found / sums
        return shares

    def _told(self, asset: str, query: Sequence[int], items: Sequence[list[int]], labels: list[int]) -> Floats:
        """The same as it was told."""
        asked = {"model": asset, "query": list(query), "items": list(items), "apply_softmax": True}
        if self._kind == "vllm":  # which tells of the first label alone
            turns = [{**asked, "label_token_ids": labels[k:] + labels[:k]} for k in range(len(labels))]
            answers = [_Data.model_validate_json(content).data for content in self._post(protocols.VLLM, turns)]
            each = [[one.score for one in sorted(data, key=lambda one: one.index)] for data in answers]
            return self._shares(each, len(labels), len(items)).T
        (content,) = self._post(protocols.SGLANG, [{**asked, "label_token_ids": labels}])
        return self._shares(_Scores.model_validate_json(content).scores, len(items), len(labels))

    def _shares(self, answer: Sequence[Sequence[float]], rows: int, columns: int) -> Floats:
        """An answer of so many rows and columns. Raises EndpointError where it is not one of numbers from 0 to 1."""
        if len(answer) != rows or any(len(row) != columns for row in answer):
            raise EndpointError(f"{self.name} answered of other than {rows} x {columns}")
        shares = np.array(answer, dtype=float)
        if not ((shares >= 0) & (shares <= 1)).all():
            raise EndpointError(f"{self.name} answered with other than probabilities")
        return shares

    def close(self) -> None:
        """Ask no more."""
        self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _post(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """The answers to requests that are sent together, all of them within the time that there is."""
        sent = [self._threads.submit(self._client.post, path, json=body) for body in bodies]
        if late := wait(sent, self._timeout_s).not_done:
            for each in late:
                each.cancel()
            raise TimeoutError
        return [each.result().raise_for_status().content for each in sent]


class ServedPath(DecisionPath):
    """A decision path whose prompts upstreams read, and the model here where none of them can."""

    def __init__(
        self,
        parameters: Parameters,
        adapter: Path,
        asset: str,
        upstreams: Sequence[Upstream],
        metrics: Metrics,
        loaded: tuple[Any, Any] | None = None,
    ) -> None:
        super().__init__(parameters, adapter, loaded=loaded)
        self._asset, self._upstreams, self._metrics = asset, upstreams, metrics
        self._here = threading.Lock()  # a model is read by one thread at a time
        self._query = self.tokenizer(self.instruction)["input_ids"]
        self._cue = cue_ids(self.tokenizer)
        self._labels = letter_ids(self.tokenizer, letters(parameters.policy.actions))
        self._probes = probes(parameters, asset)
        self._known = super().probabilities_of(self._probes) if upstreams else np.zeros((0, 0))

    def probabilities_of(self, prompts: Sequence[str], distinct: Mask | None = None) -> Floats:
        """See `DecisionPath`; by the least loaded upstream that is well, else here."""
        for upstream in sorted(self._upstreams, key=lambda one: one.load):
            if upstream.serves(self._asset):
                with suppress(*_FAULTS):
                    return self._from(upstream, prompts, distinct)
        self._metrics.scored.labels(HERE).inc(len(prompts))
        with self._here:
            return super().probabilities_of(prompts, distinct)

    def next_tokens(self, prompts: Sequence[str]) -> Floats:
        """See `DecisionPath`; always here, so that services which ask each other do not ask in a circle."""
        with self._here:
            return super().next_tokens(prompts)

    def differs(self, upstream: Upstream) -> float:
        """How far the probabilities of an upstream are from those here on the probes, at most. Raises `_FAULTS`."""
        return float(np.abs(self._asked(upstream, self._probes) - self._known).max())

    def _from(self, upstream: Upstream, prompts: Sequence[str], distinct: Mask | None) -> Floats:
        try:
            with upstream.loaded(len(prompts)):
                found = self._asked(upstream, prompts)
        except _FAULTS as error:
            self._metrics.failovers.labels(upstream.name).inc()
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
            if status not in _BUSY:
                upstream.well = False
                self._metrics.healthy.labels(upstream.name).set(0)
            _LOG.warning("failover", extra={"fields": {"upstream": upstream.name, "cause": type(error).__name__}})
            raise
        self._metrics.scored.labels(upstream.name).inc(len(prompts))
        chosen: Floats = found if distinct is None else np.where(distinct, found, 0.0)
        shares: Floats = chosen / chosen.sum(axis=1, keepdims=True)
        return shares

    def _asked(self, upstream: Upstream, prompts: Sequence[str]) -> Floats:
        bodies = [prompt[len(self.instruction) :] for prompt in prompts]
        states = [body.removesuffix(CUE) for body in bodies]
        items = [ids + self._cue for ids in self.tokenizer(states, add_special_tokens=False)["input_ids"]]
        return upstream.probabilities(self._asset, self._query, items, self._labels)


class Watch:
    """Looks at the upstreams again and again, and says which of them are well."""

    def __init__(
        self, upstreams: Sequence[Upstream], paths: Mapping[str, ServedPath], parameters: Parameters, metrics: Metrics
    ) -> None:
        self._upstreams, self._paths, self._metrics = upstreams, paths, metrics
        self._every_s, self._within = parameters.serving.health_every_s, parameters.serving.upstream_within
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._follow, args=(one,), daemon=True) for one in upstreams]
        for upstream in upstreams:
            self.look(upstream)
        for thread in self._threads:
            thread.start()

    def look(self, upstream: Upstream) -> None:
        """Find out whether an upstream is well; one that was not has to answer the probes as the model here does."""
        try:
            served = upstream.look() & self._paths.keys()
            apart = (
                0.0 if upstream.well else max([self._paths[asset].differs(upstream) for asset in served], default=0.0)
            )
            well, cause = bool(served) and apart <= self._within, f"apart by {apart:.3f}" if served else "no asset"
        except _FAULTS as error:
            well, cause = False, type(error).__name__
        if well != upstream.well:
            _LOG.warning("upstream", extra={"fields": {"upstream": upstream.name, "well": well, "cause": cause}})
            self._metrics.failovers.labels(upstream.name).inc(not well)
        upstream.well = well
        self._metrics.healthy.labels(upstream.name).set(well)

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for upstream in self._upstreams:
            upstream.close()

    def _follow(self, upstream: Upstream) -> None:
        while not self._ended.wait(self._every_s):
            self.look(upstream)


def probes(parameters: Parameters, asset: str) -> list[str]:
    """Prompts of a buy and a sell in three states, by which two models are told apart."""
    leans = np.tile([-0.8, 0.0, 0.8], 2)
    states = pd.DataFrame({feature.column: np.zeros(len(leans)) for feature in FEATURES})
    states = states.assign(asset=asset, decision_ns=0, mid=1000.0, depth_ratio_10bps=1.0, volume_profile=0.5)
    states = states.assign(book_imbalance=leans, book_pressure_50bps=leans)
    objective = parameters.orders.objectives[0]
    orders = {"order_id": np.arange(len(leans)), "side": np.repeat([1, -1], 3), "objective": objective}
    parents = pd.DataFrame(orders | {"horizon_s": parameters.orders.rules[objective].horizon_s})
    return encode_states(states, parents, parameters.policy.actions, parameters.policy.prompt_style)
