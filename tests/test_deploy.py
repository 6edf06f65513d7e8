"""The compose file, the dashboard and docs/deploy.md fit the command, the metrics and the files beside them."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import REPOSITORY
from hyperdapo.cli import _parser
from hyperdapo.params import load
from hyperdapo.policy.models import hub_id
from hyperdapo.serving.metrics import PARTS, Metrics

PAGE = (REPOSITORY / "docs/deploy.md").read_text()
FOLDER = REPOSITORY / "docs/deploy"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "grafana/hyperdapo.json").read_text())


def metrics() -> set[str]:
    """The names that queries can use, those of the service."""
    endings = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    types = re.findall(r"^# TYPE (hyperdapo_\w+) (\w+)$", Metrics().text().decode(), re.M)
    return {name + ending for name, kind in types for ending in endings[kind] if not name.endswith("_created")}


def named(text: str) -> set[str]:
    return set(re.findall(r"\bhyperdapo_[a-z_]+\b", text))


def test_the_dashboard_shows_the_metrics_and_no_others(dashboard: dict[str, Any]) -> None:
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = named(" ".join(queries))
    assert shown <= metrics()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics()}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} == families
    assert all(query.count("(") == query.count(")") for query in queries)
    assert set(re.findall(r'part!?="(\w+)"', " ".join(queries))) <= set(PARTS)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_the_page_explains_the_metrics() -> None:
    told = {name for row in re.findall(r"^\| `hyperdapo_.*$", PAGE, re.M) for name in named(row)}
    assert told == {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics()}


def test_compose_starts_what_the_command_line_knows() -> None:
    for place in (FOLDER / volume.split(":")[0] for one in SERVICES.values() for volume in one.get("volumes", [])):
        assert place.exists() or place.resolve() == REPOSITORY / "data", place
    for name, one in SERVICES.items():
        assert one["restart"] and ("image" in one or "build" in one), name
        assert ":latest" not in one.get("image", ":1") and ":" in one.get("image", ":1")
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", [])), "published to this machine alone"
    build = SERVICES["hyperdapo"]["build"]
    assert (FOLDER / build["context"]).resolve() == REPOSITORY and (REPOSITORY / build["dockerfile"]).is_file()
    options = _parser().parse_args(SERVICES["hyperdapo"]["command"])
    assert options.host == "0.0.0.0" and "HYPERDAPO_TOKEN" in SERVICES["hyperdapo"]["environment"]
    assert options.upstream == [f"http://vllm:{_option(SERVICES['vllm']['command'], '--port')}"]
    assert SERVICES["vllm"]["profiles"] == ["gpu"]


def test_prometheus_and_grafana_find_what_they_show(dashboard: dict[str, Any]) -> None:
    (scrape,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    port = _parser().parse_args(SERVICES["hyperdapo"]["command"]).port
    assert scrape["static_configs"] == [{"targets": [f"hyperdapo:{port}"]}]
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{SERVICES['prometheus']['secrets'][0]}"
    assert COMPOSE["secrets"] == {"token": {"environment": "HYPERDAPO_TOKEN"}}
    (source,) = yaml.safe_load((FOLDER / "grafana/sources.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    (provider,) = yaml.safe_load((FOLDER / "grafana/dashboards.yaml").read_text())["providers"]
    mounted = [Path(volume.split(":")[1]) for volume in SERVICES["grafana"]["volumes"]]
    assert Path(provider["options"]["path"]) in [path.parent for path in mounted]


def test_vllm_is_told_of_the_adapters_of_the_four_assets() -> None:
    """By the page and by compose, which differ in where the data lie."""
    sample = load("sample")
    (command,) = re.findall(r"^    vllm serve (.*)$", PAGE, re.M)
    for words, data in ((shlex.split(command), "data"), (SERVICES["vllm"]["command"], "/data")):
        words = " ".join(words).replace("=", " ").split() if data == "/data" else words
        assert words[0] == hub_id(sample.policy.base_model)
        assert int(_option(words, "--max-lora-rank")) == sample.policy.lora.rank
        assert int(_option(words, "--max-model-len")) == sample.policy.max_length
        folder = f"{data}/plain/models/{{asset}}/{sample.hypotheses.policy}/seed_{sample.training.seeds[0]}"
        each = {asset: folder.format(asset=asset) for asset in sample.assets}
        modules = " ".join(words[words.index("--lora-modules") + 1 :]).replace("=", " ").split()
        assert dict(zip(modules[::2], modules[1::2], strict=True)) == each


def _option(words: list[str], name: str) -> str:
    """The value of an option, written with a blank or with `=`."""
    flat = [part for word in words for part in word.split("=", 1)]
    return flat[flat.index(name) + 1]
