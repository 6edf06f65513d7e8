"""The sentences of "In this run" say what their frames hold, what they lack, and a null result as plainly as a gain."""

import math

import pandas as pd
import pytest

from hyperdapo.evidence import narrative
from hyperdapo.evidence.comparison import SHOWN
from hyperdapo.evidence.metrics import TOTAL

NAN = math.nan
MANIFEST = {
    "asset": "BTC",
    "endpoint": "http://localhost/v1",
    "messages": {"l2Book": 1200, "trades": 34, "activeAssetCtx": 0},
    "first_ns": 0,
    "last_ns": 3_600_000_000_000,
    "slices": 1,
    "bytes": 500_000,
    "content_bytes": 4_000_000,
    "disconnects": 0,
    "empty_minutes": 2,
    "retries": 1,
    "refetched": 0,
}
REPORT = {
    "asset": "BTC",
    "kept": {"l2Book": 1000, "trades": 200},
    "dropped": {"trades_backfill": 3},
    "gaps": [[0, 5]],
    "gap_s": 61.0,
    "decisions": {"usable": 7, "warm-up": 3, "in a gap": 0},
}


def laws(beta: tuple[float, float, float], alpha: tuple[float, float, float] = (0.5, 0.4, 0.6)) -> pd.DataFrame:
    rows = [
        ("impact", "lambda_bps", 60.0, -1.0, 121.0, NAN),
        ("impact", "beta", *beta, 0.5),
        ("fill", "alpha", *alpha, 1.5),
        ("queue", "queue_exponent", NAN, NAN, NAN, NAN),
    ]
    return pd.DataFrame(rows, columns=["law", "parameter", "value", "ci_low", "ci_high", "draft"])


def outcomes(filled: float = 1.0) -> pd.DataFrame:
    """Two states, three actions: the one that joins earns most in the first, the last in the second."""
    rows = [
        (order, "BTC", split, side, action, kind, True, filled if kind == "join" else 0.0, reward)
        for order, split, side, rewards in ((0, "train", 1, (-4.0, 1.0, -5.0)), (1, "test", -1, (-6.0, -7.0, -2.0)))
        for action, (kind, reward) in enumerate(zip(("behind 5", "join", "-9 bps"), rewards, strict=True))
    ]
    names = ["order_id", "asset", "split", "side", "action", "kind", "distinct", "filled_passive", "reward"]
    return pd.DataFrame(rows, columns=names)


PAIRS = pd.DataFrame({"chosen_kind": ["join", "-9 bps"], "chosen_reward": [1.0, -2.0], "rejected_reward": [-5.0, -7.0]})


def log(seeds: tuple[int, ...]) -> pd.DataFrame:
    rows = [
        ("BTC", algorithm, seed, step, reward if step else -6.0, -4.0, -1.0, 0.5 if step else 0.2)
        for algorithm, reward in (("dapo", -2.0), ("dpo", -5.0))
        for seed in seeds
        for step in (0, 8)
    ]
    held_out = [f"heldout_{name}" for name in ("reward", "best_fixed", "oracle", "accuracy")]
    return pd.DataFrame(rows, columns=["asset", "algorithm", "seed", "step", *held_out])


def run(algorithm: str, first: float, best: float, last: float, steps: float, asset: str = "BTC") -> dict[str, object]:
    rewards = {"first_reward_bps": first, "best_reward_bps": best, "last_reward_bps": last}
    return {"asset": asset, "algorithm": algorithm, "seed": 0, "steps_to_level": steps} | rewards


def costs(asset: str = "BTC", low: float = 0.5, high: float = 2.5) -> pd.DataFrame:
    rows = [
        (asset, strategy, metric, value, low, high)
        for strategy, cost in (("market", 4.5), ("best_fixed", 4.0), ("oracle", -1.0), ("dapo", 1.5))
        for metric, value in (("total_cost_bps", cost), ("fill_rate", 0.6))
    ]
    return pd.DataFrame(rows, columns=["asset", "strategy", "metric", "value", "ci_low", "ci_high"])


