"""The tables that one stage leaves for the next: Parquet in an asset's data folder (DESIGN §3)."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hyperdapo.paths import Paths, atomic, require

WRITTEN_BY = {
    "quality": "02_preprocess",
    "features": "03_features",
    "laws": "03_features",
    "outcomes": "04_preference_pairs",
    "pairs": "04_preference_pairs",
    "specialists": "06_convergence",
    "decisions": "07_inference",
    "calibration": "08_backtest",
    "orders": "08_backtest",
}


def write_table(table: pd.DataFrame | Iterable[pd.DataFrame], folder: Path, name: str) -> Path:
    """Write `NAME.parquet` into an asset's data folder, whole or not at all; of several parts each is a row group."""
    parts = (pa.Table.from_pandas(part, preserve_index=False) for part in _parts(table))
    first = next(parts)
    with (
        atomic(folder / f"{name}.parquet") as temporary,
        pq.ParquetWriter(temporary, first.schema, compression="zstd") as file,
    ):
        for part in chain([first], parts):
            file.write_table(part, row_group_size=max(len(part), 1))
    return folder / f"{name}.parquet"


def _parts(table: pd.DataFrame | Iterable[pd.DataFrame]) -> Iterable[pd.DataFrame]:
    return [table] if isinstance(table, pd.DataFrame) else table


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read `NAME.parquet` of an asset, or some columns of it.

    Raises
    ------
    MissingInputError
        If the stage that writes it has not run.
    """
    path = require(folder / f"{name}.parquet", WRITTEN_BY[name], folder.parent.name)
    return pd.read_parquet(path, columns=None if columns is None else list(columns))


def read_evenly(folder: Path, name: str, columns: Sequence[str], most: int) -> pd.DataFrame:
    """Some columns of at most so many rows, evenly spaced over the table; raises as `read_table`."""
    with pq.ParquetFile(require(folder / f"{name}.parquet", WRITTEN_BY[name], folder.parent.name)) as file:
        every = -(-file.metadata.num_rows // most)
        parts, passed = [], 0
        for group in range(file.num_row_groups):
            part = file.read_row_group(group, columns=list(columns)).to_pandas()
            parts.append(part.iloc[-passed % every :: every])
            passed += len(part)
    return pd.concat(parts, ignore_index=True)


def read_assets(paths: Paths, assets: Sequence[str], name: str) -> pd.DataFrame:
    """`NAME.parquet` of several assets, one below the other; raises as `read_table`."""
    return pd.concat([read_table(paths.of(asset).data, name) for asset in assets], ignore_index=True)
