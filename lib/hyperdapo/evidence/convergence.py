"""What the draft claims of training (§4.6.2), measured from the training logs: how far, how fast, how accurate."""

from collections.abc import Hashable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import CensoredData, ecdf

from hyperdapo.files import require
from hyperdapo.paths import PARAMS, Paths

SEARCH = PARAMS / "search.csv"
"""Every trial of the search for the parameters of the algorithms, by `benchmarks/_search.py`."""
FIRST_STEPS = 100  # the draft: "72 % decrease in first 100 training steps"
_MOST_OF_THE_WAY = 0.9
_SMOOTHED = 3


def read_logs(paths: Paths, assets: Sequence[str], algorithms: Sequence[str]) -> pd.DataFrame:
    """The training logs of all seeds, one below the other, with the columns `asset` and `algorithm`.

    Raises
    ------
    MissingInputError
        If 05_train has not run for one of the assets.
    """
    logs = []
    for asset, algorithm in product(assets, algorithms):
        log = require(paths.of(asset).model(algorithm) / "training_log.csv", "05_train", paths.name)
        logs.append(pd.read_csv(log).assign(asset=asset, algorithm=algorithm))
    return pd.concat(logs, ignore_index=True)


def logs_so_far(paths: Paths, assets: Sequence[str]) -> pd.DataFrame:
    """The training logs of these assets as far as they have got: finished runs, and those that still train."""
    files: list[tuple[str, str, Path]] = []
    for asset in assets:
        finished = paths.of(asset).models.glob("*/seed_*/training_log.csv")
        unfinished = paths.of(asset).runs.glob("*/seed_*/progress.csv")
        files += [(asset, file.parents[1].name, file) for file in [*sorted(finished), *sorted(unfinished)]]
    logs = [pd.read_csv(file).assign(asset=asset, algorithm=name) for asset, name, file in files]
    return pd.concat(logs, ignore_index=True).drop_duplicates(["asset", "algorithm", "seed", "step"], keep="last")


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """`convergence.csv` by asset and algorithm.

    Of each measure its mean over seeds, `_lowest` and `_highest`; `reached_level`, how many seeds came to the level,
    and `median_steps_to_level`, NaN where the median seed never did.
    """
    measures = ["last_reward_bps", "regret_decrease", "final_accuracy"]
    groups = table.groupby(["asset", "algorithm"], sort=False)
    named = {"mean": "", "min": "_lowest", "max": "_highest"}
    parts = [groups[measures].agg(how).add_suffix(ending) for how, ending in named.items()]
    ordered = [f"{measure}{ending}" for measure in measures for ending in named.values()]
    steps = groups["steps_to_level"]
    reached = steps.count().rename("reached_level")
    median = steps.agg(median_arrival).replace(np.inf, np.nan).rename("median_steps_to_level")
    table = pd.concat([groups.size().rename("seeds"), *parts, reached, median], axis=1)
    return table[["seeds", *ordered, reached.name, median.name]].reset_index()


def median_arrival(steps: pd.Series) -> float:
    """The median of `steps_to_level` over runs; one that never arrives is later than all that do."""
    return float(steps.fillna(np.inf).median())


