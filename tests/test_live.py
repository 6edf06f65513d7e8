"""Paper trading on a replay in the exchange's protocol: what a session makes of it is what its record says."""

import asyncio
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from websockets.asyncio.client import connect

from hyperdapo import stages
from hyperdapo.actions import Action
from hyperdapo.errors import DataError, EndpointError, MissingInputError, ParameterError
from hyperdapo.evidence import metrics
from hyperdapo.execution.parents import action_orders, parent_orders, replay
from hyperdapo.files import write_table
from hyperdapo.live.connection import protocol, record
from hyperdapo.live.connection.client import listen
from hyperdapo.live.connection.clock import HEADER, Clock
from hyperdapo.live.deciding import Choice, Fixed, Policy
from hyperdapo.live.figure import draw
from hyperdapo.live.health import Cadence
from hyperdapo.live.paper import AWAY, FRESH, Paper
from hyperdapo.live.reconcile import reconcile
from hyperdapo.live.rehearsal import rehearse
from hyperdapo.live.replay.faults import Faults
from hyperdapo.live.replay.server import ENDED, Exchange, serve
from hyperdapo.live.replay.source import Source
from hyperdapo.live.session import Session
from hyperdapo.live.view import picture, shown
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Mask
from hyperdapo.market.features import features_in_parts
from hyperdapo.params import load
from hyperdapo.paths import Paths
from hyperdapo.times import SECOND_NS

pytestmark = pytest.mark.slow

