"""A bundle as a model of MLflow: it loads, predicts, and is the graph that was proved."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.golden import file as goldens
from pipeline.workflow.runner import Store
from tests.bundles import bundle_of
from tests.conftest import Result

Assay = Callable[..., Result]
# MLflow's own code and that of its libraries.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_model_loads_and_predicts(built: Store, assay: Assay, tmp_path: Path) -> None:
    pytest.importorskip("mlflow.onnx", exc_type=ImportError)
    import mlflow

    folder = tmp_path / "model"
    result = assay("mlflow", bundle_of(built), folder, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    graph = built.root / "lenet/fp32/model.onnx"
    assert (folder / "model.onnx").read_bytes() == graph.read_bytes()
    assert facts["assay.graph_sha256"] == hashlib.sha256(graph.read_bytes()).hexdigest()

    golden = goldens.load(built.root / "lenet/fp32/golden.npz")
    rows = golden.inputs["image"][:4]
    model = mlflow.pyfunc.load_model(str(folder))
    outputs = model.predict({"image": rows})["logits"]
    assert np.abs(outputs - golden.native["logits"][:4]).max() < 1e-4
    assert model.metadata.metadata["labels"][9] == "ankle boot"
    (spec,) = model.metadata.signature.inputs.inputs
    assert (spec.name, spec.type, spec.shape) == ("image", np.uint8, (-1, 1, 28, 28))
    with pytest.raises(mlflow.exceptions.MlflowException):
        model.predict({"image": rows.astype(np.float32)})
    example = model.input_example
    assert np.array_equal(np.asarray(example["image"], np.uint8), golden.feeds(1)["image"])
    assert len(mlflow.onnx.load_model(str(folder)).graph.node) > 3


def test_an_existing_folder_is_kept(built: Store, assay: Assay, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    result = assay("mlflow", bundle_of(built), tmp_path / "model")
    assert result.code == 2
    assert "name a new folder, or remove this one first" in result.err


def test_a_damaged_bundle_writes_nothing(store: Store, assay: Assay, tmp_path: Path) -> None:
    pytest.importorskip("mlflow.onnx", exc_type=ImportError)
    content = bytearray(bundle_of(store).read_bytes())
    content[len(content) // 2] ^= 1
    bundle_of(store).write_bytes(content)
    assert assay("mlflow", bundle_of(store), tmp_path / "model").code == 1
    assert not (tmp_path / "model").exists()


def test_without_mlflow_the_hint_installs_it(
    built: Store, assay: Assay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.onnx", None)
    result = assay("mlflow", bundle_of(built), tmp_path / "model")
    assert result.code == 4
    assert "hint: pip install mlflow-skinny pandas" in result.err