def orders(maker: float = 1.0) -> pd.DataFrame:
    rows = [
        (order, "BTC", order, name, maker) for order in (0, 1) for name in ("market", "best_fixed", "oracle", "dapo")
    ]
    return pd.DataFrame(rows, columns=["order_id", "asset", "block", "strategy", "maker_share"])


SCORES = pd.DataFrame(
    {
        "asset": "BTC",
        "queue_model": ["power", "evenly", "touch"],
        "orders": 1200,
        "brier": [0.01, 0.02, 0.005],
        "ci_low": [NAN, 0.001, -0.008],
        "ci_high": [NAN, 0.02, -0.002],
    }
)


def comparison(difference: float, low: float, high: float, p: float, significant: bool, note: str = "") -> pd.DataFrame:
    row = {"asset": "BTC", "strategy": "dapo", "reference": "best_fixed", "difference_bps": difference}
    row |= {"joint_low": low, "joint_high": high, "orders": 721, "blocks": 25, "p_simultaneous": p}
    return pd.DataFrame([row | {"significant": significant, "note": note}])


JUDGED = pd.DataFrame({"status": ["established", "failed", "not available", "failed"]})
BETTER, NULL = comparison(-3.0, -4.0, -2.0, 0.001, True), comparison(-0.2, -0.9, 0.5, 0.6, False)


def rival(name: str, difference: float, low: float, high: float) -> pd.DataFrame:
    row = {"asset": "BTC", "strategy": "dapo", "cheapest": name, "difference_bps": difference}
    return pd.DataFrame([row | {"ci_low": low, "ci_high": high}])


def gaps(seeds: int = 3, low: float = 0.7, high: float = 0.9) -> pd.DataFrame:
    row = {"asset": "BTC", "algorithm": "dapo", "seeds": seeds, "gap_closed": 0.8, "gap_ci_low": low}
    row |= {"gap_ci_high": high, "lowest_seed": 0.75, "highest_seed": 0.85, "boosting_gap_closed": 0.82}
    row |= {"linear_gap_closed": 0.42, "mlp_gap_closed": 0.62}
    row |= {"minus_dpo_bps": 0.5, "minus_dpo_ci_low": 0.1, "minus_dpo_ci_high": 0.9}
    row |= {"minus_boosting_bps": -0.001, "minus_boosting_ci_low": -0.2, "minus_boosting_ci_high": 0.2}
    return pd.DataFrame([row | {"room_bps": 3.8, "room_ci_low": 3.1, "room_ci_high": 4.6}])


def compared(tests: pd.DataFrame, cheapest: pd.DataFrame, means: pd.DataFrame) -> dict[str, pd.DataFrame]:
    tables = {"metrics": costs(), "significance": tests, "cheapest": cheapest}
    return tables | {"learning_gap_over_seeds": means, "hypotheses": JUDGED}


def test_show_is_markdown() -> None:
    assert narrative.show("- x").data == "- x"


class TestDownload:
    def test_counts_and_what_is_missing(self) -> None:
        text = narrative.download(MANIFEST)
        assert "1,234 messages of BTC came from http://localhost/v1" in text
        assert "1970-01-01 00:00 to 1970-01-01 01:00 UTC" in text and "Nothing came of activeAssetCtx" in text
        assert "no disconnects and 2 minutes without" in text and "1 request had to be repeated" in text

    def test_nothing_at_all(self) -> None:
        empty = MANIFEST | {"messages": {"l2Book": 0}, "first_ns": None, "last_ns": None}
        assert narrative.download(empty) == "- No message of BTC came from http://localhost/v1: nothing can follow."


class TestPreprocess:
    MINUTES = pd.DataFrame(
        {"spread_bps": [0.1, 0.3], "depth_usd": 1e5, "reach_bps": 2.0, "mark_error_bps": [-0.5, 0.1]}
    )

    def test_rows_gaps_market_and_decisions(self) -> None:
        text = narrative.preprocess(REPORT, self.MINUTES)
        assert "1,200 rows were kept and 3 dropped (trades_backfill 3)" in text and "1 gap, 61 s in all" in text
        assert "spread is 0.20 bps" in text and "0.500 bps at most" in text
        assert "7 of 10 decision times can be used; the others cannot: warm-up 3." in text

    def test_without_mark_prices(self) -> None:
        assert "cannot be compared" in narrative.preprocess(REPORT, self.MINUTES.assign(mark_error_bps=NAN))


