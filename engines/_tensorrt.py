"""The builder and the session that TensorRT and TensorRT for RTX share.

Both vendor modules have the same API but for a few flags, so the module is a parameter.
Networks are strongly typed: the types in the ONNX graph are the types that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engines import machine
from engines.base import (
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
from engines.errors import DeployError, NotAvailableError, UsageError
from engines.layers import Layer, of_tensorrt, precision

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SPECIAL_WORDS = {
    "target_sm": "it builds for the GPU at hand",
    "version_compatible": "its plans are bound to its version",
    "hardware_compatible": "its plans are for a range of GPUs already (--target-sm)",
    "refit": "its plans keep the weights that they were built with",
    "strip_weights": "its plans hold their weights",
}
_SPECIAL = frozenset(_SPECIAL_WORDS)
_CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")


@dataclass(frozen=True)
class TensorRTEngine:
    """One flavour of TensorRT.

    Attributes:
        module: The vendor's Python module.
        distributions: Its distribution names, best first.
        install: The command that installs it.
        builds_without_gpu: Whether this flavour builds on a machine without a GPU.
        special: The fields of BuildOptions that only some flavours have, and this one has.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    install: str
    builds_without_gpu: bool
    special: frozenset[str] = frozenset()
    source: Literal["graph", "program"] = "graph"
    devices: tuple[str, ...] = ("cuda",)

    def available(self) -> Availability:
        library = available_on_cpu(self.distributions, self.install)
        if not library.build:
            return library
        if not machine.gpus():
            reason = f"{library.reason}; no NVIDIA GPU and driver here (nvidia-smi finds none)"
            return Availability(self.builds_without_gpu, False, reason)
        return Availability(True, True, f"{library.reason}, {machine.gpus()[0]['name']}")

    def fingerprint(self) -> dict[str, str]:
        return {**installed(self.distributions), **machine.gpu_fingerprint()}

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Writes a serialized plan with one optimization profile over the batch.

        Returns:
            The plan's layers after all fusions, with the types they compute in.

        Raises:
            DeployError: The parser or the builder refuses the graph; the message names the
                nodes. Also for a dynamic axis other than the first.
            NotAvailableError: The library is missing, or this flavour needs a GPU to build, or
                does not have an option that was asked for.
            KeyboardInterrupt: The build was cancelled.
        """
        self._check(options)
        vendor = import_vendor(self.module, self.install)
        if not self.builds_without_gpu and not machine.gpus():
            raise NotAvailableError(
                f"{self.name} builds on the GPU it builds for, and this machine has none",
                "build with --engine tensorrt_rtx, which needs no GPU, or build on the target",
            )
        logger = _logger(vendor)
        builder = vendor.Builder(logger)
        network = builder.create_network(_strongly_typed(vendor))
        _parse(vendor, network, logger, source)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(vendor.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
        config.profiling_verbosity = vendor.ProfilingVerbosity.DETAILED
        if not options.tf32:
            # On by default, and a hundred times less precise than the fp32 it stands in for.
            config.clear_flag(vendor.BuilderFlag.TF32)
        _configure(vendor, config, options)
        config.add_optimization_profile(_profile(builder, network, options))
        monitor = monitor_of(vendor, options.progress)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor.ended_by is not None:
            raise monitor.ended_by
        if plan is None:
            raise DeployError(
                f"{self.name} could not build {source}: {'; '.join(logger.errors)}",
                "the message names the layer at fault",
            )
        layers = of_tensorrt(logger.said)
        if missed := unrealised(source, layers):
            raise DeployError(
                f"{self.name} does not compute as {source} says: {'; '.join(missed)}",
                "export another precision, or build for a GPU that has this one",
            )
        target.write_bytes(plan)
        return layers

    def open(self, built: Path, options: OpenOptions) -> TensorRTSession:
        """Opens a plan. A plan is native code: the caller has checked its digest.

        Raises:
            NotAvailableError: No GPU, or no torch for the device buffers.
            DeployError: TensorRT does not accept the plan here.
        """
        vendor = import_vendor(self.module, self.install)
        if not machine.gpus():
            raise NotAvailableError(
                f"a {self.name} plan runs on an NVIDIA GPU, and this machine has none",
                "copy the bundle to the target and run `assay check` there",
            )
        return TensorRTSession(vendor, built, self.name, choose_device(self, options.device))

    def refusal(self, built_by: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Returns why a plan must not be loaded here, whatever it holds; "" if it may be.

        Args:
            built_by: The fingerprint where it was built.
            params: The options it was built with.
        """
        here = self.fingerprint()
        facts = [name for name in self.distributions if name in {**built_by, **here}]
        if params.get("version_compatible"):
            facts = []
        if not self.builds_without_gpu and not params.get("hardware_compatible"):
            facts.append("gpu_compute_capability")
        differ = [name for name in facts if built_by.get(name) != here.get(name)]
        if not differ:
            return ""
        there, now = (
            ", ".join(f"{name} {each.get(name, 'none')}" for name in differ)
            for each in (built_by, here)
        )
        return f"it was built with {there}, and here is {now}"

    def _check(self, options: BuildOptions) -> None:
        """Raises for what was asked for and this flavour does not have."""
        for name in _SPECIAL - self.special:
            if getattr(options, name):
                raise NotAvailableError(
                    f"{self.name} has no {name.replace('_', ' ')}: {_SPECIAL_WORDS[name]}",
                    "leave the option out, or build another engine",
                )
        known = {int(sm[2:]) for sm in _CAPABILITIES}
        for sm in options.target_sm:
            if sm not in known:
                raise UsageError(
                    f"no target of TensorRT for RTX has compute capability {sm}",
                    f"available: {', '.join(map(str, sorted(known)))}",
                )


