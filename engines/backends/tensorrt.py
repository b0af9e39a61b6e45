"""TensorRT 10 and 11: plans built on, and for, the GPU of this machine; and its lean runtime."""

from __future__ import annotations

from engines.backends._tensorrt import COMMON_OPTIONS, LeanRuntime, TensorRTEngine

ENGINE = TensorRTEngine(
    name="tensorrt",
    module="tensorrt",
    distributions=("tensorrt-cu13", "tensorrt"),
    install="pip install 'tensorrt-cu13>=10.14'",
    builds_without_gpu=False,
    build_options=COMMON_OPTIONS
    | {"version_compatible", "hardware_compatible", "refit", "strip_weights"},
    lean=LeanRuntime(
        "tensorrt_lean_bindings", ("tensorrt-lean-cu13-bindings", "tensorrt-lean-cu13-libs")
    ),
)
