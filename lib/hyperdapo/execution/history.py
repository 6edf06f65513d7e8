"""Real orders and fills: Hyperliquid's formats as tables, and what became of an account's orders (§3.5.1).

The info endpoint's answers to `historicalOrders` and `userFills` are JSON lists, a node's `node_fills_by_block` is one
block a line. msgspec decodes and checks each record; one that is not whole is dropped and counted, a file without any
whole record is an error. Numbers come as text. Sources: the exchange's API documentation (info endpoint) and a file of
a node; fields that a format may lack are optional here.
"""

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
import pandas as pd

from hyperdapo.errors import DataError, MissingInputError
from hyperdapo.execution.events import DUST
from hyperdapo.times import MS_NS, SECOND_NS

RESTING = ("Alo", "Gtc")  # times in force of orders that may rest
_OPEN = ("open", "accepted", "triggered")
_CANCELED, _REJECTED = r"(?:canceled|scheduledCancel|\w+Canceled)", r"(?:rejected|\w+Rejected)"  # statuses, whole
_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=(2**63 - 1) // MS_NS)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e18)]
_Amount = Annotated[float, msgspec.Meta(gt=-1e18, lt=1e18)]
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Executions:
    """What became of an account's orders.

    `orders`: order_id, side (+1 buy), size (coin), limit_price (USD), post_only, placed_ns (the block that took it),
    cancel_ns (its cancel takes effect, if it is not filled before), status (filled, canceled, rejected).
    `fills`: order_id, exchange_ns, price (USD), size (coin), crossed (it took), tid; of a real account fee (what was
    charged, USD; NaN where it was charged in another token).
    """

    orders: pd.DataFrame
    fills: pd.DataFrame


class History(NamedTuple):
    """What a file held: `rows`, and how many entries were `dropped` by cause."""

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


def read_account(
    orders: Path, fills: Path, coin: str, patience_s: float | None = None
) -> tuple[Executions, Counter[str]]:
    """The limit orders of one coin from files of `historicalOrders` and `userFills`.

    Records do not say how long an order that was filled would have waited: `patience_s`, or as long as the most patient
    that was cancelled.

    Returns
    -------
    The executions, and how many orders were left out: `trigger`, `not_resting` (IOC and market orders), `open` (their
    fate is not known), `unknown_status` (one that the exchange's documentation does not name), `unexplained` (what the
    fills add up to is not what the order's status says: `userFills` goes back only so far), and `rows` that the readers
    dropped

    Raises
    ------
    MissingInputError
        If a file is not there.
    DataError
        If a file is damaged, fills exceed an order, or no order is left.
    """
    placed, traded = read_historical_orders(orders), read_user_fills(fills)
    rows, left_out = placed.rows[placed.rows["coin"] == coin], Counter(rows=(placed.dropped + traded.dropped).total())
    done = traded.rows.groupby("order_id")["size"].sum().reindex(rows["order_id"], fill_value=0.0).to_numpy()
    if (excess := done > rows["size"].to_numpy() + DUST).any():
        order_id = rows["order_id"].to_numpy()[excess][0]
        raise DataError(f"{fills.name}: the fills of order {order_id} are more than its size in {orders.name}")
    stated = rows["status"].astype(str)
    ends = {"filled": stated == "filled", "canceled": stated.str.fullmatch(_CANCELED)}
    ends |= {"rejected": stated.str.fullmatch(_REJECTED), "open": stated.isin(_OPEN)}
    status = np.select([end.to_numpy(bool) for end in ends.values()], list(ends), "unknown")
    filled = rows["size"].to_numpy() - np.where(status == "filled", 0.0, rows["remaining"].to_numpy())
    expected = np.where(status == "rejected", 0.0, filled)
    reasons = {
        "trigger": rows["trigger"].to_numpy(bool),
        "not_resting": ~rows["tif"].isin(RESTING).to_numpy(),
        "open": status == "open",
        "unknown_status": status == "unknown",
        "unexplained": np.abs(done - expected) > DUST,
    }
    kept = np.ones(len(rows), dtype=bool)
    for reason, faulty in reasons.items():
        left_out[reason] = int((kept & faulty).sum())
        kept &= ~faulty
    if not kept.any():
        raise DataError(f"{orders.name} holds no resting order of {coin} whose fate is known: {dict(left_out)}")
    mine = rows.assign(status=status)[kept]
    lives = (mine["status_ns"] - mine["placed_ns"])[mine["status"] == "canceled"]
    patience_ns = round(patience_s * SECOND_NS) if patience_s is not None else int(lives.max()) if len(lives) else 0
    cancel_ns = np.where(mine["status"] == "filled", mine["placed_ns"] + patience_ns, mine["status_ns"])
    cancel_ns = np.maximum(cancel_ns, mine["status_ns"] + (mine["status"] == "filled"))  # after the fill at least
    columns = ["order_id", "side", "size", "limit_price", "placed_ns", "status"]
    whole = mine[columns].assign(post_only=mine["tif"] == "Alo", cancel_ns=cancel_ns).reset_index(drop=True)
    theirs = traded.rows[traded.rows["order_id"].isin(whole["order_id"])]
    theirs = theirs.assign(fee=theirs["fee"].where(theirs["fee_token"] == "USDC"))
    return Executions(whole, theirs[["order_id", "exchange_ns", "price", "size", "crossed", "tid", "fee"]]), left_out


def read_historical_orders(path: Path) -> History:
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
            "placed_ns": np.array([order.timestamp for order in orders], dtype=np.int64) * MS_NS,
            "status": [record.status for record in records],
            "status_ns": np.array([record.statusTimestamp for record in records], dtype=np.int64) * MS_NS,
        }
    )
    latest = rows.assign(final=rows["status"] != "open").sort_values(["status_ns", "final"], kind="stable")
    rows = latest.drop(columns="final").drop_duplicates("order_id", keep="last")
    if len(rows) < len(records):
        dropped["superseded"] = len(records) - len(rows)
    return History(rows.sort_values(["placed_ns", "order_id"], ignore_index=True), dropped)


def read_user_fills(path: Path) -> History:
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
    return History(rows.sort_values("exchange_ns", kind="stable", ignore_index=True), dropped)


def read_node_fills(path: Path) -> History:
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
    blocks = {"user": users, "block_number": np.array(numbers, np.int64), "block_ns": np.array(times, np.int64)}
    rows = _unrepeated(_fill_rows(fills).assign(**blocks), ["tid", "order_id", "user"], dropped)
    return History(rows.sort_values(["block_ns", "block_number"], kind="stable", ignore_index=True), dropped)


def _fill_rows(fills: list[Fill]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "order_id": np.array([fill.oid for fill in fills], dtype=np.int64),
            "coin": [fill.coin for fill in fills],
            "side": [1 if fill.side == "B" else -1 for fill in fills],
            "price": [fill.px for fill in fills],
            "size": [fill.sz for fill in fills],
            "exchange_ns": np.array([fill.time for fill in fills], dtype=np.int64) * MS_NS,
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
