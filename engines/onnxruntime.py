"""ONNX Runtime on the CPU: the optimised graph, saved once and opened as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines import machine
from engines.base import (
    Array,
    Availability,
    BuildOptions,
    FeedCheck,
    Feeds,
    OpenOptions,
    Outputs,
    TensorSpec,
    available_on_cpu,
    choose_device,
    closed_error,
    import_vendor,
    installed,
)
from engines.errors import DeployError, NotAvailableError
from engines.layers import Layer, precision

_INSTALL = "pip install onnxruntime-gpu"
_DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime")
_PROVIDERS = ["CPUExecutionProvider"]
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64)]
# ONNX Runtime names element types its own way.
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


class OnnxRuntimeEngine:
    """ONNX Runtime's CPU execution provider.

    `build` applies the optimisations that hold on every CPU ("extended") and saves the graph;
    `open` adds the ones for the CPU at hand (memory layout), which must not be saved, since
    another CPU may not have the instructions.
    """

    name = "onnxruntime"
    module = "onnxruntime"
    source: Literal["graph", "program"] = "graph"
    devices = ("cpu",)

    def available(self) -> Availability:
        return available_on_cpu(_DISTRIBUTIONS, _INSTALL)

    def fingerprint(self) -> dict[str, str]:
        return {**installed(_DISTRIBUTIONS), **machine.cpu_fingerprint()}

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Writes the optimised ONNX graph. No option applies: the batch stays dynamic.

        Returns:
            Its nodes after all fusions, with the types they compute in.

        Raises:
            DeployError: ONNX Runtime does not accept the graph.
        """
        runtime = import_vendor(self.module, _INSTALL)
        settings = runtime.SessionOptions()
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        settings.optimized_model_filepath = str(target)
        settings.log_severity_level = 3
        _session(runtime, source, settings)
        return _layers(import_vendor("onnx", "pip install onnx"), target)

    def open(self, built: Path, options: OpenOptions) -> OnnxRuntimeSession:
        choose_device(self, options.device)
        runtime = import_vendor(self.module, _INSTALL)
        settings = runtime.SessionOptions()
        levels = runtime.GraphOptimizationLevel
        settings.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if options.optimize else levels.ORT_DISABLE_ALL
        )
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        # Idle workers must not spin on after a run: they would slow down whatever runs next,
        # which in a benchmark is a competitor.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        settings.log_severity_level = 3
        return OnnxRuntimeSession(_session(runtime, built, settings), runtime)


def _session(runtime: Any, path: Path, settings: Any) -> Any:
    try:
        return runtime.InferenceSession(str(path), settings, providers=_PROVIDERS)
    except Exception as error:  # its exception types share no public base
        if "NOT_IMPLEMENTED" in str(error):
            raise NotAvailableError(
                f"ONNX Runtime has no CPU kernel for a node of {path.name}: {error}",
                "build this precision for another engine",
            ) from error
        raise DeployError(
            f"ONNX Runtime does not accept {path}: {error}",
            "the message names the node or the field at fault",
        ) from error


def _layers(onnx: Any, path: Path) -> tuple[Layer, ...]:
    """Reads the nodes of an optimised graph.

    ONNX Runtime's own operators are unknown to shape inference; it saves the types of none. So
    a type is what the tensor's maker gives, or, of the quantized operators, what their name says.
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
            # A weight has the type of the layer, where that of its input is not known.
            found = [names[types[name]] for name in node.input if types.get(name)]
            dtype = found[0] if found else ""
        layers.append(Layer(node.name, node.op_type, precision(dtype), (node.name,)))
    return tuple(layers)


class OnnxRuntimeSession:
    """An open ONNX Runtime session; see `engines.base.Session`."""

    device = "cpu"
    batch: tuple[int, int] | None = None
    stream: int | None = None

    def __init__(self, session: Any, runtime: Any) -> None:
        self._session: Any = session
        self._runtime = runtime
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
            raise DeployError("launch() before bind()", "bind the inputs first")
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its exception types share no public base
            raise _failed(error) from error

    def synchronize(self) -> None:
        """Nothing to wait for: a CPU launch has completed when it returns."""

    def close(self) -> None:
        self._binding = None
        self._session = None

    def _require_open(self) -> None:
        if self._session is None:
            raise closed_error("onnxruntime")


def _failed(error: Exception) -> DeployError:
    return DeployError(
        f"ONNX Runtime failed while it ran the graph: {error}", "the message names the node"
    )


def _spec(value: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else None for axis in value.shape)
    return TensorSpec(value.name, _DTYPES.get(value.type, value.type), shape)


ENGINE = OnnxRuntimeEngine()
