"""What stages leave for one another: whole or absent, and no bit of it other than its writer left it."""

import json
import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

import flips
from conftest import REPOSITORY
from feeds import download_synthetic
from hyperdapo import files, plan
from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.feed import download
from hyperdapo.feed.clean import preprocess
from hyperdapo.files import WRITTEN_BY, checksum_of, read_assets, read_json, read_table, write_json, write_table
from hyperdapo.market import storage
from hyperdapo.market.book import Market
from hyperdapo.market.columns import TopOfBook
from hyperdapo.market.storage import ahead, threads
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths

SHORT = {"assets": ["ETH"], "source": {"to": "2025-08-01T00:03:00Z"}}


def test_each_table_is_in_the_header_of_its_writer() -> None:
    for name, stage in WRITTEN_BY.items():
        header = nbformat.read(REPOSITORY / "notebooks" / f"{stage}.ipynb", as_version=4).cells[0].source
        writes = next(line for line in header.splitlines() if line.startswith("- **Writes:**"))
        assert ("LoRA adapters" if name == plan.MODELS else f"`{name}`") in writes


def test_a_stage_reads_what_stages_before_it_write() -> None:
    for stage, names in plan.READS.items():
        assert all(WRITTEN_BY[name] < stage for name in names), stage
        assert stage == plan.STAGES[0] or plan.STAGES[0] in plan.before(stage)


def test_nothing_else_reads_or_writes_parquet() -> None:
    """Checksums are written and compared in one place; what goes around it would not."""
    raw = re.compile(r"read_parquet|to_parquet|ParquetFile\(|ParquetWriter\(|ParquetDataset|pq\.(read|write)_table")
    folders = {"lib": "**/*.py", "benchmarks": "*.py", "notebooks": "*.ipynb"}
    sources = [path for folder, names in folders.items() for path in (REPOSITORY / folder).glob(names)]
    found = {path.name: raw.findall(path.read_text()) for path in sources if raw.search(path.read_text())}
    assert found.keys() == {"files.py"}
    text = (REPOSITORY / "lib/hyperdapo/files.py").read_text()
    assert len(found["files.py"]) == 3
    assert text.count("page_checksum_verification=True") == 2 and text.count("write_page_checksum=True") == 1


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    return Paths("smoke", "ETH")


def test_tables_of_several_assets_come_back_one_below_the_other(paths: Paths) -> None:
    for asset in ("BTC", "ETH"):
        write_table(pd.DataFrame({"asset": [asset], "order_id": [1]}), paths.of(asset).data, "orders")
    assert read_assets(paths, ["BTC", "ETH"], "orders")["asset"].tolist() == ["BTC", "ETH"]
    with pytest.raises(MissingInputError, match="hyperdapo run --profile smoke --until 07"):
        read_table(paths.of("BTC").data, "decisions")


def test_columns_come_as_they_are_asked_for(paths: Paths) -> None:
    table = pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan], "c": ["x", None]})
    write_table(table, paths.data, "orders")
    pd.testing.assert_frame_equal(read_table(paths.data, "orders", ["c", "a"]), table[["c", "a"]])
    pd.testing.assert_frame_equal(read_table(paths.data, "orders"), table)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "no record", "odd record"])
def test_what_is_not_what_was_written_is_refused(paths: Paths, damage: str) -> None:
    path = write_table(pd.DataFrame({"a": range(1000)}), paths.data, "features")
    if damage == "other":
        other = write_table(pd.DataFrame({"a": range(1000, 2000)}), paths.of("BTC").data, "features")
        path.write_bytes(other.read_bytes())
    elif damage == "no record":
        checksum_of(path).unlink()
    elif damage == "odd record":
        checksum_of(path).write_bytes(b"\xff\xfe")
    else:
        path.write_bytes(path.read_bytes()[: -100 if damage == "cut" else 0])
    command = "hyperdapo run --profile smoke --force 03$"
    with pytest.raises(DataError, match=rf"{re.escape(str(path))} is not what 03_features wrote .*Run: {command}"):
        read_table(paths.data, "features")


def test_a_table_of_all_assets_names_no_asset(paths: Paths) -> None:
    profile = Paths("smoke")
    write_table(pd.DataFrame({"a": [1]}), profile.data, "specialists").write_bytes(b"")
    with pytest.raises(DataError, match=r"hyperdapo run --profile smoke --force 06$"):
        read_table(profile.data, "specialists")


def test_a_file_is_hashed_once_for_all_its_parts(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = Counter[str]()
    original = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: (hashed.update([path.name]), original(path))[1])
    write_json({"gaps": []}, paths.data, "split.json")
    hashed.clear()
    for _ in range(5):
        assert read_json(paths.data, "split.json") == {"gaps": []}
    assert hashed == {"split.json": 1}
    write_json({"gaps": [1]}, paths.data, "split.json")
    assert read_json(paths.data, "split.json") == {"gaps": [1]}


