"""Timing on one core: for the scripts of this folder and for those that run among a peer's packages alone."""

import os
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

_Result = TypeVar("_Result")


def one_core() -> None:
    """Keep this process, and what it starts, on one core; a system that cannot (macOS) leaves it where it is."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def best_of(run: Callable[[], _Result], times: int = 3) -> tuple[float, _Result]:
    """Seconds of the fastest of so many runs after one that warms up, and what the last of them returned."""
    result, seconds = run(), []
    for _ in range(times):
        begun = perf_counter()
        result = run()
        seconds.append(perf_counter() - begun)
    return min(seconds), result
