"""What runs on the rented host itself: starts one stage detached, tells how it goes, follows its log, ends it.

`remote` puts this file there and calls it by the host's own Python, before there is any environment: so it is one
file and knows the standard library only. It answers in JSON. Its folder holds one run at a time:

    request.json   what was asked for        overrides.yaml  the parameters laid on top of the profile
    lock           held while a run lives    RUN.log         all that the run printed
    exit.json      how the last run ended    sent            the files of the repository that were sent

Usage: python3 host.py state | start | follow RUN OFFSET | stop | tidy
"""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORK = HERE.parent
TAIL = 20
"""Lines of the log that the state shows."""

_GRACE_S = 10.0  # between the request to end and the end
_POLL_S = 0.3
_MARK = "HYPERDAPO_RUN"  # in the environment of every process of a run, whatever its group or parent
_GPU = ("index", "name", "utilization.gpu", "memory.used", "memory.total")


def state() -> dict[str, Any]:
    """`state` (none, running, done, failed, stopped), `request`, `code`, `step`, `tail`, `log`, `gpus`."""
    request, ended = _read("request.json"), _read("exit.json")
    if _running():
        word = "running"
    elif not request:
        word = "none"
    elif ended.get("stopped"):
        word = "stopped"
    else:
        word = "done" if ended.get("code") == 0 else "failed"
    log = HERE / f"{request.get('run')}.log"
    return {"state": word, "request": request, "log": str(log), "tail": _tail(log), "gpus": _gpus(), **ended}


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Start a run that outlives the connection; where one lives already, only say so (`started` is false)."""
    with (HERE / "lock").open("a") as lock:
        if not _take(lock.fileno()):
            return state() | {"started": False}
        _end(_read("request.json").get("run", ""))  # what a run left whose head was killed
        (HERE / "exit.json").unlink(missing_ok=True)
        _write("overrides.yaml", request["overrides"])
        _write("request.json", request)
        with (HERE / f"{request['run']}.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, str(HERE / "host.py"), "supervise"],
                cwd=WORK,
                env=os.environ | {_MARK: request["run"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock.fileno()],  # the lock lives as long as the run
            )
    return state() | {"started": True}


def supervise() -> None:
    """Build the environment, run the stage, and note how that ended."""
    request = _read("request.json")
    places = {"HYPERDAPO_DATA": str(WORK / "data"), "HYPERDAPO_OUTPUTS": str(WORK / "outputs")}
    places |= {"PYTHONPATH": str(WORK / "lib"), "PATH": f"{WORK / '.venv' / 'bin'}:{os.environ['PATH']}"}
    places |= {"HYPERDAPO_COMMIT": request["commit"], "PYTHONUNBUFFERED": "1"}
    stage = [".venv/bin/python", "-m", "hyperdapo.cli", "run", "--profile", request["profile"]]
    stage += ["--only", request["stage"], "--asset", *request["assets"], "--params", str(HERE / "overrides.yaml")]
    steps = {"make setup": (["make", "setup", f"PYTHON={sys.executable}"], {}), request["stage"]: (stage, places)}
    for step, (command, environment) in steps.items():
        print(f"[{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}] {step}", flush=True)
        code = subprocess.run(command, cwd=WORK, env=os.environ | environment, check=False).returncode
        if code:
            break
    _write("exit.json", {"code": code, "step": step, "ended": time.time()})


def follow(run: str, offset: int) -> None:
    """Copy the log of a run to stdout from a byte on, until the run has ended or whoever listens is gone."""
    out = sys.stdout.buffer
    with (HERE / f"{run}.log").open("rb") as log:
        log.seek(offset)
        while True:
            lives = _running() and _read("request.json").get("run") == run  # asked before the last read
            while chunk := log.read(1 << 16):
                out.write(chunk)
                out.flush()
            if not lives:
                return
            if select.select([sys.stdin], [], [], _POLL_S)[0] and not os.read(sys.stdin.fileno(), 1):
                return


def stop() -> dict[str, Any]:
    """End all processes of the run, in its group or out of it, and say what stood then."""
    lived = _running()
    _end(_read("request.json").get("run", ""))
    if lived:
        _write("exit.json", {"stopped": True, "code": -signal.SIGTERM, "ended": time.time()})
    return state()


def tidy(sent: list[str]) -> dict[str, Any]:
    """Remove files of the repository that were sent before and are not sent any more."""
    for name in set(_read("sent").get("files", [])) - set(sent):
        (WORK / name).unlink(missing_ok=True)
    _write("sent", {"files": sent})
    return {"files": len(sent)}


def _take(lock: int) -> bool:
    """Take the lock; a look at it by someone else holds it for a moment only."""
    for _ in range(10):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _running() -> bool:
    with (HERE / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _end(run: str) -> None:
    """SIGTERM to every process of a run, SIGKILL to those that are still there after a while."""
    begun = time.monotonic()
    while run and (family := _family(run)) and time.monotonic() < begun + 3 * _GRACE_S:
        number = signal.SIGTERM if time.monotonic() < begun + _GRACE_S else signal.SIGKILL
        for process in family:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        time.sleep(_POLL_S)


def _family(run: str) -> list[int]:
    """Processes that carry the mark of a run: Jupyter's kernels have a session of their own, so no group holds all."""
    mark, family = f"{_MARK}={run}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                family.append(int(environment.parent.name))
    return family


def _gpus() -> list[dict[str, str]]:
    """Use of each NVIDIA GPU, empty without one."""
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU)}", "--format=csv,noheader"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(_GPU, line.split(", "), strict=False)) for line in listing.splitlines()]


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - (1 << 14)))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line.rpartition("\r")[2] for line in text.rstrip("\n").split("\n")][-TAIL:]


def _read(name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((HERE / name).read_text())
    except FileNotFoundError:
        return {}
    return content


def _write(name: str, value: dict[str, Any]) -> None:
    temporary = HERE / f".{name}.{os.getpid()}"
    temporary.write_text(json.dumps(value))
    os.replace(temporary, HERE / name)


def main(arguments: list[str]) -> None:
    """Do what the first argument names; what it takes beside the arguments comes as JSON on stdin."""
    command, *rest = arguments
    if command == "supervise":
        supervise()
    elif command == "follow":
        follow(rest[0], int(rest[1]))
    else:
        answers: dict[str, Callable[..., dict[str, Any]]] = {"state": state, "stop": stop, "start": start, "tidy": tidy}
        given = [json.load(sys.stdin)] if command in ("start", "tidy") else []
        print(json.dumps(answers[command](*given)))


if __name__ == "__main__":
    main(sys.argv[1:])
