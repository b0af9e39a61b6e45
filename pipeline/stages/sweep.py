"""Stage sweep: which of many ways to run a model are the quickest, and which serve most.

`assay run` leaves it out: its result belongs to no bundle.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import hardware
from engines.errors import FailedError, ParityError, UsageError
from exporters import DEFAULT_PRECISION
from pipeline import models
from pipeline.report import sweep as report
from pipeline.stages import (
    Subject,
    engines_option,
    failed,
    failed_last_time,
    golden_batches,
    machine_facts,
    model_option,
    ordered,
    precisions_option,
    proved_engines,
    require_built,
)
from pipeline.workflow import console
from pipeline.workflow.artifacts import GOLDEN, SWEEP, Artifact, Paths
from pipeline.workflow.digests import read_json, write_json
from pipeline.workflow.stage import Stage, StageRuns, option


def _proved(params: Mapping[str, Any], root: Path) -> list[str]:
    """Returns the engines that are proved in one of the precisions."""
    names: dict[str, None] = {}
    for precision in params.get("precision") or (DEFAULT_PRECISION,):
        names |= dict.fromkeys(proved_engines({**params, "precision": precision}, root))
    return [*names]


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: tuple[str, ...] = precisions_option()
    engine: tuple[str, ...] = engines_option("measure", _proved)
    batch: tuple[int, ...] = option((1, 8, 64), text="Rows of one request.", high=65536)
    concurrency: tuple[int, ...] = option(
        (1, 2, 4, 8), text="Numbers of sessions, each with a client of its own.", high=1024
    )
    threads: tuple[int, ...] = option(
        (),
        text="CPU threads of one inference, as far as the CPUs suffice for all sessions"
        " [1 and all].",
        high=1024,
    )
    device: str = option("auto", text="Where the engines run: auto, cpu, cuda or cuda:N.")
    exhaustive: bool = option(False, text="Measure everything to the end.")
    budget: float = option(
        60.0, text="Seconds for all; six turns of each may take longer.", high=86400
    )
    seed: int = option(0, text="Seed of the order within rounds.", low=0)


def resolve(params: Params) -> Params:
    """Sorts the lists, and fills in the numbers of threads.

    Raises:
        UsageError: No number of threads and sessions fits the CPUs.
    """
    require_built(params.engine, vars(params))
    cpus = hardware.available_cpus()
    resolved = dataclasses.replace(
        params,
        precision=ordered(params.precision),
        engine=tuple(sorted(set(params.engine))),
        batch=tuple(sorted(set(params.batch))),
        concurrency=tuple(sorted(set(params.concurrency))),
        threads=tuple(sorted(set(params.threads or (1, cpus)))),
    )
    threads, sessions = resolved.threads[0], resolved.concurrency[0]
    if threads * sessions > cpus:
        raise UsageError(
            f"{threads} threads of each of {sessions} sessions are more than the {cpus} CPUs that"
            " this process may use",
            "give lower --threads or --concurrency",
        )
    return resolved


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Measures every way to run the model, until others are surely better.

    Raises:
        ParityError: No engine is proved in any of the precisions.
        FailedError: All engines failed.
    """
    from pipeline.benchmarking.measuring import Built, Crew, Plan, race
    from pipeline.golden import file as goldens
    from pipeline.verification.verdict import from_json

    verdicts = _verdicts(inputs, params)
    golden = {name: goldens.load(inputs[GOLDEN.at(precision=name)]) for name in params.precision}
    points: list[dict[str, Any]] = []
    plans: list[Plan] = []
    crews: list[Crew] = []
    for (precision, subject), verdict in verdicts.items():
        path, rows, flips = inputs[subject.built], golden[precision], from_json(verdict).flips
        accuracy = None if flips is None else flips.top1
        options = subject.options(path, params.device, 1)
        for threads, counts in _settings(options.device, params):
            words = {
                "engine": subject.engine,
                "precision": precision,
                "device": options.device,
                "threads": threads,
                "accuracy": accuracy,
            }
            for count, batch in itertools.product(counts, golden_batches(rows, params.batch)):
                point = {**words, "sessions": count, "batch": batch}
                points.append(point)
                name, feeds = report.named(point), rows.feeds(batch)
                plans.append(Plan(name, len(crews), count, feeds, batch, accuracy))
            opened = dataclasses.replace(options, threads=threads)
            built = Built(subject.engine, subject.engine, path, opened)
            crews.append(Crew(built, max(counts)))
    raced = race(crews, plans, budget=params.budget, seed=params.seed, prune=not params.exhaustive)
    measured = [
        {**point, **dataclasses.asdict(result)}
        for point, result in zip(points, raced.results, strict=True)
    ]
    if all(point["failure"] for point in measured):
        raise _failed(measured)
    write_json(
        outputs[SWEEP],
        {
            "counted": models.counted(golden[params.precision[0]].inputs),
            "machine": hardware.machine(),
            "others": raced.others,
            "points": measured,
        },
    )


