"""The builder and the session that TensorRT and TensorRT for RTX share.

Both vendor modules have the same API but for a few flags, so the module is a parameter.
Networks are strongly typed: the types in the ONNX graph are the types that run.
"""

from __future__ import annotations

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
from engines.errors import DeployError, NotAvailableError
from engines.layers import Layer, of_tensorrt


@dataclass(frozen=True)
class TensorRTEngine:
    """One flavour of TensorRT.

    Attributes:
        module: The vendor's Python module.
        distributions: Its distribution names, best first.
        install: The command that installs it.
        builds_without_gpu: Whether this flavour builds on a machine without a GPU.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    install: str
    builds_without_gpu: bool
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
            NotAvailableError: The library is missing, or this flavour needs a GPU to build.
            KeyboardInterrupt: The build was cancelled.
        """
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
        config.add_optimization_profile(_profile(builder, network, options))
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise DeployError(
                f"{self.name} could not build {source}: {'; '.join(logger.errors)}",
                "the message names the layer at fault",
            )
        target.write_bytes(plan)
        return of_tensorrt(logger.said)

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
