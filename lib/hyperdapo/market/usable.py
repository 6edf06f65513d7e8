"""Which decision times of a recording can be used, why the others cannot, and the split of the former (§3.3.3).

What interrupts a feed restarts what it may have made wrong, and nothing else:

- a gap longer than `clean.max_gap_s` (a silence of `l2Book`, or a disconnect) restarts everything: no decision is warm
  for `features.warmup_s` after it;
- a hole, which is a disconnect no longer than that, has lost prints at most, because each book and quote is whole: no
  decision is warm as long as its trade window (`features.window_s`) reaches into the hole;
- no order may live across either, and no decision inside one counts;
- where a trade window holds no print, the features of trades are not defined.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperdapo.errors import DataError
from hyperdapo.market.columns import Mask, Nanoseconds
from hyperdapo.params import Parameters
from hyperdapo.times import SECOND_NS, Span

PARTS = ("train", "validation", "test")


def merge(intervals: Sequence[Span]) -> list[Span]:
    """The same time as disjoint intervals in order."""
    merged: list[Span] = []
    for from_ns, to_ns in sorted(intervals):
        if merged and from_ns <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(to_ns, merged[-1][1]))
        else:
            merged.append((from_ns, to_ns))
    return merged


def unusable(report: Mapping[str, Any], parameters: Parameters) -> dict[str, list[Span]]:
    """By cause, the half-open intervals of `local_ns` in which no decision can be used; see the module."""
    first_ns, gaps = report["first_ns"], [tuple(gap) for gap in report["gaps"]]
    warmup_ns, window_ns = (
        round(seconds * SECOND_NS) for seconds in (parameters.features.warmup_s, parameters.features.window_s)
    )
    allowed_ns = round(parameters.clean.max_gap_s * SECOND_NS)
    restarts = [first_ns, *(to_ns for from_ns, to_ns in gaps if to_ns - from_ns > allowed_ns)]
    holes = [to_ns for from_ns, to_ns in gaps if to_ns - from_ns <= allowed_ns]
    return {
        "before the first book": [(report["begins_ns"], first_ns)] if report["begins_ns"] < first_ns else [],
        "in a gap": merge(gaps),
        "warm-up": merge([(ns, ns + warmup_ns) for ns in restarts]),
        "trade window reaches into a hole": merge([(ns, ns + window_ns) for ns in holes]),
        "no print in the trade window": merge([tuple(span) for span in report["silences"]]),
    }


def counted(report: Mapping[str, Any], parameters: Parameters) -> dict[str, int]:
    """How many decision times can be used (`usable`), and how many others fall to each cause, the first that holds."""
    ns = _decision_times(report, parameters)
    left, counts = np.ones(len(ns), dtype=bool), {}
    for cause, spans in unusable(report, parameters).items():
        inside = left & _inside(ns, spans)
        counts[cause], left = int(inside.sum()), left & ~inside
    return {"usable": int(left.sum())} | counts


def cannot_follow(report: Mapping[str, Any]) -> str:
    """Why no stage after 02_preprocess can work on such a market; empty where one can."""
    if report["kept"]["trades"]:
        return ""
    return (
        f"{report['asset']}: 02_preprocess kept books but none of {report['prints']} prints, and features, laws, fills "
        f"and all that is learnt from them need prints: add trades to source.channels and run 01 and 02 again, or stop "
        f"at the books: hyperdapo run --until 02 (the exchange's archive has nothing else)"
    )


def require(report: Mapping[str, Any]) -> None:
    """Raise a DataError where `cannot_follow` says why."""
    if why := cannot_follow(report):
        raise DataError(why)


def split_span(report: Mapping[str, Any], parameters: Parameters) -> dict[str, Span]:
    """Train, validation and test by time: half-open intervals of `decision_ns`, in that order.

    The shares hold for the time in which decisions can be used, so that a gap is nobody's share. Between two parts a
    cut of the longest horizon and one feature window is left out, so that no order and no window of one part reaches
    into the next. Where a cut can spare time by lying in a gap, what it spares is the test's.

    Parameters
    ----------
    report : `first_ns`, `last_ns`, `gaps`, `silences` of the cleaning report
    parameters : sections `split`, `features`, `orders`, `clean`

    Raises
    ------
    DataError
        If a part would hold no decision that can be used.
    """
    cold = merge([span for spans in unusable(report, parameters).values() for span in spans])
    spans = np.array(_between(report["first_ns"], report["last_ns"], cold), dtype=np.int64).reshape(-1, 2)
    cut_ns = round((parameters.orders.longest_horizon_s + parameters.features.window_s) * SECOND_NS)
    parts = _divided(spans, cut_ns, parameters.split.train, parameters.split.validation)
    usable_ns = _decision_times(report, parameters)
    usable_ns = usable_ns[_inside(usable_ns, [(begin, end) for begin, end in spans.tolist()])]
    decisions = [int(((usable_ns >= begin) & (usable_ns < end)).sum()) for begin, end in parts]
    if min(decisions) == 0:
        raise DataError(_too_few(report, parameters, cut_ns))
    return dict(zip(PARTS, parts, strict=True))


def _divided(spans: Nanoseconds, cut_ns: int, train: float, validation: float) -> list[Span]:
    """Three parts of the intervals (m, 2): the most time that can be shared out, found by bisection.

    The later the first parts end, the less is left to the test; the shares hold where its share is left.
    """
    if not len(spans):
        return [(0, 0)] * 3
    lengths = np.diff(spans, axis=1)[:, 0]
    total = int(lengths.sum())

    def usable_until(ns: int) -> int:
        return int(np.clip(ns - spans[:, 0], 0, lengths).sum())

    def reached(usable_ns: int) -> int:
        """The instant until which so much time is usable."""
        before = np.cumsum(lengths) - lengths
        row = max(int(np.searchsorted(before, usable_ns, side="left")) - 1, 0)
        return int(spans[row, 0] + usable_ns - before[row])

    def ends(left_ns: int) -> tuple[int, int]:
        train_ns = reached(int(left_ns * train))
        used = usable_until(train_ns + cut_ns) + int(left_ns * validation)
        return train_ns, reached(min(used, total))

    low, high = 0, total
    while low < high:
        left_ns = (low + high + 1) // 2
        rest = left_ns - int(left_ns * train) - int(left_ns * validation)
        if total - usable_until(ends(left_ns)[1] + cut_ns) >= rest:
            low = left_ns
        else:
            high = left_ns - 1
    train_ns, validation_ns = ends(low)
    first_ns, last_ns = int(spans[0, 0]), int(spans[-1, 1])
    starts = (first_ns, train_ns + cut_ns, validation_ns + cut_ns)
    return [(start, max(start, end)) for start, end in zip(starts, (train_ns, validation_ns, last_ns), strict=True)]


def _too_few(report: Mapping[str, Any], parameters: Parameters, cut_ns: int) -> str:
    counts = counted(report, parameters)
    why = ", ".join(f"{count} {cause}" for cause, count in counts.items() if count and cause != "usable")
    needed = parameters.features.warmup_s + 2 * cut_ns / SECOND_NS
    return (
        f"{(report['last_ns'] - report['first_ns']) / SECOND_NS:.0f} s of data are too few: of "
        f"{sum(counts.values())} decision times {counts['usable']} can be used ({why or 'no other'}); warm-up and the "
        f"cuts between train, validation and test take {needed:.0f} s; give a longer source span, or shorten "
        f"features.warmup_s"
    )


def _decision_times(report: Mapping[str, Any], parameters: Parameters) -> Nanoseconds:
    step = round(parameters.features.decision_interval_s * SECOND_NS)
    first_ns, last_ns = report["begins_ns"], report["ends_ns"]
    return np.arange(-(-first_ns // step) * step, last_ns + 1, step, dtype=np.int64)


def _between(first_ns: int, last_ns: int, others: Sequence[Span]) -> list[Span]:
    """What the others, disjoint and in order, leave of a span."""
    edges = [first_ns, *(ns for span in others for ns in span), last_ns]
    left = [(max(begin, first_ns), min(end, last_ns)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    return [(begin, end) for begin, end in left if begin < end]


def _inside(ns: Nanoseconds, spans: Sequence[Span]) -> Mask:
    """Whether each time (n,) is in one of the intervals, disjoint and in order."""
    edges = np.array([edge for span in spans for edge in span], dtype=np.int64)
    return np.asarray(np.searchsorted(edges, ns, side="right") % 2 == 1)
