"""The price grid of the exchange: 5 significant figures, 6 - sz_decimals decimals, integers always."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperdapo.market.grid import on_grid, snap_price, snap_size, tick_size


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


def test_sizes_round_down_to_the_step() -> None:
    np.testing.assert_array_equal(snap_size([0.123456789, 0.3, 2.0], 5), [0.12345, 0.3, 2.0])
