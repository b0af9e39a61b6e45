"""ONNX Runtime on an NVIDIA GPU, by its TensorRT provider. Not yet run: no GPU was at hand.

It loads TensorRT 10 (`pip install 'tensorrt-cu13>=10.14,<11'`), not 11.
"""

from __future__ import annotations

from engines.backends._onnxruntime import OnnxRuntimeEngine

ENGINE = OnnxRuntimeEngine(
    "onnxruntime_tensorrt", "TensorrtExecutionProvider", ("cuda",), needs_gpu=True
)
