"""The engine that TensorRT and TensorRT for RTX share.

Both vendor modules have the same API except for a few flags, so the module is a parameter.
Networks are strongly typed: the types in the ONNX graph are the types that run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engines import cache, hardware
from engines.backends import _turing
from engines.backends._tensorrt_library import logger_of, monitor_of, started
from engines.backends._tensorrt_network import add_profiles, parse, strongly_typed, type_mismatches
from engines.backends._tensorrt_session import TensorRTSession, inspected
from engines.checks import (
    available_on_cpu,
    choose_device,
    import_vendor,
    installed,
    is_installed,
)
from engines.contract import Availability, BuildOptions, Engine, OpenOptions
from engines.errors import DeployError, NotAvailableError, UsageError
from engines.layer_report import Layer, of_inspector, of_tensorrt

_WHY_UNSUPPORTED = {
    "target_sm": "it builds for the GPU of this machine",
    "version_compatible": "its plans are bound to its version",
    "hardware_compatible": "its plans are for a range of GPUs already (--target-sm)",
    "refit": "without a GPU, its builder fails with it",
    "strip_weights": "without a GPU, its builder fails with it",
}
_NOT_VERSION_COMPATIBLE = ("refit", "strip_weights")
# Options of every flavour; each flavour adds some of the others.
COMMON_OPTIONS = frozenset(
    {
        "batch_min",
        "batch_opt",
        "batch_max",
        "profiles",
        "workspace_mib",
        "tf32",
        "optimization_level",
        "other_types",
    }
)
_VERSION_NUMBERS = 4
TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")


@dataclass(frozen=True)
class LeanRuntime:
    """A small library that opens version-compatible plans of its own version, and builds none.

    The whole library does not open such plans of another version either: that takes the lean
    runtime of that version, which a plan of ours does not include.

    Attributes:
        module: Its Python module.
        wheels: The distributions that make it up; the first has the module.
    """

    module: str
    wheels: tuple[str, ...]

    @property
    def distributions(self) -> tuple[str, ...]:
        return self.wheels[:1]

    @property
    def install(self) -> str:
        return f"pip install {' '.join(self.wheels)}"


@dataclass(frozen=True)
class TensorRTEngine(Engine):
    """One flavour of TensorRT.

    Attributes:
        module: The vendor's Python module.
        distributions: Its distribution names, best first.
        install: The command that installs it.
        builds_without_gpu: Whether this flavour builds on a machine without a GPU.
        build_options: See `engines.contract.Engine`.
        gpu_limits: See `engines.contract.Engine.unsupported`.
        lean: The runtime that opens plans where the whole library is not installed.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    install: str
    builds_without_gpu: bool
    build_options: frozenset[str] = COMMON_OPTIONS
    gpu_limits: Callable[[str], str] = lambda _capability: ""
    lean: LeanRuntime | None = None
    suffix: str = ".plan"
    source: Literal["graph", "program"] = "graph"
    devices: tuple[str, ...] = ("cuda",)
    cuda_graphs: bool = True

    def available(self) -> Availability:
        library = available_on_cpu(self.distributions, self.install)
        if lean := self._lean_in_use():
            version = _described(installed(lean.distributions))
            reason = f"{version} opens only plans built with --version-compatible, and builds none"
            library = Availability(False, True, reason, self.install)
        if not library.run:
            return library
        builds = library.build and self.builds_without_gpu
        if problem := hardware.no_gpu():
            return Availability(builds, False, f"{library.reason}; {problem}")
        gpu = hardware.gpus()[0]
        if problem := self.unsupported(gpu["compute_capability"]) or self.gpu_problem(0):
            return Availability(builds, False, f"{library.reason}; {gpu['name']}: {problem}")
        return replace(library, reason=f"{library.reason}, {gpu['name']}")

    def runtime_module(self) -> str:
        lean = self._lean_in_use()
        return lean.module if lean else self.module

    def unsupported(self, capability: str) -> str:
        return self.gpu_limits(capability)

    def gpu_problem(self, index: int) -> str:
        return hardware.runtime_problem(index)

    def fingerprint(self) -> dict[str, str]:
        lean = self._lean_in_use()
        library = installed(lean.distributions if lean else self.distributions)
        return {**library, **hardware.gpu_fingerprint()}

    def _lean_in_use(self) -> LeanRuntime | None:
        """Returns the lean runtime if it is installed and the whole library is not."""
        if self.lean and not is_installed(self.distributions):
            return self.lean if is_installed(self.lean.distributions) else None
        return None

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Writes a serialized plan with an optimization profile for all sizes, and more if asked.

        Returns:
            The plan's layers after all fusions, with the types they compute in.

        Raises:
            DeployError: The parser or the builder rejects the graph (the message names the
                nodes), an axis other than the first is dynamic, or products compute in other
                types than the graph has.
            NotAvailableError: The library is missing, or this flavour needs a GPU to build, or
                lacks one of the options.
            UsageError: Options exclude each other, a target does not exist, or a profile does not
                fit the graph.
            KeyboardInterrupt: The build was cancelled.
        """
        self.check(options)
        vendor = import_vendor(self.module, self.install)
        if not self.builds_without_gpu and not hardware.gpus():
            raise NotAvailableError(
                f"{self.name} builds on the GPU it builds for, and this machine has none",
                "build with --engine tensorrt_rtx, which needs no GPU, or build on the target",
            )
        logger = logger_of(vendor)
        builder = started(vendor.Builder, logger, self.name)
        network = builder.create_network(strongly_typed(vendor))
        on_turing = _turing.CAPABILITY in options.target_sm
        rewritten = _turing.with_convolutions(source) if on_turing else None
        if rewritten is not None:
            options.note("rewritten", "Gemm as 1x1 Conv, for SM75")
        parse(vendor, network, logger, source, rewritten)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(vendor.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
        config.profiling_verbosity = vendor.ProfilingVerbosity.DETAILED
        if not options.tf32:
            # On by default, and a hundred times less precise than the fp32 it stands in for.
            config.clear_flag(vendor.BuilderFlag.TF32)
        _configure(vendor, config, options)
        add_profiles(builder, network, config, options)
        monitor = monitor_of(vendor, options.progress)
        config.progress_monitor = monitor
        timings = None if self.builds_without_gpu else self._timings()
        if timings is not None:
            _use_timings(config, timings, options)
        plan = builder.build_serialized_network(network, config)
        if monitor.ended_by is not None:
            raise monitor.ended_by
        if plan is None:
            hint = "the message names the layer at fault"
            if any("Turing" in error for error in logger.errors):
                hint = "build the fp16 graph for that GPU, or this one for newer GPUs"
            raise DeployError(
                f"{self.name} could not build {source}: {'; '.join(logger.errors)}",
                hint,
            )
        if self.builds_without_gpu:
            layers = of_tensorrt(logger.messages)
        else:
            report = inspected(vendor, plan, logger, self.name)
            options.note("inspector", json.loads(report))
            layers = of_inspector(report) or of_tensorrt(logger.messages)
        if missed := type_mismatches(source, layers):
            if not options.other_types:
                raise DeployError(
                    f"{self.name} computes in other types than {source} has: {'; '.join(missed)}",
                    "export another precision, build for a GPU that has this one, or accept it"
                    " with --other-types",
                )
            options.note("other_types", missed)
        target.write_bytes(plan)
        if timings is not None:
            cache.keep(timings, bytes(config.get_timing_cache().serialize()))
        return layers

    def _timings(self) -> Path:
        """Returns the file of the timings of tactics, for this version and GPU."""
        facts = {**installed(self.distributions), **hardware.gpu_fingerprint()}
        name = cache.slug("-".join(facts.values()))
        return cache.cache_folder() / self.name / f"{name}.timings"

    def open(self, built: Path, options: OpenOptions) -> TensorRTSession:
        """Opens a plan. A plan is native code, so the caller has to check its digest first.

        Raises:
            NotAvailableError: No GPU, or no bindings of the CUDA runtime.
            DeployError: TensorRT does not accept the plan here, the GPU has too little memory, or
                the plan was built without weights and `options.weights` is None.
        """
        lean = self._lean_in_use()
        vendor = import_vendor(self.runtime_module(), lean.install if lean else self.install)
        if not hardware.gpus():
            raise NotAvailableError(
                f"a {self.name} plan runs on an NVIDIA GPU, and this machine has none",
                "copy the bundle to the target and run `assay check` there",
            )
        options = replace(options, device=choose_device(self, options.device))
        return TensorRTSession(vendor, self.name, built, options, logger_of(vendor))

    def incompatibility(self, built_by: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Returns why a plan must not be loaded here, judged by its record; "" if it may be.

        Args:
            built_by: The fingerprint on the machine that built it.
            params: The options it was built with.
        """
        here = self.fingerprint()
        facts = [name for name in self.distributions if name in {**built_by, **here}]
        if lean := self._lean_in_use():
            if why := self._lean_incompatibility(lean, built_by, params):
                return why
            facts = []
        if not self.builds_without_gpu and not params.get("hardware_compatible"):
            facts.append("gpu_compute_capability")
        differ = [name for name in facts if built_by.get(name) != here.get(name)]
        if not differ:
            return ""
        there, now = (
            _described({name: fingerprint.get(name, "none") for name in differ})
            for fingerprint in (built_by, here)
        )
        return f"it was built with {there}, but this machine has {now}"

    def _lean_incompatibility(
        self, lean: LeanRuntime, built_by: Mapping[str, str], params: Mapping[str, Any]
    ) -> str:
        """Returns why the lean runtime does not open a plan, or ""."""
        runtime, builder = installed(lean.distributions), self._builder(built_by)
        opens = f"{_described(runtime)} opens only"
        if not params.get("version_compatible"):
            return f"{opens} plans built with --version-compatible"
        if not builder or _numbers(builder) != _numbers(runtime):
            built_with = _described(builder) or "an unknown version"
            return f"it was built with {built_with}, but {opens} plans of its own version"
        return ""

    def smaller_runtime(self, built_by: Mapping[str, str], params: Mapping[str, Any]) -> str:
        builder = self._builder(built_by)
        if not (self.lean and builder and params.get("version_compatible")):
            return ""
        version = ".".join(_numbers(builder))
        return f"pip install {' '.join(f'{name}=={version}' for name in self.lean.wheels)}"

    def _builder(self, built_by: Mapping[str, str]) -> dict[str, str]:
        """Returns name and version of the library that built a plan, if its record has them."""
        return {name: built_by[name] for name in self.distributions if name in built_by}

    def rebuild(self, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        lean = self._lean_in_use()
        if not lean:
            return super().rebuild(params)
        version = ".".join(_numbers(installed(lean.distributions)))
        excluded = dict.fromkeys(_NOT_VERSION_COMPATIBLE, False)
        where = f"where {self.distributions[0]} {version} is installed"
        return where, {**params, **excluded, "version_compatible": True}

    def check(self, options: BuildOptions) -> None:
        """Raises for options that this flavour lacks, and for those that exclude each other."""
        for name in _WHY_UNSUPPORTED.keys() - self.build_options:
            if getattr(options, name):
                raise NotAvailableError(
                    f"{self.name} does not take --{name.replace('_', '-')}:"
                    f" {_WHY_UNSUPPORTED[name]}",
                    "leave the option out, or build another engine",
                )
        if options.version_compatible and any(
            getattr(options, name) for name in _NOT_VERSION_COMPATIBLE
        ):
            raise UsageError(
                "TensorRT's runtime for version-compatible plans cannot put weights into a plan",
                "leave out --version-compatible, or --refit and --strip-weights",
            )
        known = {int(sm[2:]) for sm in TARGETS}
        for sm in options.target_sm:
            if sm not in known:
                raise UsageError(
                    f"TensorRT for RTX has no target with compute capability {sm}",
                    f"available: {', '.join(map(str, sorted(known)))}",
                )


def _configure(vendor: Any, config: Any, options: BuildOptions) -> None:
    """Sets the options that differ from the defaults."""
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    flags = vendor.BuilderFlag
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
        # A plan that includes a runtime would hold host code, which sessions do not run.
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
    if options.refit:
        config.set_flag(flags.REFIT)
    if options.strip_weights:
        config.set_flag(flags.STRIP_PLAN)
        # Only with the graph's own weights, for which the plan may be optimised.
        config.set_flag(flags.REFIT_IDENTICAL)
    if options.hardware_compatible:
        config.hardware_compatibility_level = vendor.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.target_sm:
        config.num_compute_capabilities = len(options.target_sm)
        for index, sm in enumerate(options.target_sm):
            config.set_compute_capability(getattr(vendor.ComputeCapability, f"SM{sm}"), index)


def _described(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _numbers(versions: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the numbers of a version of TensorRT, without those of its packaging (".post1")."""
    return tuple(next(iter(versions.values())).split(".")[:_VERSION_NUMBERS])


def _use_timings(config: Any, path: Path, options: BuildOptions) -> None:
    """Gives the builder the timings of earlier builds, which speed up this one."""
    kept = path.read_bytes() if path.is_file() else b""
    if kept and config.set_timing_cache(config.create_timing_cache(kept), False):
        options.note("timing_cache", hashlib.sha256(kept).hexdigest())
        return
    config.set_timing_cache(config.create_timing_cache(b""), False)
    options.note("timing_cache", "empty")
