"""Orders as a node of Hyperliquid writes them, as an `OrderFlow`.

- `node_order_statuses…`: a status a line, or a block of them (`..._by_block`). A status says what is left of an order;
  that some of it was filled is told when all was, or when the rest is cancelled.
- `node_raw_book_diffs…`, where they lie beside the statuses under the same name: every change of the book, so that
  partial fills have their time. A removal is a cancel where the statuses say so.
- `….data`: statuses as the 54-byte records of the dataset "An Open Book" (Albers, Cucuringu, Howison, Shestopaloff;
  doi 10.5281/zenodo.18184441), with its tables `statuses.csv` and `tifs.csv` beside them.

An order that takes is `open` for no time: what is filled at the stamp of its opening never rests.
Source of the others: the exchange's documentation of nodes (L1 data schemas) and its order book server.
"""

import csv
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.feed.order_flow import ADD, CANCEL, EXECUTE, OrderFlow, content
from hyperdapo.market.columns import Floats

RESTING = ("Alo", "Gtc")  # times in force of orders that may rest

RECORD = np.dtype(
    [
        *(("ns", "<u8"), ("user", "<u4"), ("builder", "?"), ("status", "u1"), ("is_ask", "?"), ("price", "<u4")),
        *(("left", "<u4"), ("order_id", "<u8"), ("lived_ms", "<u4"), ("trigger_condition", "<i4")),
        *((name, "?") for name in ("triggered", "trigger", "children", "position_tpsl", "reduce_only")),
        *(("order_type", "u1"), ("tif", "u1"), ("trigger_price", "<u4"), ("size", "<u4")),
    ]
)
"""One status in 54 bytes; prices and sizes are packed, see `unpacked`."""

_Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Amount = Annotated[float, msgspec.Meta(ge=0, lt=1e18)]


class _Order(msgspec.Struct, gc=False):
    coin: str
    side: Literal["A", "B"]
    limitPx: _Amount
    sz: _Amount
    oid: _Id
    tif: str | None = None
    isTrigger: bool = False


class _Status(msgspec.Struct, gc=False):
    time: str
    status: str
    order: _Order


class _Changed(msgspec.Struct, gc=False):
    sz: _Amount = 0.0
    newSz: _Amount = 0.0


class _Diff(msgspec.Struct, gc=False):
    oid: _Id
    coin: str
    raw_book_diff: dict[Literal["new", "update"], _Changed] | Literal["remove"]


class _Block(msgspec.Struct, gc=False):
    block_time: str
    events: list[msgspec.Raw]


def unpacked(packed: Any) -> Floats:
    """Prices or sizes (n,): the upper three bits are the decimals, the others the digits."""
    packed = np.asarray(packed, dtype=np.uint32)
    return np.asarray((packed & 0x1FFFFFFF) / 10.0 ** (packed >> 29), dtype=float)


def read_statuses(path: Path, asset: str, sz_decimals: int) -> OrderFlow:
    """The orders of one asset from a node's statuses, and its raw book diffs where they lie beside them.

    Counted: `malformed` entries, `not_resting` (triggers, IOC, rejected), `undated` fills (told with a later cancel).

    Raises
    ------
    MissingInputError
        If the file is not there.
    DataError
        If it is damaged, or holds no order of the asset.
    """
    statuses, counted = _entries(path, _Status)
    rows = [
        (ns, one.status, o.oid, o.side == "A", o.limitPx, o.sz, o.tif, o.isTrigger)
        for ns, one in statuses
        if (o := one.order).coin == asset
    ]
    names = ["ns", "status", "order_id", "is_ask", "price", "left", "tif", "trigger"]
    table = _stamped(pd.DataFrame(rows, columns=names), path, asset)
    beside = path.with_name(path.name.replace("node_order_statuses", "node_raw_book_diffs"))
    if not beside.is_file():
        return _from_statuses(table, asset, sz_decimals, counted)
    diffs, torn = _entries(beside, _Diff)
    return _from_diffs([diff for diff in diffs if diff[1].coin == asset], table, asset, sz_decimals, counted + torn)


def read_records(path: Path, asset: str, sz_decimals: int) -> OrderFlow:
    """The orders of one asset from its 54-byte records. Raises as `read_statuses`."""
    data = content(path)
    if len(data) % RECORD.itemsize:
        raise DataError(f"{path.name} is no whole number of {RECORD.itemsize}-byte records: copy it again")
    records = np.frombuffer(data, RECORD)
    words = {name: _labels(path.with_name(f"{name}.csv")) for name in ("statuses", "tifs")}
    table = pd.DataFrame({name: records[name] for name in ("is_ask", "trigger")})
    table = table.assign(
        ns=records["ns"].astype(np.int64),
        order_id=records["order_id"].astype(np.int64),
        status=pd.Series(records["status"]).map(words["statuses"]).fillna("unknown"),
        tif=pd.Series(records["tif"]).map(words["tifs"]),
        price=unpacked(records["price"]),
        left=unpacked(records["left"]),
    )
    return _from_statuses(_stamped(table, path, asset), asset, sz_decimals, Counter())


