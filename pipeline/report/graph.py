"""The report of `assay inspect`: an ONNX graph as tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from pipeline.workflow import console
from pipeline.workflow.digests import require_file, sha256_file

# Longer metadata values are cut: the labels of ImageNet fill pages.
_WIDTH = 100


def read(path: Path) -> dict[str, Any]:
    """Checks a graph and describes it.

    Raises:
        DeployError: The file is not a valid ONNX graph, or refers to external data outside its
            folder.
    """
    import onnx

    from exporters import onnx_files
    from exporters.onnx_describe import describe

    require_file(path, "give the path of an ONNX graph")
    model = onnx_files.read(path, data=False)
    try:
        onnx.checker.check_model(path, full_check=True)
        description = describe(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DeployError(f"{path} is not valid ONNX: {error}", "export it again") from error
    return {"file": str(path), "sha256": sha256_file(path), **description.document()}


def _short(value: str) -> str:
    return value if len(value) <= _WIDTH else f"{value[:_WIDTH]}…"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def show(description: dict[str, Any], *, nodes: bool) -> None:
    """Prints a description from `read`; lists every node that computes if `nodes` is set."""
    console.result(f"{description['file']}: sha256 {description['sha256']}")
    for side in ("inputs", "outputs"):
        console.result(f"{side}: {', '.join(description[side])}")
    types = ", ".join(f"{count} in {name}" for name, count in description["precisions"].items())
    console.result(f"opset {description['opset']}; nodes that compute: {types}")
    products = _count(description["multiply_adds"])
    unknown = "not known (input size not fixed, or operators that are not counted)"
    console.result(
        f"{description['parameters']:,} parameters in {description['size']:,} bytes;"
        f" multiply-adds a row: {products or unknown}"
    )
    if nodes:
        rows = [
            (node["name"], node["operator"], node["precision"], _count(node["multiply_adds"]))
            for node in description["nodes"]
        ]
        console.table("Nodes", ("node", "operator", "precision", ">multiply-adds"), rows)
    else:
        counts = description["operators"].items()
        console.table("Operators", ("operator", ">nodes"), [(k, str(n)) for k, n in counts])
    for key, value in description["metadata"].items():
        if value:
            console.result(f"{key}: {_short(value)}")
    if importlib.util.find_spec("netron") is not None:
        console.result(f"to view it: netron {description['file']}")
