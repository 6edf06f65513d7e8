"""A host that `ssh` reaches: commands and files by the system's own ssh and rsync, their failures in one line."""

import filecmp
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar

from hyperdapo import plan
from hyperdapo.errors import HostError, HostUnreachableError, ParameterError
from hyperdapo.evidence.provenance import record_path
from hyperdapo.files import atomic_folder, checksum_of, full_disk, own_ending, writing_into
from hyperdapo.paths import REPOSITORY, Paths, data_root, outputs_root
from hyperdapo.stages import record

PYTHONS = ("python3", "python3.13", "python3.12", "python3.11")
PATIENCE_S = 3600.0
"""How long a host may be silent, in all, before a command gives up on it; what runs there runs on."""

_PAUSES_S = (1.0, 60.0)  # the first pause before a new try, and the longest; each is twice the one before
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=10", "ServerAliveCountMax=3")
_ACCEPT = ("StrictHostKeyChecking=accept-new", "LogLevel=ERROR")
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)", re.I)
_FILE_ERROR = 11  # of rsync, whose words may be lost with the connection
_DROPPED = {10, 12, 30, 35, 255}  # exit codes of rsync, and of ssh, when the connection is lost
_REFUSALS = {
    "Permission denied (": "refuses your key: add the public key to ~/.ssh/authorized_keys there, or name the right "
    "one by IdentityFile in ~/.ssh/config",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "has another host key than before: if you rented a new machine at this "
    "address, forget the old one by ssh-keygen -R",
    "Host key verification failed": "has a host key that ssh does not accept: connect once by ssh to see why",
    "Bad configuration option": "cannot be reached with this ssh configuration",
}
_FULL = ("No space left on device", "Disk quota exceeded", "Read-only file", "Permission denied", "cannot create")
_PROBE = """
for tool in make rsync; do command -v $tool > /dev/null || echo lacks $tool; done
for name in {pythons}; do
    $name -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null \
        && echo python $name && break
done
mkdir -p {folder}/.remote && cat > {folder}/.remote/.host.py && mv {folder}/.remote/.host.py {folder}/.remote/host.py
"""

Answer = TypeVar("Answer")
Given = ParamSpec("Given")


def environment() -> dict[str, str]:
    """This process's environment without what looks like a secret, so that no ssh option can send it."""
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name)}


def secrets() -> dict[str, str]:
    """Names and values of the secrets in this process's environment (values of eight characters and more)."""
    return {name: value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8}


def say(text: str) -> None:
    """A line for the user, beside the log that goes to stdout."""
    print(f"hyperdapo: {text}", file=sys.stderr, flush=True)


