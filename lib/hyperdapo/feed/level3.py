"""Every order by its id (level 3), as other exchanges record it and as a node of Hyperliquid does.

- LOBSTER's message files of NASDAQ (`AAPL_2012-06-21_..._message_50.csv`): seconds of New York's day, type, id, size,
  price x 10,000, side. Executions of hidden orders (5) and auctions (6) touch no order that was shown.
- Bitstamp's live orders (`.log`): lines `RECEIVED_MS KIND {json}`. An order that takes is created like any other, and
  a trade shrinks one order of either side: the younger took.
- A node of Hyperliquid: see `feed.node_orders`.
"""

import io
import re
from collections import Counter
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.feed import node_orders
from hyperdapo.feed.order_flow import ADD, CANCEL, EXECUTE, OrderFlow, content
from hyperdapo.market.columns import Mask
from hyperdapo.times import MS_NS, SECOND_NS

FILES = ("*_message*.csv*", "*.log*", "node_order_statuses*", "*.data*")
"""Patterns of the names by which a file's format is known."""

_LOBSTER = re.compile(r"(?P<asset>[A-Z.]+)_(?P<day>\d{4}-\d\d-\d\d)_.*message.*\.csv")
_NEW_YORK = ZoneInfo("America/New_York")
_NEW, _REDUCED, _DELETED, _EXECUTED, _HIDDEN, _AUCTION, _HALT = range(1, 8)  # LOBSTER's types
_RESUMED = 1  # price of the row that ends a halt
_SATOSHI = 1e-8
_AT_ONCE_NS = SECOND_NS  # an order that is filled so soon after its creation took


class _Live(msgspec.Struct, gc=False):
    """A message of Bitstamp's; a trade has no `order_type`."""

    id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    price: Annotated[float, msgspec.Meta(gt=0, lt=1e18)]
    amount: Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
    order_type: Literal[0, 1] | None = None


def read(path: Path, asset: str, sz_decimals: int) -> OrderFlow:
    """Every order of a file. Other exchanges' hold one asset, which is told by the name; of a node's, `asset` is read.

    Raises
    ------
    MissingInputError
        If the file is not there.
    DataError
        If it is damaged, of no known format, or holds no order.
    """
    if match := _LOBSTER.match(path.name):
        return read_lobster(path, match["asset"], date.fromisoformat(match["day"]))
    if path.match("*.log*"):
        return read_bitstamp(path)
    if path.match("node_order_statuses*"):
        return node_orders.read_statuses(path, asset, sz_decimals)
    if path.match("*.data*"):
        return node_orders.read_records(path, asset, sz_decimals)
    raise DataError(f"{path.name} is of no known level-3 format; names are {', '.join(FILES)}, plain, .gz or .xz")


def read_lobster(path: Path, asset: str, day: date) -> OrderFlow:
    """A message file of NASDAQ, a share as a coin. Counted: `hidden` and `auction` executions, `malformed` rows.

    Raises as `read`.
    """
    names = ["seconds", "type", "order_id", "lots", "price", "side"]
    text = io.BytesIO(content(path) or b"\n")
    rows = pd.read_csv(text, header=None, names=names, dtype=str, on_bad_lines="skip", encoding_errors="replace")
    rows = rows.apply(pd.to_numeric, errors="coerce").astype(float)
    halt = (rows["type"] == _HALT) & rows["seconds"].notna()
    whole = rows.notna().all(axis=1) & rows["type"].between(_NEW, _AUCTION) & rows["side"].isin([-1, 1])
    whole &= (rows["lots"] > 0) & (rows["price"] > 0) & (rows["order_id"] >= 0) & ~halt
    kinds = {_NEW: ADD, _REDUCED: CANCEL, _DELETED: CANCEL, _EXECUTED: EXECUTE}
    midnight_ns = round(datetime.combine(day, datetime.min.time(), _NEW_YORK).timestamp()) * SECOND_NS
    stamped = rows.assign(
        ns=midnight_ns + np.rint(rows["seconds"].fillna(0) * SECOND_NS).astype(np.int64),
        kind=rows["type"].map(kinds),
        price=rows["price"] / 1e4,
    )
    counted = Counter(
        malformed=int((~whole & ~halt).sum()),
        hidden=int((whole & (rows["type"] == _HIDDEN)).sum()),
        auction=int((whole & (rows["type"] == _AUCTION)).sum()),
        halt=int((halt & (rows["price"] < 0)).sum()),
    )
    shown = stamped[whole & stamped["kind"].notna()]
    if shown.empty:
        raise DataError(f"{path.name} holds no order of a LOBSTER message file: six numbers a row, no header")
    return OrderFlow.of(asset, 0, 1.0, shown, counted, _halts(stamped[halt], rows["price"][halt]))


