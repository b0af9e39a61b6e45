"""The weight audit finds every changed or missing parameter of the checkpoint."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from pipeline.golden import file as goldens
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
