"""The Engine and Session contracts that every backend implements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from engines.errors import UsageError
from engines.layer_report import Layer, LayerTime
from engines.profiles import BATCH_MAX, BATCH_OPT, Profile

_LONGEST_AXIS = 24  # exporters name some axes by formulas
Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]
Outputs = dict[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output.

    Attributes:
        dtype: A numpy dtype name, such as "uint8" or "float32".
        shape: One entry for each axis; None for a dynamic axis.
        axes: The names of the axes, as far as they have any; "" for the others. Not compared.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    axes: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        names = self.axes or ("batch", *("?" for _ in self.shape[1:]))
        shown = (
            (name if 0 < len(name) <= _LONGEST_AXIS else "?") if axis is None else str(axis)
            for axis, name in zip(self.shape, names, strict=False)
        )
        return f"{self.name}: {self.dtype}[{', '.join(shown)}]"

    def accepts(self, other: TensorSpec) -> bool:
        """Whether name and dtype are those of `other`, and each axis is as large or dynamic."""
        return (
            (self.name, self.dtype, len(self.shape)) == (other.name, other.dtype, len(other.shape))
        ) and all(
            axis is None or axis == wanted
            for axis, wanted in zip(self.shape, other.shape, strict=True)
        )


@dataclass(frozen=True)
class Availability:
    """Whether an engine can be built and run on this machine.

    Attributes:
        build: The engine can be built here.
        run: A built engine can be run here.
        reason: Why not, if either is False; otherwise the version and GPU.
        install: Install command, if installing helps.
    """

    build: bool
    run: bool
    reason: str = ""
    install: str = ""


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build, for all backends.

    Attributes:
        batch_min: Smallest batch the engine has to accept.
        batch_opt: Batch to optimise for, in backends that can choose.
        batch_max: Largest batch the engine has to accept.
        sizes: By input, the least, the usual and the largest size of each axis, for inputs of
            which another axis than the batch is dynamic; None for the batch.
        profiles: Ranges of sizes to optimise for, besides the one of all sizes (TensorRT).
        workspace_mib: Scratch memory that TensorRT may use while it runs, in MiB.
        tf32: Let TensorRT compute fp32 matrix products in TF32 (10-bit mantissa).
        optimization_level: TensorRT's, 0 (builds fast) to 5 (runs fast); None means its default.
        target_sm: Compute capabilities to build for, such as 89 (TensorRT for RTX); empty means
            the vendor's default.
        version_compatible: The plan may be run by the lean runtime of its version (TensorRT).
        hardware_compatible: The plan may be run on any GPU from Ampere on (TensorRT).
        refit: Weights may be replaced in the built plan (TensorRT).
        other_types: Accept a plan in which products compute in other types than the graph asks
            for, and note which (TensorRT).
        strip_weights: The plan holds no weights; they are added when it is opened (TensorRT).
        prefer_nhwc: Run convolutions and what is around them channels-last (ONNX Runtime's CUDA
            provider).
        progress: Called with the current step and its progress from 0 to 1; an exception ends
            the build.
        note: Called with a name and a value to keep in the build's record.
    """

    batch_min: int = 1
    batch_opt: int = BATCH_OPT
    batch_max: int = BATCH_MAX
    sizes: Mapping[str, Sequence[Sequence[int] | None]] = field(default_factory=dict)
    profiles: Sequence[Profile] = ()
    workspace_mib: int = 1024
    tf32: bool = False
    optimization_level: int | None = None
    target_sm: tuple[int, ...] = ()
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    other_types: bool = False
    prefer_nhwc: bool = False
    progress: Callable[[str, float], None] = field(default=lambda _text, _part: None, compare=False)
    note: Callable[[str, object], None] = field(default=lambda _name, _value: None, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.batch_min <= self.batch_opt <= self.batch_max:
            raise UsageError(
                f"batch sizes min {self.batch_min}, opt {self.batch_opt}, max {self.batch_max}"
                " are not in rising order from 1",
                "give --batch-min <= --batch-opt <= --batch-max, all at least 1",
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:  # noqa: PLR2004
            raise UsageError(
                f"optimization level {self.optimization_level} does not exist", "give 0 to 5"
            )
        if self.workspace_mib < 1:
            raise UsageError(
                f"a workspace of {self.workspace_mib} MiB is too small", "give at least 1 MiB"
            )


@dataclass(frozen=True)
class OpenOptions:
    """How a built engine is opened.

    Attributes:
        device: "cpu" or "cuda:N".
        threads: CPU threads for one inference.
        optimize: False runs the graph as it is, without the runtime's own rewrites. Only engines
            that open an ONNX graph have the choice.
        cuda_graph: Launches replay a CUDA graph, captured anew when the shape changes. Ignored by
            engines whose `cuda_graphs` is False.
        weights: The ONNX graph with the weights for a plan that was built without them.
    """

    device: str = "cpu"
    threads: int = 1
    optimize: bool = True
    cuda_graph: bool = False
    weights: Path | None = None


class Session(Protocol):
    """A built engine, open on one device. Only one thread may use it at a time.

    Attributes:
        device: The device it actually runs on, "cpu" or "cuda:N".
        batch: The smallest and largest batch it accepts, or None if it has no limit.
        stream: The CUDA stream on which `launch` enqueues, or None on a CPU.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str
    batch: tuple[int, int] | None
    stream: int | None

    def run(self, feeds: Feeds) -> Outputs:
        """Takes and returns host arrays; returns when the outputs are complete."""

    def bind(self, feeds: Feeds) -> None:
        """Copies the inputs to where the device reads them, for any number of launches."""

    def launch(self) -> None:
        """Enqueues one inference on the bound inputs."""

    def synchronize(self) -> None:
        """Waits until every launched inference has completed."""

    def close(self) -> None:
        """Frees the session's resources. May be called twice."""


@runtime_checkable
class Engine(Protocol):
    """A backend. Backends inherit from this class, for its defaults.

    Attributes:
        name: The name of its file.
        module: The vendor's Python module.
        source: What it is built from: the ONNX graph or the exported PyTorch program.
        devices: The kinds of device it runs on, "cpu" or "cuda"; the preferred one first.
        cuda_graphs: Whether its launches can replay a CUDA graph.
        build_options: The fields of BuildOptions that change what it builds.
        lacks: Precisions without kernels in this engine, such as "fp8".
        suffix: How the names of its files end, such as ".onnx".
        machine_code: Its files are programs, which run with the user's rights when they are opened.
    """

    # Plain annotations, since a dataclass would take a property of its base for a default.
    name: str
    module: str
    source: Literal["graph", "program"]
    devices: tuple[str, ...]
    cuda_graphs: bool = False
    build_options: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    suffix: str = ""
    machine_code: bool = False

    def available(self) -> Availability:
        """Returns whether it can be built and run here; if not, why and what to install.

        Looks the library up without importing it, since some take seconds to import.
        """

    def runtime_module(self) -> str:
        """Returns the module that opens engines here, if it is not the one that builds them."""
        return self.module

    def unsupported(self, capability: str) -> str:
        """Returns why it does not run on GPUs of a compute capability, or "".

        Args:
            capability: A compute capability, such as "9.0".
        """
        return ""

    def gpu_problem(self, index: int) -> str:
        """Returns why its library cannot use a GPU that CUDA's driver opens; "" if it can.

        Args:
            index: The number of the GPU, as CUDA counts.
        """
        return ""

    def fingerprint(self) -> dict[str, str]:
        """Returns versions, GPU and driver: all that the built bytes and the speed depend on.

        Imports no vendor library, since every command calls it.
        """

    def check(self, options: BuildOptions) -> None:
        """Checks options before a build; those that are not in `build_options` may be ignored.

        Raises:
            NotAvailableError: The engine refuses one of them.
            UsageError: Options exclude each other, or a value does not exist.
        """
        return

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Builds `source` into the file `target`; returns its layers, if it reports any."""

    def incompatibility(self, built_by: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Returns why an engine that was built elsewhere must not be opened here, or "".

        Callers that have the build's record ask before anything of the file is loaded.

        Args:
            built_by: The fingerprint on the machine that built it.
            params: The options it was built with.
        """
        return ""

    def rebuild(self, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Returns where, and with which options, to build an engine that opens here.

        Args:
            params: The options of a build that does not.
        """
        return "here", dict(params)

    def smaller_runtime(self, built_by: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Returns the command that installs less than `build` needs, and enough to open an engine.

        Returns "" if the engine has no lean runtime. The arguments are those of `incompatibility`.
        """
        return ""

    def open(self, built: Path, options: OpenOptions) -> Session:
        """Opens a file that `build` wrote."""

    def layer_times(
        self, built: Path, options: OpenOptions, feeds: Feeds, runs: int
    ) -> tuple[LayerTime, ...]:
        """Opens a file again with the library's profiler, and returns the time of each layer.

        Profiling slows the layers down, so only the proportion of their times means something.
        Returns () if the library does not tell.

        Args:
            feeds: The inputs of every inference.
            runs: How many inferences count.
        """
        return ()
