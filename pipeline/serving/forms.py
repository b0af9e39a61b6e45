"""In which form Triton serves an engine: its backend, its file, where and how it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.backends import onnxruntime_cuda
from pipeline.workflow.artifacts import GRAPH

_ONNX = "onnxruntime_onnx"
# TF32 would be less precise than what was proved.
_CUDA = ("cuda", onnxruntime_cuda.ENGINE.settings)


@dataclass(frozen=True)
class Form:
    """How Triton serves an engine.

    Attributes:
        backend: Triton's backend that runs it.
        files: What the files in the version's folder are called.
        platform: Triton's name for backend and kind of file; "" if the backend has only one kind.
        gpu: Instances run on GPUs.
        accelerators: Execution accelerators on the GPU, with their parameters.
        runs_graph: It runs the graph that the engine was built from, not the engine's own file.
    """

    backend: str
    files: tuple[str, ...]
    platform: str = ""
    gpu: bool = False
    accelerators: tuple[tuple[str, Mapping[str, str]], ...] = ()
    runs_graph: bool = False


def _onnx(
    *, gpu: bool = False, accelerators: tuple[tuple[str, Mapping[str, str]], ...] = ()
) -> Form:
    return Form("onnxruntime", (GRAPH.name,), _ONNX, gpu, accelerators, runs_graph=True)


# By the name of the engine.
FORMS = {
    "onnxruntime": _onnx(),
    "onnxruntime_cuda": _onnx(gpu=True, accelerators=(_CUDA,)),
    "onnxruntime_tensorrt": _onnx(gpu=True, accelerators=(("tensorrt", {}), _CUDA)),
    "tensorrt": Form("tensorrt", ("model.plan",), "tensorrt_plan", gpu=True),
    "openvino": Form("openvino", ("model.xml", "model.bin")),
}
# Why other engines are left out.
_WITHOUT = {
    "tensorrt_rtx": "Triton has no backend for plans of TensorRT for RTX",
    "pytorch": "Triton's PyTorch backend reads TorchScript, not exported programs",
    "torch_compile": "it is compiled in the process that opens it, so it has no file to serve",
    "aot_inductor": "its package runs only with the version of PyTorch that built it",
}


def why_without(engine: str) -> str:
    """Returns why Triton does not serve an engine."""
    return _WITHOUT.get(engine, "Triton has no backend that reads it")
