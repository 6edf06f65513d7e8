"""The laws of chapter 2 as measured: by hand on small markets, and found again in data that were made by them."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from hand_built import at, known_at, market
from hyperdapo.errors import DataError, ParameterError
from hyperdapo.evidence.figures import features as facts_figures
from hyperdapo.evidence.figures import style
from hyperdapo.execution import laws
from hyperdapo.market.book import Market
from hyperdapo.market.columns import select
from hyperdapo.market.features import decision_grid
from hyperdapo.market.quality import by_minute, daily_volume
from hyperdapo.paths import Paths
from markets import SECOND, random_market
from test_features import _market

BLOCK_S = 300.0
EVER = 2**62


def whole(tape: Market, after_s: float = 10.0) -> pd.DataFrame:
    return laws.aggressive_orders(tape, 0, EVER, after_s)


def made_orders(
    seed: int, coefficient: float, exponent: float, noise: float, blocks: int = 30
) -> tuple[pd.DataFrame, float]:
    """2,000 orders of eq. 2.4 with that exponent, a third of whose noise a block of time shares, and their V."""
    rng = np.random.default_rng(seed)
    block = np.sort(rng.integers(0, blocks, 2000))
    size = np.exp(rng.normal(0, 2, 2000))
    volume = 12 * size.sum()
    shared = np.sqrt(0.3) * rng.normal(size=blocks)[block] + np.sqrt(0.7) * rng.normal(size=2000)
    impact = coefficient * (size / volume) ** exponent + noise * shared
    local_ns = block * round(BLOCK_S) * SECOND + rng.integers(0, 300 * SECOND, 2000)
    return pd.DataFrame({"local_ns": local_ns, "side": 1, "size": size, "impact_bps": impact}), volume


def made_reaches(seed: int, scale: float, alpha: float, blocks: int = 30, decisions: int = 60) -> pd.DataFrame:
    """Reaches of eq. 2.5: beyond delta with probability 1 - exp(-scale delta^-alpha), alike within a block of time."""
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(blocks), decisions)
    shared = np.sqrt(0.3) * rng.normal(size=blocks)[block] + np.sqrt(0.7) * rng.normal(size=len(block))
    reach = (scale / -np.log(norm.sf(shared))) ** (1 / alpha)
    decision_ns = block * 300 * SECOND + np.tile(np.arange(decisions) * 5 * SECOND, blocks)
    return pd.DataFrame({"decision_ns": decision_ns, "side": 1, "reach_bps": reach})


def of(fit: laws.Fit) -> pd.DataFrame:
    return fit.parameters.set_index("parameter")


def covered(estimates: list[pd.Series], truth: float) -> float:
    return float(np.mean([row["ci_low"] < truth < row["ci_high"] for row in estimates]))


class TestOrders:
    TAPE = market(
        quotes=[(10, 999.9, 1, 1000.1, 1), (20, 1000.4, 1, 1000.6, 1), (29, 999.4, 1, 999.6, 1)],
        prints=[(20, 1000.1, 2.0, 1), (20, 1000.2, 3.0, 1), (20, 999.9, 0.5, -1), (25, 999.9, 4.0, -1)],
    )

    def test_prints_of_one_block_and_side_are_one_order(self) -> None:
        orders = whole(self.TAPE)
        assert orders["local_ns"].tolist() == [known_at(20), known_at(20), known_at(25)]
        assert orders["side"].tolist() == [-1, 1, -1] and orders["size"].tolist() == [0.5, 5.0, 4.0]

    def test_impact_runs_from_the_quote_of_an_earlier_block(self) -> None:
        """The quote that the block itself left, 1000.5 at 20 s, is known with its prints but is not before it."""
        later, before, after_block = 999.5, 1000.0, 1000.5
        expected = [-(later / before - 1), later / before - 1, -(later / after_block - 1)]
        assert whole(self.TAPE)["impact_bps"].tolist() == pytest.approx([1e4 * move for move in expected])

    def test_impact_ends_with_the_mid_known_then(self) -> None:
        orders = whole(self.TAPE, after_s=8.9)
        assert orders["impact_bps"].tolist()[:2] == pytest.approx([-5.0, 5.0])

    def test_neither_end_of_the_span_belongs_to_both_sides(self) -> None:
        before = laws.aggressive_orders(self.TAPE, 0, known_at(25))
        after = laws.aggressive_orders(self.TAPE, known_at(25), EVER)
        assert len(before) == 2 and after["local_ns"].tolist() == [known_at(25)]

    @pytest.mark.parametrize(
        ("gap", "sizes"),
        [((15, 16), [4.0]), ((24, 26), []), ((31, 32), [0.5, 5.0]), ((36, 37), [0.5, 5.0, 4.0])],
    )
    def test_no_window_touches_a_gap(self, gap: tuple[float, float], sizes: list[float]) -> None:
        """The windows of the first two orders, from the quote before them, are 10 to 30 s, the third's 20 to 35 s."""
        gaps = np.array([[known_at(second) for second in gap]])
        assert whole(replace(self.TAPE, gaps=gaps))["size"].tolist() == sizes

    def test_no_window_leaves_the_data(self) -> None:
        """The first print is of the block of the first quote, whose message came before its own."""
        tape = market(prints=[(0, 1000.1, 1.0, 1), (380, 1000.1, 2.0, 1), (395, 1000.1, 3.0, 1)])
        tape = replace(tape, trades=replace(tape.trades, local_ns=tape.trades.local_ns + SECOND // 100))
        assert whole(tape)["size"].tolist() == [2.0]

    def test_day_by_day_is_the_whole(self) -> None:
        tape = random_market(3)
        begin, end = (int(ns) for ns in tape.top.local_ns[[0, -1]])
        bounds = np.linspace(begin, end + 1, 5).astype(int)
        days = [laws.aggressive_orders(tape, low, high) for low, high in pairwise(bounds)]
        together = pd.concat(days, ignore_index=True)
        pd.testing.assert_frame_equal(together, whole(tape), check_exact=True)
        assert len(together) > 800 and min(len(day) for day in days) > 150

    def test_of_many_observations_every_kth_of_each_part_is_kept(self) -> None:
        parts = [pd.DataFrame({"size": np.arange(first, first + 10)}) for first in (0, 10)]
        for most, expected in ((20, list(range(20))), (19, list(range(0, 20, 2))), (7, [0, 4, 8, 10, 14, 18])):
            kept = laws.Thinned(most)
            for part in parts:
                kept.add(part)
            assert kept.joined()["size"].tolist() == expected

    def test_what_is_kept_does_not_grow_with_the_span(self) -> None:
        kept, parts = laws.Thinned(1000), [pd.DataFrame({"size": np.arange(97.0)})] * 300
        for number, part in enumerate(parts, start=1):
            kept.add(part)
            size = len(kept.joined())
            assert min(97 * number, 500) <= size <= 1000 + number
        assert kept.every == 32 and kept.joined()["size"].tolist() == [*range(0, 97, 32)] * 300

    def test_daily_volume_is_that_of_the_minutes_observed(self) -> None:
        minutes = pd.DataFrame({"minute_ns": [0, 1, 7, 8], "volume": [2.0, 0.0, 6.0, 0.0]})
        assert daily_volume(minutes) == pytest.approx(8 * 1440 / 4)


class TestImpact:
    @pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.85, 1.0), (0.5, 0.3, 0.7)])
    def test_the_law_is_found_again(self, confidence: float, least: float, most: float) -> None:
        fits = [of(laws.fit_impact(*made_orders(seed, 100.0, 0.5, 1.0), BLOCK_S, confidence)) for seed in range(40)]
        assert least <= covered([fit.loc["lambda_bps"] for fit in fits], 100.0) <= most
        assert least <= covered([fit.loc["beta"] for fit in fits], 0.5) <= most
        assert np.mean([fit.loc["lambda_bps", "value"] for fit in fits]) == pytest.approx(100, rel=0.05)
        assert np.mean([fit.loc["beta", "value"] for fit in fits]) == pytest.approx(0.5, abs=0.03)

    def test_another_exponent_is_found_and_the_draft_s_refused(self) -> None:
        fit = laws.fit_impact(*made_orders(1, 10.0, 0.2, 0.3), BLOCK_S, 0.95)
        beta, curve = of(fit).loc["beta"], fit.curve
        misses = {name: np.abs(curve[name] - curve["impact_bps"]).max() for name in ("free_bps", "law_bps")}
        assert beta["ci_low"] < 0.2 < beta["ci_high"] < 0.5 == beta["draft"]
        assert misses["free_bps"] < 0.2 < misses["law_bps"]

    def test_without_noise_the_law_is_exact(self) -> None:
        fit = laws.fit_impact(*made_orders(2, 50.0, 0.5, 0.0), BLOCK_S, 0.95)
        assert of(fit)["value"].tolist() == pytest.approx([50, 50, 0.5], rel=1e-4)
        np.testing.assert_allclose(fit.curve["law_bps"], fit.curve["impact_bps"], rtol=1e-9)
        assert fit.curve["orders"].sum() == 2000 and fit.blocks == 30

    def test_lambda_by_hand(self) -> None:
        orders = pd.DataFrame({"local_ns": [0, 1], "side": 1, "size": [1.0, 4.0], "impact_bps": [2.0, 1.0]})
        fit = laws.fit_impact(orders, 100.0, BLOCK_S, 0.95)
        assert of(fit).loc["lambda_bps", "value"] == pytest.approx((0.1 * 2 + 0.2 * 1) / (0.1**2 + 0.2**2))
        assert of(fit)[["ci_low", "ci_high"]].isna().all(axis=None), "two orders of one block have no interval"

    def test_blocks_widen_the_interval(self) -> None:
        orders, volume = made_orders(4, 100.0, 0.5, 1.0)
        apart = orders.assign(local_ns=np.arange(len(orders)) * 300 * SECOND)
        together, alone = (of(laws.fit_impact(o, volume, BLOCK_S, 0.95)).loc["lambda_bps"] for o in (orders, apart))
        assert together["value"] == pytest.approx(alone["value"])
        assert together["ci_high"] - together["ci_low"] > 2 * (alone["ci_high"] - alone["ci_low"])

    def test_no_impact_has_no_exponent(self) -> None:
        fits = [of(laws.fit_impact(*made_orders(seed, 0.0, 0.5, 1.0), BLOCK_S, 0.95)) for seed in range(40)]
        unknown = [np.isnan(fit.loc["beta", "value"]) and np.isnan(fit.loc["c_bps", "ci_high"]) for fit in fits]
        assert np.mean(unknown) >= 0.85 and np.isfinite([fit.loc["lambda_bps", "ci_low"] for fit in fits]).all()

    def test_what_sizes_cannot_tell_is_nan(self) -> None:
        orders, volume = made_orders(5, 100.0, 0.5, 0.1)
        equal = laws.fit_impact(orders.assign(size=1.0), volume, BLOCK_S, 0.95)
        assert of(equal).loc["beta"].isna().tolist() == [True, True, True, False] and len(equal.curve) == 1
        shares = orders["size"] / volume
        steep = laws.fit_impact(orders.assign(impact_bps=1e9 * shares**2.5), volume, BLOCK_S, 0.95)
        assert np.isnan(of(steep).loc["beta", "value"]) and of(steep).loc["lambda_bps", "value"] > 0

    def test_rows_that_are_not_known_are_left_out(self) -> None:
        orders, volume = made_orders(6, 100.0, 0.5, 1.0)
        spoilt = pd.concat([orders, orders.head(9).assign(impact_bps=np.nan), orders.head(9).assign(size=0.0)])
        expected = laws.fit_impact(orders, volume, BLOCK_S, 0.95)
        pd.testing.assert_frame_equal(laws.fit_impact(spoilt, volume, BLOCK_S, 0.95).parameters, expected.parameters)

    def test_nothing_to_measure_is_an_error(self) -> None:
        orders, volume = made_orders(7, 100.0, 0.5, 1.0)
        with pytest.raises(DataError, match="0 aggressive orders"):
            laws.fit_impact(whole(market()), volume, BLOCK_S, 0.95)
        with pytest.raises(DataError, match="0 coin a day"):
            laws.fit_impact(orders, 0.0, BLOCK_S, 0.95)


