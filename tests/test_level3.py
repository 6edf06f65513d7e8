"""Every order by its id: files read, queues rebuilt by hand-worked rules, fates, and streams that cannot be."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.evidence import calibration
from hyperdapo.evidence.figures import backtest as plots
from hyperdapo.feed import level3, node_orders, queues
from hyperdapo.feed.order_flow import ADD, CANCEL, EXECUTE, OrderFlow
from hyperdapo.params import load
from hyperdapo.stages import truth
from level3_files import LOBSTER, bitstamp, blocks, busy, lobster, status

PARAMETERS = load("smoke", {"execution": {"impact_coefficient_bps": 10, "queue_exponent": 1}})
BID, ASK = 585.30, 585.40
DAY = [
    (34200.0, 1, 1, 100, BID, 1),
    (34200.1, 1, 2, 50, ASK, -1),
    (34200.2, 1, 3, 30, BID, 1),  # behind 100
    (34200.3, 4, 1, 40, BID, 1),
    (34200.4, 2, 1, 10, BID, 1),  # a part is cancelled, the place is kept
    (34200.5, 1, 4, 20, 585.29, 1),
    (34200.6, 5, 0, 70, 585.35, 1),  # hidden
    (34200.7, 4, 1, 50, BID, 1),
    (34200.8, 4, 3, 30, BID, 1),  # its turn
    (34202.0, 3, 4, 20, 585.29, 1),
    (34202.1, 3, 2, 50, ASK, -1),
]


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of few lines may have a fault."""
    monkeypatch.setattr(queues, "WORST", 1.0)


def flow(*rows: tuple[int, int, int, float, int], lot: float = 1.0) -> OrderFlow:
    """Events of (kind, id, side, price, lots), a second apart."""
    events = pd.DataFrame(rows, columns=["kind", "order_id", "side", "price", "lots"])
    events = events.assign(ns=np.arange(1, len(rows) + 1) * 10**9)
    return OrderFlow.of("ETH", 4, lot, events, Counter(), np.zeros((0, 2), np.int64))


