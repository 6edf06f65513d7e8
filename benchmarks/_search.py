"""Searches what the training algorithms leave open: the same points for each, judged on the validation split.

    hyperdapo run --profile sample --until 04      and the same for planted
    python benchmarks/_search.py

Every algorithm has the same number of trials at the same points, a scrambled Sobol sequence (seeded) over learning
rate, temperature or beta, and entropy or the unit of eq. 2.9, and the budget of `params/base.yaml`. A trial is one
training in each world; it is judged by the share of the way from the best fixed action to the oracle that it closes on
all validation states, the mean of both. One world is believable and holds little to learn, the other has a known edge:
tuned on the first alone, an algorithm would be taught to read nothing.

The points are halved once: all are tried on one asset with one seed, the best three of each algorithm on another asset
and another seed too, and of these the best on average is chosen. `params/search.csv` gets every trial, and what was
best is put into `params/base.yaml`; `tests/test_search.py` holds that it stands there. About 20 s of a core a trial
and 4 minutes to read the states of an asset: an hour in all. Other worlds and assets have a log of their own:

    python benchmarks/_search.py --profiles free --assets ETH --log free.csv

A new algorithm is added to the log by `--algorithms NAME --resume`.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import qmc
from tqdm import tqdm

from hyperdapo.errors import TrainingError
from hyperdapo.evidence.convergence import SEARCH, best_trials
from hyperdapo.files import atomic
from hyperdapo.params import load
from hyperdapo.paths import PARAMS
from hyperdapo.policy import runs
from hyperdapo.policy.losses import ALGORITHMS, settings_of
from hyperdapo.policy.training import Workbench, read_split

RANGES = {
    "learning_rate": (0, 5e-4, 2e-2),
    "temperature_bps": (1, 0.5, 8.0),
    "beta": (1, 0.03, 3.0),
    "entropy_bonus": (2, 0.03, 1.0),
    "advantage_unit_bps": (2, 2.0, 50.0),
}
"""Coordinate of the sequence, and the ends between which it is spread in logarithm."""
DIMENSIONS = 3
AT_THE_END = {"evaluation_states": 10**6, "evaluate_every": 10**6}
"""All held-out states are looked at, after the last update."""
PROFILES, ASSETS, SEEDS = ["sample", "planted"], ["ETH", "BTC"], [0, 1]
"""The first asset with the first seed is the first round, every other pair the second."""
KEPT = 3
"""Trials of each algorithm that come into the second round."""
TRIALS = 8
Settings = dict[str, float]
Rows = list[dict[str, Any]]


def main() -> None:
    """Try, note, put what was best into the parameters."""
    arguments = parse(sys.argv[1:])
    torch.set_num_threads(1)
    rows: Rows = pd.read_csv(arguments.log).to_dict("records") if arguments.resume else []
    first, *then = [(asset, seed) for asset in arguments.assets for seed in SEEDS]
    every = [(algorithm, trial) for trial in range(TRIALS) for algorithm in arguments.algorithms]
    attempt(every, [first], rows, arguments)
    attempt(promising(pd.DataFrame(rows), first), then, rows, arguments)
    if arguments.log == SEARCH:
        put(best_trials(pd.DataFrame(rows)), PARAMS / "base.yaml")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line; what was not searched as the committed log was has to go into another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", default=PROFILES, help="runs whose 04 is computed; gaps are averaged")
    parser.add_argument("--assets", nargs="+", default=ASSETS, help="the first has every trial, the others the best")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS, metavar="NAME")
    parser.add_argument("--log", type=Path, default=SEARCH)
    parser.add_argument("--resume", action="store_true", help="keep what the log has, and try what it lacks")
    arguments = parser.parse_args(words)
    if arguments.log == SEARCH and (arguments.profiles, arguments.assets) != (PROFILES, ASSETS):
        parser.error(f"{SEARCH.name} is the log of {' and '.join(PROFILES)}: name another by --log")
    if arguments.log == SEARCH and arguments.algorithms != list(ALGORITHMS) and not arguments.resume:
        parser.error(f"{SEARCH.name} would lose the other algorithms: add --resume")
    return arguments


def attempt(
    trials: Sequence[tuple[str, int]], trainings: Sequence[tuple[str, int]], rows: Rows, arguments: argparse.Namespace
) -> None:
    """Add the trainings (asset, seed) of each trial (algorithm, number) to the rows, but for those that they have."""
    points = qmc.Sobol(DIMENSIONS, seed=load("sample").seed).random(TRIALS)
    known = {(row["asset"], row["seed"], row["algorithm"], row["trial"]) for row in rows}
    wanted = [(*run, *trial) for run in trainings for trial in trials if (*run, *trial) not in known]
    for asset, seed, algorithm, trial in tqdm(wanted, "trials", file=sys.stderr, mininterval=5):
        benches = {profile: workbench(profile, asset) for profile in arguments.profiles}
        tried, begun = settings_at(points[trial], algorithm), time.process_time()
        closed = {f"{profile}_gap": gap(bench, profile, algorithm, tried, seed) for profile, bench in benches.items()}
        seconds = round(time.process_time() - begun, 1)
        rows.append({"asset": asset, "seed": seed, "algorithm": algorithm, "trial": trial, **tried, **closed})
        rows[-1] |= {"gap_closed": round(float(np.mean(list(closed.values()))), 4), "seconds": seconds}
        write(rows, arguments.log)


def promising(search: pd.DataFrame, first: tuple[str, int]) -> list[tuple[str, int]]:
    """The trials (algorithm, number) that were best in the first round, of this asset and seed."""
    asset, seed = first
    tried = search[(search["asset"] == asset) & (search["seed"] == seed)].dropna(subset="gap_closed")
    best = tried.sort_values("gap_closed", ascending=False, kind="stable").groupby("algorithm", sort=False).head(KEPT)
    return list(zip(best["algorithm"], best["trial"], strict=True))


@lru_cache(len(PROFILES))
def workbench(profile: str, asset: str) -> Workbench:
    """The states of an asset as the base reads them, all of the validation split held out."""
    (training,), (held_out,) = (read_split(load(profile), [asset], split) for split in ("train", "validation"))
    bench = Workbench(load(profile, {"training": AT_THE_END}), asset, training, held_out)
    bench.read()
    _ = bench.reference, bench._untrained
    return bench


def settings_at(point: Sequence[float], algorithm: str) -> Settings:
    """What an algorithm is given at a point of the unit cube, with two digits."""
    known = settings_of(algorithm, load("sample").training)
    return {
        name: float(f"{low * (high / low) ** point[axis]:.2g}")
        for name, (axis, low, high) in RANGES.items()
        if name in known
    }


def gap(bench: Workbench, profile: str, algorithm: str, tried: Settings, seed: int) -> float:
    """The share of the way from best fixed to oracle that one training closes on the validation states.

    NaN where it cannot go on: sampled groups that are all alike teach nothing, and such settings are not chosen.
    """
    trial = copy(bench)
    trial.parameters = load(profile, {"training": {**AT_THE_END, algorithm: tried}})
    with TemporaryDirectory() as folder:
        try:
            trial.train(algorithm, seed, Path(folder), lambda looked: None)
        except TrainingError as ended:
            print(f"{profile} {algorithm} {tried}: {ended}", file=sys.stderr)
            return float("nan")
        last = pd.read_csv(Path(folder) / runs.LOG).iloc[-1]
    room = last["heldout_oracle"] - last["heldout_best_fixed"]
    return round(float((last["heldout_reward"] - last["heldout_best_fixed"]) / room), 4)


def write(rows: Rows, log: Path) -> None:
    """Every training so far."""
    columns = dict.fromkeys(["asset", "seed", "algorithm", "trial", *RANGES, *rows[0]])
    with atomic(log) as temporary:
        pd.DataFrame(rows, columns=list(columns)).to_csv(temporary, index=False)


def put(best: dict[str, Settings], file: Path) -> None:
    """Replace the values of each algorithm where they stand; comments stay."""
    lines, section = file.read_text().splitlines(), ""
    for place, line in enumerate(lines):
        if heading := re.match(r"  (\w+):", line):
            section = heading[1]
        elif (match := re.match(r"    (\w+): (\S+ *)(.*)", line)) and match[1] in best.get(section, {}):
            name, former, comment = match.groups()
            lines[place] = f"    {name}: {best[section][name]:<{len(former)}}{comment}".rstrip()
    with atomic(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
