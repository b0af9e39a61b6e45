"""Stage bench: latency and throughput of engines, side by side."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engines
from engines import hardware
from engines.errors import FailedError, NotAvailableError, UsageError
from exporters import PRECISIONS
from pipeline import models
from pipeline.report import bench as report
from pipeline.stages import (
    Subject,
    check_threads,
    engines_option,
    failed,
    failed_last_time,
    golden_loads,
    machine_facts,
    model_option,
    precision_option,
    require_built,
)
from pipeline.workflow import hints
from pipeline.workflow.artifacts import (
    COMPARISON,
    GOLDEN,
    MEASUREMENTS,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import read_json, write_json
from pipeline.workflow.stage import OptionRole, Stage, StageRuns, option

# The engine that the others are compared with, if it is measured.
BASELINE = "pytorch"


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    engine: tuple[str, ...] = engines_option("measure")
    against: tuple[str, ...] = option(
        (),
        text="Precisions to compare with; the engines of the first are the baseline.",
        names=lambda: list(PRECISIONS),
        role=OptionRole(in_run=False),
    )
    batch: tuple[int, ...] = option((1, 8, 64), text="Batch sizes to measure.", high=65536)
    threads: int | None = option(
        None,
        text="CPU threads of one inference [all that the process may use].",
        high=1024,
        validate=check_threads,
        role=OptionRole(shown_by_run=True),
    )
    affinity: tuple[int, ...] = option(
        (), text="CPUs to run on, by number, as in 0,1 [all that the process may use].", low=0
    )
    device: str = option("auto", text="Where the engines run: auto, cpu, cuda or cuda:N.")
    cuda_graph: bool = option(
        False, text="Also measure engines that replay their launches as one CUDA graph."
    )
    budget: float | None = option(None, text="Seconds for each batch size [8; edge: 0.5].")
    seed: int = option(0, text="Seed of the order within rounds.", low=0)


@dataclass(frozen=True)
class CommandOptions:
    """Options that only the command has."""

    history: bool = option(
        False,
        text="Measure again, keep the result, and find what is slower than in earlier runs on this"
        " machine; what took longer is run beside its file of then.",
        role=OptionRole(after="compare", again=True),
    )


def prerequisite(values: Mapping[str, Any], _root: Path) -> str:
    """Returns none; checks that only what belongs to one precision is kept.

    Raises:
        UsageError: `--history` and `--against` are given.
    """
    if values.get("history") and values.get("against"):
        raise UsageError(
            "--history keeps the runs of one precision, and --against names others",
            "leave out one of the two",
        )
    return ""


def resolve(params: Params) -> Params:
    """Puts the baseline first, fills in defaults, and checks CPUs, threads and CUDA graphs."""
    require_built(params.engine, vars(params))
    ordered = sorted(set(params.engine), key=lambda name: (name != BASELINE, name))
    budget = params.budget
    if budget is None:
        spec = models.in_zoo(params.model)
        budget = (spec.recipe if spec else models.Recipe()).bench_seconds
    if params.affinity:
        allowed = hardware.affinity()
        if not set(params.affinity) <= set(allowed):
            raise UsageError(
                f"--affinity {','.join(map(str, params.affinity))}: this process may only use the"
                f" CPUs {','.join(map(str, allowed))}",
                "choose from these CPUs",
            )
    if params.affinity and params.threads not in (None, len(set(params.affinity))):
        raise UsageError(
            f"--threads {params.threads} and --affinity {','.join(map(str, params.affinity))}"
            f" contradict each other: that is {len(set(params.affinity))} CPUs",
            "leave --threads out: there is then one thread for each CPU of --affinity",
        )
    if params.cuda_graph and params.device == "cpu":
        raise UsageError(
            "--cuda-graph and --device cpu contradict each other", "leave out one of the two"
        )
    if params.precision in params.against:
        raise UsageError(
            f"--against {params.precision} and --precision {params.precision} are the same"
            " precision",
            "give --against the other precisions",
        )
    if params.cuda_graph and not any(_has_graphs(other, params) for other in params.engine):
        raise NotAvailableError(
            f"none of {', '.join(params.engine)} has CUDA graphs on this machine",
            "leave --cuda-graph out, or use a machine with a CUDA device",
        )
    batch = tuple(sorted(set(params.batch)))
    return dataclasses.replace(
        params,
        engine=tuple(ordered),
        against=tuple(dict.fromkeys(params.against)),
        batch=batch,
        budget=budget,
        threads=params.threads or len(set(params.affinity)) or hardware.available_cpus(),
        affinity=tuple(sorted(set(params.affinity))),
    )


def _has_graphs(name: str, params: Params) -> bool:
    from engines.checks import choose_device

    engine = engines.get(name)
    return (
        engine.cuda_graphs
        and engine.available().run
        and choose_device(engine, params.device) != "cpu"
    )


def _subjects(params: Params) -> dict[str, Subject]:
    """Returns the engines to measure by their names in the table, the baseline first."""
    subjects = {}
    for precision in (*params.against, params.precision):
        for engine in params.engine:
            name = engine if precision == params.precision else f"{engine} {precision}"
            subject = Subject.of(engine, precision)
            subjects[name] = subject
            if params.cuda_graph and _has_graphs(engine, params):
                subjects[f"{name} graph"] = dataclasses.replace(subject, cuda_graph=True)
    return subjects


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Measures every engine at every batch size and both boundaries.

    One that fails, or ends the process, is noted with the reason, and the others go on.

    Raises:
        ParityError: An engine is not proved, so its speed means nothing.
        FailedError: All of them failed.
    """
    from pipeline.benchmarking.measuring import Built, measure
    from pipeline.golden import file as goldens

    subjects = _subjects(params)
    for subject in subjects.values():
        subject.require_proof(read_json(inputs[subject.verdict]), params.model, params.device)
    threads = params.threads or 1  # `resolve` has filled it in
    golden = goldens.load(inputs[GOLDEN])
    built = [
        Built(
            name,
            subject.engine,
            inputs[subject.built],
            subject.options(inputs[subject.built], params.device, threads),
        )
        for name, subject in subjects.items()
    ]
    load, before = os.getloadavg()[0], hardware.gpu_states()
    measured = measure(
        built,
        golden_loads(golden, params.batch),
        budget=params.budget or 0.0,  # `resolve` has filled it in
        seed=params.seed,
        affinity=params.affinity,
    )
    after = hardware.gpu_states()
    if not measured.results:
        raise _failed(measured.failures, params)
    write_json(
        outputs[_measurements(params)],
        {
            "baseline": measured.results[0]["baseline"],
            "devices": measured.devices,
            "counted": models.counted(golden.inputs),
            "machine": {
                **hardware.machine(),
                "threads": threads,
                "affinity": params.affinity or hardware.affinity(),
                "load_average_before": load,
                "gpu_states_before": before,
                "gpu_states_after": after,
            },
            "results": measured.results,
            "failures": measured.failures,
        },
    )


