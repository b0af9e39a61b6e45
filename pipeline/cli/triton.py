"""The commands that write and check model repositories of Triton."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import engines
import exporters
from engines.errors import DeployError, UsageError, suggestion
from pipeline.cli.flags import make_store, print_as, printing, storing
from pipeline.stages import built_engines, engine_source
from pipeline.workflow import chain, console, hints, runner
from pipeline.workflow.artifacts import (
    DESCRIPTION,
    ENGINE,
    ENGINE_VERDICT,
    GOLDEN,
    GRAPH_VERDICT,
    Artifact,
)
from pipeline.workflow.digests import read_json, require_parent

if TYPE_CHECKING:
    from pipeline.serving.repository import Source
    from pipeline.workflow.runner import Store

_folder = click.Path(path_type=Path)


def _chosen(lists: Sequence[str], known: list[str], what: str) -> list[str]:
    """Returns the names in comma-separated lists; all if there are none."""
    words = [word for text in lists for word in text.split(",") if word]
    for word in words:
        if word not in known:
            raise UsageError(f"unknown {what} {word!r}", suggestion(word, known))
    return list(dict.fromkeys(words)) or known


@click.command()
@click.argument("model")
@click.argument("folder", metavar="DIR", type=_folder)
@click.option("--precision", multiple=True, metavar="LIST", help="Precisions [all with engines].")
@click.option("--engine", multiple=True, metavar="LIST", help="Built engines [all Triton serves].")
@click.option(
    "--queue-delay",
    type=click.IntRange(0, 10_000_000),
    default=100,
    show_default=True,
    help="Microseconds that a request waits for others to join its batch.",
)
@storing
def triton(
    model: str,
    folder: Path,
    precision: tuple[str, ...],
    engine: tuple[str, ...],
    queue_delay: int,
    **values: Any,
) -> None:
    """Write proved engines to DIR as a Triton model repository."""
    from pipeline import models
    from pipeline.serving import repository
    from pipeline.serving.forms import FORMS, why_without
    from pipeline.serving.sources import LeftOutError

    store = make_store(values)
    require_parent(folder)
    models.check_name(model)
    precisions = _chosen(precision, list(exporters.PRECISIONS), "precision")
    names = _chosen(engine, engines.names(), "engine")
    left_out: dict[str, str] = {}
    sources = []
    built = {
        chosen: built_engines({"model": model, "precision": chosen}, store.root)
        for chosen in precisions
    }
    for name in names if engine else ():
        if not any(name in known for known in built.values()):
            left_out[name] = "it is not built" if name in FORMS else why_without(name)
    with hints.completed(store.place):
        for chosen in precisions:
            for name in built[chosen]:
                if name in names:
                    try:
                        sources.append(_source(model, chosen, name, store))
                    except LeftOutError as error:
                        left_out[f"{name} {chosen}"] = error.message
        for name, why in left_out.items():
            console.say(f"without {name}: {why}")
        if not sources:
            raise DeployError(
                f"no engine of {model} can be served by Triton"
                + "".join(f"; {name}: {why}" for name, why in left_out.items()),
                _complete(model, precisions[0], names),
            )
    written = repository.write(folder, sources, delay=queue_delay)
    for source in sources:
        proof = "" if source.verdict == "pass" else ", to be proved on the server"
        console.result(f"{folder / source.name}: batches up to {source.largest}{proof}")
    console.document({"folder": str(folder), "models": written, "left_out": left_out})


def _complete(model: str, precision: str, names: Sequence[str]) -> str:
    """Returns how to get an engine that Triton serves, if possible one that was asked for."""
    from pipeline.serving.forms import FORMS

    usual = "onnxruntime"  # runs on every machine
    name = next((n for n in (usual, *names) if n in names and n in FORMS), usual)
    one = {"model": model, "precision": precision, "engine": name}
    return f"run `{hints.command('build', one)}`, then `{hints.command('verify', one)}`"


def _source(model: str, precision: str, engine: str, store: Store) -> Source:
    """Returns what the Triton model of an engine is made from.

    Raises:
        LeftOutError: Triton cannot serve it, or it is not proved.
    """
    from pipeline.serving import sources
    from pipeline.serving.forms import FORMS, why_without

    if engine not in FORMS:  # its files need not be up to date
        raise sources.LeftOutError(why_without(engine))
    fields = chain.stage("verify").params(model=model, precision=precision, engine=engine)

    def required(artifact: Artifact) -> Path:
        return runner.require(artifact, fields, store)

    return sources.source(
        model,
        precision,
        engine,
        verdict=read_json(required(ENGINE_VERDICT)),
        built=required(ENGINE),
        graph=lambda: required(engine_source(engine, precision)),
        golden=required(GOLDEN),
        graph_verdict=lambda: read_json(required(GRAPH_VERDICT)),
        labels=tuple(_labels(required(DESCRIPTION))),
    )


def _labels(description: Path) -> Iterator[str]:
    for label in json.loads(read_json(description)["metadata"]["assay.labels"]):
        yield str(label)


@click.command("triton-check")
@click.argument("folder", metavar="DIR", type=_folder)
@click.option(
    "--golden",
    multiple=True,
    type=_folder,
    help="Golden file to compare with, besides the ONNX graphs in DIR; may be repeated, one for"
    " each precision [those of the unpacked bundle around DIR].",
)
@printing
def triton_check(folder: Path, golden: tuple[Path, ...], **values: Any) -> None:
    """Check a Triton model repository for mistakes that the server accepts."""
    from pipeline.serving import config_checks, in_bundle
    from pipeline.workflow.digests import require_file

    print_as(values)
    for path in golden:
        require_file(path, "give the path of a golden file, such as golden.npz")
    around = () if golden else in_bundle.golden_files(folder)
    findings = config_checks.check(folder, golden or around, named_only=bool(around))
    for note in findings.notes:
        console.say(note)
    for problem in findings.problems:
        console.result(problem)
    if findings.problems:
        count = len(findings.problems)
        error = DeployError(
            f"{folder} has {count} {'mistake' if count == 1 else 'mistakes'}",
            "correct the lines above, or write it again with `assay triton MODEL DIR`",
        )
        error.details = dataclasses.asdict(findings)
        raise error
    count, left = findings.models, ", ".join(findings.uncompared)
    console.result(
        f"{folder}: {count} {'model' if count == 1 else 'models'}, no mistake found"
        + (f"; not compared with a golden file or graph: {left}" if left else "")
    )
    console.document(dataclasses.asdict(findings))


COMMANDS = (triton, triton_check)
