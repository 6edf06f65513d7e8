"""Are the fills of the simulator true? Tables and a figure of orders whose fate is known (§3.5.1)."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hyperdapo import sections
from hyperdapo.evidence.figures import style
from hyperdapo.evidence.metrics import block_bootstrap
from hyperdapo.evidence.tables import heading
from hyperdapo.times import SECOND_NS, block_of

GROUPS = 10
MODEL_COLOURS = style.Colours(power="#D55E00", evenly="#E69F00", risk_averse="#0072B2", touch="#7A7A7A")
_MARKERS = {"power": "o", "evenly": "D", "risk_averse": "v", "touch": "^"}


def brier_differences(compared: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """By how much each queue model's Brier score is worse than that of the first, on the same orders.

    Parameters
    ----------
    compared : queue_model, order_id, placed_ns, filled and true_filled (shares)

    Returns
    -------
    `queue_model`, `brier_excess`, `ci_low`, `ci_high`: intervals over blocks of time; the first has none
    """
    squared = compared.assign(error=(compared["filled"] - compared["true_filled"]) ** 2)
    errors = squared.pivot_table(index=["placed_ns", "order_id"], columns="queue_model", values="error", sort=False)
    blocks = block_of(errors.index.get_level_values("placed_ns"), evidence.block_s)
    first, *others = compared["queue_model"].unique()
    rows: list[tuple[str, float, float, float]] = [(str(first), 0.0, np.nan, np.nan)]
    for name in others:
        found = block_bootstrap(errors[name].to_numpy() - errors[first].to_numpy(), blocks, evidence, seed)
        rows.append((str(name), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["queue_model", "brier_excess", "ci_low", "ci_high"])


def reliability(compared: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """Share filled in the simulator and in truth, of orders that had equally good chances.

    A group holds a tenth of the orders, by how far the price had to come (bps between the limit and the mid at arrival)
    for each square root of a second that the order waited.

    Returns
    -------
    `queue_model`, `group`, `orders`, `predicted`, `observed` and its interval over blocks of time, `ci_low`, `ci_high`
    """
    distance_bps = compared["side"] * (1 - compared["limit_price"] / compared["arrival_mid"]) * 1e4
    waits_s = (compared["cancel_ns"] - compared["placed_ns"]) / SECOND_NS
    need = distance_bps / np.sqrt(waits_s.clip(lower=0.1))
    group = pd.qcut(need, GROUPS, labels=False, duplicates="drop")
    blocks = block_of(compared["placed_ns"], evidence.block_s)
    rows = []
    for (name, number), orders in compared.groupby(["queue_model", group], sort=False):
        truth = block_bootstrap(
            orders["true_filled"].to_numpy(), blocks[compared.index.get_indexer(orders.index)], evidence, seed
        )
        rows.append((name, number, len(orders), orders["filled"].mean(), truth.value, truth.low, truth.high))
    names = ["queue_model", "group", "orders", "predicted", "observed", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=names).sort_values(["queue_model", "group"], ignore_index=True)


def plot_calibration(groups: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Predicted against true share of fills, and how far each queue model is from the truth; bars are intervals.

    Parameters
    ----------
    groups : of `reliability`
    scores : queue_model, brier, cost_bias_bps
    """
    models = list(scores["queue_model"])
    figure, (reliable, miss, brier) = style.new(1, 3, height=0.4, width_ratios=[1.2, 1.4, 1])
    reliable.plot([0, 1], [0, 1], color="black", linewidth=0.6, linestyle=":")
    for name in models:
        own = groups[groups["queue_model"] == name].sort_values("observed")
        look = {"color": MODEL_COLOURS[name], "marker": _MARKERS.get(name, "s"), "markersize": 4}
        reliable.plot(own["predicted"], own["observed"], linestyle="", **look)
        miss.plot(own["observed"], own["predicted"] - own["observed"], linewidth=0.8, label=heading(name), **look)
    first = groups[groups["queue_model"] == models[0]]
    reliable.vlines(first["predicted"], first["ci_low"], first["ci_high"], color=MODEL_COLOURS[models[0]], linewidth=1)
    reliable.set_xlabel("share filled, simulator")
    reliable.set_ylabel("share filled, truth")
    miss.axhline(0, color="black", linewidth=0.6)
    miss.set_xlabel("share filled, truth")
    miss.set_ylabel("simulator minus truth")
    place = np.arange(len(models))
    brier.barh(place, scores["brier"], color=[MODEL_COLOURS[name] for name in models], height=0.6)
    brier.set_yticks(place, [""] * len(models))
    brier.invert_yaxis()
    brier.set_xlabel("Brier score")
    figure.legend(*miss.get_legend_handles_labels(), loc="outside upper center", ncols=len(models))
    return figure
