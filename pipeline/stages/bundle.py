"""Stage bundle: engines, graph, records and the proof in one archive."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines import temporary
from engines.errors import DeployError, ParityError
from pipeline import __version__, models
from pipeline.report import bundle as report
from pipeline.report.train import describe
from pipeline.stages import (
    built_engines,
    engine_source,
    model_option,
    ordered,
    precisions_option,
)
from pipeline.stages._bundle_parts import check_document, documents, engine_parts, figures
from pipeline.verification import limits
from pipeline.verification.acceptance import ACCEPTED
from pipeline.workflow import console, hints, phases
from pipeline.workflow.artifacts import (
    BUNDLE,
    BUNDLE_SUFFIX,
    CHECKPOINT,
    DESCRIPTION,
    ENGINE,
    ENGINE_BUILDS,
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
from pipeline.workflow.digests import read_json, require_file, sha256_file
from pipeline.workflow.stage import OptionRole, Stage, StageRuns, option

if TYPE_CHECKING:
    from pipeline.golden.file import Golden
    from pipeline.workflow.records import Record

# What includes a Triton model repository, and the folder of the bundle that it is in.
REPOSITORY = "triton"


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: tuple[str, ...] = precisions_option()
    engine: tuple[str, ...] = option(
        ("all",),
        text='Built engines to include, or "all" that are built.',
        names=engines.names,
        role=OptionRole(expand_all=built_engines),
    )
    include: tuple[str, ...] = option(
        (),
        text='Also include "checkpoint", the trained weights; "source", the exported program or'
        ' graph that engines were built from; and "triton", a model repository.',
        names=lambda: [*_PARTS],
    )
    attach: tuple[str, ...] = option(
        (),
        text="Files to put into its folder documents: the model's licence, its card, its report.",
        validate=check_document,
        role=OptionRole(in_run=False),
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
        validate=lambda path: require_file(Path(path), "make a key with `assay keygen FILE`"),
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
        precision=ordered(params.precision),
        engine=tuple(sorted(set(params.engine))),
        include=tuple(sorted(set(params.include))),
        attach=tuple(map(str, documents(params.attach).values())),
    )


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Writes the archive.

    Raises:
        DeployError: No engine is built in one of the precisions, or one has no verdict.
        ParityError: A verdict is neither "pass" nor "not run".
        NotAvailableError: A Triton repository is to be included, and the library for it is missing.
    """
    from pipeline.bundling import archive, attestation, bom, manifest, provenance, readme
    from pipeline.golden import file as goldens

    present = [
        artifact
        for artifact in inputs.declared
        if not artifact.optional or inputs.locate(artifact).exists()
    ]
    paths = provenance.record_paths(inputs.root, [artifact.record for artifact in present])
    records = provenance.read_records(inputs.root, paths)
    proved = {name: _proved(inputs, params, name, records) for name in params.precision}
    golden = {name: goldens.load(inputs[GOLDEN.at(precision=name)]) for name in params.precision}
    facts = {
        **_facts(inputs, params),
        "models": {
            name: _at_precision(inputs, name, golden[name], proved[name])
            for name in params.precision
        },
        "chains": {manifest.ROOT: paths},
    }
    facts["content"] = manifest.content_digest(facts, provenance.digests(records))
    example = golden[params.precision[0]]
    attached = documents(params.attach)
    content: dict[str, Path | bytes] = {
        **attached,
        **{artifact.label: inputs.locate(artifact) for artifact in present},
        **{path: inputs.root / path for path in paths},
        attestation.MEMBER: attestation.build(records),
    }
    description = read_json(inputs[DESCRIPTION.at(precision=params.precision[0])])
    with ExitStack() as stack:
        if REPOSITORY in params.include:
            place = stack.enter_context(temporary.folder()) / REPOSITORY
            content |= _repository(inputs, params, proved, facts["labels"], place)
        digests = archive.digests(content)
        content[bom.MEMBER] = bom.build(
            facts, records, description, figures(inputs, params, proved), digests, [*attached]
        )
        text = readme.text(facts, example.input_specs, example.feeds(1), content)
        content[readme.MEMBER] = text.encode()
        folder = outputs[BUNDLE].name.removesuffix(BUNDLE_SUFFIX)
        stack.enter_context(phases.showing("bundle"))
        phases.start("reading the files")
        archive.write(outputs[BUNDLE], folder, facts, content, digests)


