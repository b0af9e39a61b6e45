"""OpenVINO on the CPU: the graph in OpenVINO's own format, compiled when it is opened."""

from __future__ import annotations

import re
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines import hardware, temporary
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
    Availability,
    BuildOptions,
    Engine,
    Feeds,
    OpenOptions,
    Outputs,
    TensorSpec,
)
from engines.errors import DeployError, NotAvailableError
from engines.layer_report import Layer, LayerTime, precision, typical_times

_INSTALL = "pip install openvino"
_DISTRIBUTIONS = ("openvino",)
# The two files of OpenVINO's intermediate representation (IR).
_FILES = ("model.xml", "model.bin")
_TIME = (1980, 1, 1, 0, 0, 0)  # of the archive's entries, for equal bytes
# Layers that move data and compute nothing.
_NOT_COMPUTING = frozenset({"Input", "Output", "Const", "Reorder", "Reshape"})
# Types that numpy has, too. OpenVINO would return others, such as bf16, under a wrong dtype.
_NUMPY = frozenset(
    {"boolean", "f16", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "string"}
)
_PRODUCTS = frozenset({"Convolution", "FullyConnected", "MatMul"})


class OpenVINOEngine(Engine):
    """OpenVINO's CPU plugin.

    `build` translates the graph into the intermediate representation, whose two files it stores
    in one archive, uncompressed: once unzipped, OpenVINO's own tools can read them. The plugin's
    compiled blob is not stored, since CPUs with other instructions reject it; compiling on opening
    takes a fraction of a second.
    """

    name = "openvino"
    module = "openvino"
    source: Literal["graph", "program"] = "graph"
    devices = ("cpu",)
    lacks = frozenset({"fp8"})
    suffix = ".zip"

    def available(self) -> Availability:
        return available_on_cpu(_DISTRIBUTIONS, _INSTALL)

    def fingerprint(self) -> dict[str, str]:
        return {**installed(_DISTRIBUTIONS), **hardware.cpu_fingerprint()}

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Writes the intermediate representation. No option applies: the batch stays dynamic.

        Returns:
            The layers that this CPU runs, after all fusions, with the types they compute in.

        Raises:
            DeployError: OpenVINO does not accept the graph; the message names the nodes.
        """
        openvino = import_vendor(self.module, _INSTALL)
        try:
            model = openvino.Core().read_model(str(source))
        except RuntimeError as error:
            raise _rejected(source, error) from error
        _keep_names(model, source)
        compiled = _compile(openvino, model, 1, source)
        with ExitStack() as files, temporary.folder() as folder:
            paths = [folder / name for name in _FILES]
            # OpenVINO removes the files if it cannot write all of them. While they are open, their
            # disk stays as full as it was then, so that the error can name that as the cause.
            for path in paths:
                files.enter_context(path.open("wb"))
            try:
                openvino.serialize(model, *map(str, paths))
            except RuntimeError as error:
                raise DeployError(
                    f"OpenVINO cannot write the engine to {folder}: {error}", temporary.TMPDIR_HINT
                ) from error
            with zipfile.ZipFile(target, "w") as archive:
                for path in paths:
                    # The same graph gives the same bytes, whenever it is built.
                    entry = zipfile.ZipInfo(path.name, _TIME)
                    with path.open("rb") as file, archive.open(entry, "w", force_zip64=True) as to:
                        while part := file.read(1 << 24):
                            to.write(part)
        return _layers(compiled)

    def open(self, built: Path, options: OpenOptions) -> OpenVINOSession:
        choose_device(self, options.device)
        openvino = import_vendor(self.module, _INSTALL)
        return self._session(openvino, built, options.threads)

    def layer_times(
        self, built: Path, options: OpenOptions, feeds: Feeds, runs: int
    ) -> tuple[LayerTime, ...]:
        openvino = import_vendor(self.module, _INSTALL)
        session = self._session(openvino, built, options.threads, profile=True)
        times = []
        for _ in range(runs + 1):  # the first one does not count
            session.run(feeds)
            times.append(session.layer_seconds())
        session.close()
        # Such as node_linear/WithoutBiases/DequantizationMultiply.
        return typical_times(times[1:], lambda name: name.partition("/")[0])

    @staticmethod
    def _session(
        openvino: Any, built: Path, threads: int, *, profile: bool = False
    ) -> OpenVINOSession:
        try:
            graph, weights = _unpacked(built)
            model = openvino.Core().read_model(model=graph, weights=weights)
        except Exception as error:  # zipfile raises many types for a damaged archive
            raise DeployError(
                f"OpenVINO does not accept {built}: {' '.join(str(error).split())}",
                "give a file that this engine has built, or build it again",
            ) from error
        compiled = _compile(openvino, model, threads, built, profile=profile)
        return OpenVINOSession(compiled, _specs(model.inputs), _specs(model.outputs), openvino)


def _keep_names(model: Any, source: Path) -> None:
    """Removes all names of inputs and outputs except those in the ONNX graph.

    Raises:
        DeployError: OpenVINO has dropped an input or output, since nothing depends on it or an
            output is an input.
        NotAvailableError: An input or output has a type without numpy equivalent.
    """
    graph = import_vendor("onnx", "pip install onnx").load(source, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    wanted = [value.name for value in graph.input if value.name not in constants]
    for what, ports, names in (
        ("input", model.inputs, wanted),
        ("output", model.outputs, [value.name for value in graph.output]),
    ):
        for port in ports:
            for name in [name for name in names if name in port.get_names()][:1]:
                names.remove(name)
                port.get_tensor().set_names({name})
        if names:
            raise DeployError(
                f"OpenVINO drops {what} {', '.join(names)} of {source}: no value depends on it, or"
                " it is passed on as it is",
                f"export without that {what}, or build another engine",
            )
    _specs(model.inputs)  # raises for types that a session cannot return
    _specs(model.outputs)


def _unpacked(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if tuple(entry.filename for entry in entries) != _FILES:
            raise ValueError(f"it does not hold {' and '.join(_FILES)}")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")  # a compressed one might expand to any size
        return [archive.read(entry) for entry in entries]


def _compile(openvino: Any, model: Any, threads: int, path: Path, *, profile: bool = False) -> Any:
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        # Compute in the graph's own types; otherwise fp32 runs in bf16 on CPUs that have it.
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_NUM_THREADS": threads,
        # Otherwise several sessions would all be pinned to the same CPUs.
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profile,
    }
    try:
        return openvino.Core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise _rejected(path, error) from error


def _rejected(path: Path, error: Exception) -> DeployError:
    """Returns the error for a file that OpenVINO rejects, with the nodes at fault."""
    lines = [line for line in str(error).splitlines() if line and "src/" not in line]
    reason = " ".join(lines) or str(error)
    nodes = _nodes(path, set(re.findall(r"\b(\w+)-\d+\b", reason)))
    return DeployError(
        f"OpenVINO does not accept {path}: {reason}{nodes}",
        "export with operators it supports, or build another engine",
    )


def _nodes(path: Path, operators: set[str]) -> str:
    """Returns the nodes of a graph that have one of the operators, as text."""
    if not operators:
        return ""
    onnx = import_vendor("onnx", "pip install onnx")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # protobuf's error types are not public, and this only adds to an error
        return ""
    names = [f"{n.name!r} ({n.op_type})" for n in graph.node if n.op_type in operators]
    return f"; node {', '.join(names)}" if names else ""


def _layers(compiled: Any) -> tuple[Layer, ...]:
    """Reads the layers of a compiled model, and the types they compute in."""
    layers = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: value.astype(str) for key, value in operation.get_rt_info().items()}
        if facts["layerType"] in _NOT_COMPUTING:
            continue
        nodes = tuple(filter(None, facts.get("originalLayersNames", "").split(",")))
        kind, type_ = facts["layerType"], _numpy_name(facts["runtimePrecision"])
        if kind in _PRODUCTS and type_ == "uint8":
            type_ = "int8"  # quantized, with unsigned activations
        layers.append(Layer(operation.get_friendly_name(), kind, precision(type_), nodes))
    return tuple(layers)


def _numpy_name(name: str) -> str:
    """Returns numpy's name of a type of OpenVINO, such as "float32" for "f32"."""
    prefixes = {"f": "float", "i": "int", "u": "uint"}
    return re.sub("^[fiu](?=[0-9])", lambda match: prefixes[match[0]], name)


