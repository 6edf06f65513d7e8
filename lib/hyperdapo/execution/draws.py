"""Random draws that belong to one order: the same whatever other orders stand beside it.

Each is a hash by splitmix64 (Steele, Lea and Flood 2014) of a seed, a named stream and integer keys.
"""

import zlib

import numpy as np
from numpy.typing import NDArray


def uniform(seed: int, stream: str, *keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) uniform on (0, 1): one draw per row of the keys, each (n,)."""
    state = _mixed(np.array([seed, zlib.crc32(stream.encode())], dtype=np.int64).astype(np.uint64))
    state = _mixed(state[:1] ^ state[1:])
    for key in keys:
        state = _mixed(state ^ _mixed(np.asarray(key, dtype=np.int64).astype(np.uint64)))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64; arrays of unsigned integers wrap silently."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
