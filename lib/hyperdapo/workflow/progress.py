"""What a run tells while it is at work: which stage began and ended, how many of how many, and how long it may take.

On a terminal one line at the bottom lives, and the others scroll above it; elsewhere every line is a plain one.
"""

import json
import platform
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from hyperdapo.errors import DiskFullError
from hyperdapo.files import atomic
from hyperdapo.paths import data_root
from hyperdapo.workflow.engine import Event

WEIGHTS = {
    "01_download": 15,
    "02_preprocess": 5,
    "03_features": 10,
    "04_preference_pairs": 15,
    "05_train": 340,
    "06_convergence": 100,
    "07_inference": 65,
    "08_backtest": 45,
    "09_significance": 10,
    **{f"{number:02d}_render": 12 for number in range(1, 10)},
}
"""Seconds of each stage and asset, and of its render, in `sample`; a first run scales them by what has ended so far."""

_WIPE = "\r\x1b[K"  # back to the first column, clear the line
_EVERY_S = 30.0  # a plain line
_MORE = 0.1  # of the time that a job took so far, it takes at least
_TELLING = 3  # per cent of a bar, below which its rate is that of its beginning
_FRESH_S = 120.0  # a bar that did not move for longer is not shown
_BAR = re.compile(r"^(?:(.*?): +)?(\d+)%\|.*\| *(\S+?)/(\S+) \[\S+<((?:\d+:)?\d+:\d+|\?),? ?(.*)\]$")


def durations_file(run: str) -> Path:
    """Where the durations of a run's stages on each host are kept."""
    return data_root() / run / "durations.json"


def bar_file(run: str, name: str) -> Path:
    """Where the progress bar of a job is kept while it runs; a notebook's job has the name of its render."""
    return data_root() / run / "progress" / f"{name}.txt"


