"""Made files of every order by its id, in each format that is read."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LOBSTER = "AAPL_2012-06-21_34200000_57600000_message_10.csv"


def lobster(folder: Path, rows: Sequence[tuple[float, int, int, int, float, int]], name: str = LOBSTER) -> Path:
    """Rows of (seconds, type, id, size, price in USD, side)."""
    lines = [f"{s:.9f},{kind},{one},{size},{round(price * 1e4)},{side}" for s, kind, one, size, price, side in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def busy(folder: Path, seconds: int = 300, seed: int = 0) -> Path:
    """Orders that come to four prices a side, are cancelled at random, and are executed from the front."""
    rng, rows, left = np.random.default_rng(seed), [], {}
    queues: dict[float, list[int]] = {round(585.0 + step / 100, 2): [] for step in range(-4, 5) if step}
    clock = 34200.0
    for one in range(1, seconds * 4):
        clock += float(rng.exponential(0.25))
        price = float(rng.choice(list(queues)))
        side = 1 if price < 585 else -1
        action = rng.random()
        if action < 0.5 or len(queues[price]) < 2:
            left[one] = int(rng.integers(1, 300))
            queues[price].append(one)
            rows.append((clock, 1, one, left[one], price, side))
            continue
        best = min((at for at in queues if (at - 585) * side < 0 and queues[at]), key=lambda at: abs(at - 585))
        price = best if action > 0.8 else price
        place = 0 if action > 0.8 else int(rng.integers(0, len(queues[price])))
        other = queues[price].pop(place)
        rows.append((clock, 4 if action > 0.8 else 3, other, left.pop(other), price, side))
    return lobster(folder, rows)


def bitstamp(folder: Path, rows: Sequence[tuple[int, str, int, float, float, int | None]]) -> Path:
    """Rows of (milliseconds, word, id, price, amount, order_type)."""
    lines = []
    for ms, word, one, price, amount, kind in rows:
        told = {"price": f"{price:.2f}", "amount": f"{amount:.8f}", "datetime": str(ms // 1000), "id": one}
        lines.append(f"{ms} {word} {json.dumps(told | ({} if kind is None else {'order_type': kind}))}")
    (folder / "live.log").write_text("\n".join(lines) + "\n")
    return folder / "live.log"


def status(stamp: str, word: str, oid: int, side: str, price: str, left: str, size: str, tif: str = "Alo") -> dict:
    """An order status as a node writes it."""
    order = {"coin": "ETH", "side": side, "limitPx": price, "sz": left, "oid": oid, "timestamp": 0, "isTrigger": False}
    return {"time": stamp, "user": "0x0", "status": word, "order": order | {"origSz": size, "tif": tif, "cloid": None}}


def blocks(path: Path, by_stamp: dict[str, list[dict]]) -> Path:
    """A block a line; gzip where the name says so."""
    lines = [
        json.dumps({"local_time": stamp, "block_time": stamp, "block_number": number, "events": events})
        for number, (stamp, events) in enumerate(by_stamp.items())
    ]
    text = "\n".join(lines).encode() + b"\n"
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path
