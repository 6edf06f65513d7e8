"""How far trained numbers lie apart between instruction sets and thread counts, and between seeds: for tolerances.yaml.

All stages of one asset run on each setting, in data folders of their own. `python benchmarks/spread.py smoke BTC`
names the profile and the asset (by default `sample BTC`: an hour or more on two cores). Its one BENCH line holds the
greatest spread between machines against the bounds; the ratio is that of the quantity nearest to its bound.
"""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from hyperdapo.evidence.contents import Tolerances

SETTINGS: dict[str, dict[str, str]] = {
    "default, 1 thread": {},
    "default, 2 threads": {"OMP_NUM_THREADS": "2"},
    "plain": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
}
WORDS = ["algorithm", "policy", "seed", "look"]


def trained(profile: str, asset: str, setting: dict[str, str], folder: Path) -> pd.DataFrame:
    """Numbers of the trained tables of one setting: `quantity, seed, row, value`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HYPERDAPO_DATA": str(folder / "data")}
    environment |= {"HYPERDAPO_OUTPUTS": str(folder / "outputs")} | setting
    command = [sys.executable, "-m", "hyperdapo.cli", "run", "--profile", profile, "--asset", asset]
    subprocess.run([*command, "--cores", "1"], env=environment, check=True, stdout=subprocess.DEVNULL)
    tables = folder / "outputs" / profile / "tables"
    frames = []
    for name in (f"training_{asset}", "convergence", f"decisions_{asset}", "learning_gap"):
        table = pd.read_csv(tables / f"{name}.csv")
        words = [word for word in WORDS if word in table]
        long = table.drop(columns=["asset"], errors="ignore").melt(id_vars=words, var_name="quantity")
        long["row"] = long[[word for word in words if word != "seed"]].agg(" ".join, axis=1)
        frames.append(long[["quantity", "seed", "row", "value"]])
    return pd.concat(frames, ignore_index=True)


def greatest(table: pd.DataFrame, by: list[str]) -> pd.Series:
    """Greatest difference of each quantity within groups of rows that would be equal without rounding (or seeds)."""
    groups = table.groupby(["quantity", *by])["value"]
    return (groups.max() - groups.min()).groupby("quantity").max()


def main() -> None:
    profile, asset = sys.argv[1:3] if len(sys.argv) > 2 else ("sample", "BTC")
    runs = []
    with TemporaryDirectory() as folder:
        for place, (name, setting) in enumerate(SETTINGS.items()):
            print(f"training on: {name}", flush=True)
            runs.append(trained(profile, asset, setting, Path(folder) / str(place)).assign(setting=name))
    table = pd.concat(runs, ignore_index=True)
    spread = pd.DataFrame({"machines": greatest(table, ["row", "seed"]), "seeds": greatest(table, ["row", "setting"])})
    tolerances = Tolerances()
    spread["bound"] = [tolerances.bound("trained", name).absolute for name in spread.index]
    print(spread.to_string())
    for one, other in pairwise(SETTINGS):
        pair = table[table["setting"].isin([one, other])]
        print(f"{one} against {other}: {greatest(pair, ['row', 'seed']).max():.3g} at most")
    measured, bound = spread["machines"].fillna(0.0), spread["bound"]
    ratio = (bound / measured.where(measured > 0)).min()
    ratio = ratio if pd.notna(ratio) else 1.0
    print(f"BENCH spread {measured.max():.4g} {bound.max():.4g} {ratio:.3f} 1.0")


if __name__ == "__main__":
    main()
