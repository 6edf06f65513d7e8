"""Are the fills of the simulator true? Scores, and shares filled, of orders whose fate is known (§3.5.1)."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from hyperdapo import sections
from hyperdapo.evidence.metrics import block_bootstrap
from hyperdapo.times import SECOND_NS, block_of

GROUPS = 10
SCORES = ("asset", "queue_model", "orders", "brier", "auc", "fill_time_error_s", "cost_error_bps")


def scores(compared: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """`fill_scores` of each asset and queue model, with `brier_differences`."""
    rows = []
    for _, orders in compared.groupby("asset", sort=False):
        rows.append(fill_scores(orders).merge(brier_differences(orders, evidence, seed), on="queue_model"))
    return pd.concat(rows, ignore_index=True)


def fill_scores(compared: pd.DataFrame) -> pd.DataFrame:
    """How true the fills of each queue model are: a row per asset and model with `SCORES`, and cost_bias_bps.

    `brier`: mean squared difference of the share that was filled before the cancel. `auc`: of "filled in full", ranked
    by that share and then by how soon it was filled. `fill_time_error_s`: mean absolute error of the last fill, of
    orders filled in full in both. `cost_error_bps`: mean absolute error of the cost, `cost_bias_bps`: with its sign.
    """
    rows = [
        {"asset": asset, "queue_model": name, "orders": len(orders)} | score(orders)
        for (asset, name), orders in compared.groupby(["asset", "queue_model"], sort=False)
    ]
    return pd.DataFrame(rows)


def score(orders: pd.DataFrame) -> dict[str, float]:
    """The scores of `fill_scores`; NaN where no order is of the kind that one needs."""
    truth, replayed = orders["true_filled"].to_numpy(), orders["filled"].to_numpy()
    whole, full = truth > 1 - 1e-9, replayed > 1 - 1e-9
    life = (orders["cancel_ns"] - orders["placed_ns"]).clip(lower=1)
    waited = ((orders["fill_ns"] - orders["placed_ns"]) / life).where(full, 1.0)
    late_s = (orders["fill_ns"] - orders["true_fill_ns"])[whole & full].abs() / SECOND_NS
    error = orders["cost_bps"] - orders["true_cost_bps"]
    return {
        "brier": float(np.mean((replayed - truth) ** 2)),
        "auc": float(roc_auc_score(whole, replayed + 1 - waited)) if 0 < whole.sum() < len(whole) else np.nan,
        "fill_time_error_s": float(late_s.mean()),
        "cost_error_bps": float(error.abs().mean()),
        "cost_bias_bps": float(error.mean()),
    }


def brier_differences(compared: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """By how much each queue model's Brier score is worse than that of the first, on the same orders.

    Parameters
    ----------
    compared : queue_model, order_id, placed_ns, filled and true_filled (shares)

    Returns
    -------
    `queue_model`, `brier_excess`, `ci_low`, `ci_high`: intervals over blocks of time; the first has none
    """
    squared = compared.assign(error=(compared["filled"] - compared["true_filled"]) ** 2)
    errors = squared.pivot_table(index=["placed_ns", "order_id"], columns="queue_model", values="error", sort=False)
    blocks = block_of(errors.index.get_level_values("placed_ns"), evidence.block_s)
    first, *others = compared["queue_model"].unique()
    rows: list[tuple[str, float, float, float]] = [(str(first), 0.0, np.nan, np.nan)]
    for name in others:
        excess = block_bootstrap(errors[name] - errors[first], blocks, evidence, seed)
        rows.append((str(name), excess.value, excess.low, excess.high))
    return pd.DataFrame(rows, columns=["queue_model", "brier_excess", "ci_low", "ci_high"])


def reliability(compared: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """Share filled in the simulator and in truth, of orders that had equally good chances.

    A group holds a tenth of the orders, by how far the price had to come (bps between the limit and the mid at arrival)
    for each square root of a second that the order waited.

    Returns
    -------
    `queue_model`, `group`, `orders`, `predicted`, `observed` and its interval over blocks of time, `ci_low`, `ci_high`
    """
    distance_bps = compared["side"] * (1 - compared["limit_price"] / compared["arrival_mid"]) * 1e4
    waits_s = (compared["cancel_ns"] - compared["placed_ns"]) / SECOND_NS
    need = distance_bps / np.sqrt(waits_s.clip(lower=0.1))
    group = pd.qcut(need, GROUPS, labels=False, duplicates="drop")
    blocked = compared.assign(block=block_of(compared["placed_ns"], evidence.block_s))
    rows = []
    for (name, number), orders in blocked.groupby(["queue_model", group], sort=False):
        truth = block_bootstrap(orders["true_filled"], orders["block"], evidence, seed)
        rows.append((name, number, len(orders), orders["filled"].mean(), truth.value, truth.low, truth.high))
    names = ["queue_model", "group", "orders", "predicted", "observed", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=names).sort_values(["queue_model", "group"], ignore_index=True)