def _configure(vendor: Any, config: Any, options: BuildOptions) -> None:
    """Sets what was asked for beyond the defaults."""
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    flags = {
        "version_compatible": "VERSION_COMPATIBLE",
        "refit": "REFIT",
        "strip_weights": "STRIP_PLAN",
    }
    for name, flag in flags.items():
        if getattr(options, name):
            config.set_flag(getattr(vendor.BuilderFlag, flag))
    if options.hardware_compatible:
        config.hardware_compatibility_level = vendor.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.target_sm:
        config.num_compute_capabilities = len(options.target_sm)
        for index, sm in enumerate(options.target_sm):
            config.set_compute_capability(getattr(vendor.ComputeCapability, f"SM{sm}"), index)


def monitor_of(vendor: Any, tell: Callable[[str, float], None]) -> Any:
    """Returns a progress monitor, which ends the build when telling raises, as on Ctrl-C."""

    class Monitor(vendor.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.ended_by: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, name: str, _parent: str | None, steps: int) -> None:
            self._steps[name] = max(steps, 1)

        def step_complete(self, name: str, step: int) -> bool:
            try:
                tell(name, min(1.0, (step + 1) / self._steps.get(name, 1)))
            except BaseException as error:  # an interrupt too: it must not pass through C++
                self.ended_by = self.ended_by or error
            return self.ended_by is None

        def phase_finish(self, name: str) -> None:
            self._steps.pop(name, None)

    return Monitor()


