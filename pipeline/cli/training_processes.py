"""Training in several processes: `torchrun --nproc-per-node 2 -m pipeline.training lenet …`.

Rank 0 runs `assay train`; the others only compute their share of each step.
"""

from __future__ import annotations

import os
import sys

from engines.checks import import_vendor
from engines.errors import DeployError
from pipeline.cli.main import main as assay
from pipeline.training import distributed, job
from pipeline.workflow import console


def main(arguments: list[str]) -> int:
    """Runs one of the processes and returns its exit code."""
    if "RANK" not in os.environ:
        console.error(
            "pipeline.training is started by torchrun",
            "torchrun --nproc-per-node N -m pipeline.training MODEL …, or `assay train MODEL`",
        )
        return 2
    torch = import_vendor("torch", "pip install torch")
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        if distributed.group().rank > 0:
            return _help()
        code = assay(["train", *arguments])
        if not distributed.helpers_called():
            distributed.call_helpers(None)  # nothing to train, or `assay train` failed before it
        return code
    finally:
        torch.distributed.destroy_process_group()


def _help() -> int:
    shared = distributed.wait_for_job()
    if shared is not None:
        console.settings.quiet = True
        try:
            job.fit(shared)
        except DeployError:
            return 1  # rank 0 raises the same error and prints it
    return 0


def end(code: int) -> None:
    """Ends the process without running destructors.

    Destroying gloo's threads while they run aborts about one process in a hundred.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
