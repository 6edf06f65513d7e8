"""Are the fills of the simulator true? Scores, and shares filled, of orders whose fate is known (§3.5.1).

And are the probabilities of a policy true? At the end of the module.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from hyperdapo import sections
from hyperdapo.evidence.metrics import Floats, Interval, Resampling, block_bootstrap, percentiles
from hyperdapo.times import SECOND_NS, block_of

GROUPS = 10
DEPTHS = {"all": (0, 1, 2), "0": (0,), "1": (1,), "2+": (2,)}
"""Prices that stood before an order's own when it came; what is deeper is one group."""

SCORES = ("asset", "queue_model", "orders", "brier", "auc", "fill_time_error_s", "cost_error_bps")


def scores(compared: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """`fill_scores` of each asset and queue model, with `brier_differences`."""
    rows = []
    for _, orders in compared.groupby("asset", sort=False):
        rows.append(fill_scores(orders).merge(brier_differences(orders, evidence, seed), on="queue_model"))
    return pd.concat(rows, ignore_index=True)


def fill_scores(compared: pd.DataFrame) -> pd.DataFrame:
    """How true the fills of each queue model are: a row per asset and model with `SCORES`, and cost_bias_bps.

    `brier`: mean squared difference of the share that was filled before the cancel. `auc`: of "filled in full", ranked
    by that share and then by how soon it was filled. `fill_time_error_s`: mean absolute error of the last fill, of
    orders filled in full in both. `cost_error_bps`: mean absolute error of the cost, `cost_bias_bps`: with its sign.
    """
    rows = [
        {"asset": asset, "queue_model": name, "orders": len(orders)} | score(orders)
        for (asset, name), orders in compared.groupby(["asset", "queue_model"], sort=False)
    ]
    return pd.DataFrame(rows)


def score(orders: pd.DataFrame) -> dict[str, float]:
    """The scores of `fill_scores`; NaN where no order is of the kind that one needs."""
    truth, replayed = orders["true_filled"].to_numpy(), orders["filled"].to_numpy()
    whole, full = truth > 1 - 1e-9, replayed > 1 - 1e-9
    life = (orders["cancel_ns"] - orders["placed_ns"]).clip(lower=1)
    waited = ((orders["fill_ns"] - orders["placed_ns"]) / life).where(full, 1.0)
    late_s = (orders["fill_ns"] - orders["true_fill_ns"])[whole & full].abs() / SECOND_NS
    error = orders["cost_bps"] - orders["true_cost_bps"]
    return {
        "brier": float(np.mean((replayed - truth) ** 2)),
        "auc": float(roc_auc_score(whole, replayed + 1 - waited)) if 0 < whole.sum() < len(whole) else np.nan,
        "fill_time_error_s": float(late_s.mean()),
        "cost_error_bps": float(error.abs().mean()),
        "cost_bias_bps": float(error.mean()),
    }


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
        excess = block_bootstrap(errors[name] - errors[first], blocks, evidence, seed)
        rows.append((str(name), excess.value, excess.low, excess.high))
    return pd.DataFrame(rows, columns=["queue_model", "brier_excess", "ci_low", "ci_high"])


def scores_by_depth(compared: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """How true the fills are, by the depth at which an order came: a row per asset, kind, group of `DEPTHS` and model.

    Parameters
    ----------
    compared : as `fill_scores`, with `kind` (of the orders) and `depth`

    Returns
    -------
    `asset`, `kind`, `depth`, `queue_model`, `orders`, `true_filled` and `filled` (mean shares), `brier`,
    `brier_excess` over the first model with its interval over blocks of time (`ci_low`, `ci_high`), `slope`
    (`slope_low`, `slope_high`) and `intercept` of `calibration_line`, `fill_time_error_s` and `fill_time_bias_s` (last
    fill of orders filled in full in both: mean absolute error, and with its sign: above 0 the simulator is late),
    `true_partial` and `partial` (shares of orders filled in part)
    """
    rows = []
    for (asset, kind), orders in compared.groupby(["asset", "kind"], sort=False):
        for depth, group in DEPTHS.items():
            here = orders[orders["depth"].isin(group)]
            if len(here):
                models = [{"queue_model": name} | _fills(of_model, evidence, seed) for name, of_model in _models(here)]
                table = pd.DataFrame(models).merge(brier_differences(here, evidence, seed), on="queue_model")
                rows.append(table.assign(asset=asset, kind=kind, depth=depth))
    columns = ["asset", "kind", "depth", "queue_model", "orders", "true_filled", "filled", "brier", "brier_excess"]
    columns += ["ci_low", "ci_high", "slope", "slope_low", "slope_high", "intercept"]
    columns += ["fill_time_error_s", "fill_time_bias_s", "true_partial", "partial"]
    return pd.concat(rows, ignore_index=True)[columns]


def calibration_line(
    predicted: Floats, truth: Floats, blocks: np.ndarray, drawn: Resampling, seed: int
) -> tuple[float, Interval]:
    """Intercept, and slope with its interval over blocks, of the truth regressed on the prediction; all (n,).

    0 and 1 are calibrated (Mincer and Zarnowitz); a slope below 1 is of predictions that differ more than the truth.
    """
    _, block = np.unique(blocks, return_inverse=True)
    terms = np.stack([np.ones(len(truth)), predicted, truth, predicted * truth, predicted**2])
    sums = np.stack([np.bincount(block, weights=term) for term in terms])
    times = np.random.default_rng(seed).multinomial(len(sums.T), np.full(len(sums.T), 1 / len(sums.T)), drawn.bootstrap)

    def slope(of: Floats) -> Floats:
        count, x, y, xy, xx = of
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((count * xy - x * y) / (count * xx - x * x))

    value, draws = float(slope(sums.sum(axis=1))), slope(sums @ times.T.astype(float))
    interval = Interval(value, *percentiles(draws, drawn.confidence), len(sums.T))
    return float(truth.mean() - value * predicted.mean()), interval


def _models(compared: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), orders) for name, orders in compared.groupby("queue_model", sort=False)]