@dataclass
class Host:
    """A host, the folder there (from the home folder on, or absolute), and how `ssh` is called."""

    name: str
    folder: str = "hyperdapo"
    port: int | None = None
    ssh: str = "ssh"
    python: str = ""
    heard: float = 0.0
    """When it last answered, on the monotonic clock."""

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith("-"):
            raise ParameterError(f"{self.name!r} is no host: give user@host, or a name of ~/.ssh/config")

    @property
    def shell(self) -> list[str]:
        """The ssh command, without the host."""
        options = [part for option in (*_OPTIONS, *_ACCEPT) for part in ("-o", option)]
        return [*shlex.split(self.ssh), *options, *(["-p", str(self.port)] if self.port else [])]

    def connect(self) -> None:
        """First contact: is it there, has it what it needs, and put `host.py` there.

        Raises
        ------
        HostUnreachableError
            If nothing answers.
        HostError
            If the key is refused, a tool or Python is missing there, the disk is full, or ssh or rsync is missing here.
        """
        script = _PROBE.format(pythons=" ".join(PYTHONS), folder=shlex.quote(self.folder))
        self._call(["rsync", "--version"])
        answer = self.run(f"sh -c {shlex.quote(script)}", resources.files(__package__).joinpath("host.py").read_bytes())
        words = [line.split() for line in answer.decode().splitlines()]
        lacking = [word[1] for word in words if word[0] == "lacks"]
        pythons = [word[1] for word in words if word[0] == "python"]
        lacking += [] if pythons else ["Python 3.11, 3.12 or 3.13 with venv"]
        if lacking:
            fix = "apt-get install -y make rsync python3.11-venv, or an image that has them"
            raise HostError(f"{self.name} has no {', no '.join(lacking)}: install there ({fix})")
        self.python = pythons[0]

    def run(self, command: str, given: bytes = b"") -> bytes:
        """What a shell command prints there; `given` is its stdin.

        Raises
        ------
        HostUnreachableError
            If the connection fails.
        HostError
            For what else goes wrong.
        """
        return self._call([*self.shell, "--", self.name, command], given)

    def program(self, *arguments: str) -> str:
        """The shell command that calls `host.py` there."""
        return shlex.join([self.python, f"{self.folder}/.remote/host.py", *arguments])

    def ask(self, *arguments: str, given: Mapping[str, Any] | list[str] | None = None) -> dict[str, Any]:
        """The answer of `host.py`. Raises as `run`."""
        printed = self.run(self.program(*arguments), json.dumps(given).encode())
        answer: dict[str, Any] = json.loads(printed.decode().splitlines()[-1])
        return answer

    def stream(self, *arguments: str) -> Iterator[bytes]:
        """What `host.py` prints, as it comes; raises as `run` when it does not end well."""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [*self.shell, "--", self.name, self.program(*arguments)]
        with subprocess.Popen(command, env=environment(), **pipes) as process:
            assert process.stdout and process.stderr
            try:
                while chunk := os.read(process.stdout.fileno(), 1 << 16):
                    self.heard = time.monotonic()
                    yield chunk
                self._check(process.wait(), process.stderr.read())
            finally:
                process.kill()

    def send(self, root: Path, names: list[str], there: str) -> None:
        """Bring files of the folder `root` into a folder there, modification times kept. Raises as `run`."""
        self._rsync(f"{root}/", self._place(there), "--partial-dir=.rsync-partial", names=names, shown=True)

    def changed(self, root: Path, names: list[str], there: str) -> list[str]:
        """Those of the files of `root` that are not the same in the folder there. Raises as `run`."""
        options = ("--dry-run", "--out-format=%i %n")
        lines = self._rsync(f"{root}/", self._place(there), *options, names=names).decode().splitlines()
        return [line.split(" ", 1)[1] for line in lines if line.startswith("<f")]

    def fetch(self, there: str, here: Path, *options: str, names: list[str] | None = None) -> None:
        """Bring a folder there, or the files of it that are named and there, into one here, each by one move.

        Raises
        ------
        DiskFullError
            If the disk here takes no more. Else as `run`.
        """
        if self.run(f"test -d {shlex.quote(f'{self.folder}/{there}')} && echo there || true"):
            here.mkdir(parents=True, exist_ok=True)
            wanted = [*options, "--partial-dir=.rsync-partial", "--ignore-missing-args"]
            self._rsync(self._place(there), f"{here}/", *wanted, names=names, shown=True, into=here)

    def _place(self, there: str) -> str:
        return f"{self.name}:{self.folder}/{there}/"

    def _rsync(
        self,
        source: str,
        target: str,
        *options: str,
        names: list[str] | None = None,
        shown: bool = False,
        into: Path | None = None,
    ) -> bytes:
        listed = ["--files-from=-", "--from0"] if names is not None else []
        shown = shown and sys.stdout.isatty()
        command = ["rsync", "-rlpt", "--protect-args", "--compress", "-e", shlex.join(self.shell), *listed, *options]
        command += ["--info=progress2"] if shown else []
        return self._call([*command, "--", source, target], "\0".join(names or []).encode(), shown, into)

    def patiently(self, action: Callable[Given, Answer], *given: Given.args, **named: Given.kwargs) -> Answer:
        """Do something that may be done again; while the host does not answer, wait longer and longer, and try again.

        Raises
        ------
        HostUnreachableError
            If it stays silent for `PATIENCE_S`.
        """
        pause, silent_since = _PAUSES_S[0], time.monotonic()
        while True:
            begun = time.monotonic()
            try:
                return action(*given, **named)
            except HostUnreachableError as error:
                now = time.monotonic()
                if self.heard > begun or now - begun > _PAUSES_S[1]:  # it answered until just now
                    pause, silent_since = _PAUSES_S[0], now
                if now - silent_since > PATIENCE_S:
                    raise
                say(f"{error}; again in {pause:.0f} s (what runs there runs on)")
            time.sleep(pause)
            pause = min(2 * pause, _PAUSES_S[1])

    def _call(self, command: list[str], given: bytes = b"", shown: bool = False, into: Path | None = None) -> bytes:
        """What a command prints, unless it is `shown`; `into` is the folder here that it writes to, if it does."""
        out = None if shown else subprocess.PIPE
        try:
            done = subprocess.run(
                command, input=given, stdout=out, stderr=subprocess.PIPE, env=environment(), check=False
            )
        except FileNotFoundError:
            raise HostError(f"{command[0]} is not installed here: apt-get install -y openssh-client rsync") from None
        self._check(done.returncode, done.stderr, into)
        self.heard = time.monotonic()
        return done.stdout or b""

    def _check(self, code: int, stderr: bytes, into: Path | None = None) -> None:
        message = stderr.decode(errors="replace").strip()
        if not code:
            return
        for words, meaning in _REFUSALS.items():
            if words in message:
                raise HostError(f"{self.name} {meaning}")
        if any(words in message for words in _FULL) or (code == _FILE_ERROR and not message):
            if into:
                raise full_disk(into)
            place = f"{self.name} takes no more files in {self.folder} ({_last(message) or 'a file error'})"
            raise HostError(f"{place}: free space there, or choose another folder by --folder")
        if code in _DROPPED:
            raise HostUnreachableError(f"{self.name} does not answer ({_last(message) or f'exit code {code}'})")
        raise HostError(f"{self.name}: {_last(message) or f'exit code {code}'}")


