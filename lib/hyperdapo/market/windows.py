"""Compiled passes over time windows, for `features`: linear in rows and messages, exact sums without running totals."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyperdapo.market.columns import Floats, Nanoseconds

Integers = NDArray[np.int64]

VOLUME, NOTIONAL, FLOW, LARGE, LARGE_VOLUME, VOLUME_ABOVE = range(6)
"""Columns of `print_sums`."""


@njit(cache=True)
def print_sums(
    begin: Integers,
    end: Integers,
    oldest: Integers,
    price: Floats,
    size: Floats,
    side: NDArray[np.int8],
    mid: Floats,
    quantile: float,
) -> Floats:
    """Sums over the prints [begin, end) of each row (n, 6); `begin`, `end` and `oldest` (n,) never fall.

    A print is large when it exceeds the quantile (linear between order statistics, as in numpy) of the sizes of the
    prints [oldest, end). Those sizes are counted in a Fenwick tree over the ranks of all sizes.
    """
    ordered = np.unique(size)
    rank = np.searchsorted(ordered, size)
    tree = np.zeros(len(ordered) + 1, dtype=np.int64)
    sums = np.zeros((len(end), 6))
    left = entered = 0
    for row in range(len(end)):
        while entered < end[row]:
            _count(tree, rank[entered], 1)
            entered += 1
        while left < oldest[row]:
            _count(tree, rank[left], -1)
            left += 1
        if begin[row] == end[row]:
            continue
        place = (entered - left - 1) * quantile
        below = int(place)
        low = ordered[_order_statistic(tree, below)]
        high = ordered[_order_statistic(tree, min(below + 1, entered - left - 1))]
        part = place - below
        threshold = low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)
        for index in range(begin[row], end[row]):
            sums[row, VOLUME] += size[index]
            sums[row, NOTIONAL] += size[index] * price[index]
            sums[row, FLOW] += size[index] * side[index]
            if size[index] > threshold:
                sums[row, LARGE] += 1
                sums[row, LARGE_VOLUME] += size[index]
            if price[index] > mid[row]:
                sums[row, VOLUME_ABOVE] += size[index]
    return sums


@njit(cache=True)
def return_deviation(
    newest: Integers, ns: Nanoseconds, known_ns: Nanoseconds, log_price: Floats, steps: int, step_ns: int
) -> Floats:
    """Standard deviation (ddof 1) of `steps` log returns over `step_ns` each, up to each of n instants.

    `newest` (n,) is the row of the last of the quotes (`known_ns`, `log_price`) known at `ns` (n,), -1 before the
    first. NaN where the returns reach before the first quote.
    """
    deviation = np.full(len(ns), np.nan)
    path = np.empty(steps + 1)
    for row in range(len(ns)):
        quote = newest[row]
        for step in range(steps + 1):
            while quote >= 0 and known_ns[quote] > ns[row] - step * step_ns:
                quote -= 1
            if quote < 0:
                break
            path[step] = log_price[quote]
        if quote >= 0:
            returns = path[:-1] - path[1:]
            deviation[row] = np.sqrt(np.sum((returns - np.mean(returns)) ** 2) / (steps - 1))
    return deviation


@njit(cache=True)
def weighted_scores(values: Floats, decay: Floats, epsilon: float, moments: Floats) -> Floats:
    """(x - mean) / (deviation + epsilon) of each column of (n, m) values under weights that decay from row to row.

    `decay` (n,) multiplies the weight of all earlier rows; 0 forgets them. Values that are not finite weigh nothing.
    `moments` (3, m), zeros at first, holds weight, mean and sum of squares of each column from one call to the next.
    """
    scores = np.full(values.shape, np.nan)
    for column in range(values.shape[1]):
        weight, mean, squares = moments[:, column]
        for row in range(values.shape[0]):
            weight *= decay[row]
            squares *= decay[row]
            value = values[row, column]
            if np.isfinite(value):
                if weight == 0.0:
                    mean = value
                weight += 1.0
                distance = value - mean
                mean += distance / weight
                squares += distance * (value - mean)
                scores[row, column] = (value - mean) / (np.sqrt(squares / weight) + epsilon)
        moments[:, column] = weight, mean, squares
    return scores


@njit(cache=True)
def _count(tree: Integers, rank: int, change: int) -> None:
    node = rank + 1
    while node < len(tree):
        tree[node] += change
        node += node & -node


@njit(cache=True)
def _order_statistic(tree: Integers, place: int) -> int:
    """Rank of the value that has `place` counted values before it."""
    step = 1
    while 2 * step < len(tree):
        step *= 2
    node, left = 0, place
    while step:
        if node + step < len(tree) and tree[node + step] <= left:
            node += step
            left -= tree[node]
        step //= 2
    return node
