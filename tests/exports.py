"""The probes of the synthetic exchange in Hyperliquid's own formats, so that what reads real records can be tested.

Spelling as the info endpoint's `historicalOrders` and `userFills` and a node's `node_fills_by_block`. Order ids rise
with time over all orders, as the exchange's do. The others of the synthetic market have no names: opposite a probe
stands one account, whose taking orders are as old as the print and whose resting ones are a second older.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hyperdapo.execution.costs import fee_rates
from hyperdapo.execution.history import Executions
from hyperdapo.files import atomic
from hyperdapo.market.columns import Nanoseconds

OWNER, OTHERS = "0x" + "ab" * 20, "0x" + "cd" * 20  # accounts of the probes and of those they trade with

_NO_HASH = "0x" + "0" * 64
_MS, _SECOND = 1_000_000, 1_000_000_000
_IDS_PER_MS = 1000


class Exported(NamedTuple):
    """The files that were written."""

    historical_orders: Path
    user_fills: Path
    node_fills: Path


def export(executions: Executions, coin: str, folder: Path, tier: int = 0) -> Exported:
    """Write `historicalOrders.json`, `userFills.json` and `node_fills_by_block.jsonl.gz` into a folder.

    Fees are those of `fee_rates` at `tier` for the probes, and at tier 0 for the others, in USDC.
    """
    paths = Exported(*(folder / name for name in ("historicalOrders.json", "userFills.json", "node_fills.jsonl.gz")))
    orders, fills = executions.orders, executions.fills.sort_values("exchange_ns", kind="stable", ignore_index=True)
    oid = pd.Series(order_ids(orders["placed_ns"].to_numpy(np.int64)), index=orders["order_id"])
    texts = json.dumps(_statuses(orders, fills, coin, oid))
    own = _account(fills, orders.set_index("order_id").loc[fills["order_id"], "side"].to_numpy(int), coin, tier)
    own = [fill | {"oid": int(oid[number])} for fill, number in zip(own, fills["order_id"], strict=True)]
    _write(paths.historical_orders, texts.encode())
    _write(paths.user_fills, json.dumps([fill | {"cloid": None} for fill in own[::-1]]).encode())
    _write(paths.node_fills, gzip.compress(_blocks(fills, own, coin), mtime=0))
    return paths


def order_ids(ns: Nanoseconds) -> Nanoseconds:
    """(n,) distinct ids that rise with the times (n,)."""
    stamp = np.asarray(ns) // _MS
    order = np.argsort(stamp, kind="stable")
    first = np.searchsorted(stamp[order], stamp[order])
    ids = np.empty(len(stamp), dtype=np.int64)
    ids[order] = stamp[order] % 10**12 * _IDS_PER_MS + np.arange(len(stamp)) - first
    return ids


def _statuses(orders: pd.DataFrame, fills: pd.DataFrame, coin: str, oid: "pd.Series[int]") -> list[dict[str, Any]]:
    """Newest first, as the endpoint answers."""
    done, last = fills.groupby("order_id")["size"].sum(), fills.groupby("order_id")["exchange_ns"].max()
    rows = []
    for order in orders.sort_values("placed_ns", ascending=False).itertuples():
        left = float(order.size) - float(done.get(order.order_id, 0.0))
        ended = {"filled": last.get(order.order_id), "rejected": order.placed_ns}.get(order.status, order.cancel_ns)
        told: dict[str, Any] = {
            "coin": coin,
            "side": "B" if order.side > 0 else "A",
            "limitPx": _spelled(order.limit_price),
            "sz": _spelled(max(left, 0.0)),
            "oid": int(oid[order.order_id]),
            "timestamp": int(order.placed_ns) // _MS,
            "triggerCondition": "N/A",
            "isTrigger": False,
            "triggerPx": "0.0",
            "children": [],
            "isPositionTpsl": False,
            "reduceOnly": False,
            "orderType": "Limit",
            "origSz": _spelled(order.size),
            "tif": "Alo" if order.post_only else "Gtc",
            "cloid": None,
        }
        rows.append({"order": told, "status": order.status, "statusTimestamp": int(ended) // _MS})
    return rows


def _account(fills: pd.DataFrame, side: "np.ndarray[Any, np.dtype[np.int64]]", coin: str, tier: int) -> list[dict]:
    """The fills of one account with its running position, without order ids."""
    taker, maker = fee_rates(fills["exchange_ns"].to_numpy(np.int64), tier)
    crossed = fills["crossed"].to_numpy(bool)
    fee = np.where(crossed, taker, maker) * 1e-4 * fills["price"].to_numpy(float) * fills["size"].to_numpy(float)
    told: list[dict[str, Any]] = []
    position, entry = 0.0, 0.0
    for row, fill in enumerate(fills.itertuples()):
        signed = float(side[row] * fill.size)
        after = round(position + signed, 8)
        closed = min(abs(signed), abs(position)) if position * signed < 0 else 0.0
        told.append(
            {
                "coin": coin,
                "px": _spelled(fill.price),
                "sz": _spelled(fill.size),
                "side": "B" if signed > 0 else "A",
                "time": int(fill.exchange_ns) // _MS,
                "startPosition": _spelled(position),
                "dir": _direction(position, after),
                "closedPnl": _spelled(closed * np.sign(position) * (fill.price - entry)),
                "hash": _NO_HASH,
                "oid": -1,
                "crossed": bool(crossed[row]),
                "fee": _spelled(round(float(fee[row]), 6)),
                "tid": int(fill.tid),
                "feeToken": "USDC",
                "twapId": None,
            }
        )
        if position * after <= 0:
            entry = fill.price
        elif not closed:
            entry = (entry * abs(position) + fill.price * abs(signed)) / abs(after)
        position = after
    return told


def _direction(before: float, after: float) -> str:
    if before * after < 0:
        return "Long > Short" if before > 0 else "Short > Long"
    name = "Long" if before > 0 or after > 0 else "Short"
    return f"{'Open' if abs(after) > abs(before) else 'Close'} {name}"


def _blocks(fills: pd.DataFrame, own: list[dict[str, Any]], coin: str) -> bytes:
    """A line for each block in which a probe traded; each print is the events of its two accounts."""
    side = np.array([-1 if fill["side"] == "B" else 1 for fill in own], dtype=np.int64)
    others = _account(fills.assign(crossed=~fills["crossed"].to_numpy(bool)), side, coin, 0)
    took = np.array([fill["crossed"] for fill in others], dtype=bool)
    ids = order_ids(fills["exchange_ns"].to_numpy(np.int64) - np.where(took, 0, _SECOND)) + _IDS_PER_MS // 2
    lines: dict[int, list[Any]] = {}
    for ns, mine, theirs, oid in zip(fills["exchange_ns"].tolist(), own, others, ids.tolist(), strict=True):
        lines.setdefault(ns, []).extend([[OWNER, mine], [OTHERS, theirs | {"oid": oid}]])
    return "".join(json.dumps(_block(ns, events)) + "\n" for ns, events in lines.items()).encode()


def _block(ns: int, events: list[Any]) -> Mapping[str, Any]:
    stamp = str(np.datetime64(ns, "ns"))
    return {"local_time": stamp, "block_time": stamp, "block_number": ns // _MS // 70, "events": events}


def _spelled(value: float) -> str:
    """The exchange's spelling: no trailing zeros but the one after the point."""
    text = f"{value:.8f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def _write(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)
