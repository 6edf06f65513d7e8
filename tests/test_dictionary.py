"""The data dictionary of docs/design.md is that of the files that a run leaves."""

import re
from pathlib import Path

import pytest

from exports import export
from hyperdapo import plan
from hyperdapo.execution.strategies import STRATEGIES
from hyperdapo.files import parquet_file, write_json, write_table
from hyperdapo.market import storage
from hyperdapo.market.features import NAMES
from hyperdapo.params import load
from hyperdapo.paths import Paths
from hyperdapo.plan import WRITTEN_BY
from hyperdapo.policy.rivals import RIVALS
from hyperdapo.policy.training import COLUMNS
from hyperdapo.sequential.iteration import BOOSTING
from hyperdapo.stages.backtest import judge_records
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.probes import play_probes
from hyperdapo.times import MINUTE_NS
from level3_files import busy
from smoke import PROFILE, Run
from test_docs import DESIGN, rows

SMOKE = load(PROFILE)
ARROW = {"double": "float64", "large_string": "string", "fixed_size_list<element: double>[20]": "float64[20]"}
TABLES = [name for name in WRITTEN_BY if name.endswith(".parquet")]
OF_RECORDS = ["own_fills.parquet", "fees.parquet", "level3_fills.parquet", "cancel_splits.parquet"]
"""Of an account, a node, and every order by its id, which `smoke` is not given."""


def _entry(name: str) -> str:
    match = re.search(rf"^### {re.escape(name)}$\n(.*?)(?=^#)", DESIGN.read_text(), re.M | re.S)
    assert match, f"the data dictionary lacks {name}"
    return match[1]


def _documented(name: str) -> list[tuple[str, str]]:
    """Column and type in the order of the dictionary, each placeholder written out."""
    values = {
        "feature": list(NAMES),
        "strategy": [*STRATEGIES, "untrained", *SMOKE.training.algorithms, *RIVALS, BOOSTING],
        "h": [f"{horizon:g}" for horizon in SMOKE.orders.markouts_s],
        "again": [str(action) for action in range(len(SMOKE.policy.actions) + 1)],
        "k": [str(action) for action in range(len(SMOKE.policy.actions))],
    }
    columns = []
    for column, dtype, *_ in rows(_entry(name)):
        placeholder = re.search(r"\{(\w+)\}", column)
        each = values[placeholder[1]] if placeholder else [""]
        columns += [(re.sub(r"\{\w+\}", one, column.strip("`")), dtype) for one in each]
    return columns


def _columns(path: Path) -> list[tuple[str, str]]:
    with parquet_file(path) as file:
        assert file.metadata.num_rows > 0
        return [(field.name, ARROW.get(str(field.type), str(field.type))) for field in file.schema_arrow]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 08 makes of an account's records and a node's, of ten minutes of probes, and of a made stream of orders."""
    folder = tmp_path_factory.mktemp("records")
    world, start = World.of(SMOKE, "ETH"), SMOKE.source.start_ns
    end = start + 10 * MINUTE_NS
    market, truth = play_probes(world, start, end, 400)
    files = export(truth, "ETH", folder)
    (folder / "level3").mkdir()
    busy(folder / "level3", seconds=120)
    named = {"account": str(folder), "node_fills": str(files.node_fills), "level3": str(folder / "level3")}
    parameters = load("smoke", {"truth": named, "execution": {"impact_coefficient_bps": 10, "queue_exponent": 1}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDAPO_DATA", str(folder))
        paths = Paths("smoke", "ETH")
        with storage.writer(paths.data) as append:
            append(market.book, market.bbo, market.trades, market.context)
        report = {"asset": "ETH", "sz_decimals": world.sz_decimals, "gaps": [], "begins_ns": start, "ends_ns": end}
        write_json(report, paths.data, "cleaning.json")
        for name, table in judge_records(parameters, paths).items():
            write_table(table, paths.data, name)
        return paths.data


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLES if name not in OF_RECORDS])
def test_a_table_has_the_columns_and_types_of_its_entry(name: str, smoke: Run) -> None:
    of_run = WRITTEN_BY[name] in plan.ACROSS_ASSETS
    assert _columns(smoke.kept.derived / ("" if of_run else SMOKE.assets[0]) / name) == _documented(name)


@pytest.mark.parametrize("name", OF_RECORDS)
def test_a_table_of_records_has_those_of_its_entry(name: str, records: Path) -> None:
    assert _columns(records / name) == _documented(name)


@pytest.mark.parametrize("name", TABLES)
def test_an_entry_names_the_stage_and_units(name: str) -> None:
    assert _entry(name).strip().startswith(WRITTEN_BY[name])
    for column, _, unit, _ in rows(_entry(name)):
        words = {"_bps`": "bps", "_ns`": "ns UTC", "_ms`": "ms", "_usd`": "USD"}
        for ending, expected in words.items():
            assert not column.endswith(ending) or unit.startswith(expected), (name, column)


def test_the_entries_are_those_of_the_tables() -> None:
    assert set(re.findall(r"^### (\w+\.parquet)$", DESIGN.read_text(), re.M)) == set(TABLES)


@pytest.mark.slow
def test_the_laws_are_named(smoke: Run) -> None:
    with parquet_file(smoke.kept.derived / SMOKE.assets[0] / "laws.parquet") as file:
        names = file.read().column("parameter").to_pylist()
    assert re.findall(r"`(\w+)`", _entry("laws.parquet").partition("|")[0]) == names


def test_the_training_log_is_described() -> None:
    described = next(row for row in rows(DESIGN.read_text()) if row[0].endswith("training_log.csv`"))[2]
    assert re.findall(r"`(\w+)`", described) == COLUMNS


def test_json_files_are_described() -> None:
    text = DESIGN.read_text()
    assert all(f"| `{name}` | {stage} |" in text for name, stage in WRITTEN_BY.items() if name.endswith(".json"))
