"""Replays limit orders in hftbacktest, saves what became of them, and prints how long it took, as JSON.

Runs among the peer's packages (see `_hftbacktest`): `_hftbacktest_orders.py FOLDER TICK LOT RUNS [MODEL [EXPONENT]]`.
MODEL is a queue model of the peer's by its name there; then an order is filled whole or not at all, for with parts the
peer stops with an error where many wait. Without one: a risk-averse queue, in parts. FOLDER holds
`events.npy` (the peer's own format) and `orders.npy`: records of decision_ns, side, price, size, cancel_ns,
where cancel_ns is when the cancel is sent; `latency_ns`; `fills.npy` gets rows of size left, nanoseconds
from the first event to the last report, status. RUNS 0: once, cold; else the best of so many after one.
"""

import json
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
from _timing import best_of
from hftbacktest import BUY, FILLED, GTX, LIMIT, BacktestAsset, HashMapMarketDepthBacktest
from numba import njit

folder, tick, lot, runs = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
model, exponent = (sys.argv[5:] or ["risk_adverse_queue_model"])[0], [float(number) for number in sys.argv[6:]]
exchange = "no_partial_fill_exchange" if sys.argv[5:] else "partial_fill_exchange"
events, orders = np.load(folder / "events.npy"), np.load(folder / "orders.npy")
NEVER = np.iinfo(np.int64).max
latency_ns = int((folder / "latency_ns").read_text())


@njit
def keep(fills, row, order, origin):
    """What the peer reports of an order."""
    fills[row, 0], fills[row, 1], fills[row, 2] = order.leaves_qty, order.exch_timestamp - origin, order.status


@njit
def execute(backtest, orders, latency_ns, origin, fills):
    """Submit each order when it is decided, cancel it when its time is over, look at it then and when that has landed.

    Filled ones are cancelled, too: where sizes leave a rest of floating point the peer keeps them in its book, fills
    them again and stops with an error, and calls them cancelled when they are; so what it said before that counts.
    """
    sent, cancelled, read, count = 0, 0, 0, len(orders)
    backtest.elapse(1)  # its clock starts with the first event
    while read < count:
        send_ns = orders[sent].decision_ns if sent < count else NEVER
        cancel_ns = orders[cancelled].cancel_ns if cancelled < sent else NEVER
        read_ns = orders[read].cancel_ns + 2 * latency_ns if read < cancelled else NEVER
        now = min(send_ns, cancel_ns, read_ns)
        wait = now - backtest.current_timestamp
        if wait > 0 and backtest.elapse(wait) != 0:
            return read
        if now == read_ns:
            if fills[read, 2] != FILLED:
                keep(fills, read, backtest.orders(0).get(read), origin)
            read += 1
        elif now == cancel_ns:
            keep(fills, cancelled, backtest.orders(0).get(cancelled), origin)
            backtest.cancel(0, cancelled, False)
            cancelled += 1
        else:
            order = orders[sent]
            if order.side == BUY:
                backtest.submit_buy_order(0, sent, order.price, order.size, GTX, LIMIT, False)
            else:
                backtest.submit_sell_order(0, sent, order.price, order.size, GTX, LIMIT, False)
            sent += 1
    return read


def replay() -> np.ndarray:
    """One replay of all orders."""
    asset = BacktestAsset().data(events).linear_asset(1.0).constant_order_latency(latency_ns, 1)
    asset = getattr(getattr(asset, model)(*exponent), exchange)().trading_value_fee_model(0.0, 0.0)
    backtest = HashMapMarketDepthBacktest([asset.tick_size(tick).lot_size(lot).last_trades_capacity(0)])
    fills = np.full((len(orders), 3), np.nan)
    read = execute(backtest, orders, latency_ns, events[0]["exch_ts"], fills)
    backtest.close()
    if read < len(orders):
        sys.exit(f"the peer's data ended after {read} of {len(orders)} orders")
    return fills


begun = perf_counter()
if runs:
    seconds, fills = best_of(replay, runs)
else:
    fills = replay()
    seconds = perf_counter() - begun
np.save(folder / "fills.npy", fills)
print(json.dumps({"seconds": seconds, "orders": len(orders), "events": len(events)}))
