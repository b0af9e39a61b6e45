"""Every planted fault is found, by the outputs or by the weights; bisection names its place."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from pipeline.golden import file as goldens
from pipeline.verification import engine_proof
from pipeline.verification.bisection.search import bisect
from pipeline.verification.verdict import Verdict
from pipeline.workflow.runner import Store
from tests.conftest import Result
from tests.faults import FAULTS, Fault

# What LeNet has no place for, and a resized or quantized graph has.
ELSEWHERE = {
    "padding counted in an average",
    "an average for a maximum",
    "another interpolation",
    "other pixel centres",
    "a quantization scale off by a twentieth",
}


def judged(model: onnx.ModelProto, store: Store, folder: Path) -> Verdict:
    path = folder / "planted.onnx"
    onnx.save(model, path)
    golden = store.root / "lenet/fp32/golden.npz"
    return engine_proof.prove("graph", path, golden, "fp32", device="auto", threads=1)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault, built: Store, tmp_path: Path) -> None:
    place = FAULTS.index(fault)  # here in the first layer, there in the second
    planted = fault.plant(onnx.load(built.root / "lenet/fp32/model.onnx"), place)
    if fault.name in ELSEWHERE:
        assert planted is None
        return
    assert planted is not None
    try:
        verdict = judged(planted[0], built, tmp_path)
    except Exception as error:  # it does not even run
        assert "ONNX Runtime" in str(error) or "ONNXRuntimeError" in str(error)  # noqa: PT017
        return
    assert verdict.status == "mismatch"
    if fault.weight:
        assert verdict.audit is not None
        assert verdict.audit.fault


def test_the_graph_without_a_fault_passes(built: Store, tmp_path: Path) -> None:
    assert judged(onnx.load(built.root / "lenet/fp32/model.onnx"), built, tmp_path).status == "pass"


@pytest.mark.parametrize(
    "name",
    [
        "one weight off by 0.1",
        "weights rounded to bfloat16",
        "a dropped bias",
        "a swapped output channel",
        "a weight read in another layout",
        "a scale off by a hundredth",
        "another dilation",
        "padding on the other side",
        "a maximum for an average",
        "a missing activation",
        "another activation",
        "divided by 256 for 255",
        "bright pixels clipped",
        "classes off by one",
    ],
)
def test_bisection_names_the_planted_node_or_its_consumer(
    name: str, built: Store, tmp_path: Path
) -> None:
    (fault,) = (each for each in FAULTS if each.name == name)
    folder = built.root / "lenet/fp32"
    planted = fault.plant(onnx.load(folder / "model.onnx"), 1)
    assert planted is not None
    model, where = planted
    path = tmp_path / "planted.onnx"
    onnx.save(model, path)
    found = bisect(folder / "model.pt2", path, goldens.load(folder / "golden.npz"))
    assert found.first is not None
    (node,) = (each for each in model.graph.node if each.name == where)
    consumers = {n.name for n in model.graph.node if set(node.output) & set(n.input)}
    assert found.first.node in {where} | consumers
    assert "the graph says something else than the model" in found.opinion


def test_the_command_says_where_and_exits_3(store: Store, assay: Callable[..., Result]) -> None:
    where = ("--root", store.root)
    result = assay("verify", "lenet", "--bisect", *where)
    assert result.code == 0, result.err
    assert "all 14 values that could be compared are the model's" in result.out
    assert "network.3: Conv2d" in result.out
    (fault,) = (each for each in FAULTS if each.name == "a dropped bias")
    planted = fault.plant(onnx.load(store.root / "lenet/fp32/model.onnx"), 1)
    assert planted is not None
    onnx.save(planted[0], store.root / "planted.onnx")
    result = assay("verify", "lenet", "--bisect", "--file", store.root / "planted.onnx", *where)
    assert result.code == 3
    assert "first: Conv node 'node_conv2d_1' (network.3: Conv2d)" in result.out
    assert "leaves the model at Conv node 'node_conv2d_1'" in result.err


def test_what_no_value_shows_is_said_too(store: Store, assay: Callable[..., Result]) -> None:
    where = ("--root", store.root)
    (fault,) = (each for each in FAULTS if each.name == "one weight off by 1e-06")
    planted = fault.plant(onnx.load(store.root / "lenet/fp32/model.onnx"), 1)
    assert planted is not None
    path = store.root / "planted.onnx"
    onnx.save(planted[0], path)
    result = assay("verify", "lenet", "--bisect", "--file", path, *where)
    assert result.code == 3
    assert "but weights that are not the checkpoint's: network.3.weight" in result.err
    renamed = onnx.load(store.root / "lenet/fp32/model.onnx")
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "scores"
    onnx.save(renamed, path)
    result = assay("verify", "lenet", "--bisect", "--file", path, *where)
    assert result.code == 3
    assert "its outputs are scores: float32[batch, 10]; expected logits" in result.err
    assert "1 nodes have values that the model does not know by name" in result.out


def test_a_graph_of_another_exporter_has_no_names_to_go_by(
    store: Store, assay: Callable[..., Result]
) -> None:
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    for node in model.graph.node:
        node.input[:] = [f"_{name}" if name.islower() else name for name in node.input]
        node.output[:] = [f"_{name}" for name in node.output]
    assert model.graph.node
    path = store.root / "renamed.onnx"
    onnx.save(model, path)
    words = ("verify", "lenet", "--bisect", "--root", store.root)
    result = assay(*words, "--file", path)
    assert result.code == 1
    assert "has the name of one of the model's" in result.err
    result = assay(*words, "--precision", "int8")
    assert result.code == 2
    assert "bisect the fp32 graph" in result.err
    assert assay(*words, "--file", store.root / "nothing.onnx").code == 1
