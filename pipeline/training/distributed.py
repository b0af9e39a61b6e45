"""Training one model in several processes, started by torchrun."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from engines.errors import UsageError

_state = {"helpers called": False}


@dataclass(frozen=True)
class Group:
    """This process's place among those of one training.

    Attributes:
        rank: Its number, from 0; only rank 0 prints and writes.
        world: The number of processes.
        local: Its number among those on this machine, from 0.
        local_world: The number of processes on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1


def group() -> Group:
    """Returns this process's group: of one process if torchrun did not start it."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Group()
    return Group(
        rank=torch.distributed.get_rank(),
        world=torch.distributed.get_world_size(),
        local=int(os.environ["LOCAL_RANK"]),
        local_world=int(os.environ["LOCAL_WORLD_SIZE"]),
    )


def check_group() -> None:
    """Raises UsageError in a process that torchrun started and that has joined no group.

    Each of these processes would train a model of its own.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if "RANK" not in os.environ or world == "1" or group().world > 1:
        return
    count = os.environ.get("LOCAL_WORLD_SIZE", "N")
    raise UsageError(
        f"torchrun has started {world} processes of this command, and each would train by itself",
        f"`torchrun --nproc-per-node {count} -m pipeline.training MODEL …` trains one model in all",
    )


def broadcast(message: Any) -> Any:
    """Returns rank 0's message in every process; ignores the others' own."""
    import torch

    box = [message]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def call_helpers(job: Any) -> None:
    """Sends the other processes their job, or None to end them. Rank 0 calls it."""
    _state["helpers called"] = True
    broadcast(job)


def helpers_called() -> bool:
    """Whether this process has called `call_helpers`."""
    return _state["helpers called"]


def wait_for_job() -> Any:
    """Returns the job that rank 0 gave to `call_helpers`. The other ranks call it."""
    return broadcast(None)
