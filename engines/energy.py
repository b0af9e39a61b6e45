"""Counters of the energy that a device uses: RAPL for CPUs, NVML for NVIDIA's GPUs."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

from engines import hardware
from engines.errors import NotAvailableError

_POWERCAP = Path("/sys/class/powercap")
# A package, such as intel-rapl:0, and no part of one, such as intel-rapl:0:1. AMD's have this name,
# too.
_PACKAGE = re.compile(r"intel-rapl:\d+")
_NVML = "libnvidia-ml.so.1"


def meter(device: str, powercap: Path = _POWERCAP) -> Callable[[], float]:
    """Starts to count; returns a function that returns the joules used since then.

    A CPU's are those of all its packages, whichever process uses them; a GPU's, of the whole card.

    Args:
        device: "cpu" or "cuda:N".
        powercap: The folder in which Linux lists the packages of the CPUs.

    Raises:
        NotAvailableError: This machine has no such counter, or it may not be read.
    """
    return _rapl(powercap) if device == "cpu" else _nvml(int(device.partition(":")[2] or 0))


def _rapl(powercap: Path) -> Callable[[], float]:
    packages = [path for path in sorted(powercap.glob("*")) if _PACKAGE.fullmatch(path.name)]
    if not packages:
        raise NotAvailableError(f"{powercap} lists no counter of energy (RAPL)")

    def read(name: str) -> list[int]:
        try:
            return [int((path / name).read_text(encoding="ascii")) for path in packages]
        except (OSError, ValueError) as error:
            raise NotAvailableError(f"the counter of energy cannot be read: {error}") from error

    begin, ranges = read("energy_uj"), read("max_energy_range_uj")

    def joules() -> float:
        # A counter that has reached its end goes on from 0.
        pairs = zip(begin, read("energy_uj"), ranges, strict=True)
        return (
            sum(now - then if now >= then else now + end - then for then, now, end in pairs) / 1e6
        )

    return joules


def _nvml(index: int) -> Callable[[], float]:
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError as error:
        raise NotAvailableError(f"the counter of energy cannot be read: {error}") from error

    def call(name: str, *arguments: object) -> None:
        try:
            code = nvml[name](*arguments)
        except AttributeError as error:  # an older driver
            raise NotAvailableError(f"the counter of energy cannot be read: {error}") from error
        if code:
            raise NotAvailableError(f"the counter of energy cannot be read: {name} returned {code}")

    call("nvmlInit_v2")
    handle = ctypes.c_void_p()
    uuid = f"GPU-{hardware.gpus()[index]['uuid']}"
    call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(handle))

    def read() -> int:
        millijoules = ctypes.c_ulonglong()
        call("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(millijoules))
        return millijoules.value

    begin = read()
    return lambda: (read() - begin) / 1e3
