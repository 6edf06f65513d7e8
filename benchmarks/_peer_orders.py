"""The same events and the same orders for hftbacktest and for ours, and what each made of them.

Where the models coincide: post-only orders, a risk-averse queue (only prints shorten it), one latency, no impact.
The peer's converter drops `bbo`, so it gets the events that our kernel reads, as changes of levels: a snapshot or a
quote takes out what its best price has passed, then says what it shows; a level that leaves the visible book keeps what
it showed last.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from _hftbacktest import run

from hyperdapo.execution.events import PRINT, SNAPSHOT, Events, stream
from hyperdapo.execution.simulator import replay_orders
from hyperdapo.market.book import Market
from hyperdapo.market.grid import tick_size
from hyperdapo.params import load

LATENCY_MS = 100
EVENT = np.dtype(
    {
        "names": ["ev", "exch_ts", "local_ts", "px", "qty", "order_id", "ival", "fval"],
        "formats": ["u8", "i8", "i8", "f8", "f8", "u8", "i8", "f8"],
    },
    align=True,
)
DEPTH, TRADE, BOTH, BUY, SELL = 1, 2, 1 << 31 | 1 << 30, 1 << 29, 1 << 28
STATUS = {2: "rejected", 3: "filled", 4: "completed", 5: "completed"}  # of the peer: expired, filled, cancelled, partly
_SAMPLE = load("sample").execution
_LATENCY = {"preset": "empirical", "policy_ms": 0.0, "empirical_ms": [float(LATENCY_MS)]}
_CHANGES = {"block_ms": 0.0, "queue": "risk_averse", "impact_coefficient_bps": 0.0}
EXECUTION = _SAMPLE.model_copy(update={"latency": _SAMPLE.latency.model_copy(update=_LATENCY)} | _CHANGES)


def joining_orders(market: Market, count: int, notional_usd: float, steps: int, seed: int) -> pd.DataFrame:
    """Post-only orders of 60 s at random times, at the best quote of their side or up to `steps` price steps behind."""
    rng = np.random.default_rng(seed)
    first, last = market.top.local_ns[[0, -1]]
    ns = np.sort(rng.choice(np.arange(first + 10**9, last - 65 * 10**9, 10**6), 3 * count, replace=False))
    ns = ns[~market.interrupted(ns, ns + 61 * 10**9)]
    ns = np.sort(rng.choice(ns, count, replace=False)) + rng.integers(1, 10**6, count)
    best, side = market.top_at(ns), rng.choice([-1, 1], count)
    near = np.where(side > 0, best.bid_price, best.ask_price)
    tick = tick_size(near, market.sz_decimals)
    limit = np.round(near - side * tick * rng.integers(0, steps + 1, count), 6)
    lot = 10.0**-market.sz_decimals
    size = np.round(np.ceil(notional_usd / near / lot) * lot, market.sz_decimals)
    fixed = {"order_id": np.arange(count), "horizon_s": 60.0, "post_only": True}
    return pd.DataFrame({"decision_ns": ns, "side": side, "size": size, "limit_price": limit} | fixed)


def ours(market: Market, orders: pd.DataFrame) -> pd.DataFrame:
    """What our simulator makes of them."""
    return replay_orders(market, orders, EXECUTION, seed=0)


def peers(events: np.ndarray, orders: pd.DataFrame, market: Market) -> pd.DataFrame:
    """What the peer makes of them: left (coin), last_ns (of its last report), status."""
    with TemporaryDirectory() as folder:
        run(*peer_arguments(Path(folder), events, orders, market), "0")
        fills = np.load(Path(folder, "fills.npy"))
    last_ns = events["exch_ts"][0] + fills[:, 1].astype(np.int64)
    return pd.DataFrame(
        {"left": fills[:, 0], "last_ns": last_ns, "status": [STATUS[int(code)] for code in fills[:, 2]]}
    )


def peer_arguments(folder: Path, events: np.ndarray, orders: pd.DataFrame, market: Market) -> list[str]:
    """The peer's script and its arguments but the number of runs, once the folder holds what it reads."""
    cancel_ns = orders["decision_ns"] + 60 * 10**9 - 3 * LATENCY_MS * 10**6  # as ours is sent
    columns = (orders["decision_ns"], orders["side"], orders["limit_price"], orders["size"], cancel_ns)
    np.save(folder / "events.npy", events)
    np.save(folder / "orders.npy", np.rec.fromarrays(columns, names="decision_ns,side,price,size,cancel_ns"))
    (folder / "latency_ns").write_text(str(LATENCY_MS * 10**6))
    tick = float(tick_size(orders["limit_price"].to_numpy(), market.sz_decimals).min())
    return ["_hftbacktest_orders.py", str(folder), repr(tick), repr(10.0**-market.sz_decimals)]


def peer_events(market: Market) -> np.ndarray:
    """The events of a market in the peer's format."""
    return np.fromiter(_changes(stream(market)), dtype=EVENT)


def _changes(events: Events) -> Iterator[tuple]:
    shown: tuple[dict, dict] = ({}, {})
    for event in range(len(events.ns)):
        ns = int(events.ns[event])
        if events.moment["kind"][event] == PRINT:
            aggressor = BUY if events.moment["aggressor"][event] > 0 else SELL
            yield (
                TRADE | BOTH | aggressor,
                ns,
                ns,
                events.moment["price"][event],
                events.moment["size"][event],
                0,
                0,
                0.0,
            )
            continue
        for near, side in ((0, BUY), (1, SELL)):
            best = events.moment["best_price"][event, near]
            for price in [price for price in shown[near] if (price > best if near == 0 else price < best)]:
                del shown[near][price]
                yield DEPTH | BOTH | side, ns, ns, price, 0.0, 0, 0, 0.0
        for near, side in ((0, BUY), (1, SELL)):
            for price, size in _levels(events, event, near, shown[near]):
                if shown[near].get(price, 0.0) != size:
                    yield DEPTH | BOTH | side, ns, ns, price, size, 0, 0, 0.0
                if size:
                    shown[near][price] = size
                else:
                    shown[near].pop(price, None)


def _levels(events: Events, event: int, near: int, shown: dict[float, float]) -> list[tuple[float, float]]:
    """Prices and sizes that a message says of a side: a snapshot also that what it leaves out between is gone."""
    if events.moment["kind"][event] != SNAPSHOT:
        return [(events.moment["best_price"][event, near], events.moment["best_size"][event, near])]
    row = events.moment["row"][event]
    prices, sizes = events.level_price[row, near], events.level_size[row, near]
    levels = dict(zip(prices[~np.isnan(prices)].tolist(), sizes[~np.isnan(prices)].tolist(), strict=True))
    deepest = list(levels)[-1]
    gone = [price for price in shown if price not in levels and (price > deepest if near == 0 else price < deepest)]
    return [(price, 0.0) for price in gone] + list(levels.items())