class TestFeatures:
    FEATURES = pd.DataFrame(
        {"warm": [False, True, True], "cold_because": ["warm-up", "", ""], "split": ["", "train", "test"]}
    )

    def test_rows_and_laws(self) -> None:
        text = narrative.features(self.FEATURES, laws((0.02, 0.0, 0.04)))
        assert "2 of 3 decision times are warm (train 1, validation 0, test 1)" in text and "warm-up 1" in text
        assert "lambda is 60.00 bps (-1.00 to 121.00), an interval that holds zero" in text
        assert "refuted here" in text and "an interval that excludes the draft's 1.5" in text
        assert "queue's exponent is not measurable" in text

    def test_without_an_interval_nothing_is_refuted(self) -> None:
        text = narrative.features(self.FEATURES, laws((0.02, NAN, NAN), (0.5, NAN, NAN)))
        assert "so whether it is the draft's 1.5 cannot be said" in text and "square root is neither shown nor" in text


@pytest.mark.parametrize(
    ("beta", "verdict"),
    [
        ((0.5, 0.4, 0.6), "not refuted: the interval of beta, 0.400 to 0.600, holds 0.5"),
        ((0.2, 0.1, 0.3), "refuted here: the interval of beta, 0.100 to 0.300, leaves out 0.5"),
        ((NAN, NAN, NAN), "No exponent"),
        ((0.5, NAN, NAN), "neither shown nor refuted: beta is 0.500"),
    ],
)
def test_the_verdict_on_the_square_root_is_that_of_the_interval(beta, verdict) -> None:
    assert verdict in narrative.square_root_verdict(laws(beta))


class TestPreferencePairs:
    def test_states_offsets_and_pairs(self) -> None:
        text = narrative.preference_pairs(outcomes(), PAIRS)
        assert "2 states of BTC (train 1, validation 0, test 1; buys 50 %)" in text and "6 orders" in text
        assert "No order of `behind 5` and `-9 bps` was filled before its cancel" in text
        assert "best single action is `join`, with a mean reward of 1.00 bps" in text and "earns 5.50 bps more" in text

    def test_no_fills_and_no_pairs(self) -> None:
        text = narrative.preference_pairs(outcomes(filled=0.0), PAIRS.head(0))
        assert "No candidate order was filled" in text and "no preference pairs" in text

    def test_no_training_state(self) -> None:
        held_out = outcomes()[lambda rows: rows["split"] == "test"]
        assert "no training state" in narrative.preference_pairs(held_out, PAIRS)


class TestTrain:
    def test_the_best_and_the_yardsticks(self) -> None:
        text = narrative.train(log((0, 1)))
        assert "4 runs on BTC: 2 algorithms, 2 seeds, 8 updates each" in text
        assert "`dapo` ends best, at a reward of -2.00 bps (-2.00 to -2.00 over 2 seeds), from -6.00 bps" in text
        assert "1 of 2 algorithms end above the best fixed action (`dapo`)" in text and "50 %" in text

    def test_one_seed_and_none_above_the_best_fixed(self) -> None:
        text = narrative.train(log((0,)).assign(heldout_best_fixed=-1.5))
        assert "(one seed)" in text and "0 of 2 algorithms end above the best fixed action." in text

    def test_runs_that_were_never_scored(self) -> None:
        assert "No run was scored" in narrative.train(log((0,)).assign(heldout_reward=NAN))


