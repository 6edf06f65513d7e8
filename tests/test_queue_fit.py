"""The exponent of the queue is found again where it is known, and on real recordings the interval says how little."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hand_built import market
from hyperdapo.execution.queue_fit import EXPONENTS, QueueFit, fit_queue, observe_makers
from hyperdapo.market.book import Market
from markets import recorded


def churning_market(exponent: float, seed: int, seconds: int = 2000, log_sd: float = 0.0) -> Market:
    """A bid at 999.9 where orders join, leave from the place that the law draws, or print whole from the front.

    Every change is a message of its own, 0.1 s after the one before. Sizes are uniform, or lognormal: then a few large
    orders are most of a queue.
    """
    rng = np.random.default_rng(seed)
    queue, quotes, prints, second = [2.0, 3.0, 4.0], [], [], 1.0
    for _ in range(seconds * 5):
        second = round(second + 0.1, 3)
        kind = rng.choice(3, p=[0.5, 0.35, 0.15]) if len(queue) > 2 else 0
        if kind == 0 and len(queue) < 12:
            size = np.exp(rng.normal(0, log_sd)) + 0.01 if log_sd else rng.uniform(0.5, 8)
            queue.append(float(np.round(size, 4)))
        elif kind == 1:
            edges = np.cumsum(queue) / sum(queue)
            queue.pop(int(np.searchsorted(edges, rng.random() ** (1 / exponent))))
        elif kind == 2:
            prints.append((second, 999.9, queue.pop(0), -1))
        quotes.append((second, 999.9, sum(queue), 1000.1, 4.0))
    return market(quotes=quotes, prints=prints, end=second + 10)


def fitted(tape: Market) -> QueueFit:
    return fit_queue(observe_makers(tape, 0, np.iinfo(np.int64).max, most=300), block_s=100.0, confidence=0.95)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_a_known_exponent_is_found(exponent: float) -> None:
    fit = fitted(churning_market(exponent, seed=2))
    assert fit.makers == 300 and fit.exponent_low <= fit.exponent <= fit.exponent_high
    assert fit.exponent == pytest.approx(exponent, rel=0.2)
    assert fit.all_behind < 0.5 < fit.all_ahead


@pytest.mark.parametrize(("exponent", "low", "high"), [(0.5, 0.0, 0.7), (1.0, 0.5, 1.2), (2.0, 1.4, 3.5)])
def test_heavy_tailed_sizes_leave_the_exponents_in_order(exponent: float, low: float, high: float) -> None:
    """Where one order is most of a queue, those who were filled are those before whom it left."""
    assert low <= fitted(churning_market(exponent, seed=2, log_sd=2.5)).exponent <= high


def test_a_quiet_market_says_nothing() -> None:
    fit = fitted(market())
    assert fit.makers == 0 and np.isnan(fit.exponent)


def test_ranks_that_no_exponent_explains_are_not_identified() -> None:
    makers = observe_makers(churning_market(1.0, seed=2, seconds=500), 0, np.iinfo(np.int64).max)
    for late in (0.0, 1.0):
        makers[list(EXPONENTS)] = late
        assert np.isnan(fit_queue(makers, 100.0, 0.95).exponent)


def test_parts_of_a_market_tell_what_the_whole_tells() -> None:
    """But for the draws, which are those of a part."""
    tape = churning_market(1.0, seed=2, seconds=500)
    whole = observe_makers(tape, 0, np.iinfo(np.int64).max)
    middle = int(whole["first_ns"].median())
    parts = [observe_makers(tape, *part) for part in ((0, middle), (middle, np.iinfo(np.int64).max))]
    assert len(whole) - 3 <= sum(map(len, parts)) <= len(whole)  # a life across the cut belongs to neither
    assert set(pd.concat(parts)["first_ns"]) <= set(whole["first_ns"])
    assert observe_makers(tape, 0, 0).dtypes.equals(whole.dtypes)


@pytest.mark.parametrize(("asset", "sz_decimals"), [("ETH", 4), ("BTC", 5), ("SOL", 2)])
def test_real_recordings_leave_a_wide_interval(recordings: Path, asset: str, sz_decimals: int) -> None:
    path = recordings / "hyperliquid" / "2025-09-04" / f"{asset}.ndjson.gz"
    fit = fitted(recorded(path, asset, sz_decimals))
    assert fit.makers > 100 and fit.all_behind < 0.5 < fit.all_ahead
    assert fit.exponent_low <= 1.0 <= fit.exponent_high, "half an hour does not tell it from an even spread"
