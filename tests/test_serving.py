"""The decision service: what it decides, what it refuses and how, and that it goes on answering whatever it is sent."""

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import BusyError, EndpointError, MissingInputError, ParameterError, RequestError
from hyperdapo.execution.parents import action_orders
from hyperdapo.market.book import Market
from hyperdapo.market.columns import BookSnapshots, TopOfBook, Trades, empty, select
from hyperdapo.market.features import compute_features, decision_grid
from hyperdapo.market.grid import on_grid
from hyperdapo.params import Parameters, load, remember
from hyperdapo.policy.path import DecisionPath
from hyperdapo.policy.prompts import FEATURES
from hyperdapo.serving import server
from hyperdapo.serving.app import Service
from hyperdapo.serving.batching import Batcher
from hyperdapo.serving.models import DecideRequest
from hyperdapo.serving.states import read_state
from hyperdapo.times import SECOND_NS
from markets import random_market
from served import COLUMNS, NOW_NS, asked, served, train, waited_for

QUICK = {"serving": {"request_s": 1, "max_body_mb": 2}}
TOKEN = "a token that nobody guesses"
SECONDS = 420


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parameters]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDAPO_DATA", str(tmp_path_factory.mktemp("served")))
        patch.setattr(server, "_HEADERS_S", 0.5)
        parameters = load("smoke", QUICK)
        train(parameters)
        yield parameters


@pytest.fixture(scope="module")
def answering(parameters: Parameters) -> Iterator[tuple[httpx.Client, Service]]:
    with served(parameters) as (client, service):
        yield client, service


@pytest.fixture
def client(answering: tuple[httpx.Client, Service]) -> Iterator[httpx.Client]:
    """It still decides after whatever it was sent."""
    yield answering[0]
    assert answering[0].post("/decide", json=asked()).status_code == 200


def frame(*columns: dict[str, float]) -> pd.DataFrame:
    states = pd.DataFrame([COLUMNS | each for each in columns])
    return states.assign(asset="ETH", decision_ns=NOW_NS, mid=4300.15)


def test_it_decides_as_the_path_does(client: httpx.Client, answering: tuple[httpx.Client, Service]) -> None:
    path: DecisionPath = answering[1].paths["ETH"]
    parameters = answering[1].parameters
    top = TopOfBook(*np.array([[1], [1], [4300.1], [np.nan], [4300.2], [np.nan]]))
    market = Market("ETH", 4, empty(BookSnapshots), top, empty(Trades), np.zeros((0, 2), np.int64))
    for side, lean in ((1, 0.9), (1, -0.9), (-1, 0.2)):
        columns = {"book_imbalance": lean, "trade_flow_5m_z": -3 * lean}
        parent = {"order_id": [0], "side": [side], "objective": ["balanced"], "decision_ns": [1]}
        parents = pd.DataFrame(parent | {"arrival_mid": [4300.15], "horizon_s": [60.0]})
        distinct = np.array([[True, True, False, True, True, True, True]])  # in a spread of a tick improving is joining
        expected = path.decide(frame(columns), parents, distinct)[0]
        answer = client.post("/decide", json=asked(columns, side="buy" if side > 0 else "sell")).json()
        order = action_orders(parents, market, parameters.policy.actions, expected.action).iloc[0]
        assert answer["action"] == order["kind"] and answer["order"]["post_only"] == order["post_only"]
        np.testing.assert_allclose(answer["order"]["limit_price"] or np.nan, order["limit_price"])
        assert answer["order"]["limit_price"] is None or on_grid(answer["order"]["limit_price"], 4)
        np.testing.assert_allclose(list(answer["probabilities"].values()), expected.probabilities, atol=1e-5)
        assert list(answer["probabilities"]) == [str(action) for action in parameters.policy.actions]
        assert set(answer["timing_ms"]) == {"queue", "features", "prompt", "forward", "decode", "total"}


