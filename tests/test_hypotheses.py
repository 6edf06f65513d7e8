"""Registered hypotheses: pairs are demanded, intervals keep their promise, claims get a status, readings count."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from hyperdapo.errors import DataError, ParameterError
from hyperdapo.evidence import provenance
from hyperdapo.evidence.hypotheses import ledger, registered, resampling, testing
from hyperdapo.evidence.hypotheses.placebo import placebos
from hyperdapo.evidence.hypotheses.resampling import Contrasts
from hyperdapo.evidence.hypotheses.series import Comparison, Costs
from hyperdapo.evidence.hypotheses.superiority import superiority
from hyperdapo.evidence.metrics import TOTAL, sharpe_ratio
from hyperdapo.params import load
from hyperdapo.paths import Paths
from test_metrics import EVIDENCE, orders_frame

QUICK = EVIDENCE.model_copy(update={"bootstrap": 200})
CLAIMED = load("smoke").hypotheses.model_copy(update={"references": ["market", "dpo"]})
BLOCKS = np.repeat(np.arange(60), 10)


def executed(dapo: float = -1.0, dpo: float = 0.0, assets: tuple[str, ...] = ("BTC",), seed: int = 0) -> pd.DataFrame:
    """Orders of `dapo` and `dpo`, which cost so much more than market orders in the mean, by noise of their own."""
    rng, frames = np.random.default_rng(seed), []
    for asset in assets:
        market = rng.normal(5, 1, len(BLOCKS))
        for name, more in {"market": 0.0, "dapo": dapo, "dpo": dpo}.items():
            own = more + (rng.normal(size=60)[BLOCKS] * 0.2 + rng.normal(size=600)) * (name != "market")
            frames.append(orders_frame(name, market + own, BLOCKS, asset=asset))
    orders = pd.concat(frames, ignore_index=True)
    return orders.assign(cost_all_ahead_bps=orders[TOTAL], cost_all_behind_bps=orders[TOTAL])


def judged(orders: pd.DataFrame) -> pd.DataFrame:
    return registered.judge(orders, CLAIMED, QUICK, 0)


def status(orders: pd.DataFrame, reference: str = "market") -> tuple[str, str]:
    row = judged(orders).set_index("reference").loc[reference]
    return row["status"], row["because"]


class TestStatus:
    def test_a_saving_that_holds_under_both_bounds_is_established(self) -> None:
        table = judged(executed(assets=("BTC", "ETH"))).set_index(["asset", "reference"])
        assert table.index.tolist() == [(a, r) for a in ("BTC", "ETH", "all") for r in ("market", "dpo")]
        row = table.loc[("all", "market")]
        assert (row["status"], row["because"]) == ("established", "under both bounds of the queue")
        assert row["usd_per_million"] == pytest.approx(100 * row["difference_bps"]) and row["orders"] == 1200
        assert row["joint_low"] < row["ci_low"] < row["difference_bps"] < row["ci_high"] < row["joint_high"] < 0
        said = registered.verdict(table.reset_index())
        assert "all assets: DAPO costs less than Market order: established (-" in said
        assert said.endswith("Of 6 registered hypotheses: 6 established, 0 not established, 0 failed, 0 not available.")

    def test_a_saving_that_one_queue_takes_is_not(self) -> None:
        orders = executed()
        orders.loc[orders["strategy"] == "dapo", "cost_all_behind_bps"] += 2
        assert status(orders) == ("not established", "not where all cancels are behind")

    def test_a_saving_too_small_to_matter_says_so(self) -> None:
        orders = executed()
        market = orders.loc[orders["strategy"] == "market", TOTAL].to_numpy()
        noise = np.random.default_rng(1).normal(-0.05, 0.02, len(market))
        for cost in (TOTAL, "cost_all_ahead_bps", "cost_all_behind_bps"):
            orders.loc[orders["strategy"] == "dapo", cost] = market + noise
        assert status(orders) == ("established", "though below the 0.1 bps that would be of interest")

    def test_a_policy_that_is_dearer_fails(self) -> None:
        assert status(executed(dapo=1.0))[0] == "failed"

    def test_no_difference_says_what_would_have_been_seen(self) -> None:
        outcome, because = status(executed(dapo=0.0))
        assert outcome == "not established" and because.endswith("bps would have been seen in four of five such tests")
        coarse = CLAIMED.model_copy(update={"smallest_effect_bps": 1.0})
        row = registered.judge(executed(dapo=0.0), coarse, QUICK, 0).iloc[0]
        assert row["status"] == "not established" and row["because"].startswith("a saving beyond 0.")

    def test_what_is_not_there_is_not_available(self) -> None:
        orders = executed()
        assert status(orders[orders["strategy"] != "dpo"], "dpo") == ("not available", "no orders of dpo")
        table = judged(orders[orders["strategy"] != "dapo"])
        assert set(table["status"]) == {"not available"} and table["difference_bps"].isna().all()

    def test_the_hypotheses_are_the_same_for_every_run(self) -> None:
        assert load("sample").hypotheses == load("real").hypotheses
        with pytest.raises(ParameterError, match=r"registered\.yaml"):
            load("smoke", {"hypotheses": {"alpha": 0.2}})


class TestBadInput:
    """None of it may read as `not significantly different`."""

    def test_an_order_that_stands_there_twice(self) -> None:
        orders = executed()
        with pytest.raises(DataError, match="BTC market: order 3 stands there twice"):
            judged(pd.concat([orders, orders.iloc[[3]]]))

    def test_an_order_that_a_strategy_did_not_execute(self) -> None:
        orders = executed()
        gone = orders[(orders["strategy"] == "dpo") & (orders["order_id"].isin([4, 9]))].index
        with pytest.raises(DataError, match="BTC dpo did not execute order 4, which others did: 598 of 600"):
            judged(orders.drop(gone))

    def test_an_order_with_two_times(self) -> None:
        orders = executed()
        orders.loc[5, "decision_ns"] += 1
        with pytest.raises(DataError, match="BTC market: order 5 has two decision times"):
            judged(orders)

    def test_a_column_that_is_missing(self) -> None:
        with pytest.raises(DataError, match="cost_all_ahead_bps"):
            judged(executed().drop(columns="cost_all_ahead_bps"))

    def test_no_orders(self) -> None:
        with pytest.raises(DataError, match="not one test order was executed"):
            judged(executed().iloc[:0])

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_cost_that_is_no_finite_number(self, value: float) -> None:
        orders = executed()
        orders.loc[orders.index[-1], TOTAL] = value
        assert status(orders, "dpo") == ("not available", "1 of 600 costs of dpo are no finite numbers")
        assert status(orders)[0] == "established", "what is whole is tested"

    def test_constant_and_empty_differences(self) -> None:
        orders = executed()
        market = orders.loc[orders["strategy"] == "market", TOTAL].to_numpy()
        orders.loc[orders["strategy"] == "dapo", TOTAL] = market - 2
        assert status(orders) == ("not available", "a constant difference")
        orders.loc[orders["strategy"] == "dapo", TOTAL] = market
        assert status(orders) == ("not available", "the same orders")

    @pytest.mark.parametrize("blocks", [1, 5])
    def test_few_blocks(self, blocks: int) -> None:
        orders = executed()
        few = orders[orders["block"] < blocks]
        assert status(few) == ("not available", f"{blocks} blocks of 60 s; a family of 2 needs 7")

    def test_a_constant_series_has_no_sharpe_ratio(self) -> None:
        assert np.isnan(sharpe_ratio(np.full(100, 0.1) + 1e-17 * np.arange(100)))


class TestResampling:
    def test_intervals_of_a_slow_series_cover(self) -> None:
        """Differences that are tied over five bins, as by a signal of one block: 120 bins, 24 blocks."""
        rng, beyond, naive = np.random.default_rng(0), 0, 0
        for trial in range(200):
            series = lfilter([1], [1, -0.7], rng.normal(size=(170, 4)), axis=0)[50:]
            estimates = resampling.estimate(contrasts(series), 5, 24, 100, trial)
            beyond += bool((estimates.p_simultaneous() <= 0.05).any())
            naive += bool((np.abs(series.mean(axis=0) / series.std(axis=0) * np.sqrt(120)) > 1.96).any())
        assert beyond <= 20 and naive >= 100, "of 200 families 10 are expected beyond"

    def test_the_interval_and_the_p_value_agree(self) -> None:
        rng = np.random.default_rng(3)
        for trial in range(30):
            estimates = resampling.estimate(contrasts(rng.normal(0.2, 1, (100, 5))), 5, 20, 99, trial)
            inside = np.abs(estimates.value) <= estimates.critical(0.05) * estimates.error
            assert (inside == (estimates.p_simultaneous() > 0.05)).all()

    def test_blocks_grow_with_the_memory_of_the_data(self) -> None:
        white = np.random.default_rng(1).normal(size=(2000, 3))
        assert resampling.block_bins(white, 5) == 5
        assert resampling.block_bins(lfilter([1], [1, -0.95], white, axis=0), 5) > 20
        assert resampling.block_bins(white[:10], 5) == 5

    def test_seeds_that_differ_widen_the_interval(self) -> None:
        orders = executed(dapo=-1.0)
        trained = orders[orders["strategy"] == "dapo"]
        seeds = [trained.assign(seed=k, **{TOTAL: trained[TOTAL] + shift}) for k, shift in enumerate((-0.4, 0.0, 0.4))]
        several = pd.concat([orders[orders["strategy"] != "dapo"].assign(seed=-1), *seeds])
        family = [Comparison("BTC", "dapo", "market")]
        one, three = (testing.tests(Costs.of(o, TOTAL, 60), family, QUICK, 0).iloc[0] for o in (orders, several))
        assert three["seeds"] == 3 and three["difference_bps"] == pytest.approx(one["difference_bps"])
        assert three["se_bps"] == pytest.approx(np.hypot(one["se_bps"], 0.4 / np.sqrt(3)), rel=1e-6)
        assert three["degrees"] < 4 and three["joint_high"] - three["joint_low"] > 3 * (
            one["joint_high"] - one["joint_low"]
        )

    def test_how_many_blocks_a_family_needs(self) -> None:
        assert [testing.fewest_blocks(m, 0.05) for m in (1, 30, 68)] == [6, 11, 12]


def contrasts(series: np.ndarray) -> Contrasts:
    bins, k = series.shape
    return Contrasts(series, np.eye(k), np.ones((bins, k)), np.arange(k))


class TestSuperiority:
    def test_a_policy_that_beats_every_rule_is_named(self) -> None:
        row = superiority(executed(dapo=-1.0, dpo=0.3), ["dapo", "dpo"], QUICK, 0).iloc[0]
        assert (row["rule"], row["learned"], row["better"], row["best"]) == ("market", 2, "dapo", "dapo")
        assert row["p_spa"] < 0.05

    def test_nothing_better_reads_so(self) -> None:
        row = superiority(executed(dapo=0.2, dpo=0.3), ["dapo", "dpo"], QUICK, 0).iloc[0]
        assert row["better"] == "" and row["p_spa"] > 0.2 and "market" in row["best"]

    def test_few_blocks_and_no_policy(self) -> None:
        orders = executed()
        assert (
            superiority(orders[orders["block"] < 3], ["dapo"], QUICK, 0)["note"].iloc[0].startswith("3 blocks of 60 s")
        )
        assert superiority(orders, [], QUICK, 0)["note"].iloc[0] == "no two strategies to compare"


def test_a_policy_that_sees_the_market_beats_its_own_decisions_elsewhere() -> None:
    rng, states = np.random.default_rng(0), 400
    costs = rng.normal(3, 1, (states, 3))
    index = {"order_id": np.repeat(np.arange(states), 3), "decision_ns": np.repeat(np.arange(states), 3) * 10**10}
    outcomes = pd.DataFrame(index | {"asset": "BTC", "split": "test", "action": np.tile(np.arange(3), states)})
    outcomes[TOTAL] = costs.ravel()
    chosen = {"dapo": costs.argmin(axis=1), "dpo": rng.integers(0, 3, states), "linear": np.zeros(states, dtype=int)}
    decisions = pd.concat(
        pd.DataFrame({"asset": "BTC", "order_id": np.arange(states), "policy": name, "seed": 0, "action": action})
        for name, action in chosen.items()
    )
    table = placebos(outcomes, decisions, list(chosen), EVIDENCE).set_index("policy")
    assert table.loc["dapo", "p_placebo"] < 0.01 and table.loc["dapo", "difference_bps"] < -0.5
    assert table.loc["dpo", "p_placebo"] > 0.05
    assert np.isnan(table.loc["linear", "p_placebo"]) and table.loc["linear", "note"] == "one action in every state"


class TestLedger:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "ledger.jsonl"
        for name in ("09_significance", "judge", "09_significance"):
            at = {"at": "2026-11-28T21:00:00+00:00", "commit": "abc", "parameters": "p", "orders": "o"}
            ledger.append(path, at | {"by": name})
        return path

    def test_it_grows_line_by_line(self, path: Path) -> None:
        lines = ledger.read(path)
        assert [line["number"] for line in lines] == [1, 2, 3] and lines[1]["before"] == lines[0]["hash"]

    @pytest.mark.parametrize("way", ["changed", "removed", "swapped", "cut", "rehashed"])
    def test_a_line_that_was_tampered_with_is_noticed(self, path: Path, way: str) -> None:
        lines = path.read_text().splitlines()
        if way in ("changed", "rehashed"):
            line = json.loads(lines[1]) | {"by": "nobody"}
            if way == "rehashed":
                line = {key: value for key, value in line.items() if key != "hash"}
                line["hash"] = ledger._hash(line)
            lines[1] = json.dumps(line)
        elif way == "removed":
            del lines[1]
        elif way == "swapped":
            lines[1:] = reversed(lines[1:])
        else:
            lines[1] = lines[1][:40]
        path.write_text("\n".join(lines) + "\n")
        number = 3 if way == "rehashed" else 2
        with pytest.raises(DataError, match=f"line {number} is not as it was written"):
            ledger.read(path)
        with pytest.raises(DataError):
            ledger.append(path, {"by": "09_significance"})

    def test_a_later_state_follows_an_earlier_one(self, path: Path, tmp_path: Path) -> None:
        earlier = tmp_path / "earlier.jsonl"
        earlier.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
        assert ledger.follows(path, earlier) and not ledger.follows(earlier, path)
        assert ledger.follows(path, tmp_path / "none.jsonl")

    def test_it_is_no_file_that_is_left_over(self, path: Path) -> None:
        assert provenance.faults(path.parent, {"stages": {"01_download BTC": {"files": {}}}}, []) == []

    def test_the_summary_counts(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Paths, "outputs", path.parent)
        said = ledger.summary(Paths("smoke"))
        assert said.startswith("ledger: the test orders were opened 3 times") and said.endswith(
            "by others than 09: judge"
        )
