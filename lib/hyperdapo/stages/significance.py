"""09: whether any difference between the strategies is real: metrics, gaps and tests over all assets."""

from pathlib import Path

import pandas as pd

from hyperdapo.evidence import calibration, metrics, numbers, significance
from hyperdapo.evidence.gaps import learning_gaps, over_seeds, specialist_gaps
from hyperdapo.files import read_assets, read_table, write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths

REFERENCES = ("best_fixed", "market")
"""What differences are taken to; the tests take the first."""


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Compute every statistic of the thesis's Chapter 5.

    Raises
    ------
    DataError
        If a policy decided not all of the states.
    """
    evidence, seed, algorithms = parameters.evidence, parameters.seed, parameters.training.algorithms
    orders, sequential, probes, outcomes, decisions = (
        read_assets(paths, parameters.assets, name)
        for name in ("orders", "sequential", "probes", "outcomes", "decisions")
    )
    orders, sequential = (metrics.in_blocks(table, evidence.block_s) for table in (orders, sequential))
    convergence = read_table(paths.data, "convergence")
    tests = significance.paired_tests(orders, REFERENCES[0], evidence, seed)
    parts = [metrics.decompose(orders, reference, evidence, seed) for reference in REFERENCES]
    tables = {
        "main": metrics.main_table(orders, evidence, seed),
        "metrics": metrics.summarise(orders, evidence, seed),
        "fill_calibration": calibration.scores(probes, evidence, seed),
        "learning_gap_over_seeds": over_seeds(outcomes, decisions, parameters),
        "learning_gap": learning_gaps(outcomes, decisions, parameters),
        "specialist_gaps": specialist_gaps(read_table(paths.data, "specialists"), evidence, seed),
        "significance": tests.assign(significant=significance.is_significant(tests, evidence.confidence)),
        "cheapest": significance.against_the_cheapest(orders, algorithms, evidence, seed),
        "decomposition": pd.concat(parts, ignore_index=True),
        "decided_again": metrics.side_by_side(sequential, "touch_requoted", evidence, seed),
        "claims": numbers.claims_table(orders, convergence, evidence, seed),
    }
    return [write_table(table, paths.data, name) for name, table in tables.items()]
