"""What a run survives: SIGKILL, a full disk, an endpoint that refuses or dies; and that no file holds the key."""

import http.server
import itertools
import os
import platform
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hyperdapo import errors
from hyperdapo.errors import EndpointError
from hyperdapo.feed import clean, download
from hyperdapo.feed.slices import SliceFile, cover
from hyperdapo.params import Parameters, load, merge
from hyperdapo.paths import Paths
from hyperdapo.stages import record
from hyperdapo.times import MINUTE_NS
from killing import (
    FAULTS,
    KEY,
    PROFILE,
    RESULTS,
    Day,
    Place,
    Run,
    asked_again,
    kill_series,
    results,
    served,
)
from smoke import stage_of, take_over

START, MIDNIGHT, END = "2025-08-01T22:50:00Z", "2025-08-02T00:00:00Z", "2025-08-02T00:20:00Z"
ASSETS = ("ETH",)
KILLS = 4
NO_PROCESS = 2**30  # above what any kernel gives out

Timed = tuple[Run, float]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An asset over a midnight, and over an hour within a day."""
    with served(tmp_path_factory.mktemp("world") / "slices", ASSETS, START, END) as place:
        yield place


@pytest.fixture(scope="module")
def undisturbed(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Timed:
    """A run to 03 that nothing disturbed, and how long it took."""
    run, begun = Run(tmp_path_factory.mktemp("undisturbed"), place.settings), time.monotonic()
    run.finish()
    return run, time.monotonic() - begun


# SIGKILL


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_files(
    undisturbed: Timed, place: Place, tmp_path: Path
) -> None:
    quiet, quiet_s = undisturbed
    killed = Run(tmp_path, place.settings)
    with place.misbehaving(**FAULTS):
        done = list(kill_series(killed, place, KILLS, quiet_s, seed=7))
        _leave_unconfirmed(killed)
        killed.finish(workflow=True)
    assert len(done) >= KILLS - 1, "the runs ended before they could be killed"
    assert any(one.days < place.world.days for one in done) and done[-1].results, "not killed in both of 01 and 02"
    assert {Path(name).stem for name in quiet.results()} >= set(RESULTS)
    assert killed.results() == quiet.results()
    assert killed.day_digests() == quiet.day_digests() and set(quiet.day_digests()) == place.world.days
    assert not asked_again(done, place.world)
    assert not killed.leftovers() and not killed.holding(KEY)


def _leave_unconfirmed(run: Run) -> None:
    """What a kill leaves at its worst moments: a slice on its way, a table, a folder, a figure and a notebook."""
    data, outputs = run.data / run.name / "ETH", run.outputs / run.name
    for path in (
        next(run.data.glob("slices/ETH/*/feeds/*/*/2025/08/*/*")) / "00.json0123456789abcdef.unconfirmed",
        data / f".book.parquet.{NO_PROCESS}@{platform.node()}.unconfirmed",
        data / f".parts.{NO_PROCESS}@{platform.node()}.unconfirmed" / "0.parquet",
        outputs / "figures" / f".coverage_ETH.pdf.{NO_PROCESS}@{platform.node()}.unconfirmed",
        outputs / "notebooks" / f".01_download_ETH.ipynb.{NO_PROCESS}@{platform.node()}.unconfirmed",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")


def test_the_tables_do_not_depend_on_how_the_slices_were_cut(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARDIS_API_KEY", KEY)
    for folder, stops in (("once", [END]), ("twice", ["2025-08-01T22:57:00Z", END])):
        monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / folder))
        for stop in stops:
            download.download(_parameters(place, to=stop), "ETH", Paths(PROFILE, "ETH"))
        clean.preprocess(_parameters(place, to=END), "ETH", Paths(PROFILE, "ETH"))
    once, twice = ({path.name for path in (tmp_path / folder).rglob("*.json.zst")} for folder in ("once", "twice"))
    assert once != twice, "the slices are the same"
    assert results(tmp_path / "once" / PROFILE) == results(tmp_path / "twice" / PROFILE)


def _parameters(place: Place, endpoint: str = "", **source: str) -> Parameters:
    """Those of a run of ETH alone, of another span or through another endpoint."""
    source |= {"endpoint": endpoint} if endpoint else {}
    return load(PROFILE, merge(place.settings, {"source": source}))


def _last_words(printed: str) -> str:
    """The line in which a failed run says why."""
    return printed[printed.rindex("hyperdapo: ") :].splitlines()[0]


@pytest.mark.slow
def test_a_stage_that_fails_leaves_what_it_made_before_but_does_not_pass_for_done(
    undisturbed: Timed, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, place.settings)
    take_over(undisturbed[0], run.data, run.outputs, "ETH", "01", "02")
    before = run.results()
    damaged = next(run.data.glob("slices/ETH/*/feeds/**/*.zst"))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    printed = run.fail("02", again="02")
    assert printed.count("DataError") == 1 and "Traceback" not in printed and "02_preprocess ETH: " in printed
    left = run.results()
    assert left.items() <= before.items() and before.keys() - left.keys() == {"ETH/cleaning.json"}
    monkeypatch.setenv("HYPERDAPO_DATA", str(run.data))
    assert record.why_not("02_preprocess", _parameters(place), "ETH") == "ETH/cleaning.json is lost or cut"


# A full disk


class SmallDisk:
    """A tmpfs that only commands after `prefix` see at `mount`; `seen` is the same place for everyone else."""

    def __init__(self, mount: Path) -> None:
        mount.mkdir()
        script = f"mount -t tmpfs -o size=64m tmpfs '{mount}' && echo mounted && exec sleep 3600"
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self._holder = subprocess.Popen(["unshare", "-rm", "sh", "-c", script], **pipes)
        if self._holder.stdout.readline() != "mounted\n":  # type: ignore[union-attr]
            pytest.skip(f"this user can mount no disk: {self._holder.communicate()[1].strip()}")
        pid = str(self._holder.pid)
        self.prefix = ("nsenter", "--user", "--mount", "--preserve-credentials", "--target", pid)
        self.mount, self.seen = mount, Path(f"/proc/{pid}/root{mount}")

    def leave(self, free_bytes: int) -> None:
        """Fill it up to so many bytes."""
        state = os.statvfs(self.seen)
        with (self.seen / "filler").open("wb") as file:
            file.write(bytes(state.f_bavail * state.f_frsize - free_bytes))

    def make_room(self) -> None:
        """Delete what filled it."""
        (self.seen / "filler").unlink()

    def close(self) -> None:
        """Unmount it: the kernel does, once nobody is left who sees it."""
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no unshare and nsenter: apt-get install util-linux")
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.close()


@pytest.fixture
def cramped(disk: SmallDisk, place: Place, tmp_path: Path) -> Run:
    """A run of ETH with its data on the small disk."""
    run = Run(tmp_path / "run", place.settings, data=disk.mount, prefix=disk.prefix)
    run.data = disk.seen
    return run


def _results_of_eth(run: Run, *stages: str) -> dict[str, str]:
    """Digests of the files of ETH that some stages made."""
    made = run.results().items()
    return {name: digest for name, digest in made if name.startswith("ETH/") and stage_of(Path(name).name) in stages}


def _days_of_eth(run: Run) -> dict[Day, str]:
    return {day: digest for day, digest in run.day_digests().items() if day[0] == "ETH"}


def _assert_says_full(printed: str, disk: SmallDisk) -> None:
    """The last words of a run name the disk and the way out, and blame nobody else."""
    last = _last_words(printed)
    assert str(disk.mount) in last and "free space" in last and "HYPERDAPO_DATA" in last, last
    assert "EndpointError" not in last and "OSError" not in last, last


@pytest.mark.slow
def test_a_download_onto_a_full_disk_ends_at_once_and_goes_on_later(
    undisturbed: Timed, disk: SmallDisk, cramped: Run
) -> None:
    whole = _days_of_eth(undisturbed[0])
    disk.leave(_size(undisturbed[0].data.glob("slices/ETH/**/*.json.*")) // 2)
    printed = cramped.fail("01")
    _assert_says_full(printed, disk)
    _assert_typed(printed)
    assert not (cramped.data / cramped.name / "ETH" / "manifest.json").exists() and not cramped.leftovers()
    assert cramped.day_digests().items() <= whole.items() and cramped.day_digests() != whole
    disk.make_room()
    cramped.finish("01")
    assert cramped.day_digests() == whole and not cramped.leftovers()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "before"), [("02", ["01"]), ("03", ["01", "02"])])
def test_a_stage_on_a_full_disk_says_so_and_goes_on_later(
    undisturbed: Timed, disk: SmallDisk, cramped: Run, stage: str, before: list[str]
) -> None:
    take_over(undisturbed[0], cramped.data, cramped.outputs, "ETH", *before)
    made = _results_of_eth(undisturbed[0], stage)
    disk.leave(_size(undisturbed[0].data / cramped.name / name for name in made) // 2)
    printed = cramped.fail(stage)
    _assert_says_full(printed, disk)
    _assert_typed(printed)
    found = _results_of_eth(cramped, stage)
    assert found.items() < made.items(), "a half file under a final name"
    assert not cramped.leftovers()
    disk.make_room()
    cramped.finish(stage)
    assert _results_of_eth(cramped, stage) == made and not cramped.leftovers()


@pytest.mark.slow
def test_a_disk_without_a_byte_left_is_named_too(undisturbed: Timed, disk: SmallDisk, cramped: Run) -> None:
    take_over(undisturbed[0], cramped.data, cramped.outputs, "ETH", "01", "02")
    disk.leave(0)
    _assert_says_full(cramped.fail("03", workflow=True), disk)
    disk.make_room()
    cramped.finish("03")
    assert _results_of_eth(cramped, "02", "03") == _results_of_eth(undisturbed[0], "02", "03")
    assert not cramped.leftovers()


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _assert_typed(printed: str) -> None:
    """The error that ended a stage is one of ours."""
    name = re.findall(r"^hyperdapo: (?:\S+ ETH: )?(\w+Error): ", printed, re.M)[0]
    assert issubclass(getattr(errors, name, Exception), errors.HyperdapoError), name


# An endpoint that misbehaves


class Front(http.server.ThreadingHTTPServer):
    """A proxy before an endpoint: the n-th request gets what `treat(n)` says; `asked` notes when each slice was asked.

    Treatments: `cut` (half of the body), `refuse` (429, with `retry_after`), `die` (no answer, and none ever again).
    """

    daemon_threads = True

    def __init__(self, upstream: str, treat: Callable[[int], str], **options: Any) -> None:
        super().__init__(("127.0.0.1", options.get("port", 0)), _Handler)
        self.upstream, self.treat, self.dead = upstream, treat, threading.Event()
        self.encoding, self.retry_after = options.get("encoding", "zstd"), options.get("retry_after", 0)
        self.numbers, self.asked = itertools.count(1), defaultdict[str, list[float]](list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def die(self) -> None:
        """Stop listening; the port is free again."""
        self.shutdown()
        self.server_close()
        self.dead.set()

    def minutes(self) -> set[int]:
        """Starts (ns) of the minutes that were asked for."""
        found = set[int]()
        for path in self.asked:
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query))
            begin = int(datetime.fromisoformat(query["from"]).timestamp()) // 60 + int(query["offset"])
            found |= {minute * MINUTE_NS for minute in range(begin, begin + int(query.get("sliceSize", "1")))}
        return found


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Front

    def do_GET(self) -> None:
        front = self.server
        front.asked[self.path].append(time.monotonic())
        treatment = front.treat(next(front.numbers))
        if treatment == "die":
            threading.Thread(target=front.die).start()
        elif treatment == "refuse":
            self._answer(429, {"Retry-After": str(front.retry_after)}, b"too many requests")
        else:
            status, headers, body = self._upstream()
            self._answer(status, headers, body[: len(body) // 2] if treatment == "cut" else body)

    def _upstream(self) -> tuple[int, dict[str, str], bytes]:
        headers = {"Accept-Encoding": self.server.encoding, "Authorization": self.headers["Authorization"]}
        url = self.server.upstream.removesuffix("/v1") + self.path
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        kept = {name: value for name, value in headers.items() if name.lower() not in ("content-length", "date")}
        for name, value in (kept | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # a client that found a damaged slice drops its other requests
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at `asked`."""


