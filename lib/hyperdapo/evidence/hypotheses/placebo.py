"""A placebo: the decisions of a policy, given to other states. What it then still earns it did not predict."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo import sections
from hyperdapo.evidence.metrics import TOTAL, Floats
from hyperdapo.times import SECOND_NS

MOST_SHIFTS = 999


def placebos(
    outcomes: pd.DataFrame, decisions: pd.DataFrame, policies: Sequence[str], evidence: sections.Evidence
) -> pd.DataFrame:
    """Each policy against its own decisions, shifted in time around the test span: its features, permuted.

    A shift keeps how often and in which runs the policy takes each action, and cuts its tie to the market. Shifts are
    of a block at least, either way. Where the policy learned nothing but how often to take, it is as cheap as they.

    Parameters
    ----------
    outcomes : K rows per state, with `total_cost_bps` of each `action`
    decisions : one row per state, policy and seed, with `action`

    Returns
    -------
    `asset, policy, seed, total_cost_bps, placebo_bps` (mean over shifts), `difference_bps, p_placebo` (share of shifts
    that are as cheap, one-sided), `shifts, note`
    """
    rows = []
    tested = outcomes[outcomes["split"] == "test"]
    for asset, states in tested.groupby("asset", sort=False):
        costs = states.set_index(["decision_ns", "order_id", "action"])[TOTAL].unstack("action").sort_index()  # noqa: PD010 (as is, no mean)
        shifts = _shifts(costs.index.get_level_values("decision_ns").to_numpy(), evidence.block_s)
        own = decisions[decisions["asset"] == asset]
        for (policy, seed), decided in own[own["policy"].isin(policies)].groupby(["policy", "seed"], sort=False):
            action = decided.set_index("order_id")["action"].loc[costs.index.get_level_values("order_id")].to_numpy()
            row = {"asset": asset, "policy": policy, "seed": seed}
            rows.append(row | _against_shifts(costs.to_numpy(float), action, shifts))
    return pd.DataFrame(rows)


def shifted_costs(costs: Floats, action: NDArray[np.int64], shifts: NDArray[np.int64]) -> Floats:
    """(shifts,) mean cost of (n,) actions, moved on by so many states, of (n, K) costs."""
    rows = np.arange(len(costs))
    return np.array([costs[rows, np.roll(action, shift)].mean() for shift in shifts])


def _against_shifts(costs: Floats, action: NDArray[np.int64], shifts: NDArray[np.int64]) -> dict[str, float | str]:
    own = float(costs[np.arange(len(costs)), action].mean())
    constant = "one action in every state" if np.ptp(action) == 0 else ""
    note = constant or ("" if len(shifts) else "a span of fewer than two blocks")
    placebo = shifted_costs(costs, action, shifts) if not note else np.array([])
    p_value = (1 + (placebo <= own).sum()) / (1 + len(placebo)) if len(placebo) else float("nan")
    mean = float(placebo.mean()) if len(placebo) else float("nan")
    measured: dict[str, float | str] = {
        TOTAL: own,
        "placebo_bps": mean,
        "difference_bps": own - mean,
        "p_placebo": float(p_value),
    }
    return measured | {"shifts": len(placebo), "note": note}


def _shifts(decision_ns: NDArray[np.int64], block_s: float) -> NDArray[np.int64]:
    """By how many states: a block at least from either end, evenly spaced, `MOST_SHIFTS` at most."""
    nearest = int(np.searchsorted(decision_ns, decision_ns[0] + round(block_s * SECOND_NS)))
    possible = np.arange(max(nearest, 1), len(decision_ns) - nearest + 1)
    if len(possible) <= MOST_SHIFTS:
        return possible
    few: NDArray[np.int64] = possible[np.linspace(0, len(possible) - 1, MOST_SHIFTS).round().astype(int)]
    return few
