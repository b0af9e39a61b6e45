"""What an open plan does with memory, shapes and graphs.

TensorRT and a GPU are stood in for, since neither opens a plan without the other: this shows that
our own bookkeeping holds, and nothing of theirs. On a machine with a GPU the contract tests of
engines run the real ones.
"""

import ctypes
import enum
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import cuda, hardware
from engines.backends._tensorrt_session import TensorRTSession
from engines.contract import OpenOptions
from engines.errors import DeployError, NotAvailableError

LARGEST = 4


class Error(enum.Enum):
    cudaSuccess = 0  # noqa: N815 - the vendor's names
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorCallRequiresNewerDriver = 36  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorInvalidDevice = 101  # noqa: N815
    cudaErrorSystemDriverMismatch = 803  # noqa: N815


OK = (Error.cudaSuccess, None)


class Runtime:
    """A CUDA runtime whose device is the host, and which runs enqueued work at once."""

    cudaError_t = Error  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, memory: int = 2**20) -> None:
        self.free_bytes = memory
        self.blocks: dict[int, Any] = {}
        self.streams = 0
        self.graphs = 0
        self.recording: list[Callable[[], None]] | None = None
        self.copies = 0

    def do(self, action: Callable[[], None]) -> None:
        if self.recording is not None:
            self.recording.append(action)
        else:
            action()

    def _allocate(self, size: int, *_: int) -> tuple[Error, int]:
        if size > self.free_bytes:
            return Error.cudaErrorMemoryAllocation, 0
        self.free_bytes -= size
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return Error.cudaSuccess, ctypes.addressof(block)

    cudaMalloc = cudaHostAlloc = _allocate  # noqa: N815

    def _free(self, address: int) -> tuple[Error, None]:
        self.free_bytes += len(self.blocks.pop(address))
        return OK

    cudaFree = cudaFreeHost = _free  # noqa: N815

    def cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, _kind: int, _stream: int
    ) -> tuple[Error, None]:
        self.copies += 1
        ctypes.memmove(target, source, size)
        return OK

    def cudaMemGetInfo(self) -> tuple[Error, int, int]:  # noqa: N802
        return Error.cudaSuccess, self.free_bytes, 2**20

    def cudaStreamCreateWithFlags(self, _flag: int) -> tuple[Error, int]:  # noqa: N802
        self.streams += 1
        return Error.cudaSuccess, self.streams

    def cudaStreamDestroy(self, _stream: int) -> tuple[Error, None]:  # noqa: N802
        self.streams -= 1
        return OK

    def cudaStreamBeginCapture(self, _stream: int, _mode: int) -> tuple[Error, None]:  # noqa: N802
        self.recording = []
        return OK

    def cudaStreamEndCapture(self, _stream: int) -> tuple[Error, Any]:  # noqa: N802
        recorded, self.recording = self.recording, None
        return Error.cudaSuccess, recorded

    def cudaGraphInstantiate(self, graph: Any, _flags: int) -> tuple[Error, Any]:  # noqa: N802
        self.graphs += 1
        return Error.cudaSuccess, graph

    def cudaGraphLaunch(self, graph: Any, _stream: int) -> tuple[Error, None]:  # noqa: N802
        for action in graph:
            action()
        return OK

    def cudaGraphExecDestroy(self, _graph: Any) -> tuple[Error, None]:  # noqa: N802
        self.graphs -= 1
        return OK

    def __getattr__(self, name: str) -> Any:
        assert name.startswith("cuda"), name
        return lambda *_: OK