def _halts(rows: pd.DataFrame, code: pd.Series) -> np.ndarray:
    """From each halt (a price of -1) to the row that says that trade goes on, or to the end of the day."""
    begins, ends = rows["ns"][code < 0].to_numpy(), rows["ns"][code == _RESUMED].to_numpy()
    ends = np.append(ends, np.iinfo(np.int64).max)
    return (
        np.stack([begins, ends[np.searchsorted(ends, begins)]], axis=1) if len(begins) else np.zeros((0, 2), np.int64)
    )


def read_bitstamp(path: Path) -> OrderFlow:
    """Bitstamp's live orders of BTC. What an order takes never rests; the rest of it rests from its last taking on.

    Counted: `malformed` lines, `unpaired` fills (one side of the trade is not there; who was filled within a second
    took), `unknown` fills of orders whose size was never told. Raises as `read`.
    """
    orders, malformed = _live_orders(path)
    left = orders.groupby("order_id")["left"].shift()
    added = (orders["word"] == "order_created").to_numpy()
    cancelled = ((orders["word"] == "order_deleted") & (orders["left"] > 0)).to_numpy()
    fill = ~added & ~cancelled
    lots = np.where(added | cancelled, orders["left"], left - orders["left"])
    rows = orders.assign(kind=np.select([added, cancelled], [ADD, CANCEL], EXECUTE), lots=lots)
    unknown = fill & ~(lots > 0)
    rows, fill = rows[~unknown].reset_index(drop=True), fill[~unknown]
    took, unpaired = _took(rows, fill)
    taken = rows[took].groupby("order_id")["lots"].sum().reindex(rows["order_id"], fill_value=0).to_numpy()
    last = pd.Series(np.flatnonzero(took), rows["order_id"][took]).groupby(level=0).last().reindex(rows["order_id"])
    rests = (rows["kind"] == ADD).to_numpy() & (taken > 0)
    place = np.where(rests, last, np.arange(len(rows))).astype(np.int64)
    lots = rows["lots"].to_numpy() - np.where(rests, taken, 0)
    rows = rows.assign(lots=lots, ns=rows["ns"].to_numpy()[place], place=place)
    kept = rows[~took].sort_values("place", kind="stable")
    counted = Counter(malformed=malformed, unpaired=unpaired, unknown=int(unknown.sum()))
    return OrderFlow.of("BTC", 4, _SATOSHI, kept, counted, np.zeros((0, 2), np.int64))


def _live_orders(path: Path) -> tuple[pd.DataFrame, int]:
    """Messages of orders: ns, word, order_id, price, side, left (satoshi); and how many lines are not whole."""
    decode, rows, malformed = msgspec.json.Decoder(_Live, strict=False).decode, [], 0
    for line in content(path).splitlines():
        stamp, _, rest = line.partition(b" ")
        word, _, text = rest.partition(b" ")
        if word in (b"order_book", b"trade"):
            continue
        try:
            live = decode(text)
            rows.append((int(stamp) * MS_NS, word.decode(), live.id, live.price, live.amount, live.order_type))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            malformed += 1
    orders = pd.DataFrame(rows, columns=["ns", "word", "order_id", "price", "amount", "order_type"])
    orders = orders[orders["order_type"].notna() & orders["word"].str.startswith("order_")].reset_index(drop=True)
    if orders.empty:
        raise DataError(f"{path.name} holds no live order of Bitstamp: lines are RECEIVED_MS KIND {{json}}")
    left = np.rint(orders["amount"] / _SATOSHI).astype(np.int64)
    return orders.assign(left=left, side=np.where(orders["order_type"] == 0, 1, -1)), malformed


def _took(rows: pd.DataFrame, fill: Mask) -> tuple[Mask, int]:
    """Which rows are fills of an order that took (n,), and how many have no other side.

    Both sides of a trade are told one after the other, of one size.
    """
    fills = rows[fill].assign(row=np.flatnonzero(fill))
    buys, sells = (fills[fills["side"] == side].sort_values("ns", kind="stable") for side in (1, -1))
    pairs = pd.merge_asof(
        *(buys, sells), on="ns", by="lots", direction="nearest", tolerance=_AT_ONCE_NS, suffixes=("", "_sold")
    ).dropna(subset="row_sold")
    pairs = pairs.drop_duplicates("row_sold")
    younger = np.where(pairs["order_id"] > pairs["order_id_sold"], pairs["row"], pairs["row_sold"]).astype(np.int64)
    created = rows[rows["kind"] == ADD].groupby("order_id")["ns"].first()
    alone = np.setdiff1d(fills["row"], np.concatenate([pairs["row"], pairs["row_sold"]]).astype(np.int64))
    age = rows["ns"].to_numpy()[alone] - created.reindex(rows["order_id"].to_numpy()[alone]).to_numpy()
    took = np.zeros(len(rows), dtype=bool)
    took[younger] = took[alone[age <= _AT_ONCE_NS]] = True
    return took, len(alone)
