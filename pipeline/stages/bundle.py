"""Stage bundle: engines, graph, records and the proof in one archive."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines.errors import DeployError, ParityError
from pipeline import __version__, models
from pipeline.report import bundle as report
from pipeline.report.train import describe
from pipeline.stages import built_engines, engine_source, model_option, precision_option
from pipeline.verification.acceptance import ACCEPTED
from pipeline.workflow import hints, phases
from pipeline.workflow.artifacts import (
    BUNDLE,
    BUNDLE_SUFFIX,
    CHECKPOINT,
    DESCRIPTION,
    ENGINE,
    ENGINE_LAYERS,
    ENGINE_VERDICT,
    GOLDEN,
    GRAPH,
    GRAPH_DATA,
    GRAPH_SUBJECT,
    GRAPH_VERDICT,
    MEASUREMENTS,
    TRAINING,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import read_json
from pipeline.workflow.stage import OptionRole, Stage, StageRuns, option

if TYPE_CHECKING:
    from pipeline.golden.file import Golden


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    engine: tuple[str, ...] = option(
        ("all",),
        text='Built engines to include, or "all" that are built.',
        names=engines.names,
        role=OptionRole(expand_all=built_engines),
    )
    include: tuple[str, ...] = option(
        (),
        text='Also include "checkpoint", the trained weights; and "source", the exported program or'
        " graph that engines were built from.",
        names=lambda: [*_PARTS],
    )
    measurements: bool = option(
        True, text="Include the measurements.", role=OptionRole(in_run=False)
    )


@dataclass(frozen=True)
class CommandOptions:
    """Options of the command only: the archive is the same with and without them."""

    key: Path | None = option(
        None,
        text="Sign the bundle with this private key, of `assay keygen`: writes BUNDLE.sig.",
        role=OptionRole(after="sign"),
    )


def resolve(params: Params) -> Params:
    """Sorts the names, since their order does not change the bundle."""
    if not params.engine:
        raise DeployError(
            f"no engine of {params.model} is built",
            f"run `{hints.command('build', vars(params) | {'engine': None})}`",
        )
    return dataclasses.replace(
        params,
        engine=tuple(sorted(set(params.engine))),
        include=tuple(sorted(set(params.include))),
    )


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Writes the archive.

    Raises:
        ParityError: A verdict is neither "pass" nor "not run".
    """
    from pipeline.bundling import archive, attestation, bom, checking, measured, provenance, readme
    from pipeline.golden import file as goldens

    verdicts = {GRAPH_SUBJECT: read_json(inputs[GRAPH_VERDICT])}
    for name in params.engine:
        verdicts[name] = read_json(inputs[ENGINE_VERDICT.at(engine=name)])
    for name, verdict in verdicts.items():
        if verdict["status"] not in ACCEPTED:
            raise ParityError(
                f"{name} is not proved equal to the model, so it is not bundled:"
                f" {verdict['reason']}",
                f"leave it out with --engine, or see"
                f" `{hints.command('verify', vars(params) | {'engine': name})}`",
            )
    members = {
        artifact.label: inputs.locate(artifact)
        for artifact in inputs.declared
        if not artifact.optional or inputs.locate(artifact).exists()
    }
    records = provenance.record_paths(inputs.root, [part.record for part in inputs.declared])
    known_records = provenance.read_records(inputs.root, records)
    golden = goldens.load(inputs[GOLDEN])
    facts = _facts(inputs, params, records, verdicts, golden)
    for name in params.engine:
        record = known_records[ENGINE.at(engine=name).at(**inputs.fields).record]
        entry = facts["engines"][name]
        entry["built_with"] = record.facts
        if install := engines.get(name).smaller_runtime(record.facts, record.params):
            entry["smaller_runtime"] = install
    text = readme.text(facts, golden.input_specs, golden.feeds(1))
    content: dict[str, Path | bytes] = {
        **members,
        **{path: inputs.root / path for path in records},
        "README.md": text.encode(),
        attestation.MEMBER: attestation.build(known_records, checking.subjects_of(facts)),
    }
    figures = measured.collect(
        None if models.graph_file(params.model) else read_json(inputs[TRAINING]),
        verdicts,
        read_json(inputs[MEASUREMENTS]) if params.measurements else None,
    )
    content[bom.MEMBER] = bom.build(
        facts,
        known_records,
        read_json(inputs[DESCRIPTION]),
        figures,
        archive.digests(content),
    )
    folder = outputs[BUNDLE].name.removesuffix(BUNDLE_SUFFIX)
    with phases.showing("bundle"):
        phases.start("reading the files")
        archive.write(outputs[BUNDLE], folder, facts, content)


def _facts(
    inputs: Paths, params: Params, records: list[str], verdicts: dict[str, Any], golden: Golden
) -> dict[str, Any]:
    # As in the graph, which may have 2 GB.
    metadata = read_json(inputs[DESCRIPTION])["metadata"]
    return {
        "assay": __version__,
        "model": params.model,
        "precision": params.precision,
        "dataset": metadata["assay.dataset"],
        "training": _origin(inputs, params),
        "labels": json.loads(metadata["assay.labels"]),
        "preprocessing": metadata["assay.preprocessing"],
        "before": metadata.get("assay.before", ""),
        "inputs": [str(spec) for spec in golden.input_specs],
        "outputs": [str(spec) for spec in golden.output_specs],
        "graph": GRAPH.at(**inputs.fields).label,
        "golden": GOLDEN.at(**inputs.fields).label,
        "engines": {
            name: {
                "path": ENGINE.at(engine=name).at(**inputs.fields).label,
                "verdict": verdicts[name]["status"],
            }
            for name in params.engine
        },
        "records": records,
    }


def _origin(inputs: Paths, params: Params) -> str:
    """Returns where the weights come from, in words."""
    if models.graph_file(params.model) is None:
        return describe(read_json(inputs[TRAINING]))
    digest = read_json(inputs[DESCRIPTION])["metadata"]["assay.graph"]
    return f"the graph of an ONNX file, SHA-256 {digest}"


def _sources(params: Params) -> list[Artifact]:
    sources = dict.fromkeys(engine_source(name, params.precision) for name in params.engine)
    return [source for source in sources if source != GRAPH]


# What is included only if the user asks for it: no engine needs it on the target.
_PARTS: dict[str, Callable[[Params], list[Artifact]]] = {
    "checkpoint": lambda params: [] if models.graph_file(params.model) else [CHECKPOINT],
    "source": _sources,
}


def _inputs(params: Params) -> tuple[Artifact, ...]:
    parts = (ENGINE, ENGINE_LAYERS, ENGINE_VERDICT)
    more = [part for name in params.include for part in _PARTS[name](params)]
    return (
        *(() if models.graph_file(params.model) else (TRAINING,)),
        GRAPH,
        GRAPH_DATA,
        DESCRIPTION,
        *more,
        GOLDEN,
        GRAPH_VERDICT,
        *(artifact.at(engine=name) for name in params.engine for artifact in parts),
        # Last, since what an error says to do about the verdicts has to be done first.
        *((MEASUREMENTS,) if params.measurements else ()),
    )


def show(runs: StageRuns[Params]) -> None:
    """Prints the path of the bundle."""
    for outputs, _ in runs:
        report.show(outputs[BUNDLE])


STAGE = Stage(
    name="bundle",
    help="Write everything to one archive that can be verified on the target.",
    params=Params,
    inputs=_inputs,
    outputs=lambda _params: (BUNDLE,),
    run=run,
    revision=4,
    resolve=resolve,
    command_options=CommandOptions,
    show=show,
)
