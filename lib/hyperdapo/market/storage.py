"""The clean messages of one asset on disk: a Parquet table for each channel, one row group for each hour.

And work in threads ahead of whoever consumes its results: reading, hashing and decompressing release the interpreter.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hyperdapo.files import Version, confirmed, parquet_file, parquet_writer, version
from hyperdapo.market.columns import (
    LEVELS,
    BookSnapshots,
    Columns,
    Contexts,
    Nanoseconds,
    TopOfBook,
    Trades,
    concatenate,
    empty,
)
from hyperdapo.times import Span

TABLES: dict[str, type] = {
    "book.parquet": BookSnapshots,
    "bbo.parquet": TopOfBook,
    "trades.parquet": Trades,
    "context.parquet": Contexts,
}
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def writer(folder: Path) -> Iterator[Callable[[BookSnapshots, TopOfBook, Trades, Contexts], None]]:
    """Yield a function that appends one row group to each table; all appear when the block ends well.

    With more than one of `threads`, a part is written while the block makes the next.
    """
    with ExitStack() as stack:
        schemas = {name: _table(empty(kind)).schema for name, kind in TABLES.items()}
        writers = [stack.enter_context(parquet_writer(folder / name, schema)) for name, schema in schemas.items()]

        def write(parts: Sequence[BookSnapshots | TopOfBook | Trades | Contexts]) -> None:
            for file, part in zip(writers, parts, strict=True):
                if len(part.local_ns):
                    file.write_table(_table(part), row_group_size=len(part.local_ns))

        if threads() == 1:
            yield lambda *parts: write(parts)
            return
        written: list[Future[None]] = []
        with ThreadPoolExecutor(1) as pool:

            def append(*parts: BookSnapshots | TopOfBook | Trades | Contexts) -> None:
                while written:
                    written.pop().result()
                written.append(pool.submit(write, parts))

            yield append
            while written:
                written.pop().result()


class _Index(NamedTuple):
    """The footer of a table, and of each row group (n,) the first and last `local_ns`."""

    metadata: pq.FileMetaData
    first_ns: Nanoseconds
    last_ns: Nanoseconds

    def groups(self, span: Span | None) -> range:
        """Row groups that hold any of from <= local_ns <= to, and the one before them; without a span, all."""
        if span is None:
            return range(len(self.first_ns))
        first = int(np.searchsorted(self.last_ns, span[0], side="left"))
        return range(max(first - 1, 0), int(np.searchsorted(self.first_ns, span[1], side="right")))


def read(kind: type[Columns], folder: Path, span: Span | None = None) -> Columns:
    """Read the table of a kind: all of it, or the row groups that reach into a span of `local_ns`, both ends included.

    The row group before the span comes with it, so that what was known when the span begins is there.

    Raises
    ------
    MissingInputError
        If 02_preprocess has not run.
    DataError
        If the file is damaged, or not what 02_preprocess wrote.
    """
    path = confirmed(folder / next(name for name, stored in TABLES.items() if stored is kind))
    index = _index(version(path))
    with parquet_file(path, index.metadata) as file:
        parts = [_columns(kind, file.read_row_group(group)) for group in index.groups(span)]
    rows = concatenate(parts) if parts else empty(kind)
    del parts
    pa.default_memory_pool().release_unused()  # or what Arrow keeps for later adds up over many parts
    return rows


def ahead(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`work` on each item, in their order; with more than one of `threads`, the next ones are worked on meanwhile.

    What `work` does must not depend on the other items, and pays only where it releases the interpreter's lock, as
    reading, hashing, decompressing and compiled code do. So few results wait that memory does not grow.
    """
    workers = threads()
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def threads() -> int:
    """How many threads a stage may use: OMP_NUM_THREADS, as for NumPy and torch; without it, the cores we may run on.

    The workflow sets it: one where stages run side by side, so that they do not take each other's cores.
    """
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    if allowed.isdigit() and int(allowed):
        return int(allowed)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=64)
def _index(file: Version) -> _Index:
    """Read once for each version of a table: a span of many parts asks for it again and again."""
    with parquet_file(file[0]) as table:
        metadata = table.metadata
    leaves = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    column = leaves.index("local_ns")
    ends = [metadata.row_group(group).column(column).statistics for group in range(metadata.num_row_groups)]
    first_ns, last_ns = np.array([(end.min, end.max) for end in ends], dtype=np.int64).reshape(-1, 2).T
    return _Index(metadata, first_ns, last_ns)


def _table(columns: BookSnapshots | TopOfBook | Trades | Contexts) -> pa.Table:
    """Arrow columns: those of shape (n, 20) as lists of fixed size."""
    return pa.table(
        {
            name: pa.array(array) if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(array.ravel(), LEVELS)
            for name, array in vars(columns).items()
        }
    )


def _columns(kind: type[Columns], table: pa.Table) -> Columns:
    return kind(*(_array(table.column(field.name)) for field in fields(kind)))


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column)
    flat = [np.asarray(chunk.flatten()).reshape(-1, LEVELS) for chunk in column.chunks]
    return np.concatenate(flat) if flat else np.zeros((0, LEVELS))
