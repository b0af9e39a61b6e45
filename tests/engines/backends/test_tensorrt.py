"""Plans of TensorRT for RTX, built without a GPU: options, errors, progress."""

import importlib
import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import engines
from engines import hardware, profiles
from engines.backends import _turing
from engines.backends._tensorrt_network import add_profiles, parse, type_mismatches
from engines.contract import BuildOptions, Engine, OpenOptions
from engines.errors import DeployError, NotAvailableError, UsageError
from engines.layer_report import Layer, of_inspector
from pipeline.verification import engine_proof
from pipeline.workflow.runner import Store

pytestmark = pytest.mark.skipif(
    not engines.get("tensorrt_rtx").available().build,
    reason=engines.get("tensorrt_rtx").available().reason,
)


def build(built: Store, tmp_path: Path, **more: object) -> tuple[Path, tuple[Layer, ...]]:
    target = tmp_path / "engine"
    graph = built.root / "lenet/fp32/model.onnx"
    return target, engines.get("tensorrt_rtx").build(graph, target, BuildOptions(**more))


def test_a_plan_is_built_for_the_gpus_that_are_named(built: Store, tmp_path: Path) -> None:
    one, _ = build(built, tmp_path, target_sm=(89,))
    size = one.stat().st_size
    three, layers = build(built, tmp_path, target_sm=(86, 89, 120))
    assert three.stat().st_size > size  # it holds kernels for each
    assert {layer.precision for layer in layers if layer.kind == "correlation"} == {"fp32"}


def test_turing_gets_its_products_as_convolutions(built: Store, tmp_path: Path) -> None:
    notes: dict[str, object] = {}
    _, layers = build(built, tmp_path, target_sm=(75,), note=notes.__setitem__)
    assert notes == {"rewritten": "Gemm as 1x1 Conv, for SM75"}
    products = {name for layer in layers if layer.kind == "correlation" for name in layer.nodes}
    graph = onnx.load(built.root / "lenet/fp32/model.onnx").graph
    wanted = {node.name for node in graph.node if node.op_type in ("Conv", "Gemm")}
    assert wanted <= products
    notes.clear()
    build(built, tmp_path, target_sm=(86,), note=notes.__setitem__)
    assert notes == {}


def test_a_graph_with_convolutions_for_gemm_gives_equal_outputs(
    built: Store, tmp_path: Path
) -> None:
    source = built.root / "lenet/fp32/model.onnx"
    rewritten = _turing.with_convolutions(source)
    assert rewritten is not None
    target = tmp_path / "model.onnx"
    target.write_bytes(rewritten)
    onnx.checker.check_model(str(target), full_check=True)
    assert not any(node.op_type == "Gemm" for node in onnx.load(target).graph.node)
    runtime, rows = engines.get("onnxruntime"), np.random.default_rng(0)
    images = rows.integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
    outputs = []
    for path in (source, target):
        with closing(runtime.open(path, OpenOptions(optimize=False))) as session:
            outputs.append(session.run({"image": images})["logits"])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("node", "weights", "bias"),
    [
        ({"transB": 1, "alpha": 0.5}, (3, 4), (3,)),
        ({"transA": 1}, (4, 3), (3,)),
        ({}, (4, 3), (1, 3)),
        ({}, None, (3,)),
    ],
)
def test_other_products_stay_as_they_are(
    node: dict[str, Any], weights: tuple[int, int] | None, bias: tuple[int, ...], tmp_path: Path
) -> None:
    make, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    inputs = [make("x", kind, [4, 4])]
    constants = [onnx.numpy_helper.from_array(np.ones(bias, np.float32), "b")]
    if weights is None:
        inputs.append(make("w", kind, [4, 3]))
    else:
        constants.append(onnx.numpy_helper.from_array(np.ones(weights, np.float32), "w"))
    gemm = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", **node)
    graph = onnx.helper.make_graph([gemm], "g", inputs, [make("y", kind, [4, 3])], constants)
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    assert _turing.with_convolutions(path) is None


def test_a_type_that_a_gpu_lacks_is_named(tmp_path: Path) -> None:
    make, half = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [onnx.helper.make_node("MatMul", ["x", "x"], ["y"], "product")]
    shape = ["batch", 8, 8]
    graph = onnx.helper.make_graph(nodes, "g", [make("x", half, shape)], [make("y", half, shape)])
    path, target = tmp_path / "model.onnx", tmp_path / "engine"
    onnx.save(onnx.helper.make_model(graph, ir_version=10), path)
    with pytest.raises(DeployError, match=r"'product' for Turing \(SM75\)"):
        engines.get("tensorrt_rtx").build(path, target, BuildOptions(target_sm=(75,)))
    assert not target.exists()


