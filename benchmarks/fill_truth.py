"""Fills against level 3, ours beside hftbacktest 2.4.4's queue models: orders added behind the queues of AAPL.

Each waits for 60 s behind all others at one of the three best prices; by price-time priority the ids tell when its turn
would have come (`hyperdapo.feed.queues.join_behind`). Both tools see the published messages only, at the exchange's
times. The peer fills an order whole or not at all, and whole when a print goes through its price; ours as much as
printed. `BENCH fill_truth` gives our Brier score, cancels spread evenly, against the best of the peer's models. The
recording lies beside the repository, or there is nothing to compare.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from _hftbacktest import run
from _peer_orders import peer_events

from hyperdapo.execution.validation import replay_by_queue_model
from hyperdapo.feed import level3, queues
from hyperdapo.params import load
from hyperdapo.stages.truth import add_orders, allowed, in_the_days_of

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY.parent / "shared" / "data" / "level3" / "lobster"
PARAMETERS = load("sample", {"execution": {"impact_coefficient_bps": 0, "queue_exponent": 1}})
MODELS = {
    "risk_adverse": "risk_adverse_queue_model",
    "log_prob": "log_prob_queue_model",
    "log_prob2": "log_prob_queue_model2",
    "power_prob_1": "power_prob_queue_model",
    "power_prob_2": "power_prob_queue_model",
    "power_prob2_2": "power_prob_queue_model2",
    "power_prob3_2": "power_prob_queue_model3",
}
"""The peer's queue models by the names of this table; a number at the end is its exponent."""


def main() -> None:
    """Print the table and the lines of `benchmarks`."""
    files = sorted(FOLDER.glob("*_message*")) if FOLDER.is_dir() else []
    if not files:
        sys.exit(f"no LOBSTER message file in {FOLDER}: this benchmark judges fills by one")
    flow = in_the_days_of(queues.rebuild(level3.read(files[0], "", 0)), PARAMETERS.source.start_ns)
    ns = flow.events["ns"].to_numpy()
    orders = allowed(add_orders(flow, (int(ns[0]) + 10**9, int(ns[-1]) - 64 * 10**9), PARAMETERS), flow)
    market = queues.publish(flow)
    ours = replay_by_queue_model(market, orders, PARAMETERS.execution)
    with TemporaryDirectory() as temporary:
        folder, judged = Path(temporary), ours[ours["queue_model"] == "power"]
        np.save(folder / "events.npy", peer_events(market))
        columns = (judged[name] for name in ("placed_ns", "side", "limit_price", "size", "cancel_ns"))
        np.save(folder / "orders.npy", np.rec.fromarrays([*columns], names="decision_ns,side,price,size,cancel_ns"))
        (folder / "latency_ns").write_text("1000")
        theirs = {}
        for name, model in MODELS.items():
            exponent = name.rpartition("_")[2]
            arguments = [model] + ([exponent] if exponent.isdigit() else [])
            run("_hftbacktest_orders.py", str(folder), "0.01", "1.0", "0", *arguments)
            theirs[name] = 1 - np.load(folder / "fills.npy")[:, 0] / judged["size"].to_numpy()
    truth = judged["true_filled"].to_numpy()
    filled = {name: rows["filled"].to_numpy() for name, rows in ours.groupby("queue_model", sort=False)}
    brier = {
        tool: {name: float(np.mean((share - truth) ** 2)) for name, share in shares.items()}
        for tool, shares in (("ours", filled), ("peer", theirs))
    }
    rows = [(tool, name, score) for tool, scores in brier.items() for name, score in scores.items()]
    print(pd.DataFrame(rows, columns=["tool", "queue_model", "brier"]).sort_values("brier").to_string(index=False))
    mine, best = brier["ours"]["power"], min(brier["peer"].values())
    print(f"BENCH fill_truth {mine:.6f} {best:.6f} {best / mine:.2f} 1")


if __name__ == "__main__":
    main()
