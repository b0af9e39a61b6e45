"""Opens a GPU with the CUDA runtimes that engines use; a script that runs as a child process.

The driver may open a GPU that a runtime cannot use: a runtime needs a driver that is as new as it
is. The script creates a context on the GPU; a faulty driver may end the process that does. It
prints one JSON object: `problem`, "" if all runtimes open the GPU.

CUDA Runtime API, section 6: error handling, device, memory and version management.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import sys
from typing import Any

# cudaError_t: out of memory, and a GPU that another process has for itself. Both may have passed
# when the GPU is opened for use, which reports them.
_PASSING = (2, 46)
_TOO_OLD = (35, 36)  # cudaErrorInsufficientDriver, cudaErrorCallRequiresNewerDriver
_MISMATCH = 803  # cudaErrorSystemDriverMismatch


class Bindings:
    """The runtime in NVIDIA's Python bindings."""

    name = "cuda-bindings"

    def __init__(self) -> None:
        self._runtime = importlib.import_module("cuda.bindings.runtime")  # it has no types

    def set_device(self, index: int) -> int:
        return int(self._runtime.cudaSetDevice(index)[0])

    def create_context(self) -> int:
        return int(self._runtime.cudaFree(0)[0])

    def version(self) -> int:
        return int(self._runtime.cudaRuntimeGetVersion()[1])

    def described(self, code: int) -> tuple[bytes, bytes]:
        """Returns the name of an error, and CUDA's message."""
        error = self._runtime.cudaError_t(code)
        runtime = self._runtime
        return runtime.cudaGetErrorName(error)[1], runtime.cudaGetErrorString(error)[1]


class OnnxRuntime:
    """The runtime that ONNX Runtime loads."""

    name = "ONNX Runtime"

    def __init__(self) -> None:
        onnxruntime = importlib.import_module("onnxruntime")
        # CUDA is in Python packages. preload_dlls prints every folder without it.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls(cudnn=False)
        major = str(onnxruntime.cuda_version).partition(".")[0]
        windows = sys.platform == "win32"
        library = ctypes.CDLL(f"cudart64_{major}.dll" if windows else f"libcudart.so.{major}")
        for function in (library.cudaGetErrorName, library.cudaGetErrorString):
            function.restype = ctypes.c_char_p
        self._library = library

    def set_device(self, index: int) -> int:
        return int(self._library.cudaSetDevice(index))

    def create_context(self) -> int:
        return int(self._library.cudaFree(None))

    def version(self) -> int:
        version = ctypes.c_int()
        self._library.cudaRuntimeGetVersion(ctypes.byref(version))
        return version.value

    def described(self, code: int) -> tuple[bytes, bytes]:
        """Returns the name of an error, and CUDA's message."""
        return self._library.cudaGetErrorName(code), self._library.cudaGetErrorString(code)


# By the module of the library that loads them.
RUNTIMES: dict[str, Any] = {"cuda.bindings.runtime": Bindings, "onnxruntime": OnnxRuntime}


def problem_of(module: str, index: int) -> str:
    """Returns why a runtime cannot open a GPU, and what to do; "" if it can."""
    try:
        runtime = RUNTIMES[module]()
    except (ImportError, OSError) as error:
        return f"the CUDA runtime of {RUNTIMES[module].name} does not load: {error}"
    function, code = "cudaSetDevice", runtime.set_device(index)
    if not code:
        function, code = "cudaFree", runtime.create_context()
    if code in (0, *_PASSING):
        return ""
    version = runtime.version()
    name, message = (text.decode(errors="replace") for text in runtime.described(code))
    cure = ""
    if code in _TOO_OLD:
        cure = "; install a newer NVIDIA driver, or libraries for an older CUDA"
    elif code == _MISMATCH:
        cure = "; restart the machine: the kernel runs another version of the driver"
    return (
        f"the CUDA {version // 1000}.{version % 1000 // 10} runtime of {runtime.name} cannot use"
        f" GPU {index}: {function} returned {name} ({message}){cure}"
    )


if __name__ == "__main__":
    chosen = ("cuda.bindings.runtime", *sys.argv[2:])
    problems = (problem_of(module, int(sys.argv[1])) for module in chosen)
    print(json.dumps({"problem": next(filter(None, problems), "")}))  # noqa: T201 - the answer
