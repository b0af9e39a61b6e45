"""Bundles of one model from several machines, as one."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipeline.bundling import archive
from pipeline.workflow.digests import dump_json
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members, pack, rerecorded, resigned
from tests.conftest import Result

Assay = Callable[..., Result]
ENGINE = "lenet/fp32/onnxruntime/engine.onnx"


@pytest.fixture
def other(built: Store, tmp_path: Path) -> Path:
    """A bundle whose ONNX Runtime engine was built on another machine."""
    contents = members(bundle_of(built))
    engine = contents[f"{FOLDER}/{ENGINE}"] + b"\x72\x00"  # an empty field of a later version
    contents = rerecorded(contents, {ENGINE: engine})
    name = f"{FOLDER}/manifest.json"
    manifest = json.loads(contents[name])
    entry = manifest["models"]["fp32"]["engines"]["onnxruntime"]
    entry["built_with"] = {**entry["built_with"], "gpu_name": "NVIDIA H100 80GB HBM3"}
    contents = resigned({**contents, name: dump_json(manifest)})
    return pack(tmp_path / "other.tar.zst", [*contents.items()])


def test_a_merged_bundle_has_the_engines_of_both(
    built: Store, other: Path, tmp_path: Path, assay: Assay
) -> None:
    path = tmp_path / "both.tar.zst"
    result = assay("merge", bundle_of(built), other, "--out", path, "--json")
    assert result.code == 0, result.err
    manifest = json.loads(result.out)
    engines = manifest["models"]["fp32"]["engines"]
    label = "onnxruntime@nvidia-h100-80gb-hbm3"
    assert [name for name in engines if "@" in name] == [label]
    assert engines[label]["path"] == f"targets/nvidia-h100-80gb-hbm3/{ENGINE}"
    # Only the other engine and the records that name it are not there already.
    assert path.stat().st_size < bundle_of(built).stat().st_size * 1.2

    result = assay("check", "--trust", path, "--engine", label, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert {entry["subject"]: entry["status"] for entry in document["verdicts"]} == {
        "graph": "pass",
        label: "pass",
    }
    alone = json.loads(assay("check", bundle_of(built), "--digests-only", "--json").out)
    assert document["links"] == 2 * alone["links"]


def test_the_bill_of_materials_lists_the_files_of_both(
    built: Store, other: Path, tmp_path: Path, assay: Assay
) -> None:
    path = tmp_path / "both.tar.zst"
    assert assay("merge", bundle_of(built), other, "--out", path).code == 0
    contents = members(path)
    bill = json.loads(contents["both/bom.cdx.json"])
    validator = JsonStrictValidator(SchemaVersion.V1_7)
    assert validator.validate_str(contents["both/bom.cdx.json"].decode()) is None
    listed = {
        component["name"]: component["hashes"][0]["content"]
        for component in bill["components"]
        if component["type"] == "file"
    }
    for name in (ENGINE, f"targets/nvidia-h100-80gb-hbm3/{ENGINE}"):
        assert listed[name] == hashlib.sha256(contents[f"both/{name}"]).hexdigest()
    once = json.loads(members(bundle_of(built))[f"{FOLDER}/bom.cdx.json"])
    assert bill["serialNumber"] != once["serialNumber"]


def test_the_records_of_each_machine_are_checked(
    built: Store, other: Path, tmp_path: Path, assay: Assay
) -> None:
    path = tmp_path / "both.tar.zst"
    assert assay("merge", bundle_of(built), other, "--out", path).code == 0
    contents = {
        name.replace("both/", f"{FOLDER}/", 1): content for name, content in members(path).items()
    }
    engine = f"{FOLDER}/targets/nvidia-h100-80gb-hbm3/{ENGINE}"
    forged = resigned({**contents, engine: contents[engine] + b"\x7a\x00"})
    result = assay("check", "--trust", pack(tmp_path / "forged.tar.zst", [*forged.items()]))
    assert result.code == 1
    assert f"{ENGINE} is not the file that lenet/fp32/onnxruntime/build.json names" in result.err


def test_engines_of_several_machines_keep_their_names(
    built: Store, tmp_path: Path, assay: Assay
) -> None:
    """As if the second and the third machine had merged their bundles before."""
    paths = []
    for number, cpu in enumerate(("CPU A", "CPU B", "CPU C", "CPU C")):
        contents = members(bundle_of(built))
        engine = contents[f"{FOLDER}/{ENGINE}"] + b"\x72" + bytes([number]) + b"x" * number
        contents = rerecorded(contents, {ENGINE: engine})
        manifest = json.loads(contents[f"{FOLDER}/manifest.json"])
        for entry in manifest["models"]["fp32"]["engines"].values():
            entry["built_with"]["cpu"] = cpu
        contents = resigned({**contents, f"{FOLDER}/manifest.json": dump_json(manifest)})
        paths.append(pack(tmp_path / f"{number}.tar.zst", [*contents.items()]))
    first, second, whole = (tmp_path / f"{name}.tar.zst" for name in ("ac", "bc", "abc"))
    assert assay("merge", paths[0], paths[2], "--out", first).code == 0
    assert assay("merge", paths[1], paths[3], "--out", second).code == 0
    result = assay("merge", first, second, "--out", whole, "--json")
    assert result.code == 0, result.err
    engines = json.loads(result.out)["models"]["fp32"]["engines"]
    ours = {name: e for name, e in engines.items() if name.startswith("onnxruntime")}
    assert {
        name: entry["built_with"]["cpu"] for name, entry in ours.items() if "_" not in name
    } == {
        "onnxruntime": "CPU A",
        "onnxruntime@cpu-b": "CPU B",
        "onnxruntime@cpu-c": "CPU C",
        "onnxruntime@cpu-c-2": "CPU C",
    }
    assert len({entry["path"] for entry in ours.values()}) == len(ours)
    assert assay("check", whole, "--digests-only").code == 0


def test_a_file_that_came_meanwhile_is_not_replaced(
    built: Store, other: Path, tmp_path: Path, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "both.tar.zst", archive.write

    def late(*arguments: Any, **more: Any) -> None:
        write(*arguments, **more)
        out.write_text("precious")

    monkeypatch.setattr(archive, "write", late)
    result = assay("merge", bundle_of(built), other, "--out", out)
    assert result.code == 2
    assert "exists, and is not replaced" in result.err
    assert out.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_the_signature_of_each_bundle_is_verified(
    built: Store, other: Path, tmp_path: Path, assay: Assay
) -> None:
    key, first = tmp_path / "key", tmp_path / "first.tar.zst"
    shutil.copy(bundle_of(built), first)
    assert assay("keygen", key).code == 0
    assert assay("sign", first, "--key", key).code == 0
    path = tmp_path / "both.tar.zst"
    words = ("merge", first, other, "--out", path, "--public-key", f"{key}.pub")
    result = assay(*words)
    assert result.code == 1
    assert f"{other}.sig does not exist" in result.err
    assert not path.exists()
    assert assay("sign", other, "--key", key).code == 0
    result = assay(*words)
    assert result.code == 0, result.err
    assert f"{first}: signed by the key SHA256:" in result.out
    assert f"{other}: signed by the key SHA256:" in result.out
    assert not Path(f"{path}.sig").exists()


def test_a_bundle_merged_with_itself_is_the_same(
    built: Store, tmp_path: Path, assay: Assay
) -> None:
    path = tmp_path / "both.tar.zst"
    result = assay("merge", bundle_of(built), bundle_of(built), "--out", path, "--json")
    alone = assay("check", bundle_of(built), "--digests-only", "--json")
    once, twice = json.loads(alone.out)["manifest"], json.loads(result.out)
    assert twice["models"] == once["models"]
    assert twice["content"] == once["content"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lenet/fp32/model.onnx": b"\x72\x00"}, "has another lenet/fp32/model.onnx in fp32"),
        ({"labels": ["cat"]}, "labels is ['cat']"),
    ],
)
def test_bundles_of_other_models_are_refused(
    built: Store, tmp_path: Path, assay: Assay, change: dict, words: str
) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/manifest.json"
    if "labels" in change:
        contents[name] = dump_json({**json.loads(contents[name]), **change})
        contents = resigned(contents)
    else:
        changed = {path: contents[f"{FOLDER}/{path}"] + more for path, more in change.items()}
        contents = rerecorded(contents, changed)
    other, out = pack(tmp_path / "other.tar.zst", [*contents.items()]), tmp_path / "out.tar.zst"
    result = assay("merge", bundle_of(built), other, "--out", out)
    assert result.code == 1
    assert words in result.err
    assert not out.exists()


def test_merge_takes_several_bundles_and_a_name(built: Store, tmp_path: Path, assay: Assay) -> None:
    one = assay("merge", bundle_of(built), "--out", tmp_path / "a.tar.zst")
    assert (one.code, "name two or more" in one.err) == (2, True)
    there = assay("merge", bundle_of(built), bundle_of(built), "--out", bundle_of(built))
    assert (there.code, "exists, and is not replaced" in there.err) == (2, True)
    two = assay("merge", bundle_of(built), bundle_of(built), "--out", tmp_path / "a.zip")
    assert (two.code, ".tar.zst" in two.err) == (2, True)


@pytest.mark.parametrize("same", [False, True])
def test_builds_of_an_engine_stay_with_it(
    built: Store, other: Path, tmp_path: Path, assay: Assay, same: bool
) -> None:
    contents = members(bundle_of(built) if same else other)
    name, label = f"{FOLDER}/manifest.json", "lenet/fp32/onnxruntime/builds.json"
    record = f"{FOLDER}/lenet/fp32/onnxruntime/build.json"
    builds = b"{}\n"
    build = json.loads(contents[record])
    build["outputs"][label] = {"sha256": hashlib.sha256(builds).hexdigest(), "bytes": len(builds)}
    manifest = json.loads(contents[name])
    manifest["models"]["fp32"]["engines"]["onnxruntime"]["builds"] = label
    manifest["members"][label] = {}
    contents |= {record: dump_json(build), f"{FOLDER}/{label}": builds}
    path = pack(
        tmp_path / "repeated.tar.zst",
        [*resigned({**contents, name: dump_json(manifest)}).items()],
    )
    merged = tmp_path / "both.tar.zst"
    result = assay("merge", bundle_of(built), path, "--out", merged, "--json")
    assert result.code == 0, result.err
    engines = json.loads(result.out)["models"]["fp32"]["engines"]
    own = "onnxruntime" if same else "onnxruntime@nvidia-h100-80gb-hbm3"
    place = engines[own]["builds"]
    assert place.startswith("targets/")
    assert place.endswith(f"/{label}")
    assert members(merged)[f"both/{place}"] == builds


def test_builds_that_no_record_made_are_refused(built: Store, tmp_path: Path, assay: Assay) -> None:
    contents = members(bundle_of(built))
    name, label = f"{FOLDER}/manifest.json", "lenet/fp32/onnxruntime/builds.json"
    manifest = json.loads(contents[name])
    manifest["models"]["fp32"]["engines"]["onnxruntime"]["builds"] = label
    path = tmp_path / "forged.tar.zst"
    pack(path, [*resigned({**contents, name: dump_json(manifest)}).items()])
    result = assay("check", path, "--digests-only")
    assert (result.code, "which is not a member" in result.err) == (1, True)
    manifest["members"][label] = {}
    contents |= {f"{FOLDER}/{label}": b"{}\n", name: dump_json(manifest)}
    pack(path, [*resigned(contents).items()])
    result = assay("check", path, "--digests-only")
    assert (result.code, f"no record made {label}" in result.err) == (1, True)
