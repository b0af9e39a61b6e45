"""An ONNX file as the model: `onnx:path/to/model.onnx`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import UsageError
from pipeline.models import Model, ModelSpec, graph_file
from pipeline.workflow.digests import sha256_file

if TYPE_CHECKING:
    from pipeline.data.registry import Contents


def find(name: str) -> ModelSpec:
    """Returns the model of a graph, whose name is "onnx:" and the path of its file.

    Raises:
        UsageError: The file does not exist.
    """
    path = graph_file(name)
    assert path is not None  # noqa: S101 - the caller has checked it
    if not path.is_file():
        raise UsageError(f"{path} does not exist", "give onnx:path/to/model.onnx")
    return ModelSpec(
        name=name, build=partial(_build, name), trainable=False, facts=partial(_facts, path)
    )


def _build(name: str, _contents: Contents | None) -> Model:
    raise UsageError(
        f"{name} is an ONNX graph, and this needs a PyTorch module",
        "an ONNX graph can be exported, verified, built, measured and bundled; `assay inspect`"
        " describes it",
    )


def _facts(path: Path) -> dict[str, str]:
    """Returns the digests of the file and of the files that hold its tensors."""
    from exporters import onnx_files

    facts = {"graph": sha256_file(path)}
    for location in onnx_files.external_locations(path):
        facts[f"data {location}"] = sha256_file(path.parent / location)
    return facts
