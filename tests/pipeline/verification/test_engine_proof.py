"""Opening and judging a graph or engine, or reporting why that is not possible here."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from exporters import onnx_files
from pipeline.verification import engine_proof
from pipeline.verification.verdict import Verdict
from pipeline.workflow.artifacts import ENGINE
from pipeline.workflow.runner import Store
from tests.conftest import Result
from tests.faults import FAULTS, Fault
from tests.unusual import graph_of

Assay = Callable[..., Result]


@pytest.mark.slow(1)
def test_integer_outputs_have_to_be_equal(own: Callable[[str], str], assay: Assay) -> None:
    name = own("whole")
    assert assay("export", name).code == 0
    assert assay("verify", name).code == 0
    model = onnx.load(graph_of(name))
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    add.op_type = "Sub"
    onnx.save(model, "changed.onnx")
    assert assay("verify", name, "--file", "changed.onnx").code == 3
    result = assay("verify", name, "--bisect", "--file", "changed.onnx")
    assert result.code == 3
    assert "first: Sub node" in result.out
    assert "the graph itself differs from the model" in result.out


def test_boolean_outputs_are_judged(own: Callable[[str], str], assay: Assay) -> None:
    name = own("truth")
    assert assay("export", name).code == 0
    assert assay("verify", name).code == 0
    model = onnx.load(graph_of(name))
    (greater,) = (node for node in model.graph.node if node.op_type == "Greater")
    greater.op_type = "Less"
    onnx.save(model, "changed.onnx")
    assert assay("verify", name, "--file", "changed.onnx").code == 3


@pytest.mark.slow(1)
def test_a_golden_file_of_another_model_or_precision_is_refused(
    store: Store, own: Callable[[str], str], assay: Assay
) -> None:
    name = own("truth")
    assert assay("export", name).code == 0
    other = graph_of(name).with_name("golden.npz")
    words = ("verify", "lenet", "--root", store.root, "--golden", other)
    result = assay(*words, "--bisect")
    assert result.code in (1, 3)
    assert "bug" not in result.err
    graph = store.root / "lenet/fp32/model.onnx"
    assert assay(*words, "--file", graph).code == 3
    result = assay(*words, "--file", graph, "--precision", "fp16")
    assert result.code == 2
    assert "is for fp32, not for fp16" in result.err


def test_an_unknown_device_is_wrong_usage_whatever_runs(store: Store, assay: Assay) -> None:
    path = store.root / "lenet/fp32/model.onnx"
    words = ("verify", "lenet", "--root", store.root, "--file", path, "--device", "bogus")
    assert assay(*words).code == 2


# Faults that need a resized or quantized graph; LeNet's has no place for them.
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
    place = FAULTS.index(fault)  # alternately in the first and the second layer
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


@pytest.mark.parametrize("subject", ["graph", "onnxruntime"])
@pytest.mark.usefixtures("in_process")
def test_a_verdict_reads_the_file_once(
    built: Store, monkeypatch: pytest.MonkeyPatch, subject: str
) -> None:
    reads = []
    read = onnx_files.read
    monkeypatch.setattr(
        onnx_files, "read", lambda path, **more: reads.append(path) or read(path, **more)
    )
    folder = built.root / "lenet/fp32"
    path = (
        folder / "model.onnx"
        if subject == "graph"
        else folder / subject / ENGINE.at(engine=subject).name
    )
    golden = folder / "golden.npz"
    verdict = engine_proof.prove(subject, path, golden, "fp32", device="auto", threads=1)
    assert verdict.status == "pass"
    assert reads == [path]
