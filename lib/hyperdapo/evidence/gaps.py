"""The share of the way from best fixed to oracle that each training closed; specialists against a generalist."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperdapo import sections
from hyperdapo.errors import DataError
from hyperdapo.evidence.metrics import Floats, block_bootstrap, learning_gap
from hyperdapo.files import force
from hyperdapo.params import Parameters
from hyperdapo.times import block_of

RIVALS = ("linear", "mlp", "boosting")
"""Policies that read what the language model reads, beside which each training is judged."""
DPOS = ("dpo", "dpo_one_pair")
"""DPO on all pairs of a state, and on one: the stricter rival is the better of both."""
LEAST_SHARE = 0.05
"""Of the gap that boosting has to close, or a share of that says nothing."""
_OF_RIVALS = [f"{rival}_{measure}" for rival in RIVALS for measure in ("bps", "gap_closed")]
COLUMNS = [
    *("asset", "algorithm", "seed", "untrained_bps", "best_fixed_bps", "trained_bps", "oracle_bps", "gap_closed"),
    *("gap_ci_low", "gap_ci_high", *_OF_RIVALS, "states", "blocks"),
]
MEANS = [
    *("asset", "algorithm", "seeds", "untrained_bps", "best_fixed_bps", "trained_bps", "oracle_bps"),
    *("gap_closed", "gap_ci_low", "gap_ci_high", "lowest_seed", "highest_seed"),
    *(*_OF_RIVALS, "share_of_boosting"),
    *("minus_boosting_bps", "minus_boosting_ci_low", "minus_boosting_ci_high"),
    *("minus_dpo_bps", "minus_dpo_ci_low", "minus_dpo_ci_high"),
    *("room_bps", "room_ci_low", "room_ci_high", "states", "blocks"),
]


@dataclass(frozen=True)
class _Judged:
    """The n test states of an asset: `rewards` (n, K) bps, `blocks` (n,), and what each policy and seed `earned` (n,).

    `best_fixed` is the action that was best on the training states.
    """

    asset: str
    rewards: Floats
    blocks: NDArray[np.int64]
    best_fixed: int
    earned: dict[tuple[str, int], Floats]

    def of(self, policy: str) -> Floats:
        """(n,) bps: the mean over the policy's seeds."""
        mean: Floats = np.mean([earned for (name, _), earned in self.earned.items() if name == policy], axis=0)
        return mean

    @property
    def room(self) -> Floats:
        """(n,) bps from the best fixed action to the oracle."""
        room: Floats = self.rewards.max(axis=1) - self.rewards[:, self.best_fixed]
        return room

    def closed(self, earned: Floats) -> float:
        """The share of the room that a policy closes which earned (n,)."""
        return float((earned - self.rewards[:, self.best_fixed]).mean() / self.room.mean())


