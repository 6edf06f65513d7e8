"""The exchange's own archive behind the door of 01_download: the same messages as by replay, and clear errors."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from hyperdapo.errors import DataError, MissingInputError, ParameterError
from hyperdapo.feed import download
from hyperdapo.feed.archive import replay_line
from hyperdapo.feed.clean import preprocess
from hyperdapo.market.book import Market
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths

BOOK = {
    "channel": "l2Book",
    "data": {
        "coin": "BTC",
        "time": 1_704_110_400_000,
        "levels": [[{"px": "42727.0", "sz": "0.5", "n": 1}], [{"px": "42728.0", "sz": "1.5", "n": 2}]],
    },
}


def archived(second: float, **changes: object) -> bytes:
    """A line received so many seconds after 2024-01-01 12:00, stamped half a second earlier."""
    minute, rest = divmod(second, 60)
    hour, minute = divmod(int(minute), 60)
    data = BOOK["data"] | {"time": 1_704_110_400_000 + round(1000 * second) - 500} | changes
    entry = {
        "time": f"2024-01-01T{12 + hour:02d}:{minute:02d}:{rest:012.9f}",
        "ver_num": 1,
        "raw": BOOK | {"data": data},
    }
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def mirror(folder: Path, hours: dict[int, bytes]) -> Path:
    for hour, content in hours.items():
        path = folder / "20240101" / str(hour) / "l2Book" / "BTC.lz4"
        path.parent.mkdir(parents=True)
        with pa.CompressedOutputStream(str(path), "lz4") as stream:
            stream.write(content)
    return folder


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    return Paths("smoke", "BTC")


def parameters(folder: Path, begin: str = "12:00", end: str = "13:00") -> Parameters:
    span = {"from": f"2024-01-01T{begin}:00Z", "to": f"2024-01-01T{end}:00Z"}
    source = {"kind": "archive", "endpoint": str(folder), "channels": ["l2Book"]}
    return load("smoke", {"assets": ["BTC"], "source": source | span})


def test_a_line_of_the_archive_is_a_replay_line() -> None:
    stamp, _, message = replay_line(archived(1.138942031)).partition(b" ")
    assert stamp == b"2024-01-01T12:00:01.1389420Z" and json.loads(message)["data"]["coin"] == "BTC"
    assert replay_line(b'{"time":"2024-01-01T12:00:01","ver_num":1,"raw":{}}') == b"2024-01-01T12:00:01.0000000Z {}\n"
    assert replay_line(b"not of an archive") == b"not of an archive\n"


@pytest.mark.slow
def test_hours_become_slices_and_nothing_is_lost(tmp_path: Path, paths: Paths) -> None:
    noise = b"what is this\n"
    hours = {12: b"".join(archived(second) for second in range(1, 3600)) + noise}
    hours[13] = b"".join(archived(second) for second in range(3600, 7200, 2)) + archived(7200.5)
    wanted = parameters(mirror(tmp_path / "mirror", hours), "12:10", "14:00")
    manifest = download.download(wanted, "BTC", paths)
    assert manifest["messages"] == {"l2Book": 3000 + 1800} and manifest["slices"] == 2
    report = preprocess(wanted, "BTC", paths)
    assert report["kept"]["l2Book"] == 3000 + 1800 and report["dropped"] == {"malformed": 1, "outside_slice": 1}
    assert [day["date"] for day in report["days"]] == ["2024-01-01"] and report["gaps"] == []
    asked = download.download(wanted, "BTC", paths)
    assert asked == manifest, "a day that is whole was read again and differs"


def test_a_missing_hour_says_how_to_copy_it(tmp_path: Path, paths: Paths) -> None:
    wanted = parameters(mirror(tmp_path / "mirror", {12: archived(1)}), "12:00", "14:00")
    with pytest.raises(
        MissingInputError, match=r"20240101/13/l2Book/BTC\.lz4 is not there.*aws s3 cp s3://hyperliquid"
    ):
        download.download(wanted, "BTC", paths)
    assert not (paths.data / "manifest.json").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "half a line"])
def test_a_damaged_file_is_named(tmp_path: Path, paths: Paths, damage: str) -> None:
    lines = b"".join(archived(second) for second in range(1, 100))
    folder = mirror(tmp_path / "mirror", {12: lines[:-20] if damage == "half a line" else lines})
    path = next(folder.rglob("*.lz4"))
    if damage != "half a line":
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else b"")
    with pytest.raises(DataError, match=r"BTC\.lz4"):
        download.download(parameters(folder), "BTC", paths)


def test_an_archive_has_books_only() -> None:
    source = {"kind": "archive", "endpoint": "/mirror", "channels": ["l2Book", "trades"]}
    with pytest.raises(ParameterError, match="l2Book only"):
        load("smoke", {"source": source})


def test_the_archived_hour(recordings: Path, tmp_path: Path, paths: Paths) -> None:
    shutil.copytree(recordings / "hyperliquid-archive", tmp_path / "mirror")
    wanted = parameters(tmp_path / "mirror")
    manifest = download.download(wanted, "BTC", paths)
    report = preprocess(wanted, "BTC", paths)
    assert manifest["messages"] == {"l2Book": 5587} and report["kept"]["l2Book"] == 5587 and report["dropped"] == {}
    market = Market.load(paths.data)
    assert (market.book.bid_price[:, 0] < market.book.ask_price[:, 0]).all() and len(market.trades.tid) == 0
    assert 0.4 < report["cadence_s"] < 0.8