class OpenVINOSession:
    """A compiled model and one request; see `engines.contract.Session`."""

    batch: tuple[int, int] | None = None
    stream: int | None = None

    def __init__(
        self,
        compiled: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        openvino: Any,
    ) -> None:
        self._openvino = openvino
        (where,) = compiled.get_property("EXECUTION_DEVICES")
        self.device = str(where).lower()  # the device that actually runs it
        self._request: Any = compiled.create_infer_request()
        self._bound = False
        self._bound_arrays: list[Any] = []
        # Of the model before compilation, which may rename them after values merged with them.
        self.inputs, self.outputs = inputs, outputs
        self._check = FeedCheck(self.inputs)

    def run(self, feeds: Feeds) -> Outputs:
        self.bind(feeds)
        self.launch()
        return {
            spec.name: self._request.get_output_tensor(index).data.copy()
            for index, spec in enumerate(self.outputs)
        }

    def bind(self, feeds: Feeds) -> None:
        self._require_open()
        self._check(feeds)
        self._bound_arrays = []
        for index, spec in enumerate(self.inputs):
            array = feeds[spec.name]
            # OpenVINO rejects read-only arrays, though it never writes to an input.
            shared = array.flags.c_contiguous and array.flags.writeable
            contiguous = array if shared else np.array(array, order="C")
            self._bound_arrays.append(contiguous)  # the tensor does not keep its array alive
            self._request.set_input_tensor(
                index, self._openvino.Tensor(contiguous, shared_memory=True)
            )
        self._bound = True

    def launch(self) -> None:
        self._require_open()
        if not self._bound:
            raise unbound_error()
        try:
            self._request.start_async()
            self._request.wait()
        except RuntimeError as error:
            raise DeployError(f"OpenVINO failed while it ran the graph: {error}") from error

    def synchronize(self) -> None:
        """Does nothing: a launch has completed when it returns."""

    def layer_seconds(self) -> dict[tuple[str, str, str], float]:
        """Returns the seconds of the last run by name, type and kernel, if it was compiled so."""
        return {
            (layer.node_name, layer.node_type, layer.exec_type): layer.real_time.total_seconds()
            for layer in self._request.profiling_info
            if layer.status == layer.Status.EXECUTED
        }

    def close(self) -> None:
        self._request = None
        self._bound_arrays = []

    def _require_open(self) -> None:
        if self._request is None:
            raise closed_error("openvino")


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    """Returns names, dtypes and shapes.

    Raises:
        NotAvailableError: OpenVINO has a type only under the name of another numpy type.
    """
    specs = []
    for port in ports:
        axes = port.get_partial_shape()
        shape = tuple(None if axis.is_dynamic else axis.get_length() for axis in axes)
        kind, name = port.get_element_type(), port.get_any_name()
        dtype = kind.to_dtype().name
        if kind.get_type_name() not in _NUMPY:
            raise NotAvailableError(
                f"OpenVINO has no numpy array for {name}, of {kind.get_type_name()}",
                "export it with inputs and outputs of another type, or build another engine",
            )
        specs.append(TensorSpec(name, dtype, shape))
    return tuple(specs)


ENGINE = OpenVINOEngine()