SPEED = 25.0  # at which a pause of a tenth of a second, as others on this machine may cause, is 2.5 s of the market
MINUTES = 5  # of the recording
QUICK = {  # an order is warm after a minute, and judged for good after another two
    "assets": ["ETH", "SOL"],
    "features": {"warmup_s": 60, "window_s": 60},
    "orders": {"objectives": ["urgent"], "markouts_s": [1, 5]},
    "execution": {"queue_exponent": 1.0, "impact_coefficient_bps": 50.0},
    "live": {"settle_s": 2, "silent_s": 1, "longest_wait_s": 1, "max_book_age_s": 10},
}
OLD, NOTHING = "no book, or an old one", Faults()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some minutes of the synthetic exchange, as a recorder would have kept them."""
    folder = tmp_path_factory.mktemp("recording")
    source = Source.synthetic(load("smoke", {"assets": ["ETH", "SOL"]}))
    for coin, slices in zip(source.coins, source.slices, strict=True):
        lines = slices.lines(None, source.span[0], source.span[0] + MINUTES * 60 * SECOND_NS)
        (folder / f"{coin}.ndjson.gz").write_bytes(gzip.compress(lines))
    return folder


def traded(
    folder: Path, faults: Faults = NOTHING, assets: tuple[str, ...] = ("ETH",), minutes: float = MINUTES, **changes
) -> tuple[Session, Paper]:
    """A finished session on a replay, and what ran it."""
    who = {"action": "join"} | changes.pop("who", {})
    with serve(Source.recordings(folder, assets), changes.pop("speed", SPEED), faults=faults) as serving:
        live = QUICK["live"] | {"endpoint": serving.address} | changes
        session = Session.begin(load("smoke", QUICK | {"live": live}), assets, None, **who)
        paper = Paper(session)
        for asset in assets:
            rehearse(session.asked.parameters(asset), asset, paper.decider)
        asyncio.run(paper.run(minutes, lambda _: None, 1.0))
    return session, paper


@pytest.mark.parametrize("profile", ["smoke", "sample"])
def test_a_language_model_is_rehearsed_on_states_that_it_can_read(profile: str) -> None:
    known = {"queue_exponent": 1.0, "impact_coefficient_bps": 10.0}
    parameters = load(profile, {"execution": known, "policy": {"base_model": "tiny-qwen2", "lora": {"layers": None}}})
    asked = list[int]()

    class Counted(Policy):
        def choose(self, features: pd.DataFrame, parents: pd.DataFrame, distinct: Mask) -> list[Choice]:
            asked.append(len(parents))
            return super().choose(features, parents, distinct)

    rehearse(parameters, "ETH", Counted(parameters, ["ETH"], "untrained", 0))
    assert len(asked) > 3 and set(asked) == {1}


@pytest.fixture(scope="module")
def finished(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a session without faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERDAPO_DATA", str(tmp_path_factory.mktemp("finished")))
        return traded(recording)[0].folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


class TestServer:
    def test_it_speaks_as_the_exchange_does(self, recording: Path) -> None:
        asyncio.run(self._talk(recording))

    async def _talk(self, recording: Path) -> None:
        exchange = Exchange(Source.recordings(recording, ["ETH"]), 200.0)
        server = await exchange.serve(0)
        playing = asyncio.create_task(exchange.play())
        address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        async with connect(address) as client:
            assert Clock.of(client.response.headers[HEADER]).speed == 200.0
            book = protocol.Subscription("l2Book", "ETH")
            assert await self._said(client, protocol.subscribe(book)) == {
                "channel": "subscriptionResponse",
                "data": {"method": "subscribe", "subscription": {"type": "l2Book", "coin": "ETH"}},
            }
            again = await self._said(client, protocol.subscribe(book))
            assert again["channel"] == "error" and again["data"].startswith("Already subscribed")
            unknown = await self._said(client, protocol.subscribe(protocol.Subscription("l2Book", "XX")))
            assert unknown["data"].startswith("Invalid subscription")
            nonsense = await self._said(client, "{bad")
            assert nonsense["data"].startswith("Error parsing JSON")
            assert await self._said(client, protocol.PING) == {"channel": "pong"}
            await asyncio.sleep(1.5)
            await client.send(protocol.subscribe(protocol.Subscription("trades", "ETH")))
            while (told := json.loads(await client.recv()))["channel"] != "trades":
                pass
            assert len(told["data"]) >= 10 and all(one["coin"] == "ETH" for one in told["data"])
            stamps = [one["time"] for one in told["data"]]
            assert stamps == sorted(stamps)  # a backfill: prints of before the subscription, oldest first
            exchange.drop()
            with pytest.raises(Exception, match="no close frame"):
                while True:
                    await client.recv()
        async with connect(address) as client:
            await client.send(protocol.subscribe(protocol.Subscription("bbo", "ETH")))
            playing.cancel()
        server.close()

    async def _said(self, client, text: str) -> dict:
        await client.send(text)
        while (answer := json.loads(await client.recv()))["channel"] == "l2Book":
            pass
        return answer

    def test_a_client_is_told_that_the_recording_has_ended(self, recording: Path, data: Path) -> None:
        _, paper = traded(recording, speed=100.0, minutes=60)
        assert paper.clock is not None and paper.clock.now() >= paper.clock.until_ns
        assert set(paper.health.drops) <= {ENDED, "lost"}

    def test_what_there_is_not_is_named(self, recording: Path) -> None:
        with pytest.raises(DataError, match="no recording of BTC"):
            Source.recordings(recording, ["BTC"])
        with serve(Source.recordings(recording), 1.0) as serving:
            port = int(serving.address.split(":")[2].split("/")[0])
            with (
                pytest.raises(EndpointError, match="choose another with --port"),
                serve(Source.recordings(recording), 1.0, port),
            ):
                pass


class TestClock:
    def test_it_passes_as_fast_as_the_replay_and_never_goes_back(self) -> None:
        wall = iter([1000, 1000 + 10**6, 500, 1000 + 2 * 10**6])
        clock = Clock(10**18, 50.0, ticking=lambda: next(wall))
        assert [clock.now() for _ in range(3)] == [10**18 + 50 * 10**6, 10**18 + 50 * 10**6, 10**18 + 100 * 10**6]

    def test_the_wall_s_where_nobody_says_otherwise(self) -> None:
        assert abs(Clock.of(None).now() - time.time_ns()) < SECOND_NS
        for header in ("1 2", "x 1 2", "1 0 2"):
            with pytest.raises(DataError, match="X-Replay-Clock"):
                Clock.of(header)


class TestRecord:
    LINES = tuple((10**18 + second * SECOND_NS, b'{"channel":"pong","data":%d}' % second) for second in range(200))

    def written(self, folder: Path, count: int = 200) -> Path:
        recorder = record.Recorder(folder, "ETH")
        for ns, text in self.LINES[:count]:
            recorder.write(ns, text)
        recorder.lost()
        recorder.close()
        return recorder.path

    def test_it_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        lines = record.read(self.written(tmp_path))
        assert [tuple(line) for line in lines[:-1]] == list(self.LINES) and lines[-1].text == b""
        assert gzip.decompress((tmp_path / "ETH.ndjson.gz").read_bytes()).count(b"\n") == 201

    @pytest.mark.parametrize("cut", [1, 7, 20, 300])
    def test_of_a_cut_file_the_whole_lines_are_kept_and_it_goes_on(self, tmp_path: Path, cut: int) -> None:
        path = self.written(tmp_path)
        path.write_bytes(path.read_bytes()[:-cut])
        recorder = record.Recorder(tmp_path, "ETH")
        recorder.write(10**18 + 500 * SECOND_NS, b"{}")
        recorder.close()
        lines = record.read(path)
        assert lines[-1].ns == 10**18 + 500 * SECOND_NS and lines[-2].text == b""
        kept = [tuple(line) for line in lines[:-1] if line.text]
        assert kept == list(self.LINES)[: len(kept)] and len(kept) > 100
        gzip.decompress(path.read_bytes())

    def test_what_was_flushed_survives_a_kill(self, tmp_path: Path) -> None:
        recorder = record.Recorder(tmp_path, "ETH")
        recorder.write(*self.LINES[0])
        recorder.flush()
        assert [tuple(line) for line in record.read(recorder.path)] == [self.LINES[0]]

    def test_a_message_stays_one_line(self, tmp_path: Path) -> None:
        recorder = record.Recorder(tmp_path, "ETH")
        recorder.write(10**18, b'{"channel":\n"pong"}')
        recorder.close()
        assert [line.text for line in record.read(recorder.path)] == [b'{"channel": "pong"}']


class TestSession:
    def test_through_all_that_goes_wrong_every_order_is_what_its_record_says(self, recording: Path, data: Path) -> None:
        faults = Faults(
            drop_at_s=(130.0,),
            half_frame_at_s=(220.0,),
            garbage_every=150,
            repeat_every=97,
            swap_every=131,
            second_book=True,
        )
        session, _ = traded(recording, faults, ("ETH", "SOL"))
        held, health = reconcile(session), json.loads((session.folder / "health.json").read_text())
        assert len(held.orders) > 8 and held.different.empty and held.stale == 0
        assert f"all {len(held.orders)} orders identical" in held.text()
        assert set(held.orders["asset"]) == {"ETH", "SOL"} and not held.orders["void"].all()
        assert health["connections"] == 3 and health["malformed"] > 10 and sum(health["voided"].values()) > 0
        assert health["dropped"]["l2Book_fast"] > 100 and health["dropped"]["trades_backfill"] >= 2
        assert any(cause.endswith("_repeated") for cause in health["dropped"])
        assert (session.folder / "odd.jsonl").read_text().count("\n") == health["malformed"]

    def test_its_orders_are_read_like_those_of_a_backtest(self, recording: Path, data: Path) -> None:
        session, _ = traded(recording)
        orders, evidence = session.orders(), load("smoke").evidence
        assert set(orders["strategy"]) == {"join_best"} and set(orders["split"]) == {"test"}
        main = metrics.main_table(metrics.in_blocks(orders, evidence.block_s), evidence, 7)
        assert set(main["strategy"]) == {"join_best"}
        assert np.allclose(
            orders["total_cost_bps"], orders["implementation_shortfall_bps"] + orders["fees_bps"], atol=1e-6
        )
        assert (orders["policy_ms"] > 0).all() and orders["policy_ms"].median() < 1000
        assert draw(session, "ETH").stat().st_size > 5000 and (session.folder / "session_ETH.pdf").exists()

    def test_a_second_book_that_does_not_say_so_is_a_message_set(self, recording: Path, data: Path) -> None:
        """The cleaner recognises the first ones by those that follow; a session cannot."""
        session, _ = traded(recording, Faults(second_book=True, unmarked=True), minutes=3)
        held = reconcile(session)
        assert set(held.messages["channel"]) == {"l2Book"} and 0 < len(held.messages) < 30
        assert held.different["cause"].str.startswith("message set (l2Book at").all()

    def test_books_every_five_seconds_are_seen_and_nothing_is_decided_on_old_ones(
        self, recording: Path, data: Path
    ) -> None:
        session, paper = traded(recording, Faults(slow_s=((120.0, 300.0),)), max_book_age_s=3.0)
        assert paper.health.cadence["ETH"].changes >= 1 and paper.health.refused[OLD] > 3
        held = reconcile(session)
        assert held.stale == 0 and held.different.empty

    def test_a_silent_exchange_is_left_and_found_again(self, recording: Path, data: Path) -> None:
        session, paper = traded(recording, Faults(silent_s=((120.0, 180.0),)))
        assert paper.health.drops["silent for 1 s"] >= 1 and paper.health.connections >= 2
        assert {AWAY, FRESH, OLD} & set(paper.health.refused)
        assert reconcile(session).different.empty

    def test_a_language_model_decides_alike_live_and_in_the_replay(self, recording: Path, data: Path) -> None:
        who = {"action": "", "policy": "untrained", "seed": 0}
        session, _ = traded(recording, who=who)
        sent = [entry for entry in session.entries() if "action" in entry]
        assert all(entry["prompt"] and abs(sum(entry["probabilities"]) - 1) < 1e-6 for entry in sent) and len(sent) > 2
        assert {"features", "prompt", "forward", "decode", "order"} <= set(sent[0]["timing_ms"])
        assert reconcile(session).different.empty

    def test_it_is_drawn_while_it_runs(self, recording: Path, data: Path, capsys) -> None:
        from rich.console import Console

        drawn = []
        with serve(Source.recordings(recording, ["ETH"]), SPEED) as serving:
            live = QUICK["live"] | {"endpoint": serving.address}
            session = Session.begin(load("smoke", QUICK | {"live": live}), ["ETH"], None, action="join")
            paper = Paper(session)
            asyncio.run(paper.run(3, lambda one: drawn.append(picture(one)), 0.5))
        console = Console(width=160, record=True, file=io.StringIO())
        console.print(drawn[len(drawn) * 2 // 3])
        text = console.export_text()
        assert "bid size" in text and "messages/s" in text and "latency" in text and "join" in text
        with shown(Console(file=sys.stdout, force_terminal=False)) as (show, _):
            show(paper)
        assert "messages/s" in capsys.readouterr().out

    def test_orders_come_at_decision_times(self, data: Path) -> None:
        between = load("smoke", {"live": {"order_every_s": 15}})
        with pytest.raises(ParameterError, match=r"live\.order_every_s \(15\) must be a multiple of"):
            Session.begin(between, ["ETH"], None, action="join")
        assert not list(data.glob("**/session.json"))

    def test_what_it_was_begun_for_stays(self, data: Path) -> None:
        parameters = load("smoke")
        Session.begin(parameters, ["ETH"], "one", action="join")
        with pytest.raises(ParameterError, match="was begun for ETH and join_best"):
            Session.begin(parameters, ["ETH"], "one", action="take")
        with pytest.raises(ParameterError, match="did you mean 'join'"):
            Fixed(parameters.policy.actions, "joint")
        with pytest.raises(MissingInputError, match=r"there is no session 'ones' .did you mean 'one'"):
            Session.find("ones")
        with pytest.raises(MissingInputError):
            Policy(parameters, ["ETH"], "dapo", 0)


class TestReconcile:
    @pytest.fixture
    def session(self, finished: Path, tmp_path: Path) -> Session:
        return Session.find(str(shutil.copytree(finished, tmp_path / "session")))

    def changed(self, session: Session, change) -> pd.DataFrame:
        """The orders that differ once the notes of the third decision are changed."""
        entries = session.entries()
        sent = [entry for entry in entries if "action" in entry]
        change(sent[2])
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        (session.folder / "decisions.jsonl").write_text(text)
        return reconcile(session).different

    @pytest.mark.parametrize(
        ("cause", "change"),
        [
            ("feature", lambda entry: entry["features"].update(volatility_5m_bps=entry["features"]["mid"])),
            ("prompt", lambda entry: entry.update(prompt="another")),
            ("action", lambda entry: entry.update(action=0)),
            ("price", lambda entry: entry.update(side=-entry["side"])),
        ],
    )
    def test_the_first_cause_of_a_decision_that_differs(self, session: Session, cause: str, change) -> None:
        different = self.changed(session, change)
        assert different["cause"].tolist() == [cause]

    @pytest.mark.parametrize(
        ("cause", "column"),
        [
            ("time", "cancel_ns"),
            ("queue", "queue_ahead"),
            ("fill", "filled_passive"),
            ("cost", "total_cost_bps"),
            ("cost", "maker_markout_1s_bps"),
        ],
    )
    def test_the_first_cause_of_an_end_that_differs(self, session: Session, cause: str, column: str) -> None:
        orders = session.orders()
        row = orders.index[orders[column].notna()][0]
        orders.loc[row, column] = orders.loc[row, column] + (1 if column.endswith("_ns") else 1e-6)
        write_table(orders, session.folder, "orders")
        different = reconcile(session).different
        assert different["cause"].tolist() == [cause] and different["column"].tolist() == [column]

    def test_a_line_that_is_missing_is_a_message_set(self, session: Session) -> None:
        path = session.folder / "ETH.ndjson.gz"
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
        prints = [place for place, line in enumerate(lines) if b'"trades"' in line]
        del lines[prints[len(prints) // 4]]
        path.write_bytes(gzip.compress(b"".join(lines)))
        held = reconcile(session)
        assert len(held.different) and held.different["cause"].str.startswith("message set").all()
        assert "differ" in held.text() and (session.folder / "reconcile.csv").read_text().count("message set") > 0

    def test_the_stages_01_to_03_and_the_replay_of_08_make_the_same_of_the_recording(
        self, session: Session, data: Path
    ) -> None:
        span = {"from": "2025-08-01T00:00:00Z", "to": "2025-08-01T00:06:00Z"}
        source = {"kind": "recordings", "endpoint": str(session.folder)} | span
        changed = {"assets": ["ETH"], "source": source, "split": {"train": 0.4, "validation": 0.3}}
        parameters, live = load("smoke", QUICK | changed), session.orders().set_index("decision_ns")
        for stage in ("01_download", "02_preprocess"):
            stages.compute(stage, parameters, "ETH")
        paths = Paths(parameters.name, "ETH")
        market = replace(Market.load(paths.data), daily_volume=session.asked.daily_volume["ETH"])
        features = pd.concat(features_in_parts(paths.data, parameters, {}), ignore_index=True)
        parents = parent_orders(features.assign(split="test"), parameters, market)
        ours = parents[parents["decision_ns"].isin(live.index)].reset_index(drop=True)
        assert len(ours) == len(live) > 0
        live = live.loc[ours["decision_ns"]].reset_index()
        orders = ours.assign(order_id=live["order_id"], policy_ms=live["policy_ms"])
        replayed = replay(market, action_orders(orders, market, [Action("join")]), parameters)
        for column in ("side", "size", "limit_price", "queue_ahead", "status", "fill_ns", "cancel_ns", "exec_price"):
            assert replayed[column].equals(live[column]), column
        np.testing.assert_allclose(replayed["total_cost_bps"], live["total_cost_bps"], rtol=0, atol=1e-9)

    def test_a_session_that_sent_nothing_or_was_killed_is_told_apart(self, session: Session) -> None:
        (session.folder / "health.json").unlink()
        with pytest.raises(DataError, match="was killed"):
            reconcile(session)
        (session.folder / "health.json").write_text("{}")
        (session.folder / "decisions.jsonl").write_text("")
        with pytest.raises(DataError, match="sent no order"):
            reconcile(session)


class TestCommand:
    def command(self, folder: Path, address: str, *more: str) -> subprocess.Popen:
        parameters = folder / "quick.yaml"
        parameters.write_text(yaml.safe_dump(QUICK))
        command = [sys.executable, "-m", "hyperdapo.cli", "paper", "--profile", "smoke", "--params", str(parameters)]
        command += ["--asset", "ETH", "--action", "join", "--endpoint", address, "--session", "one", *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def until(self, data: Path, orders: int) -> None:
        for _ in range(1200):
            notes = [path.read_text() for path in data.glob("*/paper/one/decisions.jsonl")]
            if notes and notes[0].count('"action"') >= orders:
                return
            time.sleep(0.05)
        raise AssertionError("no orders")

    def test_a_killed_session_goes_on_with_its_record(self, recording: Path, data: Path, tmp_path: Path) -> None:
        with serve(Source.recordings(recording, ["ETH"]), 8.0) as serving:  # it takes seconds to begin again
            first = self.command(tmp_path, serving.address)
            self.until(data, 8)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            with pytest.raises(DataError, match="was killed"):
                reconcile(Session.find("one"))
            second = self.command(tmp_path, serving.address)
            said = second.communicate(timeout=90)[0]
        assert second.returncode == 0, said
        held = reconcile(Session.find("one"))
        assert held.different.empty and len(held.orders) >= 8, held.text()
        assert not held.orders["void"].all()

    def test_ctrl_c_ends_it_well(self, recording: Path, data: Path, tmp_path: Path) -> None:
        with serve(Source.recordings(recording, ["ETH"]), SPEED) as serving:
            running = self.command(tmp_path, serving.address, "--minutes", "60")
            self.until(data, 8)
            running.send_signal(signal.SIGINT)
            said = running.communicate(timeout=30)[0]
        assert running.returncode == 0 and "orders have ended" in said, said
        session = Session.find("one")
        assert len(session.orders()) and reconcile(session).different.empty

    def test_a_coin_that_is_not_listed_ends_it_with_a_reason(self, recording: Path, data: Path, tmp_path: Path) -> None:
        with serve(Source.recordings(recording, ["SOL"]), SPEED) as serving:
            running = self.command(tmp_path, serving.address)
            said = running.communicate(timeout=60)[0]
        assert running.returncode == 1 and "Invalid subscription" in said and "Traceback" not in said, said


class TestListening:
    def test_the_wait_between_two_tries_doubles_and_is_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited = []

        class Deaf:
            def opened(self, header: str | None) -> None:
                raise AssertionError

            def received(self, frame: bytes) -> bool:
                raise AssertionError

            def lost(self, cause: str) -> None:
                assert cause.startswith("no connection")

        async def asleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 6:
                raise asyncio.CancelledError

        live = load("smoke", {"live": {"endpoint": "ws://127.0.0.1:9/ws", "longest_wait_s": 8}}).live
        monkeypatch.setattr("hyperdapo.live.connection.client.asyncio.sleep", asleep)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(listen(live, ["ETH"], Deaf(), 7))
        for wait, most in zip(waited, (1, 2, 4, 8, 8, 8), strict=True):
            assert most / 2 <= wait <= most

    def test_a_cadence_that_changes_is_counted(self) -> None:
        cadence = Cadence()
        for book in range(40):
            cadence.book(book * SECOND_NS // 2)
        assert cadence.changes == 0 and cadence.now_s == pytest.approx(0.5)
        for book in range(30):
            cadence.book((20 + 5 * book) * SECOND_NS)
        assert cadence.changes == 1 and cadence.now_s == pytest.approx(5.0)
