"""Flip one random bit of a file again and again, read it as the next stage does, and count what became of it.

python tests/flips.py --data data --profile smoke --flips 200

works on a copy of what a finished run left. A flip is `noticed` where reading ends in an error that the user is told,
`harmless` where what is read is the same to the bit, and `silent` where it is something else: of these there must be
none. Each reading is that of a new process, which has confirmed nothing yet; `pages alone` says what the checksums of
Parquet's pages find by themselves, as when a disk fails after a file was confirmed.
"""

import argparse
import os
import pickle
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from hyperdapo import files
from hyperdapo.errors import HyperdapoError
from hyperdapo.feed import download
from hyperdapo.feed.slices import Description, SliceFile
from hyperdapo.market import storage
from hyperdapo.params import Parameters, load
from hyperdapo.paths import Paths

Read = Callable[[], Any]


def flips(path: Path, read: Read, times: int, seed: int = 0) -> Counter[str]:
    """Flip a bit of the file at `path` so many times, each time from the whole file; how the readings ended."""
    whole, rng = path.read_bytes(), random.Random(f"{seed} {path.name}")
    expected, ended = _values(read), Counter(noticed=0, harmless=0, silent=0)
    for _ in range(times):
        bit = rng.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            ended["harmless" if _values(read) == expected else "silent"] += 1
        except HyperdapoError:
            ended["noticed"] += 1
    path.write_bytes(whole)
    assert _values(read) == expected
    return ended


def _values(read: Read) -> bytes:
    files._digest.cache_clear()
    storage._index.cache_clear()
    return pickle.dumps(read())


def reader_of(path: Path) -> Read:
    """How a stage reads a derived file."""
    if path.name in storage.TABLES:
        return lambda: storage.read(storage.TABLES[path.name], path.parent)
    if path.suffix == ".json":
        return lambda: files.read_json(path.parent, path.name)
    return lambda: files.read_table(path.parent, path.stem).to_dict("list")


def pages_alone(path: Path) -> Any:
    """A Parquet file by its pages' checksums only."""
    try:
        with files.parquet_file(path) as file:
            return file.read().to_pylist()
    except (MemoryError, UnicodeDecodeError, pa.ArrowException) as error:
        raise HyperdapoError(str(error)) from None


def slice_lines(parameters: Parameters, asset: str, paths: Paths) -> Read:
    """How 02 reads all slices of an asset."""
    return lambda: [piece.read() for piece in download.downloaded(parameters, asset, paths)]


def arrival(path: Path) -> Read:
    """How 01 reads a slice of which nothing is noted yet."""

    def read() -> Any:
        held = Description(0, 60 * 10**9)
        if not held.add(SliceFile(path, 0, 1)):
            raise HyperdapoError("damaged")
        return held.summary()["sha256"]

    return read


def experiment(data: Path, parameters: Parameters, times: int) -> Iterator[tuple[str, Counter[str]]]:
    """Every kind of file of the first asset of a finished run, and how the flips in it ended."""
    paths = Paths(parameters.name, parameters.assets[0])
    slices = [piece.path for piece in download.downloaded(parameters, paths.asset, paths)]
    lines, rng = slice_lines(parameters, paths.asset, paths), random.Random(0)
    chosen = Counter(rng.choices(slices, k=times))
    yield "slices, read by 02", sum((flips(path, lines, count) for path, count in chosen.items()), Counter())
    fresh = sum((flips(path, arrival(path), count) for path, count in chosen.items()), Counter())
    yield "slices, as they arrive in 01", fresh
    yield "manifest.json", flips(paths.data / "manifest.json", lines, times)
    yield "days/DATE.json", flips(next((paths.data / "days").glob("*.json")), lines, times)
    found = [path for path in sorted(data.rglob("*")) if path.is_file() and files.checksum_of(path).is_file()]
    for path in found:
        if path.parent in (paths.data, Paths(parameters.name).data):
            yield path.name, flips(path, reader_of(path), times)
            yield f"checksums/{path.name}.sha256", flips(files.checksum_of(path), reader_of(path), times)
            if path.suffix == ".parquet":
                yield f"{path.name}, pages alone", flips(path, lambda path=path: pages_alone(path), times)


def main() -> int:
    """Exit status: 0 when no flip was silent, those of `pages alone` aside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data of a finished run")
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--flips", type=int, default=200)
    options = parser.parse_args()
    silent = 0
    with tempfile.TemporaryDirectory(prefix="flips_") as folder:
        shutil.copytree(options.data / options.profile, Path(folder) / options.profile)
        os.environ["HYPERDAPO_DATA"] = folder
        print(f"{'file':<42} {'noticed':>8} {'harmless':>8} {'silent':>8}", flush=True)
        for name, ended in experiment(Path(folder), load(options.profile), options.flips):
            print(f"{name:<42} {ended['noticed']:>8} {ended['harmless']:>8} {ended['silent']:>8}", flush=True)
            silent += 0 if name.endswith("alone") else ended["silent"]
    return int(silent > 0)


if __name__ == "__main__":
    sys.exit(main())