def learning_gaps(outcomes: pd.DataFrame, decisions: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """`learning_gap.csv`: one row per asset, algorithm and seed, all on the same held-out (test) states, in bps.

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
    frames = []
    for judged in _by_asset(outcomes, decisions, parameters):
        runs = {run: earned for run, earned in judged.earned.items() if run[0] in parameters.training.algorithms}
        gaps = _gaps(judged, {f"{policy} {seed}": earned for (policy, seed), earned in runs.items()}, parameters)
        gaps[["algorithm", "seed"]] = pd.DataFrame(list(runs), index=gaps.index)
        frames.append(gaps)
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def over_seeds(outcomes: pd.DataFrame, decisions: pd.DataFrame, parameters: Parameters) -> pd.DataFrame:
    """`learning_gap_over_seeds.csv`: one row per asset and algorithm, each state's reward averaged over the seeds.

    Parameters and errors are those of `learning_gaps`.

    Returns
    -------
    `MEANS`; beside the columns of `learning_gaps`: the gap that the worst and the best seed closed, the share of what
    boosting closed on the same states (NaN where it closed nothing), the differences to boosting and to the better of
    `DPOS` with their intervals (NaN for itself, or where none was trained), and the room that there is: oracle minus
    best fixed, with its interval. The oracle picks in hindsight, so part of the room is luck.
    """
    algorithms: list[str] = list(parameters.training.algorithms)
    frames = []
    for judged in _by_asset(outcomes, decisions, parameters):
        means = {algorithm: judged.of(algorithm) for algorithm in algorithms}
        dpo = max((means[name] for name in DPOS if name in means), key=np.mean, default=None)
        beyond = [
            _beyond("boosting", earned, judged.of("boosting"), judged, parameters)
            | _beyond("dpo", earned, dpo, judged, parameters)
            for earned in means.values()
        ]
        closed = [
            [judged.closed(earned) for (name, _), earned in judged.earned.items() if name == algorithm]
            for algorithm in algorithms
        ]
        gaps = _gaps(judged, means, parameters).join(pd.DataFrame(beyond))
        gaps = gaps.assign(
            algorithm=algorithms,
            seeds=[len(shares) for shares in closed],
            lowest_seed=[min(shares) for shares in closed],
            highest_seed=[max(shares) for shares in closed],
            share_of_boosting=gaps["gap_closed"] / gaps["boosting_gap_closed"].where(lambda share: share > LEAST_SHARE),
            **_interval("room", judged.room, judged, parameters),
        )
        frames.append(gaps)
    return pd.concat(frames, ignore_index=True)[MEANS]


def specialist_gaps(decided: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """What each adapter earns beyond the asset's own specialist (§4.4): one row per asset and adapter.

    Seeds are averaged state by state.

    Parameters
    ----------
    decided : `specialists.parquet`, the states of an asset in the same order for every adapter

    Returns
    -------
    `asset, trained_on, reward_bps, minus_specialist_bps, ci_low, ci_high, states, blocks`: the difference to the
    asset's own specialist on the same states, with its block bootstrap interval.
    """
    rows = []
    for asset, tested in decided.groupby("asset", sort=False):
        placed = tested.assign(place=tested.groupby(["trained_on", "seed"]).cumcount())
        rewards = placed.pivot_table(index="place", columns="trained_on", values="reward", sort=False)
        blocks = block_of(placed.groupby("place")["decision_ns"].first(), evidence.block_s)
        for source in rewards:
            gap = block_bootstrap(rewards[source] - rewards[asset], blocks, evidence, seed)
            low, high = (np.nan, np.nan) if source == asset else (gap.low, gap.high)
            rows.append(
                {
                    "asset": asset,
                    "trained_on": source,
                    "reward_bps": rewards[source].mean(),
                    "minus_specialist_bps": gap.value,
                    "ci_low": low,
                    "ci_high": high,
                    "states": len(blocks),
                    "blocks": gap.blocks,
                }
            )
    return pd.DataFrame(rows)


def language_gaps(decided: pd.DataFrame, evidence: sections.Evidence, seed: int) -> pd.DataFrame:
    """What each policy of the study of language is worth on the same test states; seeds are averaged state by state.

    Parameters
    ----------
    decided : rows of `policy.language.study.decide`

    Returns
    -------
    `asset, trained_on, policy, states, wording` (`all`, then each by itself), `seeds, reward_bps, minus_fixed_bps,
    ci_low, ci_high, gap_closed, lowest_seed, highest_seed, tested, blocks`: the difference to the best fixed action
    with its block bootstrap interval, and the share of the way to the oracle
    """
    everything = decided.assign(wording="all")
    by_wording = [everything, decided] if (decided["wording"] != "").any() else [everything]
    keys = ["asset", "trained_on", "policy", "states", "wording"]
    rows = []
    for key, group in pd.concat(by_wording, ignore_index=True).groupby(keys, sort=False):
        group = group.assign(place=group.groupby("seed").cumcount(), gained=group["reward"] - group["best_fixed"])
        state = group.groupby("place")[["decision_ns", "reward", "gained", "best_fixed", "oracle"]].mean()
        room = float((state["oracle"] - state["best_fixed"]).mean())
        gain = block_bootstrap(state["gained"], block_of(state["decision_ns"], evidence.block_s), evidence, seed)
        closed = group.groupby("seed")["gained"].mean() / room
        measured = {"seeds": len(closed), "reward_bps": state["reward"].mean()} | gain.columns("minus_fixed_bps")
        measured |= {"gap_closed": gain.value / room, "lowest_seed": closed.min(), "highest_seed": closed.max()}
        rows.append(dict(zip(keys, key, strict=True)) | measured | {"tested": len(state)})
    return pd.DataFrame(rows)


def _gaps(judged: _Judged, earned: dict[str, Floats], parameters: Parameters) -> pd.DataFrame:
    """The gap that each of `earned` (n,) closes, beside what the yardsticks of the asset earn."""
    evidence, seed = parameters.evidence, parameters.seed
    gaps = learning_gap(judged.rewards, earned, judged.best_fixed, judged.blocks, evidence, seed)
    rivals = {rival: judged.of(rival) for rival in RIVALS}
    return gaps.rename(columns={"policy_bps": "trained_bps"}).assign(
        asset=judged.asset,
        untrained_bps=judged.of("untrained").mean(),
        **{f"{rival}_bps": earned.mean() for rival, earned in rivals.items()},
        **{f"{rival}_gap_closed": judged.closed(earned) for rival, earned in rivals.items()},
    )


def _beyond(
    rival: str, earned: Floats, other: Floats | None, judged: _Judged, parameters: Parameters
) -> dict[str, float]:
    """The difference to a rival on the same states; NaN where there is none, or to itself."""
    if other is None or other is earned:
        return dict.fromkeys((f"minus_{rival}_{end}" for end in ("bps", "ci_low", "ci_high")), np.nan)
    return _interval(f"minus_{rival}", earned - other, judged, parameters)


def _interval(name: str, values: Floats, judged: _Judged, parameters: Parameters) -> dict[str, float]:
    """`NAME_bps, NAME_ci_low, NAME_ci_high` of the mean of (n,) values."""
    mean = block_bootstrap(values, judged.blocks, parameters.evidence, parameters.seed)
    return {f"{name}_bps": mean.value, f"{name}_ci_low": mean.low, f"{name}_ci_high": mean.high}


def _by_asset(outcomes: pd.DataFrame, decisions: pd.DataFrame, parameters: Parameters) -> list[_Judged]:
    groups = outcomes.groupby("asset", sort=False)
    return [_judge(str(asset), rows, decisions[decisions["asset"] == asset], parameters) for asset, rows in groups]


def _judge(asset: str, outcomes: pd.DataFrame, decisions: pd.DataFrame, parameters: Parameters) -> _Judged:
    test, trained_on = (outcomes[outcomes["split"] == split] for split in ("test", "train"))
    best_fixed = int(trained_on.groupby("action")["reward"].mean().to_numpy().argmax())
    rewards = test.pivot_table(index="order_id", columns="action", values="reward")
    blocks = block_of(test.groupby("order_id")["decision_ns"].first(), parameters.evidence.block_s)
    earned, states = {}, np.arange(len(rewards))
    again = force(parameters.name, "07_inference")
    for (policy, seed), decided in decisions.groupby(["policy", "seed"], sort=False):
        action = decided.set_index("order_id")["action"].reindex(rewards.index)
        if action.isna().any():
            raise DataError(f"{asset}: {policy} has not decided every test order. Run: {again}")
        earned[str(policy), int(str(seed))] = rewards.to_numpy()[states, action.to_numpy(int)]
    if absent := {"untrained", *RIVALS, *parameters.training.algorithms} - {policy for policy, _ in earned}:
        raise DataError(f"{asset}: there are no decisions of {', '.join(sorted(absent))}. Run: {again}")
    return _Judged(asset, rewards.to_numpy(), blocks, best_fixed, earned)
