"""Stage 01 through the real Tardis client: faults, resuming, what belongs together, and clear errors."""

import base64
import gzip
import hashlib
import http.server
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard

from faults import Faults, serve
from feeds import download_synthetic
from hyperdapo.errors import DataError, EndpointError, MissingInputError, ParameterError
from hyperdapo.feed import download
from hyperdapo.feed.slices import Description, SliceFile, cover
from hyperdapo.market.native import local_time
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths
from hyperdapo.synthetic.replay_server import EXCHANGE, RecordedSlices
from hyperdapo.times import MINUTE_NS

START = "2025-09-04T10:00:00Z"
START_NS = 1_756_980_000_000_000_000
MINUTES = 24


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """24 minutes of quotes, one a second, one disconnect, minute 5 silent."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    lines = []
    for second in range(MINUTES * 60):
        if second // 60 != 5:
            sides = [
                {"px": str(4000 + second % 7), "sz": "1.5", "n": 1},
                {"px": str(4010 + second % 7), "sz": "2", "n": 1},
            ]
            quote = {"coin": "ETH", "time": START_NS // 10**6 + 1000 * second, "bbo": sides}
            stamp = f"2025-09-04T10:{second // 60:02d}:{second % 60:02d}.5000000Z"
            lines.append(f"{stamp} {json.dumps({'channel': 'bbo', 'data': quote}, separators=(',', ':'))}\n")
        if second == 700:
            lines.append("\n")
    (folder / "ETH.ndjson.gz").write_bytes(gzip.compress("".join(lines).encode()))
    return folder


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("TARDIS_API_KEY", raising=False)
    return Paths("smoke", "ETH")


def parameters(endpoint: str, minutes: int = MINUTES) -> Parameters:
    end = f"2025-09-04T10:{minutes:02d}:00Z"
    return load(
        "smoke", {"assets": ["ETH"], "source": {"kind": "tardis", "endpoint": endpoint, "from": START, "to": end}}
    )


def content(paths: Paths, wanted: Parameters) -> bytes:
    return b"".join(piece.read() for piece in download.downloaded(wanted, "ETH", paths))


def test_what_was_recorded_arrives_whole(recording: Path, paths: Paths) -> None:
    with serve(RecordedSlices(recording)) as endpoint:
        wanted = parameters(endpoint)
        manifest = download.download(wanted, "ETH", paths)
    assert content(paths, wanted) == gzip.decompress((recording / "ETH.ndjson.gz").read_bytes())
    assert {name: count for name, count in manifest["messages"].items() if count} == {"bbo": (MINUTES - 1) * 60}
    assert (manifest["disconnects"], manifest["empty_minutes"], manifest["retries"], manifest["refetched"]) == (
        1,
        1,
        0,
        0,
    )
    assert (manifest["first_ns"] - START_NS, manifest["last_ns"] - START_NS) == (
        500_000_000,
        MINUTES * MINUTE_NS - 500_000_000,
    )
    assert json.loads((paths.data / "manifest.json").read_text()) == manifest
    received = download.coverage(wanted, paths)
    assert received["bbo"].tolist() == [0 if minute == 5 else 60 for minute in range(MINUTES)]


@pytest.mark.timeout(180)
def test_faults_cost_retries_and_lose_nothing(recording: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tardis_dev._http._get_next_attempt_delay", lambda error, attempts: 0.01)
    with serve(
        RecordedSlices(recording), faults=Faults(server_error_every=4, rate_limit_every=7, truncate_every=3)
    ) as endpoint:
        wanted = parameters(endpoint)
        manifest = download.download(wanted, "ETH", paths)
    assert content(paths, wanted) == gzip.decompress((recording / "ETH.ndjson.gz").read_bytes())
    assert manifest["retries"] > 0 and manifest["refetched"] > 0


def test_an_endpoint_that_only_truncates_is_given_up(recording: Path, paths: Paths) -> None:
    with (
        serve(RecordedSlices(recording), faults=Faults(truncate_every=1)) as endpoint,
        pytest.raises(EndpointError, match="damaged slices"),
    ):
        download.download(parameters(endpoint), "ETH", paths)
    assert not (paths.data / "manifest.json").exists()


def test_only_missing_slices_are_asked_for_again(recording: Path, paths: Paths) -> None:
    faults = Faults()
    with serve(RecordedSlices(recording), faults=faults) as endpoint:
        wanted = parameters(endpoint)
        first = download.download(wanted, "ETH", paths)
        asked = faults.requests
        download.download(wanted, "ETH", paths)
        assert faults.requests == asked, "a day that is whole was asked for again"
        longest = max(download.downloaded(wanted, "ETH", paths), key=lambda piece: piece.end_ns - piece.start_ns)
        longest.path.unlink()
        (paths.data / "manifest.json").unlink()
        again = download.download(wanted, "ETH", paths)
    assert faults.requests - asked == 3, "first, last and middle of the hole"
    assert again["days"][0]["sha256"] == first["days"][0]["sha256"]


def test_a_slice_cut_short_by_a_kill_is_fetched_again(recording: Path, paths: Paths) -> None:
    with serve(RecordedSlices(recording)) as endpoint:
        wanted = parameters(endpoint)
        first = download.download(wanted, "ETH", paths)
        piece = download.downloaded(wanted, "ETH", paths)[1]
        piece.path.write_bytes(piece.path.read_bytes()[:-20])
        (paths.data / "days" / "2025-09-04.json").unlink()
        again = download.download(wanted, "ETH", paths)
    assert again["refetched"] == 1 and again["days"][0]["sha256"] == first["days"][0]["sha256"]


@pytest.mark.parametrize("damage", ["lost", "cut", "flipped", "other lines", "mark lost", "mark flipped"])
def test_a_slice_that_is_not_what_it_was_is_named_and_fetched_again(recording: Path, paths: Paths, damage: str) -> None:
    faults = Faults()
    with serve(RecordedSlices(recording), faults=faults) as endpoint:
        wanted = parameters(endpoint)
        first = download.download(wanted, "ETH", paths)
        path, mark = download.downloaded(wanted, "ETH", paths)[1].path, paths.data / "days" / "2025-09-04.json"
        whole = path.read_bytes()
        if damage == "lost":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "flipped":
            path.write_bytes(whole[:9] + bytes([whole[9] ^ 4]) + whole[10:])
        elif damage == "other lines":
            path.write_bytes(zstandard.compress(zstandard.decompress(whole).replace(b"4000", b"4001")))
        elif damage == "mark lost":
            mark.unlink()
        else:
            mark.write_text(mark.read_text().replace('"disconnects": 1', '"disconnects": 3'))
        named = re.escape(str(mark if "mark" in damage else path))
        with pytest.raises(DataError, match=rf"{named} .*Run: hyperdapo run --profile smoke --force 01$"):
            content(paths, wanted)
        asked = faults.requests
        again = download.download(wanted, "ETH", paths)
        mended = {"mark lost": 0, "mark flipped": 0}.get(damage, 3)
        assert faults.requests - asked == mended, "more than the slice (first, last and middle) was asked for again"
        assert again["days"][0]["sha256"] == first["days"][0]["sha256"]
    assert content(paths, wanted) == gzip.decompress((recording / "ETH.ndjson.gz").read_bytes())


def test_a_slice_is_read_and_unpacked_once_a_stage(
    recording: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = Counter[str]()
    original = SliceFile.unpack
    monkeypatch.setattr(
        SliceFile, "unpack", lambda piece, packed: (unpacked.update([piece.path.name]), original(piece, packed))[1]
    )
    with serve(RecordedSlices(recording)) as endpoint:
        wanted = parameters(endpoint)
        manifest = download.download(wanted, "ETH", paths)
        assert len(unpacked) == manifest["slices"] and set(unpacked.values()) == {1}
        unpacked.clear()
        download.download(wanted, "ETH", paths)
        assert not unpacked
        content(paths, wanted)
        assert len(unpacked) == manifest["slices"] and set(unpacked.values()) == {1}


def _described(texts: list[bytes], start_ns: int, minutes: int) -> tuple[dict[str, list[int]], int, bytes, bytes]:
    """Line by line: messages of each channel and minute, disconnects, first and last stamp."""
    by_minute, disconnects, connected, first, last = {}, 0, True, b"", b""
    for line in b"".join(texts).split(b"\n"):
        if len(line) <= 1:
            disconnects, connected = disconnects + connected, False
        elif name := re.search(rb'"channel"\s*:\s*"(\w+)"', line):
            connected, first, last = True, first or line[:28], line[:28]
            minute = (local_time(line[:16] + b":00.0000000Z") - start_ns) // MINUTE_NS
            row = by_minute.setdefault(name[1].decode(), [0] * minutes)
            if 0 <= minute < minutes:
                row[minute] += 1
    return by_minute, disconnects, first, last


@pytest.mark.parametrize("seed", range(20))
def test_a_description_is_that_of_each_line_by_itself(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    heads = ['{"channel":"', '{"channel": "', '{ "channel":"', '{"data":1,"channel":"', ' {"channel":"', '{"chanel":"']
    names = ["bbo", "l2Book", "trades", "activeAssetCtx", "tradesX", "bb", "other", ""]
    lines = []
    for second in np.sort(rng.integers(-30, 330, 300)).tolist():
        stamp = f"{datetime.fromtimestamp(START_NS // 10**9 + second, UTC):%Y-%m-%dT%H:%M:%S}.1234567Z"
        line = f'{stamp} {rng.choice(heads)}{rng.choice(names)}","data":{{}}}}'
        cut = rng.integers(len(line)) if rng.random() < 0.1 else len(line)
        lines.append(line[:cut].encode() + b"\n" * int(rng.choice([1, 1, 1, 1, 2, 3])))
    held = Description(START_NS, START_NS + 5 * MINUTE_NS)
    cuts = [0, *np.sort(rng.integers(0, len(lines), 3)).tolist(), len(lines)]
    texts = [b"".join(lines[a:b]) for a, b in pairwise(cuts)]
    texts[-1] = texts[-1].rstrip(b"\n") + b"\n" * int(rng.integers(2))
    for number, text in enumerate(texts):
        path = tmp_path / f"{number:02d}.json.zst"
        path.write_bytes(zstandard.compress(text))
        assert held.add(SliceFile(path, 0, 1))
    facts, text = held.summary(), b"".join(texts)
    whole = [text.removesuffix(b"\n")] if text.endswith(b"\n") else [text]
    by_minute, disconnects, first, last = _described(whole, START_NS, 5)
    assert {name: row for name, row in facts["by_minute"].items()} == dict(sorted(by_minute.items()))
    assert facts["disconnects"] == disconnects
    assert (facts["first_ns"], facts["last_ns"]) == (max(local_time(first), 0), max(local_time(last), 0))
    assert facts["sha256"] == hashlib.sha256(text).hexdigest() and facts["slices"] == len(texts)


def test_another_span_or_source_is_not_taken_for_this_one(recording: Path, paths: Paths) -> None:
    with serve(RecordedSlices(recording)) as endpoint:
        download.download(parameters(endpoint, 10), "ETH", paths)
        with pytest.raises(MissingInputError, match="hyperdapo run --profile smoke --until 01"):
            download.downloaded(parameters(endpoint, 20), "ETH", paths)
        ten = content(paths, parameters(endpoint, 10))
        download.download(parameters(endpoint, 20), "ETH", paths)
        assert content(paths, parameters(endpoint, 20)).startswith(ten + b"2025-09-04T10:10:00")
        with pytest.raises(MissingInputError, match="hyperdapo run --profile smoke --until 01"):
            download.downloaded(parameters(endpoint, 10), "ETH", paths)
    with pytest.raises(MissingInputError):
        download.downloaded(parameters("http://127.0.0.1:1/v1", 10), "ETH", paths)


def test_stage_02_before_01_says_what_to_run(paths: Paths) -> None:
    with pytest.raises(MissingInputError, match="hyperdapo run --profile smoke --until 01"):
        download.downloaded(parameters("http://127.0.0.1:1/v1"), "ETH", paths)


def test_an_empty_span_names_asset_span_and_endpoint(recording: Path, paths: Paths) -> None:
    with serve(RecordedSlices(recording)) as endpoint:
        empty = load(
            "smoke",
            {
                "assets": ["ETH"],
                "source": {
                    "kind": "tardis",
                    "endpoint": endpoint,
                    "from": "2025-09-05T10:00:00Z",
                    "to": "2025-09-05T10:03:00Z",
                },
            },
        )
        with pytest.raises(DataError, match=r"no message of ETH from 2025-09-05 10:00 to 2025-09-05 10:03 at http"):
            download.download(empty, "ETH", paths)
    assert not (paths.data / "manifest.json").exists()


def test_an_endpoint_that_is_down_is_told_at_once(paths: Paths) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match=r"is down.*serve-recordings"):
        download.download(parameters(endpoint), "ETH", paths)


@pytest.mark.parametrize("endpoint", ["not an address", "ftp://127.0.0.1/v1", "http:///v1"])
def test_what_is_no_address_is_said_to_be_none(paths: Paths, endpoint: str) -> None:
    with pytest.raises(EndpointError, match=r"source\.endpoint"):
        download.download(parameters(endpoint), "ETH", paths)


def test_a_refused_key_names_the_variable_and_never_the_key(
    recording: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TARDIS_API_KEY", "TD.secret")
    with (
        serve(RecordedSlices(recording), api_key="TD.other") as endpoint,
        pytest.raises(EndpointError, match="TARDIS_API_KEY") as caught,
    ):
        download.download(parameters(endpoint), "ETH", paths)
    assert "TD.secret" not in str(caught.value) + "".join(capfd.readouterr())
    monkeypatch.setenv("TARDIS_API_KEY", "TD.other")
    with serve(RecordedSlices(recording), api_key="TD.other") as endpoint:
        download.download(parameters(endpoint), "ETH", paths)
    assert not [path for path in paths.data.rglob("*") if path.is_file() and b"TD.other" in path.read_bytes()]


def test_a_password_in_an_address_is_refused_before_it_is_stored_anywhere() -> None:
    for endpoint in ("http://me:s3cret@127.0.0.1:9/v1", "https://s3cret@api.example.org/v1"):
        with pytest.raises(ParameterError, match=r"^source: .*~/\.netrc") as caught:
            parameters(endpoint)
        assert "s3cret" not in str(caught.value) and caught.value.__cause__ is None


def test_a_password_of_netrc_reaches_the_endpoint_and_no_file(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password s3cret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    wanted = base64.b64encode(b"me:s3cret").decode()
    line = b'2025-09-04T10:00:01.5000000Z {"channel":"bbo","data":{}}\n'
    with web_server(200, gzip.compress(line), {"x-slice-size": "1"}, f"Basic {wanted}") as endpoint:
        assert download.download(parameters(endpoint, 1), "ETH", paths)["messages"]["bbo"] == 1
        netrc.write_text("machine 127.0.0.1 login me password wrong\n")
        with pytest.raises(EndpointError, match="401") as caught:
            download.download(parameters(endpoint, 2), "ETH", paths)
    assert "wrong" not in str(caught.value)
    written = [path.read_bytes() for path in paths.data.rglob("*") if path.is_file()]
    assert written and not [content for content in written if b"s3cret" in content or wanted.encode() in content]


@contextmanager
def web_server(
    status: int, body: bytes, headers: Mapping[str, str] | None = None, authorization: str | None = None
) -> Iterator[str]:
    """Something that speaks HTTP; without more headers, not Tardis's protocol."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            refused = authorization is not None and self.headers["Authorization"] != authorization
            answer = b"refused" if refused else body
            self.send_response(401 if refused else status)
            self.send_header("Content-Length", str(len(answer)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>hello</html>"), (404, b"not here")])
def test_a_server_of_another_kind_is_recognised(paths: Paths, status: int, body: bytes) -> None:
    with web_server(status, body) as endpoint, pytest.raises(EndpointError, match="replay protocol"):
        download.download(parameters(endpoint), "ETH", paths)


def test_patience_is_bounded_and_says_why(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PATIENCE_S", 1.0)
    with web_server(503, b"later") as endpoint, pytest.raises(EndpointError, match=r"after 1 retries.*503"):
        download.download(parameters(endpoint), "ETH", paths)


def test_a_cover_takes_the_longest_slices_and_names_holes(tmp_path: Path) -> None:
    hour = tmp_path / "feeds" / EXCHANGE / "abc" / "2025" / "09" / "04" / "10"
    hour.mkdir(parents=True)
    for name in (
        "00.json.zst",
        "01.size-3.json.zst",
        "01.json.gz",
        "06.size-30.json.zst",
        "04.json.zstabc.unconfirmed",
    ):
        (hour / name).write_bytes(b"")
    taken, missing = cover(tmp_path, START_NS, START_NS + 10 * MINUTE_NS)
    spans = [((piece.start_ns - START_NS) // MINUTE_NS, (piece.end_ns - START_NS) // MINUTE_NS) for piece in taken]
    assert spans == [(0, 1), (1, 4)]
    assert [((a - START_NS) // MINUTE_NS, (b - START_NS) // MINUTE_NS) for a, b in missing] == [(4, 10)]


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_every_truncation_of_a_slice_is_noticed(tmp_path: Path, suffix: str) -> None:
    lines = np.random.default_rng(0).bytes(5000)
    whole = zstandard.compress(lines) if suffix == "zst" else gzip.compress(lines)
    path = tmp_path / f"00.json.{suffix}"
    path.write_bytes(whole)
    assert SliceFile(path, 0, 1).read() == lines
    for cut in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="damaged"):
            SliceFile(path, 0, 1).read()


class TestSynthetic:
    def test_it_comes_through_the_same_client(self, paths: Paths) -> None:
        first = short_synthetic(seed=7)
        manifest = download_synthetic(first, "ETH", paths)
        assert all(manifest["messages"].values()) and manifest["endpoint"] == "the synthetic exchange"
        other = short_synthetic(seed=8)
        with pytest.raises(MissingInputError):
            download.downloaded(other, "ETH", paths)
        assert download_synthetic(other, "ETH", paths)["days"][0]["sha256"] != manifest["days"][0]["sha256"]
        assert len(list(paths.cache.iterdir())) == 1, "slices of a market that nobody asks for stayed"

    def test_it_is_served_only_where_a_day_is_missing(self, paths: Paths) -> None:
        wanted = short_synthetic(seed=7)
        manifest = download_synthetic(wanted, "ETH", paths)

        def refuse() -> AbstractContextManager[str]:
            raise AssertionError("served again")

        assert download.download(wanted, "ETH", paths, refuse) == manifest

    def test_other_code_makes_it_anew(self, paths: Paths) -> None:
        wanted = short_synthetic(seed=7)
        first = download_synthetic(wanted, "ETH", paths, code="a")
        assert download_synthetic(wanted, "ETH", paths, code="b")["cache"] != first["cache"]

    def test_its_code_does_not_move_real_slices(self, recording: Path, paths: Paths) -> None:
        with serve(RecordedSlices(recording)) as endpoint:
            first = download.download(parameters(endpoint), "ETH", paths, code="a")
            assert download.download(parameters(endpoint), "ETH", paths, code="b") == first


def short_synthetic(seed: int) -> Parameters:
    return load("smoke", {"assets": ["ETH"], "source": {"to": "2025-08-01T00:02:00Z"}, "seed": seed})
