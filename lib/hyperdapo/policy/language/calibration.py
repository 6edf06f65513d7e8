"""Temperature scaling (Guo, Pleiss, Sun and Weinberger, ICML 2017): one number that makes the probabilities true.

Log-probabilities are divided by it, so that the order of the actions, and with it the decision, stays. It is fitted on
validation states, by the likelihood of the action that turned out best; where several tied, each was best by its share.
"""

import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from hyperdapo.errors import ModelError
from hyperdapo.market.columns import Floats, Mask

NAME = "calibration.json"
BOUNDS = 0.05, 20.0  # of the temperature


def fit_temperature(log_probabilities: Floats, rewards: Floats, distinct: Mask) -> float:
    """The temperature under which the best actions of n states are likeliest, within `BOUNDS`; all are (n, K).

    1 where no state tells the actions apart.
    """
    shares = best_shares(rewards, distinct)
    telling = rewards.max(axis=1) > rewards.min(axis=1)
    if not telling.any():
        return 1.0

    def surprise(log_temperature: float) -> float:
        scaled = scale(log_probabilities[telling], float(np.exp(log_temperature)), distinct[telling])
        return -float((shares[telling] * np.where(distinct[telling], scaled, 0.0)).sum())

    return float(np.exp(minimize_scalar(surprise, bounds=np.log(BOUNDS), method="bounded").x))


def scale(log_probabilities: Floats, temperature: float, distinct: Mask) -> Floats:
    """(n, K) log-probabilities divided by a temperature; -inf for actions that are not distinct."""
    scaled: Floats = log_softmax(np.where(distinct, log_probabilities / temperature, -np.inf), axis=1)
    return scaled


def best_shares(rewards: Floats, distinct: Mask) -> Floats:
    """(n, K) by which share each action was the best of its state: 1 over those that tied, 0 for all others."""
    best = distinct & (rewards == rewards.max(axis=1, keepdims=True))
    shares: Floats = best / best.sum(axis=1, keepdims=True)
    return shares


def write(folder: Path, temperature: float, states: int) -> None:
    """Leave the temperature beside an adapter, and how many validation states it was fitted on."""
    (folder / NAME).write_text(json.dumps({"temperature": temperature, "validation_states": states}, indent=2))


def read(folder: Path) -> float:
    """The temperature of the adapter in a folder.

    Raises
    ------
    ModelError
        If it is lost or damaged.
    """
    try:
        return float(json.loads((folder / NAME).read_text())["temperature"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise ModelError(f"{folder / NAME} is lost or damaged: copy it back, or train the adapter again (05)") from None
