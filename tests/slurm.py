"""A SLURM cluster of one node on loopback: munge, controller and node, all in one folder, ended with the block."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TOOLS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel")
_CONFIG = """
ClusterName=loopback
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
MinJobAge=3600
KillWait=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=16000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that a cluster needs and this machine has not."""
    return [tool for tool in TOOLS if _tool(tool) is None]


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run the cluster while the block does; what the environment of its users has to say."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(folder=folder, user=os.environ.get("USER", "root"), ports=_free_ports(2)))
    environment = {"SLURM_CONF": str(config), "PATH": f"{folder}:{os.environ['PATH']}"}
    step = folder / "srun"  # Snakemake's job step drops SLURM_CONF, as if every cluster's were in /etc/slurm
    step.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {_tool("srun")} "$@"\n')
    step.chmod(0o755)
    _run("mungekey", "--create", f"--keyfile={folder}/munge.key")
    with ExitStack() as started:
        places = {"key": "key", "seed": "seed", "log": "log", "pid": "pid"}
        options = [f"--{kind}-file={folder}/munge.{name}" for kind, name in places.items()]
        _daemon(started, folder, {}, "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *options)
        _until(lambda: (folder / "munge.socket").exists(), folder)
        _daemon(started, folder, environment, "slurmctld", "-D", "-i")
        _daemon(started, folder, environment, "slurmd", "-D", "-N", "localhost")
        _until(lambda: "idle" in _run("sinfo", "-h", "-o", "%t", environment=environment), folder)
        yield environment
        _run("scancel", "--full", "--partition=all", environment=environment)
        _until(lambda: not _run("squeue", "-h", "-t", "R,CG", environment=environment), folder)


def jobs(environment: dict[str, str], state: str = "R") -> dict[str, str]:
    """Number of each job in a state, by the comment that Snakemake gave it: its rule and wildcards."""
    lines = _run("squeue", "-h", "-t", state, "-o", "%k %i", environment=environment).splitlines()
    return dict(line.rsplit(maxsplit=1) for line in lines)


def _daemon(started: ExitStack, folder: Path, environment: dict[str, str], name: str, *arguments: str) -> None:
    log = started.enter_context((folder / f"{name}.out").open("wb"))
    process = subprocess.Popen([_tool(name), *arguments], env=os.environ | environment, stdout=log, stderr=log)
    started.callback(process.wait, 30)
    started.callback(process.terminate)


def _run(name: str, *arguments: str, environment: dict[str, str] | None = None) -> str:
    command = [_tool(name), *arguments]
    done = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _until(holds, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            said = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in folder.glob("*.out"))
            raise TimeoutError(f"the cluster does not come up:\n{said}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
