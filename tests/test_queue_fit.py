"""The exponent of the queue is found again where it is known, and on real recordings it is one that can be."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hand_built import market
from hyperdapo.execution.queue_fit import QueueFit, fit_queue, observe_makers
from hyperdapo.market.book import Market
from markets import recorded


def churning_market(exponent: float, seed: int, seconds: int = 4000) -> Market:
    """A bid at 999.9 where orders join, leave from the place that the law draws, or print whole from the front.

    Every change is a message of its own, 0.1 s after the one before.
    """
    rng = np.random.default_rng(seed)
    queue, quotes, prints, second = [2.0, 3.0, 4.0], [], [], 1.0
    for _ in range(seconds * 5):
        second = round(second + 0.1, 3)
        kind = rng.choice(3, p=[0.5, 0.35, 0.15]) if len(queue) > 2 else 0
        if kind == 0 and len(queue) < 12:
            queue.append(float(np.round(rng.uniform(0.5, 8), 4)))
        elif kind == 1:
            edges = np.cumsum(queue) / sum(queue)
            queue.pop(int(np.searchsorted(edges, rng.random() ** (1 / exponent))))
        elif kind == 2:
            prints.append((second, 999.9, queue.pop(0), -1))
        quotes.append((second, 999.9, sum(queue), 1000.1, 4.0))
    return market(quotes=quotes, prints=prints, end=second + 10)


def fitted(tape: Market) -> QueueFit:
    return fit_queue(observe_makers(tape, 0, np.iinfo(np.int64).max), block_s=300.0, confidence=0.95)


@pytest.mark.parametrize(("exponent", "others"), [(1.0, 0.8), (3.0, 1.9)])
def test_a_known_exponent_is_found(exponent: float, others: float) -> None:
    """Of the cancels that are no newcomers', which the kernel knows by their size and puts behind."""
    fit = fitted(churning_market(exponent, seed=2))
    assert fit.makers > 100 and fit.exponent_low <= fit.exponent <= fit.exponent_high
    assert fit.exponent == pytest.approx(others, rel=0.15)
    assert fit.all_ahead < fit.fitted < fit.risk_averse and fit.fitted == pytest.approx(fit.printed, abs=0.02)


def test_more_cancels_behind_are_a_greater_exponent() -> None:
    found = [fitted(churning_market(exponent, seed=3)).exponent for exponent in (0.5, 1.0, 2.0, 4.0)]
    assert found == sorted(found)


def test_a_quiet_market_says_nothing() -> None:
    fit = fitted(market())
    assert fit.makers == 0 and np.isnan(fit.exponent)


def test_parts_of_a_market_tell_what_the_whole_tells() -> None:
    tape = churning_market(1.0, seed=2, seconds=1000)
    whole = observe_makers(tape, 0, np.iinfo(np.int64).max)
    middle = int(whole["first_ns"].median())
    first, second = observe_makers(tape, 0, middle), observe_makers(tape, middle, np.iinfo(np.int64).max)
    both = pd.concat([first, second]).set_index("first_ns").sort_index()
    assert len(whole) - 3 <= len(both) <= len(whole)  # a life across the cut belongs to neither
    assert observe_makers(tape, 0, 0).dtypes.equals(whole.dtypes)
    pd.testing.assert_frame_equal(both, whole.set_index("first_ns").sort_index().loc[both.index])


@pytest.mark.parametrize(("asset", "sz_decimals"), [("ETH", 4), ("BTC", 5), ("SOL", 2)])
def test_real_recordings_lie_between_the_extremes(recordings: Path, asset: str, sz_decimals: int) -> None:
    path = recordings / "hyperliquid" / "2025-09-04" / f"{asset}.ndjson.gz"
    fit = fitted(recorded(path, asset, sz_decimals))
    assert fit.makers > 100 and 0.5 < fit.exponent < 3 and fit.unweighted <= fit.exponent
    assert fit.all_ahead < fit.printed < fit.risk_averse
