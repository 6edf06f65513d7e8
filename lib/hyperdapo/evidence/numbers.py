"""`numbers.tex`: every number of the thesis as a LaTeX macro, and the draft's claims beside what was measured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hyperdapo.evidence.tables import escape_latex
from hyperdapo.paths import Paths, atomic

_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_SIGNIFICANT = 4


@dataclass(frozen=True)
class Claim:
    """A number that the thesis draft states without evidence, and where."""

    key: str
    section: str
    text: str


CLAIMS = (
    Claim("fill_rate", "§1.3", "72 % of orders filled"),
    Claim("fill_rate_gain", "§1.3", "fill rate 11.3 points above traditional methods"),
    Claim("negative_slippage", "§1.3", "negative slippage (price improvement)"),
    Claim("accuracy", "§4.6.2", "accuracy of 90.0 % (BTC), 88.5 % (ETH)"),
    Claim("loss_decrease", "§4.6.2", "loss down 72 % in the first 100 steps"),
    Claim("fewer_steps", "§4.6.2", "50 % fewer steps than DPO"),
    Claim("latency", "§4.8.4", "a decision in under 100 ms"),
)


def claims_table(measured: Mapping[str, str]) -> pd.DataFrame:
    """`section, claim, measured`: one row per claim; `measured` by key, "not measured here" where absent."""
    rows = [(claim.section, claim.text, measured.get(claim.key, "not measured here")) for claim in CLAIMS]
    return pd.DataFrame(rows, columns=["section", "claim", "measured"])


def macro_name(*parts: str) -> str:
    r"""A LaTeX command name, letters only.

    >>> macro_name("BTC", "best_fixed", "markout_60s_bps")
    '\\HdBtcBestFixedMarkoutSixZeroSBps'
    """
    words = re.findall(r"[A-Za-z]+|\d", " ".join(parts))
    spelt = [_DIGITS[int(word)] if word.isdigit() else word for word in words]
    return rf"\Hd{''.join(word.capitalize() for word in spelt)}"


def macros(numbers: Mapping[tuple[str, ...], float | str]) -> str:
    r"""`\newcommand` lines in order of name; numbers with four significant digits.

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
        lines[name] = value if isinstance(value, str) else number(value)
    body = "\n".join(rf"\newcommand{{{name}}}{{{escape_latex(text)}}}" for name, text in sorted(lines.items()))
    return f"% Generated; do not edit.\n{body}\n"


def number(value: float) -> str:
    """Four significant digits, without an exponent; a dash for what is not a number."""
    if pd.isna(value):
        return "–"
    text = f"{value:.{_SIGNIFICANT}g}"
    return f"{value:.0f}" if "e+" in text else f"{value:.10f}".rstrip("0") if "e-" in text else text


def collect(metrics: pd.DataFrame, gaps: pd.DataFrame, tests: pd.DataFrame) -> dict[tuple[str, ...], float | str]:
    """Numbers by name from `metrics.csv`, `learning_gap.csv` and `significance.csv`; bounds end in Low and High."""
    found: dict[tuple[str, ...], float | str] = {}
    for row in metrics.itertuples():
        key = (row.asset, row.strategy, row.metric)
        found |= {key: row.value, (*key, "low"): row.ci_low, (*key, "high"): row.ci_high}
    for row in gaps.itertuples():
        key = (row.asset, row.algorithm, f"seed_{row.seed}")
        found |= {(*key, "gap_closed"): row.gap_closed, (*key, "gap_low"): row.gap_ci_low, (*key, "gap_high"): row.gap_ci_high}
    for row in tests.itertuples():
        key = (row.asset, row.strategy, f"minus_{row.reference}")
        found |= {key: row.difference_bps, (*key, "low"): row.ci_low, (*key, "high"): row.ci_high, (*key, "p"): row.p_t_holm}
    return found


def save(numbers: Mapping[tuple[str, ...], float | str], paths: Paths) -> Path:
    """Write `outputs/<profile>/numbers.tex`."""
    with atomic(paths.outputs / "numbers.tex") as temporary:
        temporary.write_text(macros(numbers), encoding="utf-8")
    return paths.outputs / "numbers.tex"


def measure_claims(metrics: pd.DataFrame, convergence: pd.DataFrame) -> dict[str, str]:
    """What this run says to each claim that it can measure, as text, by key of `CLAIMS`.

    `metrics` is `metrics.csv`, `convergence` is `convergence.csv`.
    """

    def each(strategy: str, metric: str, form: str) -> str:
        rows = metrics[(metrics["strategy"] == strategy) & (metrics["metric"] == metric)]
        return ", ".join(f"{row.asset} {row.value:{form}}" for row in rows.itertuples())

    table = metrics.pivot(index=["asset", "metric"], columns="strategy", values="value").reset_index()
    fills = table[table["metric"] == "fill_rate"]
    gains = [f"{row.asset} {100 * (row.dapo - row.join_best):+.1f} points (to join-best)" for row in fills.itertuples()]
    runs = convergence.set_index(["asset", "algorithm"])
    steps = runs["steps_to_level"].groupby(level=["asset", "algorithm"]).mean().unstack()
    dapo = convergence[convergence["algorithm"] == "dapo"]
    measured = {
        "fill_rate": each("dapo", "fill_rate", ".1%"),
        "fill_rate_gain": ", ".join(gains),
        "negative_slippage": each("dapo", "implementation_shortfall_bps", "+.2f") + " bps of shortfall",
        "accuracy": ", ".join(f"{row.asset} {row.final_accuracy:.1%}" for row in dapo.itertuples()),
        "loss_decrease": ", ".join(f"{row.asset} {row.loss_decrease:.1%}" for row in dapo.itertuples()),
    }
    if {"dapo", "dpo"} <= set(steps):
        measured["fewer_steps"] = ", ".join(f"{asset} {row.dapo:.0f} against {row.dpo:.0f}" for asset, row in steps.iterrows())
    return measured