def _repository(
    inputs: Paths,
    params: Params,
    proved: Mapping[str, Mapping[str, Any]],
    labels: list[str],
    place: Path,
) -> dict[str, Path]:
    """Returns the files of a Triton model repository of the engines, by their path in the bundle.

    Raises:
        DeployError: Triton can serve none of the engines.
        NotAvailableError: The library with Triton's messages is missing.
    """
    from pipeline.serving import config, in_bundle, sources

    config.messages()
    models_served, left_out = [], []
    for precision, entries in proved.items():
        golden = inputs[GOLDEN.at(precision=precision)]
        of_graph = inputs[GRAPH_VERDICT.at(precision=precision)]
        for name in entries:
            built, _, judged = engine_parts(params.precision, precision, name)
            of = engine_source(name, precision).at(**{**inputs.fields, "precision": precision})
            graph = inputs.root / of.path
            try:
                models_served.append(
                    sources.source(
                        params.model,
                        precision,
                        name,
                        built=inputs[built],
                        graph=lambda graph=graph: graph,  # type: ignore[misc]
                        golden=golden,
                        verdict=read_json(inputs[judged]),
                        graph_verdict=lambda path=of_graph: read_json(path),  # type: ignore[misc]
                        labels=labels,
                    )
                )
            except sources.LeftOutError as error:
                left_out.append(f"{name} {precision}: {error.message}")
    for line in left_out:
        console.say(f"not for Triton: {line}")
    if not models_served:
        raise DeployError(
            f"Triton can serve no engine of the bundle: {'; '.join(left_out)}",
            f"run `{hints.command('build', vars(params) | {'engine': 'onnxruntime'})}`, or leave"
            " --include triton out",
        )
    return in_bundle.members(models_served, place)


def _proved(
    inputs: Paths, params: Params, precision: str, records: Mapping[str, Record]
) -> dict[str, dict[str, Any]]:
    """Returns what the manifest says of each engine at a precision; checks the verdicts.

    Raises:
        DeployError: No engine is built in it, or one has no verdict.
        ParityError: A verdict is neither "pass" nor "not run".
    """
    words = vars(params) | {"precision": precision}
    of_graph = read_json(inputs[GRAPH_VERDICT.at(precision=precision)])
    _require_accepted(GRAPH_SUBJECT, of_graph, words)
    entries = {}
    for name in params.engine:
        built, _, judged = engine_parts(params.precision, precision, name)
        if not inputs[built].exists():
            console.say(f"without {name} in {precision}: it is not built")
            continue
        if not inputs[judged].exists():
            raise DeployError(
                f"{name} in {precision} has no verdict",
                f"run `{hints.command('verify', words | {'engine': name})}`, or leave it out:"
                " --engine names those that are bundled",
            )
        verdict = read_json(inputs[judged])
        _require_accepted(name, verdict, words)
        label = ENGINE.at(**{**inputs.fields, "engine": name, "precision": precision})
        record = records[label.record]
        entry = {"path": label.label, "verdict": verdict["status"], "built_with": record.facts}
        if (drop := verdict.get("max_drop")) is not None and drop > limits.MAX_DROP:
            entry["max_drop"] = drop
        builds = ENGINE_BUILDS.at(**{**inputs.fields, "engine": name, "precision": precision})
        if builds.label in record.outputs:
            entry["builds"] = builds.label
        if install := engines.get(name).smaller_runtime(record.facts, record.params):
            entry["smaller_runtime"] = install
        entries[name] = entry
    if not entries:
        raise DeployError(
            f"no engine of {params.model} is built in {precision}",
            f"run `{hints.command('build', words | {'engine': None})}`, or leave the precision out",
        )
    return entries


def _require_accepted(name: str, verdict: Mapping[str, Any], words: Mapping[str, Any]) -> None:
    if verdict["status"] not in ACCEPTED:
        raise ParityError(
            f"{name} is not proved equal to the model, so it is not bundled: {verdict['reason']}",
            f"leave it out with --engine, or see"
            f" `{hints.command('verify', {**words, 'engine': name})}`",
        )


