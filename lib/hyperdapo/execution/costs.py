"""What an execution costs beside its price: exchange fees by date and tier, and square-root impact (eq. 2.4)."""

from datetime import UTC, datetime

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hyperdapo.days import SECOND_NS
from hyperdapo.errors import ParameterError

HIGHEST_TIER = 6


def _ns(year: int, month: int, day: int, hour: int = 0) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * SECOND_NS


# From when, and for each tier (taker, maker) in bps; a maker fee is paid by the maker, negative is a rebate.
_SCHEDULES = (
    (_ns(2023, 6, 1), ((2.5, -0.2),)),
    (_ns(2024, 3, 11), ((3.5, 1.0),)),
    (
        _ns(2025, 5, 5, 3),
        ((4.5, 1.5), (4.0, 1.2), (3.5, 0.8), (3.0, 0.4), (2.8, 0.0), (2.6, 0.0), (2.4, 0.0)),
    ),
)


def fee_rates(ns: ArrayLike, tier: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Taker and maker fee of a perpetual at each instant.

    A tier is the account's, by its volume of the 14 days before: above 5, 25, 100, 500, 2,000 and 7,000 million USD.
    It does not change within a replay: our orders are far too small to lift it. Staking and referral discounts and
    market-maker rebates are left out. Known from the exchange's documentation: since 2025-05-05 03:00 UTC all seven
    tiers; from 2024-03-11 on, when tiers came, the base rates 3.5 and 1.0 bps; from June 2023 on flat 2.5 bps for
    takers and 0.2 bps back to makers. The higher tiers of 2024 are not published any more.

    Parameters
    ----------
    ns : (n,) instants, nanoseconds UTC
    tier : 0 (base) to 6

    Returns
    -------
    Taker and maker fee, each (n,), in bps of notional

    Raises
    ------
    ParameterError
        If an instant lies before the first schedule, or its schedule is not known for this tier.
    """
    index = np.searchsorted([start for start, _ in _SCHEDULES], np.atleast_1d(ns), side="right") - 1
    if index.size and index.min() < 0:
        raise ParameterError("there were no fees to know before June 2023: choose a later source.from")
    known = [schedule[tier] if tier < len(schedule) else (np.nan, np.nan) for _, schedule in _SCHEDULES]
    taker, maker = np.array(known)[index].T
    if np.isnan(taker).any():
        raise ParameterError(f"fees of tier {tier} before 2025-05-05 are not known: set execution.fees.tier to 0")
    return taker, maker


def square_root_impact(size: ArrayLike, daily_volume: float, coefficient_bps: float) -> NDArray[np.float64]:
    """How far taking `size` moves the price, eq. 2.4 without its sign.

    Parameters
    ----------
    size : (n,) taken beyond the visible book, coin
    daily_volume : V of eq. 2.4, coin
    coefficient_bps : lambda of eq. 2.4

    Returns
    -------
    (n,) in bps; the share of a day's volume counts as one where it is above, and where nothing traded
    """
    size = np.asarray(size, dtype=float)
    share = np.minimum(size / daily_volume, 1.0) if daily_volume > 0 else (size > 0).astype(float)
    return coefficient_bps * np.sqrt(share)
