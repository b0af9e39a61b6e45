"""Stage load: what engines serve with several sessions, and how many requests a second they bear.

`assay run` leaves it out: its result belongs to no bundle.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

from engines import hardware
from engines.errors import UsageError
from pipeline import models
from pipeline.report import load as report
from pipeline.report import units
from pipeline.stages import (
    Subject,
    check_threads,
    check_time,
    engines_option,
    failed,
    failed_last_time,
    golden_batches,
    machine_facts,
    model_option,
    precision_option,
    require_built,
    threads_each,
)
from pipeline.workflow.artifacts import GOLDEN, LOAD, Artifact, Paths
from pipeline.workflow.digests import read_json, write_json
from pipeline.workflow.stage import Stage, StageRuns, option

# A process with a quota gets its share of the CPUs anew every 0.1 s, by Linux's default. What is
# served in less time says nothing of what will be.
SHORTEST = 0.1


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    engine: tuple[str, ...] = engines_option("load")
    batch: int = option(1, text="Rows of one request.", high=65536)
    concurrency: tuple[int, ...] = option(
        (1, 2, 4, 8), text="Numbers of sessions, each with a client of its own.", high=1024
    )
    threads: int | None = option(
        None,
        text="CPU threads of one inference [the CPUs divided by the sessions].",
        high=1024,
        validate=check_threads,
    )
    device: str = option("auto", text="Where the engines run: auto, cpu, cuda or cuda:N.")
    rate: tuple[float, ...] = option(
        (), text="Requests per second to serve [those of the search for the largest].", high=10**6
    )
    p99: str | None = option(
        None,
        text="Time that 99 of 100 requests may take at the largest rate, as in 5ms.",
        validate=check_time,
    )
    duration: float = option(
        1.0, text=f"Seconds that each run measures, at least {SHORTEST}.", high=300
    )
    seed: int = option(0, text="Seed of the arrivals.", low=0)


def resolve(params: Params) -> Params:
    """Sorts engines, numbers of sessions and rates.

    Raises:
        UsageError: The duration is too short.
    """
    if params.duration < SHORTEST:
        raise UsageError(
            f"--duration {params.duration:g} is too short: the least is {SHORTEST} s",
            "leave it out for 1 s, or give more for percentiles near the largest rate",
        )
    require_built(params.engine, vars(params))
    return dataclasses.replace(
        params,
        engine=tuple(sorted(set(params.engine))),
        concurrency=tuple(sorted(set(params.concurrency))),
        rate=tuple(sorted(set(params.rate))),
    )


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Loads each engine in its turn.

    Raises:
        ParityError: An engine is not proved, so its speed means nothing.
    """
    from pipeline.benchmarking.load_curve import Plan, measure_apart
    from pipeline.golden import file as goldens

    subjects = _subjects(params)
    for subject in subjects:
        subject.require_proof(read_json(inputs[subject.verdict]), params.model, params.device)
    golden = goldens.load(inputs[GOLDEN])
    (rows,) = golden_batches(golden, (params.batch,))
    plan = Plan(
        threads={count: threads_each(params.threads, count) for count in params.concurrency},
        rates=params.rate,
        p99=None if params.p99 is None else units.seconds(params.p99),
        seconds=params.duration,
        seed=params.seed,
    )
    results = []
    for subject in subjects:
        opener = partial(subject.opener, inputs[subject.built], params.device)
        served = measure_apart(subject.engine, opener, golden.feeds(rows), rows, plan)
        results.append({"name": subject.engine, **served})
    write_json(
        outputs[LOAD],
        {
            "counted": models.counted(golden.inputs),
            "rows": rows,
            "p99": plan.p99,
            "machine": hardware.machine(),
            "engines": results,
        },
    )


def facts(params: Params) -> dict[str, str]:
    """Returns the fingerprints of each backend, the CPU and the GPU."""
    return machine_facts(params.engine)


def failed_before(outputs: Paths, _params: Params) -> str:
    """Returns which engines failed, so that they are loaded again."""
    return failed_last_time(report.failures(read_json(outputs[LOAD])))


def show(runs: StageRuns[Params]) -> None:
    """Prints the results.

    Raises:
        FailedError: An engine failed under load.
    """
    for outputs, _ in runs:
        results = read_json(outputs[LOAD])
        report.show(results)
        if reasons := report.failures(results):
            raise failed(
                reasons,
                "under load",
                "name the other engines with --engine, or give fewer sessions with --concurrency",
            )


def _subjects(params: Params) -> list[Subject]:
    return [Subject.of(engine, params.precision) for engine in params.engine]


def _inputs(params: Params) -> tuple[Artifact, ...]:
    return (GOLDEN, *(subject.built for subject in _subjects(params)))


def _conditions(params: Params) -> tuple[Artifact, ...]:
    return tuple(subject.verdict for subject in _subjects(params))


STAGE = Stage(
    name="load",
    help="Measure what engines serve with several sessions, and the largest rate they bear.",
    params=Params,
    inputs=_inputs,
    conditions=_conditions,
    outputs=lambda _params: (LOAD,),
    run=run,
    tools=("numpy",),
    facts=facts,
    resolve=resolve,
    run_again=failed_before,
    show=show,
    revision=2,
)
