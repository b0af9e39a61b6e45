"""ONNX Runtime on the CPU: the optimised graph, saved by the build and opened as it is."""

from __future__ import annotations

from engines.backends._onnxruntime import OnnxRuntimeEngine

ENGINE = OnnxRuntimeEngine("onnxruntime", "CPUExecutionProvider", ("cpu",))
