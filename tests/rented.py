"""A host to rent, on loopback: a real `sshd` with a key, a port and a folder of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import REPOSITORY

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


class RentedHost:
    """`folder` is what the host has instead of a home; `path` is the PATH of the commands there."""

    def __init__(self, folder: Path, path: str = "/usr/local/bin:/usr/bin:/bin") -> None:
        self.folder, self.keys = folder / "there", folder / "keys"
        self.keys.mkdir(parents=True)
        self.port = free_port()
        for name in ("host", "user", "stranger"):
            _quietly("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.keys / name))
        shutil.copy(self.keys / "user.pub", self.keys / "authorized")
        (self.keys / "sshd").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.keys}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.keys}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nSetEnv PATH={path}\n"
        )
        (self.keys / "ssh").write_text(
            f"Host rented stranger\n  HostName 127.0.0.1\n  Port {self.port}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.keys}/known\n  SendEnv *\n"
            f"Host rented\n  IdentityFile {self.keys}/user\nHost stranger\n  IdentityFile {self.keys}/stranger\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd of root wants it
        command = [str(SSHD), "-D", "-e", "-f", str(self.keys / "sshd")]
        with (self.keys / "printed").open("wb") as printed:
            self.server = subprocess.Popen(command, stdout=printed, stderr=printed)
        deadline = time.monotonic() + 10
        while not _answers(self.port):
            if self.server.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"no sshd can be started here: {(self.keys / 'printed').read_text()[-300:]}")
            time.sleep(0.05)

    def build_environment(self) -> None:
        """Link this environment there, so that `make setup` finds all that it wants."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ".venv").symlink_to(sys.prefix)

    def sessions(self) -> list[psutil.Process]:
        """The processes of `sshd` that hold a connection, not what runs in it."""
        family = psutil.Process(self.server.pid).children(recursive=True)
        return [process for process in family if process.name().startswith("sshd")]

    def drop_connections(self) -> int:
        """Cut every connection, as a network that fails would, and say how many there were."""
        cut = self.sessions()
        for process in cut:
            process.kill()
        return len(cut)

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(timeout=10)


class Client:
    """The command `hyperdapo remote`, run as a user runs it, with data and outputs in one place."""

    def __init__(self, place: Path, host: RentedHost, name: str = "rented") -> None:
        self.data, self.outputs, self.host, self.name = place / "data", place / "outputs", host, name
        self.places = {"HYPERDAPO_DATA": str(self.data), "HYPERDAPO_OUTPUTS": str(self.outputs)}
        self.environment = os.environ | self.places | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def adopt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process work in the same place."""
        for name, value in self.places.items():
            monkeypatch.setenv(name, value)

    def start(self, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "hyperdapo.cli", "remote", self.name, *words, "--profile", "smoke"]
        command += ["--folder", str(self.host.folder), "--ssh", f"ssh -F {self.host.keys / 'ssh'}"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, **pipes)

    def run(self, *words: str, code: int = 0, within_s: float = 120.0) -> tuple[str, str]:
        """What is printed to stdout and stderr by a run that ends as expected."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=within_s)
        finally:
            process.kill()
        assert process.returncode == code, out[-3000:] + err[-3000:]
        return out, err


def running(mark: str, word: str = "") -> list[psutil.Process]:
    """Processes whose environment holds a mark, and whose command line holds a word."""
    return [process for process in psutil.process_iter() if _matches(process, mark, word)]


def _matches(process: psutil.Process, mark: str, word: str) -> bool:
    try:
        environment = "\0".join(f"{name}={value}" for name, value in process.environ().items())
        return mark in environment and word in " ".join(process.cmdline())
    except psutil.Error:
        return False


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _quietly(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
