"""Stage build: an engine from the graph or program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines import hardware, profiles
from engines.errors import DeployError, NotAvailableError, RefusedError, UsageError
from engines.profiles import BATCH_MAX, BATCH_OPT
from exporters import PRECISIONS
from pipeline import models
from pipeline.report import build as report
from pipeline.report import repeated
from pipeline.stages import engine_source, model_option, precision_option
from pipeline.workflow import console, worker
from pipeline.workflow.artifacts import (
    DESCRIPTION,
    ENGINE,
    ENGINE_BUILDS,
    ENGINE_LAYERS,
    GOLDEN,
    GRAPH,
    GRAPH_DATA,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import read_json, write_json
from pipeline.workflow.stage import OptionRole, Stage, StageRuns, option, options

if TYPE_CHECKING:
    from engines.contract import BuildOptions
    from pipeline.workflow.records import Record


def _buildable(_params: Mapping[str, Any], _root: Path) -> list[str]:
    available = {name: engines.get(name).available() for name in engines.names()}
    for name, state in available.items():
        if not state.build:
            console.say(f"build: without {name}: {state.reason}")
    return [name for name, state in available.items() if state.build]


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    engine: str = option(
        "all",
        text='Engines to build, or "all" that this machine can build.',
        names=engines.names,
        role=OptionRole(expand_all=_buildable, skip_unavailable=True, shown_by_run=True),
    )
    batch_min: int = option(1, text="Smallest batch (TensorRT's optimization profile).")
    batch_opt: int | None = option(
        None, text=f"Batch to optimise for (TensorRT) [{BATCH_OPT}, within the other two]."
    )
    batch_max: int | None = option(
        None, text=f"Largest batch (TensorRT) [{BATCH_MAX}, or the largest of the other two]."
    )
    profiles: tuple[str, ...] = option(
        (),
        text="Ranges of sizes to optimise for, too, as in batch=1,batch=2:8:32/width=64:128:256"
        " (TensorRT).",
    )
    workspace: int = option(1024, text="Scratch memory that TensorRT may use, in MiB.", high=2**20)
    tf32: bool = option(False, text="Let TensorRT compute fp32 products in TF32.")
    optimization_level: int | None = option(
        None, text="TensorRT's level, from 0 (fast to build) to 5 (fast to run).", low=0, high=5
    )
    target_sm: tuple[int, ...] = option(
        (), text="Compute capabilities to build for, as in 75,86,89,120 (TensorRT for RTX)."
    )
    version_compatible: bool = option(
        False, text="Build a plan that TensorRT's lean runtime of the same version opens."
    )
    hardware_compatible: bool = option(
        False, text="Build a plan for any GPU from Ampere on (TensorRT)."
    )
    refit: bool = option(False, text="Build a plan whose weights can be replaced (TensorRT).")
    strip_weights: bool = option(False, text="Build a plan without its weights (TensorRT).")
    other_types: bool = option(
        False, text="Accept a plan that computes in other types than the graph asks for (TensorRT)."
    )
    prefer_nhwc: bool = option(
        False, text="Run convolutions channels-last (ONNX Runtime's CUDA provider)."
    )
    repeat: int | None = option(
        None,
        text="Build so many times from nothing, keep the first, and record how error, classes and"
        " latency differ, and how far a further build may lie [as often as before, at first once].",
        high=100,
    )


def inherit(params: Params, explicit: frozenset[str], record: Record) -> Params:
    """Builds as often as before, so that a second run does not lose the acceptance region."""
    same = all(record.params.get(name) == getattr(params, name) for name in ("precision", "engine"))
    if "repeat" in explicit or not same or params.strip_weights:
        return params
    return dataclasses.replace(params, repeat=record.params.get("repeat"))


def resolve(params: Params) -> Params:
    """Checks the batch sizes, and that the engine has the precision, before the stage is locked.

    Options that the engine ignores get their defaults, so that they do not change the key.
    """
    chosen = _options(params)
    engine = engines.get(params.engine)
    engine.check(chosen)
    params = dataclasses.replace(params, target_sm=tuple(sorted(set(params.target_sm))))
    taken = {*engine.build_options, *_OF_STAGE}
    ignored = {
        option.name: option.default
        for option in options(Params)
        if _FOR_SOME.get(option.name, option.name) not in taken
    }
    params = _with_batches(dataclasses.replace(params, **ignored))
    if params.repeat == 1:
        params = dataclasses.replace(params, repeat=None)
    if params.repeat and params.strip_weights:
        raise UsageError(
            "--repeat proves each build, and a plan without its weights cannot be run by itself",
            "leave out --repeat, or --strip-weights",
        )
    precision = PRECISIONS[params.precision]
    program = engines.get(params.engine).source == "program"
    if program and models.graph_file(params.model) is not None:
        raise NotAvailableError(
            f"engine {params.engine!r} runs a PyTorch program, and {params.model} is an ONNX graph",
            "build another engine",
        )
    if precision.quantized and engines.get(params.engine).source == "program":
        raise NotAvailableError(
            f"engine {params.engine!r} does not support {precision.name}: it runs the PyTorch"
            " program, and only the ONNX graph is quantized",
            "build another engine",
        )
    if precision.name in engines.get(params.engine).lacks:
        raise NotAvailableError(
            f"engine {params.engine!r} has no kernels for {precision.name}", "build another engine"
        )
    return params


# The options of the stage itself.
_OF_STAGE = ("model", "precision", "engine", "repeat")
# The options of a build, by their names in `BuildOptions`. For training there is a --tf32, too, and
# `assay run` cannot tell which one is meant.
_CHOICES = {
    option.name: "workspace_mib" if option.name == "workspace" else option.name
    for option in options(Params)
    if option.name not in _OF_STAGE
}
_FOR_SOME = {name: option for name, option in _CHOICES.items() if name != "tf32"}


def check_options(explicit: frozenset[str], runs: Sequence[Params]) -> None:
    """Checks that each option is one that an engine to be built uses.

    Raises:
        UsageError: No engine uses it, or the batch sizes contradict each other.
    """
    for params in runs:
        _options(params)
    for name in sorted(explicit & _FOR_SOME.keys()):
        users = [e for e in engines.names() if _FOR_SOME[name] in engines.get(e).build_options]
        if runs and not {params.engine for params in runs} & {*users}:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} does not apply to {', '.join(params.engine for params in runs)}",
                f"leave it out; it is for {', '.join(users)}",
            )


def _with_batches(params: Params) -> Params:
    """Fills in the batch sizes that are not given, so that they fit those that are."""
    low, usual, high = params.batch_min, params.batch_opt, params.batch_max
    if high is None:
        high = max(low, usual or 0, BATCH_MAX)
    if usual is None:
        usual = min(max(low, BATCH_OPT), high)
    return dataclasses.replace(params, batch_opt=usual, batch_max=high)


def _options(params: Params) -> BuildOptions:
    from engines.contract import BuildOptions

    filled = _with_batches(params)
    values = {field: getattr(filled, name) for name, field in _CHOICES.items()}
    return BuildOptions(**values | {"profiles": profiles.parse(params.profiles)})


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Builds one engine, once or several times."""
    engine = engines.get(params.engine)
    state = engine.available()
    if not state.build:
        raise NotAvailableError(
            f"engine {params.engine!r} cannot be built here: {state.reason}", state.install
        )
    source = inputs[engine_source(params.engine, params.precision)]
    sizes = read_json(inputs[DESCRIPTION])["sizes"]

    def build(target: Path) -> dict[str, Any]:
        return worker.call(f"building {params.engine}", _build, params, source, target, sizes)

    if params.repeat is None:
        content = build(outputs[ENGINE])
    else:
        from pipeline.rebuilding import spread

        subject = spread.Subject(
            params.engine,
            inputs[GOLDEN],
            params.precision,
            batches(params),
            "auto",
            hardware.available_cpus(),
        )
        content, builds = spread.repeat(build, outputs[ENGINE], params.repeat, subject)
        write_json(outputs[ENGINE_BUILDS], builds.document())
    write_json(outputs[ENGINE_LAYERS], content)


