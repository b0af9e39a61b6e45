"""Asks CUDA's driver which GPUs it opens; a script that runs as a child process.

A faulty driver can end the process that calls it, and a process that has opened CUDA must not fork.
The script needs only the driver's own libraries. It prints one JSON object: `gpus`, in CUDA's order
and without those that CUDA_VISIBLE_DEVICES hides, and `problem`, the reason for an empty list.

CUDA Driver API, section 6: initialisation, version and device management.
"""

from __future__ import annotations

import ctypes
import json
import sys
import uuid

_CUDA = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
# CUdevice_attribute
_MAJOR, _MINOR = 75, 76
_TEXT = 256  # bytes of a text buffer


class DriverError(Exception):
    """A failed driver call; the message names the function and the error."""


class Driver:
    """CUDA's driver library."""

    def __init__(self) -> None:
        """Loads and initialises the library; raises OSError or DriverError."""
        self._library = ctypes.CDLL(_CUDA)
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function of the driver; raises DriverError unless it returns 0."""
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(text))
            raise DriverError(f"{name} returned {(text.value or str(code).encode()).decode()}")

    def number(self, name: str, *arguments: object) -> int:
        """Returns the int that a function writes to its first argument."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def gpu(self, index: int) -> dict[str, str]:
        """Returns name, UUID, compute capability and memory of one GPU."""
        device = self.number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(_TEXT)
        self.call("cuDeviceGetName", name, _TEXT, device)
        identifier = (ctypes.c_ubyte * 16)()
        # Version 2 gives the UUID of a MIG instance, not that of its GPU.
        self.call("cuDeviceGetUuid_v2", ctypes.byref(identifier), device)
        memory = ctypes.c_size_t()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        capability = [
            self.number("cuDeviceGetAttribute", kind, device) for kind in (_MAJOR, _MINOR)
        ]
        return {
            "name": name.value.decode(errors="replace"),
            "uuid": str(uuid.UUID(bytes=bytes(identifier))),
            "compute_capability": ".".join(map(str, capability)),
            "memory_gib": f"{memory.value / 2**30:.1f}",
        }


def driver_version() -> str:
    """Returns the version of the driver, such as 580.159.04; "" if NVML does not report it."""
    try:
        library = ctypes.CDLL(_NVML)
        text = ctypes.create_string_buffer(_TEXT)
        if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, _TEXT):
            return ""
        return text.value.decode()
    except (OSError, AttributeError):
        return ""


def probe() -> dict[str, object]:
    """Returns the JSON object that is printed."""
    try:
        driver = Driver()
    except OSError as error:
        if "No such file" in str(error):
            return {"gpus": [], "problem": f"no NVIDIA GPU here, or no driver for it (no {_CUDA})"}
        return {"gpus": [], "problem": f"CUDA's driver does not load here: {error}"}
    except DriverError as error:
        return {"gpus": [], "problem": f"CUDA opens no GPU here: {error}"}
    try:
        version = driver.number("cuDriverGetVersion")
        facts = {
            "driver": driver_version(),
            "cuda": f"{version // 1000}.{version % 1000 // 10}",
        }
        gpus = [{**driver.gpu(n), **facts} for n in range(driver.number("cuDeviceGetCount"))]
    except (DriverError, AttributeError) as error:
        return {"gpus": [], "problem": f"CUDA opens no GPU here: {error}"}
    return {"gpus": gpus, "problem": "" if gpus else "CUDA shows no GPU here"}


if __name__ == "__main__":
    print(json.dumps(probe()))  # noqa: T201 - the answer
