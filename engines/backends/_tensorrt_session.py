"""An open TensorRT plan."""

from __future__ import annotations

import hashlib
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines import cache, hardware
from engines.backends._tensorrt_library import started
from engines.checks import FeedCheck, closed_error, unbound_error
from engines.contract import Array, Feeds, OpenOptions, Outputs, TensorSpec
from engines.cuda import Cuda
from engines.errors import DeployError, NotAvailableError


@dataclass
class _Buffer:
    """A tensor's memory for the largest batch, on the device and in pinned host memory.

    Its addresses never change, so that captured graphs stay valid.
    """

    spec: TensorSpec
    device: int
    host: int
    array: Array  # of bytes, at `host`
    shape: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape) * np.dtype(self.spec.dtype).itemsize

    @property
    def view(self) -> Array:
        return self.array[: self.size].view(self.spec.dtype).reshape(self.shape)


class TensorRTSession:
    """An open plan on one GPU, on a stream of its own; see `engines.contract.Session`.

    Inputs and outputs go through pinned memory. With `OpenOptions.cuda_graph`, launches replay
    a CUDA graph, captured anew when the shape changes, since a context holds state of its shape.
    """

    def __init__(
        self,
        vendor: Any,
        name: str,
        path: Path,
        options: OpenOptions,
        logger: Any,
    ) -> None:
        """Opens the plan of a file.

        Args:
            vendor: The vendor's Python module.
            logger: The vendor's logger, with a list `errors` of its error messages.
        """
        self._vendor, self._name = vendor, name
        self.device = options.device
        self._graph_wanted = options.cuda_graph
        self._cuda = Cuda(options.device)
        plan = path.read_bytes()
        self._runtime = started(vendor.Runtime, logger, name)
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise DeployError(
                f"{name} does not accept {path}: {'; '.join(logger.errors)}",
                "build it again with this version and for this GPU"
                if hasattr(vendor, "Builder")
                # The lean runtime, which cannot build.
                else "build it with this version of TensorRT, for this GPU, and with"
                " --version-compatible",
            )
        self._add_weights(path, options.weights, logger)
        self._compiled: Any = None
        # What TensorRT for RTX compiles from a plan depends on the GPU and its driver.
        facts = (hashlib.sha256(plan).hexdigest()[:16], *hardware.gpu_fingerprint().values())
        self._cache = cache.cache_folder() / name / cache.slug("-".join(facts))
        self._saves_compiled = True
        specs = [self._spec(index) for index in range(self._engine.num_io_tensors)]
        self.inputs = tuple(spec for spec in specs if self._is_input(spec.name))
        self.outputs = tuple(spec for spec in specs if not self._is_input(spec.name))
        # By profile and input, the least and the largest shape. The first profile has all.
        self._profiles = [
            {spec.name: self._range(spec.name, index) for spec in self.inputs}
            for index in range(self._engine.num_optimization_profiles)
        ]
        self.batch: tuple[int, int] | None = None
        sizes = {}
        for spec in self.inputs:
            low, high = self._profiles[0][spec.name]
            if None in spec.shape[:1]:
                self.batch = (low[0], high[0])
            if None in spec.shape[1:]:
                sizes[spec.name] = low, high
        self._check = FeedCheck(self.inputs, self.batch, sizes)
        self._start()

    def _start(self) -> None:
        self._graph: Any = None
        self._graph_shapes: tuple[tuple[int, ...], ...] = ()
        self._buffers: list[_Buffer] = []
        self._bound = False
        self._profile = 0
        self._context: Any = self._new_context()
        if self._context is None:
            raise DeployError(f"{self._name} has no memory on the GPU for the plan's activations")
        self._stream = self._cuda.stream()
        self.stream: int | None = self._stream
        try:
            self._reserve()
        except BaseException:
            self.close()
            raise

    def another(self) -> TensorRTSession:
        """Returns a second session on the same plan to run beside this one; they share weights."""
        self._require_open()
        other = object.__new__(TensorRTSession)
        other.__dict__.update(self.__dict__)
        other._saves_compiled = False  # this session saves it
        other._start()
        return other

    def run(self, feeds: Feeds) -> Outputs:
        self._put(feeds)
        self.launch()
        _, outputs = self._split()
        for buffer in outputs:
            self._cuda.to_host(buffer.host, buffer.device, buffer.size, self._stream)
        self.synchronize()
        return {buffer.spec.name: buffer.view.copy() for buffer in outputs}

    def bind(self, feeds: Feeds) -> None:
        self._put(feeds)
        self.synchronize()

    def launch(self) -> None:
        self._require_open()
        if not self._bound:
            raise unbound_error()
        if not self._graph_wanted:
            self._enqueue()
            return
        shapes = tuple(buffer.shape for buffer in self._buffers)
        if shapes != self._graph_shapes:
            self._drop_graph()
            # TensorRT does what a new shape needs in the first launch, which must not be captured.
            self._enqueue()
            self.synchronize()
            self._graph = self._cuda.captured(self._stream, self._enqueue)
            self._graph_shapes = shapes
        self._cuda.launch(self._graph, self._stream)

    def synchronize(self) -> None:
        self._require_open()
        self._cuda.synchronize(self._stream)

    def close(self) -> None:
        if self._context is None:
            return
        try:
            self._cuda.synchronize(self._stream)
            self._save_compiled()
            self._drop_graph()
        finally:  # also after a device error, which every later call would return
            self._context = self._engine = self._compiled = None
            buffers, self._buffers = self._buffers, []
            for buffer in buffers:
                self._cuda.free(buffer.device)
                self._cuda.free_host(buffer.host)
            self._cuda.destroy_stream(self._stream)

    def _drop_graph(self) -> None:
        graph, self._graph, self._graph_shapes = self._graph, None, ()
        if graph is not None:
            self._cuda.destroy_graph(graph)

    def _add_weights(self, path: Path, weights: Path | None, logger: Any) -> None:
        """Puts the weights of an ONNX graph into a plan that was built without them."""
        kinds = getattr(self._vendor, "EngineStat", None)
        stripped = kinds and self._engine.get_engine_stat(kinds.STRIPPED_WEIGHTS_SIZE)
        if not stripped or stripped < 0:
            return
        if weights is None:
            raise DeployError(
                f"{path} was built without its weights, of {stripped:,} bytes",
                "open it beside the graph that it was built from, or build it with weights",
            )
        if not hasattr(self._vendor, "OnnxParserRefitter"):  # the lean runtime
            raise DeployError(
                f"{path} was built without its weights, which this runtime cannot add",
                "build it with weights",
            )
        refitter = self._vendor.Refitter(self._engine, logger)
        parser = self._vendor.OnnxParserRefitter(refitter, logger)
        if not (parser.refit_from_file(str(weights)) and refitter.refit_cuda_engine()):
            raise DeployError(
                f"{self._name} cannot put the weights of {weights} into {path}:"
                f" {'; '.join(logger.errors)}",
                "open it beside the graph that it was built from",
            )

    def _new_context(self) -> Any:
        self._cuda.use()
        if not hasattr(self._engine, "create_runtime_config"):
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        if hasattr(config, "create_runtime_cache"):  # TensorRT for RTX, which compiles as it opens
            # Otherwise the first launches of a shape use fallbacks, even when timed or captured.
            kinds = self._vendor.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
            self._compiled = config.create_runtime_cache()
            if self._cache.is_file():
                # A cache of another driver or version is rejected, and everything compiled again.
                self._compiled.deserialize(self._cache.read_bytes())
            config.set_runtime_cache(self._compiled)
        return self._engine.create_execution_context(config)

    def _save_compiled(self) -> None:
        """Saves the compiled kernels, for the next session on this plan and GPU."""
        if self._compiled is None or not self._saves_compiled:
            return
        cache.keep(self._cache, bytes(self._compiled.serialize()))

    def _reserve(self) -> None:
        """Allocates every tensor at its largest size, and gives its address to the context."""
        for spec in self.inputs:
            self._set_shape(spec.name, self._profiles[0][spec.name][1])
        for spec in (*self.inputs, *self.outputs):
            shape = tuple(self._context.get_tensor_shape(spec.name))
            if min(shape, default=0) < 0:
                raise DeployError(
                    f"the shape of {spec.name} depends on the values of the inputs",
                    "use another engine",
                )
            size = max(1, math.prod(shape) * np.dtype(spec.dtype).itemsize)
            device = self._cuda.allocate(size)
            try:
                host, array = self._cuda.allocate_host(size)
            except BaseException:
                self._cuda.free(device)
                raise
            self._buffers.append(_Buffer(spec, device, host, array, shape))
            self._context.set_tensor_address(spec.name, device)

    def _put(self, feeds: Feeds) -> None:
        """Enqueues the copies of inputs to the device and sets all shapes."""
        self._require_open()
        self._check(feeds)
        inputs, outputs = self._split()
        same = self._bound and all(b.shape == feeds[b.spec.name].shape for b in inputs)
        if len(self._profiles) > 1 and not same:
            self._choose_profile(feeds)
        for buffer in inputs:
            feed = feeds[buffer.spec.name]
            if buffer.shape != feed.shape or not self._bound:
                buffer.shape = feed.shape
                self._set_shape(buffer.spec.name, buffer.shape)
            np.copyto(buffer.view, feed)
            self._cuda.to_device(buffer.device, buffer.host, buffer.size, self._stream)
        for buffer in outputs:
            buffer.shape = tuple(self._context.get_tensor_shape(buffer.spec.name))
        self._bound = True

    def _choose_profile(self, feeds: Feeds) -> None:
        """Switches to the profile with the smallest range that has the shapes of the inputs."""
        fitting = {
            index: sum(math.prod(high) - math.prod(low) for low, high in ranges.values())
            for index, ranges in enumerate(self._profiles)
            if all(
                all(map(operator.le, low, feeds[name].shape))
                and all(map(operator.ge, high, feeds[name].shape))
                for name, (low, high) in ranges.items()
            )
        }
        best = min(fitting, key=fitting.__getitem__)
        if best == self._profile:
            return
        if not self._context.set_optimization_profile_async(best, self._stream):
            raise DeployError(f"{self._name} does not switch to profile {best} of the plan")
        self.synchronize()
        self._profile = best
        self._bound = False  # the switch has dropped the shapes

    def _range(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(low), tuple(high)

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            raise DeployError(f"{self._name} does not take {name} of shape {shape}")

    def _split(self) -> tuple[list[_Buffer], list[_Buffer]]:
        count = len(self.inputs)
        return self._buffers[:count], self._buffers[count:]

    def _enqueue(self) -> None:
        self._cuda.use()
        if not self._context.execute_async_v3(self._stream):
            raise DeployError(f"{self._name} could not enqueue the inference")

    def _require_open(self) -> None:
        if self._context is None:
            raise closed_error(self._name)

    def _is_input(self, name: str) -> bool:
        mode = self._engine.get_tensor_mode(name)
        return bool(mode == self._vendor.TensorIOMode.INPUT)

    def _spec(self, index: int) -> TensorSpec:
        name = self._engine.get_tensor_name(index)
        shape = tuple(None if axis == -1 else axis for axis in self._engine.get_tensor_shape(name))
        kind = self._engine.get_tensor_dtype(name)
        try:
            return TensorSpec(name, np.dtype(self._vendor.nptype(kind)).name, shape)
        except TypeError as error:
            raise NotAvailableError(
                f"numpy has no dtype for {name}, which is {kind.name}",
                "export it with inputs and outputs of another type",
            ) from error


def inspected(vendor: Any, plan: Any, logger: Any, name: str) -> str:
    """Returns the vendor's description of a new plan's layers, as JSON.

    Raises:
        DeployError: The plan cannot be opened.
    """
    engine = started(vendor.Runtime, logger, name).deserialize_cuda_engine(plan)
    if engine is None:
        raise DeployError(f"{name} cannot open its new plan: {'; '.join(logger.errors)}")
    kind = vendor.LayerInformationFormat.JSON
    return str(engine.create_engine_inspector().get_engine_information(kind))
