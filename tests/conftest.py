"""Shared places. Tests that use the real recordings skip where `../shared/data` is absent."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDINGS = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Real Hyperliquid recordings, never part of the project."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no recordings at {RECORDINGS}")
    return RECORDINGS
