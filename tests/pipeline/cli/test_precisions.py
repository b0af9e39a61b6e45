"""Commands of stages with several precisions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import NotMetError, ParityError, UsageError
from pipeline.cli import main, precisions
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
    assert document["precisions"]["fp32"]["error"]["exit_code"] == 1
    # Each failure has its own remedy.
    assert "assay export edge --precision fp16" in document["error"]["hint"]
    assert document["precisions"]["fp32"]["error"]["hint"] in document["error"]["hint"]
    assert document["precisions"]["bf16"]["outcomes"]
    assert (tmp_path / "edge/bf16/verdict.json").is_file()


def test_options_of_quantized_precisions_are_for_those(assay: Assay, tmp_path: Path) -> None:
    assert assay("train", "edge", "--root", tmp_path).code == 0
    words = ("--root", tmp_path, "--max-drop", "10")
    result = assay(*EXPORT, "fp32,int8", *words)
    assert result.code == 0, result.err
    assert [line for line in result.out.splitlines() if line.endswith(":")] == ["fp32:", "int8:"]
    result = assay(*EXPORT, "fp32,fp16", *words)
    assert result.code == 2
    assert "--max-drop is for int8 and fp8, not for fp32" in result.err


def test_wrong_usage_at_one_precision_loses_nothing(
    assay: Assay, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("bench", "lenet", "--engine", "onnxruntime", "--batch", "1", "--budget", "0.1")
    more = ("--root", store.root, "--precision", "fp32,fp16", "--against", "fp16", "--json")
    result = assay(*words, *more)
    document = json.loads(result.out)
    assert result.code == 1  # fp16 is not built; that is told besides what usage is wrong
    assert "--against fp16 and --precision fp16 are the same" in result.err
    assert document["precisions"].keys() == {"fp32", "fp16"}

    def slower(*_arguments: object) -> None:
        raise NotMetError("slower", "go back", {"seconds": 1})

    monkeypatch.setitem(main._AFTER, "compare", slower)
    result = assay("bench", "lenet", "--root", store.root, "--precision", "fp32", "--history")
    assert result.code == 5


@pytest.mark.parametrize("option", [("--bisect",), ("--file", "x.onnx")])
def test_what_is_for_one_file_takes_one_precision(
    assay: Assay, built: Store, option: tuple[str, ...]
) -> None:
    words = ("verify", "lenet", "--root", built.root, "--precision", "fp32,fp16")
    result = assay(*words, *option)
    assert result.code == 2
    assert f"{option[0]} takes one precision" in result.err


def test_errors_of_several_precisions_are_one() -> None:
    def run(arguments: dict[str, str]) -> dict[str, str]:
        if arguments["precision"] == "fp32":
            raise NotMetError("slower", "go back", {"seconds": 1})
        if arguments["precision"] == "fp16":
            raise ParityError("differs", "look")
        raise UsageError("not int8", "leave it out")

    with pytest.raises(NotMetError) as raised:
        precisions.each(run, {"precision": ["fp32", "fp16", "int8"]})
    assert raised.value.message == "fp32: slower; fp16: differs; int8: not int8"
    assert raised.value.hint == "go back; look; leave it out"
    assert raised.value.details["precisions"]["fp32"]["seconds"] == 1
    with pytest.raises(ParityError):
        precisions.each(run, {"precision": ["fp16", "int8"]})
    with pytest.raises(UsageError, match=r"^not int8$"):
        precisions.each(run, {"precision": ["int8", "fp16"]})


def test_the_weights_of_all_precisions_are_trained_once() -> None:
    asked: list[dict[str, object]] = []
    arguments = {"precision": ["fp32", "fp16"], "retrain": True}
    precisions.each(lambda arguments: asked.append(arguments) or {}, arguments)
    assert asked == [{"precision": "fp32", "retrain": True}, {"precision": "fp16"}]


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
