"""Kill a run again and again at random moments, finish it, and compare every file with an undisturbed run's.

python tests/kill_series.py --assets BTC ETH SOL HYPE --days 3 --kills 10
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from killing import FAULTS, Kill, Place, Run, asked_again, kill_series, served

START = datetime(2025, 8, 1, tzinfo=UTC)


def main() -> int:
    """Exit status: 0 when all that was promised held."""
    options = _parser().parse_args()
    end = START + timedelta(minutes=round(options.days * 1440))
    folder = Path(tempfile.mkdtemp(prefix="kill_series_", dir=options.place))
    print(f"{', '.join(options.assets)}, {options.days:g} days, in {folder}", flush=True)
    with served(folder / "world", options.assets, START.isoformat(), end.isoformat()) as place:
        quiet, killed = Run(folder / "undisturbed", place.settings), Run(folder / "killed", place.settings)
        quiet_s = _timed(quiet)
        place.world.asked.clear()
        print(f"undisturbed: {quiet_s:.0f} s, {len(quiet.results())} files", flush=True)
        with place.misbehaving(**FAULTS):
            done = _print_kills(kill_series(killed, place, options.kills, quiet_s, options.seed))
            print(f"finished after the kills in {_timed(killed):.0f} s; {place.faults.requests} requests in all")
    return int(not _verdict(quiet, killed, done, place))


def _timed(run: Run) -> float:
    begun = time.monotonic()
    run.finish(workflow=True)
    return time.monotonic() - begun


def _print_kills(series: Iterator[Kill]) -> list[Kill]:
    print(
        f"{'kill':>4} {'after':>7} {'whom':>10} {'slices':>7} {'days':>5} {'files':>6} {'left':>5}  stages",
        flush=True,
    )
    done = []
    for number, one in enumerate(series, start=1):
        whom = "everything" if one.everything else "the group"
        counts = f"{one.asked:>7} {len(one.days):>5} {len(one.results):>6} {len(one.leftovers):>5}"
        print(f"{number:>4} {one.after_s:>6.1f}s {whom:>10} {counts}  {', '.join(one.computed) or 'none'}", flush=True)
        done.append(one)
    return done


def _verdict(quiet: Run, killed: Run, done: list[Kill], place: Place) -> bool:
    """Print each file with its digest, and what else was promised; whether all of it held."""
    expected, found = quiet.results(), killed.results()
    for name in sorted(expected | found):
        same = "same" if expected.get(name) == found.get(name) else f"DIFFERS from {expected.get(name)}"
        print(f"  {name:<32} {found.get(name, 'is not there')} {same}")
    promises = {
        "every file is the undisturbed run's": expected == found and bool(found),
        "every day's messages are the undisturbed run's": quiet.day_digests() == killed.day_digests(),
        "no day that was whole was asked for again": not asked_again(done, place.world),
        "nothing unfinished is left": not killed.leftovers(),
        "no file holds the key": not killed.holding(killed.environment["TARDIS_API_KEY"]),
        "runs were killed": bool(done),
    }
    for promise, held in promises.items():
        print(f"{'held' if held else 'BROKEN':>6}: {promise}")
    for path in killed.leftovers():
        print(f"        left: {path}")
    return all(promises.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", nargs="+", default=["BTC", "ETH"])
    parser.add_argument("--days", type=float, default=0.05)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--place", type=Path, help="folder to work in, where it all stays (default: a temporary one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
