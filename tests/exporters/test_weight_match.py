"""Finding parameters among the tensors of a graph by their values."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.weight_match import Expectations, Expected, changed, match, tensors_of

RANDOM = np.random.default_rng(0)
A, B = (RANDOM.normal(size=(3, 4)).astype(np.float32) for _ in range(2))
ZEROS = np.zeros(4, np.float32)


def found(parameters: dict, tensors: dict, **more: object) -> tuple[dict, dict]:
    """Returns the tensors that carry parameters, and those that hold them changed."""
    expected = Expectations(parameters, **more)
    result = match(expected, tensors, roundings=6)
    return result.carriers, changed(expected, tensors, result)


def test_names_do_not_matter() -> None:
    assert found({"a": A, "b": B}, {"b": A, "x": B}) == ({"a": "b", "b": "x"}, {})


def test_a_transposed_or_reshaped_parameter_is_found() -> None:
    tensors = {"x": np.ascontiguousarray(A.T), "y": B.reshape(3, 4, 1, 1)}
    assert found({"a": A, "b": B}, tensors) == ({"a": "x", "b": "y"}, {})


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_a_tensor_of_a_wider_type_is_the_same_if_its_values_are(kind: type) -> None:
    half = A.astype(kind)
    assert found({"a": half}, {"x": half.astype(np.float32)}) == ({"a": "x"}, {})
    assert found({"a": half}, {"x": A}) == ({}, {"a": "x"})


def test_every_parameter_needs_a_tensor_of_its_own_or_an_equal_one() -> None:
    parameters = {"a": ZEROS, "b": ZEROS, "c": ZEROS}
    carriers, wrong = found(parameters, {"x": ZEROS, "y": ZEROS})
    assert set(carriers) == {"a", "b", "c"}
    assert not wrong
    _, wrong = found(parameters, {"x": ZEROS, "y": ZEROS, "z": ZEROS + np.float32(1e-6)})
    assert list(wrong.values()) == ["z"]


def test_a_bias_of_zeros_may_be_left_out_but_not_changed() -> None:
    parameters, omissible = {"a": A, "b": ZEROS}, frozenset(["b"])
    assert found(parameters, {"x": A}, omissible=omissible) == ({"a": "x"}, {})
    tensors = {"x": A, "y": ZEROS + np.float32(1e-6)}
    assert found(parameters, tensors, omissible=omissible) == ({"a": "x"}, {"b": "y"})


def test_what_lies_far_from_a_parameter_is_not_called_changed() -> None:
    for tensor in (A * np.float32(0.17), -A, A[::-1].copy(), B):
        assert found({"a": A}, {"x": tensor}) == ({}, {})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_parameter_with_a_number_that_is_not_finite_is_changed(value: float) -> None:
    broken = A.copy()
    broken[0, 0] = value
    assert found({"a": A}, {"x": broken}) == ({}, {"a": "x"})


def test_a_changed_second_use_is_found() -> None:
    slightly = A.copy()
    slightly[1, 2] *= np.float32(1 + 1e-4)
    assert found({"a": A}, {"x": A, "y": slightly}) == ({"a": "x"}, {"a": "y"})


def test_constants_of_the_model_are_not_taken_for_changed_parameters() -> None:
    near = A * np.float32(1.01)
    assert found({"a": A}, {"x": near}, constants=[near]) == ({}, {})


def test_computed_values_may_be_off_by_some_roundings() -> None:
    exact = A.astype(np.float64) * np.pi
    item = Expected(frozenset(["a"]), exact, np.abs(exact))
    right, wrong = exact.astype(np.float32), (exact * (1 + 1e-6)).astype(np.float32)
    for tensor in (right, np.nextafter(right, np.float32(9)), right.T.copy()):
        assert found({"a": A}, {"x": tensor}, computed=lambda: iter([item])) == ({"a": "x"}, {})
    assert found({"a": A}, {"x": wrong}, computed=lambda: iter([item])) == ({}, {"a": "x"})


def test_in_half_types_small_numbers_count_too() -> None:
    exact = np.full(4, 1.5e-6)
    item = Expected(frozenset(["a"]), exact, exact)
    more = {"computed": lambda: iter([item])}
    right = {"x": exact.astype(np.float16)}
    assert found({"a": A}, right, **more) == ({"a": "x"}, {})
    assert found({"a": A}, {"x": right["x"] * np.float16(3)}, **more)[0] == {}


def test_tensors_in_nodes_and_branches_are_found_and_unread_ones_are_not() -> None:
    def branch(name: str, node: onnx.NodeProto, *tensors: onnx.TensorProto) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 4])
        return helper.make_graph([node], name, [], [value], [*tensors])

    inner = numpy_helper.from_array(B, "inner")
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(A + 1)),
        helper.make_node(
            "If",
            ["condition"],
            ["picked"],
            then_branch=branch("p", helper.make_node("Identity", ["outer"], ["p"])),
            else_branch=branch("q", helper.make_node("Identity", ["inner"], ["q"]), inner),
        ),
        helper.make_node("Add", ["picked", "c"], ["y"]),
        helper.make_node("Identity", ["spare"], ["dead"]),
    ]
    outside = [numpy_helper.from_array(A, name) for name in ("outer", "spare")]
    graph = helper.make_graph(nodes, "g", [condition], [output], outside)
    assert set(tensors_of(helper.make_model(graph))) == {"c", "outer", "inner"}
