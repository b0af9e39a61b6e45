"""Several processes that train one model together, as torchrun starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

_state = {"helpers called": False}


@dataclass(frozen=True)
class Group:
    """The processes of one training.

    Attributes:
        rank: Which of them this is, from 0; rank 0 alone prints and writes.
        world: How many there are.
        local: Which of those on this machine this is, from 0.
        local_world: How many there are on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1


def group() -> Group:
    """Returns the group that this process belongs to; one of its own if it was started alone."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Group()
    return Group(
        rank=torch.distributed.get_rank(),
        world=torch.distributed.get_world_size(),
        local=int(os.environ["LOCAL_RANK"]),
        local_world=int(os.environ["LOCAL_WORLD_SIZE"]),
    )


def shared(message: Any) -> Any:
    """Returns rank 0's message in every process; the others' own is ignored."""
    import torch

    box = [message]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def call_helpers(job: Any) -> None:
    """Sends the other processes what to train; None if there is nothing to do. For rank 0."""
    _state["helpers called"] = True
    shared(job)


def helpers_called() -> bool:
    """Whether this process has called `call_helpers`."""
    return _state["helpers called"]


def wait_for_job() -> Any:
    """Returns what rank 0 gave to `call_helpers`."""
    return shared(None)