class TestConvergence:
    RUNS = pd.DataFrame([run("dapo", -4.0, -1.0, -2.0, 50.0), run("dpo", -4.0, -4.0, -5.0, NAN)])

    def test_ends_speed_and_the_generalist(self) -> None:
        earned = pd.DataFrame({"asset": "BTC", "trained_on": ["BTC", "all"], "reward": [-2.0, -3.0]})
        text = narrative.convergence(self.RUNS, earned)
        assert "1 of 2 runs (BTC; 2 algorithms, 1 seed)" in text and "2 end below their best look" in text
        assert "BTC `dapo` -2.00 bps (one seed)" in text
        assert "`dapo` in 1 of 1 runs, the median one after 50 updates" in text and "`dpo` in 0 of 1 runs." in text
        assert "earns BTC -3.00 bps (its specialist -2.00)" in text

    def test_without_a_generalist(self) -> None:
        earned = pd.DataFrame({"asset": ["BTC"], "trained_on": ["BTC"], "reward": [-2.0]})
        assert "No adapter was trained on all assets" in narrative.convergence(self.RUNS, earned)


class TestInference:
    DECISIONS = pd.DataFrame(
        {
            "asset": "BTC",
            "policy": ["dapo"] * 4 + ["boosting"] * 2,
            "seed": [0, 0, 1, 1, 0, 0],
            "order_id": [1, 2, 1, 2, 1, 2],
            "action": [0, 1, 0, 2, 2, 2],
            "kind": ["join", "wait", "join", "take", "take", "take"],
        }
    )
    LATENCY = pd.DataFrame(
        {"backend": "int8", "mode": "score the letters", "part": ["forward", "all"], "ms": [9.0, 9.4]}
    )

    def test_choices_seeds_and_speed(self) -> None:
        text = narrative.inference(self.DECISIONS, self.LATENCY)
        assert "2 policies decided 2 states of BTC" in text
        assert "`dapo` join (50 %); `boosting` take (100 %)" in text and "states: `dapo` 50 %." in text
        assert "in the median 9 ms to score the letters in int8 (99 % within 9 ms)" in text

    def test_where_nothing_was_timed(self) -> None:
        assert "On this machine" not in narrative.inference(self.DECISIONS, self.LATENCY.iloc[:0])

    def test_one_seed(self) -> None:
        text = narrative.inference(self.DECISIONS[self.DECISIONS["seed"] == 0], self.LATENCY)
        assert "how far seeds agree is not measured" in text


class TestBacktest:
    def test_the_cheapest_the_yardsticks_and_the_fills(self) -> None:
        text = narrative.backtest(orders(), costs(), SCORES)
        assert "2 orders of BTC were each executed by 4 strategies" in text and "over 2 blocks of time" in text
        assert "`dapo`: 1.50 bps (0.50 to 2.50), chosen in hindsight" in text and "market orders cost 4.50 bps" in text
        assert "BTC 0.0100 (1,200 probes, other models 0.0050 to 0.0200)" in text
        assert "1 of 2 others are worse and 1 better" in text

    def test_one_block_and_no_fills(self) -> None:
        text = narrative.backtest(orders(maker=0.0), costs(low=NAN, high=NAN), SCORES)
        assert "1.50 bps (no interval)" in text and "No order of any strategy was filled while it rested" in text
        assert "nan" not in text