class TestQueues:
    def test_a_day_by_hand(self, tmp_path: Path) -> None:
        day = queues.rebuild(level3.read(lobster(tmp_path, DAY), "BTC", 5))
        assert day.asset == "AAPL" and day.counted == {"hidden": 1}
        met = day.events.set_index(day.events.index + 1)
        assert met.loc[3, ["ahead", "level", "depth"]].tolist() == [100, 100, 0]
        assert met.loc[5, ["ahead", "level"]].tolist() == [0, 90]  # a partial cancel at the front
        assert met.loc[6, "depth"] == 1 and met.loc[8, "ahead"] == 0
        fates = queues.fates(day).set_index("order_id")
        assert fates["status"].to_dict() == {1: "filled", 2: "canceled", 3: "filled", 4: "canceled"}
        assert fates.loc[1, "executed"] == 90 and fates.loc[3, "ahead"] == 100

    def test_what_a_recorder_sees(self, tmp_path: Path) -> None:
        market = queues.publish(queues.rebuild(level3.read(lobster(tmp_path, DAY), "BTC", 5)))
        assert market.bbo.bid_size.tolist() == [100, 130, 90, 80, 30, 20]
        assert market.bbo.bid_price[-1] == 585.29 and set(market.bbo.ask_size) == {50}
        assert market.trades.size.tolist() == [40, 50, 30] and set(market.trades.side) == {-1}
        assert np.diff(market.book.exchange_ns).tolist() == [500_000_000] * (len(market.book.exchange_ns) - 1)
        first = market.book
        assert first.bid_price[0, :2].tolist() == [BID, 585.29] and first.bid_size[0, :2].tolist() == [80, 20]
        assert np.isnan(first.bid_price[0, 2:]).all()

    def test_a_hidden_order_leaves_the_book_and_its_prints_stay(self, tmp_path: Path) -> None:
        day = queues.rebuild(level3.read(lobster(tmp_path, DAY), "BTC", 5))
        market = queues.publish(day, hidden=np.array([1]))
        assert market.bbo.bid_size.tolist() == [30, 20]
        assert market.trades.size.tolist() == [40, 50, 30]

    def test_quotes_at_most_every_step(self, tmp_path: Path) -> None:
        day = queues.rebuild(level3.read(lobster(tmp_path, DAY), "BTC", 5))
        market = queues.publish(day, quotes_ms=250)
        assert (market.bbo.exchange_ns % 250_000_000 == 0).all() and market.bbo.bid_size.tolist() == [130, 80, 30, 20]

    def test_an_order_from_before_stands_where_its_id_says(self) -> None:
        stream = flow((ADD, 10, 1, 9.0, 5), (ADD, 12, 1, 9.0, 5), (EXECUTE, 7, 1, 9.0, 3), (CANCEL, 7, 1, 9.0, 1))
        whole = queues.rebuild(stream)
        assert whole.events["order_id"].tolist()[0] == 7 and whole.events["lots"].tolist()[0] == 4
        assert whole.counted == {"before": 2} and not whole.events["known"].iloc[0]
        assert 7 not in set(queues.fates(whole)["order_id"])

    @pytest.mark.usefixtures("lenient")
    def test_what_cannot_be_is_counted(self) -> None:
        stream = flow(
            (ADD, 1, 1, 9.0, 5),
            (ADD, 2, 1, 9.0, 5),
            (ADD, 2, 1, 9.0, 4),  # alive
            (ADD, 3, 1, 9.1, 6),
            (EXECUTE, 2, 1, 9.0, 2),  # the market has passed 3, and 1 stands before it
            (CANCEL, 2, 1, 9.0, 9),  # holds 3
            (ADD, 4, -1, 8.9, 1),  # through the bids: they had left
        )
        whole = queues.rebuild(stream)
        assert whole.counted == {"duplicate": 1, "excess": 1, "stale": 3, "crossed": 1, "out_of_turn": 1}
        assert whole.events[whole.events["stale"]]["order_id"].tolist() == [3, 1, 2]
        market = queues.publish(whole)
        assert (market.bbo.bid_price < market.bbo.ask_price).all()

    def test_a_stream_with_a_hole_is_refused(self) -> None:
        rows = [(ADD, one, 1, 9.0, 5) for one in range(1, 50)] + [(CANCEL, one, 1, 9.0, 5) for one in range(2, 90, 2)]
        with pytest.raises(DataError, match=r"ETH: of 69 events of orders 32 cannot be .32 unknown"):
            queues.rebuild(flow(*rows[:25], *rows[49:]))

    def test_no_order_is_refused(self) -> None:
        with pytest.raises(DataError, match="no order in the stream"):
            queues.rebuild(flow())


class TestAdded:
    def test_its_turn_comes_after_those_before_it(self) -> None:
        stream = flow(
            (ADD, 1, 1, 9.0, 5),
            (ADD, 2, -1, 9.2, 5),
            (ADD, 3, 1, 9.0, 5),  # after ours, which comes at 2.5 s
            (CANCEL, 1, 1, 9.0, 2),
            (EXECUTE, 1, 1, 9.0, 3),
            (EXECUTE, 3, 1, 9.0, 4),  # would have been ours
            (ADD, 4, 1, 8.9, 9),
            (CANCEL, 3, 1, 9.0, 1),
            (EXECUTE, 4, 1, 8.9, 9),  # at a worse price than ours
        )
        whole = queues.rebuild(stream)
        at = np.array([2_500_000_000]), np.array([1]), np.array([0])
        orders, fills = queues.join_behind(whole, *at, 7.0, np.array([10**12]))
        assert orders[["limit_price", "level"]].iloc[0].tolist() == [9.0, 5.0]
        assert fills[["exchange_ns", "size"]].to_numpy().tolist() == [[6e9, 4.0], [9e9, 3.0]]
        assert queues.join_behind(whole, *at, 7.0, np.array([6 * 10**9]))[1].empty
        assert queues.join_behind(whole, at[0], at[1], np.array([1]), 7.0, np.array([10**12]))[0].empty


