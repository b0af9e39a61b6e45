"""Hostile records and manifests that name what is not there, or have fields of a wrong type."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.errors import DeployError
from pipeline.bundling.manifest import content_digest
from pipeline.training.checkpoint import TrainingCheckpoint
from pipeline.workflow import lock, records
from pipeline.workflow.digests import dump_json, parse_json, read_json, sha256_file
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members, pack, rerecorded, resigned
from tests.conftest import Result

Assay = Callable[..., Result]

GOOD = records.Record(
    stage="export",
    key="k",
    params={"model": "m"},
    inputs={"m/a": {"sha256": "0", "record": "m/train.json"}},
    outputs={"m/b": {"sha256": "0", "bytes": 1}},
    tools={"assay": "1"},
    facts={"name": "value"},
    started="2026-01-01",
    seconds=1.0,
)
WRONG: dict[str, dict[str, Any]] = {
    "a stage that is a number": {"stage": 1},
    "a key that is null": {"key": None},
    "a time that is text": {"seconds": "1"},
    "a time that is true": {"seconds": True},
    "a start that is a list": {"started": []},
    "params that are a list": {"params": []},
    "tools that are null": {"tools": None},
    "a tool that is a number": {"tools": {"assay": 1}},
    "a fact that is a list": {"facts": {"a": []}},
    "inputs that are a list": {"inputs": [1]},
    "an input that is text": {"inputs": {"a": "b"}},
    "an input without a digest": {"inputs": {"a": {"record": "b"}}},
    "an input without a record": {"inputs": {"a": {"sha256": "b"}}},
    "a record that is a number": {"inputs": {"a": {"sha256": "b", "record": 1}}},
    "a record elsewhere": {"inputs": {"a": {"sha256": "b", "record": "/etc/passwd"}}},
    "a record above": {"inputs": {"a": {"sha256": "b", "record": "../../x.json"}}},
    "a record with a NUL": {"inputs": {"a": {"sha256": "b", "record": "a\0b"}}},
    "outputs that are null": {"outputs": None},
    "an output that is a list": {"outputs": {"a": []}},
    "a size that is text": {"outputs": {"a": {"sha256": "b", "bytes": "1"}}},
    "a size that is true": {"outputs": {"a": {"sha256": "b", "bytes": True}}},
    "a digest that is a number": {"outputs": {"a": {"sha256": 1, "bytes": 1}}},
    "another schema": {"schema": 99},
    "a field that is unknown": {"more": 1},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_record_with_a_wrong_field_is_refused(case: str) -> None:
    good = dataclasses.asdict(GOOD)
    assert records.parse(good, "name") == GOOD
    with pytest.raises(DeployError, match=r"^name is "):
        records.parse({**good, **WRONG[case]}, "name")


@pytest.mark.parametrize("content", [None, [], "text", 1, True, {}])
def test_a_value_that_is_not_a_record_is_refused(content: object) -> None:
    with pytest.raises(DeployError, match=r"^name is "):
        records.parse(content, "name")


@pytest.mark.parametrize("field", [entry.name for entry in dataclasses.fields(records.Record)])
def test_a_record_without_a_field_is_refused(field: str) -> None:
    content = dataclasses.asdict(GOOD)
    del content[field]
    with pytest.raises(DeployError, match=r"^name is "):
        records.parse(content, "name")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"NaN",
        b"-Infinity",
        b"1e400",
        b'{"a": 1, "a": 2}',
        b'"\\ud800"',
        b'{"\\udfff": 1}',
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 50_000,
        b"9" * 5000,
        "{}".encode("utf-16"),
        b"{}" + b" " * (64 << 20),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_json_that_is_not_valid_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(DeployError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("value", ["\U0001f600", "µ\\u", {"a": [1, 2.5, None, True]}, -0.0, 1e308])
def test_json_that_is_valid_is_read(value: object) -> None:
    assert parse_json(dump_json(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


def _forge(built: Store, path: Path, **facts: object) -> Path:
    """Writes a bundle whose manifest has other facts, and digests that match.

    Args:
        facts: Of the manifest; `fp32` has those of the model at that precision.
    """
    contents = members(bundle_of(built))
    name = f"{FOLDER}/manifest.json"
    content = json.loads(contents[name])
    content["models"]["fp32"] |= facts.pop("fp32", {})
    forged = resigned({**contents, name: dump_json({**content, **facts})})
    return pack(path, list(forged.items()))


@pytest.mark.parametrize(
    "facts",
    [
        {"model": 3},
        {"model": None},
        {"labels": None},
        {"labels": "cat"},
        {"content": None},
        {"content": "0" * 64},
        {"chains": []},
        {"chains": {}},
        {"chains": {"": {}}},
        {"chains": {"": "lenet/train.json"}},
        {"chains": {"": [["lenet/train.json"]]}},
        {"chains": {"lenet": ["lenet/train.json"]}},
        {"chains": {"../": ["../lenet/train.json"]}},
        {"chains": {"lenet/": ["lenet/train.json"]}},
        {"models": None},
        {"models": {}},
        {"models": []},
        {"models": {"fp32": None}},
        {"models": {"fp32": {}}},
        {"fp32": {"graph": None}},
        {"fp32": {"graph": ["lenet/fp32/model.onnx"]}},
        {"fp32": {"golden": {}}},
        {"fp32": {"golden": "lenet/fp32/model.onnx"}},
        {"fp32": {"data": 3}},
        {"fp32": {"data": "/etc/passwd"}},
        {"fp32": {"engines": []}},
        {"fp32": {"engines": {"onnxruntime": None}}},
        {"fp32": {"engines": {"onnxruntime": {}}}},
        {"fp32": {"engines": {"onnxruntime": {"path": 1}}}},
        {"fp32": {"engines": {"onnxruntime": {"path": ["a"]}}}},
        {"fp32": {"engines": 3}},
    ],
    ids=str,
)
def test_a_manifest_with_a_wrong_field_is_refused(
    built: Store, tmp_path: Path, assay: Assay, facts: dict
) -> None:
    path = _forge(built, tmp_path / "forged.tar.zst", **facts)
    result = assay("check", "--trust", path)
    assert result.code == 1
    assert str(path) in result.err
    assert "assay-check-" not in result.err


@pytest.mark.parametrize("precision", ["fp64", "fp16", "", "../fp32"])
def test_a_manifest_with_another_precision_than_the_golden_file_is_refused(
    built: Store, tmp_path: Path, assay: Assay, precision: str
) -> None:
    contents = members(bundle_of(built))
    models = json.loads(contents[f"{FOLDER}/manifest.json"])["models"]
    path = _forge(built, tmp_path / "forged.tar.zst", models={precision: models["fp32"]})
    result = assay("check", "--trust", path)
    assert result.code == 1
    assert "is for fp32, but manifest.json says" in result.err


def test_an_unknown_engine_is_not_run_and_the_others_are_judged(
    built: Store, tmp_path: Path, assay: Assay
) -> None:
    engines = {
        name: {"path": f"lenet/fp32/{path}", "verdict": "pass", "built_with": {}}
        for name, path in (
            ("onnxruntime", "onnxruntime/engine.onnx"),
            ("warp_drive", "openvino/engine.zip"),
            ("../../evil", "pytorch/engine.pt2"),
            ("_onnxruntime", "pytorch/engine.pt2"),
        )
    }
    contents = members(bundle_of(built))
    manifest = json.loads(contents[f"{FOLDER}/manifest.json"])
    manifest["models"]["fp32"]["engines"] = engines
    digests = {name: entry["sha256"] for name, entry in manifest["members"].items()}
    content = content_digest(manifest, digests)
    path = _forge(built, tmp_path / "forged.tar.zst", models=manifest["models"], content=content)
    result = assay("check", "--trust", path, "--json")
    assert result.code == 0, result.err
    verdicts = {entry["subject"]: entry for entry in json.loads(result.out)["verdicts"]}
    assert {name for name in verdicts if verdicts[name]["status"] == "pass"} == {
        "graph",
        "onnxruntime",
    }
    assert "no engine 'warp_drive'" in verdicts["warp_drive"]["reason"]


def test_check_judges_one_engine_or_none(built: Store, assay: Assay) -> None:
    bundle = bundle_of(built)
    one = assay("check", "--trust", bundle, "--engine", "openvino", "--json")
    subjects = [entry["subject"] for entry in json.loads(one.out)["verdicts"]]
    assert (one.code, subjects) == (0, ["graph", "openvino"])
    other = assay("check", "--trust", bundle, "--engine", "openvin")
    assert other.code == 2
    assert "did you mean 'openvino'" in other.err
    none = assay("check", "--trust", bundle, "--digests-only", "--json")
    assert (none.code, json.loads(none.out)["verdicts"]) == (0, [])
    assert assay("check", "--trust", bundle, "--digests-only", "--engine", "openvino").code == 2
    small = assay("check", "--trust", bundle, "--max-size", "0.0001")
    assert small.code == 1
    assert "--max-size GIB" in small.err


@pytest.mark.parametrize("part", ["lenet/fp32/golden.npz", "lenet/fp32/model.onnx"])
def test_errors_of_a_check_name_the_bundle_and_the_member(
    built: Store, tmp_path: Path, assay: Assay, part: str
) -> None:
    contents = rerecorded(members(bundle_of(built)), {part: b""})
    path = pack(tmp_path / "forged.tar.zst", list(contents.items()))
    result = assay("check", "--trust", path)
    assert result.code == 1
    assert f"{path}: member {part} is not" in result.err
    assert "assay-check-" not in result.err


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_what_is_not_a_file_is_neither_read_nor_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "record.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (read_json, sha256_file):
        with pytest.raises(DeployError, match="is not a file"):
            read(path)
    with pytest.raises(DeployError, match="is not a file"):
        TrainingCheckpoint(path, "").load()
    if kind != "folder":
        with pytest.raises(OSError, match=str(path)), lock.held(path, "a stage", 0):
            pass
