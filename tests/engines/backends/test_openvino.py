"""What only OpenVINO does; `tests/engines/test_contract.py` has what all engines do."""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

import engines
from engines.contract import BuildOptions
from engines.errors import DeployError
from tests.conftest import need_engine

PAGES = 60  # of the weights, and of the disk, so that nothing is left for the other file


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a file system")
def test_a_disk_too_small_for_the_last_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_engine("openvino")
    weights = np.ones((64, PAGES * 16), np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", PAGES * 16])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "model.onnx")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={4096 * PAGES}", "none", disk]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this container may not mount a file system")
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    try:
        with pytest.raises(DeployError, match=f"the disk of {disk} is full"):
            engines.get("openvino").build(
                tmp_path / "model.onnx", tmp_path / "engine", BuildOptions()
            )
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