def test_layers_are_read_from_the_inspector_of_the_full_tensorrt() -> None:
    report = {
        "Layers": [
            {
                "Name": "conv + relu",
                "LayerType": "CaskConvolution",
                "Inputs": [
                    {
                        "Name": "x",
                        "Format/Datatype": "Thirty-two wide channel vectorized row major Int8"
                        " format",
                    }
                ],
                "Metadata": "[ONNX Layer: conv]\x1f[ONNX Layer: relu]",
            },
            {"Name": "cast", "LayerType": "Reformat", "Inputs": []},
        ]
    }
    conv = Layer("conv + relu", "CaskConvolution", "int8", ("conv", "relu"))
    assert of_inspector(json.dumps(report)) == (conv, Layer("cast", "Reformat", ""))


@pytest.mark.parametrize(
    "name", ["refit", "strip_weights", "version_compatible", "hardware_compatible"]
)
def test_options_of_other_flavours_are_not_available(
    name: str, built: Store, tmp_path: Path
) -> None:
    flag = name.replace("_", "-")
    with pytest.raises(NotAvailableError, match=f"does not take --{flag}"):
        build(built, tmp_path, **{name: True})
    with pytest.raises(NotAvailableError, match="does not take --target-sm"):
        engines.get("tensorrt").build(Path("graph"), tmp_path / "x", BuildOptions(target_sm=(89,)))


def test_invalid_option_values_are_wrong_usage(built: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="compute capability 90"):
        build(built, tmp_path, target_sm=(90,))
    with pytest.raises(UsageError, match="optimization level 6"):
        BuildOptions(optimization_level=6)


def test_a_build_reports_progress_and_can_be_cancelled(built: Store, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    build(built, tmp_path, optimization_level=0, progress=lambda *each: told.append(each))
    assert told
    assert all(text and 0 < part <= 1 for text, part in told)
    (tmp_path / "engine").unlink()

    def interrupt(_text: str, _part: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(built, tmp_path, progress=interrupt)
    assert not (tmp_path / "engine").exists()


def test_a_product_in_another_type_than_its_weights_is_reported(built: Store) -> None:
    source = built.root / "lenet/fp32/model.onnx"
    names = [n.name for n in onnx.load(source).graph.node if n.op_type in ("Conv", "Gemm")]
    right = [Layer(name, "correlation", "fp32", (name,)) for name in names]
    assert type_mismatches(source, right) == []
    wrong = [*right[1:], Layer(names[0], "correlation", "fp16", (names[0],))]
    assert type_mismatches(source, wrong) == [f"Conv {names[0]!r} in fp16"]


def test_a_plan_of_another_version_or_gpu_is_refused_before_loading(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx, path = engines.get("tensorrt_rtx"), store.root / "lenet/fp32/tensorrt_rtx/engine.plan"
    engine_proof.require_fit(rtx, path)
    record = path.with_name("build.json")
    content = json.loads(record.read_text())
    content["facts"]["tensorrt-rtx-cu13"] = "1.0"
    record.write_text(json.dumps(content))
    with pytest.raises(
        NotAvailableError, match=r"built with tensorrt-rtx-cu13 1\.0, but this machine has"
    ):
        engine_proof.require_fit(rtx, path)
    content["facts"] = rtx.fingerprint()
    record.write_text(json.dumps(content))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(NotAvailableError, match="its SHA-256 is"):
        engine_proof.require_fit(rtx, path)
    full = engines.get("tensorrt")
    facts = {"tensorrt-cu13": "10.14", "gpu_compute_capability": "8.9"}
    why = full.incompatibility
    here = {"tensorrt-cu13": "10.14", "gpu_compute_capability": "12.0"}
    monkeypatch.setattr(type(full), "fingerprint", lambda _self: here)
    assert "capability 8.9, but this machine has gpu_compute_capability 12.0" in why(facts, {})
    assert why(facts, {"hardware_compatible": True}) == ""
    # The plan does not include the lean runtime that another version would run it with.
    for other in ("10.13", "10.15", "9.9", "11.0", "not installed"):
        for params in ({}, {"version_compatible": True}):
            assert other in why({**here, "tensorrt-cu13": other}, params)


def rtx_on_cpu() -> Engine:
    if hardware.gpus():
        pytest.skip("this machine has a GPU")
    return engines.get("tensorrt_rtx")


def test_a_plan_is_built_without_a_gpu(built: Store) -> None:
    rtx_on_cpu()
    plan = (built.root / "lenet/fp32/tensorrt_rtx/engine.plan").read_bytes()
    weights = (built.root / "lenet/checkpoint.safetensors").stat().st_size
    assert len(plan) > weights  # it holds the weights, and kernels for them
    record = json.loads((built.root / "lenet/fp32/tensorrt_rtx/build.json").read_text())
    assert record["params"]["batch_max"] == 256


def test_opening_a_plan_without_a_gpu_is_an_error(built: Store) -> None:
    engine = rtx_on_cpu()
    with pytest.raises(NotAvailableError, match="runs on an NVIDIA GPU"):
        engine.open(built.root / "lenet/fp32/tensorrt_rtx/engine.plan", OpenOptions(device="cuda"))


def test_tensorrt_needs_its_library_or_a_gpu() -> None:
    engine = engines.get("tensorrt")
    if engine.available().build:
        pytest.skip("this machine has TensorRT and a GPU")
    with pytest.raises(NotAvailableError) as caught:
        engine.build(Path("graph"), Path("engine"), BuildOptions())
    assert "pip install" in caught.value.hint or "tensorrt_rtx" in caught.value.hint


def test_an_operator_tensorrt_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Det", ["x"], ["y"], name="determinant")
    shape = ["batch", 3, 3]
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape[:1])],
    )
    path = tmp_path / "det.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)
    with pytest.raises(DeployError, match=r"node 'determinant' \(Det\)"):
        engines.get("tensorrt_rtx").build(path, tmp_path / "engine", BuildOptions())
    assert not (tmp_path / "engine").exists()


