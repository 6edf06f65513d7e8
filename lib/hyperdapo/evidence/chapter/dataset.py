"""What a run learned and was tested on, asset by asset."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

PARTS = ("train", "validation", "test")


def dataset(
    reports: Mapping[str, Mapping[str, Any]], minutes: Mapping[str, pd.DataFrame], outcomes: pd.DataFrame
) -> pd.DataFrame:
    """One row per asset, from `cleaning.json`, `quality.parquet` (both by asset), and `outcomes.parquet` of all.

    Returns
    -------
    `asset, begins_ns, ends_ns`; `rows_kept, rows_dropped` of the feed; `gaps, gap_s`; `usable`, decision times; states
    in `train, validation, test`; `buy_share` of them; medians over minutes, `spread_bps` and `depth_usd` (both best
    levels together)
    """
    states, rows = outcomes.drop_duplicates(["asset", "order_id"]), []
    for asset, own in states.groupby("asset", sort=False):
        report, median = reports[str(asset)], minutes[str(asset)][["spread_bps", "depth_usd"]].median()
        split = own["split"].value_counts().reindex(PARTS, fill_value=0).to_dict()
        feed = {"rows_kept": sum(report["kept"].values()), "rows_dropped": sum(report["dropped"].values())}
        feed |= {"gaps": len(report["gaps"]), "gap_s": float(report["gap_s"]), "usable": report["decisions"]["usable"]}
        span = {"begins_ns": report["begins_ns"], "ends_ns": report["ends_ns"]}
        market = {"buy_share": float((own["side"] > 0).mean())} | median.to_dict()
        rows.append({"asset": asset} | span | feed | split | market)
    return pd.DataFrame(rows)