def _from_statuses(table: pd.DataFrame, asset: str, sz_decimals: int, counted: Counter[str]) -> OrderFlow:
    """`open` adds what is left then; what is filled at that stamp took. A cancel tells of the fills before it."""
    lot = 10.0**-sz_decimals
    resting = table["tif"].isin(RESTING) & ~table["trigger"].astype(bool) & ~table["status"].str.contains("ejected")
    rows = table[resting].assign(left=lambda kept: np.rint(kept["left"] / lot).astype(np.int64))
    orders = rows.groupby("order_id")
    before = orders["left"].shift()
    opened = (rows["status"] == "open").to_numpy()
    gone = (before - rows["left"].where(rows["status"] != "filled", 0)).to_numpy()
    took = ~opened & (rows["ns"].to_numpy() == orders["ns"].transform("first").to_numpy()) & (gone > 0)
    taken = pd.Series(np.where(took, gone, 0), rows.index).groupby(rows["order_id"]).transform("sum").to_numpy()
    cancelled = (~opened & (rows["status"] != "filled")).to_numpy()
    added = rows[opened].assign(kind=ADD, lots=rows["left"][opened] - taken[opened])
    filled = rows[~opened & ~took & (gone > 0)].assign(kind=EXECUTE, lots=gone[~opened & ~took & (gone > 0)])
    left = rows[cancelled].assign(kind=CANCEL, lots=rows["left"][cancelled])
    events = pd.concat([added, filled, left]).sort_index(kind="stable")
    undated = int((cancelled & ~took & (gone > 0)).sum())
    counted = counted + Counter(not_resting=int((~resting).sum()), undated=undated)
    return OrderFlow.of(asset, sz_decimals, lot, events, counted, np.zeros((0, 2), np.int64))


def _from_diffs(
    diffs: list[tuple[int, Any]], table: pd.DataFrame, asset: str, sz_decimals: int, counted: Counter[str]
) -> OrderFlow:
    """Every change of the book; a removal whose last status is not `filled` is a cancel."""
    lot, places = 10.0**-sz_decimals, table.drop_duplicates("order_id").set_index("order_id")[["is_ask", "price"]]
    fate = table.drop_duplicates("order_id", keep="last").set_index("order_id")["status"]
    rows = []
    for ns, diff in diffs:
        change = diff.raw_book_diff
        word = change if isinstance(change, str) else next(iter(change))
        size = 0.0 if isinstance(change, str) else change[word].sz if word == "new" else change[word].newSz
        rows.append((ns, word, diff.oid, size))
    book = pd.DataFrame(rows, columns=["ns", "word", "order_id", "left"])
    book = book.assign(left=np.rint(book["left"] / lot).astype(np.int64))
    unknown = ~book["order_id"].isin(places.index) | ((book["word"] != "new") & ~book.duplicated("order_id"))
    book = book[~unknown]
    before = book.groupby("order_id")["left"].shift().fillna(0).astype(np.int64)
    new, cancelled = (
        book["word"] == "new",
        (book["word"] == "remove") & (fate.reindex(book["order_id"]).to_numpy() != "filled"),
    )
    events = book.assign(
        kind=np.select([new, cancelled], [ADD, CANCEL], EXECUTE),
        lots=np.where(new, book["left"], before - book["left"]),
    ).join(places, on="order_id")
    events = events.assign(side=np.where(events["is_ask"], -1, 1))
    counted = counted + Counter(unknown=int(unknown.sum()))
    return OrderFlow.of(asset, sz_decimals, lot, events, counted, np.zeros((0, 2), np.int64))


def _stamped(table: pd.DataFrame, path: Path, asset: str) -> pd.DataFrame:
    if table.empty:
        raise DataError(f"{path.name} holds no whole order status of {asset}")
    return table.assign(side=np.where(table["is_ask"], -1, 1)).sort_values("ns", kind="stable", ignore_index=True)


def _entries(path: Path, kind: type[Any]) -> tuple[list[tuple[int, Any]], Counter[str]]:
    """Entries with their times, ns; of a block's, its time. One that is not whole is counted."""
    block, entry = (msgspec.json.Decoder(one, strict=False).decode for one in (_Block, kind))
    entries, malformed = [], 0
    for line in content(path).splitlines():
        batched = b'"block_time"' in line
        try:
            whole = block(line) if batched else None
            texts = whole.events if whole else [msgspec.Raw(line)]
            ns = _nanoseconds(whole.block_time) if whole else None
        except (msgspec.DecodeError, ValueError):
            malformed += 1
            continue
        for text in texts:
            try:
                one = entry(text)
                entries.append((_nanoseconds(one.time) if ns is None else ns, one))
            except (msgspec.DecodeError, AttributeError, ValueError):
                malformed += 1
    return entries, Counter(malformed=malformed)


def _labels(path: Path) -> dict[int, str]:
    """A table of the dataset: `label,number` a line."""
    lines = csv.reader(content(path).decode(errors="replace").splitlines())
    return {int(row[1]): row[0] for row in lines if len(row) == 2 and row[1].strip().isdigit()}


def _nanoseconds(stamp: str) -> int:
    return int(np.datetime64(stamp, "ns").astype(np.int64))
