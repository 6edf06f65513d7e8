"""`numbers.tex`: every number of the thesis as a LaTeX macro, and the draft's claims beside what was measured."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyperdapo import sections
from hyperdapo.evidence.convergence import median_arrival
from hyperdapo.evidence.metrics import PRICE, Interval, block_bootstrap, paired_differences
from hyperdapo.evidence.tables import escape_latex
from hyperdapo.files import atomic
from hyperdapo.paths import Paths

_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_SIGNIFICANT = 4
_NAN = float("nan")

Numbers = dict[tuple[str, ...], float]


@dataclass(frozen=True)
class Claim:
    """A number that the thesis draft states without evidence: where, and what is measured to hold against it."""

    section: str
    claimed: str
    measure: str
    unit: str


CLAIMS = {
    "fill_rate": Claim("§1.3", "72 %", "orders filled before expiry", "%"),
    "fill_rate_gain": Claim("§1.3", "11.3 points above traditional", "fill rate minus that of join-best", "points"),
    "price_improvement": Claim("§1.3", "negative slippage", "implementation shortfall", "bps"),
    "accuracy": Claim("§4.6.2", "90.0 % (BTC), 88.5 % (ETH)", "held-out states whose best action is chosen", "%"),
    "loss_decrease": Claim("§4.6.2", "72 % in 100 steps", "fall of the training loss", "%"),
    "regret_decrease": Claim("§4.6.2", "72 % in 100 steps", "fall of the held-out distance to the oracle", "%"),
    "fewer_steps": Claim(
        "§4.6.2", "50 % fewer than DPO", "steps saved to 90 % of the way to the best, median seed", "%"
    ),
    "latency": Claim("§4.8.4", "under 100 ms", "see the latency table: measured times are not compared", "ms"),
}


def claims_table(
    orders: pd.DataFrame, convergence: pd.DataFrame, evidence: sections.Evidence, seed: int, policy: str = "dapo"
) -> pd.DataFrame:
    """The draft's claims, and what this run measured of `policy`, per asset.

    Parameters
    ----------
    orders : `orders.parquet` of all assets
    convergence : `convergence.csv`; values are means over training seeds

    Returns
    -------
    `claim, section, claimed, measure, asset, measured, ci_low, ci_high, unit`: NaN where this run cannot say.
    """
    rows = []
    for asset, group in orders.groupby("asset", sort=False):
        learned = _learned(convergence[convergence["asset"] == asset], policy)
        measured = _executed(group, policy, evidence, seed) | learned
        for key, claim in CLAIMS.items():
            interval = measured[key]
            quoted = (key, claim.section, claim.claimed, claim.measure)
            rows.append((*quoted, asset, interval.value, interval.low, interval.high, claim.unit))
    names = ["claim", "section", "claimed", "measure", "asset", "measured", "ci_low", "ci_high", "unit"]
    order = {key: place for place, key in enumerate(CLAIMS)}
    table = pd.DataFrame(rows, columns=names)
    return table.sort_values("claim", key=lambda keys: keys.map(order), kind="stable", ignore_index=True)


def collect(
    metrics: pd.DataFrame, gaps: pd.DataFrame, means: pd.DataFrame, tests: pd.DataFrame, claims: pd.DataFrame
) -> Numbers:
    """Numbers by name from `metrics.csv`, `learning_gap.csv` and its means, `significance.csv` and `claims.csv`.

    Every estimate with an interval is followed by its bounds, whose names end in Low and High.
    """
    numbers: Numbers = {}
    for row in _records(metrics):
        numbers |= _with_bounds((row["asset"], row["strategy"], row["metric"]), row, "value", "ci_low", "ci_high")
    for row in _records(gaps):
        key = (row["asset"], row["algorithm"], f"seed {row['seed']}")
        numbers |= _with_bounds((*key, "gap_closed"), row, "gap_closed", "gap_ci_low", "gap_ci_high")
    for row in _records(means):
        run = (row["asset"], row["algorithm"])
        numbers |= _with_bounds((*run, "gap_closed"), row, "gap_closed", "gap_ci_low", "gap_ci_high")
        numbers[(*run, "share of boosting")] = row["share_of_boosting"]
    for row in _records(tests):
        key = (row["asset"], row["strategy"], f"minus_{row['reference']}")
        numbers |= _with_bounds(key, row, "difference_bps", "ci_low", "ci_high")
        numbers[(*key, "p_holm")] = row["p_t_holm"]
    for row in _records(claims.dropna(subset="measured")):
        numbers |= _with_bounds(("claim", row["claim"], row["asset"]), row, "measured", "ci_low", "ci_high")
    return numbers | {("comparisons",): len(tests), ("comparisons", "significant"): int(tests["significant"].sum())}


def save(numbers: Mapping[tuple[str, ...], float], paths: Paths) -> Path:
    """Write `outputs/<profile>/numbers.tex`."""
    with atomic(paths.outputs / "numbers.tex") as temporary:
        temporary.write_text(macros(numbers), encoding="utf-8")
    return paths.outputs / "numbers.tex"


def macros(numbers: Mapping[tuple[str, ...], float]) -> str:
    r"""`\newcommand` lines in order of name.

    Raises
    ------
    ValueError
        If two keys make the same name.
    """
    lines: dict[str, str] = {}
    for parts, value in numbers.items():
        name = macro_name(*parts)
        if name in lines:
            raise ValueError(f"two numbers are called {name}: rename {parts}")
        lines[name] = number(value)
    body = "\n".join(rf"\newcommand{{{name}}}{{{escape_latex(text)}}}" for name, text in sorted(lines.items()))
    return f"% Generated; do not edit.\n{body}\n"


def macro_name(*parts: str) -> str:
    r"""A LaTeX command name, letters only.

    >>> macro_name("BTC", "best_fixed", "markout_60s_bps")
    '\\HdBtcBestFixedMarkoutSixZeroSBps'
    """
    words = re.findall(r"[A-Za-z]+|\d", " ".join(parts))
    spelt = [_DIGITS[int(word)] if word.isdigit() else word for word in words]
    return rf"\Hd{''.join(word.capitalize() for word in spelt)}"


def number(value: float) -> str:
    """Four significant digits, with an exponent only below 0.0001; a dash for what is not a number."""
    if pd.isna(value):
        return "–"
    text = f"{value:.{_SIGNIFICANT}g}"
    return f"{value:.0f}" if "e+" in text else text


def _executed(orders: pd.DataFrame, policy: str, evidence: sections.Evidence, seed: int) -> dict[str, Interval]:
    """What one asset's orders say to the claims on execution."""
    trained = orders[orders["strategy"] == policy]
    pairs = paired_differences(orders, "join_best", ["filled"])
    pairs = pairs[pairs["strategy"] == policy]
    return {
        "fill_rate": block_bootstrap(100 * trained["filled"], trained["block"], evidence, seed),
        "fill_rate_gain": block_bootstrap(100 * pairs["filled"], pairs["block"], evidence, seed),
        "price_improvement": block_bootstrap(trained[PRICE], trained["block"], evidence, seed),
    }


