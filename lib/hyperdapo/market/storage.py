"""The clean messages of one asset on disk: a Parquet table for each channel, one row group for each hour."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hyperdapo.errors import DataError
from hyperdapo.market.columns import LEVELS, BookSnapshots, Columns, Contexts, TopOfBook, Trades, concatenate, empty
from hyperdapo.market.days import Span
from hyperdapo.paths import atomic

TABLES: dict[str, type] = {
    "book.parquet": BookSnapshots,
    "bbo.parquet": TopOfBook,
    "trades.parquet": Trades,
    "context.parquet": Contexts,
}


@contextmanager
def writer(folder: Path) -> Iterator[Callable[[BookSnapshots, TopOfBook, Trades, Contexts], None]]:
    """Yield a function that appends one row group to each table; all appear when the block ends well."""
    with ExitStack() as stack:
        writers = []
        for name, kind in TABLES.items():
            temporary = stack.enter_context(atomic(folder / name))
            writers.append(
                stack.enter_context(pq.ParquetWriter(temporary, _table(empty(kind)).schema, compression="zstd"))
            )

        def append(*parts: BookSnapshots | TopOfBook | Trades | Contexts) -> None:
            for file, part in zip(writers, parts, strict=True):
                if len(part.local_ns):
                    file.write_table(_table(part), row_group_size=len(part.local_ns))

        yield append


def read(kind: type[Columns], folder: Path, span: Span | None = None) -> Columns:
    """Read the table of a kind: all of it, or the row groups that reach into a span of `local_ns`, both ends included.

    The row group before the span comes with it, so that what was known when the span begins is there.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    path = folder / next(name for name, kept in TABLES.items() if kept is kind)
    try:
        with pq.ParquetFile(path) as file:
            groups = range(file.num_row_groups) if span is None else _groups(file.metadata, *span)
            parts = [_columns(kind, file.read_row_group(group)) for group in groups]
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run 02_preprocess again") from None
    rows = concatenate(parts) if parts else empty(kind)
    del parts
    pa.default_memory_pool().release_unused()  # or what Arrow keeps for later adds up over many parts
    return rows


def _groups(metadata: pq.FileMetaData, from_ns: int, to_ns: int) -> range:
    """Row groups that hold any of `from_ns` <= local_ns <= `to_ns`, and the one before them."""
    if not metadata.num_row_groups:
        return range(0)
    names = [metadata.row_group(0).column(index).path_in_schema for index in range(metadata.num_columns)]
    groups = [metadata.row_group(group).column(names.index("local_ns")) for group in range(metadata.num_row_groups)]
    first = sum(group.statistics.max < from_ns for group in groups)
    last = sum(group.statistics.min <= to_ns for group in groups)
    return range(max(first - 1, 0), last)


def _table(columns: BookSnapshots | TopOfBook | Trades | Contexts) -> pa.Table:
    """Arrow columns: those of shape (n, 20) as lists of fixed size."""
    arrays = {field.name: getattr(columns, field.name) for field in fields(columns)}
    return pa.table(
        {
            name: pa.array(array) if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(array.ravel(), LEVELS)
            for name, array in arrays.items()
        }
    )


def _columns(kind: type[Columns], table: pa.Table) -> Columns:
    return kind(*(_array(table.column(field.name)) for field in fields(kind)))


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column)
    flat = [np.asarray(chunk.flatten()).reshape(-1, LEVELS) for chunk in column.chunks]
    return np.concatenate(flat) if flat else np.zeros((0, LEVELS))