def unrealised(source: Path, layers: Iterable[Layer]) -> list[str]:
    """Returns the products of a graph that no layer computes in the type of their weights.

    Products are what a precision is chosen for; what lies between them may be fused.
    """
    onnx = import_vendor("onnx", "pip install onnx")
    graph = onnx.load(source, load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in types:
            types[node.output[0]] = types[node.input[0]]
    done: dict[str, set[str]] = {}
    for layer in layers:
        for name in layer.nodes:
            done.setdefault(name, set()).add(layer.precision)
    missed = []
    for node in graph.node:
        if node.op_type not in _PRODUCTS or types.get(node.input[1]) is None:
            continue
        wanted = precision(onnx.helper.tensor_dtype_to_np_dtype(types[node.input[1]]).name)
        found = done.get(node.name)
        if found and wanted not in found:
            missed.append(f"{node.op_type} {node.name!r} in {', '.join(sorted(found))}")
    return missed


def _logger(vendor: Any) -> Any:
    """Returns a logger that keeps what is said instead of printing it.

    Errors are for the exception; the rest tells what was built.
    """

    class Logger(vendor.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= vendor.ILogger.Severity.ERROR:
                self.errors.append(message)
            else:
                self.said.append(message)

    return Logger()


def _strongly_typed(vendor: Any) -> int:
    """Returns the network flags: explicit up to TensorRT 10, the only kind from 11 on."""
    flag = getattr(vendor.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(vendor: Any, network: Any, logger: Any, source: Path) -> None:
    parser = vendor.OnnxParser(network, logger)
    if parser.parse_from_file(str(source)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    causes = [
        f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}" for error in errors
    ]
    raise DeployError(
        f"{vendor.__name__} cannot parse {source}: " + "; ".join(causes),
        "export with operators it supports, or build another engine",
    )


def _profile(builder: Any, network: Any, options: BuildOptions) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tensor.shape
        if -1 in rest:
            raise DeployError(
                f"input {tensor.name!r} has shape {tuple(tensor.shape)}: an axis other than the"
                " batch is dynamic",
                "export with only the batch dynamic",
            )
        if batch == -1:
            sizes = (options.batch_min, options.batch_opt, options.batch_max)
            profile.set_shape(tensor.name, *((size, *rest) for size in sizes))
    return profile


class TensorRTSession:
    """An open plan on one GPU, with torch CUDA tensors as buffers."""

    def __init__(self, vendor: Any, path: Path, name: str, device: str) -> None:
        torch = import_vendor("torch", "pip install torch")  # for the device buffers
        self._torch = torch
        self._name = name
        self._device = torch.device(device)
        self.device = device
        logger = _logger(vendor)
        with torch.cuda.device(self._device):
            self._runtime = vendor.Runtime(logger)
            self._engine: Any = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                raise DeployError(
                    f"{name} does not accept {path}: {'; '.join(logger.errors)}",
                    "build it again with this version and for this GPU",
                )
            self._context: Any = self._engine.create_execution_context()
            # Not the default stream: that one would synchronise with everything else.
            self._stream = torch.cuda.Stream(self._device)
        self._vendor = vendor
        self.stream: int | None = self._stream.cuda_stream
        self._buffers: dict[str, Any] = {}
        specs = [self._spec(index) for index in range(self._engine.num_io_tensors)]
        self.inputs = tuple(spec for spec in specs if self._is_input(spec.name))
        self.outputs = tuple(spec for spec in specs if not self._is_input(spec.name))
        first = self.inputs[0].name
        low, _, high = self._engine.get_tensor_profile_shape(first, 0)
        self.batch: tuple[int, int] | None = (low[0], high[0])
        self._check = FeedCheck(self.inputs, self.batch)

    def run(self, feeds: Feeds) -> Outputs:
        self.bind(feeds)
        self.launch()
        with self._torch.cuda.stream(self._stream):
            return {spec.name: self._buffers[spec.name].cpu().numpy() for spec in self.outputs}

    def bind(self, feeds: Feeds) -> None:
        self._require_open()
        self._check(feeds)
        with self._torch.cuda.stream(self._stream):
            for spec in self.inputs:
                tensor = self._torch.from_numpy(feeds[spec.name]).to(self._device)
                self._buffers[spec.name] = tensor.contiguous()
                self._context.set_input_shape(spec.name, tuple(tensor.shape))
            for spec in self.outputs:
                shape = tuple(self._context.get_tensor_shape(spec.name))
                kind = getattr(self._torch, spec.dtype)
                self._buffers[spec.name] = self._torch.empty(shape, dtype=kind, device=self._device)
        for name, tensor in self._buffers.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        self.synchronize()

    def launch(self) -> None:
        self._require_open()
        if not self._buffers:
            raise DeployError("launch() before bind()", "bind the inputs first")
        if not self._context.execute_async_v3(self.stream):
            raise DeployError(f"{self._name} could not enqueue the inference")

    def synchronize(self) -> None:
        self._stream.synchronize()

    def close(self) -> None:
        self._buffers = {}
        self._context = None
        self._engine = None

    def _require_open(self) -> None:
        if self._context is None:
            raise closed_error(self._name)

    def _is_input(self, name: str) -> bool:
        mode = self._engine.get_tensor_mode(name)
        return bool(mode == self._vendor.TensorIOMode.INPUT)

    def _spec(self, index: int) -> TensorSpec:
        name = self._engine.get_tensor_name(index)
        shape = tuple(None if axis == -1 else axis for axis in self._engine.get_tensor_shape(name))
        dtype = str(self._vendor.nptype(self._engine.get_tensor_dtype(name)).__name__)
        return TensorSpec(name, dtype, shape)