def two_axes(tmp_path: Path) -> Path:
    shape = ["batch", 3, "height"]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "two.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)
    return path


def test_a_second_dynamic_axis_is_an_error(tmp_path: Path) -> None:
    path = two_axes(tmp_path)
    with pytest.raises(DeployError, match="an axis other than the batch is dynamic"):
        engines.get("tensorrt_rtx").build(path, tmp_path / "engine", BuildOptions())


SIZES = {"x": (None, (3, 3, 3), (16, 64, 256))}


def test_a_plan_has_a_profile_for_all_sizes_and_for_each_range(tmp_path: Path) -> None:
    vendor = importlib.import_module(engines.get("tensorrt_rtx").module)
    builder = vendor.Builder(vendor.Logger())
    network = builder.create_network(0)
    parse(vendor, network, vendor.Logger(), two_axes(tmp_path), None)
    wanted = profiles.parse(["batch=1", "height=16:32:48/batch=2:4:8", "x.2=100"])
    added: list[Any] = []
    config = SimpleNamespace(add_optimization_profile=added.append)
    options = BuildOptions(batch_max=32, sizes=SIZES, profiles=wanted)
    add_profiles(builder, network, config, options)
    assert [[tuple(shape) for shape in profile.get_shape("x")] for profile in added] == [
        [(1, 3, 16), (8, 3, 64), (32, 3, 256)],
        [(1, 3, 16), (1, 3, 64), (1, 3, 256)],
        [(2, 3, 16), (4, 3, 32), (8, 3, 48)],
        [(1, 3, 100), (8, 3, 100), (32, 3, 100)],
    ]
    real = builder.create_builder_config()
    add_profiles(builder, network, real, options)
    assert real.num_optimization_profiles == 4
    engines.get("tensorrt_rtx").build(two_axes(tmp_path), tmp_path / "engine", options)
    assert (tmp_path / "engine").stat().st_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["width=1"], r"names the axis 'width', .* are batch, x\.0, height, x\.2"),
        (["height=8:16:32"], "has height from 8 to 32, and the engine's is from 16 to 256"),
        (["batch=1:8:512"], "has batch from 1 to 512, and the engine's is from 1 to 256"),
    ],
)
def test_a_profile_that_does_not_fit_the_graph_is_refused(
    tmp_path: Path, words: list[str], message: str
) -> None:
    options = BuildOptions(sizes=SIZES, profiles=profiles.parse(words))
    with pytest.raises(UsageError, match=message):
        engines.get("tensorrt_rtx").build(two_axes(tmp_path), tmp_path / "engine", options)
    assert not (tmp_path / "engine").exists()