def batches(params: Params) -> tuple[int, int]:
    """Returns the least and the largest batch that an engine is built for."""
    filled = _with_batches(params)
    return filled.batch_min, filled.batch_max or BATCH_MAX


def _build(
    params: Params, source: Path, target: Path, sizes: dict[str, list[list[int] | None]]
) -> dict[str, Any]:
    """Builds one engine in this process; returns its layers and notes."""
    done, notes = 0.0, dict[str, object]()

    def tell(text: str, part: float) -> None:
        nonlocal done
        bar.advance(max(0.0, part - done), text)
        done = max(done, part)

    try:
        with console.bar(f"build {params.engine}", 1) as bar:
            options = dataclasses.replace(
                _options(params), sizes=sizes, progress=tell, note=notes.__setitem__
            )
            layers = engines.get(params.engine).build(source, target, options)
    except (NotAvailableError, UsageError):
        raise
    except DeployError as error:
        raise RefusedError(error.message, error.hint, error.report) from error
    return {"layers": [dataclasses.asdict(layer) for layer in layers], "notes": notes}


def _inputs(params: Params) -> tuple[Artifact, ...]:
    source = engine_source(params.engine, params.precision)
    data = (GRAPH_DATA,) if source == GRAPH else ()
    return (source, DESCRIPTION, *data, *((GOLDEN,) if params.repeat else ()))


def facts(params: Params) -> dict[str, str]:
    """Returns the backend's versions and, where it matters, the GPU."""
    return engines.get(params.engine).fingerprint()


def show(runs: StageRuns[Params]) -> None:
    """Prints each engine's path, whether this machine can run it, and how its builds differ.

    Raises:
        ParityError: A build of an engine is a mismatch.
        CrashedError: One ended the process that proved it.
        FailedError: One could not be opened.
    """
    wrong = []
    for outputs, params in runs:
        available = engines.get(params.engine).available()
        report.show(params.engine, outputs[ENGINE], read_json(outputs[ENGINE_LAYERS]), available)
        if (params.repeat or 1) > 1:
            from pipeline.rebuilding import region

            builds = region.load(outputs[ENGINE_BUILDS])
            repeated.show(params.engine, builds)
            wrong += region.faults(params.engine, builds)
    if wrong:
        raise wrong[0]


STAGE = Stage(
    name="build",
    help="Build engines: PyTorch, ONNX Runtime, TensorRT.",
    params=Params,
    inputs=_inputs,
    outputs=lambda _params: (ENGINE, ENGINE_LAYERS, ENGINE_BUILDS),
    run=run,
    revision=4,
    facts=facts,
    resolve=resolve,
    inherit=inherit,
    check_options=check_options,
    opens_engines=True,
    show=show,
)
