"""Stage bench: latency and throughput of engines, side by side."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines import hardware
from engines.errors import DeployError, FailedError, NotAvailableError, UsageError
from exporters import PRECISIONS
from pipeline import models
from pipeline.report import bench as report
from pipeline.stages import (
    Subject,
    check_threads,
    machine_facts,
    model_option,
    precision_option,
    proved_engines,
    require_built,
)
from pipeline.workflow import hints, worker
from pipeline.workflow.artifacts import (
    COMPARISON,
    GOLDEN,
    MEASUREMENTS,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import read_json, write_json
from pipeline.workflow.stage import OptionRole, Stage, StageRuns, option

if TYPE_CHECKING:
    from engines.contract import Session

# The engine that the others are compared with, if it is measured.
BASELINE = "pytorch"


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    engine: tuple[str, ...] = option(
        ("all",),
        text='Built engines to measure, or "all" that are proved on this machine.',
        names=engines.names,
        role=OptionRole(expand_all=proved_engines),
    )
    against: tuple[str, ...] = option(
        (),
        text="Precisions to compare with; the engines of the first are the baseline.",
        names=lambda: list(PRECISIONS),
        role=OptionRole(in_run=False),
    )
    batch: tuple[int, ...] = option((1, 8, 64), text="Batch sizes to measure.", high=65536)
    threads: int | None = option(
        None, text="CPU threads of one inference [all that the process may use].", high=1024
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
        text="Keep the result, and find what is slower than in earlier runs on this machine; what"
        " took longer is run beside its file of then.",
        role=OptionRole(after="compare"),
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
    check_threads(params.threads)
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

    One that fails is noted with the reason, and the others go on.

    Raises:
        ParityError: An engine is not proved, so its speed means nothing.
        FailedError: All of them failed.
    """
    from pipeline.benchmarking.comparison import Load, compare
    from pipeline.golden import file as goldens

    subjects = _subjects(params)
    for subject in subjects.values():
        subject.require_proof(read_json(inputs[subject.verdict]), params.model, params.device)
    worker.end()  # it holds memory, on a GPU too
    threads = params.threads or 1  # `resolve` has filled it in
    golden = goldens.load(inputs[GOLDEN])
    with ExitStack() as stack:
        stack.enter_context(hardware.keeping_to(params.affinity))
        sessions: dict[str, Session] = {}
        failures: list[dict[str, Any]] = []
        for name, subject in subjects.items():
            try:
                session = subject.open(inputs[subject.built], params.device, threads)
            except FailedError as error:
                failures.append({"name": name, "reason": error.message})
            else:
                sessions[name] = stack.enter_context(closing(session))

        def failed(name: str, load: Load, error: DeployError) -> None:
            failures.append({**load.document(), "name": name, "reason": error.message})

        load, affinity = os.getloadavg()[0], hardware.affinity()
        before = hardware.gpu_states()
        results = compare(
            sessions,
            [
                Load(batch, part.feeds(batch), part.size if golden.others else "")
                for part in (golden, *golden.others)
                # A graph without a batch axis takes one row.
                for batch in (params.batch if golden.batched else (1,))
            ],
            budget=params.budget or 0.0,  # `resolve` has filled it in
            seed=params.seed,
            failed=failed,
        )
        after = hardware.gpu_states()
        devices = {name: session.device for name, session in sessions.items()}
    if not results:
        raise _failed(failures, params)
    write_json(
        outputs[_measurements(params)],
        {
            "baseline": results[0]["baseline"],
            "devices": devices,
            "counted": "images" if [*golden.inputs] == [models.IMAGE] else "rows",
            "machine": {
                "cpu": hardware.cpu_model(),
                "cpus": hardware.available_cpus(),
                "threads": threads,
                "affinity": affinity,
                "load_average_before": load,
                "gpus": list(hardware.gpus()),
                "gpu_states_before": before,
                "gpu_states_after": after,
            },
            "results": results,
            "failures": failures,
        },
    )


def _failed(failures: Sequence[Mapping[str, Any]], params: Params) -> FailedError:
    """Returns the error that names the engines which failed."""
    reasons = {entry["name"]: entry["reason"] for entry in reversed(failures)}
    words = {"model": params.model, "precision": params.precision, "engine": tuple(reasons)}
    return FailedError(
        "; ".join(f"{name} failed while it was measured: {why}" for name, why in reasons.items()),
        "leave it out with --engine, or judge it again:"
        f" `{hints.command('verify', words)} --force`",
    )


def failed_before(outputs: Paths, params: Params) -> str:
    """Returns which engines failed, so that all are measured again."""
    failures = read_json(outputs[_measurements(params)]).get("failures", ())
    names = dict.fromkeys(entry["name"] for entry in failures)
    return f"{', '.join(names)} failed last time" if names else ""


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
    tools=("numpy",),
    revision=2,
    facts=facts,
    resolve=resolve,
    run_again=failed_before,
    show=show,
)
