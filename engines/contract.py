"""What every backend has in common: the Engine and Session contracts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from engines.errors import UsageError
from engines.layer_report import Layer

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]
Outputs = dict[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output.

    Attributes:
        dtype: A numpy dtype name, such as "uint8" or "float32".
        shape: One entry an axis; None where the axis is dynamic.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        axes = ", ".join("batch" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype}[{axes}]"


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
    """What a build may be told, whatever the backend.

    Attributes:
        batch_min: Smallest batch the engine has to accept.
        batch_opt: Batch for which a backend that can choose optimises.
        batch_max: Largest batch the engine has to accept.
        workspace_mib: Scratch memory that TensorRT may use while it runs, in MiB.
        tf32: Let TensorRT compute fp32 matrix products in TF32 (10-bit mantissa).
        optimization_level: Of TensorRT, 0 (built fast) to 5 (runs fast); None is its own, 3.
        target_sm: Compute capabilities to build for, such as 89, where that is not the GPU at
            hand (TensorRT for RTX); none means its own choice.
        version_compatible: The plan may be run by later minor versions (TensorRT).
        hardware_compatible: The plan may be run on any GPU from Ampere on (TensorRT).
        refit: Weights may be replaced in the built plan (TensorRT).
        other_types: Accept a plan in which products compute in other types than the graph asks
            for, and note which (TensorRT).
        strip_weights: The plan holds no weights: they are put in when it is opened (TensorRT).
        progress: Called with what is being done and how far it is, from 0 to 1; raises to end
            the build.
        note: Called with a name and a value, for what the record of the build should keep.
    """

    batch_min: int = 1
    batch_opt: int = 8
    batch_max: int = 256
    workspace_mib: int = 1024
    tf32: bool = False
    optimization_level: int | None = None
    target_sm: tuple[int, ...] = ()
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    other_types: bool = False
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
            raise UsageError(f"optimization level {self.optimization_level}", "give 0 to 5")
        if self.workspace_mib < 1:
            raise UsageError(f"workspace of {self.workspace_mib} MiB", "give at least 1 MiB")


@dataclass(frozen=True)
class OpenOptions:
    """How a built engine is opened.

    Attributes:
        device: "cpu" or "cuda:N".
        threads: CPU threads for one inference.
        optimize: False asks for the graph as it is, without the runtime's own rewrites
            (only engines that open an ONNX graph have a choice).
        cuda_graph: Launches replay a CUDA graph, captured anew when the shape changes. Only
            engines whose `cuda_graphs` is true look at it.
        weights: The ONNX graph whose weights a plan takes that was built without its own.
    """

    device: str = "cpu"
    threads: int = 1
    optimize: bool = True
    cuda_graph: bool = False
    weights: Path | None = None


class Session(Protocol):
    """A built engine, open on one device. Not for use from several threads at once.

    Attributes:
        device: Where it really runs, "cpu" or "cuda:N".
        batch: The smallest and largest batch it accepts, or None if it has no limit.
        stream: The CUDA stream on which `launch` enqueues, or None on a CPU.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str
    batch: tuple[int, int] | None
    stream: int | None

    def run(self, feeds: Feeds) -> Outputs:
        """Host arrays in, host arrays out; returns when the outputs are there."""

    def bind(self, feeds: Feeds) -> None:
        """Puts the inputs where the device reads them, for any number of launches."""

    def launch(self) -> None:
        """Enqueues one inference on the bound inputs."""

    def synchronize(self) -> None:
        """Returns when every launched inference has completed."""

    def close(self) -> None:
        """Frees what the session holds. May be called twice."""


@runtime_checkable
class Engine(Protocol):
    """A backend. It names this class as its base, and so has the defaults below.

    Attributes:
        name: The name of its file.
        module: The vendor's Python module.
        source: What it is built from: the ONNX graph or the exported PyTorch program.
        devices: The kinds of device it runs on, "cpu" or "cuda"; the preferred one first.
        cuda_graphs: Whether its launches can replay a CUDA graph.
        build_options: The fields of BuildOptions that change what it builds.
        lacks: Precisions that it has no kernels for, such as "fp8".
    """

    # Plain annotations, since a dataclass would take a property of its base for a default.
    name: str
    module: str
    source: Literal["graph", "program"]
    devices: tuple[str, ...]
    cuda_graphs: bool = False
    build_options: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()

    def available(self) -> Availability:
        """Whether it can be built and run here, or why not and what to install.

        Looks the library up without importing it, since some take seconds to import.
        """

    def unsupported(self, capability: str) -> str:
        """Returns why it does not run on GPUs of a compute capability, or "".

        Args:
            capability: Such as "9.0".
        """
        return ""

    def fingerprint(self) -> dict[str, str]:
        """Versions, GPU and driver: all that the built bytes and the speed depend on.

        Imports no vendor library, since it is asked on every command.
        """

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Builds `source` into the file `target`; returns its layers, where they are told."""

    def incompatibility(self, built_by: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Returns why what was built elsewhere must not be opened here, or "".

        A caller that knows where a file was built asks before anything of it is loaded.

        Args:
            built_by: The fingerprint where it was built.
            params: The options it was built with.
        """
        return ""

    def open(self, built: Path, options: OpenOptions) -> Session:
        """Opens what `build` wrote."""
