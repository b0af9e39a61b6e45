"""What every backend has in common: the Engine and Session contracts and their checks."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from engines import machine
from engines.errors import DeployError, NotAvailableError, UsageError
from engines.layers import Layer

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]
Outputs = dict[str, Array]
# Entered around the import of a vendor library. A program whose signal handler raises holds
# signals back here: an exception inside a C++ library's initialisation would end the process.
import_guard: Callable[[], AbstractContextManager[None]] = nullcontext
_REMEMBERED = 1024  # shapes that one session keeps in mind


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
        reason: Why not, where either is False; else what was found.
        install: The command that mends it, if one does.
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
    """A backend.

    Attributes:
        name: The name of its file.
        module: The vendor's Python module.
        source: What it is built from: the ONNX graph or the exported PyTorch program.
        devices: The kinds of device it runs on, "cpu" or "cuda"; the preferred one first.
    """

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def source(self) -> Literal["graph", "program"]: ...
    @property
    def devices(self) -> tuple[str, ...]: ...

    def available(self) -> Availability:
        """Whether it can be built and run here, or why not and what to install.

        Looks the library up without importing it, since some take seconds to import.
        """

    def fingerprint(self) -> dict[str, str]:
        """Versions, GPU and driver: all that the built bytes and the speed depend on.

        Imports no vendor library, since it is asked on every command.
        """

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Builds `source` into the file `target`; returns its layers, where they are told."""

    def open(self, built: Path, options: OpenOptions) -> Session:
        """Opens what `build` wrote.

        An engine whose files are bound to a version or a GPU has a method `refusal`, too, by
        which a caller that knows where a file was built asks first.
        """


@dataclass
class FeedCheck:
    """Checks feeds against a session's inputs, so that every engine refuses in the same words.

    Attributes:
        batch: Smallest and largest batch accepted, or None where there is no limit.
    """

    inputs: tuple[TensorSpec, ...]
    batch: tuple[int, int] | None = None
    _names: list[str] = field(init=False)
    # What was accepted before: a server sends the same few shapes over and over, and checking
    # them at length each time shows in the latency of a small model.
    _accepted: set[object] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._names = [spec.name for spec in self.inputs]

    def __call__(self, feeds: Feeds) -> None:
        """Raises DeployError unless names, dtypes, ranks, shapes and batch all fit."""
        try:
            seen = tuple((name, array.dtype, array.shape) for name, array in feeds.items())
        except AttributeError as error:
            raise DeployError(f"every input has to be a numpy array: {error}") from error
        if seen in self._accepted:
            return
        self._check_all(feeds)
        if len(self._accepted) < _REMEMBERED:
            self._accepted.add(seen)

    def _check_all(self, feeds: Feeds) -> None:
        if sorted(feeds) != sorted(self._names):
            raise DeployError(
                f"inputs {sorted(feeds)} given, but the engine takes {sorted(self._names)}",
                "name every input once, as the graph does",
            )
        for spec in self.inputs:
            self._check_one(spec, feeds[spec.name])
        with_batch = [spec.name for spec in self.inputs if None in spec.shape[:1]]
        counts = {name: len(feeds[name]) for name in with_batch}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DeployError(
                f"the inputs have batches of different sizes: {said}", "give as many rows of each"
            )

    def _check_one(self, spec: TensorSpec, array: Array) -> None:
        if array.dtype.name != spec.dtype or not array.dtype.isnative:
            order = "" if array.dtype.isnative else " in the byte order of another machine"
            raise DeployError(
                f"input {spec.name!r} has dtype {array.dtype.name}{order}, expected {spec.dtype}",
                "convert it before the call; nothing is cast silently",
            )
        fits = len(array.shape) == len(spec.shape) and all(
            wanted is None or wanted == got
            for wanted, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise DeployError(f"input {spec.name!r} has shape {array.shape}, expected {spec}")
        for wanted, got in zip(spec.shape, array.shape, strict=True):
            if wanted is not None:
                continue
            if got == 0:
                raise DeployError(
                    f"input {spec.name!r} is an empty batch", "give at least one sample"
                )
            if self.batch and not self.batch[0] <= got <= self.batch[1]:
                raise DeployError(
                    f"input {spec.name!r} has batch {got}, outside the engine's range"
                    f" {self.batch[0]} to {self.batch[1]}",
                    "send smaller batches, or build with a larger --batch-max",
                )


def choose_device(engine: Engine, asked: str) -> str:
    """Returns the device to open `engine` on; see `pick_device`."""
    return pick_device(asked, engine.devices, f"engine {engine.name!r}")


def pick_device(asked: str, kinds: tuple[str, ...], who: str) -> str:
    """Returns `asked`, or for "auto" the first of `kinds` that this machine has.

    Raises:
        UsageError: `asked` is not the name of a device.
        NotAvailableError: `who` does not run on that device, or this machine has none.
    """
    check_device(asked)
    if asked == "auto":
        here = [kind for kind in kinds if kind == "cpu" or machine.gpus()]
        asked = (here or list(kinds))[0]
    kind, _, index = asked.partition(":")
    if kind not in kinds:
        raise NotAvailableError(
            f"{who} runs on {' or '.join(kinds)}, not on {asked!r}", "use --device auto"
        )
    if kind == "cuda" and int(index or 0) >= len(machine.gpus()):
        raise NotAvailableError(
            f"device {asked!r} is not here: nvidia-smi finds {len(machine.gpus()) or 'no'} GPUs",
            "count from cuda:0; without a GPU, use --device auto",
        )
    return asked


def check_device(asked: str) -> None:
    """Raises UsageError unless `asked` is the name of a device."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", asked):
        raise UsageError(f"unknown device {asked!r}", "available: auto, cpu, cuda, cuda:N")


def import_vendor(module: str, install: str) -> Any:
    """Imports a vendor library.

    Raises:
        NotAvailableError: It is missing or does not load; the hint is the pip line.
    """
    try:
        with import_guard():
            return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise NotAvailableError(f"{module} cannot be imported: {error}", install) from error


def installed(distributions: tuple[str, ...]) -> dict[str, str]:
    """Returns name and version of the first distribution that is installed."""
    for distribution in distributions:
        found = machine.version(distribution)
        if found != "not installed":
            return {distribution: found}
    return {distributions[0]: "not installed"}


def available_on_cpu(distributions: tuple[str, ...], install: str) -> Availability:
    """Returns the availability of an engine that needs its library and nothing else."""
    ((name, found),) = installed(distributions).items()
    if found == "not installed":
        return Availability(False, False, f"{name} is not installed", install)
    return Availability(True, True, f"{name} {found}")


def closed_error(name: str) -> DeployError:
    """Returns the error for a call on a session that was closed."""
    return DeployError(f"the {name} session is closed", "open the engine again")
