"""Which engines Triton can serve, from a folder of artifacts or from an unpacked bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import engines
from engines import hardware
from engines.errors import DeployError
from pipeline.bundling import manifest as manifests
from pipeline.bundling.checking import Model, Unpacked, engines_named
from pipeline.serving.forms import FORMS, why_without
from pipeline.serving.repository import Source
from pipeline.verification.acceptance import ACCEPTED
from pipeline.workflow import records
from pipeline.workflow.artifacts import ENGINE_VERDICT, GRAPH_VERDICT, record_beside
from pipeline.workflow.digests import read_json


class LeftOutError(DeployError):
    """An engine that Triton does not serve; the message says why."""


def source(
    model: str,
    precision: str,
    engine: str,
    *,
    built: Path,
    graph: Callable[[], Path],
    golden: Path,
    verdict: Mapping[str, Any],
    graph_verdict: Callable[[], Mapping[str, Any]],
    labels: Sequence[str],
    name: str = "",
) -> Source:
    """Returns what the Triton model of an engine is made from.

    Args:
        engine: The backend.
        built: The engine, with the record of its build beside it.
        graph: Returns the graph that it was built from; called only if Triton runs that.
        verdict: Its verdict.
        graph_verdict: Returns the verdict on the graph, for the batches that were proved if the
            engine itself was not run.
        name: The name of the engine in a bundle, if that is not the backend's.

    Raises:
        LeftOutError: Triton cannot serve it, or it is not proved.
    """
    if engine not in FORMS:
        raise LeftOutError(why_without(engine))
    if verdict["status"] not in ACCEPTED:
        raise LeftOutError(f"its verdict is {verdict['status']!r}: {verdict['reason']}")
    record = records.load(record_beside(built))
    options = {} if record is None else record.params
    usual = None
    if engines.get(engine).build_options >= {"batch_max"}:  # its plan has a range of batches
        if options.get("batch_min", 1) > 1:
            raise LeftOutError(f"it takes no single rows, only {options['batch_min']} and more")
        if options.get("strip_weights"):
            raise LeftOutError("its plan holds no weights")
        largest, usual = int(options["batch_max"]), int(options["batch_opt"])
    else:
        proved = verdict if verdict["batches"] else graph_verdict()
        largest = max(proved["batches"], default=1)
    return Source(
        model=model,
        precision=precision,
        engine=engine,
        file=graph() if FORMS[engine].runs_graph else built,
        golden=golden,
        labels=tuple(labels),
        largest=largest,
        verdict=str(verdict["status"]),
        usual=usual,
        label=name,
    )


def of_bundle(
    unpacked: Unpacked,
    *,
    gpu: bool,
    precision: str | None = None,
    engine: str | None = None,
) -> tuple[list[Source], dict[str, str]]:
    """Returns what Triton can serve of an unpacked bundle on this machine.

    Args:
        gpu: Serve the engines that run on a GPU, instead of those that run on the CPU.
        precision: The only precision to serve.
        engine: The only engine to serve, by its name in the bundle or its backend.

    Returns:
        The sources, and why other engines are left out, by name and precision.

    Raises:
        DeployError: A verdict or record of the bundle is not valid.
        UsageError: The bundle does not have the engine or the precision.
    """
    models = [unpacked.model(precision)] if precision else [*unpacked.models.values()]
    names = engines_named(models, engine)
    sources, left_out = [], {}
    for model in models:
        for name in model.engines:
            if name not in names:
                continue
            backend = manifests.backend(name)
            try:
                if backend in FORMS and FORMS[backend].gpu != gpu:
                    where = "a GPU" if FORMS[backend].gpu else "the CPU"
                    raise LeftOutError(f"it runs on {where}")
                sources.append(_of_engine(unpacked.manifest, model, name))
            except LeftOutError as error:
                left_out[f"{name} {model.precision}"] = error.message
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DeployError(
                    f"the verdict or the record of {name} in {model.precision} is not valid:"
                    f" {error!r}",
                    "make the bundle again",
                ) from error
    return sources, left_out


def _of_engine(manifest: Mapping[str, Any], model: Model, name: str) -> Source:
    built, backend = model.subjects[name], manifests.backend(name)
    record = records.load(record_beside(built))
    facts, options = ({}, {}) if record is None else (record.facts, record.params)
    here = [gpu["name"] for gpu in hardware.gpus()]
    other = facts.get("gpu_name", "none")
    is_plan = backend in FORMS and FORMS[backend].gpu and not FORMS[backend].runs_graph
    if is_plan and other not in ("none", *here) and not options.get("hardware_compatible"):
        raise LeftOutError(f"it was built for {other}")

    def graph() -> Path:
        inputs = [] if record is None else [*record.inputs]
        for label in inputs:
            # Paths in records are below the folder of the machine that made them.
            path = built.parents[1] / Path(label).name
            if path.suffix == ".onnx" and path.is_file():
                return path
        raise LeftOutError(
            "the graph that it was built from is not in the bundle; `assay bundle MODEL --include"
            " triton` puts it in"
        )

    verdict = built.with_name(Path(ENGINE_VERDICT.path).name)
    if not verdict.is_file():
        raise LeftOutError("its verdict is not in the bundle")
    return source(
        str(manifest["model"]),
        model.precision,
        backend,
        built=built,
        graph=graph,
        golden=model.golden,
        verdict=read_json(verdict),
        graph_verdict=lambda: read_json(model.golden.with_name(Path(GRAPH_VERDICT.path).name)),
        labels=[str(label) for label in manifest["labels"]],
        name=name,
    )
