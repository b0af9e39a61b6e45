"""ONNX Runtime on an NVIDIA GPU, with its CUDA provider."""

from __future__ import annotations

from engines.backends._onnxruntime import OnnxRuntimeEngine

ENGINE = OnnxRuntimeEngine(
    "onnxruntime_cuda",
    "CUDAExecutionProvider",
    ("cuda",),
    cuda_graphs=True,
    build_options=frozenset({"prefer_nhwc"}),
    # TF32 is on by default for convolutions, and a hundred times less precise than fp32.
    settings={"use_tf32": "0"},
)
