"""The price grid of the exchange: 5 significant figures, 6 - sz_decimals decimals, integers always."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperdapo.market.grid import move_price, on_grid, snap_price, snap_size, tick_size


@pytest.mark.parametrize(
    ("price", "sz_decimals", "tick"),
    [
        (117_245.0, 5, 1.0),
        (99_999.0, 5, 1.0),
        (9_999.5, 5, 0.1),
        (4_375.0, 4, 0.1),
        (999.9, 4, 0.01),
        (202.31, 2, 0.01),
        (45.123, 2, 0.001),
        (1.2345, 0, 0.0001),
        (0.23451, 0, 0.00001),
        (0.0123, 0, 0.000001),
    ],
)
def test_tick_moves_with_price(price: float, sz_decimals: int, tick: float) -> None:
    assert tick_size(price, sz_decimals) == pytest.approx(tick)
    assert on_grid(price, sz_decimals)
    assert not on_grid(price + tick / 2, sz_decimals)


@given(st.floats(0.01, 200_000), st.integers(0, 5), st.sampled_from([-1, 1]))
def test_a_snapped_price_is_valid_and_never_worse(price: float, sz_decimals: int, side: int) -> None:
    snapped = snap_price(price, side, sz_decimals)
    assert on_grid(snapped, sz_decimals) or snapped == 0
    assert side * (price - snapped) >= -1e-6 * tick_size(price, sz_decimals)
    assert abs(price - snapped) <= tick_size(max(price, float(snapped)), sz_decimals) * (1 + 1e-6)


@given(st.integers(1, 99_999), st.integers(-3, 1), st.integers(-40, 40))
def test_moving_by_ticks_counts_the_prices_of_the_grid(figures: int, power: int, ticks: int) -> None:
    """Every grid price between is passed once, over a power of ten too; and the way back ends where it began."""
    start = float(np.round(figures * 10.0**power, 6))
    if not on_grid(start, 0) or start < 1e-4:
        return
    end = float(move_price(start, ticks, 0))
    assert on_grid(end, 0) and move_price(end, -ticks, 0) == pytest.approx(start)
    steps = [float(move_price(start, step, 0)) for step in range(0, ticks + np.sign(ticks), np.sign(ticks) or 1)]
    assert np.all(np.diff(steps) * np.sign(ticks) > 0)


def test_sizes_round_down_to_the_step() -> None:
    np.testing.assert_array_equal(snap_size([0.123456789, 0.3, 2.0], 5), [0.12345, 0.3, 2.0])
