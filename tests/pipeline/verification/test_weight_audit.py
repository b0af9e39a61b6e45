"""The weight audit finds every changed or missing parameter of the checkpoint."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from engines.contract import TensorSpec
from exporters.program import export_program, save_program
from pipeline.golden import file as goldens
from pipeline.verification.weight_audit import audit_model, weights_of
from pipeline.workflow.runner import Store
from tests.conftest import Result


def test_a_renamed_or_unused_weight_does_not_fool_the_audit(built: Store, tmp_path: Path) -> None:
    from pipeline.verification.weight_audit import audit

    weights = goldens.load(built.root / "lenet/fp32/golden.npz").weights
    model = onnx.load(built.root / "lenet/fp32/model.onnx")
    (tensor,) = [
        candidate for candidate in model.graph.initializer if candidate.name == "network.0.weight"
    ]
    values = onnx.numpy_helper.to_array(tensor).copy()
    path = tmp_path / "graph.onnx"
    for node in model.graph.node:
        node.input[:] = ["w" if name == tensor.name else name for name in node.input]

    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(model, path)
    assert audit(path, weights).identical == 10  # another name, the same values

    values.reshape(-1)[0] *= np.float32(1.001)
    model.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(model, path)
    audited = audit(path, weights)  # the right one is still there, but no node reads it
    assert (audited.identical, audited.missing) == (9, ("network.0.weight",))
    assert audited.unexplained == ("w float32[6, 1, 5, 5], 600 bytes",)

    # read now, but by a node that no output depends on
    model.graph.node.append(onnx.helper.make_node("Identity", [tensor.name], ["dead"]))
    onnx.save(model, path)
    assert audit(path, weights).identical == 9


def test_a_renamed_and_changed_weight_is_a_mismatch(
    store: Store, assay: Callable[..., Result]
) -> None:
    """Its outputs pass, and no weight has a known name and other values."""
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    (tensor,) = [
        candidate for candidate in model.graph.initializer if candidate.name == "network.3.weight"
    ]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[7] *= np.float32(1 + 1e-6)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    for node in model.graph.node:
        node.input[:] = ["w" if name == "network.3.weight" else name for name in node.input]
    path = store.root / "renamed.onnx"
    onnx.save(model, path)
    result = assay("verify", "lenet", "--root", store.root, "--file", path)
    assert result.code == 3
    assert "weights that are not the checkpoint's: network.3.weight (tensor w)" in result.err
    assert "9 of 10" in result.out


def test_a_bias_of_zeros_that_was_left_out_is_found_changed(tmp_path: Path) -> None:
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.bias)
    spec = TensorSpec("x", "float32", (None, 4)), TensorSpec("y", "float32", (None, 3))
    program = tmp_path / "model.pt2"
    save_program(export_program(layer, [torch.zeros(2, 4)]), program, spec[:1], spec[1:])
    weight, bias = layer.weight.detach().numpy(), np.zeros(3, np.float32)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["product"], transB=1)]
    ours = model_of(nodes, {"w": weight}, "product")
    golden = weights_of({"weight": weight}, ours)
    nodes.append(helper.make_node("Add", ["product", "b"], ["sum"]))
    for value, fault in ((0, ""), (1e-7, "weights that are not the checkpoint's: bias (tensor b)")):
        bias[1] = value
        other = model_of(nodes, {"w": weight, "b": bias}, "sum")
        audit = audit_model(other, golden, Path("other.onnx"), lambda: program)
        assert audit.fault == fault


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], output: str
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "x"]
    last = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "graph", ends, [last], tensors))