class TestSignificance:
    def test_a_gain(self) -> None:
        text = narrative.significance(compared(BETTER, rival("twap", 0.4, 0.1, 0.7), gaps()), ["dapo"])
        assert "721 an asset, in 25 blocks of time (BTC)" in text
        assert "BTC 1.50 bps (0.50 to 2.50), 4.50 bps (0.50 to 2.50) and 4.00 bps" in text
        assert "BTC -3.00 bps (-4.00 to -2.00), significantly cheaper;" in text
        assert "BTC +0.40 bps (+0.10 to +0.70) to `twap`, an interval that excludes zero" in text
        assert "Of 4 registered hypotheses: 1 established, 0 not established, 2 failed, 1 not available." in text
        assert "1 of 1 comparisons" in text and "BTC 0.80 (0.70 to 0.90), 3 seeds 0.75 to 0.85" in text

    def test_a_null_result(self) -> None:
        text = narrative.significance(compared(NULL, rival("dapo", 0.0, 0.0, 0.0), gaps(1, NAN, NAN)), ["dapo"])
        assert "BTC -0.20 bps (-0.90 to +0.50), not significant;" in text and "it is the cheapest itself" in text
        assert "0 of 1 comparisons" in text and "BTC 0.80 (no interval), one seed" in text

    @pytest.mark.parametrize(
        ("table", "sentence"),
        [
            (
                comparison(0.0, 0.0, 0.0, 1.0, False, "the same orders"),
                "+0.00 bps, not tested: the same orders",
            ),
            (comparison(2.0, NAN, NAN, NAN, False, "3 blocks"), "+2.00 bps, not tested: 3 blocks"),
            (comparison(2.0, 1.0, 3.0, 0.001, True), "+2.00 bps (+1.00 to +3.00), significantly more expensive"),
        ],
    )
    def test_no_test_no_difference_and_a_loss(self, table, sentence) -> None:
        text = narrative.significance(compared(table, rival("twap", 0.1, NAN, NAN), gaps()), ["dapo"])
        assert sentence in text and "cannot be said" in text

    def test_several_assets(self) -> None:
        both = [pd.concat([table, table.assign(asset="ETH")]) for table in (costs(), BETTER, gaps())]
        against = pd.concat([rival("twap", 0.4, 0.1, 0.7), rival("twap", 0.4, 0.1, 0.7).assign(asset="ETH")])
        text = narrative.significance(compared(both[1], against, both[2]) | {"metrics": both[0]}, ["dapo"])
        assert "721 an asset, in 25 blocks of time (BTC and ETH)" in text and "; ETH -3.00 bps" in text
        assert "2 of 2 comparisons" in text


def test_every_account_is_three_to_five_sentences_and_speaks_of_its_frames_only() -> None:
    accounts = [
        narrative.download(MANIFEST),
        narrative.preprocess(REPORT, TestPreprocess.MINUTES),
        narrative.features(TestFeatures.FEATURES, laws((0.5, 0.4, 0.6))),
        narrative.preference_pairs(outcomes(), PAIRS),
        narrative.train(log((0, 1))),
        narrative.inference(TestInference.DECISIONS, TestInference.LATENCY),
        narrative.backtest(orders(), costs(), SCORES),
        narrative.significance(compared(NULL, rival("twap", 0.4, 0.1, 0.7), gaps()), ["dapo"]),
    ]
    for account in accounts:
        lines = account.splitlines()
        assert 3 <= len(lines) <= 5 and all(line.startswith("- ") and line.endswith(".") for line in lines), account
        assert "planted" not in account and "nan" not in account, account


def test_the_readme_s_block_replaces_what_stands_between_the_markers(tmp_path) -> None:
    tables = {"metrics": costs(), "significance": BETTER, "cheapest": rival("twap", 0.4, 0.1, 0.7)}
    tables |= {"learning_gap_over_seeds": gaps(), "fill_calibration": SCORES, "hypotheses": JUDGED}
    worlds = pd.DataFrame({"strategy": SHOWN, TOTAL: 1.234})
    tables["worlds"] = pd.concat([worlds.assign(world="sample"), worlds.assign(world="null", **{TOTAL: -0.001})])
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    before = "Above.\n<!-- results -->\nyesterday\n<!-- end of results -->\nBelow.\n"
    after = narrative.refresh(before, tmp_path)
    assert after.startswith("Above.\n<!-- results -->\nThe share of the way") and after.endswith(
        "results -->\nBelow.\n"
    )
    assert narrative.refresh(after, tmp_path) == after and "yesterday" not in after
    assert "| `dapo` | 0.80 (0.70 to 0.90) |" in after and "| mlp | 0.62 |\n| boosting | 0.82 |" in after
    assert "| mean total cost (bps) | `sample` | `null` |" in after and "| Touch, requoted | 1.23 | 0.00 |" in after
    assert "BTC +0.00 bps (-0.20 to +0.20)" in after.replace("\n  ", " "), "no negative zero"
    assert max(map(len, after.splitlines())) <= 120
