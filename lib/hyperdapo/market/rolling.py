"""The latest rows of a channel, as columns that grow at one end and are forgotten at the other."""

from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from hyperdapo.market.columns import Columns, empty, select

_CAPACITY = 256  # rows at first


class Rolling(Generic[Columns]):
    """Rows in order of `local_ns`, in arrays that are moved only when they are full: a row costs the same however many.

    `rows` are views, good until the next row is appended.
    """

    def __init__(self, kind: type[Columns]) -> None:
        self._kind: type[Columns] = kind
        self._arrays = [_room(column, _CAPACITY) for column in vars(empty(kind)).values()]
        self._times = list(vars(empty(kind))).index("local_ns")
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def rows(self) -> Columns:
        """All rows that are kept, oldest first."""
        rows: Columns = self._kind(*(array[self._begin : self._end] for array in self._arrays))
        return rows

    def append(self, rows: Columns) -> None:
        """Take in n rows that were received after all others."""
        columns = vars(rows).values()
        end = self._end + len(rows.local_ns)
        if end > len(self._arrays[0]):
            end = self._make_room(end - self._begin)
        for array, column in zip(self._arrays, columns, strict=True):
            array[self._end : end] = column
        self._end = end

    def forget(self, ns: int) -> None:
        """Drop the rows before an instant, but for the last of them, which is what was known then."""
        times = self._arrays[self._times][self._begin : self._end]
        self._begin += max(int(np.searchsorted(times, ns, side="right")) - 1, 0)

    def since(self, ns: int | None) -> Columns:
        """A copy of the rows from an instant on, and of the last before it; of all where it is None."""
        rows = self.rows
        first = 0 if ns is None else max(int(np.searchsorted(rows.local_ns, ns, side="left")) - 1, 0)
        return select(rows, np.arange(first, len(rows.local_ns)))

    def _make_room(self, count: int) -> int:
        """Move the rows to the front of arrays that hold `count` twice; where the last of so many will end."""
        capacity = max(len(self._arrays[0]), 2 * count)
        for place, array in enumerate(self._arrays):
            moved = _room(array, capacity)
            moved[: len(self)] = array[self._begin : self._end]
            self._arrays[place] = moved
        self._begin, self._end = 0, len(self)
        return count


def _room(like: NDArray[Any], rows: int) -> NDArray[Any]:
    return np.empty((rows, *like.shape[1:]), dtype=like.dtype)
