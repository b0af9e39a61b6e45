"""fp8: rounding, scales, and how each engine runs the graph."""

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import engines
from engines.contract import BuildOptions
from engines.errors import DeployError
from exporters import quantize_fp8
from pipeline.workflow.runner import Store
from tests.conftest import Result


def convolution(channels: int) -> onnx.ModelProto:
    """A convolution of [1, channels, 4, 4] with eight outputs, followed by a matrix product."""
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.normal(size=(8, channels, 3, 3)).astype(np.float32),
        "matrix": random.normal(size=(8 * 4, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["y"], "convolution"),
        helper.make_node("Flatten", ["y"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "matrix"], ["z"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, 4, 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantized(channels: int = 8) -> onnx.ModelProto:
    ranges = {"x": (-2.0, 1.0), "flat": (0.0, 448.0)}
    model = quantize_fp8.with_ranges(convolution(channels), ranges)
    onnx.checker.check_model(model, full_check=True)
    return model


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("value", "stored"),
    [(448.0, 448.0), (1e9, 448.0), (-1e9, -448.0), (17.0, 16.0), (19.0, 20.0), (2.0**-10, 0.0)],
)
def test_values_are_rounded_to_the_nearest_and_saturated(value: float, stored: float) -> None:
    tensor = quantize_fp8.to_fp8(np.array([value], np.float32))
    assert tensor.data_type == TensorProto.FLOAT8E4M3FN
    assert float(numpy_helper.to_array(tensor).astype(np.float32)[0]) == stored


def test_an_activation_has_one_scale_and_a_weight_one_for_each_output() -> None:
    tensors = constants(quantized())
    assert tensors["x_scale"] == np.float32(2.0 / 448)
    assert tensors["flat_scale"] == np.float32(1.0)
    assert tensors["kernel_scale"].shape == (8,)
    assert tensors["matrix_scale"].shape == (5,)
    assert {name: array.dtype.name for name, array in tensors.items() if name.endswith("_fp8")} == {
        "kernel_fp8": "float8_e4m3fn",
        "matrix_fp8": "float8_e4m3fn",
    }


def test_a_stored_weight_is_the_nearest_fp8_number() -> None:
    tensors = constants(quantized())
    original = constants(convolution(8))["kernel"].astype(np.float64)
    scale = tensors["kernel_scale"].astype(np.float64).reshape(8, 1, 1, 1)
    stored = tensors["kernel_fp8"].astype(np.float64)
    assert np.abs(stored).max(axis=(1, 2, 3)) == pytest.approx(np.full(8, 448.0))
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    every = every[np.isfinite(every)]
    best = np.abs(original[..., None] / scale[..., None] - every).min(-1)
    assert np.abs(original / scale - stored) == pytest.approx(best, abs=1e-4)


def test_a_convolution_of_an_image_stays_in_float() -> None:
    nodes = {node.name: node for node in quantized(channels=3).graph.node}
    assert list(nodes["convolution"].input) == ["x", "kernel"]
    assert nodes["product"].input[0] == "flat_dequantized"


def test_tensors_without_a_range_stay_in_float() -> None:
    model = quantize_fp8.with_ranges(convolution(8), {"x": (-np.inf, 1.0), "flat": (0.0, 1.0)})
    nodes = {node.name: node for node in model.graph.node}
    assert list(nodes["convolution"].input) == ["x", "kernel"]
    assert nodes["product"].input[1] == "matrix_dequantized"


def test_a_graph_without_anything_to_compute_in_fp8_is_refused() -> None:
    with pytest.raises(DeployError, match="no convolution or matrix product"):
        quantize_fp8.with_ranges(convolution(8), {})


@pytest.fixture(scope="module")
def graph(built: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet in fp8, exported by the command in a copy of the built store."""
    import shutil

    from pipeline.cli import stage_runs

    root = tmp_path_factory.mktemp("fp8") / "artifacts"
    shutil.copytree(built.root, root)
    store = Store(root, root.parent / "dist")
    # Of 300 test images, chance alone loses or gains more than 1 %.
    chosen = {"model": "lenet", "precision": "fp8", "max_drop": 5.0}
    stage_runs.run_stage("export", chosen, store)
    return root / "lenet/fp8/model.onnx"


def test_lenet_passes_and_every_weight_is_audited(
    graph: Path, assay: Callable[..., Result]
) -> None:
    root = graph.parents[2]
    result = assay("verify", "lenet", "--precision", "fp8", "--root", root, "--json")
    assert result.code == 0, result.err
    (outcome,) = json.loads(result.out)["outcomes"]
    verdict = outcome["results"]["verdict"]
    assert verdict["status"] == "pass"
    audit = verdict["audit"]
    assert audit["identical"] >= 10
    for kind in ("changed", "missing", "unaudited", "unexplained"):
        assert not audit[kind]
    assert verdict["outputs"][0]["sqnr"] > 20


def test_a_changed_weight_is_found(
    graph: Path, assay: Callable[..., Result], tmp_path: Path
) -> None:
    model = onnx.load(graph)
    (tensor,) = (
        t
        for t in model.graph.initializer
        if t.name.startswith("network.9.weight") and t.name.endswith("_fp8")
    )
    stored = bytearray(tensor.raw_data)
    stored[0] ^= 0x40  # another exponent
    tensor.raw_data = bytes(stored)
    onnx.save(model, tmp_path / "changed.onnx")
    words = ("--precision", "fp8", "--root", graph.parents[2], "--file", tmp_path / "changed.onnx")
    assert assay("verify", "lenet", *words).code == 3


@pytest.mark.parametrize("capability", [89, 120])
def test_tensorrt_rtx_computes_products_in_fp8(
    graph: Path, tmp_path: Path, capability: int
) -> None:
    engine = engines.get("tensorrt_rtx")
    if not engine.available().build:
        pytest.skip(engine.available().reason)
    layers = engine.build(graph, tmp_path / "plan", BuildOptions(target_sm=(capability,)))
    kinds = [layer.kind for layer in layers if layer.precision == "fp8"]
    assert sorted(kinds) == ["correlation", "gemm", "gemm", "gemm"]


def test_tensorrt_rtx_refuses_fp8_for_a_gpu_without_it(graph: Path, tmp_path: Path) -> None:
    engine = engines.get("tensorrt_rtx")
    if not engine.available().build:
        pytest.skip(engine.available().reason)
    with pytest.raises(DeployError, match="fp8"):
        engine.build(graph, tmp_path / "plan", BuildOptions(target_sm=(86,)))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "pytorch"])
def test_engines_without_fp8_say_so(graph: Path, assay: Callable[..., Result], name: str) -> None:
    words = ("--precision", "fp8", "--root", graph.parents[2], "--engine", name)
    result = assay("build", "lenet", *words)
    assert result.code == 4
    assert "fp8" in result.err
