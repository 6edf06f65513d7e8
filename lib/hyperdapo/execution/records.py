"""Real orders and fills in Hyperliquid's own formats, as tables (Truth 2, §3.5.1).

The info endpoint's answers to `historicalOrders` and `userFills` are JSON lists, a node's `node_fills_by_block` is one
block a line. msgspec decodes and checks each record; one that is not whole is dropped and counted, a file without any
whole record is an error. Numbers come as text. Sources: the exchange's API documentation (info endpoint) and a file of
a node; fields that a format may lack are optional here.
"""

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
import pandas as pd

from hyperdapo.errors import DataError, MissingInputError

_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=(2**63 - 1) // 1_000_000)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e18)]
_Amount = Annotated[float, msgspec.Meta(gt=-1e18, lt=1e18)]
_Record = TypeVar("_Record")


class Records(NamedTuple):
    """What a file held: `rows`, and how many records were `dropped` by cause."""

    rows: pd.DataFrame
    dropped: Counter[str]


class Order(msgspec.Struct, gc=False):
    """`order` of `historicalOrders`; `sz` is what is left of `origSz`."""

    coin: str
    side: Literal["A", "B"]
    limitPx: Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
    sz: Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
    oid: _Id
    timestamp: _Milliseconds
    origSz: Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
    orderType: str = "Limit"
    tif: str | None = None
    isTrigger: bool = False
    reduceOnly: bool = False
    cloid: str | None = None


class OrderStatus(msgspec.Struct, gc=False):
    """A record of `historicalOrders`."""

    order: Order
    status: str
    statusTimestamp: _Milliseconds


class Fill(msgspec.Struct, gc=False):
    """A record of `userFills`, and half of an event of `node_fills_by_block`; `fee` includes `builderFee`."""

    coin: str
    px: _Positive
    sz: _Positive
    side: Literal["A", "B"]
    time: _Milliseconds
    oid: _Id
    crossed: bool
    fee: _Amount
    tid: _Id
    feeToken: str
    hash: str = ""
    dir: str = ""
    startPosition: _Amount = 0.0
    closedPnl: _Amount = 0.0
    builderFee: _Amount | None = None
    cloid: str | None = None
    twapId: _Id | None = None
    liquidation: dict[str, object] | None = None


class Block(msgspec.Struct, gc=False):
    """A line of `node_fills_by_block`: fills by account, in the order in which they were executed."""

    block_time: str
    block_number: _Id
    events: list[msgspec.Raw]


def read_historical_orders(path: Path) -> Records:
    """The orders of one account.

    Returns
    -------
    (n, ...) in the order of placement: order_id, coin, side +1 / -1, limit_price (USD), size (coin), remaining (coin),
    order_type, tif (`Alo` is post-only), trigger, reduce_only, cloid, placed_ns, status, status_ns. Dropped:
    `malformed`, and `superseded` by a later status of the same order.

    Raises
    ------
    MissingInputError
        If the file is not there.
    DataError
        If it is damaged, or holds no whole record.
    """
    decode, dropped = msgspec.json.Decoder(OrderStatus, strict=False).decode, Counter[str]()
    records = list(_whole(_elements(path), decode, dropped))
    _something(records, path, "historicalOrders")
    orders = [record.order for record in records]
    rows = pd.DataFrame(
        {
            "order_id": np.array([order.oid for order in orders], dtype=np.int64),
            "coin": [order.coin for order in orders],
            "side": [1 if order.side == "B" else -1 for order in orders],
            "limit_price": [order.limitPx for order in orders],
            "size": [order.origSz for order in orders],
            "remaining": [order.sz for order in orders],
            "order_type": [order.orderType for order in orders],
            "tif": [order.tif for order in orders],
            "trigger": [order.isTrigger for order in orders],
            "reduce_only": [order.reduceOnly for order in orders],
            "cloid": [order.cloid for order in orders],
            "placed_ns": np.array([order.timestamp for order in orders], dtype=np.int64) * 1_000_000,
            "status": [record.status for record in records],
            "status_ns": np.array([record.statusTimestamp for record in records], dtype=np.int64) * 1_000_000,
        }
    )
    latest = rows.assign(final=rows["status"] != "open").sort_values(["status_ns", "final"], kind="stable")
    rows = latest.drop(columns="final").drop_duplicates("order_id", keep="last")
    if len(rows) < len(records):
        dropped["superseded"] = len(records) - len(rows)
    return Records(rows.sort_values(["placed_ns", "order_id"], ignore_index=True), dropped)


