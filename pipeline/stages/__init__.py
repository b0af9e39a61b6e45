"""The stages, one file each, and what several of them share: options, inputs, proved engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
import exporters
from engines import hardware
from engines.errors import (
    DeployError,
    FailedError,
    NotAvailableError,
    ParityError,
    UsageError,
)
from pipeline import models
from pipeline.report import units
from pipeline.workflow import console, hints
from pipeline.workflow.artifacts import (
    CPU_GRAPH,
    DATA,
    ENGINE,
    ENGINE_VERDICT,
    GRAPH,
    PROGRAM,
    Artifact,
)
from pipeline.workflow.digests import read_json
from pipeline.workflow.stage import OptionRole, option

if TYPE_CHECKING:
    from engines.contract import OpenOptions, Session
    from pipeline.benchmarking.comparison import Load
    from pipeline.golden.file import Golden


def need_torch(*more: str) -> None:
    """Checks that PyTorch and `more` modules are installed; a deployment target may lack them.

    Raises:
        NotAvailableError: One of them is not installed.
    """
    from engines.checks import import_vendor

    for module in ("torch", *more):
        import_vendor(module, "pip install torch torchvision onnxscript")


def model_option() -> Any:
    """Declares the MODEL argument."""
    return option(
        text="Model of the zoo, torchvision:NAME, timm:NAME, package.module:factory,"
        " path/to/file.py:factory or onnx:path/to/model.onnx.",
        validate=models.check_name,
    )


def data_option(default: str | None, *, as_trained: bool = False) -> Any:
    """Declares `--data`; the command line replaces a folder by the name of its data set.

    Args:
        default: The default data set; None means the model's own.
        as_trained: Default to the data set that the model was trained on.
    """
    shown = "" if default is not None else " [the model's own]"
    return option(
        default,
        text=f"Data set, or a folder with a subfolder of images for each class{shown}.",
        role=OptionRole(takes_image_folder=True, default_from_training=as_trained),
    )


def precision_option() -> Any:
    """Declares `--precision` of a stage that has one; its command takes several."""
    return option(
        exporters.DEFAULT_PRECISION,
        text="Precisions of the graph.",
        names=lambda: list(exporters.PRECISIONS),
        role=OptionRole(each=True),
    )


def precisions_option() -> Any:
    """Declares `--precision` of a stage that takes several."""
    return option(
        (exporters.DEFAULT_PRECISION,),
        text="Precisions of the graph.",
        names=lambda: list(exporters.PRECISIONS),
    )


def ordered(precisions: Iterable[str]) -> tuple[str, ...]:
    """Returns precisions in the order of their table, each once: the same choice, the same key."""
    chosen = set(precisions)
    return tuple(name for name in exporters.PRECISIONS if name in chosen)


def check_time(text: str) -> None:
    """Raises UsageError for a time that is not written as in 5ms."""
    units.seconds(text)


def check_threads(threads: int | None) -> None:
    """Checks the CPU threads of one inference; None stands for a number that fits.

    Raises:
        UsageError: This process may not use as many CPUs. Threads that share one would be measured
            waiting for each other.
    """
    cpus = hardware.available_cpus()
    if threads is not None and threads > cpus:
        raise UsageError(
            f"--threads {threads} is more than the CPUs that this process may use: {cpus}",
            f"give at most {cpus}",
        )


def engines_option(
    purpose: str, proved: Callable[[Mapping[str, Any], Path], list[str]] | None = None
) -> Any:
    """Declares `--engine` of a stage that measures built engines.

    Args:
        purpose: What it does with them.
        proved: Returns what "all" stands for; by default the engines that are proved here.
    """
    return option(
        ("all",),
        text=f'Built engines to {purpose}, or "all" that are proved on this machine.',
        names=engines.names,
        role=OptionRole(expand_all=proved or proved_engines),
    )


def data_artifacts(
    data: str | None, artifacts: tuple[Artifact, ...] = DATA
) -> tuple[Artifact, ...]:
    """Returns the artifacts of a data set; () if `data` is None."""
    return () if data is None else tuple(artifact.at(dataset=data) for artifact in artifacts)


def engine_source(name: str, precision: str) -> Artifact:
    """Returns the artifact that an engine is built from at a precision."""
    engine = engines.get(name)
    if engine.source == "program":
        return PROGRAM
    for_cpu = exporters.PRECISIONS[precision].cpu_graph and engine.devices == ("cpu",)
    return CPU_GRAPH if for_cpu else GRAPH


def _fields(params: Mapping[str, Any]) -> dict[str, str]:
    """Returns the parameters that fill an artifact's path."""
    fields = {"precision": exporters.DEFAULT_PRECISION}
    return fields | {name: value for name, value in params.items() if isinstance(value, str)}


def built_engines(params: Mapping[str, Any], root: Path) -> list[str]:
    """Returns the names of the engines built for the model in a precision of `params`."""
    fields, several = _fields(params), params.get("precision")
    precisions = several if isinstance(several, tuple) else (fields["precision"],)
    return [
        name
        for name in engines.names()
        if any(
            (root / ENGINE.at(**{**fields, "engine": name, "precision": precision}).path).exists()
            for precision in precisions
        )
    ]


