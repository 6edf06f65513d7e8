"""The price and size grid of Hyperliquid perpetuals (docs/design.md, Market facts).

A price has at most 5 significant figures and at most `6 - sz_decimals` decimals; integers are always valid.
The tick therefore moves with the price. A size is a multiple of `10 ** -sz_decimals` coin, an order at least 10 USD.
"""

import numpy as np
from numpy.typing import ArrayLike

from hyperdapo.market.columns import Floats, Mask

MINIMUM_NOTIONAL_USD = 10.0
_SIGNIFICANT_FIGURES = 5
_MAX_DECIMALS = 6
_SLACK = 1e-7  # of a tick: what floating point may add to a price that is on the grid


def tick_size(price: ArrayLike, sz_decimals: int) -> Floats:
    """Smallest step of a price near `price`, in USD; same shape as `price`."""
    magnitude = np.floor(np.log10(np.asarray(price, dtype=float)))
    decimals = np.minimum(_SIGNIFICANT_FIGURES - 1 - magnitude, _MAX_DECIMALS - sz_decimals)
    return np.asarray(10.0 ** -np.maximum(decimals, 0.0))


def snap_price(price: ArrayLike, side: ArrayLike, sz_decimals: int) -> Floats:
    """Nearest grid price that is not worse for the trader: down for a buy (+1), up for a sell (-1); USD."""
    price = np.asarray(price, dtype=float)
    tick = tick_size(price, sz_decimals)
    steps = price / tick
    snapped = np.where(np.asarray(side) > 0, np.floor(steps + _SLACK), np.ceil(steps - _SLACK))
    return np.round(snapped * tick, _MAX_DECIMALS)


def move_price(price: ArrayLike, ticks: ArrayLike, sz_decimals: int) -> Floats:
    """Grid prices so many ticks above `price` (below where negative), USD; a tick is another one beyond a power of ten.

    >>> move_price([9999.9, 10000.0, 10000.0], [2, -1, 1], 1).tolist()
    [10001.0, 9999.9, 10001.0]
    """
    moved, ticks = (np.array(each) for each in np.broadcast_arrays(np.asarray(price, dtype=float), ticks))
    for step in range(int(np.abs(ticks).max(initial=0))):
        towards = np.where(np.abs(ticks) > step, np.sign(ticks), 0)
        tick = tick_size(np.where(towards < 0, moved * (1 - _SLACK), moved), sz_decimals)
        moved = np.round(moved + towards * tick, _MAX_DECIMALS)
    return moved


def on_grid(price: ArrayLike, sz_decimals: int) -> Mask:
    """Whether the exchange would accept each price."""
    price = np.asarray(price, dtype=float)
    steps = price / tick_size(price, sz_decimals)
    return np.asarray((price > 0) & (np.abs(steps - np.round(steps)) < 1e-6))


def snap_size(size: ArrayLike, sz_decimals: int) -> Floats:
    """Largest valid size that does not exceed `size`, in coin."""
    step = 10.0**-sz_decimals
    return np.round(np.floor(np.asarray(size, dtype=float) / step + _SLACK) * step, sz_decimals)
