"""Multiply-adds of single nodes, against what the node computes."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from exporters.multiply_adds import multiply_adds, weights_met
from exporters.onnx_describe import value_types

Shapes = Mapping[str, tuple[int, ...]]


def graph(node: onnx.NodeProto, inputs: Shapes) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()]
    output = helper.make_tensor_value_info("y", 1, None)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    body = helper.make_graph([node], "g", values, [output])
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def counts(node: onnx.NodeProto, inputs: Shapes) -> tuple[int | None, int | None]:
    """Returns the multiply-adds without and with padding."""
    types = value_types(graph(node, inputs))
    return multiply_adds(node, types, padding=False), multiply_adds(node, types, padding=True)


def products_of_ones(node: onnx.NodeProto, inputs: Shapes) -> np.ndarray[Any, Any]:
    """Returns what a node computes of ones: each product that is not with padding adds one."""
    session = onnxruntime.InferenceSession(
        graph(node, inputs).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {name: np.ones(shape, np.float32) for name, shape in inputs.items()}
    return np.asarray(session.run(None, feeds)[0])


PADDED = [
    {"pads": [1, 1, 1, 1]},
    {"pads": [0, 2, 1, 0], "strides": [2, 3]},
    {"pads": [3, 2, 4, 2], "dilations": [2, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
    {"auto_pad": "VALID", "strides": [2, 2]},
    {},
]


@pytest.mark.parametrize("attributes", PADDED)
@pytest.mark.parametrize("size", [(5, 8), (7, 7), (6, 5)])
@pytest.mark.parametrize("group", [1, 2])
def test_products_with_padding_are_left_out(
    attributes: dict[str, Any], size: tuple[int, int], group: int
) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group, **attributes)
    inputs = {"x": (2, 4, *size), "w": (6, 4 // group, 3, 2)}
    outputs = products_of_ones(node, inputs)
    assert counts(node, inputs) == (outputs.sum(), outputs.size * 4 // group * 6)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 1], "strides": [2, 3], "output_padding": [1, 0]},
        {"pads": [2, 1, 1, 0], "dilations": [2, 1], "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
        {"output_shape": [9, 10], "strides": [2, 2]},
    ],
)
@pytest.mark.parametrize("group", [1, 2])
def test_products_that_a_transposed_convolution_crops_are_left_out(
    attributes: dict[str, Any], group: int
) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=group, **attributes)
    inputs = {"x": (2, 4, 5, 5), "w": (4, 6 // group, 3, 3)}
    computed = products_of_ones(node, inputs).sum()
    assert counts(node, inputs) == (computed, 2 * 4 * 25 * 6 // group * 9)


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_have_any_number_of_axes(axes: int) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 2 * axes)
    inputs = {"x": (1, 2, *[4] * axes), "w": (3, 2, *[3] * axes)}
    assert counts(node, inputs)[0] == products_of_ones(node, inputs).sum() == 6 * 10**axes


def test_weights_that_only_meet_padding_are_not_read() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    for size, part in {(1, 1): 1 / 9, (1, 7): 1 / 3, (2, 2): 1.0}.items():
        inputs = {"x": (1, 2, *size), "w": (3, 2, 3, 3)}
        assert weights_met(node, value_types(graph(node, inputs))) == pytest.approx(part)


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], 30),
        ("ij,jk", [(2, 3), (3, 5)], 30),
        ("bhid, bhjd -> bhij", [(2, 3, 4, 5), (2, 3, 6, 5)], 2 * 3 * 4 * 6 * 5),
        ("...ij,...jk->...ik", [(7, 2, 3), (1, 3, 5)], 7 * 30),
        ("...ij,jk->...ik", [(4, 7, 2, 3), (3, 5)], 4 * 7 * 30),
        ("i,i->", [(6,), (6,)], 6),
        ("ij,ij->ij", [(2, 3), (2, 3)], 0),  # element by element
        ("ij->ji", [(2, 3)], 0),
        ("ii->i", [(3, 3)], 0),
        ("ij,jk->k", [(2, 3), (3, 5)], 15),  # i is summed before
        ("ij,jk,kl->il", [(2, 50), (50, 50), (50, 2)], 2 * 50 * 50 + 2 * 50 * 2),
        ("ij,jk,kl->il", [(50, 2), (2, 50), (50, 2)], 2 * 50 * 2 + 50 * 2 * 2),
    ],
)
def test_einsum_counts_by_its_equation(
    equation: str, shapes: list[tuple[int, ...]], expected: int
) -> None:
    inputs = {f"x{number}": shape for number, shape in enumerate(shapes)}
    node = helper.make_node("Einsum", [*inputs], ["y"], equation=equation)
    assert counts(node, inputs)[0] == expected


def test_an_empty_batch_multiplies_nothing() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert counts(node, {"x": (0, 3), "w": (3, 5)}) == (0, 0)


def test_what_is_not_counted_is_not_known() -> None:
    inputs = {"x": (1, 2, 4, 4), "w": (3, 2, 3, 3)}
    node = helper.make_node("FusedConv", ["x", "w"], ["y"], domain="com.example")
    assert counts(node, inputs) == (None, None)
    node = helper.make_node("Relu", ["x"], ["y"])
    assert counts(node, inputs) == (0, 0)
    relu, product = node, helper.make_node("MatMul", ["x", "x"], ["y"])
    for inner, expected in ((relu, 0), (product, None)):
        output = helper.make_tensor_value_info("y", 1, None)
        branch = helper.make_graph([inner], "branch", [], [output])
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        assert multiply_adds(node, {}, padding=False) == expected
    for name, weight in itertools.product(("Conv", "MatMul"), ({}, {"w": ("float32", ())})):
        node = helper.make_node(name, ["x", "w"], ["y"])
        types = {"x": ("float32", (4, 4)), "y": ("float32", ()), **weight}
        assert multiply_adds(node, types, padding=False) is None
