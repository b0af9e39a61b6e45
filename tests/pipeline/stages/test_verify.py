"""The verify stage, on a trained and exported model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import engines
from pipeline.verification import limits
from pipeline.workflow.runner import Store
from tests.conftest import Result, need_engine


def altered(store: Store, name: str, index: int, factor: float) -> Path:
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    (tensor,) = [candidate for candidate in model.graph.initializer if candidate.name == name]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[index] *= np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    path = store.root / "altered.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("index", [0, 7, 77, 149])
def test_one_convolution_weight_off_by_a_thousandth_exits_3(
    store: Store, assay: Callable[..., Result], index: int
) -> None:
    path = altered(store, "network.0.weight", index, 1.001)
    result = assay("verify", "lenet", "--root", store.root, "--file", path)
    assert result.code == 3
    assert "mismatch" in result.out
    assert "network.0.weight" in result.err
    assert f"`assay verify lenet --file {path} --bisect --root {store.root}`" in result.err


@pytest.mark.slow(2)
def test_a_mismatch_is_in_the_json_document(store: Store, assay: Callable[..., Result]) -> None:
    path = altered(store, "network.0.weight", 7, 2.0)
    words = ("verify", "lenet", "--root", store.root, "--file", path, "--json")
    document = json.loads(assay(*words).out)
    assert document["error"]["exit_code"] == 3
    (verdict,) = document["verdicts"]
    assert (verdict["status"], verdict["outputs"][0]["name"]) == ("mismatch", "logits")
    assert verdict["outputs"][0]["max_ratio"] > limits.MAX_ERROR_IN_FLOORS
    document = json.loads(assay(*words, "--bisect").out)
    assert document["error"]["exit_code"] == 3
    assert document["first"]["operator"] == "Conv"


def test_the_smallest_change_of_a_weight_is_found(
    store: Store, assay: Callable[..., Result]
) -> None:
    path = altered(store, "network.3.weight", 5, 1 + 2**-23)
    result = assay("verify", "lenet", "--root", store.root, "--file", path)
    assert result.code == 3
    assert "weights that are not the checkpoint's: network.3.weight" in result.err


def test_the_graph_itself_passes_as_a_file_too(store: Store, assay: Callable[..., Result]) -> None:
    folder = store.root / "lenet/fp32"
    before = sorted(store.root.rglob("*"))
    words = ["--file", folder / "model.onnx", "--golden", folder / "golden.npz", "--json"]
    result = assay("verify", "lenet", "--root", store.root / "elsewhere", *words)
    assert result.code == 0
    document = json.loads(result.out)
    assert document["status"] == "pass"
    assert document["audit"].pop("identical") == 10
    assert not any(document["audit"].values())
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "onnxruntime/engine.onnx"])
def test_a_flipped_bit_in_an_artifact_is_a_digest_error(
    store: Store, assay: Callable[..., Result], name: str
) -> None:
    path = store.root / "lenet/fp32" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    engine = "onnxruntime" if name.startswith("onnx") else "graph"
    result = assay("verify", "lenet", "--root", store.root, "--engine", engine)
    assert result.code == 1
    assert f"{path} is not the" in result.err
    assert "expected sha256" in result.err


@pytest.mark.usefixtures("in_process")
def test_a_mismatch_stays_a_mismatch_when_nothing_is_run_again(
    store: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_RMS_IN_FLOORS", 0.01)  # no engine is that exact
    words = ("verify", "lenet", "--root", store.root)
    assert assay(*words, "--force").code == 3
    again = assay(*words)
    assert again.code == 3
    assert "nothing changed, skipped" in again.err
    assert "times the noise floor" in again.err
    assert assay("bundle", "lenet", "--root", store.root, "--dist", store.dist).code == 3


def test_an_engine_that_cannot_run_here_is_never_a_pass(
    store: Store, assay: Callable[..., Result]
) -> None:
    need_engine("tensorrt_rtx", run=False)
    state = engines.get("tensorrt_rtx").available()
    if state.run:
        pytest.skip("TensorRT for RTX runs on this machine")
    result = assay("verify", "lenet", "--root", store.root, "--engine", "tensorrt_rtx")
    assert result.code == 4
    assert "was not run on this machine" in result.err
    verdict = json.loads((store.root / "lenet/fp32/tensorrt_rtx/verdict.json").read_text())
    assert verdict["status"] == "not run"
    assert verdict["reason"] == state.reason
