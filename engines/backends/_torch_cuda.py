"""Runs a function of torch tensors on one GPU: own stream, pinned transfers, CUDA graphs."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines import hardware
from engines.contract import Array
from engines.errors import DeployError

# Combinations of input shapes whose buffers and graphs a session keeps; the oldest goes first.
_MAX_SHAPES = 16
# Runs before a capture. In the first ones cuBLAS and cuDNN initialise and compilers compile, which
# must not happen while a graph is captured.
_WARM_UP = 3


@dataclass
class _Buffers:
    """The memory of one combination of input shapes.

    Attributes:
        inputs: Tensors on the device. Their addresses never change, so that a graph stays valid.
        staged: The inputs in pinned host memory, from which the device copies without the host.
        fetched: Pinned host memory for the outputs, once their shapes are known.
        graph: The captured graph, if launches replay one.
        outputs: The tensors that the graph writes.
    """

    inputs: list[Any]
    staged: list[Any]
    fetched: list[Any] | None = None
    graph: Any = None
    outputs: Sequence[Any] = ()


def gpu_problem(torch: Any, index: int) -> str:
    """Returns why torch cannot compute on a GPU that CUDA's driver opens; "" if it can.

    Args:
        index: The number of the GPU, as CUDA counts.
    """
    name = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{name} is built without CUDA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason that is returned says the same
        opens = torch.cuda.is_available()
    gpu = hardware.gpus()[index]
    if not opens:
        return (
            f"{name}, built for CUDA {torch.version.cuda}, opens no GPU with driver"
            f" {gpu['driver']} (CUDA {gpu['cuda']})"
        )
    kernels = torch.cuda.get_arch_list()
    if kernels and not any(_runs(kind, gpu["compute_capability"]) for kind in kernels):
        return (
            f"{name} has kernels for {', '.join(kernels)}, and not for the compute capability"
            f" {gpu['compute_capability']} of {gpu['name']}"
        )
    return ""


def _runs(kernels: str, capability: str) -> bool:
    """Whether kernels such as sm_86 or compute_90 run on a compute capability.

    Machine code (sm) runs on its own major version from its minor version on, and intermediate code
    (compute) on all later ones: CUDA C++ Programming Guide, "Compilation Workflow". Kernels of one
    architecture, such as sm_90a, run on that one alone.
    """
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", kernels)
    if parts is None:
        return True  # of a form that is not known here
    own = int(parts[2]), int(parts[3])
    major, minor = map(int, capability.split("."))
    if parts[4]:
        return own == (major, minor)
    if parts[1] == "sm":
        return own[0] == major and own[1] <= minor
    return own <= (major, minor)


class CudaRunner:
    """Runs a function from a list of tensors to a tuple of tensors on one GPU.

    Attributes:
        stream: The address of the CUDA stream that everything is enqueued on.
    """

    def __init__(
        self, torch: Any, device: str, function: Callable[..., Any], *, cuda_graph: bool
    ) -> None:
        """Takes "cuda" or "cuda:N".

        Args:
            function: Called with tensors on the device; enqueues its work on the current stream.
            cuda_graph: Capture the launches of each combination of shapes, and replay them.
        """
        self._torch = torch
        self._device = torch.device(device)
        self._function = function
        self._graph_wanted = cuda_graph
        self._stream = torch.cuda.Stream(self._device)
        self._shapes: OrderedDict[object, _Buffers] = OrderedDict()
        self._bound: _Buffers | None = None
        self.stream = int(self._stream.cuda_stream)

    @property
    def is_bound(self) -> bool:
        """Whether inputs are on the device."""
        return self._bound is not None

    def bind(self, arrays: Sequence[Array]) -> None:
        """Copies the inputs to the device."""
        with self._torch.cuda.stream(self._stream):
            self._bound = self._put(arrays)
        self.synchronize()

    def launch(self) -> None:
        """Enqueues one inference on the bound inputs."""
        assert self._bound is not None  # noqa: S101 - the session has checked `is_bound`
        with self._torch.cuda.stream(self._stream):
            self._execute(self._bound)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Copies the inputs to the device, runs, and returns the outputs as host arrays."""
        torch = self._torch
        with torch.cuda.stream(self._stream):
            buffers = self._put(arrays)
            outputs = self._execute(buffers)
            if buffers.fetched is None:
                buffers.fetched = [
                    torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
                    for output in outputs
                ]
            for host, output in zip(buffers.fetched, outputs, strict=True):
                host.copy_(output, non_blocking=True)
        self.synchronize()
        return [host.numpy().copy() for host in buffers.fetched]

    def synchronize(self) -> None:
        """Waits until all enqueued work has completed."""
        self._stream.synchronize()

    def close(self) -> None:
        """Frees graphs and buffers."""
        self._stream.synchronize()
        self._bound = None
        self._shapes.clear()
        self._function = _closed

    def _put(self, arrays: Sequence[Array]) -> _Buffers:
        key = tuple(array.shape for array in arrays)
        buffers = self._shapes.get(key)
        if buffers is None:
            buffers = self._shapes[key] = self._allocate(arrays)
            if len(self._shapes) > _MAX_SHAPES:
                self._stream.synchronize()
                self._shapes.popitem(last=False)
        else:
            self._shapes.move_to_end(key)
        for array, staged, tensor in zip(arrays, buffers.staged, buffers.inputs, strict=True):
            np.copyto(staged.numpy(), array)
            tensor.copy_(staged, non_blocking=True)
        return buffers

    def _allocate(self, arrays: Sequence[Array]) -> _Buffers:
        torch = self._torch
        # torch takes the dtype from an empty array, since some dtypes have another name in numpy.
        staged = [
            torch.empty(
                array.shape,
                dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype,
                pin_memory=True,
            )
            for array in arrays
        ]
        return _Buffers(
            [torch.empty_like(tensor, device=self._device) for tensor in staged], staged
        )

    def _execute(self, buffers: _Buffers) -> Sequence[Any]:
        if not self._graph_wanted:
            return self._call(buffers)
        if buffers.graph is None:
            self._capture(buffers)
        buffers.graph.replay()
        return buffers.outputs

    def _call(self, buffers: _Buffers) -> Sequence[Any]:
        with self._torch.inference_mode():
            outputs: Sequence[Any] = self._function(*buffers.inputs)
        return outputs

    def _capture(self, buffers: _Buffers) -> None:
        torch = self._torch
        for _ in range(_WARM_UP):
            self._call(buffers)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                buffers.outputs = tuple(self._call(buffers))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise DeployError(
                f"the launches cannot be captured as a CUDA graph: {error}",
                "measure it without --cuda-graph",
            ) from error
        buffers.graph = graph


def _closed(*_tensors: Any) -> Any:
    raise RuntimeError("the session is closed")


def channels_last(torch: Any, tensor: Any) -> None:
    """Puts the weight of a 2-D convolution, in place, in the memory order that tensor cores read.

    The output of the convolution then has that order, too, and no run has to reorder weights.
    Compiled and in half precision, that makes ResNet-18 a quarter faster on an H100 (1,104
    instead of 1,451 microseconds at batch 256); in exact fp32 it would be a third slower (8,535
    instead of 6,525).
    """
    if tensor.ndim == 4 and tensor.dtype in (torch.float16, torch.bfloat16):  # noqa: PLR2004
        tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