def test_a_failed_writer_leaves_file_and_record_as_they_were(paths: Paths) -> None:
    write_json({"kept": 1}, paths.data, "split.json")
    with pytest.raises(RuntimeError), files.recorded(paths.data / "split.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(paths.data, "split.json") == {"kept": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parameters, Path]:
    """Three minutes of a synthetic market after 01 and 02, small enough to read again and again."""
    folder = tmp_path_factory.mktemp("flips")
    few = {"features": {"warmup_s": 1, "window_s": 2}, "orders": {"rules": {"balanced": {"horizon_s": 1}}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDAPO_DATA", str(folder))
        parameters = load("smoke", SHORT | few)
        download_synthetic(parameters, "ETH", Paths(parameters.name, "ETH"))
        preprocess(parameters, "ETH", Paths(parameters.name, "ETH"))
    return parameters, folder


def test_no_flipped_bit_is_silent(made: tuple[Parameters, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, folder = made
    monkeypatch.setenv("HYPERDAPO_DATA", str(folder))
    write_table(
        pd.DataFrame({"a": np.arange(500.0), "b": ["x", "y"] * 250}), Paths(parameters.name, "ETH").data, "features"
    )
    ended = dict(flips.experiment(folder, parameters, 20))
    assert {"slices, read by 02", "book.parquet", "cleaning.json", "features.parquet"} <= set(ended)
    for name, counts in ended.items():
        assert counts.total() == 20
        if not name.endswith("alone"):
            assert counts["silent"] == 0, (name, counts)
        if not name.startswith(("checksums", "manifest")) and not name.endswith("alone"):
            assert counts["noticed"] == 20 or "arrive" in name, (name, counts)


@pytest.mark.parametrize("count", ["2", "5"])
def test_threads_change_no_byte(
    made: tuple[Parameters, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    parameters, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", count)
    paths = Paths(parameters.name, "ETH")
    before = {path.name: path.read_bytes() for path in paths.data.glob("*.*")}
    shutil.rmtree(paths.data / "checksums")
    assert preprocess(parameters, "ETH", paths) and len(download.downloaded(parameters, "ETH", paths)) == 3
    assert {path.name: path.read_bytes() for path in paths.data.glob("*.*")} == before
    next(paths.cache.rglob("01.json.*")).write_bytes(b"")
    with pytest.raises(DataError, match=r"01\.json.*--force 01"):
        preprocess(parameters, "ETH", paths)
    assert (paths.data / "book.parquet").read_bytes() == before["book.parquet"]


def test_ahead_keeps_the_order_and_few_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    begun, taken = [], 0

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    for number in ahead(work, range(40)):
        assert number == taken and len(begun) <= taken + 6
        taken += 1
    assert taken == 40
    for given, expected in {"3": 3, "": len(os.sched_getaffinity(0)), "many": len(os.sched_getaffinity(0))}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert threads() == expected


def test_pages_carry_checksums(paths: Paths) -> None:
    """What the record does not see, a failing disk after the file was confirmed, a page's own checksum does."""
    path = write_table(pd.DataFrame({"a": np.random.default_rng(0).random(5000)}), paths.data, "features")
    whole = path.read_bytes()
    path.write_bytes(whole[:20_000] + bytes([whole[20_000] ^ 1]) + whole[20_001:])
    with pytest.raises(DataError, match="CRC"), files.parquet_file(path) as file:
        file.read()


def test_a_table_is_opened_once_for_all_its_parts(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    hours, rows = 30, 7
    local_ns = np.arange(hours * rows) * (3600 * 10**9 // rows) + 1
    top = TopOfBook(local_ns, local_ns, *(np.arange(hours * rows, dtype=float) for _ in range(4)))
    with files.parquet_writer(paths.data / "bbo.parquet", storage._table(top).schema) as file:
        for hour in range(hours):
            part = TopOfBook(*(getattr(top, name)[hour * rows : (hour + 1) * rows] for name in vars(top)))
            file.write_table(storage._table(part))
    footers = Counter[str]()
    original = storage.parquet_file

    def counting(path: Path, metadata: object = None) -> object:
        footers["read" if metadata is None else "known"] += 1
        return original(path, metadata)

    monkeypatch.setattr(storage, "parquet_file", counting)
    for from_ns in range(0, hours * 3600 * 10**9, 1800 * 10**9):
        for to_ns in (from_ns, from_ns + 10**9, from_ns + 4 * 3600 * 10**9):
            part = storage.read(TopOfBook, paths.data, (from_ns, to_ns))
            holds = [
                hour
                for hour in range(hours)
                if local_ns[hour * rows] <= to_ns and local_ns[(hour + 1) * rows - 1] >= from_ns
            ]
            first = max((holds[0] if holds else int((local_ns[rows - 1 :: rows] < from_ns).sum())) - 1, 0)
            last = holds[-1] + 1 if holds else int((local_ns[::rows] <= to_ns).sum())
            assert part.local_ns.tolist() == local_ns[first * rows : last * rows].tolist()
    assert footers == {"read": 1, "known": hours * 2 * 3}


def test_a_market_whose_report_was_edited_is_refused(made: tuple[Parameters, Path], tmp_path: Path) -> None:
    folder = tmp_path / "smoke" / "ETH"
    folder.mkdir(parents=True)
    source = made[1] / made[0].name / "ETH"
    for path in [*source.glob("*.parquet"), source / "cleaning.json", *source.glob("checksums/*")]:
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert len(Market.load(folder).book.local_ns)
    report = json.loads((folder / "cleaning.json").read_text())
    (folder / "cleaning.json").write_text(json.dumps(report | {"gaps": []}, indent=2) + "\n")
    with pytest.raises(DataError, match=r"cleaning\.json is not what 02_preprocess wrote.*--force 02$"):
        Market.load(folder)
