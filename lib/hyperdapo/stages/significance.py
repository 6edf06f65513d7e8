"""09: whether any difference between the strategies is real: metrics, gaps and tests over all assets."""

from pathlib import Path

import pandas as pd

from hyperdapo.evidence import calibration, metrics, significance
from hyperdapo.evidence.chapter.dataset import dataset
from hyperdapo.evidence.claims import claims_table
from hyperdapo.evidence.gaps import RIVALS, learning_gaps, over_seeds, specialist_gaps
from hyperdapo.evidence.hypotheses.conditions import conditions
from hyperdapo.evidence.hypotheses.courses import cumulative, distribution
from hyperdapo.evidence.hypotheses.ledger import open_test
from hyperdapo.evidence.hypotheses.placebo import placebos
from hyperdapo.evidence.hypotheses.registered import judge
from hyperdapo.evidence.hypotheses.superiority import superiority
from hyperdapo.files import read_assets, read_json, read_table, write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths

REFERENCES = ("best_fixed", "market")
"""What differences are taken to; the secondary tests take the first."""
QUOTED_ANEW = ("touch_requoted", "threshold_requoted")
"""The rules beside which policies that decide again stand: the plain one, and the best of the training split."""


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Compute every statistic of the thesis's Chapter 5: the registered hypotheses first, then all else.

    Blocks of the intervals beside them are as long as the differences to the reference ask, no less than
    `evidence.block_s`.

    Raises
    ------
    DataError
        If orders are not paired, the ledger was altered, or a policy decided not all of the states.
    """
    orders = open_test(paths, parameters, "09_significance")
    evidence, seed, algorithms = parameters.evidence, parameters.seed, parameters.training.algorithms
    judged = judge(orders, parameters.hypotheses, evidence, seed)
    tests = significance.paired_tests(orders, REFERENCES[0], evidence, seed)
    tables = {
        "hypotheses": judged,
        "significance": tests,
        "superiority": superiority(orders, algorithms, evidence, seed),
        "conditions": conditions(orders, parameters.hypotheses.policy, REFERENCES[0], evidence, seed),
        "cumulative": cumulative(orders, parameters.hypotheses.policy, parameters.hypotheses.references, evidence),
        "distribution": distribution(orders),
    }
    evidence = evidence.model_copy(update={"block_s": float(tests["block_s"].iloc[0])})
    tables |= _described(parameters.model_copy(update={"evidence": evidence}), paths, orders)
    return [write_table(table, paths.data, name) for name, table in tables.items()]


def _described(parameters: Parameters, paths: Paths, orders: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Metrics, gaps and what differences are made of, with intervals over blocks of `evidence.block_s`."""
    evidence, seed, algorithms = parameters.evidence, parameters.seed, parameters.training.algorithms
    sequential, probes, outcomes, decisions = (
        read_assets(paths, parameters.assets, name) for name in ("sequential", "probes", "outcomes", "decisions")
    )
    orders, sequential = (metrics.in_blocks(table, evidence.block_s) for table in (orders, sequential))
    gaps = over_seeds(outcomes, decisions, parameters)
    crossed = specialist_gaps(read_table(paths.data, "specialists"), evidence, seed)
    convergence = read_table(paths.data, "convergence")
    parts = [metrics.decompose(orders, reference, evidence, seed) for reference in REFERENCES]
    return {
        "placebo": placebos(outcomes, decisions, [*algorithms, *RIVALS], evidence),
        "main": metrics.main_table(orders, evidence, seed),
        "metrics": metrics.summarise(orders, evidence, seed),
        "fill_calibration": calibration.scores(probes, evidence, seed),
        "learning_gap_over_seeds": gaps,
        "learning_gap": learning_gaps(outcomes, decisions, parameters),
        "specialist_gaps": crossed,
        "cheapest": significance.against_the_cheapest(orders, algorithms, evidence, seed),
        "decomposition": pd.concat(parts, ignore_index=True),
        "decided_again": metrics.side_by_side(sequential, QUOTED_ANEW, evidence, seed),
        "how_often": metrics.by_interval(sequential, _as_often(parameters), evidence, seed),
        "claims": claims_table(orders, convergence, gaps, crossed, evidence, seed),
        "dataset": _dataset(parameters, paths, outcomes),
    }


def _as_often(parameters: Parameters) -> float | None:
    """The interval at which both policies and rules that quote anew decide, where it is the same."""
    every_s = parameters.policy.decide_again_s
    return every_s if every_s == parameters.execution.requote_s else None


def _dataset(parameters: Parameters, paths: Paths, outcomes: pd.DataFrame) -> pd.DataFrame:
    folders = {asset: paths.of(asset).data for asset in parameters.assets}
    reports = {asset: read_json(folder, "cleaning.json") for asset, folder in folders.items()}
    return dataset(reports, {asset: read_table(folder, "quality") for asset, folder in folders.items()}, outcomes)