def proved_engines(params: Mapping[str, Any], root: Path) -> list[str]:
    """Returns the names of the built engines that run on this machine and have no other verdict.

    Prints why the others are left out. An engine without a verdict is not left out.
    """
    fields = _fields(params)
    proved = []
    for name in built_engines(params, root):
        state = engines.get(name).available()
        why = "" if state.run else state.reason
        path = root / ENGINE_VERDICT.at(**{**fields, "engine": name}).path
        if not why and path.exists():
            verdict = read_json(path)
            if verdict["status"] != "pass":
                why = f"its verdict is {verdict['status']!r}: {verdict['reason']}"
        if why:
            console.say(f"without {name}: {why}")
        else:
            proved.append(name)
    return proved


@dataclass(frozen=True)
class Subject:
    """A built engine, and whether it replays a CUDA graph."""

    engine: str
    built: Artifact
    verdict: Artifact
    cuda_graph: bool = False

    @classmethod
    def of(cls, engine: str, precision: str) -> Subject:
        """Returns an engine at a precision."""
        return cls(
            engine,
            ENGINE.at(engine=engine, precision=precision),
            ENGINE_VERDICT.at(engine=engine, precision=precision),
        )

    def require_proof(self, verdict: Mapping[str, Any], model: str, device: str) -> None:
        """Checks that the engine is proved on the kind of device that it is measured on.

        Other kernels run on another one, so that the proof says nothing about them.

        Args:
            verdict: The content of the engine's verdict.
            model: The name of the model, for the hint.
            device: The device that it is asked to run on.

        Raises:
            ParityError: It is not proved, so its speed means nothing.
        """
        from engines.checks import choose_device

        words = {"model": model, "precision": verdict["precision"]}
        if verdict["status"] != "pass":
            reason = f": {verdict['reason']}" if verdict["reason"] else ""
            raise ParityError(
                f"{self.engine} is not measured, since its verdict in {verdict['precision']} is"
                f" {verdict['status']!r}{reason}",
                "leave it out with --engine, or run"
                f" `{hints.command('verify', words | {'engine': self.engine})}`",
            )
        proved = str(verdict["facts"].get("device", ""))
        device = choose_device(engines.get(self.engine), device)
        if proved and proved.partition(":")[0] != device.partition(":")[0]:
            words |= {"device": device, "engine": self.engine}
            raise ParityError(
                f"{self.engine} is not measured on {device!r}: it is proved on {proved!r} only",
                f"run `{hints.command('verify', words)}`, or give --device"
                f" {proved.partition(':')[0]}",
            )

    def options(self, built: Path, device: str, threads: int) -> OpenOptions:
        """Returns how the engine is opened on this machine.

        Args:
            built: The file of `self.built`.
            device: The device that it is asked to run on.
            threads: CPU threads of one inference.

        Raises:
            NotAvailableError: It does not run on this machine.
        """
        from engines.contract import OpenOptions
        from pipeline.verification.engine_proof import fitted

        engine = engines.get(self.engine)
        state = engine.available()
        if not state.run:
            raise NotAvailableError(
                f"engine {self.engine!r} cannot run here: {state.reason}", state.install
            )
        return fitted(engine, built, OpenOptions(device, threads, cuda_graph=self.cuda_graph))

    def opener(self, built: Path, device: str) -> Callable[[int], Session]:
        """Returns a function that opens the engine with so many CPU threads; see `options`.

        The file is compared with its record once, however often it is opened.
        """

        @cache
        def checked() -> OpenOptions:
            return self.options(built, device, 1)

        def open_(threads: int) -> Session:
            chosen = dataclasses.replace(checked(), threads=threads)
            return engines.get(self.engine).open(built, chosen)

        return open_


def golden_loads(golden: Golden, batches: Sequence[int]) -> tuple[Load, ...]:
    """Returns what engines are measured on: each batch size, at each size of the inputs."""
    from pipeline.benchmarking.comparison import Load

    return tuple(
        Load(batch, part.feeds(batch), part.size if golden.others else "")
        for part in (golden, *golden.others)
        for batch in golden_batches(golden, batches)
    )


def golden_batches(golden: Golden, batches: Sequence[int]) -> Sequence[int]:
    """Returns the batch sizes to measure; a graph without a batch axis takes one row."""
    return batches if golden.batched else (1,)


def threads_each(threads: int | None, sessions: int) -> int:
    """Returns the CPU threads of one of several sessions: by default they share the CPUs."""
    return threads or max(1, hardware.available_cpus() // sessions)


def failed(reasons: Mapping[str, str], doing: str, hint: str) -> FailedError:
    """Returns the error that names engines which failed.

    Args:
        reasons: Why, by engine.
        doing: In which circumstances, such as "under load".
    """
    return FailedError(
        "; ".join(f"{name} failed {doing}: {why}" for name, why in reasons.items()), hint
    )


def failed_last_time(names: Iterable[str]) -> str:
    """Returns why a stage runs again after engines failed; "" if none did."""
    joined = ", ".join(dict.fromkeys(names))
    return f"{joined} failed last time" if joined else ""


def require_built(chosen: Sequence[str], params: Mapping[str, Any]) -> None:
    """Raises DeployError if no engine is chosen, since none is built that runs here."""
    if not chosen:
        raise DeployError(
            f"no engine of {params['model']} is built that runs on this machine",
            f"run `{hints.command('build', {**params, 'engine': None})}`",
        )


def machine_facts(chosen: Sequence[str]) -> dict[str, str]:
    """Returns the fingerprints of the chosen engines, the CPU and the GPU."""
    facts = {**hardware.cpu_fingerprint(), **hardware.gpu_fingerprint()}
    for name in chosen:
        facts |= engines.get(name).fingerprint()
    return facts