@contextmanager
def fronted(place: Place, treat: Callable[[int], str], **options: Any) -> Iterator[Front]:
    front = Front(place.settings["source"]["endpoint"], treat, **options)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    try:
        yield front
    finally:
        front.die()


@pytest.fixture
def eth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    monkeypatch.setenv("TARDIS_API_KEY", KEY)
    return Paths(PROFILE, "ETH")


def _content(slices: list[SliceFile]) -> bytes:
    return b"".join(piece.read() for piece in slices)


@pytest.mark.parametrize(("encoding", "suffix"), [("zstd", ".zst"), ("gzip", ".gz")])
def test_slices_cut_on_the_way_are_fetched_again_in_either_encoding(
    place: Place, eth: Paths, encoding: str, suffix: str
) -> None:
    with fronted(place, lambda number: "" if number % 3 else "cut", encoding=encoding) as front:
        wanted = _parameters(place, front.endpoint)
        manifest = download.download(wanted, "ETH", eth)
    assert {piece.path.suffix for piece in download.downloaded(wanted, "ETH", eth)} == {suffix}
    assert 0 < manifest["refetched"] <= sum(map(len, front.asked.values())) // 3
    assert _content(download.downloaded(wanted, "ETH", eth)) == _all_of_eth(place)


def _all_of_eth(place: Place) -> bytes:
    source = _parameters(place).source
    return place.world.lines({"bbo": frozenset({"ETH"})}, source.start_ns, source.end_ns)


