"""Two thousand requests made from the service's own document: each gets an answer that the document knows."""

from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi import checks

from hyperdapo.params import load
from hyperdapo.policy.prompts import CUE, instruction
from served import asked, served, train

EACH = {"/decide": 400, "/generative_scoring": 300, "/v1/score": 300}  # right ones, and as many that are wrong
REFUSED = {"checks": {"negative_data_rejection": {"expected-statuses": [400, 404, 413, 422]}}}
OPENING = instruction(load("smoke").policy.actions)
HELD = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDAPO_DATA", str(tmp_path_factory.mktemp("served")))
        parameters = load("smoke", {"policy": {"lora": {"layers": 2}}})
        train(parameters)
        with served(parameters) as (client, _):
            yield client


def within_reach(case: Case) -> Case:
    """A market that could be, a model that is there: what is right with a request is not hidden then."""
    if case.operation.path == "/decide":
        if case.body.get("features"):
            case.body |= {"now_ns": case.body["features"]["decision_ns"], "asset": "ETH", "size": 0.5}
            case.body["features"] |= {"best_bid": 4300.1, "best_ask": 4300.2}
            case.body.pop("own_order", None)
    else:
        case.body |= {"model": "ETH", "item_first": False, "label_token_ids": [5, 30, 100]}
        if all(isinstance(item, str) for item in case.body["items"]):
            case.body |= {"query": OPENING, "items": [item + CUE for item in case.body["items"]]}
    return case


def all_of(operation: schemathesis.APIOperation, mode: GenerationMode, count: int) -> Counter[str]:
    """Send so many requests to a route, and count what was answered; it must be what the document says."""
    answered: Counter[str] = Counter()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode).map(within_reach if mode is GenerationMode.POSITIVE else lambda case: case))
    def ask(case: Case) -> None:
        answer = case.call_and_validate(checks=HELD)
        answered[f"{mode.value} {answer.status_code}"] += 1

    ask()
    return answered


@pytest.mark.slow
def test_whatever_the_document_allows_is_answered_as_it_says(client: httpx.Client) -> None:
    config = schemathesis.Config.from_dict(REFUSED)
    document = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json", config=config)
    operations = {result.ok().path: result.ok() for result in document.get_all_operations()}
    assert set(operations) == {*EACH, "/healthz", "/metrics", "/v1/models"}
    sent = 0
    for path, count in EACH.items():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            sent += all_of(operations[path], mode, count).total()
    assert sent >= 2000
    for path in operations.keys() - EACH.keys():
        operations[path].Case().call_and_validate(checks=HELD)
    assert client.post("/decide", json=asked()).status_code == 200
