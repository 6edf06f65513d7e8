"""The reward of an order (eq. 3.3), relative to its side: a sell is rewarded for a high price as a buy for a low one.

    R = alpha R_execution + beta R_risk + gamma R_cost,  all in bps of the arrival mid

The draft's R_exec has no side, and an order that never fills costs it nothing. Here the side counts, and what it
costs to complete the order at the horizon is slippage. With weights (1, 0, 1) the reward is minus price and fees
(docs/design.md, Rewards and objectives).

Which weights alpha, beta, gamma would have been cheapest is a study by itself: regressors predict the three parts on
the validation split, and a search looks for the weights whose best predicted action costs least in truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from hyperdapo.market.columns import Floats
from hyperdapo.policy.states import of_split, reward_matrix
from hyperdapo.sections import Orders
from hyperdapo.times import block_of

WEIGHTS = ("execution", "risk", "cost")
"""Alpha, beta and gamma of eq. 3.3; the part `reward_NAME` of an outcome has the weight NAME."""

DRAFT = (0.5, 0.3, 0.2)
COST = "total_cost_bps"


def reward_parts(outcomes: pd.DataFrame, drawdown_threshold_bps: float, markouts_s: Sequence[float]) -> pd.DataFrame:
    """The three parts of eq. 3.3 for n replayed orders, bps.

    `reward_execution` is the price improvement of what was filled before expiry, `reward_risk` punishes the worst
    mark-out beyond the threshold (adverse selection), `reward_cost` is minus fees and the slippage of the completion.

    Examples
    --------
    A buy rests 15 bps under the mid, is filled, pays the maker's 1.5 bps, and sees the price fall 8 bps further:

    >>> order = {"implementation_shortfall_bps": [-15.0], "completion_slippage_bps": [0.0], "fees_bps": [1.5]}
    >>> order |= {"filled_passive": [1.0]}
    >>> reward_parts(pd.DataFrame(order | {"markout_60s_bps": [-8.0]}), 5.0, [60]).iloc[0].tolist()
    [15.0, -3.0, -1.5]
    """
    completion = outcomes["completion_slippage_bps"]
    improvement = completion - outcomes["implementation_shortfall_bps"]
    drawdown = -outcomes[[f"markout_{horizon:g}s_bps" for horizon in markouts_s]].min(axis=1).clip(upper=0)
    parts = {
        "reward_execution": improvement.where(outcomes["filled_passive"] > 0, 0.0),
        "reward_risk": -(drawdown - drawdown_threshold_bps).clip(lower=0),
        "reward_cost": -(outcomes["fees_bps"] + completion),
    }
    return pd.DataFrame(parts) + 0.0


def with_rewards(outcomes: pd.DataFrame, orders: Orders) -> pd.DataFrame:
    """`outcomes` with the three parts and `reward`, weighted as the order's objective asks."""
    parts = reward_parts(outcomes, orders.drawdown_threshold_bps, orders.markouts_s)
    weights = _by_objective(orders)
    alpha, beta, gamma = (outcomes["objective"].map(weights[name]) for name in WEIGHTS)
    reward = alpha * parts["reward_execution"] + beta * parts["reward_risk"] + gamma * parts["reward_cost"]
    return pd.concat([outcomes, parts, reward.rename("reward")], axis=1)


@dataclass(frozen=True)
class Predicted:
    """n states: their rows, predictions of the three parts of the reward (n, K, 3), the true costs (n, K), all bps."""

    states: pd.DataFrame
    parts: Floats
    costs: Floats

    def costs_under(self, weights: ArrayLike) -> Floats:
        """(n,) bps: the cost of the action with the highest predicted reward; weights (3,), or (n, 3) by state."""
        rewards = (self.parts * np.asarray(weights, dtype=float)[..., None, :]).sum(axis=-1)
        chosen: Floats = self.costs[np.arange(len(self.costs)), rewards.argmax(axis=1)]
        return chosen


