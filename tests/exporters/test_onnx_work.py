"""The work of graphs: operations of their products, and bytes that cannot be avoided."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters.onnx_describe import describe
from exporters.onnx_work import work_of
from exporters.work import Work
from pipeline.workflow.runner import Store

# Multiply-adds of LeNet on one image. The first convolution, of 5 x 5, pads 28 x 28 by 2.
ROW = 6 * (28 * 5 - 6) ** 2 + 240_000 + 48_000 + 10_080 + 840


def of_constants(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    kind: int,
    constants: Mapping[str, Any],
) -> onnx.ModelProto:
    """Returns a graph with the output "y" of a type."""
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_the_work_of_a_batch_is_that_of_its_rows_with_the_weights_once(built: Store) -> None:
    model = onnx.load(built.root / "lenet/fp32/model.onnx")
    one, eight = (work_of(model, {"image": (rows, 1, 28, 28)}) for rows in (1, 8))
    assert one.operations == {"fp32": 2 * ROW}
    assert eight.operations == {"fp32": 8 * 2 * ROW}
    assert one.weights == eight.weights == describe(model).size
    assert (eight.inputs, eight.outputs) == (8 * 28 * 28, 8 * 10 * 4)
    assert eight.compulsory_bytes == one.compulsory_bytes + 7 * (28 * 28 + 40)


def single(
    node: onnx.NodeProto, inputs: dict[str, tuple[str, tuple[int, ...]]], output: str = ""
) -> Work:
    """Returns the work of a graph of one node, whose outputs are of the type of its first input."""
    dtype = output or next(iter(inputs.values()))[0]
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
        for name, (kind, shape) in inputs.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "g", values, outputs)
    for value in graph.output:
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    return work_of(model, {})


def test_a_recurrent_layer_multiplies_its_weights_at_each_step() -> None:
    shapes = {"x": (5, 3, 8), "w": (2, 4 * 6, 8), "r": (2, 4 * 6, 6)}
    node = helper.make_node("LSTM", [*shapes], ["", "h"], hidden_size=6, direction="bidirectional")
    counted = single(node, {name: ("float32", shape) for name, shape in shapes.items()})
    assert counted.operations == {"fp32": 2 * (5 * 3) * 2 * (24 * 8 + 24 * 6)}


@pytest.mark.parametrize("heads_are_an_axis", [True, False])
def test_attention_multiplies_twice(heads_are_an_axis: bool) -> None:
    rows, heads, groups, length, keys, size = 2, 4, 2, 5, 7, 8
    if heads_are_an_axis:
        query, key = (rows, heads, length, size), (rows, groups, keys, size)
        node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    else:
        query, key = (rows, length, heads * size), (rows, keys, groups * size)
        names = {"q_num_heads": heads, "kv_num_heads": groups}
        node = helper.make_node("Attention", ["q", "k", "v"], ["y"], **names)
    inputs = {name: ("float16", shape) for name, shape in {"q": query, "k": key, "v": key}.items()}
    pairs = rows * heads * length * keys
    assert single(node, inputs).operations == {"fp16": 2 * pairs * 2 * size}


def test_products_of_integers_count_as_int8() -> None:
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
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
    counted = single(helper.make_node(operator, [*inputs], ["y"]), inputs, "uint8")
    assert counted.operations == {"int8": 2 * (2 * 4 * 6 * 6 * 27 if convolves else 3 * 4 * 5)}


@pytest.mark.parametrize("also", ["", "MatMul"])
def test_of_a_table_only_what_is_picked_has_to_be_read(also: str) -> None:
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


@pytest.mark.parametrize("scale", [(), (1000,), (4,), (1000, 2), (1, 4)])
@pytest.mark.parametrize("cast", [False, True])
def test_of_a_quantized_table_only_what_is_picked_has_to_be_read(
    scale: tuple[int, ...], cast: bool
) -> None:
    blocks = {(1000, 2): {"axis": 1, "block_size": 2}, (1, 4): {"axis": 0, "block_size": 1000}}
    axis = {"axis": 0 if scale == (1000,) else 1}
    constants = {"table": np.ones((1000, 4), np.int8), "scale": np.ones(scale, np.float32)}
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["table", "scale"], ["wide"], **blocks.get(scale, axis)
        ),
        helper.make_node("Gather", ["wide", "rows"], ["y"]),
    ]
    if cast:
        nodes[1].input[0] = "half"
        nodes.insert(1, helper.make_node("Cast", ["wide"], ["half"], to=onnx.TensorProto.FLOAT16))
    kind = onnx.TensorProto.FLOAT16 if cast else onnx.TensorProto.FLOAT
    rows = helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["n"])
    model = of_constants(nodes, [rows], kind, constants)
    scales = int(np.prod(scale)) * (2 / 1000 if scale[:1] == (1000,) else 1)
    assert work_of(model, {"rows": (2,)}).weights == 4 * 2 + 4 * scales


def test_a_table_that_is_an_output_or_multiplied_as_well_is_read_whole() -> None:
    constants = {"table": np.ones((1000, 4), np.int8), "scale": np.float32(1)}
    nodes = [
        helper.make_node("DequantizeLinear", ["table", "scale"], ["wide"]),
        helper.make_node("Gather", ["wide", "rows"], ["picked"]),
        helper.make_node("MatMul", ["picked", "wide"], ["y"], name="product"),
    ]
    nodes.insert(2, helper.make_node("Transpose", ["wide"], ["columns"]))
    nodes[-1].input[1] = "columns"
    rows = helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["n"])
    model = of_constants(nodes, [rows], onnx.TensorProto.FLOAT, constants)
    assert work_of(model, {"rows": (2,)}).weights == 4 * 1000 + 4
    del model.graph.node[2:]
    model.graph.output[0].name = "wide"
    assert work_of(model, {"rows": (2,)}).weights == 4 * 1000 + 4


@pytest.mark.parametrize("quantized", [False, True])
def test_a_convolution_reads_no_weights_that_only_meet_padding(quantized: bool) -> None:
    constants = {"w": np.ones((256, 256, 3, 3), np.int8 if quantized else np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
    if quantized:
        constants["scale"] = np.array(1, np.float32)
        nodes[0].input[:] = ["wx", "ww"]
        for name in ("x", "w"):
            wide = helper.make_node("DequantizeLinear", [name, "scale"], [f"w{name}"])
            nodes.insert(0, wide)
    kind = onnx.TensorProto.INT8 if quantized else onnx.TensorProto.FLOAT
    x = helper.make_tensor_value_info("x", kind, ["n", 256, "h", "w"])
    model = of_constants(nodes, [x], onnx.TensorProto.FLOAT, constants)
    precision, item = ("int8", 1) if quantized else ("fp32", 4)
    one = work_of(model, {"x": (2, 256, 1, 1)})
    assert one.operations == {precision: 2 * 2 * 256 * 256}
    assert one.weights == 256 * 256 * item + 4 * quantized
    assert one.products[0].weights == 256 * 256 * item
    large = work_of(model, {"x": (2, 256, 7, 7)})
    assert large.operations == {precision: 2 * 2 * 256 * 256 * 361}
    assert large.weights == 9 * 256 * 256 * item + 4 * quantized


@pytest.mark.parametrize("opset", [20, 21])
def test_functions_of_the_graph_are_counted(opset: int) -> None:
    body = helper.make_function(
        "local",
        "Dense",
        ["a", "b"],
        ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["d"]), helper.make_node("Relu", ["d"], ["c"])],
        [helper.make_opsetid("", opset)],
    )
    nodes = [
        helper.make_node("Dense", ["x", "w"], ["z"], domain="local"),
        helper.make_node("Dense", ["z", "w"], ["y"], domain="local"),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])
    constants = {"w": np.ones((4, 4), np.float32)}
    model = of_constants(nodes, [x], onnx.TensorProto.FLOAT, constants)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.functions.append(body)
    counted = work_of(model, {"x": (3, 4)})
    if opset == 21:
        assert counted.operations == {"fp32": 2 * 2 * 3 * 4 * 4}
        assert (counted.weights, counted.uncounted) == (64, ())
    else:  # a call of another version cannot be replaced by its body
        assert counted.uncounted == ("local.Dense",)
    assert len(model.functions) == 1


def test_what_is_not_counted_is_named() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMulNBits", ["a", "w"], ["b"], domain="com.microsoft"),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])
    constants = {"w": np.ones((4, 4), np.float32)}
    model = of_constants(nodes, [x], onnx.TensorProto.FLOAT, constants)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    counted = work_of(model, {"x": (3, 4)})
    assert counted.uncounted == ("com.microsoft.MatMulNBits", "MatMul")
    assert counted.operations == {"fp32": 2 * 3 * 4 * 4}


def test_an_empty_batch_has_no_work_but_its_weights() -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    constants = {"w": np.ones((4, 4), np.float32)}
    model = of_constants([node], [x], onnx.TensorProto.FLOAT, constants)
    counted = work_of(model, {"x": (0, 4)})
    assert (counted.operations, counted.weights) == ({}, 64)
    assert (counted.inputs, counted.outputs) == (0, 0)


def test_a_sequence_has_no_bytes_that_are_known() -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("SplitToSequence", ["z"], ["y"], keepdims=1),
    ]
    constants = {"w": np.ones((4, 4), np.float32)}
    model = of_constants(nodes, [x], onnx.TensorProto.FLOAT, constants)
    model.graph.output[0].CopyFrom(
        helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, [1, 4])
    )
    counted = work_of(model, {"x": (3, 4)})
    assert counted.operations == {"fp32": 2 * 3 * 4 * 4}
    assert (counted.inputs, counted.outputs) == (48, 0)


@pytest.mark.parametrize(("kind", "size"), [("INT4", 5), ("UINT4", 5), ("INT2", 3), ("INT8", 9)])
def test_small_types_are_packed(kind: str, size: int) -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"]),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    model = of_constants(nodes, [x], onnx.TensorProto.FLOAT, {"scale": np.float32(1)})
    weight = helper.make_tensor("w", getattr(onnx.TensorProto, kind), (3, 3), [1] * 9)
    model.graph.initializer.append(weight)
    model.opset_import[0].version = 25
    counted = work_of(model, {"x": (2, 3)})
    assert counted.weights == size + 4
    assert counted.operations == {"fp32": 2 * 2 * 9}
