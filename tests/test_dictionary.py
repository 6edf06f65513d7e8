"""The data dictionary of docs/design.md is that of the files: each table is made by the code that makes it in a run."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hyperdapo.evidence import calibration
from hyperdapo.evidence.calibration import brier_differences
from hyperdapo.execution import laws, strategies, validation
from hyperdapo.execution.parents import parent_orders, replay_candidates
from hyperdapo.files import WRITTEN_BY, parquet_file, write_table
from hyperdapo.market import storage
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Contexts
from hyperdapo.market.features import NAMES, compute_features, decision_grid
from hyperdapo.market.quality import by_minute
from hyperdapo.params import Parameters, load
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.policy.decisions import decide_across, decide_all
from hyperdapo.policy.rewards import with_rewards
from hyperdapo.policy.states import build_pairs
from hyperdapo.policy.training import COLUMNS
from hyperdapo.synthetic.probes import play_probes
from markets import SECOND, random_market
from planted import planted_splits, planted_world, settings, train
from test_docs import DESIGN, rows

EVER = (0, np.iinfo(np.int64).max)
ARROW = {"double": "float64", "large_string": "string", "fixed_size_list<element: double>[20]": "float64[20]"}
TABLES = [name for name in WRITTEN_BY if name.endswith(".parquet")]


def _entry(name: str) -> str:
    match = re.search(rf"^### {re.escape(name)}$\n(.*?)(?=^#)", DESIGN.read_text(), re.M | re.S)
    assert match, f"the data dictionary lacks {name}"
    return match[1]


def _documented(name: str, parameters: Parameters) -> list[tuple[str, str]]:
    """Column and type in the order of the dictionary, each placeholder written out."""
    values = {
        "feature": list(NAMES),
        "h": [f"{horizon:g}" for horizon in parameters.orders.markouts_s],
        "k": [str(action) for action in range(len(parameters.policy.offsets_bps))],
    }
    columns = []
    for column, dtype, *_ in rows(_entry(name)):
        placeholder = re.search(r"\{(\w+)\}", column)
        each = values[placeholder[1]] if placeholder else [""]
        columns += [(re.sub(r"\{\w+\}", one, column.strip("`")), dtype) for one in each]
    return columns


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    execution = {"impact_coefficient_bps": 10, "queue_exponent": 1}
    return load("smoke", {"assets": ["ETH"], "execution": execution, "features": {"warmup_s": 60, "window_s": 60}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, parameters: Parameters) -> Iterator[Path]:
    """One of each table, small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDAPO_DATA", str(tmp_path_factory.mktemp("data")))
        place = Paths("smoke", "ETH").data
        market = random_market(seed=5, seconds=1500)
        made = _of_the_market(market, parameters, place) | _of_policies()
        made |= _of_orders(market, made["features"], parameters) | {"calibration": _calibration(parameters)}
        for name, table in made.items():
            write_table(table, place, name)
        yield place


def _of_the_market(market: Market, parameters: Parameters, place: Path) -> dict[str, pd.DataFrame]:
    minute = market.book.local_ns[:: 60 * 2]
    context = Contexts(minute, *(np.full(len(minute), value) for value in (4000.0, 4000.0, 1e-5, 1e4)))
    with storage.writer(place) as append:
        append(market.book, market.bbo, market.trades, context)
    grid = decision_grid(market, 5.0)
    bounds = np.quantile(grid, [0, 0.5, 0.6, 1]).astype(np.int64).tolist()
    split = dict(zip(("train", "validation", "test"), pairwise(bounds), strict=True))
    orders = laws.aggressive_orders(market, *EVER, 1.0)
    law = parameters.laws
    impact = laws.fit_impact(orders, 1000.0, law.block_s, law.confidence).parameters
    fills = laws.fit_fill_curve(laws.reaches(market, grid, 60.0), [0.25, 1.0], law.block_s, law.confidence).parameters
    queue = pd.DataFrame([("queue_exponent", 1.0, 0.5, 2.0, None)], columns=impact.columns)
    return {
        "quality": by_minute(market.book, market.bbo, market.trades, context),
        "features": compute_features(market, grid, parameters.features, split, parameters.clean.max_gap_s),
        "laws": pd.concat([impact, fills, queue], ignore_index=True),
    }


