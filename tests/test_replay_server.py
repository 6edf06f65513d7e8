"""The replay server, asked by the real Tardis client and by plain HTTP."""

import asyncio
import gzip
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard
from tardis_dev import Channel, replay

from faults import Faults, serve
from hyperdapo import stages
from hyperdapo.errors import DataError, EndpointError
from hyperdapo.params import load
from hyperdapo.paths import Paths
from hyperdapo.synthetic import replay_server
from hyperdapo.synthetic.replay_server import RecordedSlices, SyntheticSlices, synthetic_market
from hyperdapo.synthetic.tape import CHANNELS

PARAMETERS = load("smoke")
START = PARAMETERS.source.start_ns
MINUTE = 60 * 10**9


@pytest.fixture(scope="module")
def market() -> SyntheticSlices:
    return synthetic_market(PARAMETERS, "ETH")


def _replay(endpoint: str, cache: Path, minutes: int, symbols: list[str], **options: object) -> list[bytes | None]:
    """What the client yields, lines put together again; None for a disconnect."""
    start = datetime.fromtimestamp(options.pop("start_ns", START) / 1e9, UTC)
    end = datetime.fromtimestamp(start.timestamp() + minutes * 60, UTC)

    async def collect() -> list[bytes | None]:
        stream = replay(
            exchange="hyperliquid",
            from_date=start,
            to_date=end,
            filters=[Channel(name, symbols) for name in CHANNELS],
            endpoint=endpoint,
            cache_dir=str(cache),
            decode_response=False,
            **options,
        )
        return [None if entry is None else entry.local_timestamp + b" " + entry.message async for entry in stream]

    return asyncio.run(collect())


def _get(endpoint: str, headers: dict[str, str] | None = None, **query: object) -> tuple[int, bytes, dict[str, str]]:
    url = f"{endpoint}/data-feeds/{query.pop('exchange', 'hyperliquid')}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=60) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_the_real_client_gets_every_line_in_order(market: SyntheticSlices, tmp_path: Path, compression: str) -> None:
    with serve(market) as endpoint:
        lines = _replay(endpoint, tmp_path, 40, ["ETH"], compression=compression)
    assert b"".join(lines) == market.lines(None, START, START + 40 * MINUTE)
    suffix = {"zstd": "*.zst", "gzip": "*.gz"}[compression]
    assert len(list(tmp_path.rglob(suffix))) < 10, "slices of several minutes were not used"


def test_another_coin_and_another_day_are_empty(market: SyntheticSlices, tmp_path: Path) -> None:
    with serve(market) as endpoint:
        assert _replay(endpoint, tmp_path, 3, ["BTC"]) == []
        assert _replay(endpoint, tmp_path, 3, ["ETH"], start_ns=START + 86_400 * 10**9) == []


def test_slices_carry_the_headers_that_the_client_reads(market: SyntheticSlices) -> None:
    with serve(market) as endpoint:
        query = {"from": "2025-08-01T00:00:00.000Z", "offset": 3, "sliceSize": 4}
        _, body, headers = _get(endpoint, {"Accept-Encoding": "zstd, gzip"}, **query)
        assert (headers["Content-Encoding"], headers["x-slice-size"]) == ("zstd", "4")
        assert int(headers["x-suggested-slice-size"]) >= 10
        _, gzipped, headers = _get(endpoint, {"Accept-Encoding": "gzip"}, **query)
        assert headers["Content-Encoding"] == "gzip"
    lines = market.lines(None, START + 3 * MINUTE, START + 7 * MINUTE)
    assert zstandard.decompress(body) == gzip.decompress(gzipped) == lines


@pytest.mark.parametrize(
    "query",
    [
        {"from": "yesterday"},
        {"offset": 1},
        {"from": "2025-08-01", "offset": -1},
        {"from": "2025-08-01", "sliceSize": 0},
        {"from": "2025-08-01", "filters": "{"},
        {"from": "2025-08-01", "filters": '["trades"]'},
        {"from": "2025-08-01", "exchange": "hyperliquit"},
    ],
)
def test_a_bad_request_is_400_with_json(market: SyntheticSlices, query: dict[str, object]) -> None:
    with serve(market) as endpoint:
        status, body, _ = _get(endpoint, **query)
    assert status == 400 and json.loads(body)["message"]


def test_a_key_where_one_is_required(market: SyntheticSlices, tmp_path: Path) -> None:
    with serve(market, api_key="right") as endpoint:
        assert len(_replay(endpoint, tmp_path, 1, ["ETH"], api_key="right")) > 100
        with pytest.raises(urllib.error.HTTPError, match="401"):
            _replay(endpoint, tmp_path, 1, ["ETH"], api_key="wrong")


