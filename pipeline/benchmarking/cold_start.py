"""What it takes to open an engine in a new process: time until the first outputs, and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines import hardware
from engines.checks import import_vendor
from engines.contract import Engine, OpenOptions, Session
from pipeline.benchmarking.comparison import Load
from pipeline.workflow import worker_child

_STEADY_RUNS = 3


@dataclass(frozen=True)
class Memory:
    """Bytes that the process held, of the host's memory, and the GPU's MiB in use, if it has one.

    Attributes:
        before: With Python, numpy and the inputs, but without the engine's library.
        opened: With the open engine.
        peak: The most from then on to the end of the first runs; None if it is not known.
        steady: After more runs at the last load.
        gpu_before: Used by all processes, as nvidia-smi reports it; "" without a GPU.
        gpu_steady: Likewise, after the runs.
    """

    before: int
    opened: int
    peak: int | None
    steady: int
    gpu_before: str
    gpu_steady: str


@dataclass(frozen=True)
class ColdStart:
    """The start of an engine in a process that has not loaded its library before.

    Attributes:
        library: Seconds to import the library.
        opening: Seconds to open the engine after that.
        first: Seconds of the first run at each load, in their order.
    """

    library: float
    opening: float
    first: tuple[float, ...]
    memory: Memory


def cold_start(
    engine: Engine, built: Path, options: OpenOptions, loads: Sequence[Load]
) -> tuple[Session, ColdStart]:
    """Opens an engine and runs it; returns the open session. The process should be a new one.

    Files are read through the system's cache of files, which may hold them already.

    Raises:
        DeployError: The engine cannot be opened or run.
    """
    gpu_before = _gpu_memory(options.device)
    before = hardware.resident_memory(os.getpid())
    known = hardware.reset_peak_memory()
    start = time.perf_counter()
    import_vendor(engine.runtime_module(), "")
    imported = time.perf_counter()
    session = engine.open(built, options)
    opened = time.perf_counter()
    opened_memory = hardware.resident_memory(os.getpid())
    first = []
    for load in loads:
        worker_child.doing(f"running {engine.name} at {load}")
        began = time.perf_counter()
        session.run(load.feeds)
        first.append(time.perf_counter() - began)
    peak = hardware.peak_memory() if known else None
    for _ in range(_STEADY_RUNS):
        session.run(loads[-1].feeds)
    memory = Memory(
        before=before,
        opened=opened_memory,
        peak=peak,
        steady=hardware.resident_memory(os.getpid()),
        gpu_before=gpu_before,
        gpu_steady=_gpu_memory(options.device),
    )
    return session, ColdStart(imported - start, opened - imported, tuple(first), memory)


def _gpu_memory(device: str) -> str:
    if device == "cpu":
        return ""
    uuid = hardware.gpus()[int(device.partition(":")[2] or 0)]["uuid"]
    used = [state["used_mib"] for state in hardware.gpu_states() if uuid in state["uuid"]]
    return "".join(used[:1])
