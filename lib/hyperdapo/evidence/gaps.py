"""`learning_gap.csv`: what each training closed of the gap between the best fixed offset and the oracle."""

import pandas as pd

from hyperdapo.errors import DataError
from hyperdapo.evidence.metrics import learning_gap
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths, require

COLUMNS = [
    *("asset", "algorithm", "seed", "untrained_bps", "best_fixed_bps", "trained_bps", "oracle_bps", "gap_closed"),
    *("gap_ci_low", "gap_ci_high", "boosting_bps", "boosting_gap_closed", "states", "blocks"),
]


def read_tables(parameters: Parameters, paths: Paths, name: str, stage: str) -> pd.DataFrame:
    """`NAME.parquet` of every asset of the run, one below the other.

    Raises
    ------
    MissingInputError
        If `stage` has not run for an asset.
    """
    files = [require(paths.of(asset).data / f"{name}.parquet", stage, paths.profile) for asset in parameters.assets]
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def learning_gaps(outcomes: pd.DataFrame, decisions: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """One row per asset, algorithm and seed, all on the same held-out (test) states, in bps of reward.

    Parameters
    ----------
    outcomes : K rows per state with `reward`; the best fixed action is the best on the training split
    decisions : one row per state, policy and seed with `action`

    Raises
    ------
    DataError
        If a policy has not decided every held-out state.
    """
    frames = []
    for asset, own in outcomes.groupby("asset", sort=False):
        best_fixed = int(own[own["split"] == "train"].groupby("action")["reward"].mean().idxmax())
        rewards = own[own["split"] == "test"].pivot(index="order_id", columns="action", values="reward")
        blocks = own.drop_duplicates("order_id").set_index("order_id")["block"].loc[rewards.index]
        taken = decisions[decisions["asset"] == asset].pivot(index="order_id", columns=["policy", "seed"], values="action")
        taken = taken.reindex(rewards.index)
        if taken.isna().to_numpy().any():
            raise DataError(f"{asset}: some policy has not decided every test order; run 07_inference again")
        actions = {f"{policy} {seed}": column.to_numpy(int) for (policy, seed), column in taken.items()}
        found = learning_gap(rewards.to_numpy(), actions, best_fixed, blocks, parameters.evidence, parameters.seed)
        named = found["policy"].str.rsplit(" ", n=1, expand=True)
        frames.append(found.assign(asset=asset, policy=named[0], seed=named[1].astype(int)))
    table = pd.concat(frames, ignore_index=True)
    by_policy = table.drop_duplicates(["asset", "policy"]).set_index(["policy", "asset"])
    trained = table[table["policy"].isin(parameters.training.algorithms)]
    trained = trained.rename(columns={"policy": "algorithm", "policy_bps": "trained_bps"})
    for policy in ("untrained", "boosting"):
        trained[f"{policy}_bps"] = trained["asset"].map(by_policy.loc[policy]["policy_bps"])
    trained["boosting_gap_closed"] = trained["asset"].map(by_policy.loc["boosting"]["gap_closed"])
    return trained[COLUMNS].reset_index(drop=True)