class TestFormats:
    def test_halts_and_malformed_rows(self, tmp_path: Path) -> None:
        path = lobster(tmp_path, [*DAY[:5], (34201.0, 7, 0, 0, -1e-4, -1), (34300.0, 7, 0, 0, 1e-4, -1), *DAY[-2:]])
        path.write_text(path.read_text().replace("34200.400000000,2", "34200.4,x") + "torn,1\n")
        read = level3.read(path, "BTC", 5)
        assert read.counted == {"malformed": 2, "halt": 1, "cut": 0} or read.counted == {"malformed": 2, "halt": 1}
        assert (read.gaps[:, 1] - read.gaps[:, 0]).tolist()[0] == 99 * 10**9

    def test_a_silence_is_a_cut(self, tmp_path: Path) -> None:
        read = level3.read(lobster(tmp_path, [*DAY, (34400.0, 1, 9, 5, BID, 1)]), "BTC", 5)
        assert read.counted["cut"] == 1 and len(read.gaps) == 1

    def test_bitstamp_a_taker_never_rests(self, tmp_path: Path) -> None:
        ms = 1_430_438_404_000
        path = bitstamp(
            tmp_path,
            [
                (ms, "order_created", 1, 236.50, 2.0, 1),
                (ms + 5000, "order_created", 2, 236.60, 3.0, 0),  # takes 2, and rests with 1
                (ms + 5010, "order_deleted", 1, 236.50, 0.0, 1),
                (ms + 5011, "order_changed", 2, 236.60, 1.0, 0),
                (ms + 5020, "trade", 99, 236.50, 2.0, None),
                (ms + 9000, "order_deleted", 2, 236.60, 1.0, 0),
            ],
        )
        path.write_text(path.read_text() + "1430438499000 order_created {torn\n")
        read = level3.read(path, "ETH", 4)
        assert read.asset == "BTC" and read.counted == {"malformed": 1}
        assert read.events["kind"].tolist() == [ADD, EXECUTE, ADD, CANCEL]
        assert (read.events["lots"] * read.lot).tolist() == pytest.approx([2.0, 2.0, 1.0, 1.0])
        assert read.events["ns"].iloc[2] == (ms + 5011) * 10**6

    @pytest.mark.parametrize("batched", [True, False])
    def test_statuses_of_a_node(self, batched: bool, tmp_path: Path) -> None:
        opened, later = "2025-10-27T17:00:00.1", "2025-10-27T17:00:01.2"
        first = [
            status(opened, "open", 1, "B", "4000.0", "2.0", "2.0"),
            status(opened, "open", 2, "A", "4000.0", "0.5", "0.5", "Gtc"),  # takes at once
            status(opened, "filled", 2, "A", "4000.0", "0.0", "0.5", "Gtc"),
            status(opened, "badAloPxRejected", 3, "A", "3999.0", "1.0", "1.0"),
            status(opened, "open", 4, "A", "4000.0", "1.0", "1.0", "Ioc"),
        ]
        second = [status(later, "canceled", 1, "B", "4000.0", "1.5", "2.0")]
        if batched:
            path = blocks(tmp_path / "node_order_statuses_by_block.jsonl.gz", {opened: first, later: second})
        else:
            path = tmp_path / "node_order_statuses.jsonl"
            path.write_text(
                "\n".join(
                    str(one).replace("'", '"').replace("False", "false").replace("None", "null")
                    for one in first + second
                )
                + "\n{torn\n"
            )
        read = level3.read(path, "ETH", 4)
        assert read.events[["kind", "order_id", "lots"]].to_numpy().tolist() == [
            [ADD, 1, 20000],
            [EXECUTE, 1, 5000],
            [CANCEL, 1, 15000],
        ]
        assert read.counted == {"not_resting": 2, "undated": 1} | ({} if batched else {"malformed": 1})

    def test_book_diffs_date_the_fills(self, tmp_path: Path) -> None:
        stamps = [f"2025-10-27T17:00:0{second}" for second in range(4)]
        statuses = {
            stamps[0]: [status(stamps[0], "open", 1, "B", "4000.0", "2.0", "2.0")],
            stamps[3]: [status(stamps[3], "canceled", 1, "B", "4000.0", "1.5", "2.0")],
        }
        path = blocks(tmp_path / "node_order_statuses_by_block", statuses)

        def diff(change: object) -> list[dict]:
            return [{"user": "0x0", "oid": 1, "px": "4000.0", "coin": "ETH", "raw_book_diff": change}]

        changes = [{"new": {"sz": "2.0"}}, {"update": {"origSz": "2.0", "newSz": "1.5"}}, "remove"]
        by_stamp = {stamp: diff(change) for stamp, change in zip([*stamps[:2], stamps[3]], changes, strict=True)}
        blocks(tmp_path / "node_raw_book_diffs_by_block", by_stamp)
        read = level3.read(path, "ETH", 4)
        assert read.events[["kind", "side", "lots"]].to_numpy().tolist() == [
            [ADD, 1, 20000],
            [EXECUTE, 1, 5000],
            [CANCEL, 1, 15000],
        ]
        assert np.diff(read.events["ns"]).tolist() == [10**9, 2 * 10**9]

    def test_records_of_54_bytes(self, tmp_path: Path) -> None:
        assert node_orders.RECORD.itemsize == 54
        assert node_orders.unpacked([(2 << 29) | 9654321])[0] == pytest.approx(96543.21)
        records = np.zeros(2, node_orders.RECORD)
        records["ns"], records["order_id"], records["status"], records["tif"] = [10**9, 2 * 10**9], 7, [0, 1], 3
        records["price"], records["left"] = (1 << 29) | 40001, (1 << 29) | 15
        (tmp_path / "eth_00.data").write_bytes(records.tobytes())
        (tmp_path / "statuses.csv").write_text("open,0\ncanceled,1\n")
        (tmp_path / "tifs.csv").write_text("Alo,3\n")
        read = level3.read(tmp_path / "eth_00.data", "ETH", 4)
        assert read.events[["kind", "price", "lots"]].to_numpy().tolist() == [
            [ADD, 4000.1, 15000],
            [CANCEL, 4000.1, 15000],
        ]
        (tmp_path / "eth_00.data").write_bytes(records.tobytes()[:-1])
        with pytest.raises(DataError, match=r"eth_00\.data is no whole number of 54-byte records"):
            level3.read(tmp_path / "eth_00.data", "ETH", 4)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("notes.txt", b"", "of no known level-3 format"),
            ("live.log", b"nothing here\n", "holds no live order of Bitstamp"),
            (LOBSTER, b"", "holds no order of a LOBSTER message file"),
            (LOBSTER, b"a,b,c,d,e,f\n", "holds no order of a LOBSTER message file"),
            (f"{LOBSTER}.xz", b"\xfd7zXZ\x00torn", "cannot be unpacked"),
            ("node_order_statuses.jsonl", b"{}\n", "holds no whole order status of ETH"),
        ],
    )
    def test_damaged_files_are_named(self, name: str, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            level3.read(tmp_path / name, "ETH", 4)

    def test_an_absent_file(self, tmp_path: Path) -> None:
        with pytest.raises(MissingInputError, match="there is no file"):
            level3.read(tmp_path / LOBSTER, "ETH", 4)
        with pytest.raises(MissingInputError, match="holds no level-3 file"):
            truth.judge_level3(tmp_path, "ETH", PARAMETERS)


class TestJudged:
    def test_no_two_are_hidden_at_once(self) -> None:
        placed = np.arange(100) * 10**9
        orders = pd.DataFrame({"placed_ns": placed, "ended_ns": placed + 2 * 10**9, "cancel_ns": placed + 1})
        rounds = list(truth.one_at_a_time(orders))
        assert [len(one) for one in rounds] == [34, 33, 33]
        assert all((one["placed_ns"].to_numpy()[1:] > one["ended_ns"].to_numpy()[:-1]).all() for one in rounds)

    def test_the_patience_of_the_filled_is_that_of_the_others(self) -> None:
        rng, second = np.random.default_rng(1), 10**9
        waits, comes = (
            rng.exponential(10 * second, 4000).astype(int) + 1,
            rng.exponential(10 * second, 4000).astype(int) + 1,
        )
        fates = pd.DataFrame(
            {"order_id": np.arange(4000), "placed_ns": 0, "ended_ns": np.minimum(waits, comes), "depth": 0}
        )
        fates["status"] = np.where(comes < waits, "filled", "canceled")
        told = truth.with_patience(fates, 60 * second, 0)
        assert (told["cancel_ns"] >= told["ended_ns"]).all() and (told["cancel_ns"] <= 60 * second).all()
        assert told["cancel_ns"].mean() == pytest.approx(np.minimum(waits, 60 * second).mean(), rel=0.05)
        unmoved = told["status"] == "canceled"
        assert (told["cancel_ns"] == told["ended_ns"].clip(upper=60 * second))[unmoved].all()

    def test_a_made_stream(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(truth, "_FEWEST", 3)
        busy(tmp_path)
        rows, splits = truth.judge_level3(tmp_path, "ETH", PARAMETERS)
        assert set(rows["kind"]) == {"added", "real"} and not rows.duplicated(["kind", "queue_model", "order_id"]).any()
        table = calibration.scores_by_depth(rows, PARAMETERS.evidence, 0).set_index(["kind", "depth", "queue_model"])
        assert table.loc[("added", "all", "power"), "brier"] < table.loc[("added", "all", "touch"), "brier"] / 2
        assert 0.8 < table.loc[("added", "all", "power"), "slope"] < 1.2
        assert splits["exponent"].between(0.5, 2).all()  # it cancels at random
        groups = calibration.reliability_by_kind(rows, PARAMETERS.evidence, 0)
        figure = plots.plot_fill_truth(groups, table.reset_index())
        assert [axis.get_xlabel() for axis in figure.axes] == ["share filled, simulator", "prices before the order"] * 2

    def test_a_line_by_hand(self) -> None:
        blocks_of = np.array([0, 0, 1, 1])
        intercept, slope = calibration.calibration_line(
            np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.1, 0.6, 0.1, 0.6]), blocks_of, PARAMETERS.evidence, 0
        )
        assert (intercept, slope.value) == (pytest.approx(0.1), pytest.approx(0.5))
        assert slope.low == pytest.approx(0.5) and slope.high == pytest.approx(0.5)


