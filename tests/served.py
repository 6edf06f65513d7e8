"""A service on loopback for tests: two assets of the tiny model, adapters that do something, and what to ask them."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.language import calibration
from hyperdapo.policy.models import save_adapter
from hyperdapo.policy.prompts import FEATURES
from hyperdapo.serving.app import Service, application
from hyperdapo.serving.server import listen, server, service_of
from test_models import with_an_adapter

TEMPERATURE = 1.7
COLUMNS = {feature.column: 0.25 for feature in FEATURES}
NOW_NS = 1_754_006_400_000_000_000


def train(parameters: Parameters) -> None:
    """Leave an adapter for each asset where a run would."""
    for asset in parameters.assets:
        paths, seed = Paths(parameters.name, asset), parameters.training.seeds[0]
        folder = paths.adapter(parameters.hypotheses.policy, seed)
        save_adapter(*with_an_adapter(parameters.policy), parameters, folder)
        calibration.write(folder, TEMPERATURE, states=3)


@contextmanager
def served(
    parameters: Parameters, upstreams: Sequence[str] = (), token: str | None = None
) -> Iterator[tuple[httpx.Client, Service]]:
    """The service as `hyperdapo serve` runs it, and a client of it, while the block runs."""
    service = service_of(parameters, parameters.assets, upstreams)
    listening = listen("127.0.0.1", 0)
    running = server(application(service, token), parameters)
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    try:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            yield client, service
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the service ends when it is told to"


def asked(columns: Mapping[str, float] | None = None, **changes: Any) -> dict[str, Any]:
    """A request to buy half an ETH; `columns` are those of the features that differ."""
    state = COLUMNS | {"decision_ns": NOW_NS, "best_bid": 4300.1, "best_ask": 4300.2} | dict(columns or {})
    order = {"asset": "ETH", "side": "buy", "size": 0.5, "objective": "balanced", "now_ns": NOW_NS}
    return order | {"features": state} | changes


def waited_for(what: Any, most_s: float = 60.0) -> None:
    """Return when it is so."""
    until = time.monotonic() + most_s
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
