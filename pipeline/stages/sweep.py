"""Stage sweep: which of many ways to run a model are the quickest, and which serve most.

`assay run` leaves it out: its result belongs to no bundle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines import hardware
from engines.errors import DeployError, FailedError
from exporters import DEFAULT_PRECISION, PRECISIONS
from pipeline import models
from pipeline.report import sweep as report

from pipeline.stages._measured import Subject, machine_facts, require_built
from pipeline.workflow import console, hints, worker
from pipeline.workflow.artifacts import GOLDEN, SWEEP, Artifact, Paths
from pipeline.workflow.digests import read_json, write_json
from pipeline.workflow.stage import OptionRole, Stage, StageRuns, option

if TYPE_CHECKING:
    from engines.contract import Session
    from pipeline.benchmarking.sweep import Result, Way
    from pipeline.golden.file import Golden


def _proved(params: Mapping[str, Any], root: Path) -> list[str]:
    """Returns the engines that are proved in one of the precisions."""
    precisions = params.get("precision") or (DEFAULT_PRECISION,)
    return [
        *dict.fromkeys(
            engine
            for precision in precisions
            for engine in proved_engines({**params, "precision": precision}, root)
        )
    ]


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: tuple[str, ...] = option(
        (DEFAULT_PRECISION,), text="Precisions of the graph.", names=lambda: list(PRECISIONS)
    )
    engine: tuple[str, ...] = option(
        ("all",),
        text='Built engines, or "all" that are proved on this machine.',
        names=engines.names,
        role=OptionRole(expand_all=_proved),
    )
    batch: tuple[int, ...] = option((1, 8, 64), text="Rows of one request.", high=65536)
    concurrency: tuple[int, ...] = option(
        (1, 2, 4, 8), text="Numbers of sessions, each with a client of its own.", high=1024
    )
    threads: tuple[int, ...] = option(
        (),
        text="CPU threads of one inference, as far as there are CPUs for those of all sessions"
        " [1 and all].",
        high=1024,
    )
    device: str = option("auto", text="Where the engines run: auto, cpu, cuda or cuda:N.")
    exhaustive: bool = option(False, text="Measure everything to the end.")
    budget: float = option(60.0, text="Seconds for all, beyond six turns of each.", high=86400)
    seed: int = option(0, text="Seed of the order within rounds.", low=0)


def resolve(params: Params) -> Params:
    """Sorts the lists, and fills in the numbers of threads."""
    require_built(params.engine, vars(params))
    threads = params.threads or (1, hardware.available_cpus())
    return dataclasses.replace(
        params,
        precision=tuple(name for name in PRECISIONS if name in params.precision),
        engine=tuple(sorted(set(params.engine))),
        batch=tuple(sorted(set(params.batch))),
        concurrency=tuple(sorted(set(params.concurrency))),
        threads=tuple(sorted(set(threads))),
    )


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Measures every way to run the model, until others are surely better.

    Raises:
        DeployError: No engine is built and proved in any of the precisions.
    """
    from pipeline.benchmarking.sweep import sweep

    subjects = _proved_subjects(inputs, params)
    worker.end()  # it holds memory, on a GPU too
    points: list[dict[str, Any]] = []
    ways: list[Way] = []
    failures: list[dict[str, Any]] = []
    with ExitStack() as stack:
        for (precision, subject), verdict in subjects.items():
            golden = _golden(inputs, precision)
            for threads in params.threads:
                try:
                    counts, sessions = _sessions(stack, subject, inputs, params, threads)
                except FailedError as error:
                    failures.append(_words(subject, precision) | {"reason": error.message})
                    break
                for way, point in _ways(sessions, counts, golden, params.batch):
                    known = _words(subject, precision) | {"threads": threads} | point
                    accuracy = _accuracy(verdict)
                    points.append(known | {"accuracy": accuracy})
                    ways.append(
                        dataclasses.replace(way, name=report.named(known), accuracy=accuracy)
                    )
        with console.bar("sweep", params.budget) as bar:
            results = sweep(
                ways,
                budget=params.budget,
                seed=params.seed,
                prune=not params.exhaustive,
                progress=lambda seconds, left: bar.advance(seconds, f"{left} left"),
            )
    write_json(
        outputs[SWEEP],
        {
            "counted": "images" if [*golden.inputs] == [models.IMAGE] else "rows",
            "machine": {
                "cpu": hardware.cpu_model(),
                "cpus": hardware.available_cpus(),
                "gpus": list(hardware.gpus()),
            },
            "points": [
                {**point, **dataclasses.asdict(result)}
                for point, result in zip(points, results, strict=True)
            ],
            "failures": failures,
        },
    )
