"""The bundle stage: the content of a bundle, and its reproducibility."""

import ast
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from assay import load
from pipeline.bundling import archive, attestation, bom
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members, opened
from tests.conftest import Process, Result


def test_two_runs_give_the_same_bytes(store: Store, assay: Callable[..., Result]) -> None:
    first = bundle_of(store).read_bytes()
    words = ("bundle", "lenet", "--root", store.root, "--dist", store.dist, "--force")
    assert assay(*words).code == 0
    assert bundle_of(store).read_bytes() == first


@pytest.mark.slow(1)
def test_two_folders_give_the_same_bytes(
    built: Store, tmp_path: Path, process: Callable[..., Process]
) -> None:
    shutil.copytree(built.root, tmp_path / "artifacts")
    assert process("bundle", "lenet").run().code == 0
    assert (tmp_path / f"dist/{FOLDER}.tar.zst").read_bytes() == bundle_of(built).read_bytes()


def test_an_engine_that_is_not_up_to_date_can_be_left_out(
    store: Store, assay: Callable[..., Result]
) -> None:
    engine = next((store.root / "lenet/fp32/onnxruntime").glob("engine.*"))
    engine.write_bytes(engine.read_bytes() + b"\0")
    where = ("--root", store.root, "--dist", store.dist)
    result = assay("bundle", "lenet", *where)
    assert result.code == 1
    hint = result.err.splitlines()[-1]
    assert "or leave onnxruntime out: `assay bundle lenet --engine " in hint
    words = hint.rpartition("`assay ")[2].rstrip("`").split()
    assert assay(*words, "--no-measurements").code == 0


OPTIONAL = {"lenet/checkpoint.safetensors", "lenet/fp32/model.pt2"}


def test_it_holds_every_artifact_that_the_target_needs_and_its_record(built: Store) -> None:
    names = {name.removeprefix(f"{FOLDER}/") for name in members(bundle_of(built))}
    artifacts = {
        str(path.relative_to(built.root))
        for path in built.root.rglob("*")
        if path.is_file()
        and not {".locks", ".reference"} & {*path.parts}
        and path.name != "bundle.json"
    }
    data = {name for name in artifacts if name.startswith("data/")} - {
        "data/fashion-mnist/data.json"
    }
    ours = {"manifest.json", "manifest.sha256", "README.md", attestation.MEMBER, bom.MEMBER}
    assert names == artifacts - data - OPTIONAL | ours


def test_the_checkpoint_and_the_program_are_included_on_request(
    store: Store, assay: Callable[..., Result]
) -> None:
    words = ("bundle", "lenet", "--root", store.root, "--dist", store.dist)
    assert assay(*words, "--include", "source,checkpoint").code == 0
    path = bundle_of(store)
    names = {name.removeprefix(f"{FOLDER}/") for name in members(path)}
    assert names >= OPTIONAL
    assert assay("check", "--digests-only", path).code == 0
    wrong = assay(*words, "--include", "weights")
    assert wrong.code == 2
    assert "checkpoint, source" in wrong.err


def test_the_python_of_the_readme_runs_where_the_bundle_is_unpacked(
    built: Store, tmp_path: Path
) -> None:
    with opened(bundle_of(built)) as files:
        files.extractall(tmp_path)  # our own, and some Python 3.11 have no filters
    folder = tmp_path / FOLDER
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 10
    command = [sys.executable, "-I", "-c", code]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    labels = json.loads((folder / "manifest.json").read_text())["labels"]
    assert ast.literal_eval(ran.stdout)[0] in labels


def test_a_mismatched_engine_is_not_bundled(store: Store, assay: Callable[..., Result]) -> None:
    from pipeline.stages import verify
    from pipeline.workflow import runner
    from pipeline.workflow.artifacts import ENGINE_VERDICT
    from pipeline.workflow.digests import write_json

    params = verify.Params(model="lenet", engine="pytorch")

    def fail(_inputs: object, outputs: dict, _params: object) -> None:
        write_json(outputs[ENGINE_VERDICT], {"status": "mismatch", "reason": "planted"})

    failing = dataclasses.replace(verify.STAGE, run=fail)
    runner.run(failing, params, dataclasses.replace(store, force=True))
    where = ("--root", store.root, "--dist", store.dist)
    result = assay("bundle", "lenet", *where)
    assert result.code == 3
    assert "pytorch is not proved equal" in result.err
    assert assay("bundle", "lenet", *where, "--engine", "onnxruntime").code == 0


