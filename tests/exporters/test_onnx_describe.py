"""Descriptions of graphs, and the types in which their nodes compute."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from exporters.onnx_describe import describe
from pipeline.workflow.runner import Store
from tests.conftest import Result


def test_multiply_adds_and_parameters_are_lenets(built: Store) -> None:
    description = describe(onnx.load(built.root / "lenet/fp32/model.onnx"))
    # conv1 6x25x28x28, conv2 16x6x25x10x10, and the three matrices
    layers = [117_600, 240_000, 48_000, 10_080, 840]
    assert [node.multiply_adds for node in description.nodes if node.multiply_adds] == layers
    assert description.multiply_adds == sum(layers)
    assert 61_706 <= description.parameters <= 61_720  # and a few constants
    assert description.operators["Conv"] == 2
    assert description.inputs == ("image: uint8[batch, 1, 28, 28]",)
    assert description.metadata["assay.model"] == "lenet"
    assert description.precisions == {"fp32": 13}


def test_inspect_prints_the_description(built: Store, assay: Callable[..., Result]) -> None:
    path = built.root / "lenet/fp32/model.onnx"
    result = assay("inspect", path, "--json")
    document = json.loads(result.out)
    record = json.loads((built.root / "lenet/fp32/export.json").read_text())
    assert document["sha256"] == record["outputs"]["lenet/fp32/model.onnx"]["sha256"]
    result = assay("inspect", path, "--nodes")
    for word in (
        "node_conv2d",
        "240,000",
        "opset 20",
        "logits: float32[batch, 10]",
        "assay.labels",
    ):
        assert word in result.out


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_inspecting_a_file_that_is_not_a_graph_is_an_error(
    tmp_path: Path, content: bytes | None, assay: Callable[..., Result]
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    result = assay("inspect", path)
    assert result.code == 1
    assert str(path) in result.err


def test_shapes_after_an_unknown_operator_are_unknown(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    model = onnx.load(built.root / "lenet/fp32/model.onnx")
    node = next(candidate for candidate in model.graph.node if candidate.op_type == "Sigmoid")
    node.domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    result = assay("inspect", path, "--nodes")
    assert result.code == 0, result.err
    assert "Sigmoid" in result.out
    assert "multiply-adds a row: not known" in result.out


def test_export_writes_a_description_next_to_the_graph(built: Store) -> None:
    document = json.loads((built.root / "lenet/fp32/graph.json").read_text())
    assert document["opset"] == 20
    assert document["removed"]
    assert document["warnings"] == []
    assert [node["precision"] for node in document["nodes"]] == ["fp32"] * 13


@pytest.mark.slow(1)
@pytest.mark.parametrize("opset", [18, 19, 21, 22, 23])
def test_the_graph_has_the_requested_opset(
    store: Store, opset: int, assay: Callable[..., Result]
) -> None:
    where = ("--root", store.root)
    assert assay("export", "lenet", "--opset", opset, *where).code == 0
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    assert [imported.version for imported in model.opset_import if imported.domain == ""] == [opset]
    result = assay("verify", "lenet", *where)
    assert result.code == 0, result.err


def test_an_opset_that_lacks_the_precision_is_refused(
    store: Store, assay: Callable[..., Result]
) -> None:
    where = ("--root", store.root, "--precision", "bf16")
    result = assay("export", "lenet", "--opset", 20, *where)
    assert result.code == 2
    assert "--precision bf16 needs --opset 22" in result.err
    assert assay("export", "lenet", "--opset", 17, "--root", store.root).code == 2
