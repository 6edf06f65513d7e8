"""Probes in the matching engine, the simulator beside their truth, and the same through an account's records."""

import gzip
import json
from dataclasses import astuple, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from exports import Exported, export
from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.evidence import calibration
from hyperdapo.execution import costs, history, validation
from hyperdapo.execution.history import Executions, read_account
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Integers
from hyperdapo.params import load
from hyperdapo.synthetic import exchange, matching
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.order_book import (
    ASK,
    BID,
    NOBODY,
    OrderBook,
    Probes,
    State,
    empty_book,
    empty_messages,
    no_probes,
    unplaced,
)
from hyperdapo.synthetic.probes import draw_probes, play_probes
from hyperdapo.synthetic.tape import CHANNELS, Tape

PARAMETERS = load("sample", {"execution": {"impact_coefficient_bps": 70, "queue_exponent": 0.3}})
START, SECOND, HOUR = PARAMETERS.source.start_ns, 10**9, 3600 * 10**9
SEED = np.uint64(3)
NODE_FILLS = "node_fills_by_block/20251027-1700.jsonl.gz"


@lru_cache(maxsize=4)
def played(asset: str = "ETH", hours: float = 1.0, seed: int = 5) -> tuple[Market, Executions]:
    return play_probes(replace(World.of(PARAMETERS, asset), seed=seed), START, START + round(hours * HOUR), 400)


class TestEngine:
    @staticmethod
    def probe(book: OrderBook, side: int, steps: int, lots: int, post_only: bool) -> tuple[Probes, list]:
        """One probe admitted to a book, and the prints it made."""
        one = [np.array([value]) for value in (5, 50, side, steps, lots)]
        probes = unplaced(*one, np.array([post_only]), np.array([True]))
        state, messages = State(0, 10, 12, 0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, 0, 0), empty_messages(1, 1, 64)
        matching._admit(book, probes, 1, state, post_only, True, messages)
        probes.passed[0] = 1
        return probes, messages.print[: messages.used[2]].tolist()

    @staticmethod
    def book() -> OrderBook:
        """Bids of 4 and 3 lots at level 10 and 5 at 9; asks of 6 lots at 12 and 7 at 13."""
        book = empty_book(20, 64)
        for side, level, lots in ((BID, 10, 4), (BID, 10, 3), (BID, 9, 5), (ASK, 12, 6), (ASK, 13, 7)):
            assert matching.post(book, side, level, lots)
        return book

    def test_a_probe_waits_for_those_before_it(self) -> None:
        book = self.book()
        probes, printed = self.probe(book, BID, 0, 2, post_only=True)
        assert not printed and probes.each["ahead"][0] == 7 and probes.each["placed_ns"][0] == 10
        prints = np.zeros((8, 5), np.int64)
        used = matching.take(book, ASK, 10, 8, prints, 0)
        assert prints[:used].tolist() == [[10, 4, 1, -1, -1], [10, 3, 1, -1, -1], [10, 1, 1, 0, -1]]

    def test_one_that_crosses_takes_up_to_its_limit_and_rests(self) -> None:
        book = self.book()
        probes, printed = self.probe(book, BID, -2, 9, post_only=False)
        assert printed == [[12, 6, 0, NOBODY, 0]] and book.queues[12]["lots"] == 3 and book.top[:2].tolist() == [12, 13]
        assert book.orders["owner"][probes.each["order"][0]] == 0

    def test_a_post_only_one_that_would_cross_is_rejected(self) -> None:
        probes, printed = self.probe(self.book(), ASK, -2, 1, post_only=True)
        assert probes.each["rejected"][0] and not printed and probes.each["order"][0] == NOBODY

    def test_its_cancel_leaves_the_others(self) -> None:
        book = self.book()
        probes, _ = self.probe(book, ASK, 0, 2, post_only=True)
        matching._recall(book, probes, 49)
        assert book.queues[12]["lots"] == 8 and probes.each["ended_ns"][0] == 0
        matching._recall(book, probes, 50)
        assert book.queues[12]["lots"] == 6 and probes.each["ended_ns"][0] == 50 and probes.passed[1] == 1

    def test_no_fill_before_the_block_or_after_the_cancel_or_beyond_the_limit_or_the_size(self) -> None:
        _, truth = played()
        orders = truth.orders.set_index("order_id")
        of_fill = orders.loc[truth.fills["order_id"]].reset_index()
        assert (truth.fills["exchange_ns"] >= of_fill["placed_ns"]).all()
        assert (truth.fills["exchange_ns"] < of_fill["cancel_ns"] + 110_000_000).all()
        assert (of_fill["side"] * (of_fill["limit_price"] - truth.fills["price"]) >= -1e-9).all()
        done = truth.fills.groupby("order_id")["size"].sum().reindex(orders.index, fill_value=0.0)
        assert (done <= orders["size"] + 1e-9).all()
        assert ((done >= orders["size"] - 1e-9) == (orders["status"] == "filled")).all()
        assert set(orders["status"]) == {"filled", "canceled", "rejected"}
        assert not truth.fills["order_id"].isin(orders.index[orders["status"] == "rejected"]).any()


