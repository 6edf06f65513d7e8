"""The peers of the benchmarks do the same work as ours, and a missed target or a script that fails is told."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import REPOSITORY
from hyperdapo.market.features import NAMES, compute_features, decision_grid
from hyperdapo.params import load
from hyperdapo.policy import models
from markets import random_market


@pytest.mark.slow
@pytest.mark.parametrize("way", ["by_apply", "by_pairs"])
def test_the_pandas_peer_computes_the_same_features(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import _pandas_features as peer

    market = random_market(3)
    grid = decision_grid(market, 1.0)
    ours = compute_features(market, grid, load("smoke").features)[list(NAMES)]
    theirs = peer.pandas_features(market, grid, getattr(peer, way))[list(NAMES)]
    np.testing.assert_allclose(theirs[300:], ours[300:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ('print("BENCH fine 1.0 8.0 8.0 8")', 0, ""),
        ('print("BENCH slow 1.0 7.0 7.0 8")', 1, "slow: target missed"),
        ('raise SystemExit("the peer cannot be installed")', 1, "the peer cannot be installed"),
        ('print("nothing was timed")', 1, ""),
    ],
)
def test_a_missed_target_fails(script: str, status: int, said: str, tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "benchmarks" / "__main__.py", tmp_path)
    (tmp_path / "some.py").write_text(script)
    (tmp_path / "_helper.py").write_text('raise SystemExit("a helper is not run by itself")')
    done = subprocess.run([sys.executable, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == status and done.stderr.strip() == said


def test_the_ways_of_the_gpu_benchmark_run_on_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no GPU is: the same code, NF4 included, on a Qwen2 of a few thousand weights."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import gpu_memory

    monkeypatch.setattr(gpu_memory, "TOKENS", 48)
    monkeypatch.setattr(gpu_memory, "STEPS", 1)
    small = models.tiny_model(models.tiny_tokenizer()).config
    found = gpu_memory.compare(small, "cpu")
    assert len(found) == 5 and all(speed > 0 for _, speed in found.values())
    packed = gpu_memory.build(small, True, "cpu").model.layers[0].mlp.up_proj.weight
    assert packed.dtype == torch.uint8 and packed.numel() == 64 * 128 // 2
