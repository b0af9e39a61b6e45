"""Graphs that are run node by node, in float64 and in their own types."""

import itertools
import re
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import DeployError
from exporters.graph_run import GraphRun, constants

FLOAT = TensorProto.FLOAT
RANDOM = np.random.default_rng(0)


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    outputs: tuple[str, ...] = ("y",),
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """Returns a graph whose outputs have no shape."""
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in inputs.items()
        ],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def by_runtime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def pooling(operator: str, **more: Any) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    return helper.make_node(operator, ["x"], ["y"], kernel_shape=[3, 2], **more), {}


def convolution(operator: str, shape: tuple[int, ...], **more: Any) -> Any:
    weights = {"w": normal(*shape), "b": normal(shape[0] if operator == "Conv" else shape[1])}
    return helper.make_node(operator, ["x", "w", "b"], ["y"], **more), weights


def resizing(mode: str, place: str, factor: float, nearest: str = "floor") -> Any:
    node = helper.make_node(
        "Resize",
        ["x", "", "scales"],
        ["y"],
        mode=mode,
        coordinate_transformation_mode=place,
        nearest_mode=nearest,
    )
    return node, {"scales": np.array([1, 1, factor, factor], np.float32)}


PLACES = ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
CASES = {
    "conv": convolution("Conv", (6, 4, 3, 3), pads=[1, 0, 2, 1], strides=[2, 1]),
    "conv same upper": convolution("Conv", (6, 4, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv same lower": convolution("Conv", (6, 4, 4, 3), auto_pad="SAME_LOWER"),
    "conv valid": convolution("Conv", (6, 4, 3, 3), auto_pad="VALID", dilations=[2, 1]),
    "conv groups": convolution("Conv", (8, 2, 3, 3), group=2),
    "transposed": convolution("ConvTranspose", (4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    "transposed uneven": convolution("ConvTranspose", (4, 3, 3, 3), pads=[0, 1, 1, 0]),
    "max": pooling("MaxPool", pads=[1, 0, 1, 1], strides=[2, 2]),
    "max ceil": pooling("MaxPool", ceil_mode=1, strides=[2, 2]),
    "max same": pooling("MaxPool", auto_pad="SAME_UPPER", strides=[2, 1]),
    "average": pooling("AveragePool", strides=[2, 1]),
    "average padded": pooling("AveragePool", pads=[1, 1, 1, 0]),
    "average with padding": pooling("AveragePool", pads=[1, 1, 1, 0], count_include_pad=1),
    "global max": (helper.make_node("GlobalMaxPool", ["x"], ["y"]), {}),
    "batch norm": (
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=1e-3),
        {"s": normal(4), "b": normal(4), "m": normal(4), "v": normal(4) ** 2},
    ),
    **{
        f"resize {mode} {place} {factor}": resizing(mode, place, factor)
        for mode, place, factor in itertools.product(("nearest", "linear"), PLACES, (2.0, 0.6))
        # There, ONNX Runtime takes the whole number of elements, and ONNX's own test the fraction.
        if (place, factor) != ("align_corners", 0.6)
    },
    "resize round": resizing("nearest", "half_pixel", 1.5, "round_prefer_floor"),
}


@pytest.mark.parametrize("case", CASES)
def test_operators_compute_what_the_runtime_does(case: str) -> None:
    node, weights = CASES[case]
    feeds = {"x": normal(2, 4, 9, 10)}
    model = graph_of([node], feeds, weights=weights)
    (wanted,) = by_runtime(model, feeds)
    for exactly in (True, False):
        actual = GraphRun(model, exactly=exactly)(feeds)["y"]
        assert actual.dtype == (np.float64 if exactly else np.float32)
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


def test_lstm_in_both_directions() -> None:
    feeds = {"x": normal(5, 2, 3)}
    weights = {"w": normal(2, 16, 3), "r": normal(2, 16, 4), "b": normal(2, 32)}
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=4, direction="bidirectional"
    )
    model = graph_of([node], feeds, weights=weights)
    np.testing.assert_allclose(
        GraphRun(model, exactly=True)(feeds)["y"], by_runtime(model, feeds)[0], atol=1e-5
    )


def test_float64_is_exact_and_casts_do_not_narrow() -> None:
    feeds = {"x": normal(4, 64)}
    weights = {"w": normal(64, 8)}
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=FLOAT),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    model = graph_of(nodes, feeds, weights=weights)
    exact = feeds["x"].astype(np.float64) @ weights["w"].astype(np.float64)
    np.testing.assert_array_equal(GraphRun(model, exactly=True)(feeds)["y"], exact)
    assert not np.array_equal(GraphRun(model, exactly=False)(feeds)["y"], exact)


def test_branches_are_run_and_their_constants_known() -> None:
    def branch(name: str, value: float) -> onnx.GraphProto:
        constant = numpy_helper.from_array(np.full((2,), value, np.float32), "factor")
        node = helper.make_node("Mul", ["x", "factor"], [name])
        output = helper.make_tensor_value_info(name, FLOAT, [2])
        return helper.make_graph([node], name, [], [output], [constant])

    feeds = {"x": np.array([1, 2], np.float32), "flag": np.array(True)}
    node = helper.make_node(
        "If", ["flag"], ["y"], then_branch=branch("a", 3.0), else_branch=branch("b", 5.0)
    )
    model = graph_of([node], feeds)
    run = GraphRun(model, exactly=True)
    assert run(feeds)["y"].tolist() == [3.0, 6.0]
    assert run({**feeds, "flag": np.array(False)})["y"].tolist() == [5.0, 10.0]
    values = {float(numpy_helper.to_array(tensor)[0]) for tensor in constants(model).values()}
    assert values == {3.0, 5.0}


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft"), "does not define"),
        (helper.make_node("RandomNormalLike", ["x"], ["y"]), "random operators: RandomNormalLike"),
    ],
)
def test_operators_without_a_definition_are_refused(node: onnx.NodeProto, words: str) -> None:
    model = graph_of([node], {"x": normal(2, 2)})
    with pytest.raises(DeployError, match=words):
        GraphRun(model, exactly=True)