WORLD, QUARTER = replace(World.of(PARAMETERS, "ETH"), seed=5), (START, START + HOUR // 4)


@lru_cache(maxsize=1)
def published() -> Tape:
    return WORLD.simulate(*QUARTER)


class TestPairedRun:
    """The same market with and without probes: it differs by what they do, and forgets them."""

    def beside(self, side: int, steps: int, lots: int, post_only: bool = False) -> tuple[Tape, int, int]:
        """The market with one probe from the second minute to the third, and when it came and went."""
        come, gone = START + 60 * SECOND, START + 120 * SECOND
        one = [np.array([value]) for value in (come, gone, side, steps, lots)]
        probes = unplaced(*one, np.array([post_only]), np.array([True]))
        tape = WORLD.simulate(*QUARTER, probes)
        return tape, int(probes.each["placed_ns"][0]), int(probes.each["ended_ns"][0]) or come

    @staticmethod
    def differ(one: Tape, other: Tape) -> Integers:
        """Stamps of the snapshots that differ at any of 40 levels."""
        assert np.array_equal(one.book.exchange_ns, other.book.exchange_ns)
        pairs = zip(astuple(one.book)[2:], astuple(other.book)[2:], strict=True)
        same = [np.isclose(mine, theirs, equal_nan=True).all(axis=1) for mine, theirs in pairs]
        return one.book.exchange_ns[~np.all(same, axis=0)]

    def test_no_probe_is_the_same_bytes(self) -> None:
        """Nor is one that is refused anything to the others."""
        span = CHANNELS, *QUARTER
        tape, _, _ = self.beside(BID, -3, 1000, post_only=True)
        assert tape.lines(*span) == published().lines(*span)

    def test_a_far_one_is_seen_at_its_own_level_while_it_lives_and_changes_nothing(self) -> None:
        without, (tape, come, gone) = published(), self.beside(BID, 12, 1000, post_only=True)
        differ = self.differ(without, tape)
        assert len(differ) > 100 and come <= differ[0] and differ[-1] < gone
        rows = np.isin(without.book.exchange_ns, differ)
        changed = tape.book.bid_size[rows].sum(axis=1) - without.book.bid_size[rows].sum(axis=1)
        level = tape.book.bid_price[rows] == without.book.bid_price[rows]
        whole = level.all(axis=1)
        assert whole.mean() > 0.9 and changed[whole] == pytest.approx(1000 * 10.0**-tape.sz_decimals)
        assert np.array_equal(tape.trades.size, without.trades.size)
        for mine, theirs in zip(astuple(tape.bbo), astuple(without.bbo), strict=True):
            assert np.array_equal(mine, theirs)

    @pytest.mark.parametrize(
        ("steps", "lots"), [(-12, 2_000_000), (-1, 5000), (0, 5000)], ids=["takes", "before", "at"]
    )
    def test_what_one_did_is_forgotten_in_eight_minutes(self, steps: int, lots: int) -> None:
        """2,150 USD at the touch or a tick before it, or 860,000 that sweep the levels behind the other.

        An order that the probe kept from trading lives for a minute on average, the longest of some hundred for six.
        """
        without = published()
        for side in (BID, ASK):
            tape, come, gone = self.beside(side, steps, lots)
            differ = self.differ(without, tape)
            assert len(differ) and come <= differ[0] and differ[-1] < gone + 480 * SECOND
            later = without.trades.exchange_ns > gone + 480 * SECOND
            assert np.array_equal(without.trades.size[later], tape.trades.size[-later.sum() :])

    def test_news_and_takers_do_not_depend_on_the_book(self) -> None:
        ended = []
        for probes in (no_probes(), draw_probes(WORLD, *QUARTER, 2000)):
            book, messages = empty_book(len(WORLD.ladder), 1 << 14), empty_messages(4000, 20_000, 80_000)
            state, rules = exchange._opening(WORLD, START), exchange._rules(WORLD, START, START + HOUR // 8)
            ended.append(matching.run(book, state, rules, WORLD.ladder, START + HOUR // 8, messages, SEED, probes))
        assert ended[0] == ended[1] and probes.passed[0] > 100


class TestScores:
    @pytest.mark.slow
    @pytest.mark.parametrize("asset", ["BTC", "ETH", "SOL", "HYPE"])
    def test_the_power_queue_is_nearer_to_the_truth_than_the_extremes(self, asset: str) -> None:
        """On HYPE, whose levels hold least, it is as near: what is missed there are orders that went stale."""
        scores = calibration.fill_scores(validation.replay_by_queue_model(*played(asset, 3.0), PARAMETERS.execution))
        assert tuple(scores.columns[:7]) == calibration.SCORES
        table = scores.set_index("queue_model")
        bound = 0.002 if asset == "HYPE" else 0.0
        assert table.loc["power", "brier"] < min(table.loc[["risk_averse", "touch"], "brier"]) + bound
        assert table.loc["power", "auc"] > 0.97 and table.loc["power", "orders"] > 800

    def test_prints_say_when_an_order_is_filled_that_quotes_have_passed(self) -> None:
        """A quote that comes to a probe's price is refused; of the probes that prints fill, as many are filled."""
        market, truth = played("BTC", 3.0)
        compared = validation.replay_executions(market, truth, PARAMETERS.execution)
        made = compared[compared["filled_through"] > 0.5]
        assert len(made) > 200 and made["true_filled"].mean() == pytest.approx(made["filled"].mean(), abs=0.02)

    def test_the_truth_itself_has_no_error(self) -> None:
        market, truth = played()
        orders = validation.replay_executions(market, truth, PARAMETERS.execution)
        told = {"filled": orders["true_filled"], "fill_ns": orders["true_fill_ns"], "cost_bps": orders["true_cost_bps"]}
        scores = calibration.score(orders.assign(**told))
        assert scores["auc"] == 1.0
        assert [scores[name] for name in ("brier", "fill_time_error_s", "cost_error_bps", "cost_bias_bps")] == [0] * 4

    def test_a_hand_worked_score(self) -> None:
        orders = pd.DataFrame(
            {
                "placed_ns": 0,
                "cancel_ns": 10 * 10**9,
                "true_filled": [1.0, 1.0, 0.0, 0.5],
                "filled": [1.0, 0.0, 0.0, 1.0],
                "true_fill_ns": [2 * 10**9, 3 * 10**9, -1, 4 * 10**9],
                "fill_ns": [5 * 10**9, -1, -1, 10**9],
                "true_cost_bps": [1.0, 2.0, 3.0, 4.0],
                "cost_bps": [1.0, 5.0, 3.0, 3.0],
            }
        )
        scores = calibration.score(orders)
        assert scores["brier"] == pytest.approx((0 + 1 + 0 + 0.25) / 4)
        assert scores["fill_time_error_s"] == pytest.approx(3.0)
        assert (scores["cost_error_bps"], scores["cost_bias_bps"]) == (pytest.approx(1.0), pytest.approx(0.5))
        assert scores["auc"] == pytest.approx(1.5 / 4)  # ranks: 1.5 true, 1.9 false; 0 true ties with 0 false

    def test_a_market_of_another_time_is_refused(self) -> None:
        market, truth = played()
        moved = truth.orders.assign(
            placed_ns=truth.orders["placed_ns"] + 9 * HOUR, cancel_ns=truth.orders["cancel_ns"] + 9 * HOUR
        )
        with pytest.raises(DataError, match="no order was accepted within the span"):
            validation.replay_executions(market, Executions(moved, truth.fills), PARAMETERS.execution)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(played()[1], "ETH", tmp_path_factory.mktemp("account"))


class TestAccount:
    def test_what_was_exported_is_read_again(self, exported: Exported) -> None:
        _, truth = played()
        back, left_out = read_account(exported.historical_orders, exported.user_fills, "ETH")
        assert left_out.total() == 0
        orders, again = truth.orders, back.orders
        rank = {"placed_ns": "placed_ns", "limit_price": "limit_price", "size": "size", "side": "side"}
        keys = list(rank)
        both = orders.merge(again, on=keys, suffixes=("", "_back"))
        assert len(both) == len(orders) and (both["status"] == both["status_back"]).all()
        cancelled = both["status"] == "canceled"
        assert (both["cancel_ns"] // 10**6 == both["cancel_ns_back"] // 10**6)[cancelled].all()
        assert (both["post_only"] == both["post_only_back"]).all()
        assert back.fills["size"].sum() == pytest.approx(truth.fills["size"].sum())
        assert sorted(back.fills["tid"]) == sorted(truth.fills["tid"])

    def test_the_simulator_is_scored_by_records_as_by_the_engine(self, exported: Exported) -> None:
        market, truth = played()
        back, _ = read_account(exported.historical_orders, exported.user_fills, "ETH")
        known = validation.replay_executions(market, truth, PARAMETERS.execution).sort_values(
            ["placed_ns", "limit_price", "size"]
        )
        told = validation.replay_executions(market, back, PARAMETERS.execution).sort_values(
            ["placed_ns", "limit_price", "size"]
        )
        np.testing.assert_allclose(known["true_filled"], told["true_filled"], atol=1e-9)
        ended = known["status"].to_numpy() == "canceled"
        np.testing.assert_allclose(known["filled"][ended], told["filled"][ended], atol=1e-9)

    def test_the_fees_of_the_export_are_those_of_the_table(self, exported: Exported) -> None:
        fills = history.read_node_fills(exported.node_fills).rows
        explained = costs.explain_fees(fills)
        assert explained["explained"].all() and set(explained["explanation"]) == {"tier"}

    def test_orders_whose_fate_is_not_known_are_counted(self, exported: Exported, tmp_path: Path) -> None:
        orders = json.loads(exported.historical_orders.read_text())
        filled = [row for row in orders if row["status"] == "filled"]
        filled[0]["order"]["isTrigger"] = True
        filled[1]["order"]["tif"] = "Ioc"
        filled[2]["status"] = "open"
        filled[4]["status"] = "vanished"
        lost = filled[3]["order"]["oid"]
        fills = [row for row in json.loads(exported.user_fills.read_text()) if row["oid"] != lost]
        paths = tmp_path / "orders.json", tmp_path / "fills.json"
        for path, rows in zip(paths, (orders, fills), strict=True):
            path.write_text(json.dumps(rows))
        executions, left_out = read_account(*paths, "ETH")
        assert dict(left_out) == {
            "rows": 0,
            "trigger": 1,
            "not_resting": 1,
            "open": 1,
            "unknown_status": 1,
            "unexplained": 1,
        }
        assert len(executions.orders) == len(orders) - 5

    @pytest.mark.parametrize(
        ("status", "fate"),
        [
            ("canceled", "canceled"),
            ("scheduledCancel", "canceled"),
            ("marginCanceled", "canceled"),
            ("rejected", "rejected"),
            ("badAloPxRejected", "rejected"),
        ],
    )
    def test_every_documented_end_is_known(self, status: str, fate: str, exported: Exported, tmp_path: Path) -> None:
        orders = json.loads(exported.historical_orders.read_text())
        row = next(
            row for row in orders if row["status"] == "canceled" and row["order"]["sz"] == row["order"]["origSz"]
        )
        row["status"] = status
        (tmp_path / "orders.json").write_text(json.dumps(orders))
        executions, left_out = read_account(tmp_path / "orders.json", exported.user_fills, "ETH")
        assert left_out.total() == 0
        mine = executions.orders.set_index("order_id")["status"]
        assert mine[row["order"]["oid"]] == fate

    def test_the_true_cost_is_what_was_charged(self, exported: Exported) -> None:
        """A maker's fee of 1.5 bps becomes 5 bps in one account, and costs its orders as much more."""
        market, _ = played()
        executions, _ = read_account(exported.historical_orders, exported.user_fills, "ETH")
        dearer = executions.fills.assign(fee=executions.fills["fee"] * 2)
        elsewhere = executions.fills.assign(fee=np.nan)
        plain, twice, ours = (
            validation.replay_executions(market, Executions(executions.orders, fills), PARAMETERS.execution)
            for fills in (executions.fills, dearer, elsewhere)
        )
        charged = (executions.fills["fee"] * 1e4).groupby(executions.fills["order_id"]).sum()
        mine = plain.set_index("order_id")
        more = (charged.reindex(mine.index, fill_value=0.0) / (mine["size"] * mine["arrival_mid"])).to_numpy()
        np.testing.assert_allclose(twice["true_cost_bps"] - plain["true_cost_bps"], more, atol=1e-9)
        np.testing.assert_allclose(ours["true_cost_bps"], plain["true_cost_bps"], atol=0.01)  # written with 6 decimals
        assert more.max() > 1 and (twice["cost_bps"] == plain["cost_bps"]).all()

    def test_fills_beyond_an_order_are_an_error(self, exported: Exported, tmp_path: Path) -> None:
        fills = json.loads(exported.user_fills.read_text())
        fills[0]["sz"] = "1000.0"
        (tmp_path / "fills.json").write_text(json.dumps(fills))
        with pytest.raises(DataError, match=f"order {fills[0]['oid']} are more than its size"):
            read_account(exported.historical_orders, tmp_path / "fills.json", "ETH")

    def test_a_coin_without_orders_is_an_error(self, exported: Exported) -> None:
        with pytest.raises(DataError, match="no resting order of DOGE"):
            read_account(exported.historical_orders, exported.user_fills, "DOGE")

    @pytest.mark.parametrize("content", [b'[{"coin":', b"{}", b"[]", b"[1, 2]", b"\xff\xfe"])
    def test_damaged_files_are_named(self, content: bytes, exported: Exported, tmp_path: Path) -> None:
        (tmp_path / "broken.json").write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.json"):
            read_account(tmp_path / "broken.json", exported.user_fills, "ETH")
        with pytest.raises(MissingInputError, match=r"absent\.json"):
            read_account(exported.historical_orders, tmp_path / "absent.json", "ETH")


DOCUMENTED_ORDER = """[{"order": {"coin": "A7", "side": "A", "limitPx": "1.0", "sz": "0.0", "oid": 91490942,
 "timestamp": 1681247412573, "triggerCondition": "N/A", "isTrigger": false, "triggerPx": "0.0", "children": [],
 "isPositionTpsl": false, "reduceOnly": true, "orderType": "Market", "origSz": "20.0", "tif": "FrontendMarket",
 "cloid": null}, "status": "filled", "statusTimestamp": 1681247412574}]"""
DOCUMENTED_FILL = """[{"closedPnl": "0.0", "coin": "AVAX", "crossed": false, "dir": "Open Long",
 "hash": "0xa166e3fa63c25663024b03f2e0da011a00307e4017465df020210d3d432e7cb8", "oid": 90542681, "px": "18.435",
 "side": "B", "startPosition": "26.86", "sz": "93.53", "time": 1681222254710, "fee": "0.01", "feeToken": "USDC",
 "builderFee": "0.01", "tid": 118906512037719}]"""


class TestFormats:
    def test_the_documented_examples(self, tmp_path: Path) -> None:
        (tmp_path / "orders.json").write_text(DOCUMENTED_ORDER)
        (tmp_path / "fills.json").write_text(DOCUMENTED_FILL)
        order = history.read_historical_orders(tmp_path / "orders.json").rows.iloc[0]
        assert (order["order_id"], order["side"], order["size"], order["tif"]) == (91490942, -1, 20.0, "FrontendMarket")
        assert order["placed_ns"] == 1681247412573 * 10**6
        fill = history.read_user_fills(tmp_path / "fills.json").rows.iloc[0]
        assert (fill["coin"], fill["side"], fill["price"], fill["crossed"], fill["fee"]) == (
            "AVAX",
            1,
            18.435,
            False,
            0.01,
        )

    def test_the_latest_status_of_an_order_counts(self, tmp_path: Path) -> None:
        first = json.loads(DOCUMENTED_ORDER)[0]
        opened = first | {"status": "open", "statusTimestamp": first["order"]["timestamp"]}
        (tmp_path / "orders.json").write_text(json.dumps([first, opened]))
        told = history.read_historical_orders(tmp_path / "orders.json")
        assert told.rows["status"].tolist() == ["filled"] and told.dropped == {"superseded": 1}

    def test_lines_that_are_not_whole_are_counted(self, exported: Exported, tmp_path: Path) -> None:
        lines = gzip.decompress(exported.node_fills.read_bytes()).splitlines(keepends=True)
        (tmp_path / "torn.jsonl").write_bytes(b"".join([*lines[:20], lines[20][:40]]))
        told = history.read_node_fills(tmp_path / "torn.jsonl")
        assert told.dropped == {"malformed_block": 1} and len(told.rows) == sum(
            line.count(b'"tid"') for line in lines[:20]
        )
        (tmp_path / "cut.jsonl.gz").write_bytes(exported.node_fills.read_bytes()[:-40])
        with pytest.raises(DataError, match=r"cut\.jsonl\.gz cannot be decompressed"):
            history.read_node_fills(tmp_path / "cut.jsonl.gz")


@pytest.fixture(scope="module")
def fills(recordings: Path) -> pd.DataFrame:
    told = history.read_node_fills(recordings / NODE_FILLS)
    assert not told.dropped
    return told.rows


class TestRealFills:
    def test_every_fee_of_a_perpetual_is_in_our_table(self, fills: pd.DataFrame) -> None:
        explained = costs.explain_fees(fills)
        perpetual = explained[explained["market"] == "perpetual"]
        assert len(perpetual) == 6608 and perpetual["explained"].all()
        assert perpetual.loc[perpetual["notional"] > 100, "chance"].median() < 0.05

    def test_a_wrong_table_would_be_noticed(self, fills: pd.DataFrame) -> None:
        dearer = fills.assign(fee=fills["fee"] + fills["price"] * fills["size"] * 0.137e-4)
        explained = costs.explain_fees(dearer)
        large = explained[(explained["market"] == "perpetual") & (explained["notional"] > 100)]
        assert large["explained"].mean() < 0.1
