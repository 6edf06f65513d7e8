"""Is anything better than the best simple rule? Hansen's SPA, Romano and Wolf's StepM, and the model confidence set.

All three look at all strategies at once, on mean costs in bins of time, by the stationary bootstrap (package `arch`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from arch.bootstrap import MCS, SPA, StepM

from hyperdapo import sections
from hyperdapo.evidence.gaps import RIVALS
from hyperdapo.evidence.hypotheses import resampling
from hyperdapo.evidence.hypotheses.series import BINS_A_BLOCK, ORACLE, Costs
from hyperdapo.evidence.hypotheses.testing import fewest_blocks
from hyperdapo.evidence.metrics import ROUNDING_BPS, TOGETHER, TOTAL, Floats

_UNTRAINED, _AGAIN = "untrained", "_sequential"  # the end of the name of a policy that decides more than once


def superiority(
    orders: pd.DataFrame, algorithms: Sequence[str], evidence: sections.Evidence, seed: int
) -> pd.DataFrame:
    """Of each asset and of all together: trained policies and rivals against the rule that turned out cheapest.

    That rule is chosen in hindsight, on these orders, which is to its favour. Of strategies that place the same orders
    the first stands for all; the oracle cannot be traded.

    Returns
    -------
    `asset, rule` (the cheapest that learns nothing), `learned` (how many policies stand against it), `p_spa` (Hansen's
    consistent p-value: none of them is better), `better` (which are, by StepM, with an error of 1 - `confidence` over
    all), `best` (the model confidence set of all strategies, rules too), `blocks, block_s`, `note` (why not tested)
    """
    costs = Costs.of(orders[orders["strategy"] != ORACLE], TOTAL, evidence.block_s)
    assets = [*costs.assets, *([TOGETHER] if len(costs.assets) > 1 else [])]
    policies = {*algorithms, _UNTRAINED, *RIVALS}
    learns = [name for name in orders["strategy"].unique() if name.removesuffix(_AGAIN) in policies]
    return pd.DataFrame(
        [{"asset": asset} | _against_the_rule(costs, asset, learns, evidence, seed) for asset in assets]
    )


def in_bins(costs: Costs, asset: str) -> pd.DataFrame:
    """What each bin adds to the mean cost (bps): a column per strategy that is no double."""
    orders, known, series = costs.in_bins(asset), dict[str, Floats](), dict[str, Floats]()
    for strategy in dict.fromkeys(costs.wide.columns.get_level_values("strategy")):
        own = costs.of_strategy(asset, strategy).mean(axis=1)
        if np.isfinite(own).all() and not any(np.abs(own - other).max() < ROUNDING_BPS for other in known.values()):
            known[strategy] = own
            series[strategy] = costs.in_bins(asset, own) / orders.mean()
    return pd.DataFrame(series)


def _against_the_rule(
    costs: Costs, asset: str, learns: Sequence[str], evidence: sections.Evidence, seed: int
) -> dict[str, object]:
    losses, level = in_bins(costs, asset), 1 - evidence.confidence
    rules = losses.drop(columns=learns, errors="ignore")
    learned = losses[[name for name in learns if name in losses]]
    found: dict[str, object] = {"rule": "", "learned": learned.shape[1], "p_spa": float("nan")}
    found |= {"better": "", "best": ""}
    if rules.empty or learned.empty:
        return found | {"blocks": 0, "block_s": float("nan"), "note": "no two strategies to compare"}
    rule = str(rules.mean().idxmin())
    apart = (learned.T - rules[rule]).T.to_numpy()
    length = resampling.block_bins(apart - apart.mean(axis=0), BINS_A_BLOCK)
    blocks, needed = len(losses) // length, fewest_blocks(learned.shape[1], level)
    found |= {"rule": rule, "blocks": blocks, "block_s": length * costs.bin_s, "note": ""}
    if blocks < needed:
        return found | {
            "note": f"{blocks} blocks of {length * costs.bin_s:g} s; a family of {learned.shape[1]} needs {needed}"
        }
    drawn: dict[str, Any] = {"block_size": length, "reps": evidence.bootstrap, "bootstrap": "stationary", "seed": seed}
    spa = SPA(rules[rule], learned, **drawn)
    spa.compute()
    step = StepM(rules[rule], learned, size=level, **drawn)
    step.compute()
    best = MCS(losses, size=level, **drawn)
    best.compute()
    listed = {"better": ", ".join(map(str, step.superior_models)), "best": ", ".join(sorted(map(str, best.included)))}
    return found | listed | {"p_spa": float(spa.pvalues["consistent"])}
