"""The ONNX Runtime engines, which differ only in the execution provider."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines import hardware, temporary
from engines.backends._onnxruntime_cuda import NHWC, OnnxRuntimeCudaSession, provider_options
from engines.backends._onnxruntime_profile import profiled
from engines.checks import (
    FeedCheck,
    available_on_cpu,
    choose_device,
    closed_error,
    import_vendor,
    installed,
    unbound_error,
)
from engines.contract import (
    Array,
    Availability,
    BuildOptions,
    Engine,
    Feeds,
    OpenOptions,
    Outputs,
    TensorSpec,
)
from engines.cuda import Cuda
from engines.errors import DeployError, NotAvailableError
from engines.layer_report import Layer, LayerTime, precision

_INSTALL = "pip install onnxruntime-gpu"
_DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime")
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
# Operators that compute shapes. All of them have CUDA kernels for floats, so any that runs on the
# CPU computes integers.
_SHAPE_OPERATORS = {
    *("Shape", "Size", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Constant", "Cast"),
    *("Add", "Sub", "Mul", "Div", "ReduceProd", "Range", "Equal", "Where", "Expand", "Reshape"),
}
_NAMED = 3  # how many nodes an error names
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64)]
# numpy's names of ONNX Runtime's element types.
_DTYPES = {
    f"tensor({theirs})": name
    for theirs, name in {
        "float": "float32",
        "double": "float64",
        "string": "object",
        "float8e4m3fn": "float8_e4m3fn",
        "float8e4m3fnuz": "float8_e4m3fnuz",
        "float8e5m2": "float8_e5m2",
        "float8e5m2fnuz": "float8_e5m2fnuz",
        **{name: name for name in ("bool", "float16", "bfloat16", *_INTEGERS)},
    }.items()
}


@dataclass(frozen=True)
class OnnxRuntimeEngine(Engine):
    """ONNX Runtime with one execution provider.

    For CPUs, `build` applies the optimisations that are valid on every CPU ("extended") and saves
    the graph. `open` adds those for this CPU (memory layout), which must not be saved, since
    another CPU may lack the instructions. For GPUs, `open` applies all of them.

    Attributes:
        provider: The execution provider that has to run every node. A node that it cannot run is
            an error; ONNX Runtime by itself would run it on the CPU.
        settings: The provider's options.
        needs_gpu: Whether `build` needs a GPU, too.
        missing: Returns what else the provider needs and this machine lacks; "" if nothing.
    """

    name: str
    provider: str
    devices: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    needs_gpu: bool = False
    cuda_graphs: bool = False
    build_options: frozenset[str] = frozenset()
    missing: Callable[[], str] = lambda: ""
    lacks: frozenset[str] = frozenset({"fp8"})  # it converts fp8, but has no products in fp8
    module: str = "onnxruntime"
    suffix: str = ".onnx"
    source: Literal["graph", "program"] = "graph"

    @property
    def _on_cpu(self) -> bool:
        return self.devices == ("cpu",)

    def available(self) -> Availability:
        library = available_on_cpu(_DISTRIBUTIONS, _INSTALL)
        if not library.build or self._on_cpu:
            return library
        ((name, version),) = installed(_DISTRIBUTIONS).items()
        if name != _DISTRIBUTIONS[0]:
            return Availability(False, False, f"{name} {version} has no {self.provider}", _INSTALL)
        if problem := hardware.no_gpu() or self.missing() or self.gpu_problem(0):
            return Availability(not self.needs_gpu, False, f"{library.reason}; {problem}")
        return Availability(True, True, f"{library.reason}, {hardware.gpus()[0]['name']}")

    def gpu_problem(self, index: int) -> str:
        return hardware.runtime_problem(index, self.module)

    def fingerprint(self) -> dict[str, str]:
        facts = hardware.cpu_fingerprint() if self._on_cpu else hardware.gpu_fingerprint()
        return {**installed(_DISTRIBUTIONS), **facts}

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Writes the optimised ONNX graph, with a dynamic batch.

        The only option is `prefer_nhwc`, for the CUDA provider, which optimises on opening.

        Returns:
            The nodes of that graph, with the types they compute in.

        Raises:
            DeployError: ONNX Runtime does not accept the graph.
            NotAvailableError: This provider builds on a GPU, and this machine has none.
        """
        runtime = import_vendor(self.module, _INSTALL)
        onnx = import_vendor("onnx", "pip install onnx")
        if not self._on_cpu:
            if self.needs_gpu:
                self._require_gpu()
            _copy(onnx, source, target, prefer_nhwc=options.prefer_nhwc)
            return ()
        settings = runtime.SessionOptions()
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        settings.optimized_model_filepath = str(target)
        settings.log_severity_level = 4  # it also raises the errors that it logs
        _session(runtime, source, settings, [_CPU])
        return _layers(onnx, target)

    def open(
        self, built: Path, options: OpenOptions
    ) -> OnnxRuntimeSession | OnnxRuntimeCudaSession:
        """Opens a graph.

        Raises:
            NotAvailableError: The provider cannot run here, or has no kernel for a node.
            DeployError: ONNX Runtime does not accept the graph.
        """
        device = choose_device(self, options.device)
        runtime = import_vendor(self.module, _INSTALL)
        settings = _settings(runtime, options)
        if not self._on_cpu:
            return self._open_on_gpu(runtime, built, settings, device, options)
        session = _session(runtime, built, settings, [_CPU])
        return OnnxRuntimeSession(session, self.name)

    def layer_times(
        self, built: Path, options: OpenOptions, feeds: Feeds, runs: int
    ) -> tuple[LayerTime, ...]:
        """Returns the time of each node; () for a GPU, where nodes only launch kernels."""
        if not self._on_cpu:
            return ()
        runtime = import_vendor(self.module, _INSTALL)
        settings = _settings(runtime, options)
        settings.enable_profiling = True
        with temporary.folder() as folder:
            settings.profile_file_prefix = str(folder / "profile")
            return profiled(_session(runtime, built, settings, [_CPU]), feeds, runs)

    def _open_on_gpu(
        self, runtime: Any, built: Path, settings: Any, device: str, options: OpenOptions
    ) -> OnnxRuntimeCudaSession:
        self._require_gpu()
        # CUDA and cuDNN are in Python packages, where the system's linker does not look for them.
        # preload_dlls prints every folder without them.
        with redirect_stdout(io.StringIO()):
            runtime.preload_dlls()
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        cuda = Cuda(device)
        stream = cuda.stream()
        try:
            chosen = {
                "device_id": str(cuda.index),
                "user_compute_stream": str(stream),
                **self.settings,
            }
            if self.provider == _CUDA:
                chosen |= provider_options(built, cuda_graph=options.cuda_graph)
                # Otherwise it quantizes biases and keeps weights in int8, for integer kernels that
                # this provider lacks: nodes then run on the CPU, and every run casts.
                settings.add_session_config_entry("session.disable_quant_qdq", "1")
            session = _session(runtime, built, settings, [(self.provider, chosen), _CPU])
            if session.get_providers()[0] != self.provider:
                raise NotAvailableError(
                    f"ONNX Runtime could not load {self.provider}: it would run on"
                    f" {session.get_providers()[0]} instead",
                    "check its CUDA, cuDNN and TensorRT libraries",
                )
            if others := _nodes_on_cpu(session):
                raise NotAvailableError(
                    f"{self.provider} has no kernel for {len(others)} nodes of {built.name}, which"
                    f" ONNX Runtime would run on the CPU: {', '.join(others[:_NAMED])}",
                    "build the graph for another engine, or in another precision",
                )
        except BaseException:
            cuda.destroy_stream(stream)
            raise
        return OnnxRuntimeCudaSession(
            session,
            runtime,
            self.name,
            cuda,
            stream,
            cuda_graph=options.cuda_graph,
            inputs=tuple(_spec(value) for value in session.get_inputs()),
            outputs=tuple(_spec(value) for value in session.get_outputs()),
        )

    def _require_gpu(self) -> None:
        if not hardware.gpus():
            raise NotAvailableError(
                f"engine {self.name!r} runs on an NVIDIA GPU, and this machine has none",
                "use the engine onnxruntime, or copy the bundle to a machine that has one",
            )


