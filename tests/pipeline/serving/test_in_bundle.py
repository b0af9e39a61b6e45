"""A Triton model repository inside a bundle."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.bundling import archive
from pipeline.workflow.digests import dump_json
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members, opened, pack, resigned
from tests.conftest import Result

pytest.importorskip("tritonclient")
Assay = Callable[..., Result]
MODEL = "triton/lenet_fp32_onnxruntime"


def where(store: Store) -> tuple[object, ...]:
    return ("--root", store.root, "--dist", store.dist)


@pytest.fixture
def bundle(store: Store, assay: Assay) -> Path:
    assert assay("bundle", "lenet", *where(store), "--include", "triton").code == 0
    return bundle_of(store)


def test_the_repository_in_a_bundle_is_that_of_the_command(
    bundle: Path, store: Store, assay: Assay, tmp_path: Path
) -> None:
    assert assay("triton", "lenet", tmp_path / "repository", *where(store)).code == 0
    expected = {
        f"{FOLDER}/triton/{path.relative_to(tmp_path / 'repository')}": path.read_bytes()
        for path in (tmp_path / "repository").rglob("*")
        if path.is_file()
    }
    contents = members(bundle)
    assert {name: contents[name] for name in contents if "/triton/" in name} == expected
    listed = json.loads(contents[f"{FOLDER}/manifest.json"])["members"]
    assert all(name.removeprefix(f"{FOLDER}/") in listed for name in expected)
    with opened(bundle) as files:
        (graph,) = [info for info in files if info.name == f"{FOLDER}/{MODEL}/1/model.onnx"]
        assert graph.islnk()
        assert graph.linkname == f"{FOLDER}/lenet/fp32/model.onnx"
    readme = contents[f"{FOLDER}/README.md"].decode()
    assert 'tritonserver --model-repository="$PWD/triton"' in readme


def test_a_bundle_with_a_repository_has_the_same_bytes_again(
    bundle: Path, store: Store, assay: Assay
) -> None:
    before = bundle.read_bytes()
    words = ("bundle", "lenet", *where(store), "--include", "triton", "--force")
    assert assay(*words).code == 0
    assert bundle.read_bytes() == before


def test_check_reads_the_repository(bundle: Path, assay: Assay) -> None:
    result = assay("check", bundle, "--trust", "--engine", "onnxruntime")
    assert result.code == 0, result.err
    assert re.search(r"^triton: [0-9] Triton models, no mistake found", result.out, re.MULTILINE)
    result = assay("check", bundle, "--digests-only")
    assert result.code == 0
    assert "Triton models" not in result.out


def changed(bundle: Path, changes: dict[str, bytes]) -> Path:
    """Changes files of the repository, and its list of files and the manifest to match."""
    contents = members(bundle)
    marker = f"{FOLDER}/triton/assay-triton.json"
    listed = json.loads(contents[marker])
    manifest = json.loads(contents[f"{FOLDER}/manifest.json"])
    for name, content in changes.items():
        digest = hashlib.sha256(content).hexdigest()
        listed["files"][name.removeprefix("triton/")] = digest
        contents[f"{FOLDER}/{name}"] = content
        manifest["members"].setdefault(name, {"sha256": digest, "bytes": len(content)})
    contents[marker] = dump_json(listed)
    contents[f"{FOLDER}/manifest.json"] = dump_json(manifest)
    return pack(bundle.with_name("changed.tar.zst"), [*resigned(contents).items()])


def test_a_configuration_that_contradicts_the_model_is_refused(bundle: Path, assay: Assay) -> None:
    config = members(bundle)[f"{FOLDER}/{MODEL}/config.pbtxt"].replace(b"TYPE_UINT8", b"TYPE_FP32")
    path = changed(bundle, {f"{MODEL}/config.pbtxt": config})
    result = assay("check", path, "--trust")
    assert result.code == 1
    assert "error: the model repository triton of the bundle" in result.err


@pytest.mark.parametrize("option", ["--trust", "--digests-only"])
@pytest.mark.parametrize("name", [f"{MODEL}/1/model.onnx", f"{MODEL}/1/model.plan"])
def test_a_file_that_no_record_made_is_refused(
    bundle: Path, assay: Assay, name: str, option: str
) -> None:
    graph = members(bundle)[f"{FOLDER}/lenet/fp32/onnxruntime/engine.onnx"]
    contents = members(bundle)
    config = contents[f"{FOLDER}/{MODEL}/config.pbtxt"]
    other = graph + b"\x72\x00"  # an empty field of a later version
    old = hashlib.sha256(contents[f"{FOLDER}/{MODEL}/1/model.onnx"]).hexdigest()
    changes = {name: other}
    if name.endswith(".onnx"):
        new = hashlib.sha256(other).hexdigest()
        changes[f"{MODEL}/config.pbtxt"] = config.replace(old.encode(), new.encode())
    result = assay("check", changed(bundle, changes), option)
    assert result.code == 1
    assert f"member {name} is neither a graph nor an engine of the bundle" in result.err


PROGRAM = b"import os\n"


@pytest.mark.parametrize("option", ["--trust", "--digests-only"])
@pytest.mark.parametrize(
    "name",
    [
        "triton/model.py",
        f"{MODEL}/model.py",
        f"{MODEL}/1/model.py",
        f"{MODEL}/1/libtriton_onnxruntime.so",
        "triton/evil/1/model.onnx",
        f"{MODEL}/1/x/labels.txt",
        f"{MODEL}/2/model.onnx",
        f"{MODEL}/1/assay-triton.json",
        f"{MODEL}/assay-triton.json",
        f"{MODEL}/warmup/libevil.so",
        f"{MODEL}/warmup/input0.py",
        f"{MODEL}/warmup/1/input0",
        f"{MODEL}/warmup/config.pbtxt",
        "triton/evil/labels.txt",
        "assay-triton.json",
        "lenet/config.pbtxt",
        "config.pbtxt",
    ],
)
def test_files_that_assay_does_not_write_are_refused(
    bundle: Path, assay: Assay, name: str, option: str
) -> None:
    result = assay("check", changed(bundle, {name: PROGRAM}), option)
    assert result.code == 1
    # Of repositories in each other, all files are refused.
    assert "repository that assay wrote" in result.err or f"member {name} " in result.err


@pytest.mark.parametrize("option", ["--trust", "--digests-only"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('platform: "onnxruntime_onnx"', 'backend: "python"'),
        ('platform: "onnxruntime_onnx"', 'backend: "mine"\nruntime: "warmup/input0"'),
        ('platform: "onnxruntime_onnx"', 'platform: "onnxruntime_onnx" runtime: "x"'),
        ('platform: "onnxruntime_onnx"', 'platform: "onnxruntime_onnx" # runtime'),
        ("max_batch_size", 'default_model_filename: "../warmup/input0"\nmax_batch_size'),
        ("max_batch_size", 'model_operations {\n  op_library_filename: "x"\n}\nmax_batch_size'),
        ('key: "assay.engine"', 'key: "EXECUTION_ENV_PATH"'),
        ('label_filename: "labels.txt"', 'label_filename: "../../x"'),
        ('input_data_file: "input0"', 'input_data_file: "/etc/passwd"'),
        ("output {", "output { }\noutput {"),
        ("output {", "}\noutput {"),
        ("kind: KIND_CPU", "kind: KIND_CPU\n  secondary_devices {\n  }"),
    ],
)
def test_configurations_that_assay_does_not_write_are_refused(
    bundle: Path, assay: Assay, old: str, new: str, option: str
) -> None:
    name = f"{MODEL}/config.pbtxt"
    text = members(bundle)[f"{FOLDER}/{name}"].decode()
    assert old in text
    path = changed(bundle, {name: text.replace(old, new, 1).encode()})
    result = assay("check", path, option)
    assert result.code == 1
    assert f"member {name} has what assay does not write" in result.err
    assert assay("merge", path, path, "--out", path.with_name("merged.tar.zst")).code != 0


def test_a_file_that_only_a_record_names_is_refused(bundle: Path, assay: Assay) -> None:
    """Whoever makes a bundle writes its records, too."""
    contents = members(bundle)
    name = f"{FOLDER}/lenet/fp32/onnxruntime/build.json"
    record = json.loads(contents[name])
    digest = hashlib.sha256(PROGRAM).hexdigest()
    record["outputs"]["lenet/fp32/onnxruntime/x.bin"] = {"sha256": digest, "bytes": len(PROGRAM)}
    path = pack(
        bundle.with_name("recorded.tar.zst"),
        [*resigned({**contents, name: dump_json(record)}).items()],
    )
    result = assay("check", changed(path, {f"{MODEL}/1/model.plan": PROGRAM}), "--digests-only")
    assert result.code == 1
    assert "model.plan is neither a graph nor an engine of the bundle" in result.err


def test_labels_of_a_repository_are_those_of_the_bundle(bundle: Path, assay: Assay) -> None:
    name = f"{MODEL}/labels.txt"
    labels = members(bundle)[f"{FOLDER}/{name}"].splitlines(keepends=True)
    result = assay("check", changed(bundle, {name: b"".join(labels[::-1])}), "--digests-only")
    assert result.code == 1
    assert f"member {name} has not the labels of manifest.json" in result.err


def test_the_files_of_an_engine_in_a_zip_file_are_of_the_bundle(store: Store, assay: Assay) -> None:
    pytest.importorskip("openvino")
    for command in ("build", "verify"):
        words = (command, "lenet", "--engine", "openvino", "--root", store.root)
        assert assay(*words).code == 0
    words = ("bundle", "lenet", *where(store), "--include", "triton", "--engine", "openvino")
    assert assay(*words, "--no-measurements").code == 0
    path = bundle_of(store)
    assert assay("check", path, "--digests-only").code == 0
    weights = "triton/lenet_fp32_openvino/1/model.bin"
    other = members(path)[f"{FOLDER}/{weights}"][::-1]
    result = assay("check", changed(path, {weights: other}), "--digests-only")
    assert f"member {weights} is neither a graph nor an engine" in result.err


def test_a_repository_is_compared_with_the_golden_files_of_the_bundle_around_it(
    bundle: Path, assay: Assay, tmp_path: Path
) -> None:
    for name, content in members(bundle).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    config = tmp_path / FOLDER / MODEL / "config.pbtxt"
    text = config.read_text()
    # Neither the name of a plan's input nor its dims are known without a golden file.
    (config.parent / "1/model.onnx").rename(config.parent / "1/model.plan")
    plan = text.replace("onnxruntime_onnx", "tensorrt_plan").replace("KIND_CPU", "KIND_GPU")
    config.write_text(
        re.sub(r'key: "assay.engine".*?}', 'key: "e" value {}', plan, flags=re.DOTALL)
    )
    for folder in (tmp_path / FOLDER / "triton", config.parent):
        result = assay("triton-check", folder)
        assert "inputs and outputs were not compared" not in result.err
    config.write_text(config.read_text().replace('name: "image"', 'name: "picture"'))
    result = assay("triton-check", config.parent)
    assert "input 'image' of the golden file is missing" in result.out


def test_each_machine_of_a_merged_bundle_has_its_repository(
    bundle: Path, assay: Assay, tmp_path: Path
) -> None:
    contents = members(bundle)
    name = f"{FOLDER}/manifest.json"
    manifest = json.loads(contents[name])
    entry = manifest["models"]["fp32"]["engines"]["onnxruntime"]
    entry["built_with"] = {**entry["built_with"], "gpu_name": "NVIDIA H100 80GB HBM3"}
    other = pack(
        tmp_path / "other.tar.zst", [*resigned({**contents, name: dump_json(manifest)}).items()]
    )
    path = tmp_path / "both.tar.zst"
    assert assay("merge", bundle, other, "--out", path).code == 0
    readme = members(path)["both/README.md"].decode()
    second = "targets/nvidia-h100-80gb-hbm3/triton"
    assert f'--model-repository="$PWD/{second}"' in readme
    result = assay("check", path, "--trust", "--engine", "onnxruntime")
    assert result.code == 0, result.err
    assert re.search(f"^{second}: [0-9] Triton models, no mistake", result.out, re.MULTILINE)


def test_several_precisions_are_in_one_repository(store: Store, assay: Assay) -> None:
    for words in (
        ("export", "lenet"),
        ("verify", "lenet"),
        ("build", "lenet", "--engine", "onnxruntime"),
        ("verify", "lenet", "--engine", "onnxruntime"),
    ):
        assert assay(*words, "--precision", "fp16", *where(store)).code == 0
    result = assay(
        *("bundle", "lenet", "--precision", "fp32,fp16", "--include", "triton"),
        *("--no-measurements", *where(store)),
    )
    assert result.code == 0, result.err
    path = store.dist / "lenet-fp32+fp16.tar.zst"
    models = {name.split("/")[2] for name in members(path) if "/triton/lenet" in name}
    assert models >= {"lenet_fp32_onnxruntime", "lenet_fp16_onnxruntime"}
    assert assay("check", path, "--trust", "--engine", "onnxruntime").code == 0


def test_without_a_server_for_it_nothing_is_included(store: Store, assay: Assay) -> None:
    words = ("bundle", "lenet", *where(store), "--include", "triton", "--engine", "pytorch")
    result = assay(*words)
    assert result.code == 1
    assert "Triton can serve no engine of the bundle: pytorch fp32" in result.err


def test_external_data_is_unpacked_under_one_name_each(tmp_path: Path) -> None:
    data = ("a/model.onnx.data", "b/model.onnx.data", "c")
    contents = dict.fromkeys(data, b"weights") | dict.fromkeys(("d", "e"), b"other")
    archive.write(tmp_path / "x.tar.zst", "x", {}, contents)
    archive.extract(tmp_path / "x.tar.zst", tmp_path / "x")
    paths = {name: tmp_path / "x" / name for name in contents}
    assert {name: path.read_bytes() for name, path in paths.items()} == contents
    links = {name: path.stat().st_nlink for name, path in paths.items()}
    assert links == {**dict.fromkeys(data, 1), "d": 2, "e": 2}