def under_way(table: pd.DataFrame) -> pd.DataFrame:
    """How long training takes to the level, by Kaplan and Meier: a run that ends before is censored, not left out.

    Parameters
    ----------
    table : `convergence.csv`; assets in which no run improves have no level, and do not count

    Returns
    -------
    `algorithm, step, share`: the share of all runs that have not come to the level after so many updates, at each step
    at which one comes or ends, from 0 to the last.
    """
    levelled = table[table.groupby("asset")["steps_to_level"].transform("count") > 0]
    frames = []
    for algorithm, runs in levelled.groupby("algorithm", sort=False):
        arrived = runs["steps_to_level"].notna()
        times = runs["steps_to_level"].fillna(runs["steps"])
        curve = ecdf(CensoredData.right_censored(times, ~arrived)).sf
        last = float(runs["steps"].max())
        step = [0.0, *curve.quantiles[curve.quantiles < last], last]
        frames.append(pd.DataFrame({"algorithm": algorithm, "step": step, "share": curve.evaluate(step)}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["algorithm", "step", "share"])


def convergence_table(log: pd.DataFrame) -> pd.DataFrame:
    """One row per asset, algorithm and seed.

    Parameters
    ----------
    log : the training logs: `asset, algorithm, seed, step, loss` and, at some steps, the `heldout_*` columns

    Returns
    -------
    `asset, algorithm, seed, steps`;
    `loss_decrease`, the share by which the loss fell in the first 100 steps (or all, if fewer), of means over three
    steps; NaN for a loss that is not positive from the start, as the clipped objective of DAPO, whose share is no
    measure of anything;
    `regret_decrease`, the same of the held-out distance to the oracle, which both algorithms share;
    `first_reward_bps`, `best_reward_bps`, `last_reward_bps`, held out;
    `steps_to_level`, the first look at which a run is 90 % of the way from the beginning to the best that any run of
    its asset reaches (one level for all, or a fast start to a low end would win); NaN where it never is;
    `final_accuracy`, the share of held-out states whose best action is chosen.
    """
    seen = log.dropna(subset="heldout_reward")
    levels: dict[Hashable, float] = {asset: _common_level(looks) for asset, looks in seen.groupby("asset")}
    rows = []
    for (asset, algorithm, seed), looks in seen.groupby(["asset", "algorithm", "seed"], sort=False):
        updates = log[(log["asset"] == asset) & (log["algorithm"] == algorithm) & (log["seed"] == seed)]
        reward = looks["heldout_reward"].to_numpy()
        reached = looks["step"].to_numpy()[reward >= levels[asset]]
        rows.append(
            {
                "asset": asset,
                "algorithm": algorithm,
                "seed": seed,
                "steps": int(updates["step"].max()),
                "loss_decrease": _loss_decrease(updates["loss"].dropna().to_numpy()),
                "regret_decrease": _regret_decrease(looks),
                "first_reward_bps": reward[0],
                "best_reward_bps": reward.max(),
                "last_reward_bps": reward[-1],
                "steps_to_level": float(reached[0]) if len(reached) else np.nan,
                "final_accuracy": looks["heldout_accuracy"].iloc[-1],
            }
        )
    return pd.DataFrame(rows)


def _common_level(looks: pd.DataFrame) -> float:
    """Held-out reward that is 90 % of the way from the beginning to the best of all runs; NaN where none improves."""
    runs = looks.groupby(["algorithm", "seed"])["heldout_reward"]
    start, best = runs.first().mean(), runs.max().max()
    return float(start + _MOST_OF_THE_WAY * (best - start)) if best > start else float("nan")


def _loss_decrease(loss: np.ndarray) -> float:
    loss = loss[:FIRST_STEPS]
    if len(loss) < 2 * _SMOOTHED or loss[:_SMOOTHED].mean() <= 0:
        return float("nan")
    return float(1 - loss[-_SMOOTHED:].mean() / loss[:_SMOOTHED].mean())


def _regret_decrease(looks: pd.DataFrame) -> float:
    within = looks[looks["step"] <= FIRST_STEPS]
    regret = (within["heldout_oracle"] - within["heldout_reward"]).to_numpy()
    return float(1 - regret[-1] / regret[0]) if regret[0] > 0 else float("nan")


def best_trials(search: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By algorithm the parameters of the trial that closed most of the gap, the first of those that tie.

    `search` is `params/search.csv`: a row per algorithm, trial, asset and seed. Of the trials of an algorithm those
    count that came through every round, with the mean over their trainings; one that could not go on is not chosen.
    """
    trainings = search.groupby(["algorithm", "trial"], sort=False)["gap_closed"]
    closed = trainings.agg(lambda gaps: gaps.mean(skipna=False))
    last = closed[trainings.size() == trainings.size().groupby("algorithm").transform("max")]
    parameters = search.drop_duplicates(["algorithm", "trial"]).set_index(["algorithm", "trial"])
    named = [name for name in parameters if name not in ("asset", "seed", "seconds") and "gap" not in str(name)]
    best = parameters.loc[last.groupby("algorithm", sort=False).idxmax(), named]
    return {algorithm: row.dropna().to_dict() for (algorithm, _), row in best.iterrows()}


def cost_of_search() -> pd.DataFrame:
    """What the parameters of each algorithm have cost to find: `algorithm, trials, search_s`, seconds of one core."""
    search = pd.read_csv(SEARCH).groupby("algorithm", sort=False)
    return search.agg(trials=("trial", "nunique"), search_s=("seconds", "sum")).reset_index()
