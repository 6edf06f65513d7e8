"""The picture of a session: its record, its orders and its refusals, as `evidence.figures.session` draws them."""

from pathlib import Path

import numpy as np
import pandas as pd

from hyperdapo.evidence.figures import style
from hyperdapo.evidence.figures.session import plot_session
from hyperdapo.feed.clean import recorded
from hyperdapo.live.session import Session
from hyperdapo.times import SECOND_NS


def draw(session: Session, asset: str) -> Path:
    """Write `session_ASSET.pdf` and `.png` into the folder of a session, and return where the latter is.

    Raises
    ------
    MissingInputError
        If the session has no order that has ended.
    """
    parameters, orders = session.asked.parameters(asset), session.orders()
    market = recorded(session.folder / f"{asset}.ndjson.gz", asset, parameters)
    top = market.top
    quotes = pd.DataFrame({"local_ns": top.local_ns, "bid_price": top.bid_price, "ask_price": top.ask_price})
    refusals = [entry for entry in session.entries() if "refused" in entry and entry["asset"] == asset]
    every_ns = round(parameters.live.order_every_s * SECOND_NS)
    refused = pd.DataFrame(
        {
            "decision_ns": np.array([entry["decision_ns"] for entry in refusals], dtype=np.int64),
            "cause": [entry["refused"] for entry in refusals],
            "every_ns": np.full(len(refusals), every_ns),
        }
    )
    figure = plot_session(quotes, orders[orders["asset"] == asset], refused, asset)
    style.keep(figure, session.folder, f"session_{asset}")
    return session.folder / f"session_{asset}.png"