def _last(message: str) -> str:
    """The last line that names a cause; rsync's own closing line does not."""
    lines = [line for line in message.splitlines() if not line.startswith("rsync error")] or message.splitlines()
    return lines[-1] if lines else ""


_STAY = re.compile(r"^outputs/|^\.venv$|(^|/)(\.env(\..*)?|\.netrc|id_\w+|.*\.(pem|key))$")
"""Of what git lists: results (the host makes its own), an environment's link, and files that are secrets by name."""


def repository_files() -> list[str]:
    """Tracked and unignored files of the repository, as git lists them, but no results and no secrets.

    Raises
    ------
    HostError
        If this is no git checkout.
    """
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise HostError(f"git cannot list the files of {REPOSITORY}: send from a clone, with git installed") from None
    return sorted({name for name in listed if name and not _STAY.search(name) and os.path.lexists(REPOSITORY / name)})


def refuse_secrets(files: Iterable[Path], given: str) -> None:
    """Nothing that is sent may hold a secret of this environment, such as TARDIS_API_KEY.

    Raises
    ------
    HostError
        Naming the file (or the parameters, as text in `given`) and the secret.
    """
    held = {name: value.encode() for name, value in secrets().items()}
    texts = ((str(path), path.read_bytes()) for path in files if path.is_file())
    for place, content in [("the parameters", given.encode()), *(texts if held else ())]:
        for name, value in held.items():
            if value in content:
                raise HostError(f"{place} holds the value of {name}, which is never sent: take it out")


def send_files(host: Host, files: Iterable[Path]) -> None:
    """Send files of the data and outputs folders to the same places there; those of the repository go by themselves."""
    for root, there, names in _by_root(files):
        if root != REPOSITORY and names:
            host.patiently(host.send, root, names, there)


def bring_back(host: Host, stage: str, folders: Sequence[Paths]) -> None:
    """Bring what a stage wrote there, finished or not: tables, adapters and checkpoints, figures, tables, renders.

    Each file and each adapter is put in its place by one move. What is newer here stays. The records, which say that
    all is there, come last.

    Raises
    ------
    DiskFullError
        If the disk here takes no more. Else as `Host.run`.
    """
    name = folders[0].name
    here = data_root() / name
    if plan.MODELS in plan.WRITES[stage]:
        for folder in [kind for paths in folders for kind in (paths.models, paths.runs)]:
            host.patiently(_bring_folder, host, folder)
    tables = [paths.data / file for paths in folders for file in plan.WRITES[stage] if file != plan.MODELS]
    records = [place for paths in folders for place in (record.place(stage, paths), record_path(paths, stage))]
    for files in ([*tables, *map(checksum_of, tables)], records):
        if files:
            names = [str(path.relative_to(here)) for path in files]
            host.patiently(host.fetch, f"data/{name}", here, "--update", names=names)
    host.patiently(host.fetch, f"outputs/{name}", outputs_root() / name, "--update", "--exclude=.*")


def _bring_folder(host: Host, here: Path) -> None:
    """Bring a folder of the data that holds one folder for each algorithm, and put each of these in its place whole."""
    names: dict[str, Any] = {"dir": here.parent, "prefix": f".{here.name}.", "suffix": own_ending()}
    with writing_into(here.parent), TemporaryDirectory(**names) as staged:
        host.fetch(f"data/{here.relative_to(data_root())}", Path(staged), f"--link-dest={here}")
        for fetched in sorted(Path(staged).iterdir()):
            _put(fetched, here / fetched.name)


def _put(fetched: Path, here: Path) -> None:
    if _same(fetched, here):
        return
    if here.exists() and _newest(here) > _newest(fetched):
        say(f"{here} is newer than the host's and stays; move it away and --fetch to have the host's")
        return
    if fetched.is_dir():
        with atomic_folder(here) as temporary:
            os.replace(fetched, temporary)
    else:
        here.parent.mkdir(parents=True, exist_ok=True)
        os.replace(fetched, here)


def _same(one: Path, other: Path) -> bool:
    names = [sorted(str(file.relative_to(place)) for file in _files(place)) for place in (one, other)]
    pairs = ((one / name, other / name) for name in names[0])
    return other.exists() and names[0] == names[1] and all(filecmp.cmp(*pair, shallow=False) for pair in pairs)


def _newest(place: Path) -> int:
    return max((file.stat().st_mtime_ns for file in _files(place)), default=0)


def _files(place: Path) -> list[Path]:
    return [file for file in (place, *place.rglob("*")) if file.is_file()]


def _by_root(files: Iterable[Path]) -> Iterator[tuple[Path, str, list[str]]]:
    """Files by the folder that they lie in: the folder, its name there, and the names within."""
    roots = {data_root(): "data", outputs_root(): "outputs", REPOSITORY: "."}
    names: dict[Path, list[str]] = {root: [] for root in roots}
    for path in files:
        root = next(root for root in roots if path.is_relative_to(root))
        names[root].append(str(path.relative_to(root)))
    return ((root, roots[root], names[root]) for root in roots)
