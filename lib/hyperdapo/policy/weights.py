"""Which weights of eq. 3.3 make a policy cheap? A study by Optuna on the training and validation splits (§3.3.1).

The draft says that (0.5, 0.3, 0.2) "were determined through hyperparameter optimization" and shows none. Here a policy
takes the action with the highest weighted reward that it foretells, and what its orders cost is what every strategy is
judged by. Each part of the reward is foretold by regressors of its own, fitted once on the training split, so that a
trial of other weights is one matrix product. Only the direction of the weights matters to the choice of an action:
they are given with sum 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from hyperdapo.errors import DataError
from hyperdapo.market.columns import Floats
from hyperdapo.policy import boosting
from hyperdapo.policy.pairs import reward_matrix
from hyperdapo.sections import Orders

WEIGHTS = ("execution", "risk", "cost")
"""Alpha, beta and gamma of eq. 3.3; the part `reward_NAME` of an outcome has the weight NAME."""

DRAFT = (0.5, 0.3, 0.2)

COST = "total_cost_bps"


@dataclass(frozen=True)
class Foretold:
    """n states: their rows, the three parts of the reward that are foretold (n, K, 3), the true cost (n, K), bps."""

    states: pd.DataFrame
    parts: Floats
    costs: Floats

    def costs_under(self, weights: ArrayLike) -> Floats:
        """(n,) bps: what the orders cost whose weighted reward, as foretold, is highest; weights (3,) or (n, 3)."""
        foretold = (self.parts * np.asarray(weights, dtype=float)[..., None, :]).sum(axis=-1)
        taken: Floats = self.costs[np.arange(len(self.costs)), foretold.argmax(axis=1)]
        return taken


def foretell(features: pd.DataFrame, outcomes: pd.DataFrame, seed: int) -> Foretold:
    """Fit one regressor per action and part on the training split, and foretell the validation split.

    Raises
    ------
    DataError
        If one of the two splits is empty, or a part is missing or not finite.
    """
    fitted, judged = (outcomes[outcomes["split"] == split] for split in ("train", "validation"))
    for split, own in (("train", fitted), ("validation", judged)):
        if own.empty:
            raise DataError(f"no order belongs to the {split} split: lengthen the span, or change `split`")
    states, costs = reward_matrix(judged, COST)
    inputs = [boosting.inputs(features, table) for table in (reward_matrix(fitted, COST)[0], states)]
    parts = []
    for name in tqdm(WEIGHTS, desc="parts of the reward", unit="part", delay=2, leave=False):
        models = boosting.fit(inputs[0], reward_matrix(fitted, f"reward_{name}")[1], seed)
        parts.append(np.column_stack([model.predict(inputs[1]) for model in models]))
    return Foretold(states, np.stack(parts, axis=-1), costs)


def fixed_weights(orders: Orders, states: pd.DataFrame) -> dict[str, Floats]:
    """Weights to hold against the best, (3,) with sum 1: of the draft, of the profile, of a single part.

    Those of the profile are (n, 3) where its objectives disagree: each state has the weights of its own.
    """
    of_objective = {name: [getattr(rules.weights, part) for part in WEIGHTS] for name, rules in orders.rules.items()}
    profile = np.array([of_objective[name] for name in states["objective"]])
    profile /= profile.sum(axis=1, keepdims=True)
    agreed = profile[0] if (profile == profile[0]).all() else profile
    return {"draft": np.array(DRAFT), "profile": agreed, "execution_only": np.eye(3)[0], "cost_only": np.eye(3)[2]}


def search(foretold: Foretold, known: Mapping[str, Floats], trials: int, seed: int) -> pd.DataFrame:
    """Minimise the mean cost over the weights by Optuna's tree-structured Parzen estimator (TPE).

    Parameters
    ----------
    known : weights with which the study begins, so that the best is not dearer than any of them; those of single
        states (n, 3) are passed over
    trials : how many weights are tried, the known ones included

    Returns
    -------
    One row per trial: `execution, risk, cost` (sum 1) and `total_cost_bps`, its mean over the states.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for weights in known.values():
        if weights.ndim == 1:
            study.enqueue_trial(dict(zip(WEIGHTS, weights.tolist(), strict=True)))
    rows = []
    for _ in tqdm(range(trials), desc="weights", unit="trial", delay=2, leave=False):
        trial = study.ask()
        drawn = np.array([trial.suggest_float(name, 0.0, 1.0) for name in WEIGHTS])
        weights = drawn / drawn.sum()
        cost = float(foretold.costs_under(weights).mean())
        study.tell(trial, cost)
        rows.append((*weights, cost))
    return pd.DataFrame(rows, columns=[*WEIGHTS, COST])


def judged(foretold: Foretold, known: Mapping[str, Floats], trials: pd.DataFrame) -> pd.DataFrame:
    """What each state's order costs under the best weights of a search, and under the known ones.

    The best of many trials on these very states looks cheaper than it is. So the weights `picked_elsewhere` stand
    beside it: in each block of time, the trial that was best in all the other blocks.

    Returns
    -------
    One row per state and name of weights: `asset, order_id, block, strategy` (`best`, `picked_elsewhere`, the known
    names), its weights `execution, risk, cost`, and `total_cost_bps`.
    """
    tried = trials[list(WEIGHTS)].to_numpy()
    picked = tried[_picked_elsewhere(foretold, tried)]
    frames = []
    for name, weights in {"best": tried[trials[COST].argmin()], "picked_elsewhere": picked, **known}.items():
        rows = foretold.states[["asset", "order_id", "block"]].assign(strategy=name)
        each = np.broadcast_to(weights, (len(rows), len(WEIGHTS)))
        frames.append(rows.assign(**dict(zip(WEIGHTS, each.T, strict=True)), **{COST: foretold.costs_under(weights)}))
    return pd.concat(frames, ignore_index=True)


def _picked_elsewhere(foretold: Foretold, tried: Floats) -> NDArray[np.int64]:
    """(n,) the trial of (T, 3) that is cheapest over the states of all other blocks; the first where there are none."""
    _, block = np.unique(foretold.states["block"], return_inverse=True)
    sums = np.stack([np.bincount(block, weights=foretold.costs_under(weights)) for weights in tried])
    best: NDArray[np.int64] = (sums.sum(axis=1, keepdims=True) - sums).argmin(axis=0)[block]
    return best
