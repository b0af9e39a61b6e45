"""Stage verify: does a graph or engine equal the PyTorch model?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import engines
from engines import hardware
from engines.errors import UsageError
from engines.layer_report import Layer, computed_in
from pipeline import models
from pipeline.report import verify as report
from pipeline.stages import (
    built_engines,
    check_threads,
    data_artifacts,
    data_option,
    model_option,
    precision_option,
)
from pipeline.verification import limits
from pipeline.verification.acceptance import require_pass
from pipeline.workflow.artifacts import (
    ENGINE,
    ENGINE_LAYERS,
    ENGINE_VERDICT,
    GOLDEN,
    GRAPH,
    GRAPH_DATA,
    GRAPH_SUBJECT,
    GRAPH_VERDICT,
    TEST_IMAGES,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import read_json, write_json
from pipeline.workflow.stage import OptionRole, Stage, StageRuns, option


def _subjects(params: Mapping[str, Any], root: Path) -> list[str]:
    on_gpu = str(params.get("device")).startswith("cuda")
    return [*([] if on_gpu else [GRAPH_SUBJECT]), *built_engines(params, root)]


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    engine: str = option(
        GRAPH_SUBJECT,
        text='What to verify: "graph", names of built engines, or "all".',
        names=lambda: [GRAPH_SUBJECT, *engines.names()],
        role=OptionRole(expand_all=_subjects),
    )
    data: str | None = data_option(None, as_trained=True)
    threads: int = option(
        factory=hardware.available_cpus, text="CPU threads.", high=1024, validate=check_threads
    )
    device: str = option("auto", text="Where the engine runs: auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True)
class CommandOptions:
    """Options that only the command has; they judge or bisect a file and record nothing."""

    file: Path | None = option(
        None,
        text="Judge this graph or engine file instead of the built one; record nothing.",
        role=OptionRole(action="verify_file"),
    )
    golden: Path | None = option(
        None,
        text="With --file or --bisect: the golden file, if not the model's own.",
        role=OptionRole(requires=("file", "bisect"), requires_hint="name the file to judge"),
    )
    bisect: bool = option(
        False,
        text="Find the first node of the graph, run by --engine, whose value is not the model's.",
        role=OptionRole(action="bisect"),
    )
    plot: Path | None = option(
        None,
        text="With --bisect: plot the error along the graph into this file (.svg, .png, .pdf).",
        role=OptionRole(requires=("bisect",), requires_hint="add --bisect"),
    )


def resolve(params: Params) -> Params:
    """Fills in the data set of a zoo model; the command line takes others from the records.

    Raises:
        UsageError: The graph itself is to be judged on a GPU.
    """
    if params.engine == GRAPH_SUBJECT and params.device.startswith("cuda"):
        raise UsageError(
            f"--device {params.device} does not apply to --engine {GRAPH_SUBJECT}, which ONNX"
            " Runtime runs on the CPU",
            "name an engine that runs on a GPU, or leave --device out",
        )
    spec = models.in_zoo(params.model)
    return dataclasses.replace(params, data=params.data or (spec.dataset if spec else None))


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Judges the subject, or records why this machine cannot run it."""
    from pipeline.data.idx import read_images
    from pipeline.verification.engine_proof import prove
    from pipeline.verification.verdict import COMPUTED_IN

    images = None
    if params.data is not None:
        images = partial(read_images, inputs[TEST_IMAGES.at(dataset=params.data)])

    verdict = prove(
        params.engine,
        inputs[_subject(params)],
        inputs[GOLDEN],
        params.precision,
        device=params.device,
        threads=params.threads,
        images=images,
        # A graph that does not open is the end of the command: nothing else is made without it.
        or_failed=_subject(params) == ENGINE,
    )
    if _subject(params) == ENGINE:
        layers = [Layer(**entry) for entry in read_json(inputs[ENGINE_LAYERS])["layers"]]
        facts = {**verdict.facts, COMPUTED_IN: computed_in(layers)}
        verdict = dataclasses.replace(verdict, facts=facts)
    write_json(outputs[_verdict(params)], dataclasses.asdict(verdict))


def _subject(params: Params) -> Artifact:
    return GRAPH if params.engine == GRAPH_SUBJECT else ENGINE


def _verdict(params: Params) -> Artifact:
    return GRAPH_VERDICT if params.engine == GRAPH_SUBJECT else ENGINE_VERDICT


def _inputs(params: Params) -> tuple[Artifact, ...]:
    subject = _subject(params)
    parts = (GRAPH_DATA,) if subject == GRAPH else (ENGINE_LAYERS,)
    return (subject, *parts, GOLDEN, *data_artifacts(params.data, (TEST_IMAGES,)))


def facts(params: Params) -> dict[str, str]:
    """Returns the backend's versions, whether it runs here, and the limits of the verdict."""
    from pipeline.verification.engine_proof import runner

    engine = engines.get(runner(params.engine))
    return {**engine.fingerprint(), **limits.facts(), "run": str(engine.available().run)}


def run_again(outputs: Paths, params: Params) -> str:
    """Returns why a recorded verdict is not to be trusted."""
    status = read_json(outputs[_verdict(params)])["status"]
    return f"it {status} last time" if status in ("crashed", "failed") else ""


def show(runs: StageRuns[Params]) -> None:
    """Prints the verdicts; raises DeployError unless all are passes."""
    from pipeline.verification.verdict import from_json

    verdicts = [from_json(read_json(outputs[_verdict(params)])) for outputs, params in runs]
    report.show(verdicts)
    for _, params in runs[:1]:  # all are of one model
        require_pass(verdicts, params.model)


STAGE = Stage(
    name="verify",
    help="Prove a graph or engine equal to the model.",
    params=Params,
    inputs=_inputs,
    outputs=lambda params: (_verdict(params),),
    run=run,
    revision=5,
    tools=("numpy",),
    facts=facts,
    resolve=resolve,
    command_options=CommandOptions,
    opens_engines=True,
    run_again=run_again,
    show=show,
)
