"""Commands of stages with several precisions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]
EXPORT = ("export", "edge", "--precision")


def test_a_stage_runs_once_for_each_precision(assay: Assay, tmp_path: Path) -> None:
    result = assay(*EXPORT, "fp32,fp16", "--root", tmp_path)
    assert result.code == 1
    assert "error: fp32, fp16: no checkpoint here" in result.err
    assert assay("train", "edge", "--root", tmp_path).code == 0
    result = assay(*EXPORT, "fp32,fp16,fp32", "--root", tmp_path, "--json")
    assert result.code == 0, result.err
    documents = json.loads(result.out)["precisions"]
    assert documents.keys() == {"fp32", "fp16"}
    for precision, document in documents.items():
        (export,) = document["outcomes"]
        assert any(f"edge/{precision}/" in name for name in export["files"])
        assert (tmp_path / f"edge/{precision}/model.onnx").is_file()
    # The option may also be repeated.
    result = assay(*EXPORT, "fp32", "--precision", "fp16", "--root", tmp_path)
    assert "edge fp32 export: nothing changed, skipped" in result.err
    assert "edge fp16 export: nothing changed, skipped" in result.err
    result = assay(*EXPORT, "fp16", "--root", tmp_path, "--json")
    assert list(json.loads(result.out)) == ["outcomes"]


def test_a_failure_at_one_precision_leaves_the_others_their_turn(
    assay: Assay, tmp_path: Path
) -> None:
    assert assay("train", "edge", "--root", tmp_path).code == 0
    assert assay(*EXPORT, "fp32,bf16", "--root", tmp_path).code == 0
    (tmp_path / "edge/fp32/model.onnx").write_bytes(b"damaged")
    words = ("verify", "edge", "--precision", "fp32,fp16,bf16", "--root", tmp_path)
    result = assay(*words, "--json")
    assert result.code == 1
    document = json.loads(result.out)
    assert "fp32: " in document["error"]["message"]
    assert "fp16: " in document["error"]["message"]
    assert "error" in document["precisions"]["fp32"]
    assert document["precisions"]["bf16"]["outcomes"]
    assert (tmp_path / "edge/bf16/verdict.json").is_file()


@pytest.mark.parametrize("stage", ["export", "verify", "run"])
def test_an_unknown_precision_in_a_list_runs_nothing(
    assay: Assay, tmp_path: Path, stage: str
) -> None:
    words = (stage, "edge", "--precision", "fp32,fp31", "--root", tmp_path / "artifacts")
    result = assay(*words)
    assert result.code == 2
    assert "unknown precision 'fp31'" in result.err
    assert not (tmp_path / "artifacts").exists()


def test_the_chain_runs_at_each_precision(assay: Assay, store: Store) -> None:
    result = assay(
        *("run", "lenet", "--precision", "fp32,fp16", "--engine", "onnxruntime"),
        *("--batch", "1", "--budget", "0.1", "--root", store.root, "--dist", store.dist, "--json"),
    )
    assert result.code == 0, result.err
    documents = json.loads(result.out)["precisions"]
    for precision in ("fp32", "fp16"):
        assert documents[precision]["summary"]["precision"] == precision
        assert (store.dist / f"lenet-{precision}.tar.zst").is_file()
