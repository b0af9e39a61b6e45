"""Matrix products for Turing (SM75), where TensorRT for RTX has none in fp32.

It does have fp32 convolutions there, and the product of `[batch, k]` by a constant `[k, n]` is
the 1x1 convolution of `[batch, k, 1, 1]` by `[n, k, 1, 1]`, term by term.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.checks import import_vendor

CAPABILITY = 75
_SPATIAL = "assay_spatial_axes"


def with_convolutions(source: Path) -> bytes | None:
    """Returns an ONNX graph with its Gemm nodes as convolutions of the same names.

    This replaces each Gemm by a float32 constant, plain or dequantized, without a factor or a
    transposed input. Others stay as they are.

    Returns:
        The serialized graph; None if it has no such node, or its weights are in another file.
    """
    onnx = import_vendor("onnx", "pip install onnx")
    model = onnx.load(source, load_external_data=False)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if any(tensor.external_data for tensor in constants.values()):
        return None
    makers = {name: node for node in model.graph.node for name in node.output}
    nodes: list[Any] = []
    for node in model.graph.node:
        nodes += _convolution(onnx, model.graph, node, constants, makers) or [node]
    if len(nodes) == len(model.graph.node):
        return None
    axes = onnx.helper.make_tensor(_SPATIAL, onnx.TensorProto.INT64, [2], [2, 3])
    model.graph.initializer.append(axes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _convolution(
    onnx: Any, graph: Any, node: Any, constants: dict[str, Any], makers: dict[str, Any]
) -> list[Any]:
    """Returns the nodes that replace a Gemm, or none if it stays; adds their weights to `graph`."""
    make = onnx.helper.make_node
    settings = {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    plain = [settings.get(name, default) for name, default in _DEFAULTS.items()]
    if node.op_type != "Gemm" or plain != list(_DEFAULTS.values()):
        return []
    maker = makers.get(node.input[1])
    if maker is not None and maker.op_type != "DequantizeLinear":
        return []
    held = constants.get(maker.input[0] if maker else node.input[1])
    kind = constants.get(maker.input[1]) if maker else held  # a scale has the dequantized dtype
    if kind is None or kind.data_type != onnx.TensorProto.FLOAT:
        return []
    bias = list(node.input[2:3])
    # A convolution's bias has one number for each output; a Gemm's may have any shape.
    if held is None or not all(len(shape) == 1 for shape in _shapes(bias, constants, makers)):
        return []
    weights = onnx.numpy_helper.to_array(held)
    weights = weights if settings.get("transB") else weights.T
    name = f"{node.name}_weights"
    kernel = onnx.numpy_helper.from_array(weights[..., None, None].copy(), name)
    dequantized = []
    if maker:
        axis = (
            next((attribute.i for attribute in maker.attribute if attribute.name == "axis"), 1) % 2
        )
        axis = axis if settings.get("transB") else 1 - axis
        kernel.name = f"{name}_quantized"
        inputs = [kernel.name, *maker.input[1:]]
        dequantized.append(
            make("DequantizeLinear", inputs, [name], f"{name}_dequantize", axis=axis)
        )
    graph.initializer.append(kernel)
    wide, result = f"{node.name}_spatial", f"{node.name}_convolved"
    return [
        *dequantized,
        make("Unsqueeze", [node.input[0], _SPATIAL], [wide], f"{node.name}_unsqueeze"),
        make("Conv", [wide, name, *bias], [result], node.name, kernel_shape=[1, 1]),
        make("Squeeze", [result, _SPATIAL], [node.output[0]], f"{node.name}_squeeze"),
    ]


_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def _shapes(
    names: list[str], constants: dict[str, Any], makers: dict[str, Any]
) -> list[tuple[int, ...]]:
    """Returns the shapes of constants, plain or dequantized; () for other values."""
    shapes = []
    for name in names:
        maker = makers.get(name)
        held = constants.get(name if maker is None else maker.input[0])
        shapes.append(tuple(held.dims) if held is not None else ())
    return shapes
