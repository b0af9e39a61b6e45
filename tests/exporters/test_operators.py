"""Operators whose reference implementation in ONNX is not what ONNX defines, beside a runtime."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporters.graph_run import GraphRun

runtime = pytest.importorskip("onnxruntime")
MAP = (2, 4, 5, 6)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def _recurrent(gates: int, *, directions: int = 1) -> list[np.ndarray | None]:
    weights = [_normal(directions, gates * 4, 3), _normal(directions, gates * 4, 4)]
    return [*weights, _normal(directions, 8 * gates)]


_SEQUENCE = _normal(5, 2, 3)
_LENGTHS = np.array([5, 3], np.int32)
_BOXES = np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 5, 1, 1]]], np.float32)
_SCORES = np.array([[[0.9, 0.75, 0.6]]], np.float32)
_REGIONS = np.array([[0, 0, 4, 4], [1, 1, 4, 5]], np.float32)
_CODES = np.arange(-12, 12, dtype=np.int8).reshape(2, 4, 3)

# An operator, an opset, its first input, other inputs, how many outputs it has, and attributes.
CASES: list[tuple[str, int, np.ndarray, list[Any], int, dict[str, Any]]] = [
    *((name, 12, _normal(*MAP), [], 1, {}) for name in ("Softmax", "LogSoftmax", "Hardmax")),
    *((name, 13, _normal(*MAP), [], 1, {}) for name in ("Softmax", "LogSoftmax", "Hardmax")),
    ("Softmax", 11, _normal(*MAP), [], 1, {"axis": -2}),
    ("LRN", 13, _normal(*MAP), [], 1, {"size": 3, "alpha": 0.1}),
    ("LpNormalization", 13, _normal(*MAP), [], 1, {"axis": 1, "p": 1}),
    ("GlobalLpPool", 13, _normal(*MAP), [], 1, {"p": 3}),
    ("DequantizeLinear", 10, _CODES, [np.float32(0.3), np.int8(3)], 1, {}),
    ("DequantizeLinear", 13, _CODES, [_normal(4), np.int8([1, 2, 3, 4])], 1, {"axis": 1}),
    ("GridSample", 16, _normal(*MAP), [_normal(2, 3, 4, 2)], 1, {"mode": "bilinear"}),
    ("GridSample", 20, _normal(*MAP), [_normal(2, 3, 4, 2)], 1, {"padding_mode": "border"}),
    ("RoiAlign", 11, _normal(*MAP), [_REGIONS, _whole(0, 1)], 1, {"output_height": 2}),
    ("RoiAlign", 16, _normal(*MAP), [_REGIONS, _whole(0, 1)], 1, {"output_height": 2}),
    ("NonMaxSuppression", 11, _BOXES, [_SCORES, np.int64(2), np.float32(0.5)], 1, {}),
    ("NonMaxSuppression", 11, _BOXES, [_SCORES], 1, {}),
    ("OneHot", 13, _whole(1, -1, 7), [_whole(4), np.float32([0, 1])], 1, {}),
    ("Pad", 13, _normal(*MAP), [_whole(0, 0, 1, -2, 0, 0, -1, 3)], 1, {}),
    ("Pad", 9, _normal(*MAP), [], 1, {"pads": [0, 0, -1, 2, 0, 0, 1, 1], "value": 2.0}),
    ("Scatter", 10, _normal(4, 3), [_whole(1, 2, 0).reshape(1, 3), _normal(1, 3)], 1, {}),
    ("MaxPool", 12, _normal(*MAP), [], 2, {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1]}),
    ("MaxPool", 12, _normal(*MAP), [], 2, {"kernel_shape": [2, 2], "storage_order": 1}),
    *(
        ("ConvTranspose", 11, _normal(*MAP), [_normal(4, 2, 3, 3), _normal(2)], 1, options)
        for options in (
            {"strides": [2, 2], "output_shape": [10, 12]},
            {"strides": [2, 3], "auto_pad": "SAME_UPPER"},
            {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
            {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 1]},
        )
    ),
    *(
        ("Resize", 10, _normal(*MAP), [np.float32([1, 1, 2, 1.5])], 1, {"mode": mode})
        for mode in ("nearest", "linear")
    ),
    *(
        ("Upsample", 8, _normal(*MAP), [], 1, {"mode": mode, "scales": [1.0, 1.0, 2.0, 2.0]})
        for mode in ("nearest", "linear")
    ),
    ("Upsample", 9, _normal(*MAP), [np.float32([1, 1, 2, 2])], 1, {"mode": "linear"}),
    *(
        (
            *("Resize", 11, _normal(*MAP), [np.float32([]), np.float32([1, 1, 1.5, 1.7])], 1),
            {"mode": mode, "coordinate_transformation_mode": place},
        )
        for mode, place in (
            ("nearest", "tf_half_pixel_for_nn"),
            ("nearest", "align_corners"),
            ("linear", "align_corners"),
            ("cubic", "align_corners"),
        )
    ),
    *(
        (name, 14, _SEQUENCE, [*_recurrent(gates), *more], 2 + (gates == 4), options)
        for name, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4))
        for more, options in (
            ([], {}),
            ([_LENGTHS], {}),
            ([_LENGTHS], {"direction": "reverse"}),
            ([None, _normal(1, 2, 4)], {"clip": 0.3}),
        )
    ),
    ("RNN", 14, _SEQUENCE, _recurrent(1), 2, {"activations": ["Relu"]}),
    ("GRU", 14, _SEQUENCE, _recurrent(3), 2, {"linear_before_reset": 1}),
    ("GRU", 14, _SEQUENCE, _recurrent(3), 2, {"activations": ["HardSigmoid", "Softsign"]}),
    (
        *("LSTM", 14, _SEQUENCE, _recurrent(4, directions=2), 3),
        {"direction": "bidirectional", "activations": ["HardSigmoid", "Relu", "Tanh"] * 2},
    ),
    (
        *("LSTM", 14, _SEQUENCE),
        [*_recurrent(4), None, _normal(1, 2, 4), _normal(1, 2, 4), _normal(1, 12)],
        *(3, {}),
    ),
]


@pytest.mark.parametrize(
    ("operator", "opset", "first", "others", "count", "options"),
    CASES,
    ids=[f"{case[0]}-{case[1]}-{index}" for index, case in enumerate(CASES)],
)
def test_operators_are_those_of_a_runtime(
    operator: str,
    opset: int,
    first: np.ndarray,
    others: list[Any],
    count: int,
    options: dict[str, Any],
) -> None:
    if operator in ("LSTM", "GRU", "RNN"):
        options = {"hidden_size": 4, **options}
    names = ["x", *("" if part is None else f"c{n}" for n, part in enumerate(others))]
    outputs = [f"y{index}" for index in range(count)]
    node = helper.make_node(operator, names, outputs, **options)
    kind = helper.np_dtype_to_tensor_dtype(first.dtype)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, first.shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [
            numpy_helper.from_array(np.asarray(part), name)
            for name, part in zip(names[1:], others, strict=True)
            if part is not None
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8)
    )
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {"x": first})
    for exactly in (True, False):
        computed = GraphRun(model, exactly=exactly)({"x": first})
        for name, array in zip(outputs, expected, strict=True):
            assert computed[name].shape == array.shape
            np.testing.assert_allclose(computed[name], array, rtol=1e-5, atol=1e-5)


def test_a_loop_needs_no_condition_and_stacks_what_it_gives() -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["total", "step"], ["sum"]),
            helper.make_node("Identity", ["goes_on"], ["still"]),
            helper.make_node("Identity", ["sum"], ["kept"]),
        ],
        "body",
        [
            value("index", onnx.TensorProto.INT64, []),
            value("goes_on", onnx.TensorProto.BOOL, []),
            value("total", onnx.TensorProto.FLOAT, [2, 3]),
        ],
        [
            value("still", onnx.TensorProto.BOOL, []),
            value("sum", onnx.TensorProto.FLOAT, [2, 3]),
            value("kept", onnx.TensorProto.FLOAT, [2, 3]),
        ],
        [numpy_helper.from_array(np.float32([1, 2, 3]), "step")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["y", "all"], body=body)],
        "loop",
        [value("x", onnx.TensorProto.FLOAT, [2, 3])],
        [value("y", onnx.TensorProto.FLOAT, None), value("all", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(4), "times")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = _normal(2, 3)
    expected = session.run(None, {"x": x})
    computed = GraphRun(model, exactly=True)({"x": x})
    for array, other in zip(expected, computed.values(), strict=True):
        assert array.shape == other.shape
        np.testing.assert_allclose(other, array, rtol=1e-6)
