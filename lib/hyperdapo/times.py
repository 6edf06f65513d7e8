"""Milliseconds to days of UTC in nanoseconds, and the blocks of time that intervals are clustered on."""

import math
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

MS_NS = 1_000_000
SECOND_NS = 1000 * MS_NS
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS

Span = tuple[int, int]
"""From (included) to (excluded), ns."""


def common_step_s(one_s: float, other_s: float) -> float:
    """The longest step of which both are multiples, s.

    >>> common_step_s(4.0, 10.0)
    2.0
    """
    return math.gcd(round(one_s * SECOND_NS), round(other_s * SECOND_NS)) / SECOND_NS


def by_day(start_ns: int, end_ns: int, part_ns: int = DAY_NS) -> list[Span]:
    """A span cut at midnights, or into smaller parts of the day."""
    return list(pairwise([start_ns, *range((start_ns // part_ns + 1) * part_ns, end_ns, part_ns), end_ns]))


def block_of(ns: ArrayLike, block_s: float) -> NDArray[np.int64]:
    """The number, counted from 1970, of the block of `block_s` seconds in which each of n times lies, (n,)."""
    block: NDArray[np.int64] = np.asarray(ns, dtype=np.int64) // round(block_s * SECOND_NS)
    return block


def date_of(ns: int) -> str:
    """`2025-08-01`."""
    return moment(ns).date().isoformat()


def moment(ns: int) -> datetime:
    """To the second."""
    return datetime.fromtimestamp(ns // SECOND_NS, UTC)