def _of_policies() -> dict[str, pd.DataFrame]:
    """Trainings of one update in a planted world."""
    short, paths = settings(steps=1, algorithms=["dapo"]), Paths("smoke", "BTC")
    splits, (features, _) = planted_splits(short), planted_world(short)
    for own in (paths, paths.of(GENERALIST)):
        log = train(short, own, splits["train"], splits["validation"])
    assert list(log["dapo"].columns) == COLUMNS
    decisions = decide_all(short, paths, features, splits["train"], splits["test"])
    across = decide_across(short, paths, {"BTC": splits["test"]}, "dapo")
    return {"decisions": decisions, "specialists": across}


def _of_orders(market: Market, features: pd.DataFrame, parameters: Parameters) -> dict[str, pd.DataFrame]:
    parents = parent_orders(features, parameters, market)
    outcomes = with_rewards(replay_candidates(market, parents, parameters), parameters.orders)
    trained = strategies.train([(EVER, market)], outcomes)
    tested = parents[parents["split"] == "test"]
    decisions = pd.DataFrame({"order_id": tested["order_id"], "policy": "dapo", "seed": 0, "offset_bps": 0.0})
    prompts = pd.Series("a state", index=parents["order_id"])
    return {
        "outcomes": outcomes,
        "pairs": build_pairs(outcomes, prompts, parameters.policy.offsets_bps),
        "orders": strategies.backtest(market, tested, trained, outcomes, decisions, parameters),
    }


def _calibration(parameters: Parameters) -> pd.DataFrame:
    start = parameters.source.start_ns
    model, sz_decimals = parameters.synthetic.assets["ETH"], parameters.contracts["ETH"].sz_decimals
    published, truth = play_probes("ETH", model, sz_decimals, 1.0, 3, start, start + 600 * SECOND, 400)
    compared = validation.replay_by_queue_model(published, truth, parameters.execution)
    scores = calibration.fill_scores(compared)
    return scores.merge(brier_differences(compared, parameters.evidence, 0), on="queue_model")


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_columns_and_types_of_its_entry(name: str, folder: Path, parameters: Parameters) -> None:
    with parquet_file(folder / name) as file:
        assert file.metadata.num_rows > 0
        schema: pa.Schema = file.schema_arrow
    found = [(field.name, ARROW.get(str(field.type), str(field.type))) for field in schema]
    assert found == _documented(name, parameters)


@pytest.mark.parametrize("name", TABLES)
def test_an_entry_names_the_stage_and_units(name: str) -> None:
    assert _entry(name).strip().startswith(WRITTEN_BY[name])
    for column, _, unit, _ in rows(_entry(name)):
        words = {"_bps`": "bps", "_ns`": "ns UTC", "_ms`": "ms", "_usd`": "USD"}
        for ending, expected in words.items():
            assert not column.endswith(ending) or unit.startswith(expected), (name, column)


def test_the_entries_are_those_of_the_tables() -> None:
    assert set(re.findall(r"^### (\w+\.parquet)$", DESIGN.read_text(), re.M)) == set(TABLES)


def test_the_laws_are_named(folder: Path) -> None:
    with parquet_file(folder / "laws.parquet") as file:
        names = file.read().column("parameter").to_pylist()
    assert re.findall(r"`(\w+)`", _entry("laws.parquet").partition("|")[0]) == names


def test_the_training_log_is_described() -> None:
    described = next(row for row in rows(DESIGN.read_text()) if row[0].endswith("training_log.csv`"))[2]
    assert re.findall(r"`(\w+)`", described) == COLUMNS


def test_json_files_are_described() -> None:
    text = DESIGN.read_text()
    assert all(f"| `{name}` | {stage} |" in text for name, stage in WRITTEN_BY.items() if name.endswith(".json"))
