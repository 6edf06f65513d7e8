"""Fits the synthetic exchange to recordings of a real one by simulated moments (McFadden, Econometrica 57, 1989).

    python benchmarks/_fit_world.py RECORDINGS --log FOLDER

`RECORDINGS` holds `ASSET.ndjson.gz`, lines as Tardis replays them. What they say is kept as numbers alone, in
`lib/hyperdapo/market/recorded.yaml`: each moment of `market.stylised` and its sampling error. The volatility is
read off; the other parameters are searched by Optuna (TPE, seeded, from where `params/base.yaml` stands)
so that moments of played hours are near the recorded ones, in units of their errors. What was fitted is printed, to be
put into `params/base.yaml`; the log holds every trial and the moments of the best. About 5 minutes an asset on a core.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import yaml
from tqdm import tqdm

from hyperdapo.errors import ParameterError
from hyperdapo.feed.clean import recorded
from hyperdapo.files import atomic, write_table
from hyperdapo.market import stylised
from hyperdapo.params import Parameters, load
from hyperdapo.sections import SyntheticAsset
from hyperdapo.synthetic.exchange import World
from hyperdapo.times import HOUR_NS, MINUTE_NS

ASSETS = ("BTC", "ETH", "SOL")
SOURCE = "Hyperliquid perpetuals, channels l2Book, bbo and trades, as Tardis recorded them"
HEAD = "# Moments of market/stylised.py and their errors (jackknife over blocks); by benchmarks/_fit_world.py.\n"
BLOCK_S, SEEDS, LEAST_ERROR = 300.0, (11, 12), 0.1
SEARCHED = {
    "signal_s": 2.0,
    "depth_usd": 2.5,
    "depth_behind_usd": 2.0,
    "depth_growth": 1.3,
    "depth_tilt": 2.5,
    "touch_tilt": 1.6,
    "touch_log_sd": 1.3,
    "order_usd": 1.5,
    "order_log_sd": 1.25,
    "orders_per_min": 1.5,
    "flow_tilt": 5.0,
    "impact_bps": 4.0,
    "sniping": 3.0,
    "revision_s": 2.0,
}
"""Parameters and the factor around their present values within which they are searched."""


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--log", type=Path, required=True, help="folder for trials and moments")
    parser.add_argument("--assets", nargs="+", default=ASSETS)
    parser.add_argument("--trials", type=int, default=120)
    arguments = parser.parse_args()
    parameters = load("sample")
    real = measure(arguments.recordings, arguments.assets, parameters)
    for asset in arguments.assets:
        begun = time.process_time()
        best, trials = fit(asset, real[asset], parameters, arguments.trials)
        write_table(trials, arguments.log, f"trials_{asset}")
        table = compare(real[asset], played(asset, best, parameters))
        write_table(table.reset_index(names="moment"), arguments.log, f"moments_{asset}")
        print(f"{table.round(3).to_string()}\n{time.process_time() - begun:.0f} s of CPU")
        print(f"    {asset}: {yaml.safe_dump(best.model_dump(), default_flow_style=True, sort_keys=False, width=1000)}")


def measure(folder: Path, assets: list[str], parameters: Parameters) -> dict[str, pd.DataFrame]:
    """Moments and their errors (columns `value`, `error`) of the recordings; those of all assets are written down."""
    measured, written = {}, {}
    for asset in assets:
        market = recorded(folder / f"{asset}.ndjson.gz", asset, parameters)
        errors = stylised.sampling_errors(market, BLOCK_S)
        measured[asset] = pd.DataFrame({"value": stylised.moments(market), "error": errors})
        first, last = market.top.exchange_ns[[0, -1]]
        rows = {name: [float(f"{number:.4g}") for number in row] for name, *row in measured[asset].itertuples()}
        written[asset] = {
            "from": f"{pd.Timestamp(first):%Y-%m-%dT%H:%M:%SZ}",
            "minutes": round(float(last - first) / MINUTE_NS, 1),
            "blocks": stylised.blocks(market, BLOCK_S),
            "moments": rows,
        }
    if set(assets) == set(ASSETS):
        content = {"source": SOURCE, "block_s": BLOCK_S, "assets": written}
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
        with atomic(stylised.RECORDED) as path:
            path.write_text(HEAD + text, encoding="utf-8")
    return measured


def fit(asset: str, real: pd.DataFrame, parameters: Parameters, trials: int) -> tuple[SyntheticAsset, pd.DataFrame]:
    """The asset's parameters that come nearest to its recording, and every trial."""
    start = parameters.synthetic.assets[asset]
    start = start.model_copy(update={"volatility_bps": float(f"{real.loc['volatility_60s_bps', 'value']:.3g}")})
    ranges = {name: (getattr(start, name) / factor, getattr(start, name) * factor) for name, factor in SEARCHED.items()}

    def distance_of(trial: optuna.Trial) -> float:
        chosen = {name: trial.suggest_float(name, *ends, log=True) for name, ends in ranges.items()}
        bar.update()
        return distance(real, played(asset, within(start, chosen), parameters))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=parameters.seed, multivariate=True))
    study.enqueue_trial({name: getattr(start, name) for name in SEARCHED})
    with tqdm(total=trials, desc=asset, file=sys.stderr, mininterval=5) as bar:
        study.optimize(distance_of, n_trials=trials, catch=ParameterError)
    rows = [trial.params | {"distance": trial.value} for trial in study.trials]
    return within(start, {name: float(f"{value:.3g}") for name, value in study.best_params.items()}), pd.DataFrame(rows)


def within(start: SyntheticAsset, chosen: dict[str, float]) -> SyntheticAsset:
    """A model of these parameters; quotes are not revised more seldom than the signal lasts."""
    return start.model_copy(update=chosen | {"revision_s": min(chosen["revision_s"], chosen["signal_s"])})


def played(asset: str, model: SyntheticAsset, parameters: Parameters) -> pd.Series:
    """Mean moments of an hour of each seed."""
    world, start_ns = World.of(parameters, asset), parameters.source.start_ns
    worlds = [replace(world, model=model, seed=seed) for seed in SEEDS]
    tapes = [each.simulate(start_ns, start_ns + HOUR_NS) for each in worlds]
    return pd.DataFrame([stylised.moments(tape.market()) for tape in tapes]).mean()


def distance(real: pd.DataFrame, synthetic: pd.Series) -> float:
    """Mean squared difference in units of the recording's error, each at most 5 units: no moment decides alone."""
    error = np.maximum(real["error"], LEAST_ERROR * real["value"].abs())
    return float((((synthetic - real["value"]) / error).clip(-5, 5) ** 2).mean())


def compare(real: pd.DataFrame, synthetic: pd.Series) -> pd.DataFrame:
    """Real, its error, synthetic, ratio."""
    return real.assign(synthetic=synthetic, ratio=synthetic / real["value"])


if __name__ == "__main__":
    main()
