"""Two runs side by side: parameters that differ, what each strategy costs, and the differences on the same orders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hyperdapo.evidence.figures import style
from hyperdapo.evidence.figures.comparison import plot_differences
from hyperdapo.evidence.metrics import TOGETHER, TOTAL, block_bootstrap, in_blocks
from hyperdapo.evidence.tables import CSV_FLOAT, heading, markdown_table
from hyperdapo.files import atomic, read_assets, read_table
from hyperdapo.params import Parameters, recall
from hyperdapo.paths import Paths

SAME = ["asset", "order_id", "decision_ns", "side", "size", "horizon_s"]
"""What makes two rows of `orders.parquet` the same parent order."""
SHOWN = [
    *("market", "twap", "vwap", "join_best", "touch_requoted", "requote_unless_against", "threshold_requoted"),
    *("mid_peg", "sign_imbalance", "sign_momentum_10s", "threshold", "best_fixed", "linear", "mlp", "boosting"),
    *("boosting_sequential", "dpo", "dpo_one_pair", "dapo", "oracle"),
]
"""Strategies that README.md compares between worlds."""


def compare(first: str, second: str) -> dict[str, pd.DataFrame]:
    """The tables of a comparison of two runs by name.

    Returns
    -------
    `parameters`: `parameter` and its value in each run, where they differ
    `costs`: `asset, strategy`, and of each run the mean total cost (bps) with its interval
    `differences`: `asset, strategy, orders, difference_bps, ci_low, ci_high, blocks`: the second run minus the first,
    on the parent orders that both executed; no row for a strategy that shares none

    Raises
    ------
    ParameterError
        If there is no run of one of the names.
    MissingInputError
        If one of them did not reach 09.
    """
    names, runs = (first, second), [recall(first), recall(second)]
    costs = [_costs(name) for name in names]
    return {
        "parameters": _apart(names, runs),
        "costs": costs[0].join(costs[1], how="outer", sort=False).reset_index(),
        "differences": _differences(names, runs),
    }


def _costs(name: str) -> pd.DataFrame:
    metrics = read_table(Paths(name).data, "metrics")
    total = metrics[metrics["metric"] == TOTAL].set_index(["asset", "strategy"])
    return total[["value", "ci_low", "ci_high"]].add_prefix(f"{name} ")


def _apart(names: tuple[str, str], runs: list[Parameters]) -> pd.DataFrame:
    values = [pd.Series(dict(_leaves(run.model_dump(mode="json", exclude={"name"})))) for run in runs]
    both = pd.DataFrame(dict(zip(names, values, strict=True)), dtype=object)
    differ = [str(one) != str(other) for one, other in zip(both[names[0]], both[names[1]], strict=True)]
    return both[differ].rename_axis("parameter").reset_index()


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in values.items():
        leaves += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return leaves


def _differences(names: tuple[str, str], runs: list[Parameters]) -> pd.DataFrame:
    read = (read_assets(Paths(name), run.assets, "orders") for name, run in zip(names, runs, strict=True))
    orders = [rows.groupby([*SAME, "strategy"], sort=False)[TOTAL].mean().reset_index() for rows in read]
    evidence, seed = runs[0].evidence, runs[0].seed
    paired = in_blocks(orders[0].merge(orders[1], on=[*SAME, "strategy"], suffixes=("", "_other")), evidence.block_s)
    rows = []
    for (asset, strategy), group in paired.groupby(["asset", "strategy"], sort=False):
        change = block_bootstrap(group[f"{TOTAL}_other"] - group[TOTAL], group["block"], evidence, seed)
        rows.append((asset, strategy, len(group), change.value, change.low, change.high, change.blocks))
    columns = ["asset", "strategy", "orders", "difference_bps", "ci_low", "ci_high", "blocks"]
    return pd.DataFrame(rows, columns=columns)


def worlds(main: pd.DataFrame, run: str, others: Sequence[str]) -> pd.DataFrame:
    """The main result of a run, all assets together, above that of other runs whose outputs are here.

    Parameters
    ----------
    main : `metrics.main_table` of the run
    others : names of runs; one without outputs is left out

    Returns
    -------
    `world` (the run's name) and the columns of `main` but `asset`
    """
    tables = {run: main}
    for name in others:
        table = Paths(name).tables / "main.csv"
        if name != run and table.is_file():
            tables[name] = pd.read_csv(table)
    rows = pd.concat(tables, names=["world"]).reset_index("world")
    return rows[rows["asset"] == TOGETHER].drop(columns="asset").reset_index(drop=True)


def studies(runs: Sequence[str]) -> pd.DataFrame:
    """What the studies of language found (`hyperdapo study`), of those `runs` whose studies are here.

    Returns
    -------
    `world` (the run's name) and the columns of `gaps.language_gaps`; no row where there is no study
    """
    found = {name: Paths(name).language / "language.csv" for name in runs}
    tables = {name: pd.read_csv(path) for name, path in found.items() if path.is_file()}
    if not tables:
        return pd.DataFrame({"world": []})
    return pd.concat(tables, names=["world"]).reset_index("world").reset_index(drop=True)


def markdown(worlds: pd.DataFrame) -> str:
    """The table of `worlds` for README.md: mean total cost (bps), a row per strategy of `SHOWN`, a column per world.

    What a world does not have is left empty.
    """
    costs = worlds.pivot_table(TOTAL, "strategy", "world", sort=False).reindex(SHOWN)
    shown = costs.map("{:z.2f}".format, na_action="ignore").fillna("")
    rows = ([heading(name), *row] for name, row in shown.T.items())
    return markdown_table(["mean total cost (bps)", *(f"`{world}`" for world in costs)], rows) + "\n"


def text(first: str, second: str, tables: dict[str, pd.DataFrame]) -> str:
    """The tables of a comparison for a terminal."""
    titles = {
        "parameters": "Parameters that differ",
        "costs": "Mean total cost (bps) with its interval",
        "differences": f"{second} minus {first} on the same parent orders (bps; below 0: {second} costs less)",
    }
    parts = []
    for name, title in titles.items():
        table = tables[name]
        body = table.to_string(index=False, float_format="{:.3f}".format, na_rep="-") if len(table) else "none"
        parts.append(f"{title}\n{body}")
    return "\n\n".join(parts)


def write(first: str, second: str, tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write the tables of a comparison as CSV into a folder, and the differences as a figure."""
    for name, table in tables.items():
        with atomic(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format=CSV_FLOAT)
    if len(tables["differences"]):
        figure = plot_differences(tables["differences"], first, second)
        with atomic(folder / "differences.png") as temporary:
            temporary.write_bytes(style.preview(figure).data)
