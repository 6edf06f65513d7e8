"""The draft's claims: what each says, what was measured of it, where, under which limits, and whether it holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hyperdapo import sections
from hyperdapo.evidence.convergence import median_arrival
from hyperdapo.evidence.gaps import DPOS
from hyperdapo.evidence.metrics import Interval, block_bootstrap, paired_differences
from hyperdapo.evidence.tables import heading, listed, records
from hyperdapo.paths import GENERALIST

HOLDS, NOT_SHOWN, FAILS, NOT_AVAILABLE = STATUSES = ("holds", "not shown", "does not hold", "not available")
COLUMNS = (
    *("claim", "section", "claimed", "measure", "asset", "measured", "ci_low", "ci_high", "unit"),
    *("where", "limits", "status"),
)
OF_NO_ASSET = ""
_NEEDS_GPU = "needs a GPU"
_NAN = float("nan")


@dataclass(frozen=True)
class Claim:
    """A number that the draft states without evidence.

    bound : what is to be reached, in `unit`; by asset where the draft names some, in which case it claims nothing of
        others
    above : whether the bound is to be reached from below
    """

    section: str
    claimed: str
    measure: str
    unit: str
    where: str
    limits: str
    bound: float | Mapping[str, float] = 0.0
    above: bool = True


CLAIMS = {
    "fill_rate": Claim("§1.3", "72 %", "orders filled before expiry", "%", "08, 09", "by simulated queues", 72.0),
    "fill_rate_gain": Claim(
        *("§1.3", "11.3 points above traditional methods", "fill rate minus that of joining once", "points"),
        *("08, 09", "joining the best quote once stands for traditional methods", 11.3),
    ),
    "slippage": Claim(
        *("§1.3", "negative slippage", "mean signed slippage (eq. 3.9)", "bps", "08, 09"),
        *("against the limit price, fees apart: an order may have it and still cost more", 0.0, False),
    ),
    "accuracy": Claim(
        *("§4.6.2", "90.0 % (BTC), 88.5 % (ETH)", "held-out states whose best action is chosen", "%", "05, 06"),
        *("the best in hindsight, luck included; mean over seeds, lowest and highest", {"BTC": 90.0, "ETH": 88.5}),
    ),
    "loss_decrease": Claim(
        *("§4.6.2", "72 % in 100 steps", "fall of the held-out distance to the oracle", "%", "05, 06"),
        *("a clipped objective has no loss that falls; mean over seeds, lowest and highest", 72.0),
    ),
    "fewer_steps": Claim(
        *("§4.6.2", "50 % fewer than DPO", "steps saved to 90 % of the way to the best, median seed", "%", "06"),
        *("against DPO tuned with as many trials", 50.0),
    ),
    "better_than_dpo": Claim(
        *(
            "§1.3",
            "effective in training",
            "reward minus that of the better DPO on the same held-out states",
            "bps",
            "09",
        ),
        *("against DPO tuned with as many trials; seeds averaged state by state", 0.0),
    ),
    "specialists": Claim(
        *("§1.3", "specialists beat a generalist", "reward of the specialist minus that of one adapter for all", "bps"),
        *("06, 09", "both with the budget of one specialist", 0.0),
    ),
    "trainable": Claim(
        *("§4.3.2", "10.1 million (0.13 %)", "LoRA parameters of rank 16 on q, k, v, o of Qwen2.5-7B", "million"),
        *("05", "counted from the shapes of the model; the draft's listing prints 10,100,736", 10.1),
    ),
    "memory": Claim("§4.8.2", "60 % less memory", "peak memory of a training step", "%", "", _NEEDS_GPU),
    "size": Claim("§4.5.1", "75 % smaller", "size of the model in 4 bits", "%", "", _NEEDS_GPU),
    "latency": Claim(
        *("§4.8.4", "from 1.9 s to under 100 ms", "time of one decision of Qwen2.5-7B", "ms", "", _NEEDS_GPU),
    ),
}


def claims_table(
    orders: pd.DataFrame,
    convergence: pd.DataFrame,
    gaps: pd.DataFrame,
    specialists: pd.DataFrame,
    evidence: sections.Evidence,
    seed: int,
    policy: str = "dapo",
) -> pd.DataFrame:
    """Every claim beside what this run measured of `policy`, per asset where it is of assets.

    Parameters
    ----------
    orders : `orders.parquet` of all assets, with `block`
    convergence : `convergence.parquet`
    gaps : `learning_gap_over_seeds.parquet`
    specialists : `specialist_gaps.parquet`

    Returns
    -------
    `COLUMNS`; `status` of `STATUSES`, with the reason where one is not available. An interval decides: a claim holds
    where all of it is beyond the bound, does not where none of it is.
    """
    rows = []
    for asset, group in orders.groupby("asset", sort=False):
        of_asset = [table[table["asset"] == asset] for table in (convergence, gaps, specialists)]
        measured = _executed(group, policy, evidence, seed) | _learned(policy, *of_asset)
        rows += [
            _row(key, str(asset), interval, limits)
            for key, (interval, limits) in measured.items()
            if _claims(CLAIMS[key], str(asset))
        ]
    millions = lora_parameters() / 1e6
    rows.append(_row("trainable", OF_NO_ASSET, _point(millions), "") | {"status": _rounded_status(millions)})
    rows += [
        _row(key, OF_NO_ASSET, _point(_NAN), "") for key, claim in CLAIMS.items() if claim.limits.startswith(_NEEDS_GPU)
    ]
    order = {key: place for place, key in enumerate(CLAIMS)}
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values("claim", key=lambda keys: keys.map(order), kind="stable", ignore_index=True)


def lora_parameters(layers: int = 28, hidden: int = 3584, key_value: int = 512, rank: int = 16) -> int:
    """Of adapters on q, k, v and o: each has two matrices, from its input to `rank` and on to its output.

    >>> lora_parameters()
    10092544
    """
    query, key = hidden + hidden, hidden + key_value
    return layers * rank * (2 * query + 2 * key)


def _claims(claim: Claim, asset: str) -> bool:
    """Whether the draft claims it of this asset."""
    return not isinstance(claim.bound, Mapping) or asset in claim.bound


def _row(key: str, asset: str, interval: Interval, limits: str) -> dict[str, Any]:
    claim = CLAIMS[key]
    row: dict[str, Any] = {
        "claim": key,
        "section": claim.section,
        "claimed": claim.claimed,
        "measure": claim.measure,
        "asset": asset,
    }
    row |= {"measured": interval.value, "ci_low": interval.low, "ci_high": interval.high, "unit": claim.unit}
    said = "; ".join(part for part in (claim.limits, limits) if part)
    return row | {"where": claim.where, "limits": said, "status": _status(claim, asset, interval, said)}


def _status(claim: Claim, asset: str, interval: Interval, limits: str) -> str:
    if np.isnan(interval.value):
        return f"{NOT_AVAILABLE}: {_NEEDS_GPU if limits.startswith(_NEEDS_GPU) else limits.rpartition('; ')[2]}"
    bound = claim.bound[asset] if isinstance(claim.bound, Mapping) else claim.bound
    ends = [interval.value if np.isnan(end) else end for end in (interval.low, interval.high)]
    beyond = [end >= bound if claim.above else end < bound for end in ends]
    return HOLDS if all(beyond) else NOT_SHOWN if any(beyond) else FAILS


def _rounded_status(millions: float) -> str:
    return HOLDS if round(millions, 1) == CLAIMS["trainable"].bound else FAILS


def _executed(
    orders: pd.DataFrame, policy: str, evidence: sections.Evidence, seed: int
) -> dict[str, tuple[Interval, str]]:
    """What one asset's orders say to the claims on execution."""
    trained = orders[orders["strategy"] == policy]
    pairs = paired_differences(orders, "join_best", ["filled"])
    pairs = pairs[pairs["strategy"] == policy]
    values = {
        "fill_rate": (100 * trained["filled"], trained["block"]),
        "fill_rate_gain": (100 * pairs["filled"], pairs["block"]),
        "slippage": (trained["slippage_bps"], trained["block"]),
    }
    return {key: (block_bootstrap(*each, evidence, seed), "") for key, each in values.items()}