class Context:
    """Computes y = 2 x, `[batch, 3]`, at the addresses it was given."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.enqueued = 0
        self.profile = 0

    def set_optimization_profile_async(self, index: int, _stream: int) -> bool:
        self.profile, self.shape = index, ()
        return True

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, _stream: int) -> bool:
        self.enqueued += 1
        count = int(np.prod(self.shape))

        def compute() -> None:
            x, y = ((ctypes.c_float * count).from_address(self.addresses[name]) for name in "xy")
            for index in range(count):
                y[index] = 2 * x[index]

        self.runtime.do(compute)
        return True


class Vendor:
    """The part of TensorRT that a session uses."""

    TensorIOMode = SimpleNamespace(INPUT=0, OUTPUT=1)

    def __init__(
        self, runtime: Runtime, *, accepts: bool = True, batches: tuple[int, ...] = ()
    ) -> None:
        self.runtime = runtime
        self.profiles = [(1, LARGEST), *((batch, batch) for batch in batches)]
        self.num_optimization_profiles = len(self.profiles)
        self.accepts = accepts
        self.contexts: list[Context] = []
        self.num_io_tensors = 2

    def Runtime(self, logger: Any) -> "Vendor":  # noqa: N802
        self.logger = logger
        return self

    def deserialize_cuda_engine(self, _plan: bytes) -> "Vendor | None":
        if not self.accepts:
            self.logger.errors.append("no good")
        return self if self.accepts else None

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self.runtime))
        return self.contexts[-1]

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, 3)

    def get_tensor_mode(self, name: str) -> int:
        return "xy".index(name)

    def get_tensor_dtype(self, _name: str) -> type:
        return np.float32

    def nptype(self, kind: type) -> type:
        return kind

    def get_tensor_profile_shape(self, _name: str, profile: int) -> tuple[tuple[int, int], ...]:
        least, largest = self.profiles[profile]
        return (least, 3), (least, 3), (largest, 3)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runtime:
    stand_in = Runtime()
    monkeypatch.setattr(cuda, "import_vendor", lambda *_: stand_in)
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    return stand_in


def opened(vendor: Vendor, tmp_path: Path, **how: Any) -> TensorRTSession:
    plan = tmp_path / "engine"
    plan.write_bytes(b"plan")
    options = OpenOptions("cuda:0", **how)
    return TensorRTSession(vendor, "tensorrt", plan, options, SimpleNamespace(errors=[]))


def rows(count: int, first: float = 0.0) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.arange(first, first + 3 * count, dtype=np.float32).reshape(count, 3)}


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_every_batch_gives_its_own_outputs(
    runtime: Runtime, tmp_path: Path, cuda_graph: bool
) -> None:
    before = runtime.free_bytes
    session = opened(Vendor(runtime), tmp_path, cuda_graph=cuda_graph)
    assert session.batch == (1, LARGEST)
    outputs = {}
    for count in (2, 4, 1, 2):
        outputs[count] = session.run(rows(count, first=count))["y"]
    for count, output in outputs.items():  # an output is not overwritten by the next
        np.testing.assert_array_equal(output, 2 * rows(count, first=count)["x"])
    with pytest.raises(DeployError, match="batch 5, outside"):
        session.run(rows(5))
    session.close()
    session.close()
    with pytest.raises(DeployError, match="is closed"):
        session.run(rows(1))
    assert (runtime.free_bytes, runtime.streams, runtime.graphs) == (before, 0, 0)


def test_a_graph_is_captured_once_until_the_shape_changes(runtime: Runtime, tmp_path: Path) -> None:
    vendor = Vendor(runtime)
    session = opened(vendor, tmp_path, cuda_graph=True)
    session.bind(rows(2))
    for _ in range(5):
        session.launch()
    assert (runtime.graphs, vendor.contexts[0].enqueued) == (1, 2)  # one to warm up, one captured
    session.run(rows(3))
    session.run(rows(3))
    assert (runtime.graphs, vendor.contexts[0].enqueued) == (1, 4)
    np.testing.assert_array_equal(session.run(rows(2, 5))["y"], 2 * rows(2, 5)["x"])
    assert (runtime.graphs, vendor.contexts[0].enqueued) == (1, 6)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_each_shape_runs_with_the_narrowest_profile_that_has_it(
    runtime: Runtime, tmp_path: Path, cuda_graph: bool
) -> None:
    vendor = Vendor(runtime, batches=(1, LARGEST))
    session = opened(vendor, tmp_path, cuda_graph=cuda_graph)
    used = []
    for count in (LARGEST, 1, 2, 1, LARGEST):  # the buffers begin with the largest shape
        output = session.run(rows(count, first=count))["y"]
        np.testing.assert_array_equal(output, 2 * rows(count, first=count)["x"])
        used.append(vendor.contexts[0].profile)
    assert used == [2, 1, 0, 1, 2]
    session.close()


def test_a_failed_capture_is_ended(runtime: Runtime, tmp_path: Path) -> None:
    vendor = Vendor(runtime)
    session = opened(vendor, tmp_path, cuda_graph=True)
    context = vendor.contexts[0]
    enqueue = context.execute_async_v3
    context.execute_async_v3 = lambda stream: runtime.recording is None and enqueue(stream)  # type: ignore[method-assign]
    session.bind(rows(2))
    with pytest.raises(DeployError, match="could not enqueue"):
        session.launch()
    assert runtime.recording is None
    context.execute_async_v3 = enqueue  # type: ignore[method-assign]
    session.launch()
    session.close()


def test_launching_bound_inputs_copies_nothing(runtime: Runtime, tmp_path: Path) -> None:
    session = opened(Vendor(runtime), tmp_path)
    with pytest.raises(DeployError, match="before bind"):
        session.launch()
    session.bind(rows(2))
    assert runtime.copies == 1
    session.launch()
    session.synchronize()
    assert runtime.copies == 1


def test_sessions_that_share_a_plan_are_independent(runtime: Runtime, tmp_path: Path) -> None:
    vendor = Vendor(runtime)
    one = opened(vendor, tmp_path)
    two = one.another()
    assert len(vendor.contexts) == 2
    one.bind(rows(1))
    np.testing.assert_array_equal(two.run(rows(2, 7))["y"], 2 * rows(2, 7)["x"])
    one.close()
    np.testing.assert_array_equal(two.run(rows(1, 5))["y"], 2 * rows(1, 5)["x"])
    two.close()
    assert runtime.streams == 0


def test_out_of_memory_is_reported_and_frees_what_was_allocated(
    runtime: Runtime, tmp_path: Path
) -> None:
    session_bytes = 4 * LARGEST * 3 * 4  # two tensors, on the device and in pinned host memory
    runtime.free_bytes = session_bytes - 1
    with pytest.raises(DeployError, match=r"out of GPU memory: 0\.0 MiB asked for, 0\.0 of 1\.0"):
        opened(Vendor(runtime), tmp_path)
    assert (runtime.free_bytes, runtime.streams) == (session_bytes - 1, 0)
    runtime.free_bytes = session_bytes
    opened(Vendor(runtime), tmp_path).close()


def test_a_rejected_plan_reports_the_vendors_message(runtime: Runtime, tmp_path: Path) -> None:
    vendor = Vendor(runtime, accepts=False)
    with pytest.raises(DeployError, match=r"does not accept .*: no good") as caught:
        opened(vendor, tmp_path)
    assert "--version-compatible" in caught.value.hint  # for the lean runtime, which cannot build
    vendor.Builder = object  # type: ignore[attr-defined]
    with pytest.raises(DeployError) as caught:
        opened(vendor, tmp_path)
    assert "--version-compatible" not in caught.value.hint


@pytest.mark.parametrize("raises", [False, True])
def test_a_library_that_does_not_start_is_not_called(
    runtime: Runtime, tmp_path: Path, raises: bool
) -> None:
    vendor = Vendor(runtime)

    def start(logger: Any) -> object:
        if raises:
            raise TypeError("factory function returned nullptr")
        logger.errors.append("CUDA initialization failure with error: 35")
        return object()  # on which every call would end the process

    vendor.Runtime = start  # type: ignore[assignment, method-assign]
    reason = "returned nullptr" if raises else "failure with error: 35"
    with pytest.raises(NotAvailableError, match=f"tensorrt cannot be started here: .*{reason}"):
        opened(vendor, tmp_path)


@pytest.mark.parametrize("weights", [None, Path("graph")])
def test_a_plan_without_weights_is_not_opened_by_the_lean_runtime(
    runtime: Runtime, tmp_path: Path, weights: Path | None
) -> None:
    vendor = Vendor(runtime)
    vendor.EngineStat = SimpleNamespace(STRIPPED_WEIGHTS_SIZE=1)  # type: ignore[attr-defined]
    vendor.get_engine_stat = lambda _kind: 1000  # type: ignore[attr-defined]
    with pytest.raises(DeployError, match="was built without its weights"):
        opened(vendor, tmp_path, weights=weights)


@pytest.mark.skipif(bool(hardware.gpus()), reason="this machine has a GPU")
def test_the_real_runtime_reports_a_missing_driver() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(NotAvailableError, match="CUDA device 0 cannot be used here: cudaSetDevice"):
        cuda.Cuda("cuda")
