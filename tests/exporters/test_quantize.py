"""int8: two graphs from one calibration, judged by accuracy, and audited."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.errors import DeployError
from exporters import quantize, weight_quantized
from pipeline.exporting import calibration
from pipeline.verification.weight_audit import audit
from pipeline.workflow.runner import Store
from tests.conftest import Process, Result, need_engine

pytestmark = pytest.mark.slow(12)  # all stages in int8, once for all tests


@pytest.fixture(scope="session")
def quantized(built: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """LeNet in int8, through all stages. Tests must not change it."""
    from pipeline.cli import stage_runs

    folder = tmp_path_factory.mktemp("quantized")
    store = Store(folder / "artifacts", folder / "dist")
    shutil.copytree(built.root, store.root)
    # Of 300 test images, chance alone loses or gains more than 1 %.
    options = {"model": "lenet", "precision": "int8", "batch": (1,), "budget": 0.1, "max_drop": 5.0}
    stage_runs.run_all(options, store)
    return store


def read(store: Store, name: str) -> onnx.ModelProto:
    return onnx.load(store.root / "lenet/int8" / name)


def test_the_verdict_reports_the_cost_of_quantization(quantized: Store) -> None:
    for folder in ("", "onnxruntime/"):
        path = quantized.root / f"lenet/int8/{folder}verdict.json"
        verdict = json.loads(path.read_text())
        assert verdict["status"] == "pass", verdict["reason"]
        (output,) = verdict["outputs"]
        assert 20 < output["sqnr"] < 80
        flips = verdict["flips"]
        assert flips["reference_correct"] - flips["lost"] <= flips["correct"]
        assert flips["images"] - flips["correct"] > 0


def test_tensorrt_gets_signed_symmetric_types_and_float_biases(quantized: Store) -> None:
    graph = read(quantized, "model.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = tensors[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    weights = [value for value in tensors.values() if value.dtype == np.int8 and value.ndim > 1]
    assert len(weights) == 5
    assert all(np.abs(w.astype(int)).max() == 127 for w in weights)
    biases = [tensors[node.input[2]] for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert {bias.dtype for bias in biases} == {np.dtype(np.float32)}


def test_a_cpu_gets_unsigned_activations_and_weights_of_seven_bits(quantized: Store) -> None:
    graph = read(quantized, "model-cpu.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kinds = {tensors[n.input[2]].dtype.name for n in graph.node if n.op_type == "QuantizeLinear"}
    assert kinds == {"uint8"}
    weights = [value for value in tensors.values() if value.dtype == np.int8 and value.ndim > 1]
    assert len(weights) == 5
    assert all(np.abs(w.astype(int)).max() <= 64 for w in weights)


def test_both_graphs_use_the_same_ranges(quantized: Store) -> None:
    """A symmetric scale spans the larger side of the range that the unsigned one spans whole."""
    signed, unsigned = (read(quantized, name).graph for name in ("model.onnx", "model-cpu.onnx"))
    one, two = (
        {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for graph in (signed, unsigned)
    )
    scales = [node.input[1] for node in signed.node if node.op_type == "QuantizeLinear"]
    assert len(scales) == 5
    for name in scales:
        zero = int(two[name.replace("_scale", "_zero_point")])
        low, high = -zero * two[name], (255 - zero) * two[name]
        assert one[name] * 127 == pytest.approx(max(-low, high), rel=0.02)


def test_everything_in_the_graph_is_audited(quantized: Store, tmp_path: Path) -> None:
    path = quantized.root / "lenet/int8/model.onnx"
    verdict = json.loads((path.parent / "verdict.json").read_text())
    assert not any(value for key, value in verdict["audit"].items() if key != "identical")
    from pipeline.golden import file as goldens

    weights = goldens.load(path.parent / "golden.npz").weights
    assert (
        len([name for name in weights.carried if name.startswith("network.") and "_" not in name])
        == 10
    )
    for index, tensor in enumerate(onnx.load(path).graph.initializer):
        model = onnx.load(path)
        altered = numpy_helper.to_array(tensor).copy()
        if tensor.name not in weights.carried and "quantized" not in tensor.name:
            continue  # a constant of the preprocessing or a shape
        altered.ravel()[0] += 1 if altered.dtype.kind in "iu" else altered.ravel()[0] * 0.05 or 0.1
        model.graph.initializer[index].CopyFrom(numpy_helper.from_array(altered, tensor.name))
        changed = tmp_path / "changed.onnx"
        onnx.save(model, changed)
        audited = audit(changed, weights)
        assert audited.fault, tensor.name


def test_a_quantized_weight_is_within_half_a_step(quantized: Store) -> None:
    graph = read(quantized, "model.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    state = {
        "weight": tensors["network.0.weight_quantized"]
        * tensors["network.0.weight_scale"].reshape(-1, 1, 1, 1)
    }
    state["weight"] = state["weight"].astype(np.float32)
    assert weight_quantized.quantized(state, graph)["weight"].dtype == np.int8
    state["weight"][0, 0, 0, 0] += tensors["network.0.weight_scale"][0] * 0.6
    assert weight_quantized.quantized(state, graph)["weight"].dtype == np.float32


def test_the_calibration_method_with_the_best_score_is_used(quantized: Store) -> None:
    record = json.loads((quantized.root / "lenet/int8/graph.json").read_text())["calibration"]
    scores = {name: (score["accuracy"], score["sqnr"]) for name, score in record["scores"].items()}
    assert set(scores) == set(quantize.METHODS)
    assert scores[record["method"]] == max(scores.values())
    assert record["source"] == "training images"


def test_accuracy_gained_by_noise_does_not_select_a_method(built: Store) -> None:
    """The graph furthest from an undertrained model may be right more often."""
    graph = onnx.load(built.root / "lenet/fp32/model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 28, 28), dtype=np.uint8)
    rows = {"image": images}
    wanted = calibration.run(graph, rows)
    worst = wanted["logits"].argmin(1)
    images_only = calibration.Calibration(rows, rows, worst, "random images")
    faithful = calibration.judge(graph, wanted, images_only)
    upside_down = {"logits": -wanted["logits"]}
    right = dataclasses.replace(images_only, labels=wanted["logits"].argmax(1))
    other = calibration.judge(graph, upside_down, right)
    assert faithful[1] == 0.0
    assert other[1] == 1.0
    assert faithful > other


def test_calibration_and_selection_share_no_image() -> None:
    images = np.arange(3000, dtype=np.uint8).reshape(-1, 1, 1, 1) * 0 + np.arange(3000).reshape(
        -1, 1, 1, 1
    )
    chosen = calibration.of_training_set(images, np.zeros(3000, np.int64))
    ranges, selection = (set(part["image"].ravel()) for part in (chosen.rows, chosen.selection))
    assert len(ranges) == calibration.CALIBRATION_ROWS
    assert len(selection) == calibration.SELECTION_ROWS
    assert ranges.isdisjoint(selection)


@pytest.mark.slow(6)
def test_quantizing_in_two_folders_and_processes_gives_the_same_bytes(
    quantized: Store, tmp_path: Path, process: Callable[..., Process]
) -> None:
    import shutil

    folder = tmp_path / "deep er"
    shutil.copytree(quantized.root, folder / "artifacts")
    result = process(
        "export", "lenet", "--precision", "int8", "--max-drop", 5, "--force", cwd=folder
    ).run()
    assert result.code == 0, result.err
    for name in ("model.onnx", "model-cpu.onnx", "golden.npz", "graph.json"):
        again = (folder / "artifacts/lenet/int8" / name).read_bytes()
        assert again == (quantized.root / "lenet/int8" / name).read_bytes(), name


def test_layers_in_other_types_are_an_error_unless_accepted(
    quantized: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    need_engine("tensorrt_rtx", run=False)
    root = tmp_path / "artifacts"
    shutil.copytree(quantized.root, root)
    words = ("build", "lenet", "--precision", "int8", "--engine", "tensorrt_rtx", "--force")
    words = (*words, "--root", root, "--target-sm", "75,86")  # Turing has no int8 here
    engine = root / "lenet/int8/tensorrt_rtx/engine.plan"
    before = engine.read_bytes()
    result = assay(*words)
    assert result.code == 1
    assert "computes in other types than" in result.err
    assert "Conv 'node_conv2d'" in result.err
    assert engine.read_bytes() == before
    result = assay(*words, "--other-types")
    assert result.code == 0, result.err
    assert re.search(r"not in the graph's type: Conv 'node_conv2d' in fp32", result.out)
    notes = json.loads((engine.with_name("layers.json")).read_text())["notes"]
    assert len(notes["other_types"]) == 5


def test_tensorrt_computes_every_layer_in_int8(quantized: Store) -> None:
    need_engine("tensorrt_rtx", run=False)
    layers = json.loads((quantized.root / "lenet/int8/tensorrt_rtx/layers.json").read_text())[
        "layers"
    ]
    products = [layer for layer in layers if layer["kind"] in ("correlation", "gemm")]
    assert [layer["precision"] for layer in products] == ["int8"] * 5
    assert {node for layer in products for node in layer["nodes"]} >= {"node_conv2d", "node_linear"}


def test_pytorch_cannot_run_int8(quantized: Store, assay: Callable[..., Result]) -> None:
    where = ("--precision", "int8", "--root", quantized.root)
    result = assay("build", "lenet", "--engine", "pytorch", *where)
    assert result.code == 4
    assert "does not support int8" in result.err


def test_precisions_are_measured_side_by_side(
    quantized: Store, assay: Callable[..., Result]
) -> None:
    words = ("--against", "fp32", "--budget", 0.2, "--batch", 2, "--root", quantized.root)
    result = assay(
        "bench", "lenet", "--precision", "int8", "--engine", "onnxruntime", *words, "--json"
    )
    assert result.code == 0, result.err
    (outcome,) = json.loads(result.out)["outcomes"]
    measurements = outcome["results"]["comparison"]
    assert measurements["baseline"] == "onnxruntime fp32"
    assert {entry["name"] for entry in measurements["results"]} == {
        "onnxruntime fp32",
        "onnxruntime",
    }


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image": np.zeros((4, 1, 28, 27), np.uint8)}, "but the graph takes image"),
        ({"image": np.zeros((4, 784), np.uint8)}, "but the graph takes image"),
        ({"image": np.zeros((4, 1, 28, 28), np.float32)}, "but the graph takes image"),
        ({"image": np.zeros((0, 1, 28, 28), np.uint8)}, "has no rows"),
        ({"picture": np.zeros((4, 1, 28, 28), np.uint8)}, "picture, but the graph takes image"),
        ({}, "nothing, but the graph takes image"),
    ],
)
def test_calibration_data_that_does_not_fit_is_refused(
    quantized: Store,
    tmp_path: Path,
    rows: dict[str, np.ndarray],
    message: str,
    assay: Callable[..., Result],
) -> None:
    before = (quantized.root / "lenet/int8/model.onnx").read_bytes()
    np.savez(tmp_path / "rows.npz", **rows)
    where = ("--precision", "int8", "--root", quantized.root)
    result = assay("export", "lenet", "--calibration", tmp_path / "rows.npz", *where)
    assert result.code == 1
    assert message in result.err
    assert (quantized.root / "lenet/int8/model.onnx").read_bytes() == before


def test_calibration_data_with_nan_is_refused(built: Store) -> None:
    graph = onnx.load(built.root / "lenet/fp32/model.onnx")
    graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    rows = np.zeros((4, 1, 28, 28), np.float32)
    quantize.check_rows(graph, {"image": rows})
    rows[3, 0, 2, 2] = np.nan
    with pytest.raises(DeployError, match="NaN or Inf"):
        quantize.check_rows(graph, {"image": rows})


def test_calibration_option_is_for_quantized_precisions_only(
    tmp_path: Path, assay: Callable[..., Result]
) -> None:
    np.savez(tmp_path / "rows.npz", image=np.zeros((4, 1, 28, 28), np.uint8))
    result = assay("export", "lenet", "--calibration", tmp_path / "rows.npz", "--root", tmp_path)
    assert result.code == 2
    assert "--calibration is for int8" in result.err


def test_a_ruined_graph_is_a_mismatch(quantized: Store, assay: Callable[..., Result]) -> None:
    path = quantized.root / "lenet/int8/model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "network.3.weight_scale":
            scales = numpy_helper.to_array(tensor)[::-1].copy()
            tensor.CopyFrom(numpy_helper.from_array(scales, tensor.name))
    ruined = quantized.root / "ruined.onnx"
    onnx.save(model, ruined)
    where = ("--precision", "int8", "--root", quantized.root)
    result = assay("verify", "lenet", "--file", ruined, *where)
    assert result.code == 3
    assert "weights that are not the checkpoint's: network.3.weight_scale" in result.err
