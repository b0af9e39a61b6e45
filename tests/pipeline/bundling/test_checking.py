"""Verifying a bundle: its chain of records and its engines."""

import gzip
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.workflow.digests import dump_json
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members, pack, resigned
from tests.conftest import Result

Assay = Callable[..., Result]


def test_a_bundle_that_fails_gives_one_document(store: Store, assay: Assay) -> None:
    bundle = store.dist / "lenet-fp32.tar.zst"
    good = assay("check", "--trust", bundle, "--json")
    assert good.code == 0
    assert json.loads(good.out)


@pytest.mark.slow(1)
def test_an_undamaged_bundle_passes_with_every_engine(
    built: Store, assay: Callable[..., Result]
) -> None:
    result = assay("check", "--trust", bundle_of(built), "--json")
    assert result.code == 0
    document = json.loads(result.out)
    status = {verdict["subject"]: verdict["status"] for verdict in document["verdicts"]}
    assert status["graph"] == status["onnxruntime"] == status["pytorch"] == "pass"
    assert document["links"] > 20
    assert set(document["manifest"]["models"]["fp32"]["engines"]) == set(status) - {"graph"}


def test_a_broken_chain_is_found_even_if_every_digest_matches(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    contents = members(bundle_of(built))
    record = json.loads(contents[f"{FOLDER}/lenet/fp32/export.json"])
    record["inputs"]["lenet/checkpoint.safetensors"]["sha256"] = "0" * 64
    forged = {**contents, f"{FOLDER}/lenet/fp32/export.json": dump_json(record)}
    path = pack(tmp_path / "forged.tar.zst", list(resigned(forged).items()))
    result = assay("check", "--trust", path)
    assert result.code == 1
    assert "export.json was made from another lenet/checkpoint.safetensors" in result.err


def test_another_graph_under_the_same_records_is_found(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/lenet/fp32/model.onnx"
    forged = resigned({**contents, name: contents[name] + b"\0"})
    result = assay("check", "--trust", pack(tmp_path / "forged.tar.zst", list(forged.items())))
    assert result.code == 1
    assert "lenet/fp32/model.onnx is not the file that lenet/fp32/export.json names" in result.err


ELSEWHERE = {"path": "/x", "verdict": "pass", "built_with": {}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fp32": {"graph": "/etc/passwd"}}, "names '/etc/passwd', which is not a member"),
        ({"fp32": {"golden": "../golden.npz"}}, "which is not a member"),
        ({"fp32": {"engines": {"pytorch": ELSEWHERE}}}, "which is not a member"),
        ({"chains": {"": ["/etc/passwd"]}}, "which is not a member"),
        ({"chains": {"": []}}, "no record made lenet/fp32/model.onnx"),
        ({"fp32": {"engines": None}}, "manifest.json is not valid"),
        ({"training": None}, "manifest.json is not valid: TypeError('training is not text')"),
        ({"fp32": {"engines": {"pytorch": {**ELSEWHERE, "built_with": None}}}}, "built_with of"),
        ({"fp32": {"engines": {"pytorch": {**ELSEWHERE, "built_with": {"cpu": [1]}}}}}, "not text"),
        (
            {"fp32": {"engines": {"pytorch": {**ELSEWHERE, "verdict": "pass\x1b"}}}},
            "the verdict of",
        ),
        (
            {"fp32": {"engines": {"pytorch": {**ELSEWHERE, "smaller_runtime": "rm -rf ~"}}}},
            "not how to install a package",
        ),
    ],
)
def test_a_manifest_that_points_elsewhere_is_refused(
    built: Store, tmp_path: Path, assay: Callable[..., Result], change: dict, words: str
) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/manifest.json"
    manifest = json.loads(contents[name])
    manifest["models"]["fp32"] |= change.get("fp32", {})
    manifest |= {key: value for key, value in change.items() if key != "fp32"}
    forged = resigned({**contents, name: dump_json(manifest)})
    result = assay("check", "--trust", pack(tmp_path / "forged.tar.zst", list(forged.items())))
    assert result.code == 1
    assert words in result.err


@pytest.mark.parametrize("words", [("check", "--trust"), ("check", "--digests-only"), ("merge",)])
def test_a_model_repository_that_is_not_ours_is_refused(
    built: Store, tmp_path: Path, assay: Callable[..., Result], words: tuple[str, ...]
) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/manifest.json"
    manifest = json.loads(contents[name])
    added = {"triton/evil/config.pbtxt": b'backend: "python"', "triton/evil/1/model.py": b"x"}
    manifest["members"] |= {path: {} for path in added}
    contents |= {f"{FOLDER}/{path}": content for path, content in added.items()}
    forged = resigned({**contents, name: dump_json(manifest)})
    bundle = pack(tmp_path / "forged.tar.zst", [*forged.items()])
    more = (bundle_of(built), "--out", tmp_path / "new.tar.zst") if words == ("merge",) else ()
    result = assay(words[0], bundle, *words[1:], *more)
    assert result.code == 1
    assert "triton/evil/config.pbtxt belongs to no model repository that assay wrote" in result.err


def test_nothing_is_opened_without_consent(built: Store, assay: Callable[..., Result]) -> None:
    result = assay("check", bundle_of(built))
    assert result.code == 2
    assert "give --trust" in result.err
    assert "graph" not in result.out
    assert assay("check", bundle_of(built), "--digests-only").code == 0
    # What is damaged is reported first.
    assert assay("check", __file__).code == 1


@pytest.mark.slow(5)
@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_a_terminal_is_asked_once_every_digest_matches(
    built: Store, answer: str, code: int
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pipeline.cli", "check", str(bundle_of(built))]
    command += ["--engine", "onnxruntime"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, close_fds=True
    ) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        out = process.stdout.read().decode()
        shown = b""
        with suppress(OSError):  # the end of a terminal
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    text = shown.decode()
    assert process.returncode == code, text
    assert "lenet/fp32/model.onnx: a graph that ONNX Runtime runs" in text
    assert "lenet/fp32/onnxruntime/engine.onnx: an engine that onnxruntime opens" in text
    assert "openvino" not in text
    assert ("pass" in out) == (code == 0)


def test_a_file_that_is_not_a_bundle_is_an_error(
    tmp_path: Path, assay: Callable[..., Result]
) -> None:
    path = tmp_path / "file.tar.zst"
    assert f"{path} does not exist" in assay("check", "--trust", path).err
    for content in (b"text", gzip.compress(b"text"), gzip.compress(b"\0" * 10240)):
        path.write_bytes(content)
        result = assay("check", "--trust", path)
        assert result.code == 1
        assert str(path) in result.err


@pytest.mark.usefixtures("in_process")
def test_a_bundle_without_runnable_engines_is_not_available(
    built: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    import engines
    from engines.contract import Availability

    for name in engines.names():
        monkeypatch.setattr(
            type(engines.get(name)), "available", lambda _: Availability(False, False, "gone")
        )
    result = assay("check", "--trust", bundle_of(built))
    assert result.code == 4
    assert "nothing in it can be run on this machine" in result.err


@pytest.mark.slow(2)
@pytest.mark.usefixtures("in_process")
def test_an_engine_that_fails_on_the_target_exits_3(
    built: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.backends._onnxruntime import OnnxRuntimeSession

    run = OnnxRuntimeSession.run

    def wrong(self: OnnxRuntimeSession, feeds: dict) -> dict:
        return {name: array * 1.001 for name, array in run(self, feeds).items()}

    monkeypatch.setattr(OnnxRuntimeSession, "run", wrong)
    result = assay("check", "--trust", bundle_of(built))
    assert result.code == 3
    assert "mismatch" in result.out