def test_faults_come_as_ordered(market: SyntheticSlices, tmp_path: Path) -> None:
    faults = Faults(server_error_every=5, rate_limit_every=3, truncate_every=2)
    with serve(market, faults=faults) as endpoint:
        replies = [_get(endpoint, **{"from": "2025-08-01T00:00:00Z", "offset": 1}) for _ in range(6)]
    assert [status for status, _, _ in replies] == [200, 200, 429, 200, 500, 429] and faults.requests == 6
    assert replies[2][2]["Retry-After"] == "1"
    whole, cut = replies[0][1], replies[1][1]
    assert cut == whole[: len(whole) // 2] and int(replies[1][2]["Content-Length"]) == len(cut)
    with pytest.raises(EOFError):
        gzip.decompress(cut)


def test_the_client_survives_a_rate_limit(market: SyntheticSlices, tmp_path: Path) -> None:
    faults = Faults(rate_limit_every=2)
    with serve(market, faults=faults) as endpoint:
        lines = _replay(endpoint, tmp_path, 4, ["ETH"])
    assert b"".join(lines) == market.lines(None, START, START + 4 * MINUTE)
    assert faults.requests > len(list(tmp_path.rglob("*.zst"))), "nothing was refused"


def test_a_taken_port_is_an_error_with_the_fix(market: SyntheticSlices) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EndpointError, match="--port"), replay_server.serve(market, port=taken.getsockname()[1]):
            pass


def _recording(path: Path, asset: str, text: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{asset}.ndjson.gz").write_bytes(gzip.compress(text.replace("COIN", asset).encode()))
    return path


_LINES = """\
2025-08-01T00:00:10.0000000Z {"channel":"bbo","data":{"coin":"COIN","time":1}}
2025-08-01T00:00:59.9999999Z {"channel":"trades","data":[{"coin":"COIN"}]}

2025-08-01T00:02:00.0000000Z {"channel":"bbo","data":{"coin":"COIN","time":2}}
2025-08-01T00:02:01.0000000Z {"channel":"activeAssetCtx","data":{"coin":"COIN"}}
"""


def test_recordings_are_cut_into_minutes_and_filtered(tmp_path: Path) -> None:
    folder = _recording(_recording(tmp_path / "2025-08-01", "ETH", _LINES), "BTC", _LINES).parent
    slices = RecordedSlices(folder)
    lines = _LINES.replace("COIN", "ETH").splitlines(keepends=True)
    eth = frozenset(["ETH"])
    assert slices.lines({"bbo": eth, "trades": eth}, START, START + 3 * MINUTE) == "".join(lines[:4]).encode()
    assert slices.lines({"trades": eth}, START, START + MINUTE) == "".join(lines[1:3]).encode()
    assert slices.lines({"bbo": eth}, START + MINUTE, START + 2 * MINUTE) == b""
    assert slices.lines({"bbo": frozenset(["DOGE"])}, START, START + 3 * MINUTE) == b""
    everything = slices.lines(None, START, START + 3 * MINUTE).splitlines()
    assert len(everything) == 10 and [line[:28] for line in everything if line] == sorted(
        line[:28] for line in everything if line
    )
    assert slices.spans()["ETH"] == ("2025-08-01T00:00Z", "2025-08-01T00:03Z")


def test_the_client_sees_a_recorded_disconnect(tmp_path: Path) -> None:
    slices = RecordedSlices(_recording(tmp_path / "day", "ETH", _LINES))
    with serve(slices) as endpoint:
        lines = _replay(endpoint, tmp_path / "cache", 3, ["ETH"], with_disconnects=True)
    assert [line is None for line in lines] == [False, False, True, False, False]


def test_01_reads_a_folder_of_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    folder = _recording(tmp_path / "day", "ETH", _LINES)
    span = {"from": "2025-08-01T00:00:00Z", "to": "2025-08-01T00:03:00Z"}
    parameters = load("smoke", {"assets": ["ETH"], "source": {"kind": "recordings", "endpoint": str(folder), **span}})
    stages.compute("01_download", parameters, "ETH")
    manifest = json.loads((Paths(parameters.name, "ETH").data / "manifest.json").read_text())
    assert manifest["messages"] == {"l2Book": 0, "bbo": 2, "trades": 1, "activeAssetCtx": 1}
    assert manifest["disconnects"] == 1 and manifest["endpoint"] == str(folder)


@pytest.mark.parametrize("damage", ["cut", "noise", "not gzip"])
def test_a_damaged_recording_is_named(tmp_path: Path, damage: str) -> None:
    path = _recording(tmp_path / "day", "ETH", _LINES) / "ETH.ndjson.gz"
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:-12], "noise": gzip.compress(b"\xff what?\n" + _LINES.encode()), "not gzip": b"no"}[damage]
    )
    with pytest.raises(DataError, match=r"ETH\.ndjson\.gz"):
        RecordedSlices(tmp_path)


def test_a_folder_without_recordings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recordings"):
        RecordedSlices(tmp_path)


def test_a_real_recording_is_served_whole(recordings: Path, tmp_path: Path) -> None:
    path = next((recordings / "hyperliquid").glob("*/ETH.ndjson.gz"))
    recorded = [line for line in gzip.decompress(path.read_bytes()).splitlines(keepends=True) if len(line) > 1]
    start = int(datetime.fromisoformat(recorded[0][:16].decode()).replace(tzinfo=UTC).timestamp()) * 10**9
    with serve(RecordedSlices(path.parent)) as endpoint:
        lines = _replay(endpoint, tmp_path, 60, ["ETH"], start_ns=start)
    assert lines == recorded
