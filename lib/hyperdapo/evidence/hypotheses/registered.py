"""The registered hypotheses (`params/registered.yaml`) against the test orders: each gets a status, and says why."""

from pathlib import Path

import pandas as pd

from hyperdapo import sections
from hyperdapo.evidence.hypotheses.series import Costs, comparisons
from hyperdapo.evidence.hypotheses.testing import tests
from hyperdapo.evidence.metrics import QUEUES, TOGETHER
from hyperdapo.evidence.tables import heading

ESTABLISHED, NOT_ESTABLISHED, FAILED, NOT_AVAILABLE = STATUSES = (
    "established",
    "not established",
    "failed",
    "not available",
)
"""Cheaper, whatever the queue; not told from no difference; dearer; could not be tested."""
SIZE_POWER = Path(__file__).with_name("size_power.csv")
"""How often the procedure establishes what is not there, or is: `test, edge_bps, worlds, rejections, rate`, as
`benchmarks/_size_power.py` measured it."""
_ESTIMATES = (
    "difference_bps",
    "ci_low",
    "ci_high",
    "joint_low",
    "joint_high",
    "ahead_low",
    "ahead_high",
    "behind_low",
    "behind_high",
)


def judge(orders: pd.DataFrame, claimed: sections.Hypotheses, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """Every registered hypothesis, of each asset and of all assets together, as one family.

    Parameters
    ----------
    orders : `orders.parquet` of all assets; where a column `seed` tells trainings apart, they are averaged, and drawn
        with the bootstrap

    Returns
    -------
    The columns of `testing.tests`, and of the two bounds of the queue `ahead_low, ahead_high, behind_low, behind_high`
    (simultaneous too), `status` of `STATUSES`, and `because`.

    Raises
    ------
    DataError
        If orders are not paired (`series.paired`).
    """
    tables = dict[str, pd.DataFrame]()
    for queue, cost in QUEUES.items():
        costs = Costs.of(orders, cost, evidence.block_s)
        family = comparisons(costs, [claimed.policy], claimed.references)
        tables[queue] = tests(costs, family, evidence, seed, claimed.alpha)
    judged, ahead, behind = tables.values()
    bounds = {
        f"{name}_{side}": table[f"joint_{side}"]
        for name, table in (("ahead", ahead), ("behind", behind))
        for side in ("low", "high")
    }
    return _with_status(judged.assign(**bounds), claimed.smallest_effect_bps)


def shifted(judged: pd.DataFrame, by_bps: float, smallest_effect_bps: float) -> pd.DataFrame:
    """What `judge` would say if every order of the policy cost so much more: errors stay, estimates move."""
    moved = judged.assign(**{name: judged[name] + by_bps for name in _ESTIMATES})
    return _with_status(moved, smallest_effect_bps)


def _with_status(judged: pd.DataFrame, smallest_effect_bps: float) -> pd.DataFrame:
    outcome = [_status(row, smallest_effect_bps) for row in judged.to_dict("records")]
    return judged.assign(status=[status for status, _ in outcome], because=[why for _, why in outcome])


def _status(row: dict[str, float | str], smallest_bps: float) -> tuple[str, str]:
    """Of one hypothesis, and why."""
    low, high = float(row["joint_low"]), float(row["joint_high"])
    if row["note"]:
        return NOT_AVAILABLE, str(row["note"])
    if low > 0:
        return FAILED, f"dearer, by {low:.2f} bps at least"
    if high >= 0:
        detectable = float(row["detectable_bps"])
        seen = f"a difference of {detectable:.2f} bps would have been seen in four of five such tests"
        return NOT_ESTABLISHED, seen if detectable > smallest_bps else f"a saving beyond {-low:.2f} bps is excluded"
    missed = [name for name in ("ahead", "behind") if not float(row[f"{name}_high"]) < 0]
    if missed:
        return NOT_ESTABLISHED, f"not where all cancels are {' or '.join(missed)}"
    small = abs(float(row["difference_bps"])) < smallest_bps
    return (
        ESTABLISHED,
        f"though below the {smallest_bps:g} bps that would be of interest"
        if small
        else "under both bounds of the queue",
    )


def size_power() -> pd.DataFrame:
    """The table of `SIZE_POWER`."""
    return pd.read_csv(SIZE_POWER)


def verdict(judged: pd.DataFrame) -> str:
    """A line for each hypothesis, then how many have which status."""
    lines = []
    for row in judged.to_dict("records"):
        orders_of = "all assets" if row["asset"] == TOGETHER else row["asset"]
        claim = f"{orders_of}: {heading(row['strategy'])} costs less than {heading(row['reference'])}"
        interval = f"{row['difference_bps']:+.2f} bps, {row['joint_low']:+.2f} to {row['joint_high']:+.2f}"
        shown = "" if row["note"] else f" ({interval})"
        lines.append(f"{claim}: {row['status']}{shown}: {row['because']}.")
    return "\n".join([*lines, counts(judged)])


def counts(judged: pd.DataFrame) -> str:
    """`Of 30 registered hypotheses: 14 established, ...`."""
    each = [f"{(judged['status'] == status).sum()} {status}" for status in STATUSES]
    return f"Of {len(judged)} registered hypotheses: {', '.join(each)}."
