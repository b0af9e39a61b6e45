"""Checks of feeds, devices and vendor libraries, shared by all backends."""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import engines
from engines import cache, hardware, telemetry
from engines.contract import Array, Availability, Engine, Feeds, TensorSpec
from engines.errors import DeployError, NotAvailableError, UsageError

_REMEMBERED = 1024  # combinations of shapes that one session remembers as accepted


@dataclass
class FeedCheck:
    """Checks feeds against a session's inputs, with the same messages for every engine.

    Attributes:
        batch: Smallest and largest batch accepted, or None for any.
        sizes: By input, the least and the largest size of each axis; an input that is not in it
            takes any.
    """

    inputs: tuple[TensorSpec, ...]
    batch: tuple[int, int] | None = None
    sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    _names: list[str] = field(init=False)
    # Shapes that were accepted before. A server sends the same few shapes over and over, and a full
    # check each time shows in the latency of a small model.
    _accepted: set[object] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._names = [spec.name for spec in self.inputs]

    def __call__(self, feeds: Feeds) -> None:
        """Raises DeployError unless names, dtypes, ranks, shapes and batch all fit."""
        try:
            seen = tuple((name, array.dtype, array.shape) for name, array in feeds.items())
            if seen in self._accepted:
                return
        except AttributeError:
            seen = ()
        for name, array in feeds.items():
            if not isinstance(array, np.ndarray):
                raise DeployError(
                    f"input {name!r} is a {type(array).__name__}, not a numpy array",
                    "give numpy arrays; call .numpy() on a torch tensor",
                )
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
            sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DeployError(
                f"the inputs have batches of different sizes: {sizes}",
                "give every input the same number of rows",
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
        if None in spec.shape and 0 in array.shape:
            raise DeployError(
                f"input {spec.name!r} is an empty batch, of shape {array.shape}",
                "give at least one sample",
            )
        if None in spec.shape[:1] and self.batch:
            low, high = self.batch
            if not low <= len(array) <= high:
                raise DeployError(
                    f"input {spec.name!r} has batch {len(array)}, outside the engine's range"
                    f" {low} to {high}",
                    "send smaller batches, or build with a larger --batch-max",
                )
        least, largest = self.sizes.get(spec.name, (array.shape, array.shape))
        if any(not a <= b <= c for a, b, c in zip(least, array.shape, largest, strict=True)):
            raise DeployError(
                f"input {spec.name!r} has shape {array.shape}, but the engine takes"
                f" {_times(least)} to {_times(largest)}",
                "build it for larger sizes, or resize the input",
            )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def choose_device(engine: Engine, asked: str) -> str:
    """Returns the device to open `engine` on; see `pick_device`."""
    return pick_device(asked, engine.devices, f"engine {engine.name!r}", engine.gpu_problem)


def pick_device(
    asked: str, kinds: tuple[str, ...], who: str, gpu_problem: Callable[[int], str]
) -> str:
    """Returns `asked`, or for "auto" the first of `kinds` that `who` can use on this machine.

    If "auto" passes over a GPU that CUDA opens, the log says why.

    Args:
        gpu_problem: Returns why `who` cannot use a GPU, by its number; "" if it can.

    Raises:
        UsageError: `asked` is not the name of a device.
        NotAvailableError: `who` does not run on that device, or this machine has none.
    """
    check_device(asked)
    if asked == "auto":
        here = [kind for kind in kinds if kind == "cpu" or hardware.gpus()]
        if here[:1] == ["cuda"] and "cpu" in here and (why := gpu_problem(0)):
            _warn_once(f"{who} runs on the CPU: {why}")
            here = ["cpu"]
        asked = (here or list(kinds))[0]
    kind, _, index = asked.partition(":")
    if kind not in kinds:
        raise NotAvailableError(
            f"{who} runs on {' or '.join(kinds)}, not on {asked!r}", "use --device auto"
        )
    if kind == "cuda" and int(index or 0) >= len(hardware.gpus()):
        raise NotAvailableError(
            f"device {asked!r} does not exist here:"
            f" {hardware.no_gpu() or f'CUDA opens {len(hardware.gpus())} GPUs'}",
            "count from cuda:0; without a GPU, use --device auto",
        )
    if kind == "cuda" and (why := gpu_problem(int(index or 0))):
        hint = "use --device cpu, or install what fits" if "cpu" in kinds else "install what fits"
        raise NotAvailableError(f"{who} cannot use {asked!r}: {why}", hint)
    return asked


@functools.cache
def _warn_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def check_device(asked: str) -> None:
    """Raises UsageError unless `asked` is the name of a device."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", asked):
        raise UsageError(f"unknown device {asked!r}", "available: auto, cpu, cuda, cuda:N")


def import_vendor(module: str, install: str) -> Any:
    """Imports a vendor library, which then reports nothing to its vendor.

    Raises:
        NotAvailableError: It is missing or does not load; the hint is the pip line.
    """
    telemetry.disable()
    if module == "torch":
        cache.set_torch_cache()  # torch sets it itself once it is used
    try:
        with engines.import_guard():
            return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise NotAvailableError(f"{module} cannot be imported: {error}", install) from error


def installed(distributions: tuple[str, ...]) -> dict[str, str]:
    """Returns name and version of the first installed distribution; else "not installed"."""
    for distribution in distributions:
        version = hardware.version(distribution)
        if version != "not installed":
            return {distribution: version}
    return {distributions[0]: "not installed"}


def is_installed(distributions: tuple[str, ...]) -> bool:
    """Whether one of the distributions is installed."""
    return "not installed" not in installed(distributions).values()


def available_on_cpu(distributions: tuple[str, ...], install: str) -> Availability:
    """Returns the availability of an engine that needs only its library."""
    ((name, version),) = installed(distributions).items()
    if not is_installed(distributions):
        return Availability(False, False, f"{name} is not installed", install)
    return Availability(True, True, f"{name} {version}")


def unbound_error() -> DeployError:
    """Returns the error for a launch without inputs."""
    return DeployError("launch() before bind()", "bind the inputs first")


def closed_error(name: str) -> DeployError:
    """Returns the error for a call on a session that was closed."""
    return DeployError(f"the {name} session is closed", "open the engine again")