def read_user_fills(path: Path) -> Records:
    """The fills of one account.

    Returns
    -------
    (n, ...) in the order of execution: order_id, coin, side +1 / -1, price (USD), size (coin), exchange_ns, crossed
    (whether it took), fee, builder_fee (of `fee`; in fee_token), fee_token, tid, dir, start_position, closed_pnl,
    cloid, twap, liquidation. Dropped: `malformed`, and `repeated` (the same tid of the same order).

    Raises as `read_historical_orders`.
    """
    decode, dropped = msgspec.json.Decoder(Fill, strict=False).decode, Counter[str]()
    fills = list(_whole(_elements(path), decode, dropped))
    _something(fills, path, "userFills")
    rows = _unrepeated(_fill_rows(fills), ["tid", "order_id"], dropped)
    return Records(rows.sort_values("exchange_ns", kind="stable", ignore_index=True), dropped)


def read_node_fills(path: Path) -> Records:
    """Every fill of consecutive blocks, both sides.

    Returns
    -------
    (n, ...) as of `read_user_fills`, with `user`, `block_number` and `block_ns` (the block's time; `exchange_ns` has
    only its milliseconds). Dropped: `malformed` events, `malformed_block` lines, and `repeated`.

    Raises as `read_historical_orders`.
    """
    dropped = Counter[str]()
    decode_block = msgspec.json.Decoder(Block, strict=False).decode
    decode_event = msgspec.json.Decoder(tuple[str, Fill], strict=False).decode
    users, fills, numbers, times = [], [], [], []
    for block in _whole(_read(path).splitlines(), decode_block, dropped, "malformed_block"):
        time_ns = _nanoseconds(block.block_time)
        if time_ns < 0:
            dropped["malformed_block"] += 1
            continue
        for user, fill in _whole(block.events, decode_event, dropped):
            users.append(user)
            fills.append(fill)
            numbers.append(block.block_number)
            times.append(time_ns)
    _something(fills, path, "node_fills_by_block")
    told = {"user": users, "block_number": np.array(numbers, np.int64), "block_ns": np.array(times, np.int64)}
    rows = _unrepeated(_fill_rows(fills).assign(**told), ["tid", "order_id", "user"], dropped)
    return Records(rows.sort_values(["block_ns", "block_number"], kind="stable", ignore_index=True), dropped)


def _fill_rows(fills: list[Fill]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "order_id": np.array([fill.oid for fill in fills], dtype=np.int64),
            "coin": [fill.coin for fill in fills],
            "side": [1 if fill.side == "B" else -1 for fill in fills],
            "price": [fill.px for fill in fills],
            "size": [fill.sz for fill in fills],
            "exchange_ns": np.array([fill.time for fill in fills], dtype=np.int64) * 1_000_000,
            "crossed": [fill.crossed for fill in fills],
            "fee": [fill.fee for fill in fills],
            "builder_fee": [fill.builderFee or 0.0 for fill in fills],
            "fee_token": [fill.feeToken for fill in fills],
            "tid": np.array([fill.tid for fill in fills], dtype=np.int64),
            "dir": [fill.dir for fill in fills],
            "start_position": [fill.startPosition for fill in fills],
            "closed_pnl": [fill.closedPnl for fill in fills],
            "cloid": [fill.cloid for fill in fills],
            "twap": [fill.twapId is not None for fill in fills],
            "liquidation": [fill.liquidation is not None for fill in fills],
        }
    )


def _unrepeated(rows: pd.DataFrame, key: list[str], dropped: Counter[str]) -> pd.DataFrame:
    repeated = rows.duplicated(key)
    if repeated.any():
        dropped["repeated"] = int(repeated.sum())
    return rows[~repeated]


def _whole(
    texts: Iterable[bytes | msgspec.Raw],
    decode: Callable[[bytes | msgspec.Raw], _Record],
    dropped: Counter[str],
    cause: str = "malformed",
) -> Iterable[_Record]:
    """Those that decode; the others are counted."""
    for text in texts:
        try:
            yield decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            dropped[cause] += 1


def _elements(path: Path) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(_read(path), type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path.name} is no JSON list: {error}") from None


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise MissingInputError(f"there is no file {path}: save the exchange's answer there, or say where it is")
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} cannot be decompressed: {error}") from None


def _something(records: list[_Record], path: Path, kind: str) -> None:
    if not records:
        raise DataError(f"{path.name} holds no whole record of {kind}")


def _nanoseconds(stamp: str) -> int:
    try:
        return int(np.datetime64(stamp, "ns").astype(np.int64))
    except ValueError:
        return -1
