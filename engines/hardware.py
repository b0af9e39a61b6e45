"""Describes this machine: CPU, memory, GPU and driver. Uses only the standard library."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.errors import NotAvailableError

_PROBE_SECONDS = 20
_RUNTIME_SECONDS = 60  # to import libraries and to create a context
_TOOL_SECONDS = 10  # for nvidia-smi to answer
# States of a GPU: the field of nvidia-smi, and our name.
_STATE = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "celsius",
    "power.draw": "watts",
    "memory.used": "used_mib",
    "clocks_event_reasons.active": "throttling",
}


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
    """Pins this thread, and those that it starts, to some CPUs; without CPUs, does nothing.

    Raises:
        NotAvailableError: This system has no CPU affinity.
    """
    before, wanted = affinity(), set(cpus)
    if wanted and not hasattr(os, "sched_setaffinity"):
        raise NotAvailableError(
            f"a process cannot be pinned to CPUs on {platform.system()}", "leave --affinity out"
        )
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


def machine() -> dict[str, Any]:
    """Returns what measurements name of this machine: CPU, CPUs of this process, and GPUs."""
    return {"cpu": cpu_model(), "cpus": available_cpus(), "gpus": list(gpus())}


def memory_gib() -> float:
    """Returns the machine's memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def free_memory() -> int:
    """Returns the bytes of memory that a process may still take, within its container's limit."""
    # macOS counts all pages only.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)
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


def resident_memory(pid: int) -> int:
    """Returns the bytes of memory that a process holds; 0 if it has ended, or not on Linux."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int | None:
    """Returns the most bytes that this process has held; None if the system does not tell.

    Since it started, or since `reset_peak_memory` was successful.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # not Linux
    return None


def reset_peak_memory() -> bool:
    """Makes `peak_memory` begin anew; returns False where that is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


@cache
def _probed() -> dict[str, Any]:
    """Returns the JSON object that `gpu_probe` prints."""
    # Isolated and without site-packages, Python starts in a third of the time.
    options = ("-I", "-S")
    return {"gpus": [], **_asked("CUDA's driver", _PROBE_SECONDS, options, "gpu_probe.py")}


@cache
def runtime_problem(index: int, *libraries: str) -> str:
    """Returns why a CUDA runtime cannot use a GPU that CUDA's driver opens; "" if it can.

    Asks the runtime in NVIDIA's Python bindings, which sessions use for memory and streams.

    Args:
        index: The number of the GPU, as CUDA counts.
        libraries: Libraries whose own runtimes are asked as well; see `runtime_probe.RUNTIMES`.
    """
    # Without -P, this folder's cuda.py would hide the package of that name.
    script = ("runtime_probe.py", str(index), *libraries)
    return str(_asked("CUDA's runtime", _RUNTIME_SECONDS, ("-P",), *script)["problem"])


def _asked(who: str, seconds: float, options: tuple[str, ...], *script: str) -> dict[str, Any]:
    """Returns the JSON object that a script in this folder prints, or the `problem` that it had.

    Args:
        who: What the script asks.
        options: Python's own.
        script: The name of its file, and its arguments.
    """
    name, *arguments = script
    path = Path(__file__).with_name(name)
    try:
        answer: dict[str, Any] = json.loads(
            _output([sys.executable, *options, str(path), *arguments], seconds)
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"{who} did not answer in {seconds} s"}
    except subprocess.CalledProcessError as error:
        if error.returncode >= 0:
            how = f"with status {error.returncode}"
        else:
            how = f"by {signal.Signals(-error.returncode).name}"
        return {"problem": f"{who} ended the process that asked it, {how}"}
    except (OSError, ValueError) as error:
        return {"problem": f"{who} could not be queried: {error}"}
    return answer


def gpus() -> tuple[dict[str, str], ...]:
    """Returns the GPUs that CUDA opens here, as it numbers them; empty without one.

    Each has name, uuid, compute_capability, memory_gib, driver, and the CUDA version that the
    driver supports (cuda). CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are respected.
    """
    return tuple(_probed()["gpus"])


def no_gpu() -> str:
    """Returns why CUDA opens no GPU here; "" if it opens one.

    Also names GPUs of this machine that CUDA cannot use.
    """
    problem = str(_probed()["problem"])
    listed = _listed() if problem else []
    if not listed:
        return problem
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = "" if hidden is None else f", and CUDA_VISIBLE_DEVICES is {hidden!r}"
    return f"{problem}; nvidia-smi lists {', '.join(listed)}{why}"


@cache
def _listed() -> list[str]:
    """Returns the GPUs that nvidia-smi lists, whether CUDA can use them or not."""
    rows = _nvidia_smi(("name", "driver_version"))
    return [f"{name} (driver {version})" for name, version in rows]


def gpu_states() -> list[dict[str, str]]:
    """Returns clocks, temperature, power, memory and throttling of each GPU; empty without one.

    In the units of nvidia-smi: MHz, degrees Celsius, W and MiB. `throttling` is a bit mask of
    reasons, 0x0000000000000000 for none and 0x0000000000000001 for an idle GPU.
    """
    if not gpus():
        return []
    keys = ("uuid", *_STATE.values())
    return [dict(zip(keys, row, strict=True)) for row in _nvidia_smi(("uuid", *_STATE))]


def _nvidia_smi(fields: tuple[str, ...]) -> list[list[str]]:
    """Returns a row of values for each GPU; empty if the tool is missing or does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        output = _output(command, _TOOL_SECONDS)
    except (subprocess.SubprocessError, OSError):
        return []
    # Without a GPU it prints a sentence instead.
    lines = [line for line in output.splitlines() if line.isprintable()]
    rows = [[cell.strip() for cell in line.rsplit(",", len(fields) - 1)] for line in lines]
    return [row for row in rows if len(row) == len(fields)]


def _output(command: list[str], seconds: float) -> str:
    """Returns a program's stdout; raises as `subprocess.run` unless it exits with 0 in time."""
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=seconds, check=True
    )
    return done.stdout


def gpu_fingerprint(index: int = 0) -> dict[str, str]:
    """Returns the GPU facts that an engine's bytes and speed depend on, or `{"gpu": "none"}`.

    Without the UUID: an engine built on one card runs on all cards of its kind.
    """
    if index >= len(gpus()):
        return {"gpu": "none"}
    gpu = gpus()[index]
    return {f"gpu_{name}": gpu[name] for name in ("name", "driver", "compute_capability")}


def cpu_fingerprint() -> dict[str, str]:
    """Returns the CPU facts that an engine's bytes and speed depend on."""
    return {"cpu": cpu_model(), "machine": platform.machine()}
