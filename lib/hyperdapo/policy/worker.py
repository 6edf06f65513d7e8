"""One of several processes of a host that train together; `runs.launch` starts them."""

import os
from pathlib import Path
from typing import Any

import torch

from hyperdapo import gpus
from hyperdapo.family import die_with_parent

_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def work(rank: int, processes: int, store: Path, bench: tuple[Any, ...], job: tuple[str, int, Path]) -> None:
    """Do one process's part of a training: `bench` makes the `Workbench`, `job` is algorithm, seed and folder.

    A process sees its own GPU alone, where there are any: the base would be spread over all that it sees. The process
    group stands before accelerate looks for one: accelerate's own would listen on every interface.
    """
    die_with_parent()
    own = gpus.visible()[rank : rank + 1]
    place = {"RANK": rank, "LOCAL_RANK": 0 if own else rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in place.items()} | _LOOPBACK)
    os.environ.update((gpus.VARIABLE, gpu.name) for gpu in own)
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=processes)
    from hyperdapo.policy.training import Workbench  # which imports what starts this

    try:
        Workbench(*bench).train(*job, lambda looked: None)
    finally:
        torch.distributed.destroy_process_group()
