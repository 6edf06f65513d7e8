"""Our fills against hftbacktest 2.4.4's, order by order, where the two models coincide (see `_peer_orders`).

An order is equal when its status, what is left of it, and the nanosecond of its last fill are; one that is refused,
when both refuse it (ours then comes back at another price). Each difference must have a name: the order is replayed
once more with one rule of the peer's in place of ours, or with several, and must then be equal.

- `through`: a print beyond our price fills all of the order (peer), or no more than its own size (ours).
- `crossed`: so does a quote of the other side that comes to our price (peer), or it fills nothing (ours).
- `unseen`: an order beyond the visible book stands behind what was last shown there, if anything (peer), or behind what
  a visible level holds on average (ours).

One hour of a synthetic BTC market, and the ETH recording where it lies beside the repository. `BENCH parity_*` gives
the orders that are equal or explained against all of them.
"""

import sys
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import numpy as np
import pandas as pd
from _peer_orders import joining_orders, ours, peer_events, peers
from _synthetic import market as synthetic_market

from hyperdapo.execution import kernel
from hyperdapo.execution.events import DUST, PRINT, Events, Queue, stream
from hyperdapo.market.book import Market
from markets import recorded

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDING = REPOSITORY.parent / "shared" / "data" / "hyperliquid" / "2025-09-04" / "ETH.ndjson.gz"
ORDERS = 4000
SETS = {"at the touch, 20 USD": (20.0, 0), "0-5 steps, 2000 USD": (2000.0, 5), "0-40 steps, 20 USD": (20.0, 40)}
RULES = ("through", "crossed", "unseen")
COLUMNS = ["market", "orders", "filled", "rejected", "equal", *RULES, "several", "unexplained"]
QUEUE = Queue(joined=True, exponent=np.inf, crossing=False)
NOBODY, NO_PATH = np.zeros(0), np.zeros((0, 2))


def compare(market: Market, count: int = ORDERS) -> pd.DataFrame:
    """One row per set of orders: how many are equal, differ by which rule, or by none that we know."""
    events, rows = peer_events(market), []
    for name, (notional_usd, steps) in SETS.items():
        orders = joining_orders(market, count, notional_usd, steps, seed=1)
        mine, theirs = ours(market, orders), peers(events, orders, market)
        equal = np.array([_equal(*pair) for pair in zip(_told(mine), theirs.itertuples(index=False), strict=True)])
        why = pd.Series(
            [explain(market, mine.iloc[row], theirs.iloc[row]) for row in np.flatnonzero(~equal)], dtype=str
        )
        counts = {rule: int((why == rule).sum()) for rule in (*RULES, "several", "unexplained")}
        shares = {"filled": int(mine["filled"].sum()), "rejected": int((mine["rejections"] > 0).sum())}
        rows.append({"set": name, "market": market.asset, "orders": count} | shares | {"equal": equal.sum()} | counts)
    return pd.DataFrame(rows).set_index("set")[COLUMNS]


def explain(market: Market, mine: pd.Series, theirs: pd.Series) -> str:
    """The rule of the peer's that makes the order equal, `several` rules, or `unexplained`."""
    for count in range(1, len(RULES) + 1):
        for rules in combinations(RULES, count):
            if _equal(_replayed(stream(market), mine, rules), theirs):
                return rules[0] if count == 1 else "several"
    return "unexplained"


def _told(filled: pd.DataFrame) -> list[tuple[float, int, str]]:
    refused = filled["rejections"] > 0
    left = np.where(refused, filled["size"], filled["size"] * (1 - filled["filled_passive"]))
    return list(zip(left, filled["fill_ns"], filled["status"].mask(refused, "rejected"), strict=True))


def _equal(mine: tuple[float, int, str], theirs: tuple[float, int, str]) -> bool:
    left, fill_ns, status = mine
    other_left, last_ns, other_status = theirs
    return abs(left - other_left) < 1e-9 and status == other_status and (status != "filled" or fill_ns == last_ns)


def _replayed(events: Events, order: pd.Series, rules: tuple[str, ...]) -> tuple[float, int, str]:
    """The order's life once more, event by event, with those rules of the peer's."""
    side, limit, size = int(order["side"]), float(order["limit_price"]), float(order["size"])
    first = int(np.searchsorted(events.ns, order["arrival_ns"], side="left")) - 1
    last = int(np.searchsorted(events.ns, order["cancel_ns"], side="left"))
    state = kernel.rest(events, first, side, limit, size, QUEUE)
    if "unseen" in rules and state.visible == kernel.UNKNOWN:
        state = state._replace(ahead=_last_shown(events, first, side, limit))
    moment, opposite = events.moment, 1 if side > 0 else 0
    for event in range(first + 1, last):
        if moment["kind"][event] == PRINT:
            met = "through" in rules and moment["aggressor"][event] == -side
            met = met and side * (limit - moment["price"][event]) > 0
        else:
            met = "crossed" in rules and side * (limit - moment["best_price"][event, opposite]) >= 0
        if met:
            state = state._replace(remaining=0.0)
        else:
            _, state = kernel.wait(events, event, event + 1, state, side, limit, QUEUE, NOBODY, kernel.ALONE, NO_PATH)
        if state.remaining <= DUST:
            return 0.0, int(events.ns[event]), "filled"
    return state.remaining, -1, "completed"


def _last_shown(events: Events, event: int, side: int, price: float) -> float:
    """What the newest message that could see a price showed there; 0 for none."""
    plain = events._replace(moment=events.moment.view(np.recarray))  # Python knows fields by name only in these
    while event >= 0:
        size = kernel.visible_size.py_func(plain, event, side, price)
        quote_above = events.moment["kind"][event] != PRINT and size != kernel.UNKNOWN
        if quote_above and not _passed_over(events, event, side, price):
            return size
        event -= 1
    return 0.0


def _passed_over(events: Events, event: int, side: int, price: float) -> bool:
    """Whether the event is a best quote before the price: it says nothing of it."""
    near = 0 if side > 0 else 1
    return bool(events.moment["kind"][event] == 1 and side * (price - events.moment["best_price"][event, near]) < 0)


def main() -> None:
    """Print the table and the lines of `benchmarks`."""
    markets = {"synthetic_BTC": synthetic_market(1)}
    if RECORDING.exists():
        markets["recorded_ETH"] = recorded(RECORDING, "ETH", 4)
    for name, market in markets.items():
        table = compare(market)
        print(table.to_string(), flush=True)
        total, unexplained = int(table["orders"].sum()), int(table["unexplained"].sum())
        print(f"BENCH parity_{name} {total - unexplained} {total} {(total - unexplained) / total:.6f} 1", flush=True)


if __name__ == "__main__":
    main()