def _failed(failures: Sequence[Mapping[str, Any]], params: Params) -> FailedError:
    """Returns the error that names the engines which failed."""
    reasons = {entry["name"]: entry["reason"] for entry in reversed(failures)}
    words = {"model": params.model, "precision": params.precision, "engine": tuple(reasons)}
    return failed(
        reasons,
        "while it was measured",
        "leave it out with --engine, or judge it again:"
        f" `{hints.command('verify', words)} --force`",
    )


def failed_before(outputs: Paths, params: Params) -> str:
    """Returns which engines failed, so that all are measured again."""
    failures = read_json(outputs[_measurements(params)]).get("failures", ())
    return failed_last_time(entry["name"] for entry in failures)


def facts(params: Params) -> dict[str, str]:
    """Returns the fingerprints of each backend, the CPU and the GPU."""
    return machine_facts(params.engine)


def show(runs: StageRuns[Params]) -> None:
    """Prints the measurements.

    Raises:
        FailedError: An engine failed while it was measured.
    """
    for outputs, params in runs:
        measurements = read_json(outputs[_measurements(params)])
        report.show(measurements)
        if measurements.get("failures"):
            raise _failed(measurements["failures"], params)


def _measurements(params: Params) -> Artifact:
    """Returns where the measurements go.

    Those of several precisions have a file of their own, since they belong to no bundle.
    """
    return COMPARISON if params.against else MEASUREMENTS


def _inputs(params: Params) -> tuple[Artifact, ...]:
    return (GOLDEN, *dict.fromkeys(subject.built for subject in _subjects(params).values()))


def _conditions(params: Params) -> tuple[Artifact, ...]:
    return tuple(dict.fromkeys(subject.verdict for subject in _subjects(params).values()))


STAGE = Stage(
    name="bench",
    help="Measure engines side by side.",
    params=Params,
    command_options=CommandOptions,
    prerequisite=prerequisite,
    inputs=_inputs,
    conditions=_conditions,
    outputs=lambda params: (_measurements(params),),
    run=run,
    opens_engines=True,
    tools=("numpy",),
    revision=3,
    facts=facts,
    resolve=resolve,
    run_again=failed_before,
    show=show,
)
