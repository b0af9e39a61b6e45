"""Descriptions of graphs, and the types in which their nodes compute."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.onnx_describe import describe, work_of
from exporters.work import Work
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


def test_the_work_of_a_batch_is_that_of_its_rows_with_the_weights_once(built: Store) -> None:
    model = onnx.load(built.root / "lenet/fp32/model.onnx")
    one, eight = (work_of(model, {"image": (rows, 1, 28, 28)}) for rows in (1, 8))
    assert one.operations == {"fp32": 2 * 416_520}
    assert eight.operations == {"fp32": 8 * 2 * 416_520}
    assert one.weights == eight.weights == describe(model).size
    assert (eight.inputs, eight.outputs) == (8 * 28 * 28, 8 * 10 * 4)
    assert eight.compulsory_bytes == one.compulsory_bytes + 7 * (28 * 28 + 40)


def single(
    node: onnx.NodeProto, inputs: dict[str, tuple[str, tuple[int, ...]]], output: str = ""
) -> Work:
    """Returns the work of a graph of one node, whose outputs are of the type of its first input."""
    dtype = output or next(iter(inputs.values()))[0]
    values = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape
        )
        for name, (kind, shape) in inputs.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "g", values, outputs)
    for value in graph.output:
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    return work_of(model, {})


def test_a_recurrent_layer_multiplies_its_weights_at_each_step() -> None:
    shapes = {"x": (5, 3, 8), "w": (2, 4 * 6, 8), "r": (2, 4 * 6, 6)}
    node = onnx.helper.make_node(
        "LSTM", [*shapes], ["", "h"], hidden_size=6, direction="bidirectional"
    )
    counted = single(node, {name: ("float32", shape) for name, shape in shapes.items()})
    assert counted.operations == {"fp32": 2 * (5 * 3) * 2 * (24 * 8 + 24 * 6)}


@pytest.mark.parametrize("heads_are_an_axis", [True, False])
def test_attention_multiplies_twice(heads_are_an_axis: bool) -> None:
    rows, heads, groups, length, keys, size = 2, 4, 2, 5, 7, 8
    if heads_are_an_axis:
        query, key = (rows, heads, length, size), (rows, groups, keys, size)
        node = onnx.helper.make_node("Attention", ["q", "k", "v"], ["y"])
    else:
        query, key = (rows, length, heads * size), (rows, keys, groups * size)
        names = {"q_num_heads": heads, "kv_num_heads": groups}
        node = onnx.helper.make_node("Attention", ["q", "k", "v"], ["y"], **names)
    inputs = {name: ("float16", shape) for name, shape in {"q": query, "k": key, "v": key}.items()}
    pairs = rows * heads * length * keys
    assert single(node, inputs).operations == {"fp16": 2 * pairs * 2 * size}


def test_products_of_integers_count_as_int8() -> None:
    node = onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    inputs = {"a": ("uint8", (3, 4)), "b": ("int8", (4, 5))}
    assert single(node, inputs, "int32").operations == {"int8": 2 * 3 * 4 * 5}


@pytest.mark.parametrize("operator", ["QLinearMatMul", "QLinearConv"])
def test_products_with_scalar_scales_count(operator: str) -> None:
    convolves = operator == "QLinearConv"
    shapes = [(2, 3, 8, 8), (4, 3, 3, 3)] if convolves else [(3, 4), (4, 5)]
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {
        "a": ("uint8", shapes[0]),
        "as": ("float32", ()),
        "az": ("uint8", ()),
        "b": ("uint8", shapes[1]),
        "bs": ("float32", ()),
        "bz": ("uint8", ()),
        "ys": ("float32", ()),
        "yz": ("uint8", ()),
    }
    counted = single(onnx.helper.make_node(operator, [*inputs], ["y"]), inputs, "uint8")
    assert counted.operations == {"int8": 2 * (2 * 4 * 6 * 6 * 27 if convolves else 3 * 4 * 5)}


@pytest.mark.parametrize("also", ["", "MatMul"])
def test_of_a_table_only_what_is_picked_has_to_be_read(also: str) -> None:
    helper = onnx.helper
    table = onnx.numpy_helper.from_array(np.ones((1000, 4), np.float32), "table")
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "weight")
    nodes = [
        helper.make_node("Gather", ["table", "rows"], ["picked"]),
        helper.make_node("MatMul", ["picked", "weight"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    if also:
        nodes.append(helper.make_node(also, ["table", "weight"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    rows = helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["n"])
    graph = helper.make_graph(nodes, "g", [rows], outputs, [table, weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    for count in (2, 5000):
        read = 1000 if also else min(count, 1000)
        assert work_of(model, {"rows": (count,)}).weights == 4 * (4 * read + 16)