def _verdicts(inputs: Paths, params: Params) -> dict[tuple[str, Subject], dict[str, Any]]:
    """Returns the engines to measure with their verdicts, by precision.

    An engine need not be built or proved in every precision.
    """
    proved: dict[tuple[str, Subject], dict[str, Any]] = {}
    refused: dict[tuple[str, Subject], ParityError] = {}
    for precision, subject in _subjects(params):
        if not inputs[subject.built].exists():
            continue
        verdict = {"status": "not known", "reason": "", "precision": precision, "facts": {}}
        if inputs[subject.verdict].exists():
            verdict = read_json(inputs[subject.verdict])
        try:
            subject.require_proof(verdict, params.model, params.device)
        except ParityError as error:
            refused[precision, subject] = error
        else:
            proved[precision, subject] = verdict
    if not proved:
        for reason in refused.values():
            raise reason
        require_built((), {**vars(params), "precision": params.precision[0]})
    for reason in refused.values():
        console.say(f"{reason.message}; {reason.hint}")
    return proved


def _settings(device: str, params: Params) -> list[tuple[int, list[int]]]:
    """Returns numbers of threads, each with the numbers of sessions for which the CPUs suffice.

    On a GPU, threads do not matter.
    """
    if device != "cpu":
        return [(params.threads[0], [*params.concurrency])]
    cpus = hardware.available_cpus()
    pairs = [(n, [c for c in params.concurrency if n * c <= cpus]) for n in params.threads]
    return [(threads, counts) for threads, counts in pairs if counts]


def _failed(points: Iterable[Mapping[str, Any]]) -> FailedError:
    """Returns the error that names what failed."""
    reasons = {point["engine"]: point["failure"] for point in points if point["failure"]}
    return failed(
        reasons,
        "while it was measured",
        "name the other engines with --engine, or give fewer sessions with --concurrency",
    )


def failed_before(outputs: Paths, _params: Params) -> str:
    """Returns that something failed, so that all is measured again."""
    return failed_last_time(map(report.named, report.failures(read_json(outputs[SWEEP]))[:1]))


def facts(params: Params) -> dict[str, str]:
    """Returns the fingerprints of each backend, the CPU and the GPU."""
    return machine_facts(params.engine)


def show(runs: StageRuns[Params]) -> None:
    """Prints the frontier.

    Raises:
        FailedError: A way failed while it was measured.
    """
    for outputs, _ in runs:
        results = read_json(outputs[SWEEP])
        report.show(results)
        if points := report.failures(results):
            raise _failed(points)


def _subjects(params: Params) -> list[tuple[str, Subject]]:
    """Returns the engines by precision; not every one need be built in every precision."""
    subjects = []
    for precision, engine in itertools.product(params.precision, params.engine):
        whole = Subject.of(engine, precision)
        built, verdict = (
            dataclasses.replace(artifact, optional=True)
            for artifact in (whole.built, whole.verdict)
        )
        subjects.append((precision, Subject(engine, built, verdict)))
    return subjects


def _inputs(params: Params) -> tuple[Artifact, ...]:
    golden = (GOLDEN.at(precision=name) for name in params.precision)
    return (*golden, *(subject.built for _, subject in _subjects(params)))


def _conditions(params: Params) -> tuple[Artifact, ...]:
    return tuple(subject.verdict for _, subject in _subjects(params))


STAGE = Stage(
    name="sweep",
    help="Find the ways to run a model that nothing else beats in latency and throughput.",
    params=Params,
    inputs=_inputs,
    conditions=_conditions,
    outputs=lambda _params: (SWEEP,),
    run=run,
    opens_engines=True,
    tools=("numpy",),
    facts=facts,
    resolve=resolve,
    run_again=failed_before,
    show=show,
)