class TestReaches:
    TAPE = market(
        quotes=[(15, 1000.1, 1, 1000.3, 1)],
        prints=[(10, 900.0, 1, -1), (11, 999.5, 1, -1), (12, 1000.4, 1, 1), (20, 999.9, 1, -1), (21, 1200.0, 1, 1)],
    )

    def test_by_hand(self) -> None:
        """A print that is known at the decision is over; one that is known when the horizon ends still counts."""
        found = laws.reaches(self.TAPE, np.array([known_at(10), known_at(15), known_at(300)]), 10.0)
        assert found["decision_ns"].tolist() == [known_at(second) for second in (10, 10, 15, 15, 300, 300)]
        assert found["side"].tolist() == [1, -1] * 3
        first, second = [5.0, 4.0], [(1000.2 - 999.9) / 0.10002, (1200 - 1000.2) / 0.10002]
        assert found["reach_bps"].tolist() == pytest.approx([*first, *second, -np.inf, -np.inf])

    def test_the_horizon_ends_on_a_print_and_before_it(self) -> None:
        ends = [laws.reaches(self.TAPE, np.array([known_at(10)]), span)["reach_bps"][1] for span in (1.9, 2.0)]
        assert ends == pytest.approx([-5.0, 4.0])

    def test_equal_to_a_plain_loop(self) -> None:
        tape = random_market(5)
        grid = decision_grid(tape, 3.0)
        found = laws.reaches(tape, grid, 2.0)
        trades, rows = tape.trades, []
        for t in grid[(grid >= tape.top.local_ns[0]) & (grid + 2 * SECOND <= tape.top.local_ns[-1])]:
            prices = trades.price[(trades.local_ns > t) & (trades.local_ns <= t + 2 * SECOND)]
            mid = float(tape.mid_at(t)[0])
            low, high = (prices.min(), prices.max()) if len(prices) else (np.inf, -np.inf)
            rows += [(mid - low) / mid * 1e4, (high - mid) / mid * 1e4]
        assert np.isneginf(rows).any() and len(rows) > 500
        np.testing.assert_allclose(found["reach_bps"], rows, rtol=1e-9, atol=1e-9)

    def test_no_window_touches_a_gap_or_leaves_the_data(self) -> None:
        tape = replace(self.TAPE, gaps=np.array([[known_at(100), known_at(110)]]))
        seconds = [-1, 50, 90, 95, 105, 110, 389, 395]
        found = laws.reaches(tape, np.array([known_at(second) for second in seconds]), 10.0)
        assert found["decision_ns"].tolist()[::2] == [known_at(second) for second in (50, 90, 110, 389)]

    def test_day_by_day_is_the_whole(self) -> None:
        tape = random_market(8)
        grid = decision_grid(tape, 10.0)
        parts = [laws.reaches(tape, part, 60.0) for part in np.array_split(grid, 4)]
        together = pd.concat(parts, ignore_index=True)
        pd.testing.assert_frame_equal(together, laws.reaches(tape, grid, 60.0), check_exact=True)

    def test_a_market_without_prints_or_without_quotes(self) -> None:
        silent = laws.reaches(market(), np.array([at(20)]), 10.0)
        assert np.isneginf(silent["reach_bps"]).all() and len(silent) == 2
        tape = market()
        blind = replace(tape, book=select(tape.book, tape.book.local_ns < 0))
        for measure in (lambda: laws.reaches(blind, np.array([at(20)]), 10.0), lambda: whole(blind)):
            with pytest.raises(DataError, match="no l2Book or bbo"):
                measure()


