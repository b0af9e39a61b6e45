"""ONNX graphs that are cast to half types."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import DeployError
from exporters import half_graph
from exporters.onnx_describe import value_types
from tests.exporters.test_graph_run import graph_of, normal


def network(weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Returns a convolution, a resize and a sum with a large constant."""
    feeds = {"x": normal(2, 3, 8, 8)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], "conv"),
        helper.make_node("Resize", ["conv", "", "scales"], ["resized"], "resize"),
        helper.make_node("Add", ["resized", "offset"], ["y"], "add"),
    ]
    known = {
        "w": normal(4, 3, 1, 1),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "offset": np.array([2.0], np.float32),
    }
    model = graph_of(nodes, feeds, weights={**known, **(weights or {})})
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_in_the_half_type_and_outputs_in_their_own(precision: str) -> None:
    model = half_graph.at_opset(network(), 22)
    half = half_graph.cast(model, precision, {})
    onnx.checker.check_model(half.graph, full_check=True)
    types = {name: dtype for name, (dtype, _) in value_types(half.graph).items()}
    wanted = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    by_name = {node.name: node for node in half.graph.graph.node}
    assert {types[name] for name in by_name["conv"].input} == {wanted}
    assert types[by_name["conv"].output[0]] == wanted
    assert types["scales"] == "float32"  # ONNX takes no other type for them
    assert (types["x"], types["y"]) == ("float32", "float32")
    assert half.kept == {}


@pytest.mark.parametrize("value", [1e6, 1e-9])
def test_a_constant_that_the_type_cannot_hold_stays_in_float32(value: float) -> None:
    model = network({"offset": np.array([value], np.float32)})
    half = half_graph.cast(model, "fp16", {})
    assert half.kept == {"add": f"has a constant of {value:.3g}"}
    offset = next(t for t in half.graph.graph.initializer if t.name == "offset")
    assert numpy_helper.to_array(offset) == np.float32(value)


def test_single_weights_may_vanish() -> None:
    weight = normal(4, 3, 1, 1)
    weight[0, 0] = 1e-20
    assert half_graph.cast(network({"w": weight}), "fp16", {}).kept == {}


def test_values_out_of_range_stay_in_float32() -> None:
    half = half_graph.cast(network(), "fp16", {"conv": "reaches 1e+05"})
    assert half.kept == {"conv": "reaches 1e+05"}
    types = {name: dtype for name, (dtype, _) in value_types(half.graph).items()}
    assert types["conv"] == "float32"
    resize = next(node for node in half.graph.graph.node if node.name == "resize")
    assert types[resize.input[0]] == "float16"
    assert half_graph.originals(half.graph, {resize.input[0]: "overflows"}) == {
        "resized": "reads what overflows"
    }


def test_what_is_computed_from_sizes_stays_in_float32() -> None:
    feeds = {"x": normal(2, 3)}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Cast", ["shape"], ["sizes"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sizes", "w"], ["grid"], "grid"),
        helper.make_node("MatMul", ["x", "m"], ["z"], "product"),
        helper.make_node("Add", ["z", "grid"], ["y"], "add"),
    ]
    model = graph_of(nodes, feeds, weights={"w": normal(2), "m": normal(3, 2)})
    half = half_graph.cast(onnx.shape_inference.infer_shapes(model), "fp16", {})
    assert half.kept == {"grid": "is computed from sizes alone"}
    onnx.checker.check_model(half.graph, full_check=True)


def test_graphs_with_branches_are_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
    )
    node = helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch, else_branch=branch)
    model = graph_of([node], {"x": normal(2), "flag": np.array(True)})
    with pytest.raises(DeployError, match="a subgraph in If if cannot be cast to fp16"):
        half_graph.cast(model, "fp16", {})
