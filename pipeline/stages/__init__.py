"""The stages, one file each, and the options and inputs that several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import engines
import exporters
from pipeline import models
from pipeline.workflow import console
from pipeline.workflow.artifacts import (
    CPU_GRAPH,
    DATA,
    ENGINE,
    ENGINE_VERDICT,
    GRAPH,
    PROGRAM,
    Artifact,
)
from pipeline.workflow.digests import read_json
from pipeline.workflow.stage import OptionRole, option


def need_torch(*more: str) -> None:
    """Checks that PyTorch and `more` modules are installed; a deployment target may lack them.

    Raises:
        NotAvailableError: One of them is not installed.
    """
    from engines.checks import import_vendor

    for module in ("torch", *more):
        import_vendor(module, "pip install torch torchvision onnxscript")


def model_option() -> Any:
    """Declares the MODEL argument."""
    return option(
        text="Model of the zoo, torchvision:NAME, timm:NAME, package.module:factory,"
        " path/to/file.py:factory or onnx:path/to/model.onnx.",
        validate=models.check_name,
    )


def data_option(default: str | None, *, as_trained: bool = False) -> Any:
    """Declares `--data`; the command line replaces a folder by the name of its data set.

    Args:
        default: The default data set; None means the model's own.
        as_trained: Default to the data set that the model was trained on.
    """
    shown = "" if default is not None else " [the model's own]"
    return option(
        default,
        text=f"Data set, or a folder with a subfolder of images for each class{shown}.",
        role=OptionRole(takes_image_folder=True, default_from_training=as_trained),
    )


def precision_option() -> Any:
    """Declares `--precision`."""
    return option(
        exporters.DEFAULT_PRECISION,
        text="Precision of the graph.",
        names=lambda: list(exporters.PRECISIONS),
    )


def data_artifacts(
    data: str | None, artifacts: tuple[Artifact, ...] = DATA
) -> tuple[Artifact, ...]:
    """Returns the artifacts of a data set; () if `data` is None."""
    return () if data is None else tuple(artifact.at(dataset=data) for artifact in artifacts)


def engine_source(name: str, precision: str) -> Artifact:
    """Returns the artifact that an engine is built from at a precision."""
    engine = engines.get(name)
    if engine.source == "program":
        return PROGRAM
    for_cpu = exporters.PRECISIONS[precision].cpu_graph and engine.devices == ("cpu",)
    return CPU_GRAPH if for_cpu else GRAPH


def _fields(params: Mapping[str, Any]) -> dict[str, str]:
    """Returns the parameters that fill an artifact's path."""
    fields = {"precision": exporters.DEFAULT_PRECISION}
    return fields | {name: value for name, value in params.items() if isinstance(value, str)}


def built_engines(params: Mapping[str, Any], root: Path) -> list[str]:
    """Returns the names of the engines built for the model and precision in `params`."""
    fields = _fields(params)
    return [
        name
        for name in engines.names()
        if (root / ENGINE.at(**{**fields, "engine": name}).path).exists()
    ]


def proved_engines(params: Mapping[str, Any], root: Path) -> list[str]:
    """Returns the names of the built engines that run on this machine and have no other verdict.

    Prints why the others are left out. An engine without a verdict is not left out.
    """
    fields = _fields(params)
    proved = []
    for name in built_engines(params, root):
        state = engines.get(name).available()
        why = "" if state.run else state.reason
        path = root / ENGINE_VERDICT.at(**{**fields, "engine": name}).path
        if not why and path.exists():
            verdict = read_json(path)
            if verdict["status"] != "pass":
                why = f"its verdict is {verdict['status']!r}: {verdict['reason']}"
        if why:
            console.say(f"without {name}: {why}")
        else:
            proved.append(name)
    return proved
