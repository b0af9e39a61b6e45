"""Stage profile: what engines cost, how near they come to what the machine can do, and why not."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import engines
from engines import hardware
from exporters import PRECISIONS
from pipeline.report import profile as report
from pipeline.stages import (
    Subject,
    check_threads,
    engine_source,
    engines_option,
    failed_last_time,
    golden_loads,
    machine_facts,
    model_option,
    precision_option,
    require_built,
)
from pipeline.workflow.artifacts import (
    COSTS,
    ENGINE,
    ENGINE_VERDICT,
    GOLDEN,
    GRAPH,
    GRAPH_DATA,
    PROGRAM,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import read_json, write_json
from pipeline.workflow.stage import Stage, StageRuns, option

if TYPE_CHECKING:
    from exporters.work import Work
    from pipeline.benchmarking.comparison import Load
    from pipeline.benchmarking.roofline import Product


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    engine: tuple[str, ...] = engines_option("profile")
    batch: tuple[int, ...] = option((1, 8, 64), text="Batch sizes to run.", high=65536)
    threads: int = option(
        factory=hardware.available_cpus,
        text="CPU threads of one inference.",
        high=1024,
        validate=check_threads,
    )
    device: str = option("auto", text="Where the engines run: auto, cpu, cuda or cuda:N.")
    budget: float = option(2.0, text="Seconds for each engine and batch size.")
    seed: int = option(0, text="Seed of the order within rounds.", low=0)


def resolve(params: Params) -> Params:
    """Checks that there is an engine; puts engines and batch sizes in order."""
    require_built(params.engine, vars(params))
    return dataclasses.replace(
        params,
        engine=tuple(sorted(set(params.engine))),
        batch=tuple(sorted(set(params.batch))),
    )


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Profiles each engine in a process of its own.

    Raises:
        ParityError: An engine is not proved, so what it costs means nothing.
    """
    from engines import temporary
    from pipeline.benchmarking import profiling
    from pipeline.golden import file as goldens

    built = [Subject.of(name, params.precision) for name in params.engine]
    for subject in built:
        subject.require_proof(read_json(inputs[subject.verdict]), params.model, params.device)
    golden = goldens.load(inputs[GOLDEN])
    loads = golden_loads(golden, params.batch)
    graphs = {_graph(name, params.precision) for name in params.engine}
    works = {graph: _works(inputs[graph], loads) for graph in graphs}
    subjects = [
        profiling.Subject(
            subject.engine,
            inputs[subject.built],
            subject.options(inputs[subject.built], params.device, params.threads),
            loads,
            works[_graph(subject.engine, params.precision)],
        )
        for subject in built
    ]
    before, affinity = os.getloadavg()[0], hardware.affinity()
    with temporary.folder() as folder:
        types = {name for counted in works.values() for work in counted for name in work.operations}
        on_cpu = any(subject.options.device == "cpu" for subject in subjects)
        profiles = profiling.profile(
            subjects,
            _products(types if on_cpu else (), folder),
            _makers(),
            threads=params.threads,
            budget=params.budget,
            seed=params.seed,
        )
    write_json(
        outputs[COSTS],
        {
            "machine": {
                **hardware.machine(),
                "threads": params.threads,
                "affinity": affinity,
                "load_average_before": before,
            },
            **profiles,
        },
    )


def _works(graph: Path, loads: Iterable[Load]) -> tuple[Work, ...]:
    from exporters import onnx_files
    from exporters.onnx_work import work_of

    model = onnx_files.read(graph, data=False)
    return tuple(
        work_of(model, {name: array.shape for name, array in load.feeds.items()}) for load in loads
    )


def _products(types: Iterable[str], folder: Path) -> list[Product]:
    """Writes the graphs of products in the types that are precisions."""
    from exporters import onnx_files
    from exporters.onnx_work import work_of
    from exporters.product_graph import products
    from pipeline.benchmarking.roofline import Product

    graphs: list[Product] = []
    for precision in sorted(PRECISIONS.keys() & set(types)):
        for kind, model in products(precision).items():
            path = folder / f"{len(graphs)}.onnx"
            onnx_files.write(model, path)
            operations = sum(work_of(model, {}).operations.values())
            graphs.append(Product(precision, kind, operations, path))
    return graphs


def _makers() -> list[str]:
    """Returns the engines that run graphs on this machine's CPU."""
    return [
        name
        for name in engines.names()
        if (engine := engines.get(name)).source == "graph" and engine.devices == ("cpu",)
        if (state := engine.available()).build and state.run
    ]


def _graph(engine: str, precision: str) -> Artifact:
    """Returns the graph that an engine computes, built from it or from the same program."""
    source = engine_source(engine, precision)
    return GRAPH if source == PROGRAM else source


def facts(params: Params) -> dict[str, str]:
    """Returns the fingerprints of the engines, of those that show the peak, and of the machine."""
    return machine_facts((*params.engine, *_makers()))


def run_again(outputs: Paths, _params: Params) -> str:
    """Returns why a recorded profile is not complete."""
    entries = read_json(outputs[COSTS])["engines"]
    return failed_last_time(entry["engine"] for entry in entries if "error" in entry)


def show(runs: StageRuns[Params]) -> None:
    """Prints the profiles; raises CrashedError or FailedError if an engine has none."""
    for outputs, _ in runs:
        document = read_json(outputs[COSTS])
        report.show(document)
        report.require_profiles(document)


def _inputs(params: Params) -> tuple[Artifact, ...]:
    graphs = dict.fromkeys(_graph(name, params.precision) for name in params.engine)
    data = (GRAPH_DATA,) if GRAPH in graphs else ()
    return (GOLDEN, *graphs, *data, *(ENGINE.at(engine=name) for name in params.engine))


def _conditions(params: Params) -> tuple[Artifact, ...]:
    return tuple(ENGINE_VERDICT.at(engine=name) for name in params.engine)


STAGE = Stage(
    name="profile",
    help="What engines cost, and how near they come to what the machine can do.",
    params=Params,
    inputs=_inputs,
    conditions=_conditions,
    outputs=lambda _params: (COSTS,),
    run=run,
    tools=("numpy", "onnx"),
    facts=facts,
    resolve=resolve,
    opens_engines=True,
    revision=2,
    run_again=run_again,
    show=show,
)