def test_attached_files_are_members_and_a_changed_one_is_packed_anew(
    store: Store, assay: Callable[..., Result], tmp_path: Path
) -> None:
    licence, card = tmp_path / "LICENSE", tmp_path / "card of lenet.md"
    licence.write_text("do what you want")
    card.write_text("# LeNet")
    words = ("bundle", "lenet", "--root", store.root, "--dist", store.dist)
    words = (*words, "--attach", f"{card},{licence}")
    assert assay(*words).code == 0
    first = members(bundle_of(store))
    assert first[f"{FOLDER}/documents/LICENSE"] == b"do what you want"
    assert first[f"{FOLDER}/documents/card of lenet.md"] == b"# LeNet"
    assert "- `documents/LICENSE` is enclosed" in first[f"{FOLDER}/README.md"].decode()
    bill = first[f"{FOLDER}/bom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(bill) is None
    model = json.loads(bill)["metadata"]["component"]
    assert model["licenses"] == [{"license": {"name": "documents/LICENSE"}}]
    assert assay("check", bundle_of(store), "--digests-only").code == 0
    again = assay(*words)
    assert "nothing changed, skipped" in again.err
    licence.write_text("ask first")
    assert assay(*words).code == 0
    second = members(bundle_of(store))
    assert second[f"{FOLDER}/documents/LICENSE"] == b"ask first"
    contents = [json.loads(each[f"{FOLDER}/manifest.json"])["content"] for each in (first, second)]
    assert contents[0] == contents[1]  # documents do nothing


def test_a_file_that_changes_while_it_is_packed_is_an_error(
    store: Store, assay: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, write = tmp_path / "notes.txt", archive.write
    notes.write_text("one")

    def late(*arguments: Any) -> None:
        notes.write_text("two")
        write(*arguments)

    monkeypatch.setattr(archive, "write", late)
    before = bundle_of(store).read_bytes()
    where = ("--root", store.root, "--dist", store.dist)
    result = assay("bundle", "lenet", *where, "--attach", notes)
    assert result.code == 1
    assert "notes.txt changed while it was read" in result.err
    assert bundle_of(store).read_bytes() == before


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["missing"], "does not exist"),
        (["folder"], "is not a file"),
        (["a/terms", "b/TERMS"], "have the same name in the bundle"),
        (["a/terms", "a/terms"], "have the same name in the bundle"),
        (["a/back\\slash"], "cannot be attached by this name"),
        (["a/end."], "cannot be attached by this name"),
        ([".."], "is not a file"),
        (["a/config.pbtxt"], "cannot be attached by this name"),
    ],
)
def test_what_cannot_be_attached_is_named(
    store: Store, assay: Callable[..., Result], tmp_path: Path, names: list[str], words: str
) -> None:
    for name in ("a/terms", "b/TERMS", "a/back\\slash", "a/end.", "a/config.pbtxt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "folder").mkdir()
    before = bundle_of(store).read_bytes()
    attach = ",".join(str(tmp_path / name) for name in names)
    where = ("--root", store.root, "--dist", store.dist)
    result = assay("bundle", "lenet", *where, "--attach", attach)
    assert result.code in (1, 2)
    assert words in result.err
    assert bundle_of(store).read_bytes() == before


@pytest.mark.slow(20)
def test_one_bundle_holds_several_precisions(store: Store, assay: Callable[..., Result]) -> None:
    where = ("--root", store.root, "--dist", store.dist)
    for words in (
        ("export", "lenet", "--precision", "fp16"),
        ("verify", "lenet", "--precision", "fp16"),
        ("build", "lenet", "--precision", "fp16", "--engine", "onnxruntime"),
        ("verify", "lenet", "--precision", "fp16", "--engine", "onnxruntime"),
    ):
        assert assay(*words, *where).code == 0
    words = ("bundle", "lenet", "--precision", "fp16,fp32", "--no-measurements", *where)
    result = assay(*words)
    assert result.code == 0, result.err
    assert "without openvino in fp16: it is not built" in result.err
    path = store.dist / "lenet-fp32+fp16.tar.zst"
    assert "nothing changed, skipped" in assay(*words).err

    result = assay("check", "--trust", path, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert {*document["manifest"]["models"]} == {"fp32", "fp16"}
    passed = {
        (verdict["precision"], verdict["subject"])
        for verdict in document["verdicts"]
        if verdict["status"] == "pass"
    }
    assert passed >= {
        (name, part) for name in ("fp32", "fp16") for part in ("graph", "onnxruntime")
    }
    assert ("fp16", "openvino") not in passed
    table = assay("check", "--trust", path, "--engine", "onnxruntime").out
    assert [row.split()[1] for row in table.splitlines() if "pass" in row] == [
        *("fp32", "fp32", "fp16", "fp16")
    ]
    only = assay("check", "--trust", path, "--precision", "fp16", "--json")
    assert {entry["precision"] for entry in json.loads(only.out)["verdicts"]} == {"fp16"}
    wrong = assay("check", "--trust", path, "--precision", "int8")
    assert wrong.code == 2
    assert "available: fp32, fp16" in wrong.err

    loaded = {}
    for precision in ("fp16", None):
        with load(path, engine="onnxruntime", precision=precision) as predictor:
            loaded[precision] = predictor.precision
    assert loaded == {"fp16": "fp16", None: "fp32"}


def test_a_precision_without_an_engine_is_not_bundled(
    store: Store, assay: Callable[..., Result]
) -> None:
    where = ("--root", store.root, "--dist", store.dist)
    result = assay("bundle", "lenet", "--precision", "fp32,fp16", *where)
    assert result.code == 1
    assert "`assay export lenet --precision fp16" in result.err
    assert not (store.dist / "lenet-fp32+fp16.tar.zst").exists()
