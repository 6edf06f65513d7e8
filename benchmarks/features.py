"""The 15 features on a 1 s grid of synthetic data, against the plain pandas oracle that the tests hold them to."""

import sys
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from hyperdapo.market.features import compute_features, decision_grid
from markets import random_market
from test_features import PARAMETERS, _oracle

TARGET = 10.0
PEER_ROWS = 60

market = random_market(0, seconds=1800)
grid = decision_grid(market, 1.0)[300:]
begun = perf_counter()
compute_features(market, grid, PARAMETERS)
ours = (perf_counter() - begun) / len(grid)
begun = perf_counter()
for instant in grid[:: len(grid) // PEER_ROWS][:PEER_ROWS]:
    _oracle(market, int(instant))
peer = (perf_counter() - begun) / PEER_ROWS
print(f"BENCH features_per_row {ours:.2e} {peer:.2e} {peer / ours:.1f} {TARGET:g}")