def predict_parts(features: pd.DataFrame, outcomes: pd.DataFrame, seed: int) -> Predicted:
    """Fit boosted trees to each action and part on the training split, and predict the validation split.

    Raises
    ------
    DataError
        If one of the two splits is empty, or a part is missing or not finite.
    """
    from hyperdapo.policy import rivals  # scikit-learn takes a second to import

    training, validation = (of_split(outcomes, split) for split in ("train", "validation"))
    states, costs = reward_matrix(validation, COST)
    known, unseen = (rivals.inputs(features, table) for table in (reward_matrix(training, COST)[0], states))
    parts = []
    for name in tqdm(WEIGHTS, desc="parts of the reward", unit="part", delay=2, leave=False):
        earned = reward_matrix(training, f"reward_{name}")[1]
        parts.append(rivals.trees(seed).fit(known, earned).predict(unseen))
    return Predicted(states, np.stack(parts, axis=-1), costs)


def fixed_weights(orders: Orders, states: pd.DataFrame) -> dict[str, Floats]:
    """Weights to compare the best with, (3,) with sum 1: of the draft, of the profile, of a single part.

    Those of the profile are (n, 3) where its objectives disagree: each state has the weights of its objective.
    """
    weights = _by_objective(orders).loc[states["objective"]].to_numpy(float)
    profile = weights / weights.sum(axis=1, keepdims=True)
    agreed = profile[0] if (profile == profile[0]).all() else profile
    return {"draft": np.array(DRAFT), "profile": agreed, "execution_only": np.eye(3)[0], "cost_only": np.eye(3)[2]}


def search_weights(predicted: Predicted, known: Mapping[str, Floats], trials: int, seed: int) -> pd.DataFrame:
    """Minimise the mean cost over the weights by Optuna's tree-structured Parzen estimator (TPE).

    Parameters
    ----------
    known : weights that the study tries first, so that the best costs no more than any of them; those that differ by
        state, (n, 3), are left out
    trials : how many weights are tried, the known ones included

    Returns
    -------
    One row per trial: `execution, risk, cost` (sum 1) and `total_cost_bps`, its mean over the states.
    """
    import optuna  # only the study needs it, and it takes a second

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
        cost = float(predicted.costs_under(weights).mean())
        study.tell(trial, cost)
        rows.append((*weights, cost))
    return pd.DataFrame(rows, columns=[*WEIGHTS, COST])


def costs_of_weights(
    predicted: Predicted, known: Mapping[str, Floats], trials: pd.DataFrame, block_s: float
) -> pd.DataFrame:
    """What each state's order costs under the best weights of a search, and under the known ones.

    The best of many trials on these very states looks cheaper than it is. So the weights `picked_elsewhere` stand
    beside it: in each block of time, the trial that was best in all the other blocks.

    Returns
    -------
    One row per state and name of weights: `asset, order_id, decision_ns, strategy` (`best`, `picked_elsewhere`, the
    known names), its weights `execution, risk, cost`, and `total_cost_bps`.
    """
    tried = trials[list(WEIGHTS)].to_numpy()
    compared = {
        "best": tried[trials[COST].argmin()],
        "picked_elsewhere": tried[_picked_elsewhere(predicted, tried, block_s)],
        **known,
    }
    frames = []
    for name, weights in compared.items():
        rows = predicted.states[["asset", "order_id", "decision_ns"]].assign(strategy=name)
        rows[list(WEIGHTS)] = np.broadcast_to(weights, (len(rows), len(WEIGHTS)))
        frames.append(rows.assign(**{COST: predicted.costs_under(weights)}))
    return pd.concat(frames, ignore_index=True)


def _by_objective(orders: Orders) -> pd.DataFrame:
    """Weights of the profile: a row per objective, a column per part."""
    weights = {name: rules.weights.model_dump() for name, rules in orders.rules.items()}
    return pd.DataFrame.from_dict(weights, orient="index")[list(WEIGHTS)]


def _picked_elsewhere(predicted: Predicted, tried: Floats, block_s: float) -> NDArray[np.int64]:
    """(n,) the trial of (T, 3) that is cheapest over the states of all other blocks; the first where there are none."""
    _, block = np.unique(block_of(predicted.states["decision_ns"], block_s), return_inverse=True)
    sums = np.stack([np.bincount(block, weights=predicted.costs_under(weights)) for weights in tried])
    best: NDArray[np.int64] = (sums.sum(axis=1, keepdims=True) - sums).argmin(axis=0)[block]
    return best
