"""Costs of strategies on the same parent orders, as series over time: pairing is demanded, nothing is dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo.errors import DataError
from hyperdapo.evidence.metrics import TOGETHER, Floats
from hyperdapo.times import block_of

BINS_A_BLOCK = 5
"""Bins of time in the shortest block: what is within a bin is summed."""
ORDER = ["asset", "order_id", "decision_ns"]
ORACLE = "oracle"
"""Knows each state's outcome: a ceiling, not a strategy, and in no family."""
RUN = ["strategy", "seed"]
"""Whose cost it is: a strategy and, where it was trained, the seed of the training; -1 where no column tells."""


class Comparison(NamedTuple):
    """A strategy minus a reference on the orders of an asset, or of all (`TOGETHER`)."""

    asset: str
    strategy: str
    reference: str


@dataclass(frozen=True)
class Costs:
    """What N parent orders cost by every strategy and training seed, and in which of n bins of time each was decided.

    wide : (N, runs) bps, by `ORDER` and `RUN`, sorted; NaN where an asset does not know the strategy
    bins : (N,) a shortest block of time that holds an order has `BINS_A_BLOCK` of them; one that holds none has none
    """

    wide: pd.DataFrame
    bins: NDArray[np.int64]
    bin_s: float

    @classmethod
    def of(cls, orders: pd.DataFrame, cost: str, block_s: float) -> "Costs":
        """From rows of `orders.parquet`, with blocks of `block_s` at least; raises as `paired`."""
        wide = paired(orders, cost)
        fine = block_of(wide.index.get_level_values("decision_ns"), block_s / BINS_A_BLOCK)
        block = np.unique(fine // BINS_A_BLOCK, return_inverse=True)[1]
        return cls(wide, block * BINS_A_BLOCK + fine % BINS_A_BLOCK, block_s / BINS_A_BLOCK)

    @property
    def number(self) -> int:
        """Of bins: whole blocks."""
        return (int(self.bins.max()) // BINS_A_BLOCK + 1) * BINS_A_BLOCK

    @cached_property
    def assets(self) -> list[str]:
        """In the order of their names."""
        return list(self._slices)

    @cached_property
    def _slices(self) -> dict[str, slice]:
        names, first = np.unique(self.wide.index.get_level_values("asset").to_numpy(str), return_index=True)
        ends = [*first[1:], len(self.wide)]
        return {str(name): slice(*span) for name, *span in zip(names, first, ends, strict=True)}

    @cached_property
    def _runs(self) -> dict[str, list[tuple[int, int]]]:
        runs = dict[str, list[tuple[int, int]]]()
        for place, (strategy, seed) in enumerate(self.wide.columns):
            runs.setdefault(strategy, []).append((seed, place))
        return runs

    @cached_property
    def _values(self) -> Floats:
        values: Floats = self.wide.to_numpy(float)
        return values

    def seeds(self, strategy: str) -> list[int]:
        """Of the trainings of a strategy; none where there is no such strategy."""
        return [seed for seed, _ in self._runs.get(strategy, [])]

    def rows(self, asset: str) -> slice:
        """Which orders are of an asset, or of any (`TOGETHER`)."""
        return slice(None) if asset == TOGETHER else self._slices[asset]

    def of_strategy(self, asset: str, strategy: str) -> Floats:
        """(orders of the asset, seeds) bps."""
        return self._values[self.rows(asset)][:, [place for _, place in self._runs[strategy]]]

    def difference(self, comparison: Comparison) -> Floats:
        """(orders of the asset,) bps, means over training seeds."""
        asset, strategy, reference = comparison
        first, second = self.of_strategy(asset, strategy), self.of_strategy(asset, reference)
        return np.asarray(first.mean(axis=1) - second.mean(axis=1))

    def in_bins(self, asset: str, values: Floats | None = None) -> Floats:
        """(n,) sum over the orders of an asset in each bin; of nothing given, their number."""
        return np.bincount(self.bins[self.rows(asset)], weights=values, minlength=self.number).astype(float)

    def blocks(self, asset: str, length: int) -> int:
        """How many whole blocks of so many bins hold orders of an asset."""
        whole = self.number // length
        held = self.in_bins(asset)[: whole * length].reshape(whole, length).sum(axis=1)
        return int((held > 0).sum())


def paired(orders: pd.DataFrame, cost: str) -> pd.DataFrame:
    """One row per parent order (`ORDER`), one column per strategy and training seed (`RUN`), bps.

    Raises
    ------
    DataError
        If a column is missing, there are no orders, or one stands there twice, has two times, or was not executed by
        every strategy: naming the first such order.
    """
    if missing := [name for name in [*ORDER, "strategy", cost] if name not in orders]:
        raise DataError(f"orders lack the columns {missing}; run 08_backtest again")
    if orders.empty:
        raise DataError("not one test order was executed; lengthen source.from to source.to, and run 08_backtest again")
    rows = orders if "seed" in orders else orders.assign(seed=-1)
    rows = rows.assign(seed=rows["seed"].fillna(-1).astype(int))
    _refuse(rows[rows.duplicated([*ORDER[:2], *RUN])], "stands there twice")
    moved = rows.groupby(ORDER[:2])["decision_ns"].transform("nunique") > 1
    _refuse(rows[moved], "has two decision times")
    for asset, executed in rows.groupby("asset", sort=False):
        known = pd.Index(executed["order_id"].unique())
        for (strategy, seed), own in executed.groupby(RUN, sort=False):
            if len(own) < len(known):
                first = known.difference(own["order_id"]).min()
                raise DataError(
                    f"{asset} {strategy}{f' seed {seed}' * (seed >= 0)} did not execute order {first}, which others "
                    f"did: {len(own)} of {len(known)} orders are there. Run 08_backtest again"
                )
    return rows.set_index([*ORDER, *RUN])[cost].unstack(RUN).sort_index()  # noqa: PD010 (a table of means would hide what is NaN)


def comparisons(costs: Costs, strategies: Sequence[str], references: Sequence[str]) -> list[Comparison]:
    """Every strategy against every other reference: of each asset, then of all together where there are several."""
    assets = [*costs.assets, *([TOGETHER] if len(costs.assets) > 1 else [])]
    return [
        Comparison(asset, strategy, reference)
        for asset in assets
        for strategy in strategies
        for reference in references
        if strategy != reference
    ]


def _refuse(rows: pd.DataFrame, fault: str) -> None:
    if len(rows):
        first = rows.iloc[0]
        raise DataError(
            f"{first['asset']} {first['strategy']}: order {first['order_id']} {fault} ({len(rows)} rows). "
            "Run 08_backtest again"
        )
