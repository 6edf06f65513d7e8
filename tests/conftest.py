"""Shared places, and the order of the tests. What uses the real recordings skips where `../shared/data` is absent."""

import gc
import os
from pathlib import Path

import pytest

from smoke import Run, shared

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of a worker: threads that share a core with another's wait by spinning

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDINGS = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Real Hyperliquid recordings, never part of the project."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no recordings at {RECORDINGS}")
    return RECORDINGS


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all workers of pytest-xdist share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def smoke(common: Path) -> Run:
    """A run of the profile `smoke`, all stages and assets."""
    return shared(common / "smoke")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than there are cores: several tests wait, for a cluster, a host or an endpoint."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first, so that none begins when the other workers are done: a worker takes a whole file."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays: statsmodels, which collects garbage at each correction, need not look at it."""
    gc.collect()
    gc.freeze()
