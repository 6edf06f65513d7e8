"""Replays limit orders in ours, from the pickled market and orders of a folder, in a process timed from outside.

`_our_orders.py FOLDER`; the peer's side of it is `_hftbacktest_orders`.
"""

import pickle
import sys
from pathlib import Path

from _peer_orders import ours

folder = Path(sys.argv[1])
filled = ours(
    pickle.loads((folder / "market.pickle").read_bytes()), pickle.loads((folder / "orders.pickle").read_bytes())
)
print(int(filled["filled"].sum()))