def _learned(convergence: pd.DataFrame, policy: str) -> dict[str, Interval]:
    """What one asset's training says to the claims on convergence, in %."""
    means = convergence[convergence["algorithm"] == policy].mean(numeric_only=True)
    return {
        "accuracy": _point(100 * means["final_accuracy"]),
        "loss_decrease": _point(100 * means["loss_decrease"]),
        "regret_decrease": _point(100 * means["regret_decrease"]),
        "fewer_steps": _point(100 * _steps_saved(convergence, policy)),
        "latency": _point(_NAN),
    }


def _steps_saved(convergence: pd.DataFrame, policy: str) -> float:
    """Share of DPO's steps that `policy` saves; NaN where DPO did not run, or where a median seed never arrives."""
    steps = convergence.groupby("algorithm")["steps_to_level"].agg(median_arrival)
    both = steps.reindex([policy, "dpo"]).replace(np.inf, _NAN)
    return float(1 - both[policy] / both["dpo"])


def _point(value: float) -> Interval:
    return Interval(float(value), _NAN, _NAN, 0)


def _records(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    yield from table.to_dict("records")  # type: ignore[misc]


def _with_bounds(key: tuple[str, ...], row: Mapping[str, Any], value: str, low: str, high: str) -> Numbers:
    bounds = {(*key, "low"): row[low], (*key, "high"): row[high]}
    return {key: row[value]} | {name: bound for name, bound in bounds.items() if not np.isnan(bound)}
