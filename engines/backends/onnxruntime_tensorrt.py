"""ONNX Runtime on an NVIDIA GPU, with its TensorRT provider. Not yet run on a GPU.

It loads TensorRT 10 (`pip install 'tensorrt-cu13>=10.14,<11'`), not 11.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from engines.backends._onnxruntime import OnnxRuntimeEngine

_LIBRARY = "libnvinfer.so.10"
_SECONDS = 60


@cache
def library() -> str:
    """Returns the path or name by which TensorRT's library loads here; "" if it does not.

    Tried in a child process, since the library takes hundreds of megabytes.
    """
    spec = find_spec("tensorrt_libs")
    folders = (
        []
        if spec is None
        else [Path(location) for location in spec.submodule_search_locations or ()]
    )
    for name in (_LIBRARY, *(str(folder / _LIBRARY) for folder in folders)):
        code = f"import ctypes; ctypes.CDLL({name!r})"
        try:
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", code],
                capture_output=True,
                check=True,
                timeout=_SECONDS,
            )
        except (subprocess.SubprocessError, OSError):
            continue
        return name
    return ""


def _missing() -> str:
    if library():
        return ""
    return f"{_LIBRARY} does not load (pip install 'tensorrt-cu13>=10.14,<11')"


ENGINE = OnnxRuntimeEngine(
    "onnxruntime_tensorrt",
    "TensorrtExecutionProvider",
    ("cuda",),
    needs_gpu=True,
    missing=_missing,
)
