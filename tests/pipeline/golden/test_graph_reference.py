"""Runs of a graph with other rounding, beside what the graph computes."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from pipeline.golden import graph_reference


def graph(kind: str, opset: int, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(kind, ["x"], ["y"], **attributes)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3, 4, 5]) for n in "xy")
    model = helper.make_graph([node], "graph", [x], [y])
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [9, 11, 12, 13, 18])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_a_softmax_in_lanes_is_that_of_its_opset(kind: str, opset: int, axis: int | None) -> None:
    model = graph(kind, opset, **({} if axis is None else {"axis": axis}))
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)}
    if opset < 13:  # all axes from this one on are taken together
        place = (1 if axis is None else axis) % 4
        matrix = feeds["x"].reshape(int(np.prod((1, *(2, 3, 4, 5)[:place]))), -1)
        exponentials = np.exp(matrix - matrix.max(axis=1, keepdims=True))
        known = exponentials / exponentials.sum(axis=1, keepdims=True)
        expected = (np.log(known) if kind == "LogSoftmax" else known).reshape(2, 3, 4, 5)
    else:
        (expected,) = ReferenceEvaluator(model).run(None, feeds)
    moved = graph_reference._rounded(model, {}, seed=1)(feeds)
    np.testing.assert_allclose(moved["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("more", [{"noop_with_empty_axes": 1}, {}])
def test_a_sum_over_no_axes_is_its_input(more: dict[str, int]) -> None:
    model = graph("ReduceSum", 18, **more)
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)}
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    moved = graph_reference._rounded(model, {}, seed=1)(feeds)
    np.testing.assert_allclose(moved["y"], expected, rtol=1e-5, atol=1e-5)