class TestFillCurve:
    @pytest.mark.parametrize(
        ("scale", "alpha", "confidence", "least", "most"), [(1.0, 1.5, 0.95, 0.83, 1.0), (0.5, 0.7, 0.5, 0.25, 0.75)]
    )
    def test_the_law_is_found_again(
        self, scale: float, alpha: float, confidence: float, least: float, most: float
    ) -> None:
        made = [made_reaches(seed, scale, alpha) for seed in range(30)]
        fits = [laws.fit_fill_curve(reaches, laws.DISTANCES_BPS, BLOCK_S, confidence) for reaches in made]
        for name, truth in (("alpha", alpha), ("lambda", scale)):
            assert least <= covered([of(fit).loc[name] for fit in fits], truth) <= most
            assert np.mean([of(fit).loc[name, "value"] for fit in fits]) == pytest.approx(truth, rel=0.05)
        shares = pd.concat([fit.curve for fit in fits])
        true_share = -np.expm1(-scale * shares["distance_bps"] ** -alpha)
        known = shares["ci_low"].notna()
        assert shares["filled"].groupby(shares["distance_bps"]).mean().is_monotonic_decreasing
        assert least <= ((shares["ci_low"] < true_share) & (true_share < shares["ci_high"]))[known].mean() <= most

    def test_the_draft_s_alpha_is_refused_where_it_is_wrong_and_met_where_it_is_right(self) -> None:
        wrong, right = (
            laws.fit_fill_curve(made_reaches(3, 3.0, alpha), laws.DISTANCES_BPS, BLOCK_S, 0.95) for alpha in (0.6, 1.5)
        )
        assert of(wrong).loc["alpha", "ci_high"] < 1.5 == of(wrong).loc["alpha", "draft"]
        assert np.abs(wrong.curve["draft"] - wrong.curve["filled"]).max() > 0.15
        assert np.abs(wrong.curve["fitted"] - wrong.curve["filled"]).max() < 0.05
        assert np.abs(right.curve["draft"] - right.curve["filled"]).max() < 0.05
        assert of(right).loc["lambda_draft", "value"] == pytest.approx(3.0, rel=0.15)

    def test_two_distances_are_met_exactly(self) -> None:
        reach = np.repeat([np.nan, -np.inf, 0.5, 1.0, 2.0, 4.0], 10)
        frame = pd.DataFrame({"decision_ns": np.arange(60) * 30 * SECOND, "side": 1, "reach_bps": reach})
        fit = laws.fit_fill_curve(frame, [1.0, 2.0], BLOCK_S, 0.95)
        assert fit.curve["filled"].tolist() == pytest.approx([2 / 6, 1 / 6]), "at the limit is not through it"
        heights = [np.log(-np.log(4 / 6)), np.log(-np.log(5 / 6))]
        assert of(fit).loc["lambda", "value"] == pytest.approx(np.exp(heights[0]))
        assert of(fit).loc["alpha", "value"] == pytest.approx((heights[0] - heights[1]) / np.log(2))
        assert fit.curve["fitted"].tolist() == pytest.approx(fit.curve["filled"].tolist())

    def test_blocks_widen_the_interval(self) -> None:
        frame = made_reaches(5, 1.0, 1.0)
        apart = frame.assign(decision_ns=np.arange(len(frame)) * 300 * SECOND)
        together, alone = (laws.fit_fill_curve(f, [0.5, 1.0, 2.0], BLOCK_S, 0.95).curve for f in (frame, apart))
        assert ((together["ci_high"] - together["ci_low"]) > 1.5 * (alone["ci_high"] - alone["ci_low"])).all()

    @pytest.mark.filterwarnings("error")
    def test_what_is_not_identified_is_nan(self) -> None:
        frame = made_reaches(6, 1.0, 1.0)
        never = laws.fit_fill_curve(frame.assign(reach_bps=-np.inf), laws.DISTANCES_BPS, BLOCK_S, 0.95)
        assert of(never)[["value", "ci_low", "ci_high"]].isna().all(axis=None) and (never.curve["filled"] == 0).all()
        sharp = laws.fit_fill_curve(frame.assign(reach_bps=3.0), laws.DISTANCES_BPS, BLOCK_S, 0.95)
        assert sharp.curve["filled"].tolist() == [1] * 4 + [0] * 4 and of(sharp)["value"].isna().all()
        few = laws.fit_fill_curve(made_reaches(6, 1.0, 1.0, blocks=4), laws.DISTANCES_BPS, BLOCK_S, 0.95)
        assert of(few)["value"].notna().all() and few.curve["ci_low"].isna().all() and few.blocks == 4

    def test_a_draft_far_from_the_data_still_gets_its_lambda(self) -> None:
        """Prints that go far or nowhere: a curve as steep as the draft's has hardly a chance there."""
        rng = np.random.default_rng(0)
        reach = np.where(rng.random(3000) < 0.8, np.exp(rng.uniform(-7, 3.5, 3000)), -np.inf)
        frame = pd.DataFrame({"decision_ns": np.arange(3000) * 10 * SECOND, "side": 1, "reach_bps": reach})
        fit = laws.fit_fill_curve(frame, np.geomspace(0.001, 30, 12), BLOCK_S, 0.95)
        assert np.isfinite(of(fit)["value"]).all() and fit.curve["draft"].is_monotonic_decreasing

    def test_errors(self) -> None:
        frame = made_reaches(7, 1.0, 1.0)
        with pytest.raises(DataError, match="no decision"):
            laws.fit_fill_curve(frame.head(0), laws.DISTANCES_BPS, BLOCK_S, 0.95)
        for distances in ([0.0, 1.0], [-1.0], [np.nan], []):
            with pytest.raises(ParameterError, match="above 0 bps"):
                laws.fit_fill_curve(frame, distances, BLOCK_S, 0.95)


