"""How often an order is decided on again is a choice of its own (eq. 2.7): trees, and a rule, at other intervals."""

from functools import partial
from pathlib import Path

import pandas as pd

from hyperdapo.execution import strategies
from hyperdapo.execution.parents import life_s
from hyperdapo.market.book import Market
from hyperdapo.market.features import features_in_parts
from hyperdapo.params import Parameters
from hyperdapo.sequential.iteration import Parts, action_values, boosting
from hyperdapo.sequential.rivals import greedy
from hyperdapo.sequential.rollouts import execute
from hyperdapo.sequential.states import last_known
from hyperdapo.times import common_step_s


def plays(folder: Path, parts: Parts, outcomes: pd.DataFrame, parameters: Parameters) -> dict[str, strategies.Play]:
    """Strategies that decide every N seconds, for each N of `sequential.intervals_s`, learned at that interval.

    `boosting_every_Ns` are trees as `boosting_sequential`; `threshold_every_Ns` is the rule `threshold_requoted`, which
    any claim of the trees has to beat at the same interval.

    Parameters
    ----------
    folder : of the market, of which features are made at every instant at which one of them decides
    parts : over the market, with the orders of the training split among its own
    outcomes : of 04
    """
    made = dict[str, strategies.Play]()
    for every_s in parameters.sequential.intervals_s:
        assumed = _every(parameters, every_s)
        features = last_known(pd.concat(features_in_parts(folder, assumed, {}), ignore_index=True))
        trees = boosting(features, action_values(parts, features, assumed), parameters.seed)
        market = Market.in_parts(folder, strategies.LOOKS_BACK_S, life_s(parameters.orders))
        tried = strategies.try_requoting(market, outcomes, assumed)
        rule = strategies.Requoting.cheapest(tried, parameters.policy.actions)
        made[f"boosting_every_{every_s:g}s"] = partial(_at, every_s, partial(execute, greedy(trees)))
        made[f"threshold_every_{every_s:g}s"] = partial(_at, every_s, partial(_requoted, rule))
    return made


def _at(
    every_s: float, play: strategies.Play, market: Market, parents: pd.DataFrame, parameters: Parameters
) -> pd.DataFrame:
    return play(market, parents, _every(parameters, every_s))


def _requoted(
    rule: strategies.Requoting, market: Market, parents: pd.DataFrame, parameters: Parameters
) -> pd.DataFrame:
    return strategies.requoted(market, parents, rule, parameters)


def _every(parameters: Parameters, every_s: float) -> Parameters:
    """The same where orders are decided on and quoted anew that often, with features at all these instants."""
    features_s = common_step_s(every_s, parameters.features.decision_interval_s)
    changed = {
        "features": parameters.features.model_copy(update={"decision_interval_s": features_s}),
        "policy": parameters.policy.model_copy(update={"decide_again_s": every_s}),
        "execution": parameters.execution.model_copy(update={"requote_s": every_s}),
    }
    return parameters.model_copy(update=changed)
