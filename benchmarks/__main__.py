"""Run every script of this folder (or `--only a,b`) in an interpreter of its own, and fail where a target is missed.

A script prints one line `BENCH name ours peer ratio target` per comparison: seconds of ours, seconds of the peer in
the same run, how many times faster ours is, and the least ratio that we promise.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Exit status: 0 when every target is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of scripts, separated by commas")
    wanted = [name for name in parser.parse_args().only.split(",") if name]
    scripts = {path.stem: path for path in sorted(HERE.glob("*.py")) if not path.stem.startswith("_")}
    if unknown := set(wanted) - set(scripts):
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(scripts)}", file=sys.stderr)
        return 2
    return max([_passes(scripts[name]) for name in wanted or scripts], default=0)


def _passes(script: Path) -> int:
    result = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=False)
    print(result.stdout, end="", flush=True)
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("BENCH ")]
    missed = [line[1] for line in lines if float(line[4]) < float(line[5])]
    for name in missed:
        print(f"{name}: target missed", file=sys.stderr)
    return int(bool(missed) or result.returncode != 0 or not lines)


if __name__ == "__main__":
    sys.exit(main())
