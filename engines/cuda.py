"""One GPU's memory, copies, events and graphs, through NVIDIA's bindings of the CUDA runtime.

The bindings take two and a half megabytes, where torch would take gigabytes.
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
            NotAvailableError: The bindings, the driver or the device are missing.
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
            DeployError: The device has less free memory.
        """
        return int(self._memory("cudaMalloc", size))

    def allocate_host(self, size: int) -> tuple[int, Array]:
        """Returns the address of pinned host memory, and the memory as a uint8 array `[size]`.

        The driver would first copy pageable memory into pinned memory, and the device's copy would
        wait for the host.
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
        """Enqueues a copy of `size` bytes from host memory of `allocate_host`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Enqueues a copy of `size` bytes into host memory of `allocate_host`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def captured(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """Captures the work that `enqueue` puts on a stream; returns an executable graph."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:  # a stream left in capture mode would reject all later calls
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

        Timed by CUDA events, whose resolution is about half a microsecond.
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
            self._runtime.cudaGetLastError()  # clears the error, or later calls would return it
            free, total = self._call("cudaMemGetInfo")
            raise DeployError(
                f"out of GPU memory: {size / 2**20:,.1f} MiB asked for, {free / 2**20:,.1f} of"
                f" {total / 2**20:,.1f} MiB free",
                "build with a smaller --batch-max, or stop other programs on the GPU",
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
        failure = f"{name} returned {error.name}"
        absent = (
            known.cudaErrorInsufficientDriver,
            known.cudaErrorCallRequiresNewerDriver,
            known.cudaErrorSystemDriverMismatch,
            known.cudaErrorNoDevice,
            known.cudaErrorInvalidDevice,
        )
        if error in absent:
            raise NotAvailableError(
                f"CUDA device {self.index} cannot be used here: {failure}",
                "install a current NVIDIA driver, or use --device cpu",
            )
        raise DeployError(f"CUDA: {failure}")
