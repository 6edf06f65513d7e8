"""Fills equal hftbacktest's, order by order, where the models coincide; it lives in an environment of its own."""

import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY
from markets import random_market, recorded

BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture(scope="module")
def parity():
    """The benchmark of that name, where the peer has been installed."""
    if not (BENCHMARKS / ".peers" / "hftbacktest" / "holds").exists():
        pytest.skip("hftbacktest is not installed; `python benchmarks --only parity` installs it")
    sys.path.insert(0, str(BENCHMARKS))
    import parity

    yield parity
    sys.path.remove(str(BENCHMARKS))


def test_every_difference_on_the_recording_has_a_name(parity, recordings: Path) -> None:
    table = parity.compare(recorded(recordings / "hyperliquid" / "2025-09-04" / "ETH.ndjson.gz", "ETH", 4), count=1000)
    assert (table["unexplained"] == 0).all() and (table["equal"] > 0.9 * table["orders"]).all()
    assert (table["filled"] > 300).all() and table["through"].sum() > 0


def test_every_difference_on_a_random_market_has_a_name(parity) -> None:
    table = parity.compare(random_market(seed=4, seconds=1500), count=500)
    assert (table["unexplained"] == 0).all() and table["filled"].sum() > 100
