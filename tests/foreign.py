"""Small ONNX graphs such as users have, made without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
_Axes = list[int | str]


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, _Axes]],
    outputs: dict[str, _Axes],
    weights: dict[str, np.ndarray],
    opset: int = 17,
) -> Path:
    """Writes a graph of some nodes to a file."""
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info(n, kind, axes) for n, (kind, axes) in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, axes) for name, axes in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def detector(path: Path) -> Path:
    """Writes a network of convolutions over images of any height and width."""
    node = helper.make_node
    return save(
        path,
        [
            node("Conv", ["images", "w1", "b1"], ["c1"], "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Sigmoid", ["c1"], ["s1"], "s1"),
            node("Mul", ["c1", "s1"], ["m1"], "m1"),
            node("Conv", ["m1", "w2"], ["c2"], "c2", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], "r2"),
            node("Resize", ["r2", "", "scales"], ["up"], "up", mode="nearest"),
            node("Concat", ["up", "m1"], ["both"], "both", axis=1),
            node("Conv", ["both", "w3"], ["boxes"], "head"),
        ],
        {"images": (FLOAT, ["batch", 3, "height", "width"])},
        {"boxes": ["batch", 5, "rows", "columns"]},
        {
            "w1": _normal(1, 8, 3, 3, 3) * 0.3,
            "b1": _normal(2, 8) * 0.1,
            "w2": _normal(3, 8, 8, 3, 3) * 0.2,
            "w3": _normal(4, 5, 16, 1, 1) * 0.3,
            "scales": np.array([1, 1, 2, 2], np.float32),
        },
    )


def recurrent(path: Path) -> Path:
    """Writes a step of a recurrent network, whose state has its batch on the second axis."""
    node = helper.make_node
    return save(
        path,
        [
            node("MatMul", ["sound", "w"], ["mixed"], "mixed"),
            node("Squeeze", ["state", "zero"], ["before"], "before"),
            node("Add", ["mixed", "before"], ["sum"], "sum"),
            node("Tanh", ["sum"], ["after"], "after"),
            node("Unsqueeze", ["after", "zero"], ["next"], "next"),
            node("Cast", ["rate"], ["scale"], "cast", to=FLOAT),
            node("Div", ["scale", "usual"], ["factor"], "factor"),
            node("MatMul", ["after", "v"], ["score"], "score"),
            node("Mul", ["score", "factor"], ["speech"], "speech"),
        ],
        {
            "sound": (FLOAT, ["batch", 16]),
            "state": (FLOAT, [1, "batch", 8]),
            "rate": (TensorProto.INT64, []),
        },
        {"speech": ["batch", 1], "next": [1, "batch", 8]},
        {
            "w": _normal(1, 16, 8) * 0.3,
            "v": _normal(2, 8, 1),
            "usual": np.array(16000, np.float32),
            "zero": np.array([0], np.int64),
        },
    )


def across_batch(path: Path) -> Path:
    """Writes a graph that subtracts the mean of the batch."""
    node = helper.make_node
    return save(
        path,
        [
            node("ReduceMean", ["x"], ["mean"], "mean", axes=[0], keepdims=1),
            node("Sub", ["x", "mean"], ["y"], "y"),
        ],
        {"x": (FLOAT, ["batch", 6])},
        {"y": ["batch", 6]},
        {},
    )


def unsupported(path: Path) -> Path:
    """Writes a graph with an operator that TensorRT does not have, between others."""
    node = helper.make_node
    return save(
        path,
        [
            node("MatMul", ["x", "w"], ["a"], "a"),
            node("Relu", ["a"], ["b"], "b"),
            node("Add", ["b", "eye"], ["c"], "c"),
            node("Det", ["c"], ["d"], "d"),
            node("Tanh", ["d"], ["y"], "y"),
        ],
        {"x": (FLOAT, [2, 4, 4])},
        {"y": [2]},
        {"w": _normal(1, 4, 4), "eye": np.eye(4, dtype=np.float32)},
    )
