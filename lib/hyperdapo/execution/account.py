"""An account's own orders and fills as executions, ready to be replayed on a recording of the market (§3.5.1)."""

from collections import Counter
from pathlib import Path

import numpy as np

from hyperdapo.days import SECOND_NS
from hyperdapo.errors import DataError
from hyperdapo.execution.records import read_historical_orders, read_user_fills
from hyperdapo.market.probes import Executions

RESTING = ("Alo", "Gtc")  # times in force of orders that may rest
_SAME = 1e-9  # coin


def read_account(
    orders: Path, fills: Path, coin: str, patience_s: float | None = None
) -> tuple[Executions, Counter[str]]:
    """The limit orders of one coin from files of `historicalOrders` and `userFills`.

    Records do not say how long an order that was filled would have waited: `patience_s`, or as long as the most patient
    that was cancelled.

    Returns
    -------
    The executions, and how many orders were left out: `trigger`, `not_resting` (IOC and market orders), `open` (their
    fate is not known), `unexplained` (what the fills add up to is not what the order's status says: `userFills` goes
    back only so far), and `rows` that the readers dropped

    Raises
    ------
    MissingInputError
        If a file is not there.
    DataError
        If a file is damaged, fills exceed an order, or no order is left.
    """
    told, traded = read_historical_orders(orders), read_user_fills(fills)
    rows, left_out = told.rows[told.rows["coin"] == coin], Counter(rows=(told.dropped + traded.dropped).total())
    done = traded.rows.groupby("order_id")["size"].sum().reindex(rows["order_id"], fill_value=0.0).to_numpy()
    if (excess := done > rows["size"].to_numpy() + _SAME).any():
        order_id = rows["order_id"].to_numpy()[excess][0]
        raise DataError(f"{fills.name}: the fills of order {order_id} are more than its size in {orders.name}")
    status = np.where(rows["status"].str.endswith("Rejected") | (rows["status"] == "rejected"), "rejected", "canceled")
    status = np.where(rows["status"] == "filled", "filled", status)
    filled = rows["size"].to_numpy() - np.where(status == "filled", 0.0, rows["remaining"].to_numpy())
    expected = np.where(status == "rejected", 0.0, filled)
    reasons = {
        "trigger": rows["trigger"].to_numpy(bool),
        "not_resting": ~rows["tif"].isin(RESTING).to_numpy(),
        "open": rows["status"].isin(["open", "triggered"]).to_numpy(),
        "unexplained": np.abs(done - expected) > _SAME,
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
    own = traded.rows[traded.rows["order_id"].isin(whole["order_id"])]
    return Executions(whole, own[["order_id", "exchange_ns", "price", "size", "crossed", "tid", "fee"]]), left_out
