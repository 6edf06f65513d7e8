"""Runs that are killed at random moments, and a world to run on that notes what it is asked for.

`test_recovery.py` uses both at a small size, `kill_series.py` at any size.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from faults import Faults, serve
from hyperdapo.params import Parameters, load, merge
from hyperdapo.paths import REPOSITORY
from hyperdapo.synthetic.replay_server import Filters, synthetic_market
from smoke import DOWNLOADED, PROFILE

KEY = "TD.a-key-that-no-file-may-hold"
RESULTS = ("book", "bbo", "trades", "features", "cleaning", "split")
FAULTS = {"server_error_every": 3, "truncate_every": 11, "rate_limit_every": 7}

LAST_KILL = 0.72  # of the progress; a little later than the end of 02
_MINUTE_NS = 60_000_000_000
TOLD = ("failures", "progress", "records")  # what a run says of itself, its retries included

Day = tuple[str, str]  # asset, date


class World:
    """Synthetic markets on disk, minute by minute; `asked` lists the day of every slice that was sent."""

    def __init__(self, folder: Path, parameters: Parameters) -> None:
        self.folder, self.asked, self.days = folder, list[Day](), set[Day]()
        for asset in parameters.assets:
            self._keep(parameters, asset)

    def _keep(self, parameters: Parameters, asset: str) -> None:
        market, channels = synthetic_market(parameters, asset), dict.fromkeys(parameters.source.channels)
        (self.folder / asset).mkdir(parents=True)
        for minute_ns in range(parameters.source.start_ns, parameters.source.end_ns, _MINUTE_NS):
            lines = market.lines(channels, minute_ns, minute_ns + _MINUTE_NS)
            (self.folder / asset / str(minute_ns)).write_bytes(zlib.compress(lines, 1))
            self.days.add((asset, _date(minute_ns)))

    def lines(self, filters: Filters | None, from_ns: int, to_ns: int) -> bytes:
        """What the client of this project asks for: all channels of one asset."""
        (asset,) = set().union(*(coins or () for coins in (filters or {}).values()))
        self.asked.append((asset, _date(from_ns)))
        minutes = [self.folder / asset / str(minute_ns) for minute_ns in range(from_ns, to_ns, _MINUTE_NS)]
        return b"".join(zlib.decompress(minute.read_bytes()) for minute in minutes)


@dataclass
class Place:
    """A world that is served: `settings` are the parameters of a run on it, `faults` what the endpoint does wrong."""

    world: World
    settings: dict[str, Any]
    faults: Faults = field(default_factory=Faults)

    @contextmanager
    def misbehaving(self, **every: int) -> Iterator[None]:
        """The endpoint fails every so many requests while the block runs."""
        for name, count in every.items():
            setattr(self.faults, name, count)
        try:
            yield
        finally:
            for name in every:
                setattr(self.faults, name, 0)


@contextmanager
def served(folder: Path, assets: Sequence[str], start: str, end: str) -> Iterator[Place]:
    """Make a world and serve it, to those who have the key, while the block runs."""
    settings = {"assets": list(assets), "source": {"kind": "tardis", "from": start, "to": end}}
    place = Place(World(folder, load(PROFILE, settings)), settings)
    with serve(place.world, faults=place.faults, api_key=KEY) as endpoint:
        place.settings = merge(settings, {"source": {"endpoint": endpoint}})
        yield place


STAGES = """
import json, sys
from hyperdapo import plan, stages
from hyperdapo.errors import HyperdapoError
from hyperdapo.params import load
profile, settings, until, again = sys.argv[1:]
parameters = load(profile, json.loads(settings))
for stage in plan.wanted(until):
    for asset in parameters.assets:
        try:
            stages.compute(stage, parameters, asset, again=stage[:2] == again)
        except HyperdapoError as error:
            sys.exit(f"hyperdapo: {stage} {asset}: {type(error).__name__}: {error}")
