"""Recordings written down message by message, and what 02 makes of them."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hyperdapo.feed import download
from hyperdapo.feed.clean import preprocess
from hyperdapo.market.book import Market
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths
from hyperdapo.synthetic.replay_server import RecordedSlices, serve, synthetic_market

START_MS = 1_756_980_000_000  # 2025-09-04 10:00 UTC
SECOND = 1_000_000_000
MINUTES = 25


def stamped(ms: int, text: str) -> str:
    moment = datetime.fromtimestamp((START_MS + ms) / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}0Z {text}"


def line(ms: int, channel: str, data: Any, delay_ms: int = 400) -> str:
    data = (
        [row | {"time": START_MS + ms - delay_ms} for row in data]
        if channel == "trades"
        else data | {"time": START_MS + ms - delay_ms}
    )
    return stamped(ms, json.dumps({"channel": channel, "data": data}, separators=(",", ":")))


def levels(*rows: tuple[object, object]) -> list[dict[str, str]]:
    return [{"px": str(price), "sz": str(size)} for price, size in rows]


def book(ms: int, bids: Any = ((4000, 2), (3999.9, 1)), asks: Any = ((4000.1, 2), (4000.2, 1)), **more: Any) -> str:
    return line(ms, "l2Book", {"coin": "ETH", "levels": [levels(*bids), levels(*asks)]}, **more)


def quote(ms: int, bid: Any = (4000, 1), ask: Any = (4000.1, 1)) -> str:
    return line(ms, "bbo", {"coin": "ETH", "bbo": levels(bid, ask)})


def prints(ms: int, *tids: int, price: object = 4000, size: object = 1, delay_ms: int = 400) -> str:
    rows = [{"coin": "ETH", "side": "B", "px": str(price), "sz": str(size), "tid": tid} for tid in tids]
    return line(ms, "trades", rows, delay_ms)


def quiet(start_s: int, end_s: int) -> list[tuple[int, str]]:
    """A book every second."""
    return [(1000 * second, book(1000 * second)) for second in range(start_s, end_s)]


def trickle(*connections: tuple[int, int]) -> list[tuple[int, str]]:
    """A print every minute between these seconds, with trade ids of its own."""
    seconds = [second for start_s, end_s in connections for second in range(start_s, end_s, 60)]
    return [(1000 * second + 20, prints(1000 * second + 20, 100_000 + second)) for second in seconds]


def parameters(endpoint: str, minutes: int = MINUTES) -> Parameters:
    span = {"from": "2025-09-04T10:00:00Z", "to": f"2025-09-04T10:{minutes}:00Z"}
    return load("smoke", {"assets": ["ETH"], "source": {"kind": "tardis", "endpoint": endpoint} | span})


def cleaned(
    lines: list[tuple[int, str]], tmp_path: Path, paths: Paths, minutes: int = MINUTES
) -> tuple[dict[str, Any], Market]:
    """What 02 makes of lines, each with the millisecond at which it came; an empty line is a disconnect."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    text = "\n".join(row for _, row in sorted(lines, key=lambda pair: pair[0])) + "\n"
    (folder / "ETH.ndjson.gz").write_bytes(gzip.compress(text.encode()))
    with serve(RecordedSlices(folder)) as endpoint:
        wanted = parameters(endpoint, minutes)
        download.download(wanted, "ETH", paths)
    return preprocess(wanted, "ETH", paths), Market.load(paths.data)


def download_synthetic(parameters: Parameters, asset: str, paths: Paths, code: str = "") -> dict[str, Any]:
    """01 on the synthetic market."""
    return download.download(parameters, asset, paths, lambda: serve(synthetic_market(parameters, asset)), code)
