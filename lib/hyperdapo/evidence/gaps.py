"""`learning_gap.csv`: what each training closed of the gap between the best fixed offset and the oracle."""

import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.evidence.metrics import learning_gap
from hyperdapo.params import Parameters

COLUMNS = [
    *("asset", "algorithm", "seed", "untrained_bps", "best_fixed_bps", "trained_bps", "oracle_bps", "gap_closed"),
    *("gap_ci_low", "gap_ci_high", "boosting_bps", "boosting_gap_closed", "states", "blocks"),
]


def learning_gaps(outcomes: pd.DataFrame, decisions: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """One row per asset, algorithm and seed, all on the same held-out (test) states, in bps of reward.

    Parameters
    ----------
    outcomes : K rows per state with `reward`; the best fixed action is the best on the training split
    decisions : one row per state, policy and seed with `action`

    Returns
    -------
    `COLUMNS`; `gap_closed` is (trained - best fixed) / (oracle - best fixed) with its block bootstrap interval.

    Raises
    ------
    DataError
        If a policy has not decided every held-out state.
    """
    frames = [
        _of_asset(own, decisions[decisions["asset"] == asset], parameters)
        for asset, own in outcomes.groupby("asset", sort=False)
    ]
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def _of_asset(outcomes: pd.DataFrame, decisions: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    asset, test = outcomes["asset"].iloc[0], outcomes[outcomes["split"] == "test"]
    trained_on = outcomes[outcomes["split"] == "train"]
    best_fixed = int(trained_on.groupby("action")["reward"].mean().to_numpy().argmax())
    rewards = test.pivot_table(index="order_id", columns="action", values="reward")
    blocks = test.groupby("order_id")["block"].first()
    runs = {}
    for (policy, seed), taken in decisions.groupby(["policy", "seed"], sort=False):
        action = taken.set_index("order_id")["action"].reindex(rewards.index)
        if action.isna().any():
            raise DataError(f"{asset}: {policy} has not decided every test order. Run 07_inference again")
        runs[str(policy), int(str(seed))] = action.to_numpy(int)
    if absent := {"untrained", "boosting", *parameters.training.algorithms} - {policy for policy, _ in runs}:
        raise DataError(f"{asset}: there are no decisions of {', '.join(sorted(absent))}. Run 07_inference again")
    actions = {f"{policy} {seed}": taken for (policy, seed), taken in runs.items()}
    found = learning_gap(rewards.to_numpy(), actions, best_fixed, blocks, parameters.evidence, parameters.seed)
    found[["algorithm", "seed"]] = pd.DataFrame(list(runs), index=found.index)
    yardsticks = found.drop_duplicates("algorithm").set_index("algorithm")[["policy_bps", "gap_closed"]].astype(float)
    reward, closed = (yardsticks[name].to_dict() for name in ("policy_bps", "gap_closed"))
    trained = found[found["algorithm"].isin(parameters.training.algorithms)].rename(
        columns={"policy_bps": "trained_bps"}
    )
    return trained.assign(
        asset=asset,
        untrained_bps=reward["untrained"],
        boosting_bps=reward["boosting"],
        boosting_gap_closed=closed["boosting"],
    )
