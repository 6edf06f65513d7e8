"""A finished run is judged on a span that it has not seen: nothing is trained, the ledger has a line more."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from hyperdapo.cli import main
from hyperdapo.errors import ParameterError
from hyperdapo.evidence.hypotheses import ledger, registered
from hyperdapo.params import load
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.studies import judgement
from smoke import Run

DAY_AFTER = {"source": {"from": "2025-08-02T00:00:00Z", "to": "2025-08-02T00:40:00Z"}}


def test_only_the_span_may_differ() -> None:
    learned = load("smoke")
    parameters = judgement.unseen(learned, DAY_AFTER)
    assert parameters.source.start.day == 2 and parameters.name.startswith("smoke-")
    with pytest.raises(ParameterError, match="only source may differ, not execution"):
        judgement.unseen(learned, DAY_AFTER | {"execution": {"requote_s": 5}})
    with pytest.raises(ParameterError, match="smoke has seen 2025-08-01 00:00 to 2025-08-01 00:40"):
        judgement.unseen(learned, {"source": {"from": "2025-08-01T00:39:00Z", "to": "2025-08-01T02:00:00Z"}})
    with pytest.raises(ParameterError, match="has seen"):
        judgement.unseen(learned, {})


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "span.yaml").write_text("source: {from: 2025-08-02T00:00:00Z, to: 2025-08-02T00:40:00Z}")
    assert main(["judge", "--run", "somke", "--params", str(tmp_path / "span.yaml")]) == 1
    assert "did you mean 'smoke'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_adapters_of_a_run_on_another_day(
    smoke: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(smoke.kept.data, tmp_path / "data", copy_function=os.link)
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    span = tmp_path / "span.yaml"
    span.write_text("source: {from: 2025-08-02T00:00:00Z, to: 2025-08-02T00:40:00Z}")
    learned = _adapters(tmp_path / "data/smoke/models")
    assert main(["judge", "--run", "smoke", "--params", str(span), "--name", "day_after"]) == 0
    printed = capsys.readouterr().out
    judged = pd.read_csv(Paths("day_after").tables / "hypotheses.csv")
    assert set(judged["status"]) <= set(registered.STATUSES) and set(judged["asset"]) == {"BTC", "ETH", "all"}
    assert judged["difference_bps"].notna().all() and f"Of {len(judged)} registered hypotheses" in printed
    orders = pd.read_parquet(Paths("day_after", "BTC").data / "orders.parquet")
    assert (orders["decision_ns"] >= pd.Timestamp("2025-08-02").value).all() and (orders["split"] == "test").all()
    assert len(orders["order_id"].unique()) > 100, "all of the span is test"
    assert _adapters(tmp_path / "data/day_after/models") == learned
    (line,) = ledger.read(Paths("smoke").outputs / "ledger.jsonl")
    assert line["by"] == "judge smoke from 2025-08-02 00:00" and "opened once" in printed


def _adapters(models: Path) -> list[Path]:
    """The adapters of the assets, without that of 06, which trades on no day but its own."""
    found = (path.relative_to(models) for path in models.rglob("*.safetensors"))
    return sorted(path for path in found if path.parts[0] != GENERALIST)