def test_many_at_once_are_decided_as_one_by_one(client: httpx.Client) -> None:
    rng = np.random.default_rng(3)
    requests = []
    for asset, side in zip(rng.choice(["BTC", "ETH"], 40), rng.choice(["buy", "sell"], 40), strict=True):
        columns = {name: float(rng.uniform(-0.9, 0.9)) for name in COLUMNS} | {"depth_ratio_10bps": 1.5}
        quotes = {"best_bid": 110000.0, "best_ask": 110001.0} if asset == "BTC" else {}
        requests.append(asked(columns | quotes, asset=str(asset), side=str(side)))
    alone = [client.post("/decide", json=request).json() for request in requests]
    with ThreadPoolExecutor(20) as threads:
        together = list(threads.map(lambda request: client.post("/decide", json=request).json(), requests))
    for one, other in zip(alone, together, strict=True):
        assert (one["action"], one["order"]) == (other["action"], other["order"])
        probabilities = [list(each["probabilities"].values()) for each in (one, other)]
        np.testing.assert_allclose(*probabilities, atol=1e-5)
    assert len({each["action"] for each in alone}) > 1


def test_an_own_order_that_is_the_decision_keeps_its_place(client: httpx.Client) -> None:
    order = client.post("/decide", json=asked()).json()["order"]
    assert order["post_only"] and not order["keep"]
    for price, keeps in ((order["limit_price"], True), (4299.0, False)):
        kept = client.post("/decide", json=asked(own_order={"limit_price": price, "size": 0.1})).json()["order"]
        assert kept == order | {"keep": keeps}


# --- messages of the exchange