class Estimates:
    """Seconds of a job, from a former run on this host, or else by `WEIGHTS` and what has ended so far."""

    def __init__(self, run: str) -> None:
        self._file = durations_file(run)
        self._known: dict[str, float] = self._all().get(platform.node(), {})

    def learn(self, label: str, seconds: float) -> None:
        """Note what a job took, for this run and later ones."""
        self._known[label] = round(seconds, 1)
        with suppress(DiskFullError), atomic(self._file) as temporary:
            temporary.write_text(json.dumps(self._all() | {platform.node(): self._known}, indent=1))

    def seconds(self, stage: str, label: str = "") -> float | None:
        """What a job of a stage takes; None where nothing is known yet."""
        if label in self._known:
            return self._known[label]
        same = [seconds for name, seconds in self._known.items() if name.split()[0] == stage]
        if same:
            return fmean(same)
        known = {name: seconds for name, seconds in self._known.items() if name.split()[0] in WEIGHTS}
        if not known or stage not in WEIGHTS:
            return None
        return WEIGHTS[stage] * sum(known.values()) / sum(WEIGHTS[name.split()[0]] for name in known)

    def _all(self) -> dict[str, dict[str, float]]:
        try:
            durations: dict[str, dict[str, float]] = json.loads(self._file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return durations


@dataclass
class Job:
    """One job at work: its stage, what it is called, the name of its bar, and since when (monotonic) it runs."""

    stage: str
    label: str
    name: str
    begun: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


class Progress:
    """Follows the events of a run and prints lines; `total` jobs are to run, `failed` names those that did."""

    def __init__(self, run: str, stages: Mapping[str, str], cores: int) -> None:
        """`stages` maps each rule of the workflow to its stage, `cores` is how many jobs run side by side."""
        self._run, self._stages, self._cores = run, stages, cores
        self._estimates = Estimates(run)
        self._running: dict[str, Job] = {}
        self._waiting: Counter[str] = Counter()
        self._done, self.total = 0, 0
        self.failed: list[str] = []
        self._printed = time.monotonic()

    def __call__(self, event: Event | None) -> None:
        """Take an event of the workflow, or None as time passes."""
        kind = event["event"] if event else ""
        if event and kind == "run_info":
            self._waiting = Counter(
                {rule: count for rule, count in event["stats"].items() if rule in self._stages and count}
            )
            self.total = sum(self._waiting.values())
            if self.total:
                self._say(f"{self._run}: {self.total} to run{self._left()}")
        elif event and kind == "job_info" and event["rule_name"] in self._stages:
            self._start(event)
        elif event and kind in ("job_finished", "job_error"):
            job = self._running.pop(str(event.get("job_id", event.get("jobid"))), None)
            if job:
                self._finish(job, failed=kind == "job_error")
        self._remind()

    def close(self) -> None:
        """Leave the terminal clean."""
        self._wipe()

    def _start(self, event: Event) -> None:
        job = _job(event, self._stages)
        self._running[str(event["jobid"])] = job
        self._waiting[event["rule_name"]] -= 1
        self._say(f"{job.label} started ({self._done} of {self.total} done{self._left()})")

    def _finish(self, job: Job, failed: bool) -> None:
        if failed:
            self.failed.append(job.label)
            self._say(f"{job.label} failed after {_span(job.seconds)}")
            return
        self._done += 1
        self._estimates.learn(job.label, job.seconds)
        self._say(f"{job.label} done in {_span(job.seconds)} ({self._done} of {self.total} done{self._left()})")

    def _say(self, text: str) -> None:
        self._printed = time.monotonic()
        self._wipe()
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def _wipe(self) -> None:
        """Remove the living line."""
        if sys.stdout.isatty():
            sys.stdout.write(_WIPE)
            sys.stdout.flush()

    def _remind(self) -> None:
        """Bring the living line up to date, or print one where the last is old."""
        if not self._running:
            return
        jobs = ", ".join(self._describe(job) for job in self._running.values())
        text = f"{self._done} of {self.total} done{self._left()}; {jobs}"
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
            self._wipe()
            sys.stdout.write(text if len(text) < width else f"{text[: width - 4]}...")
            sys.stdout.flush()
        elif time.monotonic() > self._printed + _EVERY_S:
            self._say(text)

    def _describe(self, job: Job) -> str:
        bar = self._bar(job)
        return f"{job.label} {_span(job.seconds)}" + (f" ({bar[0]})" if bar else "")

    def _bar(self, job: Job) -> tuple[str, float] | None:
        """What the bar of a running notebook says, and the seconds that it takes to be left."""
        file = bar_file(self._run, job.name)
        with suppress(OSError):
            if time.time() - file.stat().st_mtime < _FRESH_S and (match := _BAR.match(file.read_text())):
                label, share, now, total, left, rate = match.groups(default="")
                if now == total:  # what the notebook does next shows no bar
                    return None
                return f"{label} {now}/{total}, {rate.strip()}".strip(" ,"), _seconds(left) * (int(share) >= _TELLING)
        return None

    def _left(self) -> str:
        """`, about 12 min left`, or nothing where nothing is known yet.

        No plan is shorter than all work over all cores, nor than one job of each stage after the other.
        """
        longest, work = defaultdict[str, float](float), 0.0
        for rule, count in self._waiting.items():
            seconds = self._estimates.seconds(self._stages[rule])
            if seconds is None:
                return ""
            work += count * seconds
            longest[self._stages[rule]] = seconds * (count > 0)
        for job in self._running.values():
            seconds, bar = self._estimates.seconds(job.stage, job.label), self._bar(job)
            if seconds is None and bar is None:
                return ""
            left = max((seconds or 0.0) - job.seconds, bar[1] if bar else 0.0, job.seconds * _MORE, 1.0)
            work += left
            longest[job.stage] = max(longest[job.stage], left)
        seconds = max(work / self._cores, sum(longest.values()))
        return f", about {_span(seconds)} left" if seconds else ""


def _job(event: Event, stages: Mapping[str, str]) -> Job:
    stage, label = stages[event["rule_name"]], label_of(event, stages)
    notebooks = [Path(name).stem for name in event.get("output", []) if name.endswith(".ipynb")]
    return Job(stage, label, notebooks[0] if notebooks else label.replace(" ", "_"))


def label_of(event: Event, stages: Mapping[str, str]) -> str:
    """What a job is called: its stage, and its asset where it has one."""
    return " ".join([stages[event["rule_name"]], *event.get("wildcards", {}).values()])


def _seconds(clock: str) -> float:
    """Of `12:34` or `1:02:03`; 0 where it is not known."""
    parts = clock.split(":")
    return float(sum(int(part) * 60**power for power, part in enumerate(reversed(parts)))) if len(parts) > 1 else 0.0


def _span(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
