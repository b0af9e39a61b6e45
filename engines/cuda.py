"""One GPU's memory, copies, events and graphs, through NVIDIA's bindings of the CUDA runtime.

Two and a half megabytes beside a TensorRT plan, where torch would be gigabytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from engines.checks import import_vendor
from engines.contract import Array
from engines.errors import DeployError, NotAvailableError

INSTALL = "pip install cuda-bindings"


class Cuda:
    """A device of the CUDA runtime.

    Every method may be called from any thread: CUDA's current device is per thread, so it is set
    before each call.
    """

    def __init__(self, device: str) -> None:
        """Takes "cuda" or "cuda:N".

        Raises:
            NotAvailableError: No bindings, no driver, or no such device.
        """
        self._runtime = import_vendor("cuda.bindings.runtime", INSTALL)
        self.index = int(device.partition(":")[2] or 0)
        self.use()

    def use(self) -> None:
        """Makes this the calling thread's device."""
        self._call("cudaSetDevice", self.index)

    def allocate(self, size: int) -> int:
        """Returns the address of `size` bytes on the device.

        Raises:
            DeployError: The device has not that much left.
        """
        return int(self._memory("cudaMalloc", size))

    def allocate_host(self, size: int) -> tuple[int, Array]:
        """Returns address and bytes of host memory that the device copies from by itself.

        Pageable memory would first be copied into such memory by the driver, and would make the
        copy wait for the host.
        """
        address = int(self._memory("cudaHostAlloc", size, 0))
        block = (ctypes.c_uint8 * size).from_address(address)
        return address, np.ctypeslib.as_array(block)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def free_host(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def stream(self) -> int:
        """Returns a stream that does not wait for the default one."""
        flag = self._runtime.cudaStreamNonBlocking
        return int(self._call("cudaStreamCreateWithFlags", flag))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Enqueues a copy from host memory of `allocate_host`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Enqueues a copy into host memory of `allocate_host`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def captured(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """Returns what `enqueue` puts on a stream as a graph that can be launched again."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:  # a stream left capturing would refuse everything after
            _, graph = self._runtime.cudaStreamEndCapture(stream)
            if graph:
                self._runtime.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def timed(self, stream: int, count: int, action: Callable[[], None]) -> list[float]:
        """Returns how long each of `count` calls keeps a stream busy, in seconds.

        By CUDA events, whose resolution is about half a microsecond.
        """
        pairs = [[self._call("cudaEventCreate") for _ in range(2)] for _ in range(count)]
        try:
            for start, end in pairs:
                self._call("cudaEventRecord", start, stream)
                action()
                self._call("cudaEventRecord", end, stream)
            self.synchronize(stream)
            return [self._call("cudaEventElapsedTime", *pair) / 1e3 for pair in pairs]
        finally:
            for pair in pairs:
                for event in pair:
                    self._call("cudaEventDestroy", event)

    def _memory(self, name: str, size: int, *more: int) -> Any:
        errors = self._runtime.cudaError_t
        self.use()
        error, address = getattr(self._runtime, name)(size, *more)
        if error == errors.cudaErrorMemoryAllocation:
            self._runtime.cudaGetLastError()  # clears the error, which later calls would return
            free, total = self._call("cudaMemGetInfo")
            raise DeployError(
                f"out of GPU memory: {size / 2**20:,.1f} MiB asked for, {free / 2**20:,.1f} of"
                f" {total / 2**20:,.1f} MiB free",
                "build with a smaller --batch-max, or end what else runs on the GPU",
            )
        self._check(name, error)
        return address

    def _call(self, name: str, *arguments: Any) -> Any:
        if name != "cudaSetDevice":
            self.use()
        error, *values = getattr(self._runtime, name)(*arguments)
        self._check(name, error)
        return values[0] if len(values) == 1 else tuple(values)

    def _check(self, name: str, error: Any) -> None:
        known = self._runtime.cudaError_t
        if error == known.cudaSuccess:
            return
        failure = f"{name} says {error.name}"
        absent = (
            known.cudaErrorInsufficientDriver,
            known.cudaErrorNoDevice,
            known.cudaErrorInvalidDevice,
        )
        if error in absent:
            raise NotAvailableError(
                f"CUDA device {self.index} cannot be used here: {failure}",
                "install the NVIDIA driver, or use --device cpu",
            )
        raise DeployError(f"CUDA: {failure}")