def told(market: Market, from_s: float = 0.0) -> list[dict[str, Any]]:
    """The market in the exchange's words, in the order of its stamps; of each second one message of prints."""
    sides = ((market.book.bid_price, market.book.bid_size), (market.book.ask_price, market.book.ask_size))
    messages = []
    for row, ns in enumerate(market.book.exchange_ns):
        levels = [
            [
                {"px": f"{price:.6g}", "sz": str(size), "n": 1}
                for price, size in np.stack(side, axis=2)[row]
                if price > 0
            ]
            for side in sides
        ]
        messages.append((ns, "l2Book", {"coin": "ETH", "time": ns // 10**6, "levels": levels}))
    for ns, *best in zip(*vars(market.bbo).values(), strict=True):
        bbo = [{"px": str(price), "sz": str(size)} for price, size in zip(best[1::2], best[2::2], strict=True)]
        messages.append((ns, "bbo", {"coin": "ETH", "time": ns // 10**6, "bbo": bbo}))
    prints: dict[int, list[dict[str, Any]]] = {}
    for ns, _, price, size, side, tid in zip(*vars(market.trades).values(), strict=True):
        one = {"coin": "ETH", "side": "B" if side > 0 else "A", "px": str(price), "sz": str(size), "tid": int(tid)}
        prints.setdefault(ns // SECOND_NS, []).append(one | {"time": ns // 10**6, "hash": "0x0"})
    messages += [((second + 1) * SECOND_NS, "trades", each) for second, each in prints.items()]
    first_ns = market.book.exchange_ns[0] + from_s * SECOND_NS
    ordered = sorted(messages, key=lambda message: message[0])
    plain = json.loads(
        json.dumps([{"channel": name, "data": data} for ns, name, data in ordered if ns >= first_ns], default=int)
    )
    return list(plain)


def as_stamped(market: Market) -> Market:
    """The market of a recorder that has each message when the exchange stamps it."""

    def received(columns: Any) -> Any:
        ordered = select(columns, np.argsort(columns.exchange_ns, kind="stable"))
        return replace(ordered, local_ns=ordered.exchange_ns)

    return replace(market, **{name: received(getattr(market, name)) for name in ("book", "bbo", "trades")})


@pytest.fixture(scope="module")
def market() -> Market:
    return as_stamped(random_market(7, SECONDS))


def from_messages(market: Market, **changes: Any) -> dict[str, Any]:
    last_ns = int(max(market.book.exchange_ns[-1], market.bbo.exchange_ns[-1], market.trades.exchange_ns[-1]))
    request = asked(messages=told(market), now_ns=last_ns + SECOND_NS) | changes
    return {name: value for name, value in request.items() if name != "features"}


def test_messages_are_read_as_the_pipeline_reads_them(parameters: Parameters, market: Market) -> None:
    request = from_messages(market)
    now_ns = request["now_ns"]
    state = read_state(DecideRequest.model_validate(request), parameters, ["ETH"], 0)
    grid = decision_grid(market, parameters.features.decision_interval_s, (market.top.local_ns[0], now_ns))
    row = compute_features(market, np.append(grid, now_ns), parameters.features).iloc[-1]
    for feature in FEATURES:
        assert state.columns[feature.column] == pytest.approx(row[feature.column], rel=1e-9, abs=1e-9), feature.column
    assert (state.best_bid, state.best_ask, state.ns) == (row["best_bid"], row["best_ask"], now_ns)
    assert state.cold_because == row["cold_because"]


def test_messages_are_decided_on(client: httpx.Client, market: Market) -> None:
    request = from_messages(market)
    answer = client.post("/decide", json=request)
    assert answer.status_code == 200, answer.text
    shuffled = [request["messages"][place] for place in np.random.default_rng(0).permutation(len(request["messages"]))]
    again = client.post("/decide", json=request | {"messages": shuffled}).json()
    assert again["probabilities"] == answer.json()["probabilities"]
    assert answer.json()["mid"] == pytest.approx(market.mid_at(request["now_ns"])[0])
    few = client.post("/decide", json=from_messages(market, messages=told(market, SECONDS - 60)))
    assert few.status_code == 422 and "momentum_5m_bps_z" in few.text and "of the last 300 s" in few.text


BOOK = {"coin": "ETH", "time": NOW_NS // 10**6, "levels": [[{"px": "4300", "sz": "1"}], [{"px": "4301", "sz": "1"}]]}


def message(channel: str = "l2Book", **changes: Any) -> dict[str, Any]:
    return {"channel": channel, "data": BOOK | changes}


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (message(levels=[[], []]), "1 l2Book_empty"),
        (message(levels=BOOK["levels"][::-1]), "1 l2Book_crossed"),
        (message(levels=[[{"px": "nan", "sz": "1"}], BOOK["levels"][1]]), "can be trusted: 1 malformed"),
        (message(levels=[[{"px": "4300", "sz": "-1"}], BOOK["levels"][1]]), "l2Book_non_positive"),
        (message(levels=[BOOK["levels"][0] * 21, BOOK["levels"][1]]), "1 l2Book_too_deep"),
        (message(spread=1.0), "l2Book_aggregated"),
        (message(coin="BTC"), "1 other_coin"),
        (message(time=NOW_NS // 10**6 - 11_000), "the newest message is 11.0 s old, and at most 10 s are allowed"),
        (message(time=NOW_NS // 10**6 + 3_000), "stamped 3.0 s after now"),
        (message(time="soon"), "messages[0] is none of the exchange: Expected `int`"),
        (message("webData2"), "messages[0] is none of the exchange: Invalid value 'webData2'"),
        ({"channel": "trades", "data": []}, "there is no l2Book of ETH among the messages"),
        (message(), "cannot be told from these messages"),
        ({}, "messages[0] is none of the exchange"),
    ],
)
def test_messages_that_cannot_be_trusted_are_refused(sent: dict[str, Any], says: str, client: httpx.Client) -> None:
    answer = client.post("/decide", json={**asked(messages=[sent]), "features": None})
    assert answer.status_code == 422 and says in answer.json()["error"]["message"], answer.text


# --- what is wrong is said


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (asked(asset="ETC"), "unknown asset 'ETC' (did you mean 'ETH'?); there are BTC, ETH"),
        (asked(objective="urgent"), "no adapter was trained for the objective 'urgent', only for balanced"),
        (asked(objective="greedy"), "objective: Input should be 'patient', 'balanced' or 'urgent'"),
        (asked(side="hold"), "side: Input should be 'buy' or 'sell'"),
        (asked(action="take"), "action: Extra inputs are not permitted"),
        (asked(size=0), "size: Input should be greater than 0"),
        (asked(size="0.5"), "size: Input should be a valid number"),
        (asked(size=True), "size: Input should be a valid number"),
        (asked(size=0.00015), "no multiple of 0.0001"),
        (asked(size=0.002), "the order is worth 8.60 USD, and the exchange takes 10 at least"),
        (asked({"best_bid": 4300.3}), "the book is crossed: its best bid is 4300.3, its best ask 4300.2"),
        (asked({"best_bid": 4300.15}), "4300.15 is not on the price grid of ETH"),
        (asked({"best_bid": 0.01, "best_ask": 0.02}, size=5000), "less than 1000 ticks below it"),
        (asked({"depth_ratio_10bps": -1.0}), "features: depth_ratio_10bps cannot be -1"),
        (asked({"book_imbalance": 1e300}), "features.book_imbalance: Input should be less than or equal to"),
        (asked({"book_imbalanse": 0.1}), "no prompt reads 'book_imbalanse' (did you mean 'book_imbalance'?)"),
        (
            asked(features={"decision_ns": NOW_NS, "best_bid": 1.0, "best_ask": 2.0}),
            "the prompt reads book_imb",
        ),
        (asked({"decision_ns": NOW_NS - 20 * SECOND_NS}), "the state is 20.0 s old, and at most 10 s are allowed"),
        (asked({"decision_ns": NOW_NS + 3 * SECOND_NS}), "the state is stamped 3.0 s after now"),
        (asked(now_ns=None), " s old, and at most 10 s are allowed"),
        (asked(features=None), "give either features or messages"),
        (asked(messages=[{}]), "give either features or messages"),
        (asked(own_order={"limit_price": 4300.2, "size": 1}), "an own buy order at 4300.2 cannot rest"),
        (asked(side="sell", own_order={"limit_price": 4300.1, "size": 1}), "an own sell order at 4300.1 cannot rest"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_a_request_that_cannot_be_decided_on_says_why(request_: Any, says: str, client: httpx.Client) -> None:
    answer = client.post("/decide", json=request_)
    assert answer.status_code == 422 and says in answer.json()["error"]["message"], answer.text
    assert "\n" not in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b'{"asset": ', 400),
        (b"\xff\xfe{", 400),
        (b"[" * 100_000, 400),
        (json.dumps(asked(size=1)).replace("0.25", "NaN").encode(), 422),
        (json.dumps(asked(size=1)).replace("0.25", "1e999").encode(), 422),
        (json.dumps(asked(size=1)).replace("0.25", "1" + "0" * 5000).encode(), 400),
        (json.dumps(asked(asset="\ud800")).encode(), 422),
        (json.dumps(asked(asset="E" * 33)).encode(), 422),
        (b"null", 422),
    ],
)
def test_what_is_no_json_is_refused(body: bytes, status: int, client: httpx.Client) -> None:
    answer = client.post("/decide", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status and answer.json()["error"]["code"] == status, answer.text


def test_other_routes_and_forms_are_refused(client: httpx.Client) -> None:
    assert client.get("/decide").status_code == 405 and client.get("/orders").status_code == 404
    plain = client.post("/decide", content=json.dumps(asked()), headers={"content-type": "text/plain"})
    assert plain.status_code == 422, "a page in a browser could send it"


# --- limits


def test_a_large_body_is_refused(client: httpx.Client) -> None:
    large = b'{"asset": "' + b"E" * 2_000_000 + b'"}'
    told_first = client.post("/decide", content=large)
    assert told_first.status_code == 413 and "larger than 2000000 bytes" in told_first.text

    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield large[:100_000]

    assert client.post("/decide", content=parts()).status_code == 413
    endless = (large[:1_000_000] for _ in range(100))
    with suppress(httpx.WriteError, httpx.ReadError):  # hung up on while it is still sending
        assert client.post("/decide", content=endless).status_code == 413


def connected(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)


def test_slow_clients_are_given_up(client: httpx.Client) -> None:
    with connected(client) as body, connected(client) as headers, connected(client) as silent:
        body.sendall(b"POST /decide HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        headers.sendall(b"POST /decide HTTP/1.1\r\nHo")
        begun = time.monotonic()
        answer = body.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 408") and b"after 1 s" in answer + body.recv(10_000)
        assert not headers.recv(10_000) and not silent.recv(10_000) and time.monotonic() - begun < 10
    crowd = [connected(client) for _ in range(200)]
    try:
        for one in crowd:
            one.sendall(b"POST /decide HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert client.post("/decide", json=asked()).status_code == 200
    finally:
        for one in crowd:
            one.close()


def test_a_garbled_request_is_no_request(client: httpx.Client) -> None:
    for text in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"POST /decide HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with connected(client) as one:
            one.sendall(text)
            assert one.recv(10_000).startswith((b"HTTP/1.1 4", b""))


def test_a_full_queue_says_when_to_come_again(parameters: Parameters, monkeypatch: pytest.MonkeyPatch) -> None:
    full = parameters.model_copy(update={"serving": parameters.serving.model_copy(update={"queue": 2, "batch": 1})})
    taken, held, decide = threading.Event(), threading.Event(), DecisionPath.decide

    def slowly(*arguments: Any) -> Any:
        taken.set()
        held.wait(20)
        return decide(*arguments)

    monkeypatch.setattr(DecisionPath, "decide", slowly)
    with served(full) as (client, service), ThreadPoolExecutor(8) as threads:
        first = [threads.submit(client.post, "/decide", json=asked())]
        taken.wait(20)
        first += [threads.submit(client.post, "/decide", json=asked()) for _ in range(2)]
        waited_for(lambda: len(service.decisions) == 2)
        refused = client.post("/decide", json=asked())
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "2 requests wait already" in refused.json()["error"]["message"]
        assert (
            client.get("/healthz").json()["waiting"] == 2 and "hyperdapo_queue_depth 2.0" in client.get("/metrics").text
        )
        held.set()
        assert [each.result().status_code for each in first] == [200] * 3


def test_a_fault_of_its_own_is_told_without_its_cause(parameters: Parameters, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory at 0xdeadbeef")

    with served(parameters) as (client, _):
        with monkeypatch.context() as patch:
            patch.setattr(DecisionPath, "decide", broken)
            answer = client.post("/decide", json=asked())
            assert answer.status_code == answer.json()["error"]["code"] == 500
            assert answer.json()["error"]["message"] == "a fault of the service: see its log"
        assert client.post("/decide", json=asked()).status_code == 200


# --- who may ask


def test_a_token_is_asked_for(parameters: Parameters, capsys: pytest.CaptureFixture) -> None:
    with served(parameters, token=TOKEN) as (client, _):
        for wrong in (None, "", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"):
            headers = {} if wrong is None else {"authorization": wrong.encode("latin-1")}
            for path in ("/decide", "/metrics", "/openapi.json", "/v1/models"):
                refused = client.request("POST" if path == "/decide" else "GET", path, headers=headers)
                assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in refused.text
        assert client.get("/healthz").status_code == 200
        right = client.post("/decide", json=asked(), headers={"authorization": f"Bearer {TOKEN}"})
        assert right.status_code == 200


def test_others_reach_it_only_with_a_token(monkeypatch: pytest.MonkeyPatch, parameters: Parameters) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ParameterError, match=f"--host {host} is reached by others: set HYPERDAPO_TOKEN"):
            server.serve(parameters, None, host, 8000)
    assert server.token_for("127.0.0.1") is server.token_for("::1") is server.token_for("localhost") is None
    monkeypatch.setenv("HYPERDAPO_TOKEN", "short")
    with pytest.raises(ParameterError, match="less than 16 characters"):
        server.token_for("0.0.0.0")
    monkeypatch.setenv("HYPERDAPO_TOKEN", TOKEN)
    assert server.token_for("0.0.0.0") == server.token_for("127.0.0.1") == TOKEN


def test_what_cannot_be_served_is_said_before(parameters: Parameters, tmp_path, monkeypatch) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(EndpointError, match="choose another --host or"),
    ):
        server.serve(parameters, None, "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ParameterError, match="unknown asset 'SOL'"):
        server.service_of(parameters, ["SOL"])
    for address, says in (
        ("ftp://x", "such as http"),
        ("http://u:p@x", "HYPERDAPO_UPSTREAM_TOKEN"),
        ("x:80", "such as"),
        ("http://x:99999", "such as"),
    ):
        with pytest.raises(ParameterError, match=says):
            server.service_of(parameters, ["ETH"], [address])
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    with pytest.raises(MissingInputError, match="--until 05"):
        server.service_of(parameters, ["ETH"])


# --- what is seen of it


def test_metrics_count_what_was_done(client: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = [line.split()[-1] for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
        return float(lines[0]) if lines else 0.0

    action = client.post("/decide", json=asked()).json()["action"]
    names = [
        f'hyperdapo_actions_total{{action="{action}",asset="ETH"}}',
        'hyperdapo_decision_seconds_count{part="forward"}',
        'hyperdapo_scored_prompts_total{by="in-process"}',
        'hyperdapo_requests_total{path="/decide",status="200"}',
        'hyperdapo_stale_refusals_total{asset="ETH"}',
        'hyperdapo_requests_total{path="/decide",status="422"}',
        "hyperdapo_batch_size_count",
    ]
    before = [value(name) for name in names]
    client.post("/decide", json=asked())
    client.post("/decide", json=asked({"decision_ns": 0}))
    assert [value(name) - one for name, one in zip(names, before, strict=True)] == [1.0] * len(names)
    assert all("/orders" not in line for line in client.get("/metrics").text.splitlines())


def test_requests_are_logged_as_json_without_secrets(client: httpx.Client, capsys: pytest.CaptureFixture) -> None:
    record = logging.makeLogRecord({"msg": "request", "fields": {"path": "/decide", "status": 200}})
    line = json.loads(server._Json().format(record))
    assert line["event"] == "request" and line["path"] == "/decide" and line["status"] == 200
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logger = logging.getLogger("hyperdapo.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        client.post("/decide?key=secret", json=asked(), headers={"authorization": "Bearer secret", "cookie": "secret"})
    finally:
        logger.removeHandler(handler)
    told = [server._Json().format(record) for record in heard]
    assert len(told) == 1 and "secret" not in told[0] and '"status": 200' in told[0]


def test_models_and_health_say_what_there_is(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "assets": ["BTC", "ETH"], "waiting": 0, "upstreams": {}}
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["owned_by"], card["parent"]) for card in cards] == [
        ("BTC", "hyperdapo", "tiny-qwen2"),
        ("ETH", "hyperdapo", "tiny-qwen2"),
    ]


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(parameters: Parameters) -> None:
    remember(parameters)
    with server.listen("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
    options = ["--run", parameters.name, "--asset", "ETH", "--port", str(port)]
    command = [sys.executable, "-m", "hyperdapo.cli", "serve", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"serving http://127.0.0.1:{port} for ETH until Ctrl-C\n"
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            waited_for(lambda: answers(client))
            assert client.post("/decide", json=asked()).status_code == 200
            assert client.post("/decide", json=asked(asset="BTC")).status_code == 422
            process.send_signal(signal.SIGINT)
            told, logged = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert told == "stopped\n" and process.returncode == 0
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    requests = [(line["path"], line["status"]) for line in lines if line["event"] == "request"]
    assert ("/decide", 200) in requests and ("/decide", 422) in requests and "Traceback" not in logged


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.ConnectError:
        return False


# --- batches


def test_a_batch_is_what_came_in_time(parameters: Parameters) -> None:
    seen, begin = [], threading.Event()

    def squares(asked: Any, waited_s: Any) -> list[int]:
        begin.wait(10)
        seen.append(list(asked))
        if 13 in asked:
            raise ValueError("thirteen")
        return [one**2 for one in asked]

    limits = parameters.serving.model_copy(update={"batch": 4, "queue": 8, "batch_wait_ms": 1.0})
    batcher: Batcher[int, int] = Batcher(squares, limits)
    first = batcher.submit(1)
    waited_for(lambda: len(batcher) == 0)
    time.sleep(0.05)
    rest = [batcher.submit(number) for number in (2, 3, 4, 5, 6, 13)]
    assert rest[2].cancel(), "nobody waits for it any more"
    with pytest.raises(BusyError, match="8 requests wait already"):
        for _ in range(9):
            batcher.submit(7)
    begin.set()
    assert [first.result(10), rest[0].result(10), rest[3].result(10)] == [1, 4, 25]
    with pytest.raises(RequestError, match="a fault of the service"):
        rest[5].result(10)
    batcher.close()
    assert seen == [[1], [2, 3, 5], [6, 13, 7, 7]]
