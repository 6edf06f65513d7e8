"""What happened to the orders of one asset, one by one: the common form of all level-3 files, and what reads them."""

import gzip
import lzma
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.market.columns import Nanoseconds
from hyperdapo.times import SECOND_NS

ADD, CANCEL, EXECUTE = 0, 1, 2
COLUMNS = ("ns", "kind", "order_id", "side", "price", "lots")
SILENCE_NS = 60 * SECOND_NS  # between two events of an asset that trades: something was cut out


@dataclass(frozen=True)
class OrderFlow:
    """What happened to the orders of one asset, one by one, in the order of the exchange.

    `events` (n, ...): ns, kind (ADD, CANCEL, EXECUTE), order_id, side of the order (+1 / -1), price (USD), and lots (of
    `lot` coin) that it adds or takes out. `gaps` (m, 2) are stretches without trustworthy data, ns; `counted` is what
    was left out or mended, by cause.
    """

    asset: str
    sz_decimals: int
    lot: float
    events: pd.DataFrame
    gaps: Nanoseconds
    counted: Counter[str]

    @classmethod
    def of(
        cls, asset: str, sz_decimals: int, lot: float, rows: pd.DataFrame, counted: Counter[str], gaps: Nanoseconds
    ) -> "OrderFlow":
        """The flow of rows with `COLUMNS`; a silence longer than a minute is a gap more, counted as `cut`."""
        events = rows[list(COLUMNS)].astype({"kind": np.int8, "order_id": np.int64, "side": np.int8, "lots": np.int64})
        events = events[events["lots"] > 0].reset_index(drop=True)
        ns = events["ns"].to_numpy()
        silent = np.flatnonzero(np.diff(ns) > SILENCE_NS)
        cuts = np.stack([ns[silent], ns[silent + 1]], axis=1)
        both = np.concatenate([gaps.reshape(-1, 2), cuts]).astype(np.int64)
        counted = counted + Counter(cut=len(cuts))
        return cls(asset, sz_decimals, lot, events, both[np.argsort(both[:, 0], kind="stable")], counted)


def content(path: Path) -> bytes:
    """What a file holds, unpacked if its name ends in .xz or .gz.

    Raises
    ------
    MissingInputError
        If it is not there.
    DataError
        If it cannot be unpacked.
    """
    if not path.is_file():
        raise MissingInputError(f"there is no file {path}: copy the recording there, or say where it is")
    unpack = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix, bytes)
    try:
        return unpack(path.read_bytes())
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path.name} cannot be unpacked ({error}): copy it again") from None
