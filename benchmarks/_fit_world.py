"""Fits the synthetic exchange to recordings of a real one by simulated moments (McFadden, Econometrica 57, 1989).

    python benchmarks/_fit_world.py RECORDINGS --log FOLDER

`RECORDINGS` holds `ASSET.ndjson.gz`, lines as Tardis replays them. What they say is kept as numbers alone, in
`lib/hyperdapo/market/recorded.yaml`: each moment of `market.stylised` and its sampling error. The parameters are then
moved, from where `params/base.yaml` stands, until the moments of played hours are far from the bounds of
`stylised.compare`: nonlinear least squares, for the draws of the exchange are the same whatever the parameters are, so
that moments change with these more than by chance. What comes out is written into `params/base.yaml`; the log holds
every trial and the moments of the best. About two minutes an asset on a core.
"""

import argparse
import re
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.optimize import lsq_linear
from tqdm import tqdm

from hyperdapo.errors import ParameterError
from hyperdapo.feed.clean import recorded
from hyperdapo.files import atomic, write_table
from hyperdapo.market import stylised
from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters, load
from hyperdapo.paths import PARAMS
from hyperdapo.sections import SyntheticAsset
from hyperdapo.synthetic.exchange import World
from hyperdapo.times import HOUR_NS, MINUTE_NS

