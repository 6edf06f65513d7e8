"""The tables that one stage leaves for the next: Parquet in an asset's data folder (DESIGN §3)."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hyperdapo.paths import Paths, atomic, require

WRITTEN_BY = {
    "features": "03_features",
    "outcomes": "04_preference_pairs",
    "pairs": "04_preference_pairs",
    "decisions": "07_inference",
    "orders": "08_backtest",
}


def write_table(table: pd.DataFrame, folder: Path, name: str) -> Path:
    """Write `NAME.parquet` into an asset's data folder, whole or not at all."""
    with atomic(folder / f"{name}.parquet") as temporary:
        table.to_parquet(temporary, compression="zstd", index=False)
    return folder / f"{name}.parquet"


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read `NAME.parquet` of an asset.

    Raises
    ------
    MissingInputError
        If the stage that writes it has not run.
    """
    return pd.read_parquet(require(folder / f"{name}.parquet", WRITTEN_BY[name], folder.parent.name))


def read_assets(paths: Paths, assets: Sequence[str], name: str) -> pd.DataFrame:
    """`NAME.parquet` of several assets, one below the other; raises as `read_table`."""
    return pd.concat([read_table(paths.of(asset).data, name) for asset in assets], ignore_index=True)