def _settings(runtime: Any, options: OpenOptions) -> Any:
    """Returns ONNX Runtime's options for a session."""
    settings = runtime.SessionOptions()
    levels = runtime.GraphOptimizationLevel
    settings.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if options.optimize else levels.ORT_DISABLE_ALL
    )
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    # Idle workers must not spin on after a run: they would slow down whatever runs next, which in a
    # benchmark is a competitor.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.log_severity_level = 4  # it also raises the errors that it logs
    return settings


def _copy(onnx: Any, source: Path, target: Path, *, prefer_nhwc: bool) -> None:
    """Copies a graph as it is: a provider for GPUs optimises it when it is opened."""
    try:
        onnx.checker.check_model(str(source))
        model = onnx.load(source, load_external_data=False)
    except Exception as error:  # onnx and protobuf share no exception type
        raise DeployError(
            f"ONNX Runtime does not accept {source}: {error}", "export it again"
        ) from error
    external = onnx.TensorProto.EXTERNAL
    if any(tensor.data_location == external for tensor in model.graph.initializer):
        raise DeployError(
            f"{source} has its weights in another file, which this engine does not support",
            "build another engine",
        )
    if not prefer_nhwc:
        shutil.copyfile(source, target)
        return
    model.metadata_props.add(key=NHWC, value="1")
    target.write_bytes(model.SerializeToString(deterministic=True))


