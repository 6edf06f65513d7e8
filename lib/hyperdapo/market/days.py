"""Days and hours of UTC, in nanoseconds."""

from datetime import UTC, datetime
from itertools import pairwise

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS

Span = tuple[int, int]
"""From (included) to (excluded), ns."""


def by_day(start_ns: int, end_ns: int) -> list[Span]:
    """A span cut at midnights."""
    return list(pairwise([start_ns, *range((start_ns // DAY_NS + 1) * DAY_NS, end_ns, DAY_NS), end_ns]))


def date_of(ns: int) -> str:
    """`2025-08-01`."""
    return moment(ns).date().isoformat()


def moment(ns: int) -> datetime:
    """To the second."""
    return datetime.fromtimestamp(ns // SECOND_NS, UTC)