ASSETS = ("BTC", "ETH", "SOL")
SOURCE = "Hyperliquid perpetuals, channels l2Book, bbo and trades, as Tardis recorded them"
HEAD = "# Moments of market/stylised.py and their errors (jackknife over blocks); by benchmarks/_fit_world.py.\n"
BLOCK_S, SEEDS, HOURS = 300.0, (1, 2, 3, 4, 5, 6), 3.0
STEP, LONGEST, ROUNDS = 0.1, 0.3, 2  # of a logarithm: for its derivative, and at most in a round; rounds
SEARCHED = {
    "volatility_bps": 1.3,
    "signal_s": 2.0,
    "revision_s": 2.0,
    "depth_usd": 2.5,
    "depth_behind_usd": 2.0,
    "depth_growth": 1.3,
    "depth_tilt": 2.5,
    "touch_tilt": 1.6,
    "touch_log_sd": 1.4,
    "orders_per_min": 1.5,
    "branching": 3.0,
    "order_usd": 1.5,
    "order_log_sd": 1.25,
    "splitting": 3.0,
    "impact_bps": 4.0,
    "sniping": 2.0,
}
"""Parameters and the factor around their present values within which they are searched."""
FOLLOWS = {"HYPE": "SOL"}  # there is no recording: another asset's parameters, but for these
OWN = ("price_usd", "volatility_bps", "spread_ticks", "depth_usd", "depth_behind_usd", "orders_per_min", "impact_bps")


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--log", type=Path, required=True, help="folder for trials and moments")
    parser.add_argument("--assets", nargs="+", default=ASSETS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    measure(arguments.recordings, arguments.assets, load("sample"))
    for asset in arguments.assets:
        begun = time.process_time()
        fit(asset, load("sample"), arguments.rounds, arguments.log)
        parameters = load("sample")
        best = parameters.synthetic.assets[asset]
        table = stylised.compare(played(asset, best, parameters).mean(), asset)
        write_table(table, arguments.log, f"moments_{asset}")
        print(f"{table.round(3).to_string()}\n{time.process_time() - begun:.0f} s of CPU")
        for other in (name for name, model in FOLLOWS.items() if model == asset):
            own = parameters.synthetic.assets[other].model_dump(include=set(OWN))
            write(other, best.model_copy(update=own))


def measure(folder: Path, assets: list[str], parameters: Parameters) -> None:
    """Moments and their errors of the recordings; those of all assets are written down."""
    written = {}
    for asset in assets:
        market = recorded(folder / f"{asset}.ndjson.gz", asset, parameters)
        moments, errors = stylised.moments(market), stylised.sampling_errors(market, BLOCK_S)
        first, last = market.top.exchange_ns[[0, -1]]
        rows = zip(moments, errors.reindex(moments.index), strict=True)
        written[asset] = {
            "from": f"{pd.Timestamp(first):%Y-%m-%dT%H:%M:%SZ}",
            "minutes": round(float(last - first) / MINUTE_NS, 1),
            "blocks": stylised.blocks(market, BLOCK_S),
            "moments": {
                name: [float(f"{number:.4g}") for number in row] for name, row in zip(moments.index, rows, strict=True)
            },
        }
    if set(assets) == set(ASSETS):
        content = {"source": SOURCE, "block_s": BLOCK_S, "assets": written}
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
        with atomic(stylised.RECORDED) as path:
            path.write_text(HEAD + text, encoding="utf-8")


def fit(asset: str, parameters: Parameters, rounds: int, log: Path) -> None:
    """Move the asset's parameters nearer to its recording, round by round (Gauss and Newton); what is best is written.

    Of a step as long as it seems best, but for `LONGEST` in each logarithm, and its half the better one is taken, and
    none that is worse than where it begins.
    """
    start, trials = parameters.synthetic.assets[asset], []
    logs = np.log([getattr(start, name) for name in SEARCHED])
    room, bar = np.log(list(SEARCHED.values())), tqdm(total=rounds * (len(logs) + 2) + 1, desc=asset, mininterval=5)

    def misses(moved: Floats) -> Floats:
        model = with_searched(start, logs + moved)
        missed = np.concatenate([distances(each, asset) for _, each in played(asset, model, parameters).iterrows()])
        trials.append(model.model_dump(include=set(SEARCHED)) | {"distance": float(np.mean(missed**2))})
        bar.update()
        return missed

    best, here = 0 * logs, misses(0 * logs)
    for _ in range(rounds):
        steps = np.diag(np.where(best + STEP > room, -STEP, STEP))
        slopes = np.stack([(misses(best + step) - here) / step.sum() for step in steps], axis=1)
        ends = np.maximum(-room - best, -LONGEST), np.minimum(room - best, LONGEST)
        step = lsq_linear(slopes, -here, ends).x
        for moved in (best + step, best + step / 2):
            if (missed := misses(moved)) @ missed < here @ here:
                best, here = moved, missed
        write(asset, with_searched(start, logs + best))
        write_table(pd.DataFrame(trials), log, f"trials_{asset}")


def with_searched(start: SyntheticAsset, logs: Floats) -> SyntheticAsset:
    """With these logarithms of what is searched, three digits each; quotes are revised while the signal lasts."""
    chosen = {name: float(f"{np.exp(log):.3g}") for name, log in zip(SEARCHED, logs, strict=True)}
    return start.model_copy(update=chosen | {"revision_s": min(chosen["revision_s"], chosen["signal_s"])})


def played(asset: str, model: SyntheticAsset, parameters: Parameters) -> pd.DataFrame:
    """Moments of some hours, a row for each of `SEEDS`."""
    world, start_ns = World.of(parameters, asset), parameters.source.start_ns
    worlds = [replace(world, model=model, seed=seed) for seed in SEEDS]
    tapes = [each.simulate(start_ns, start_ns + round(HOURS * HOUR_NS)) for each in worlds]
    return pd.DataFrame([stylised.moments(tape.market()) for tape in tapes])


def distances(moments: pd.Series, asset: str) -> Floats:
    """Of each moment from the recorded one, 1 at its bound, times its amount: the farthest weigh most, up to 2."""
    table = stylised.compare(moments, asset)
    off = table["measured"] - table["real"]
    room = np.where(off > 0, table["high"] - table["real"], table["real"] - table["low"])
    return np.asarray((off / room).clip(-2, 2) * (off / room).abs().clip(0, 2))


def write(asset: str, model: SyntheticAsset) -> None:
    """Put an asset's parameters into `params/base.yaml`, whose comments stay."""
    values = ", ".join(f"{name}:~{value:.12g}" for name, value in model.model_dump().items())
    block = textwrap.fill(f"{asset}:~{{{values}}}", 130, initial_indent=" " * 4, subsequent_indent=" " * 10)
    path = PARAMS / "base.yaml"
    text, count = re.subn(
        rf"    {asset}: \{{price_usd[^}}]*\}}", block.replace("~", " "), path.read_text(encoding="utf-8")
    )
    if count != 1:
        raise ParameterError(f"params/base.yaml names {asset} {count} times under synthetic.assets; name it once")
    with atomic(path) as new:
        new.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