def test_a_refusal_is_waited_out_as_long_as_it_says(place: Place, eth: Paths) -> None:
    with fronted(place, lambda number: "refuse" if number in (1, 4) else "", retry_after=1) as front:
        download.download(_parameters(place, front.endpoint, to=MIDNIGHT), "ETH", eth)
    waits = [again - first for first, again in (times for times in front.asked.values() if len(times) == 2)]
    assert len(waits) == 2, "a refused slice was not asked for exactly once more"
    assert all(1.0 <= wait < 10.0 for wait in waits), f"{waits}: a minute is the client's own choice"


def test_an_exhausted_quota_says_when_to_come_back(place: Place, eth: Paths) -> None:
    with (
        fronted(place, lambda _: "refuse", retry_after=3600) as front,
        pytest.raises(EndpointError, match="3600 s") as caught,
    ):
        download.download(_parameters(place, front.endpoint), "ETH", eth)
    assert "429" in str(caught.value) and "protocol" not in str(caught.value)


def test_an_endpoint_that_dies_midway_is_told_and_the_next_run_completes(
    place: Place, eth: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE_S", 2.0)
    with fronted(place, lambda number: "die" if number >= 6 else "") as front:
        wanted, port = _parameters(place, front.endpoint), front.server_address[1]
        with pytest.raises(EndpointError, match=r"sent nothing for 2 s.*kept"):
            download.download(wanted, "ETH", eth)
    (cache,) = eth.cache.iterdir()
    kept = cover(cache, wanted.source.start_ns, wanted.source.end_ns)[0]
    assert len(kept) == 5 and not (eth.data / "manifest.json").exists()
    with fronted(place, lambda _: "", port=port) as front:
        download.download(wanted, "ETH", eth)
    assert _content(download.downloaded(wanted, "ETH", eth)) == _all_of_eth(place)
    there = {minute for piece in kept for minute in range(piece.start_ns, piece.end_ns, MINUTE_NS)}
    assert front.minutes() and not front.minutes() & there, "what was kept was asked for again"


def test_an_endpoint_that_comes_back_is_waited_for(place: Place, eth: Paths) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(fronted(place, lambda number: "die" if number >= 6 else ""))
        port = first.server_address[1]

        def come_back() -> None:
            first.dead.wait(60)
            time.sleep(1.0)
            stack.enter_context(fronted(place, lambda _: "", port=port))

        threading.Thread(target=come_back, daemon=True).start()
        manifest = download.download(_parameters(place, first.endpoint), "ETH", eth)
        assert first.dead.is_set() and manifest["retries"] > 0
    assert _content(download.downloaded(_parameters(place, first.endpoint), "ETH", eth)) == _all_of_eth(place)


# The key


@pytest.mark.slow
def test_the_key_is_written_nowhere(undisturbed: Timed) -> None:
    run = undisturbed[0]
    assert run.holding("hyperliquid"), "the search finds nothing at all"
    assert not run.holding(KEY)


@pytest.mark.slow
def test_a_refused_key_is_written_nowhere(place: Place, tmp_path: Path) -> None:
    wrong = "TD.a-wrong-key"
    run = Run(tmp_path, place.settings, key=wrong)
    printed = run.fail("01", workflow=True)
    assert "TARDIS_API_KEY" in _last_words(printed) and wrong not in printed
    assert run.holding("TARDIS_API_KEY") and not run.holding(wrong) and not run.holding(KEY)