def test_a_real_recording(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tape = _market(recordings / "hyperliquid" / "2025-09-04" / "ETH.ndjson.gz", "ETH", 4)
    orders = whole(tape)
    volume = daily_volume(by_minute(tape.book, tape.bbo, tape.trades, tape.context))
    impact = laws.fit_impact(orders, volume, BLOCK_S, 0.95)
    fills = laws.fit_fill_curve(laws.reaches(tape, decision_grid(tape, 10.0), 60.0), laws.DISTANCES_BPS, BLOCK_S, 0.95)
    assert of(impact).loc["lambda_bps", "ci_low"] > 0 and of(impact).loc["beta", "ci_high"] < 1
    assert of(fills).loc["alpha", "ci_low"] > 0.2 and of(fills).loc["alpha", "ci_high"] < 1.5
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path))
    for figure in (
        facts_figures.plot_impact(impact.curve, impact.parameters, "ETH"),
        facts_figures.plot_fill_curve(fills.curve, fills.parameters, "ETH"),
    ):
        assert style.save(figure, Paths("smoke"), "facts").data


def test_figures_show_what_is_known() -> None:
    orders, volume = made_orders(0, 100.0, 0.5, 1.0)
    law = laws.fit_impact(orders, volume, BLOCK_S, 0.95)
    axis = facts_figures.plot_impact(law.curve, law.parameters, "BTC").axes[0]
    assert [line.get_label().split(",")[0] for line in axis.lines][-2:] == ["eq. 2.4", "free exponent"]
    null = laws.fit_impact(orders.assign(impact_bps=-orders["impact_bps"].abs()), volume, BLOCK_S, 0.95)
    axis = facts_figures.plot_impact(null.curve, null.parameters, "BTC").axes[0]
    below = next(line for line in axis.lines if line.get_marker() == "v")
    assert len(below.get_xdata()) == len(null.curve) and np.min(below.get_ydata()) > 0
    never = laws.fit_fill_curve(made_reaches(0, 1.0, 1.0).assign(reach_bps=-np.inf), [1.0, 2.0], BLOCK_S, 0.95)
    axis = facts_figures.plot_fill_curve(never.curve, never.parameters, "BTC").axes[0]
    assert not any("fitted" in line.get_label() for line in axis.lines)
