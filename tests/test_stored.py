"""The tables between stages: whole or absent, and an absent one names the stage that writes it."""

import nbformat
import pandas as pd
import pytest

from conftest import REPOSITORY
from hyperdapo.errors import MissingInputError
from hyperdapo.paths import Paths
from hyperdapo.stored import WRITTEN_BY, read_assets, read_table, write_table


def test_each_table_is_in_the_header_of_its_writer() -> None:
    for name, stage in WRITTEN_BY.items():
        header = nbformat.read(REPOSITORY / "notebooks" / f"{stage}.ipynb", as_version=4).cells[0].source
        writes = next(line for line in header.splitlines() if line.startswith("- **Writes:**"))
        assert f"`{name}.parquet`" in writes


def test_tables_of_several_assets_come_back_one_below_the_other(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    paths = Paths("smoke")
    for asset in ("BTC", "ETH"):
        write_table(pd.DataFrame({"asset": [asset], "order_id": [1]}), paths.of(asset).data, "orders")
    assert read_assets(paths, ["BTC", "ETH"], "orders")["asset"].tolist() == ["BTC", "ETH"]
    with pytest.raises(MissingInputError, match="hyperdapo run --profile smoke --until 07"):
        read_table(paths.of("BTC").data, "decisions")
