"""Two runs side by side, from what they left."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hyperdapo.cli import main
from hyperdapo.errors import MissingInputError, ParameterError
from hyperdapo.evidence.comparison import compare, studies, worlds
from hyperdapo.evidence.metrics import TOGETHER, in_blocks, summarise
from hyperdapo.files import write_table
from hyperdapo.params import load, remember
from hyperdapo.paths import Paths
from hyperdapo.times import SECOND_NS
from test_metrics import orders_frame


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def executed(more_bps: float, size: float = 1.0) -> pd.DataFrame:
    """Twenty orders of two strategies, of which the second costs so much more than in another run."""
    costs = {"market": np.linspace(3.0, 5.0, 20), "dapo": np.linspace(1.0, 4.0, 20) + more_bps}
    orders = pd.concat([orders_frame(name, cost, np.zeros(20)) for name, cost in costs.items()], ignore_index=True)
    orders = orders.assign(decision_ns=orders["order_id"] * 60 * SECOND_NS, side=1, size=size, horizon_s=60.0)
    return orders.drop(columns="block")


def left(name: str, orders: pd.DataFrame, **overrides: Any) -> None:
    """What a run of this name leaves for `compare`."""
    parameters = load("smoke", {"assets": ["BTC"], "name": name, **overrides})
    remember(parameters)
    write_table(orders, Paths(name, "BTC").data, "orders")
    metrics = summarise(in_blocks(orders, parameters.evidence.block_s), parameters.evidence, 0)
    write_table(metrics, Paths(name).data, "metrics")


def test_parameters_costs_and_paired_differences() -> None:
    left("one", executed(0.0))
    left("other", executed(0.5), training={"steps": 9})
    tables = compare("one", "other")
    assert tables["parameters"].to_numpy().tolist() == [["training.steps", load("smoke").training.steps, 9]]
    differences = tables["differences"].set_index("strategy")["difference_bps"]
    assert differences["market"] == pytest.approx(0.0) and differences["dapo"] == pytest.approx(0.5)
    costs = tables["costs"].set_index("strategy")
    assert (costs["other value"] - costs["one value"])["dapo"] == pytest.approx(0.5)


def test_orders_that_are_not_the_same_are_not_paired() -> None:
    left("one", executed(0.0))
    left("other", executed(0.0, size=2.0), training={"steps": 9})
    assert compare("one", "other")["differences"].empty


def test_the_command_prints_and_keeps_it(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left("one", executed(0.0))
    left("other", executed(0.5), training={"steps": 9})
    assert main(["compare", "one", "other"]) == 0
    printed = capsys.readouterr().out
    assert "training.steps" in printed and "other minus one" in printed
    folder = places / "outputs" / "one_vs_other"
    assert {path.name for path in folder.iterdir()} == {
        *("parameters.csv", "costs.csv", "differences.csv", "differences.png"),
    }


def test_a_run_that_is_not_there_or_not_finished_is_named() -> None:
    left("one", executed(0.0))
    with pytest.raises(ParameterError, match=r"no run 'on' .did you mean 'one'"):
        compare("one", "on")
    remember(load("smoke", {"seed": 11, "name": "begun"}))
    with pytest.raises(MissingInputError, match="--name begun --until 09"):
        compare("one", "begun")


def test_the_main_results_of_other_worlds_stand_below_where_they_are(places: Path) -> None:
    main = pd.DataFrame({"asset": ["BTC", TOGETHER], "strategy": "dapo", "total_cost_bps": [1.0, 2.0]})
    for name, more in (("planted", 1.0), ("sample", 9.0)):
        Paths(name).tables.mkdir(parents=True)
        main.assign(total_cost_bps=main["total_cost_bps"] + more).to_csv(Paths(name).tables / "main.csv", index=False)
    table = worlds(main, "sample", ["sample", "planted", "null"])
    assert table.set_index("world")["total_cost_bps"].to_dict() == {"sample": 2.0, "planted": 3.0}
    assert "asset" not in table


def test_studies_of_language_stand_one_below_the_other_where_they_are(places: Path) -> None:
    assert studies(["planted", "notices"]).empty
    for name, closed in (("notices", 0.5), ("planted", 0.25)):
        Paths(name).language.mkdir(parents=True)
        found = pd.DataFrame({"policy": ["words"], "gap_closed": [closed]})
        found.to_csv(Paths(name).language / "language.csv", index=False)
    table = studies(["planted", "null", "notices"])
    assert table.set_index("world")["gap_closed"].to_dict() == {"planted": 0.25, "notices": 0.5}