"""


class Run:
    """Folders of data and outputs, and stages computed in them, after the words of `prefix`, by a process of their own.

    Where it is the `workflow` that is meant, with its renders, they are made by the command `hyperdapo run`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], key: str = KEY, **places: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data, self.outputs = places.get("data", folder / "data"), folder / "outputs"
        self.prefix: Sequence[str] = places.get("prefix", ())
        self.name = load(PROFILE, dict(settings)).name
        self.settings, self.printed = folder / "settings.yaml", folder / "printed.txt"
        self.settings.write_text(json.dumps(settings))
        where = {"HYPERDAPO_DATA": str(self.data), "HYPERDAPO_OUTPUTS": str(self.outputs), "TARDIS_API_KEY": key}
        self.environment = os.environ | where | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def start(self, until: str, again: str = "", workflow: bool = False) -> subprocess.Popen[bytes]:
        """Bring the stages up to `until` up to date, and compute `again` even if it stands."""
        command = [*self.prefix, sys.executable, "-c", STAGES, PROFILE, self.settings.read_text(), until, again]
        if workflow:
            command = [*self.prefix, sys.executable, "-m", "hyperdapo.cli", "run", "--profile", PROFILE, "--cores", "2"]
            command += ["--params", str(self.settings), "--until", until]
        where: dict[str, Any] = {"cwd": REPOSITORY, "env": self.environment, "start_new_session": True}
        with self.printed.open("wb") as printed:
            return subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, **where)

    def finish(self, until: str = "03", workflow: bool = False) -> str:
        """Run to the end, which must be a good one, and return what was printed."""
        status = self.start(until, workflow=workflow).wait()
        assert status == 0, self.printed.read_text()[-6000:]
        return self.printed.read_text()

    def fail(self, until: str, again: str = "", workflow: bool = False, within_s: float = 150.0) -> str:
        """Run to the end, which must be a bad one and come in time, and return what was printed."""
        process = self.start(until, again, workflow)
        try:
            status = process.wait(within_s)
        except subprocess.TimeoutExpired:
            kill(process, everything=True)
            raise
        assert status == 1, self.printed.read_text()[-6000:]
        return self.printed.read_text()

    def results(self) -> dict[str, str]:
        """SHA-256 of every file that 02 and 03 made, by its path from the profile's folder."""
        return results(self.data / self.name)

    def whole_days(self) -> set[Day]:
        """Days that are marked as downloaded."""
        marks = self.data.glob(f"{self.name}/*/days/[0-9]*.json")
        return {(mark.parent.parent.name, mark.stem) for mark in marks}

    def day_digests(self) -> dict[Day, str]:
        """SHA-256 of the messages of each downloaded day."""
        folder = self.data / self.name
        marks = {day: folder / day[0] / "days" / f"{day[1]}.json" for day in self.whole_days()}
        return {day: json.loads(mark.read_text())["sha256"] for day, mark in marks.items()}

    def computed(self) -> list[str]:
        """Stage and asset of each record of a computation."""
        records = (self.data / self.name).glob("*/computed/[0-9][0-9]_*.json")
        return sorted(f"{path.stem[:2]} {path.parents[1].name}" for path in records)

    def progress(self, days: set[Day]) -> float:
        """Share of the work that is done, up to 03: of the days, then of 02 and 03."""
        assets, computed = {asset for asset, _ in days}, self.computed()
        stages = [sum(name[:2] == stage for name in computed) / len(assets) for stage in ("02", "03")]
        return (len(self.whole_days()) / len(days) + sum(stages)) / 3

    def leftovers(self) -> list[str]:
        """Files that no finished run should leave: unconfirmed ones, and hidden ones, whose names no glob shows."""
        files = [path for root in (self.data, self.outputs) for path in root.rglob("*")]
        files = [path for path in files if path.name != ".lock"]
        ours = [path for path in files if ".snakemake" not in path.parts and path.parent != self.data]
        return sorted(str(path) for path in ours if "unconfirmed" in path.name or path.name.startswith("."))

    def holding(self, word: str) -> list[str]:
        """Files of data and outputs, and what was printed, that hold `word`."""
        files = [path for root in (self.data, self.outputs) for path in root.rglob("*") if path.is_file()]
        files.append(self.printed)
        return [str(path) for path in files if word.encode() in path.read_bytes()]


def results(root: Path) -> dict[str, str]:
    """SHA-256 of every file that 02 and 03 made in the folder of a run, by its path from there."""
    found = {path.relative_to(root): path for path in root.glob("*/**/*") if path.is_file()}
    kept = {name for name in found if name.parts[0] not in TOLD and not {*DOWNLOADED, "computed"} & set(name.parts)}
    return {name.as_posix(): hashlib.sha256(found[name].read_bytes()).hexdigest() for name in sorted(kept)}


@dataclass
class Kill:
    """What stood when a run was killed: `asked` slices had been asked for, `days` were whole, `results` were there."""

    after_s: float
    everything: bool
    asked: int
    days: set[Day]
    computed: list[str]
    results: dict[str, str]
    leftovers: list[str]


def kill(process: subprocess.Popen[bytes], everything: bool) -> None:
    """SIGKILL the run's group, as one who closes it, or `everything`, kernels too, as a power cut would.

    Left alone, the workflow notices that its run is gone and ends all that it started.
    """
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for member in family if everything else []:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def kill_series(run: Run, place: Place, kills: int, undisturbed_s: float, seed: int) -> Iterator[Kill]:
    """Start the run again and again, and kill it; the series ends early where the run finishes before a kill.

    Each kill waits for its share of the progress to be made, and then for a random time: so the kills are spread over
    the stages, however fast the machine is.
    """
    rng = random.Random(seed)
    for number in range(kills):
        share, delay_s = LAST_KILL * (number + rng.random()) / kills, rng.uniform(0.0, 0.2) * undisturbed_s
        everything, begun = rng.random() < 0.5, time.monotonic()
        process = run.start("03")
        while run.progress(place.world.days) < share and process.poll() is None:
            time.sleep(0.1)
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay_s)
        if process.poll() is not None:
            return
        kill(process, everything)
        stood = (len(place.world.asked), run.whole_days(), run.computed(), run.results(), run.leftovers())
        yield Kill(time.monotonic() - begun, everything, *stood)


def asked_again(done: Sequence[Kill], world: World) -> list[Day]:
    """Days that were whole when a run was killed, and yet were asked for later."""
    return [day for one in done for day in world.asked[one.asked :] if day in one.days]


def _date(ns: int) -> str:
    return datetime.fromtimestamp(ns // 10**9, UTC).date().isoformat()
