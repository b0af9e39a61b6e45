"""Stage build: graph or program to engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import engines
from engines.errors import NotAvailableError
from pipeline import console
from pipeline.artifacts import ENGINE, GRAPH, PROGRAM, Artifact, Paths
from pipeline.stage import Made, Stage, option
from pipeline.stages import model_option, precision_option

if TYPE_CHECKING:
    from engines.base import BuildOptions


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    engine: str = option(
        "all",
        text='Engine to build, several, or "all" that this machine can build.',
        names=engines.names,
    )
    batch_min: int = option(1, text="Smallest batch (TensorRT's optimization profile).")
    batch_opt: int = option(8, text="Batch to optimise for (TensorRT).")
    batch_max: int = option(256, text="Largest batch (TensorRT).")
    workspace: int = option(1024, text="Scratch memory that TensorRT may use, in MiB.", high=2**20)
    tf32: bool = option(False, text="Let TensorRT compute fp32 products in TF32.")


def resolve(params: Params) -> Params:
    """Checks the batch sizes before anything is locked or written."""
    _options(params)
    return params


def _options(params: Params) -> BuildOptions:
    from engines.base import BuildOptions

    return BuildOptions(
        batch_min=params.batch_min,
        batch_opt=params.batch_opt,
        batch_max=params.batch_max,
        workspace_mib=params.workspace,
        tf32=params.tf32,
    )


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Builds one engine."""
    engine = engines.get(params.engine)
    found = engine.available()
    if not found.build:
        raise NotAvailableError(
            f"engine {params.engine!r} cannot be built here: {found.reason}", found.install
        )
    engine.build(inputs[_source(params)], outputs[ENGINE], _options(params))


def _source(params: Params) -> Artifact:
    return PROGRAM if engines.get(params.engine).source == "program" else GRAPH


def facts(params: Params) -> dict[str, str]:
    """The backend's versions and, where it matters, the GPU."""
    return engines.get(params.engine).fingerprint()


def show(made: Made[Params]) -> None:
    """Prints where each engine is and whether it can run here."""
    for outputs, params in made:
        path = outputs[ENGINE]
        found = engines.get(params.engine).available()
        here = "" if found.run else f"; not run on this machine: {found.reason}"
        console.result(f"{params.engine}: {path} ({path.stat().st_size:,} bytes){here}")


STAGE = Stage(
    name="build",
    help="Build engines: PyTorch, ONNX Runtime, TensorRT.",
    params=Params,
    inputs=lambda params: (_source(params),),
    outputs=lambda _params: (ENGINE,),
    run=run,
    facts=facts,
    resolve=resolve,
    show=show,
)