def _nodes_on_cpu(session: Any) -> list[str]:
    """Returns the nodes that ONNX Runtime runs on the CPU, except those that compute shapes.

    ONNX Runtime puts these on the CPU by itself, since the host needs the shapes.
    """
    return [
        f"{node.op_type} {node.name}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == _CPU
        for node in part.get_nodes()
        if node.op_type not in _SHAPE_OPERATORS
    ]


def _session(runtime: Any, path: Path, settings: Any, providers: list[Any]) -> Any:
    try:
        return runtime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # its exception types share no public base
        if "graph capture" in str(error):
            raise NotAvailableError(
                f"ONNX Runtime cannot capture {path.name} as a CUDA graph: {error}",
                "measure it without --cuda-graph",
            ) from error
        if "NOT_IMPLEMENTED" in str(error):
            raise NotAvailableError(
                f"ONNX Runtime has no CPU kernel for a node of {path.name}: {error}",
                "build this precision for another engine",
            ) from error
        if "serialization failed" in str(error):
            raise DeployError(
                f"ONNX Runtime cannot write {settings.optimized_model_filepath}: {error}",
                "free some space there; it writes no graph of more than 2 GiB either",
            ) from error
        raise DeployError(
            f"ONNX Runtime does not accept {path}: {error}",
            "the message names the node or the field at fault",
        ) from error


def _layers(onnx: Any, path: Path) -> tuple[Layer, ...]:
    """Reads the nodes of an optimised graph.

    Shape inference does not know ONNX Runtime's own operators, and the graph has no types for their
    outputs. So a node's type is that of its first input with a known type, or int8 for quantized
    operators.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    known = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    names = {kind: onnx.helper.tensor_dtype_to_np_dtype(kind).name for kind in {*types.values()}}
    layers = []
    for node in graph.node:
        if node.op_type.startswith(("QLinear", "QGemm", "MatMulInteger", "ConvInteger")):
            dtype = "int8"
        else:
            # Where the type of the data is not known, that of the weight is.
            dtypes = [names[types[name]] for name in node.input if types.get(name)]
            dtype = dtypes[0] if dtypes else ""
        layers.append(Layer(node.name, node.op_type, precision(dtype), (node.name,)))
    return tuple(layers)


class OnnxRuntimeSession:
    """An open ONNX Runtime session on the CPU; see `engines.contract.Session`."""

    batch: tuple[int, int] | None = None
    stream: int | None = None
    device = "cpu"

    def __init__(self, session: Any, name: str) -> None:
        self._session: Any = session
        self._name = name
        self._binding: Any = None
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())
        self._check = FeedCheck(self.inputs)
        self._names = [spec.name for spec in self.outputs]

    def run(self, feeds: Feeds) -> Outputs:
        self._require_open()
        self._check(feeds)
        try:
            outputs: list[Array] = self._session.run(self._names, dict(feeds))
        except Exception as error:  # its exception types share no public base
            raise _failed(error) from error
        return dict(zip(self._names, outputs, strict=True))

    def bind(self, feeds: Feeds) -> None:
        self._require_open()
        self._check(feeds)
        self._binding = self._session.io_binding()
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._names:
            self._binding.bind_output(name, "cpu")

    def launch(self) -> None:
        self._require_open()
        if self._binding is None:
            raise unbound_error()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its exception types share no public base
            raise _failed(error) from error

    def synchronize(self) -> None:
        """Does nothing: a launch has completed when it returns."""

    def close(self) -> None:
        self._binding = None
        self._session = None

    def _require_open(self) -> None:
        if self._session is None:
            raise closed_error(self._name)


def _failed(error: Exception) -> DeployError:
    return DeployError(
        f"ONNX Runtime failed while it ran the graph: {error}", "the message names the node"
    )


def _spec(value: Any) -> TensorSpec:
    # Some exporters write -1 for an axis of any size.
    shape = tuple(axis if isinstance(axis, int) and axis >= 0 else None for axis in value.shape)
    axes = tuple(axis if isinstance(axis, str) else "" for axis in value.shape)
    return TensorSpec(value.name, _DTYPES.get(value.type, value.type), shape, axes)