class TestRecordings:
    def test_aapl_can_be_rebuilt(self, recordings: Path) -> None:
        day = queues.rebuild(level3.read(next((recordings / "level3/lobster").iterdir()), "BTC", 5))
        assert day.counted["hidden"] == 1857 and day.counted["out_of_turn"] < 30
        assert not day.counted["stale"] and not day.counted["crossed"] and not day.counted["excess"]
        market = queues.publish(day)
        assert (market.bbo.bid_price < market.bbo.ask_price).all() and len(market.trades.price) == 3358
        splits = truth.cancel_splits(day, load("sample"))["exponent"]
        assert splits.between(0.9, 2.6).all() and splits.is_monotonic_increasing

    def test_bitstamp_shows_the_books_that_it_published(self, recordings: Path) -> None:
        import json
        import lzma

        path = next((recordings / "level3/bitstamp").iterdir())
        market = queues.publish(queues.rebuild(level3.read(path, "BTC", 5)))
        told = [
            line.split(" ", 2)
            for line in lzma.decompress(path.read_bytes()).decode().splitlines()
            if "order_book" in line
        ]
        ns = np.array([int(stamp) * 10**6 for stamp, _, _ in told])
        best = np.array([[float(json.loads(book)[side][0][0]) for side in ("bids", "asks")] for _, _, book in told])
        top = market.top_at(ns)
        equal = (top.bid_price == best[:, 0]) & (top.ask_price == best[:, 1])
        assert equal[200:].mean() > 0.9