def _learned(
    policy: str, convergence: pd.DataFrame, gaps: pd.DataFrame, specialists: pd.DataFrame
) -> dict[str, tuple[Interval, str]]:
    """What one asset's trainings say to the claims on learning."""
    runs, gap = convergence[convergence["algorithm"] == policy], gaps[gaps["algorithm"] == policy]
    crossed = specialists[specialists["trained_on"] == GENERALIST]
    columns = ("minus_specialist_bps", "ci_low", "ci_high")
    general = next((_interval(row, columns) for row in records(crossed)), _point(_NAN))
    against = ("minus_dpo_bps", "minus_dpo_ci_low", "minus_dpo_ci_high")
    return {
        "accuracy": _over_seeds(runs, "final_accuracy"),
        "loss_decrease": _over_seeds(runs, "regret_decrease"),
        "fewer_steps": _steps_saved(convergence, policy),
        "better_than_dpo": _else(next((_interval(row, against) for row in records(gap)), _point(_NAN)), "no DPO"),
        "specialists": _else(Interval(-general.value, -general.high, -general.low, 0), "no adapter for all assets"),
    }


def _else(interval: Interval, why: str) -> tuple[Interval, str]:
    """An interval, and why there is none."""
    return interval, why if np.isnan(interval.value) else ""


def _steps_saved(convergence: pd.DataFrame, policy: str) -> tuple[Interval, str]:
    """Share of the steps of the faster DPO that `policy` saves, in %, and how many of the seeds arrived at all.

    NaN where no DPO ran, or where a median seed never arrives.
    """
    steps = convergence.groupby("algorithm")["steps_to_level"]
    arrivals = steps.agg(median_arrival).reindex([policy, *DPOS])
    fastest = arrivals[[*DPOS]].min()
    arrived = listed(
        f"{rows.count()} of {len(rows)} seeds of {heading(str(name))} arrived"
        for name, rows in steps
        if name in (policy, *DPOS)
    )
    both = np.isfinite([arrivals[policy], fastest]).all()
    return _point(100 * float(1 - arrivals[policy] / fastest) if both else _NAN), arrived


def _over_seeds(runs: pd.DataFrame, measure: str) -> tuple[Interval, str]:
    """The mean over seeds in %, between the lowest and the highest."""
    values = 100 * runs[measure]
    return Interval(float(values.mean()), float(values.min()), float(values.max()), 0), ""


def _interval(row: Mapping[str, Any], columns: tuple[str, str, str]) -> Interval:
    value, low, high = (float(row[name]) for name in columns)
    return Interval(value, low, high, 0)


def _point(value: float) -> Interval:
    return Interval(float(value), _NAN, _NAN, 0)
