"""What this machine is: CPU, memory, GPU and driver. Standard library only."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path


def available_cpus() -> int:
    """Returns the number of CPUs this process may use (affinity respected)."""
    return len(affinity())


def affinity() -> list[int]:
    """Returns the numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # pragma: no cover - systems without affinity


@contextmanager
def keeping_to(cpus: Iterable[int]) -> Iterator[None]:
    """Keeps this thread, and those that it starts, to some CPUs; with none, changes nothing."""
    before, wanted = affinity(), set(cpus)
    if wanted:
        os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        if wanted:
            os.sched_setaffinity(0, before)


def version(distribution: str) -> str:
    """Returns the installed version of a distribution, or "not installed"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    """Returns the CPU's model name as the kernel gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gib() -> float:
    """Returns the machine's memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def free_memory() -> int:
    """Returns the bytes of memory that a process may still take, the container's limit too."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="utf-8").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="utf-8"))
            free = min(free, max(int(limit) - used, 0))
    except (OSError, ValueError):
        pass  # not Linux, or no control group: the kernel's own number stands
    return free


@cache
def gpus() -> tuple[dict[str, str], ...]:
    """Returns name, driver and compute capability of each NVIDIA GPU; empty without one.

    Asks nvidia-smi, since it comes with the driver and needs no CUDA library.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ()
    query = "name,driver_version,compute_cap"
    command = [tool, f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return ()
    found = []
    for line in answer.stdout.splitlines():
        name, *facts = (part.strip() for part in line.rsplit(",", 2))
        if len(facts) == 2:  # noqa: PLR2004 - else it says that there is none, in words
            found.append({"name": name, "driver": facts[0], "compute_capability": facts[1]})
    return tuple(found)


def gpu_fingerprint() -> dict[str, str]:
    """Returns the first GPU's facts with a `gpu_` prefix, or `{"gpu": "none"}`."""
    if not gpus():
        return {"gpu": "none"}
    return {f"gpu_{key}": value for key, value in gpus()[0].items()}


def cpu_fingerprint() -> dict[str, str]:
    """Returns the CPU facts that an engine's bytes and speed depend on."""
    return {"cpu": cpu_model(), "machine": platform.machine()}
