"""A stage on a rented host: a real `sshd` on loopback, a real training of `smoke`, and what goes wrong on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import nbformat
import pandas as pd
import psutil
import pytest

from conftest import REPOSITORY
from hyperdapo import plan, stages
from hyperdapo.errors import DiskFullError, HostError, HostUnreachableError
from hyperdapo.evidence.provenance import commit
from hyperdapo.params import load
from hyperdapo.remote import connection, host, remote
from hyperdapo.remote.connection import Host
from hyperdapo.remote.remote import Request
from rented import SSHD, Client, RentedHost, free_port, running
from smoke import Run, take_over

KEY = f"TD.{uuid4()}"
MARK = "HYPERDAPO_RUN="
TRAIN = ("05_train", "--asset", "BTC")
NAME = load("smoke", {"assets": ["BTC"]}).name
"""Of the run of one asset, which takes over from `smoke` what that has computed."""

pytestmark = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("rsync")),
    reason="no sshd or rsync: apt-get install openssh-server rsync",
)


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[RentedHost]:
    there = RentedHost(tmp_path / "host")
    there.build_environment()
    yield there
    for process in running(f"{MARK}05_train"):
        process.kill()
    there.close()


def _client(place: Path, smoke: Run, there: RentedHost) -> Client:
    """A client that has what 05 reads of one asset."""
    client = Client(place, there)
    take_over(smoke.kept, client.data, client.outputs, "BTC", "01", "02", "03", "04")
    return client


def _request() -> Request:
    return Request.of("05", "smoke", {"assets": ["BTC"]}, commit())


def _until(what: Callable[[], object], process: subprocess.Popen, within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def _log(there: RentedHost) -> str:
    return "".join(path.read_text() for path in (there.folder / ".remote").glob("05_train-*.log"))


def _trains() -> bool:
    return bool(running(f"{MARK}05_train", "hyperdapo.cli stage"))


@pytest.mark.slow
def test_a_training_comes_back_though_the_connection_drops(
    smoke: Run, rented: RentedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary
) -> None:
    client = _client(tmp_path / "client", smoke, rented)
    client.environment["TARDIS_API_KEY"] = KEY
    first = client.start(*TRAIN)
    _until(_trains, first)
    assert not running(KEY) or {process.pid for process in running(KEY)} <= _family(first.pid)
    assert rented.drop_connections() >= 1

    onlooker = Client(tmp_path / "onlooker", rented)
    second = onlooker.start(*TRAIN)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    _assert_followed_whole(rented, client, out)
    assert "does not answer" in err and "again in 1 s" in err and "done on rented" in err
    _assert_results(client)
    assert not [path for path in rented.folder.rglob("*") if _holds(path, KEY)]

    second_out, second_err = second.communicate(timeout=120)
    assert second.returncode == 0, second_err
    assert "already runs on rented: following it" in second_err and second_out == out
    assert (onlooker.data / NAME / "models/BTC/dapo/training_log.csv").exists()
    _assert_nothing_is_done_twice(client, rented, monkeypatch, capfdbinary)


def _assert_followed_whole(there: RentedHost, client: Client, out: str) -> None:
    """One run, one log, every byte of it shown once and kept once."""
    (log,) = (there.folder / ".remote").glob("05_train-*.log")
    assert out == log.read_text() == (client.data / NAME / "remote" / log.name).read_text()
    assert out.count("05_train BTC done in ") == 1


def _assert_results(client: Client) -> None:
    adapters = client.data / NAME / "models" / "BTC"
    assert len(pd.read_csv(adapters / "dapo" / "training_log.csv")) > 1
    assert list((adapters / "dapo").rglob("adapter_model.safetensors"))
    notebook = nbformat.read(client.outputs / NAME / "notebooks/05_train_BTC.ipynb", as_version=4)
    assert not [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"
    ]
    text = json.dumps(notebook)
    assert commit() in text, "the stamp names the commit that was sent"
    for name in ("figures/training_BTC.pdf", "figures/training_BTC.png", "tables/training_BTC.csv"):
        assert (client.outputs / NAME / name).stat().st_size > 0
    left = [path for path in client.data.rglob("*") if "unconfirmed" in path.name or "partial" in path.name]
    assert not left


def _assert_nothing_is_done_twice(client: Client, there: RentedHost, monkeypatch, captured) -> None:
    """Neither here, where the workflow takes the results as its own, nor there by the same command again."""
    render = client.outputs / NAME / "notebooks/05_train_BTC.ipynb"
    made = render.stat().st_mtime_ns
    command = [sys.executable, "-m", "hyperdapo.cli", "run", "--profile", "smoke", "--asset", "BTC", "--only", "05"]
    subprocess.run(command, cwd=REPOSITORY, env=client.environment, check=True, capture_output=True)
    assert render.stat().st_mtime_ns == made

    client.adopt(monkeypatch)
    captured.readouterr()
    remote.run(_host(there), _request())
    assert b"nothing to run" in captured.readouterr().out and "done at" in remote.status(_host(there))
    assert render.stat().st_mtime_ns == made and not running(MARK)


@pytest.mark.slow
def test_a_run_can_be_left_looked_at_fetched_and_stopped(
    smoke: Run, rented: RentedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, extra = _client(tmp_path / "client", smoke, rented), tmp_path / "long.yaml"
    long = {"training": {"seeds": list(range(500))}}
    extra.write_text(json.dumps(long))
    run = load("smoke", long | {"assets": ["BTC"]}).name
    process = client.start(*TRAIN, "--params", str(extra))
    _until(_trains, process)
    process.send_signal(signal.SIGINT)
    assert "run the same command again" in process.communicate(timeout=60)[1] and process.returncode == 130
    assert _trains(), "the stage lives on when nobody follows it"

    client.adopt(monkeypatch)
    shown = client.run("--status")[0]
    assert "05_train BTC (smoke) on rented: running" in shown and "make setup" in shown and "GPU" in shown
    with pytest.raises(HostError, match=r"runs 05_train BTC \(smoke\), with other parameters or for something else"):
        remote.run(_host(rented), _request())
    unfinished = rented.folder / "data" / run / "models/BTC/.dapo.checkpoint"
    unfinished.mkdir(parents=True)
    (unfinished / "optimizer.pt").write_bytes(b"half way")
    assert "brought from rented: 05_train BTC (smoke)" in client.run("--fetch")[0]
    assert (client.data / run / "models/BTC/.dapo.checkpoint/optimizer.pt").read_bytes() == b"half way"

    assert "stopped" in client.run("--stop")[0] and not running(MARK)
    assert "nothing runs on rented" in remote.stop(_host(rented)) and "stopped at" in remote.status(_host(rented))


@pytest.mark.slow
def test_a_stage_that_fails_there_says_why_here(
    smoke: Run, rented: RentedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _client(tmp_path / "client", smoke, rented)
    client.adopt(monkeypatch)
    stages.take_over(_request().parameters, plan.before("05_train"))
    features = client.data / NAME / "BTC/features.parquet"
    whole = features.read_bytes()
    features.unlink()  # which smoke has too
    features.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the right size, or it would be taken over again
    with pytest.raises(HostError, match="failed with exit code 1 in 05_train") as failure:
        remote.run(_host(rented), _request())
    _, reason, *_, last = str(failure.value).splitlines()
    assert "05_train BTC" in reason and "features.parquet" in reason and "Traceback" not in str(failure.value)
    whole = Path(last.removeprefix("  the whole log: "))
    assert whole.read_text() == _log(rented) and reason.strip() in whole.read_text()


@pytest.mark.slow
def test_an_input_that_is_not_here_names_the_command(rented: RentedHost, tmp_path: Path) -> None:
    printed = Client(tmp_path / "client", rented).run(*TRAIN, code=1)[1]
    assert "01_download.json is not there" in printed and f"hyperdapo run --name {NAME} --until 01" in printed
    assert not (rented.folder / "lib").exists(), "nothing is sent before"


def _host(there: RentedHost, name: str = "rented", **settings: object) -> Host:
    values = {"folder": str(there.folder), "ssh": f"ssh -F {there.keys / 'ssh'}"} | settings
    return Host(name, **values)  # type: ignore[arg-type]


def test_each_refusal_is_one_clear_line(rented: RentedHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(HostUnreachableError, match=r"rented does not answer .*refused"):
        _host(rented, port=free_port()).connect()
    with pytest.raises(HostError, match="stranger refuses your key: add the public key to"):
        _host(rented, "stranger").connect()
    with pytest.raises(HostError, match="no-such-ssh is not installed here"):
        _host(rented, ssh="no-such-ssh").connect()
    with pytest.raises(HostError, match="takes no more files"):
        _host(rented, folder=f"{rented.keys}/host/below").connect()
    _host(rented).connect()
    (rented.keys / "host.pub").unlink()
    known = (rented.keys / "user.pub").read_text().split()[:2]
    (rented.keys / "known").write_text(f"[127.0.0.1]:{rented.port} {' '.join(known)}\n")
    with pytest.raises(HostError, match="another host key than before"):
        _host(rented).connect()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="rsync is not installed here"):
        _host(rented).connect()


def test_what_the_host_lacks_is_named(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "bash", "mkdir", "cat", "mv"):
        (tools / name).symlink_to(str(shutil.which(name)))
    there = RentedHost(tmp_path / "host", path=str(tools))
    try:
        with pytest.raises(HostError, match=r"rented has no make, no rsync, no Python 3\.11, 3\.12 or 3\.13"):
            _host(there).connect()
    finally:
        there.close()


def test_a_full_disk_there_is_told_apart_from_one_here(rented: RentedHost, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user can mount no disk")
    big = tmp_path / "big"
    big.mkdir()
    (big / "slices").write_bytes(os.urandom(1 << 20))
    try:
        there = _host(rented, folder=str(small))
        there.connect()
        with pytest.raises(HostError, match=r"rented takes no more files in .*free space there"):
            there.send(big, ["slices"], "data")
        _host(rented).send(big, ["slices"], "data")
        with pytest.raises(DiskFullError, match="cannot write into"):
            _host(rented).fetch("data", small / "fetched")
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_nothing_secret_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TARDIS_API_KEY", KEY)
    assert KEY not in connection.environment().values() and "PATH" in connection.environment()
    note = tmp_path / "my.yaml"
    note.write_text(f"key: {KEY}")
    with pytest.raises(HostError, match=r"my\.yaml holds the value of TARDIS_API_KEY"):
        connection.refuse_secrets([note], "{}")
    with pytest.raises(HostError, match="the parameters holds the value of TARDIS_API_KEY"):
        connection.refuse_secrets([], json.dumps({"source": {"endpoint": f"https://x/{KEY}"}}))
    connection.refuse_secrets([REPOSITORY / "README.md"], "{}")


def test_the_repository_goes_without_results_and_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in ("Snakefile", "outputs/sample/numbers.tex", ".env", "keys/id_ed25519", "ignored", "my notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / ".gitignore").write_text("ignored\n")
    monkeypatch.setattr(connection, "REPOSITORY", tmp_path)
    assert connection.repository_files() == [".gitignore", "Snakefile", "my notes.md"]


def test_what_is_newer_here_stays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here, fetched = tmp_path / "here", tmp_path / "fetched"
    for folder, text, second in ((here, "mine", 2), (fetched, "theirs", 1)):
        folder.mkdir()
        (folder / "adapter").write_text(text)
        os.utime(folder / "adapter", (second, second))
    connection._put(fetched, here)
    assert (here / "adapter").read_text() == "mine" and "is newer than the host's and stays" in capsys.readouterr().err
    os.utime(fetched / "adapter", (3, 3))
    connection._put(fetched, here)
    assert (here / "adapter").read_text() == "theirs" and sorted(tmp_path.iterdir()) == [here]


def test_the_use_of_gpus_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host._gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '0, NVIDIA A100-SXM4-80GB, 98 %, 31234 MiB, 81920 MiB'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (gpu,) = host._gpus()
    assert gpu["name"] == "NVIDIA A100-SXM4-80GB" and gpu["utilization.gpu"] == "98 %"


def test_a_run_whose_head_was_killed_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "HERE", tmp_path)
    (tmp_path / "request.json").write_text(json.dumps({"run": "one"}))
    (tmp_path / "one.log").write_text("step 1\r step 2\nstep 3\n")
    state = host.state()
    assert state["state"] == "failed" and state["tail"] == [" step 2", "step 3"]
    assert "killed, out of memory" in remote._word(state)


def test_files_that_are_no_longer_sent_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "HERE", tmp_path / ".remote")
    monkeypatch.setattr(host, "WORK", tmp_path)
    for name in (".remote/x", "old.py", "kept.py", "made_there.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    host.tidy(["old.py", "kept.py"])
    host.tidy(["kept.py"])
    assert {path.name for path in tmp_path.iterdir()} == {".remote", "kept.py", "made_there.csv"}


def test_a_silent_host_is_asked_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    def silent() -> None:
        raise HostUnreachableError("rented does not answer")

    monkeypatch.setattr(connection.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(connection.time, "sleep", sleep)
    with pytest.raises(HostUnreachableError):
        Host("rented").patiently(silent)
    assert (
        pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60] and connection.PATIENCE_S < sum(pauses) < 1.1 * connection.PATIENCE_S
    )


@pytest.mark.slow
def test_what_a_stage_reads_is_sent_and_no_more(smoke: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(smoke.kept.data))
    names = {path.name for path in remote.stage_inputs(load("smoke"), "05_train")}
    tables = {name for name in names if name.endswith(".parquet")}
    assert tables == {"features.parquet", "outcomes.parquet", "action_values.parquet"}
    assert "features.parquet.sha256" in names
    assert {"01_download.json", "04_preference_pairs.json", "manifest.json"} <= names, (
        "records, and the stamp of the data"
    )


def _family(pid: int) -> set[int]:
    return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}


def _holds(path: Path, word: str) -> bool:
    ours = path.is_file() and ".venv" not in path.relative_to(path.anchor).parts
    return ours and word.encode() in path.read_bytes()