def _facts(inputs: Paths, params: Params) -> dict[str, Any]:
    """Returns what the manifest says of the model, whatever its precision."""
    # As in the graph, which may have 2 GB.
    metadata = read_json(inputs[DESCRIPTION.at(precision=params.precision[0])])["metadata"]
    if models.graph_file(params.model) is None:
        origin = describe(read_json(inputs[TRAINING]))
    else:
        origin = f"the graph of an ONNX file, SHA-256 {metadata['assay.graph']}"
    return {
        "assay": __version__,
        "model": params.model,
        "dataset": metadata["assay.dataset"],
        "training": origin,
        "labels": json.loads(metadata["assay.labels"]),
        "preprocessing": metadata["assay.preprocessing"],
        "before": metadata.get("assay.before", ""),
    }


def _at_precision(
    inputs: Paths, precision: str, golden: Golden, proved: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Returns what the manifest says of the model at a precision."""
    graph, data, rows = (
        artifact.at(**{**inputs.fields, "precision": precision})
        for artifact in (GRAPH, GRAPH_DATA, GOLDEN)
    )
    return {
        "graph": graph.label,
        **({"data": data.label} if inputs.locate(data).exists() else {}),
        "golden": rows.label,
        "inputs": [str(spec) for spec in golden.input_specs],
        "outputs": [str(spec) for spec in golden.output_specs],
        "engines": proved,
    }


def _sources(params: Params, precision: str) -> list[Artifact]:
    sources = dict.fromkeys(engine_source(name, precision) for name in params.engine)
    # With several precisions, an engine need not be built in every one.
    several = len(params.precision) > 1
    return [dataclasses.replace(s, optional=several) for s in sources if s != GRAPH]


def _served_graphs(params: Params, precision: str) -> list[Artifact]:
    """Returns the graphs that Triton runs besides the main one."""
    from pipeline.serving.forms import FORMS

    names = [name for name in params.engine if name in FORMS and FORMS[name].runs_graph]
    served = dict.fromkeys(engine_source(name, precision) for name in names)
    return [graph for graph in served if graph != GRAPH]


# What is included only if the user asks for it: no engine needs it on the target.
_PARTS: dict[str, Callable[[Params, str], list[Artifact]]] = {
    "checkpoint": lambda params, _: [] if models.graph_file(params.model) else [CHECKPOINT],
    "source": _sources,
    REPOSITORY: _served_graphs,
}


def _inputs(params: Params) -> tuple[Artifact, ...]:
    trained = () if models.graph_file(params.model) else (TRAINING,)
    of_graphs = [
        artifact.at(precision=precision)
        for precision in params.precision
        for artifact in (
            *(GRAPH, GRAPH_DATA, DESCRIPTION),
            *(part for name in params.include for part in _PARTS[name](params, precision)),
            *(GOLDEN, GRAPH_VERDICT),
        )
    ]
    of_engines = [
        artifact
        for precision, name in itertools.product(params.precision, params.engine)
        for artifact in (
            *engine_parts(params.precision, precision, name),
            ENGINE_BUILDS.at(engine=name, precision=precision),
        )
    ]
    # Last, since what an error says to do about the verdicts has to be done first.
    measured = [MEASUREMENTS.at(precision=name) for name in params.precision if params.measurements]
    return (*trained, *dict.fromkeys(of_graphs), *of_engines, *measured)


def _forget_signature(outputs: Paths, _params: Params) -> None:
    """Removes the signature of the bundle before, which would make the new one seem forged."""
    from pipeline.bundling import signature

    signed = signature.beside(outputs[BUNDLE])
    if signed.exists():
        signed.unlink()
        console.say(f"{signed} is removed, since it was of the bundle before; --key signs this one")


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
    revision=6,
    facts=lambda params: {
        name: sha256_file(path) for name, path in documents(params.attach).items()
    },
    resolve=resolve,
    command_options=CommandOptions,
    published=_forget_signature,
    show=show,
)
