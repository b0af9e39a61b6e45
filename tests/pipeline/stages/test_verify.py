"""Golden files and the command that judges by them, on a model that was trained and exported."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.golden import file as goldens
from pipeline.golden.rows import edge_images
from pipeline.verification import limits
from pipeline.workflow.runner import Store
from tests.conftest import Result


def test_the_golden_file_has_real_images_and_edge_cases(built: Store) -> None:
    found = goldens.load(built.root / "lenet/fp32/golden.npz")
    assert len(found.labels) == 256
    assert found.cases[256:] == tuple(edge_images((1, 28, 28)))
    assert found.inputs["image"].shape == (262, 1, 28, 28)
    assert found.reference["logits"].dtype == np.float64
    assert found.native["logits"].dtype == np.float32
    assert found.test_reference.shape == (300, 10)


@pytest.mark.parametrize("length", [0, 10, 5000])
def test_a_truncated_golden_file_is_an_error(built: Store, tmp_path: Path, length: int) -> None:
    from engines.errors import DeployError

    path = tmp_path / "golden.npz"
    path.write_bytes((built.root / "lenet/fp32/golden.npz").read_bytes()[:length])
    with pytest.raises(DeployError, match="is not a golden file"):
        goldens.load(path)


def test_no_damage_to_a_golden_file_is_a_bug(built: Store, tmp_path: Path) -> None:
    from engines.errors import DeployError

    content = (built.root / "lenet/fp32/golden.npz").read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "golden.npz"
    refused = 0
    for position in generator.integers(0, len(content), 100):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            goldens.load(path)
        except DeployError:
            refused += 1
    assert refused > 90  # the rest are times and flags that zip files carry


def test_a_renamed_or_spare_weight_does_not_fool_the_audit(built: Store, tmp_path: Path) -> None:
    from pipeline.verification.weight_audit import audit

    weights = goldens.load(built.root / "lenet/fp32/golden.npz").weights
    model = onnx.load(built.root / "lenet/fp32/model.onnx")
    (tensor,) = [each for each in model.graph.initializer if each.name == "network.0.weight"]
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
    found = audit(path, weights)  # the right one is still there, but no node reads it
    assert (found.identical, found.missing) == (9, ("network.0.weight",))
    assert found.unexplained == ("w float32[6, 1, 5, 5], 600 bytes",)

    # read now, but by a node that no output depends on
    model.graph.node.append(onnx.helper.make_node("Identity", [tensor.name], ["dead"]))
    onnx.save(model, path)
    assert audit(path, weights).identical == 9


def test_a_renamed_and_changed_weight_is_a_mismatch(
    store: Store, assay: Callable[..., Result]
) -> None:
    """By its outputs it passes, and under its name nothing is wrong."""
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    (tensor,) = [each for each in model.graph.initializer if each.name == "network.3.weight"]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[7] *= np.float32(1 + 1e-6)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    for node in model.graph.node:
        node.input[:] = ["w" if name == "network.3.weight" else name for name in node.input]
    path = store.root / "renamed.onnx"
    onnx.save(model, path)
    result = assay("verify", "lenet", "--root", store.root, "--file", path)
    assert result.code == 3
    assert "weights that are not in the graph: network.3.weight" in result.err
    assert "that nothing explains: w float32[16, 6, 5, 5], 9,600 bytes" in result.err
    assert "9 of 10" in result.out


def altered(store: Store, name: str, index: int, factor: float) -> Path:
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
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
    assert f"`assay verify MODEL --file {path} --bisect`" in result.err


def test_a_mismatch_is_told_to_programs_too(store: Store, assay: Callable[..., Result]) -> None:
    path = altered(store, "network.0.weight", 7, 2.0)
    words = ("verify", "lenet", "--root", store.root, "--file", path, "--json")
    found = json.loads(assay(*words).out)
    assert found["error"]["exit_code"] == 3
    (verdict,) = found["verdicts"]
    assert (verdict["status"], verdict["outputs"][0]["name"]) == ("mismatch", "logits")
    assert verdict["outputs"][0]["max_ratio"] > limits.K_MAX
    found = json.loads(assay(*words, "--bisect").out)
    assert found["error"]["exit_code"] == 3
    assert found["first"]["operator"] == "Conv"


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
    found = json.loads(result.out)
    assert found["status"] == "pass"
    assert found["audit"].pop("identical") == 10
    assert not any(found["audit"].values())
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "onnxruntime/engine"])
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


def test_a_mismatch_stays_a_mismatch_when_nothing_is_run_again(
    store: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "K", 0.01)  # no engine is that exact
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
    from engines import hardware

    if hardware.gpus():
        pytest.skip("this machine has a GPU")
    result = assay("verify", "lenet", "--root", store.root, "--engine", "tensorrt_rtx")
    assert result.code == 4
    assert "was not run on this machine" in result.err
    verdict = json.loads((store.root / "lenet/fp32/tensorrt_rtx/verdict.json").read_text())
    assert verdict["status"] == "not run"
    assert "no NVIDIA GPU" in verdict["reason"]