def _fills(orders: pd.DataFrame, evidence: sections.Evidence, seed: int) -> dict[str, float]:
    """Of one queue model: the columns of `scores_by_depth` that need no other."""
    truth, replayed = orders["true_filled"].to_numpy(float), orders["filled"].to_numpy(float)
    blocks = block_of(orders["placed_ns"], evidence.block_s)
    intercept, slope = calibration_line(replayed, truth, blocks, evidence, seed)
    both = (truth > 1 - 1e-9) & (replayed > 1 - 1e-9)
    late_s = (orders["fill_ns"] - orders["true_fill_ns"])[both] / SECOND_NS
    partial = {
        name: ((share > 1e-9) & (share < 1 - 1e-9)).mean()
        for name, share in (("true_partial", truth), ("partial", replayed))
    }
    return {
        "orders": len(orders),
        "true_filled": truth.mean(),
        "filled": replayed.mean(),
        "brier": np.mean((replayed - truth) ** 2),
        "slope": slope.value,
        "slope_low": slope.low,
        "slope_high": slope.high,
        "intercept": intercept,
        "fill_time_error_s": late_s.abs().mean(),
        "fill_time_bias_s": late_s.mean(),
    } | partial


def reliability_by_kind(compared: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """`reliability` of each kind of orders, the `kind` first."""
    kinds = compared.groupby("kind", sort=False)
    parts = {str(kind): reliability(orders, evidence, seed) for kind, orders in kinds}
    return pd.concat(parts, names=["kind", None]).reset_index("kind").reset_index(drop=True)


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
    blocked = compared.assign(block=block_of(compared["placed_ns"], evidence.block_s))
    rows = []
    for (name, number), orders in blocked.groupby(["queue_model", group], sort=False):
        truth = block_bootstrap(orders["true_filled"], orders["block"], evidence, seed)
        rows.append((name, number, len(orders), orders["filled"].mean(), truth.value, truth.low, truth.high))
    names = ["queue_model", "group", "orders", "predicted", "observed", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=names).sort_values(["queue_model", "group"], ignore_index=True)


def sureness(decisions: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """How probable each decision of a language model was to it, and whether it turned out best; others are left out.

    Parameters
    ----------
    decisions : as 07 leaves them, with `temperature` and `probability_0` …
    outcomes : K rows per order with `reward` and `distinct`

    Returns
    -------
    `policy, seed, decision_ns, temperature`, the chosen action's probability before (`raw`) and after scaling
    (`scaled`), and `best`: 1 where it earned most, of n actions that tied a share of 1/n
    """
    known = decisions.dropna(subset="temperature").reset_index(drop=True)
    scaled = known.filter(regex=r"^probability_\d+$").to_numpy()
    unscaled = scaled ** known["temperature"].to_numpy()[:, None]
    raw = unscaled / unscaled.sum(axis=1, keepdims=True)
    orders = outcomes.groupby("order_id")
    best = outcomes["distinct"].to_numpy(bool) & (outcomes["reward"] == orders["reward"].transform("max"))
    share = best / best.groupby(outcomes["order_id"]).transform("sum")
    shares = outcomes[["order_id", "action"]].assign(best=share)
    chosen = np.arange(len(known)), known["action"].to_numpy()
    named = known[["order_id", "action", "policy", "seed", "decision_ns", "temperature"]]
    sure = named.assign(raw=raw[chosen], scaled=scaled[chosen])
    return sure.merge(shares, on=["order_id", "action"], how="left").drop(columns=["order_id", "action"])


def calibration_errors(sure: pd.DataFrame) -> pd.DataFrame:
    """Whether decisions are as often best as they are probable: a row for each policy, over its seeds.

    `sure` is of `sureness`. The expected calibration error (Naeini, Cooper and Hauskrecht, AAAI 2015) is the mean
    distance between the two over `GROUPS` equal groups by probability; of a few hundred orders, some of it is noise.

    Returns
    -------
    `policy, seeds, decisions, temperature` (mean), `best` (share), `raw, scaled` (mean probabilities), `raw_error,
    scaled_error`
    """
    rows = []
    for policy, of_policy in sure.groupby("policy", sort=False):
        means = of_policy[["temperature", "best", "raw", "scaled"]].mean().to_dict()
        errors = {f"{name}_error": _expected_error(of_policy[name], of_policy["best"]) for name in ("raw", "scaled")}
        rows.append(
            {"policy": policy, "seeds": of_policy["seed"].nunique(), "decisions": len(of_policy)} | means | errors
        )
    return pd.DataFrame(rows)


def sure_groups(sure: pd.DataFrame, name: str) -> pd.DataFrame:
    """`policy, probability, best`: means over `GROUPS` equal groups by probability `name` (`raw` or `scaled`)."""
    rows = [
        _grouped(of_policy[name], of_policy["best"]).assign(policy=policy)
        for policy, of_policy in sure.groupby("policy", sort=False)
    ]
    return pd.concat(rows, ignore_index=True)[["policy", "probability", "best"]]


def _grouped(probability: pd.Series, best: pd.Series) -> pd.DataFrame:
    """`probability, best` (means) and `size` of equal groups by probability; equal probabilities stay together."""
    group = pd.qcut(probability, GROUPS, labels=False, duplicates="drop").fillna(0)
    pairs = pd.DataFrame({"probability": probability, "best": best})
    return pairs.groupby(group).mean().assign(size=pairs.groupby(group).size())


def _expected_error(probability: pd.Series, best: pd.Series) -> float:
    groups = _grouped(probability, best)
    return float(np.average((groups["probability"] - groups["best"]).abs(), weights=groups["size"]))
