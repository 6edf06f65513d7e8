"""03: the features of one asset at every decision time, and three laws of its market."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from hyperdapo.execution import laws
from hyperdapo.execution.queue_fit import QueueFit, fit_queue, observe_makers
from hyperdapo.files import read_json, read_table, write_table
from hyperdapo.market import stylised
from hyperdapo.market.book import Market
from hyperdapo.market.features import features_in_parts
from hyperdapo.market.quality import daily_volume
from hyperdapo.market.usable import require
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.synthetic.notices import with_notices
from hyperdapo.times import Span


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Compute features, then measure the laws.

    Raises
    ------
    DataError
        If the recording has no decision time that can be used.
    """
    require(read_json(paths.data, "cleaning.json"))
    split = read_json(paths.data, "split.json")
    written = [write_table(_features(parameters, paths, split), paths.data, "features")]
    impact, fills, queue = measure(parameters, paths)
    queue_exponent = ("queue_exponent", queue.exponent, queue.exponent_low, queue.exponent_high, None)
    rows = [impact.parameters, fills.parameters, pd.DataFrame([queue_exponent], columns=impact.parameters.columns)]
    measured = pd.concat(rows, keys=["impact", "fill", "queue"], names=["law"]).reset_index("law")
    tables = {"laws": measured, "impact_curve": impact.curve, "fill_curve": fills.curve, "queue": pd.DataFrame([queue])}
    tables["moments"] = beside_real(paths)
    return written + [write_table(table, paths.data, name) for name, table in tables.items()]


def _features(parameters: Parameters, paths: Paths, split: Mapping[str, Span]) -> Iterator[pd.DataFrame]:
    """The features frame by frame, with what a news wire says beside a synthetic market that has one."""
    frames = features_in_parts(paths.data, parameters, split)
    if parameters.source.kind != "synthetic" or not parameters.synthetic.notices.per_hour:
        return frames
    return with_notices(frames, parameters, paths.asset)


def beside_real(paths: Paths) -> pd.DataFrame:
    """The moments of the first six hours, or of what there is, beside those of a real recording of the asset."""
    _, market = next(Market.in_parts(paths.data))
    return stylised.compare(stylised.moments(market), market.asset)


def measure(parameters: Parameters, paths: Paths) -> tuple[laws.Fit, laws.Fit, QueueFit]:
    """Square-root impact (eq. 2.4), fill probability (eq. 2.5) and how a queue empties, part by part of the span.

    Impact is measured on the aggressive orders (of a long span on every k-th), fill probability at every decision time,
    the queue on the orders of others that are recognised by their sizes, in the training split.
    """
    horizon_s, law = parameters.orders.longest_horizon_s, parameters.laws
    train_from, train_to = read_json(paths.data, "split.json")["train"]
    decision_ns = read_table(paths.data, "features", ["decision_ns"])["decision_ns"]
    orders, reaches, makers = laws.Thinned(), [], []
    for (start, end), market in Market.in_parts(paths.data, after_s=max(horizon_s, law.impact_after_s)):
        orders.add(laws.aggressive_orders(market, start, end, law.impact_after_s))
        instants = decision_ns[decision_ns.between(start, end, inclusive="left")].to_numpy()
        reaches.append(laws.reaches(market, instants, horizon_s))
        makers.append(observe_makers(market, max(start, train_from), min(end, train_to)))
    volume = daily_volume(read_table(paths.data, "quality", ["volume"]))
    return (
        laws.fit_impact(orders.joined(), volume, law.block_s, law.confidence),
        laws.fit_fill_curve(pd.concat(reaches), laws.DISTANCES_BPS, law.block_s, law.confidence),
        fit_queue(pd.concat(makers), law.block_s, law.confidence, parameters.seed),
    )
