"""Which orders the exchange and the data allow, and the draws that belong to an order."""

import zlib
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.errors import OrderError
from hyperdapo.execution.events import stream
from hyperdapo.market.book import Market
from hyperdapo.market.columns import Floats, Integers, Mask, Nanoseconds, select
from hyperdapo.market.grid import MINIMUM_NOTIONAL_USD, on_grid
from hyperdapo.times import SECOND_NS

ORDER_COLUMNS = ("order_id", "decision_ns", "side", "size", "horizon_s", "limit_price", "post_only")

OPTIONAL_COLUMNS = ("policy_ms", "parent", "completes", "waits")
"""`policy_ms`: measured, instead of the parameter. `parent` (int, -1 for none): orders of one parent are in the market
together and share what comes to them, the better price and the earlier arrival first. `completes` (bool, else True):
False gives up what is left when the cancel lands, and costs are those of what traded. `waits` (bool, else False):
nothing is sent before the deadline, and all is completed then.
"""
_LONGEST_S = 1e9  # no horizon is longer: it would overflow the nanoseconds


def checked_mid(market: Market, orders: pd.DataFrame) -> Floats:
    """The arrival mid of each order (n,), USD, once all orders are known to be valid.

    Raises
    ------
    OrderError
        Naming the first row whose size, side, price, time or notional the exchange or the data do not allow.
    """
    if missing := [name for name in ORDER_COLUMNS if name not in orders]:
        raise OrderError(f"orders lack the columns {missing}; they need {list(ORDER_COLUMNS)}")
    if not len(market.top.local_ns):
        raise OrderError(f"the market of {market.asset} is empty: choose a source.from and source.to with data")
    size, side, limit, horizon = (orders[name].to_numpy(float) for name in ("size", "side", "limit_price", "horizon_s"))
    whole = [pd.to_numeric(orders[name], errors="coerce").notna().to_numpy() for name in ("decision_ns", "order_id")]
    decision_ns = np.where(whole[0], orders["decision_ns"], 0).astype(np.int64)
    known = np.searchsorted(market.top.local_ns, decision_ns, side="right") - 1
    best = select(market.top, np.maximum(known, 0))
    mid, post_only = np.where(known >= 0, best.mid, np.nan), orders["post_only"].to_numpy(bool)
    priced, steps = ~np.isnan(limit), size * 10.0**market.sz_decimals
    with np.errstate(invalid="ignore", divide="ignore"):
        span_s = np.nan_to_num(horizon).clip(0, _LONGEST_S)
        ends = decision_ns + np.rint(span_s * SECOND_NS).astype(np.int64)
        faults = {
            "no time or no order_id": ~(whole[0] & whole[1]),
            "a size that is not above zero": ~((size > 0) & np.isfinite(size)),
            "a side that is neither +1 nor -1": np.abs(side) != 1,
            "a horizon that is not a time": ~(horizon >= 0),
            f"a size that is no multiple of {10.0**-market.sz_decimals:g}": np.abs(steps - np.rint(steps)) > 1e-6,
            "a limit price off the grid": priced & ~on_grid(np.where(priced, limit, 1.0), market.sz_decimals),
            "post_only without a limit price": post_only & ~priced,
            "a time outside the data or in a gap": market.interrupted(decision_ns, ends) | np.isnan(mid),
            f"less than {MINIMUM_NOTIONAL_USD:g} USD": size * np.where(priced, limit, mid) < MINIMUM_NOTIONAL_USD,
        }
    _refuse(orders, faults)
    return mid


def check_ends(market: Market, orders: pd.DataFrame, ends_ns: Nanoseconds) -> None:
    """Whether the data reach without a gap until each order ends (n,), nanoseconds of the exchange.

    Raises
    ------
    OrderError
        Naming the first order that does not end within them.
    """
    decision_ns = orders["decision_ns"].to_numpy(np.int64)
    late = market.interrupted(decision_ns, ends_ns) | (ends_ns > stream(market).ns[-1])
    _refuse(orders, {"a completion outside the data or in a gap": late})


def _refuse(orders: pd.DataFrame, faults: Mapping[str, Mask]) -> None:
    for fault, rows in faults.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            values = ", ".join(f"{name} {orders[name].iloc[row]}" for name in ORDER_COLUMNS)
            raise OrderError(f"the order in row {row} has {fault}: {values}")


def uniform(seed: int, stream: str, *keys: Integers) -> Floats:
    """(n,) uniform on (0, 1): one draw per row of the keys, each (n,)."""
    state = _mixed(np.array([seed, zlib.crc32(stream.encode())], dtype=np.int64).astype(np.uint64))
    state = _mixed(state[:1] ^ state[1:])
    for key in keys:
        state = _mixed(state ^ _mixed(np.asarray(key, dtype=np.int64).astype(np.uint64)))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64; arrays of unsigned integers wrap silently."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
