"""Times hftbacktest's own converter on one file, and prints that and what it made of the file, as JSON.

Runs among the peer's packages (see `_hftbacktest`): `_hftbacktest_convert.py FILE SZ_DECIMALS`.
"""

import gzip
import json
import sys
from contextlib import redirect_stdout

import numpy as np
from _timing import best_of
from hftbacktest import BUY_EVENT, DEPTH_EVENT, LOCAL_EVENT, SELL_EVENT, TRADE_EVENT
from hftbacktest.data.utils.hyperliquid import convert

path, sz_decimals = sys.argv[1], int(sys.argv[2])


def read_lines() -> None:
    """What `convert` does to get its lines, and nothing else."""
    with gzip.open(path, "r") as file:
        while file.readline():
            pass


with redirect_stdout(sys.stderr):  # it says what it does
    seconds, events = best_of(lambda: convert(path, tick_size=10.0 ** (sz_decimals - 6), lot_size=10.0**-sz_decimals))
reading_s, _ = best_of(read_lines)

kind = events["ev"] & np.uint64(0xFF)
received = (events["ev"] & np.uint64(LOCAL_EVENT)) != 0
changes, prints = events[received & (kind == DEPTH_EVENT)], events[received & (kind == TRADE_EVENT)]


def last_side(side: int) -> list[list[float]]:
    """Price and size of the levels that are left when all changes of a side are laid on one another."""
    rows = changes[(changes["ev"] & np.uint64(side)) != 0]
    sizes = dict(zip(np.round(rows["px"], 6).tolist(), rows["qty"].tolist(), strict=True))
    return sorted([price, size] for price, size in sizes.items() if size)


facts = {
    "seconds": seconds,
    "reading_s": reading_s,
    "events": len(events),
    "changes": len(changes),
    "moments": len(np.unique(changes["local_ts"])),
    "bids": last_side(BUY_EVENT),
    "asks": last_side(SELL_EVENT),
    "prints": np.stack([prints["local_ts"].astype(float), prints["px"], prints["qty"]], axis=1).tolist(),
}
print(json.dumps(facts))