def test_an_operator_that_loses_digits_is_refused() -> None:
    nodes = [
        helper.make_node("HannWindow", ["size"], ["window"]),
        helper.make_node("Mul", ["x", "window"], ["y"]),
    ]
    feeds = {"x": normal(4)}
    model = graph_of(nodes, feeds, weights={"size": np.array(4, np.int64)})
    with pytest.raises(DeployError, match=r"HannWindow window cannot be computed in float64"):
        GraphRun(model, exactly=True)(feeds)


# What ONNX's own tests of single operators are refused or computed otherwise for: operators whose
# reference implementation gives float32, that are random or train, or that have none.
UNSUPPORTED = (
    r"adam_multiple|affine_grid_.*|batchnorm_.*training_mode|bernoulli_.*|bitcast_int32_to_float32|"
    r"(blackman|hamming|hann)window.*|melweightmatrix|range_float_type_positive_delta_expanded|"
    r"scan_sum|scatter_with(out)?_axis|tfidfvectorizer_.*"
)


@pytest.mark.long
def test_onnx_own_tests_of_operators() -> None:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    passed, failed = 0, []
    for case in cases:
        values = (*case.model.graph.input, *case.model.graph.output)
        kinds = [value.type.tensor_type.elem_type for value in values]
        if FLOAT not in kinds[len(case.model.graph.input) :] or not all(map(_is_number, kinds)):
            continue
        if re.fullmatch(f"test_({UNSUPPORTED})", case.name):
            continue
        try:
            for inputs, outputs in case.data_sets:
                names = [value.name for value in case.model.graph.input]
                actual = GraphRun(case.model, exactly=True)(dict(zip(names, inputs, strict=True)))
                for array, wanted in zip(actual.values(), outputs, strict=True):
                    if wanted.dtype.kind == "f":
                        np.testing.assert_allclose(array, wanted, rtol=1e-3, atol=1e-5)
            passed += 1
        except (AssertionError, DeployError) as error:
            failed.append(f"{case.name}: {error}")
    assert not failed
    assert passed > 1000


def _is_number(kind: int) -> bool:
    return kind != 0 and helper.tensor_dtype_to_np_dtype(kind).kind in "biuf"
