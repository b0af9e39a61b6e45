"""Bundles: the same bytes, every damage found and named, every engine proved again."""

import dataclasses
import gzip
import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import DeployError
from pipeline.bundling import archive, provenance
from pipeline.workflow.digests import dump_json
from pipeline.workflow.records import Record
from pipeline.workflow.runner import Store
from tests.conftest import Process, Result

FOLDER = "lenet-fp32"


def bundle_of(store: Store) -> Path:
    return store.dist / f"{FOLDER}.tar.gz"


def members(bundle: Path) -> dict[str, bytes]:
    with tarfile.open(bundle) as opened:
        return {info.name: opened.extractfile(info).read() for info in opened}


def pack(target: Path, contents: list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(target, "w:gz") as opened:
        for name, content in contents:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return target


def resigned(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Makes the manifest fit its members again, as an attacker would."""
    manifest = json.loads(contents[f"{FOLDER}/{archive.MANIFEST}"])
    for name in manifest["members"]:
        content = contents.get(f"{FOLDER}/{name}", b"")
        digest = hashlib.sha256(content).hexdigest()
        manifest["members"][name] = {"sha256": digest, "bytes": len(content)}
    packed = dump_json(manifest)
    digest = f"{hashlib.sha256(packed).hexdigest()}  {archive.MANIFEST}\n".encode()
    ours = {f"{FOLDER}/{archive.MANIFEST}": packed, f"{FOLDER}/{archive.MANIFEST_DIGEST}": digest}
    return {**contents, **ours}


def test_two_runs_give_the_same_bytes(store: Store, assay: Callable[..., Result]) -> None:
    first = bundle_of(store).read_bytes()
    words = ("bundle", "lenet", "--root", store.root, "--dist", store.dist, "--force")
    assert assay(*words).code == 0
    assert bundle_of(store).read_bytes() == first


def test_two_folders_give_the_same_bytes(
    built: Store, tmp_path: Path, process: Callable[..., Process]
) -> None:
    shutil.copytree(built.root, tmp_path / "artifacts")
    assert process("bundle", "lenet").run().code == 0
    assert (tmp_path / f"dist/{FOLDER}.tar.gz").read_bytes() == bundle_of(built).read_bytes()


def test_it_holds_every_artifact_and_its_record(built: Store) -> None:
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
    assert names == artifacts - data | {"manifest.json", "manifest.sha256", "README.md"}


def test_a_good_bundle_passes_and_every_engine_is_proved(
    built: Store, assay: Callable[..., Result]
) -> None:
    result = assay("check", bundle_of(built), "--json")
    assert result.code == 0
    found = json.loads(result.out)
    status = {verdict["subject"]: verdict["status"] for verdict in found["verdicts"]}
    assert status["graph"] == status["onnxruntime"] == status["pytorch"] == "pass"
    assert found["links"] > 20
    assert set(found["manifest"]["engines"]) == set(status) - {"graph"}


def test_a_flipped_byte_in_any_member_names_it(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    contents = members(bundle_of(built))
    assert len(contents) > 20
    for name, content in contents.items():
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 0x10
        path = pack(tmp_path / "flipped.tar.gz", list({**contents, name: damaged}.items()))
        result = assay("check", path)
        assert result.code == 1, name
        # manifest.sha256 vouches for manifest.json, so damage to one shows as the other's
        member = name.removeprefix(f"{FOLDER}/").replace("manifest.sha256", "manifest.json")
        assert f"member {member} is damaged" in result.err


def test_no_flipped_byte_of_the_archive_goes_unseen(built: Store, tmp_path: Path) -> None:
    content = bundle_of(built).read_bytes()
    path = tmp_path / "flipped.tar.gz"
    generator = random.Random(0)  # noqa: S311
    # The rest of gzip's header (flags, time, origin) says nothing about the content.
    for position in [*range(3), *generator.sample(range(10, len(content)), 150)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DeployError):
            archive.extract(path, tmp_path / f"out{position}")


@pytest.mark.parametrize("length", [0, 1, 100, 10_000, -8, -1])
def test_a_truncated_archive_is_an_error(built: Store, tmp_path: Path, length: int) -> None:
    path = tmp_path / "short.tar.gz"
    path.write_bytes(bundle_of(built).read_bytes()[:length])
    with pytest.raises(DeployError):
        archive.extract(path, tmp_path / "out")


def test_a_missing_foreign_or_second_member_is_named(built: Store, tmp_path: Path) -> None:
    contents = list(members(bundle_of(built)).items())
    last = contents[-1]
    cases = {
        "is missing": contents[:-1],
        "is not in the manifest": [*contents, (f"{FOLDER}/more", b"")],
        "is there twice": [*contents, last],
        "stands where": contents[1:],
    }
    for number, (words, listed) in enumerate(cases.items()):
        path = pack(tmp_path / "bad.tar.gz", listed)
        with pytest.raises(DeployError, match=words):
            archive.extract(path, tmp_path / f"out{number}")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a//b", "."])
def test_a_member_cannot_leave_the_folder(built: Store, tmp_path: Path, name: str) -> None:
    contents = members(bundle_of(built))
    manifest = json.loads(contents[f"{FOLDER}/manifest.json"])
    manifest["members"][name] = {"bytes": 0, "sha256": ""}
    evil = resigned({**contents, f"{FOLDER}/manifest.json": dump_json(manifest)})
    path = pack(tmp_path / "evil.tar.gz", [*evil.items(), (f"{FOLDER}/{name}", b"")])
    with pytest.raises(DeployError, match="bad member"):
        archive.extract(path, tmp_path / "deep/out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["evil.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_only_regular_files_are_unpacked(built: Store, tmp_path: Path, kind: bytes) -> None:
    contents = list(members(bundle_of(built)).items())
    info = tarfile.TarInfo(contents[-1][0])
    info.type, info.linkname = kind, "/etc/passwd"
    path = pack(tmp_path / "link.tar.gz", [*contents[:-1], (info, b"")])
    with pytest.raises(DeployError, match="is not a regular file"):
        archive.extract(path, tmp_path / "out")


def test_a_member_longer_than_listed_is_not_written_out(built: Store, tmp_path: Path) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/README.md"
    path = pack(tmp_path / "bomb.tar.gz", list({**contents, name: b"0" * (200 << 20)}.items()))
    with pytest.raises(DeployError, match=r"README\.md is damaged"):
        archive.extract(path, tmp_path / "out")
    assert (tmp_path / "out/README.md").stat().st_size <= 1 << 20


def test_a_broken_chain_is_found_though_every_digest_fits(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    contents = members(bundle_of(built))
    record = json.loads(contents[f"{FOLDER}/lenet/fp32/export.json"])
    record["inputs"]["lenet/checkpoint.safetensors"]["sha256"] = "0" * 64
    forged = {**contents, f"{FOLDER}/lenet/fp32/export.json": dump_json(record)}
    path = pack(tmp_path / "forged.tar.gz", list(resigned(forged).items()))
    result = assay("check", path)
    assert result.code == 1
    assert "export.json was made from another lenet/checkpoint.safetensors" in result.err


def test_another_graph_under_the_same_records_is_found(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/lenet/fp32/model.onnx"
    forged = resigned({**contents, name: contents[name] + b"\0"})
    result = assay("check", pack(tmp_path / "forged.tar.gz", list(forged.items())))
    assert result.code == 1
    assert "lenet/fp32/model.onnx is not the file that lenet/fp32/export.json names" in result.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"graph": "/etc/passwd"}, "names '/etc/passwd', which is not a member"),
        ({"golden": "../golden.npz"}, "which is not a member"),
        ({"engines": {"pytorch": {"path": "/x"}}}, "which is not a member"),
        ({"records": ["/etc/passwd"]}, "which is not a member"),
        ({"records": []}, "no record made lenet/fp32/model.onnx"),
        ({"engines": None}, "manifest.json is not valid"),
    ],
)
def test_a_manifest_that_points_elsewhere_is_refused(
    built: Store, tmp_path: Path, assay: Callable[..., Result], change: dict, words: str
) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/manifest.json"
    manifest = {**json.loads(contents[name]), **change}
    forged = resigned({**contents, name: dump_json(manifest)})
    result = assay("check", pack(tmp_path / "forged.tar.gz", list(forged.items())))
    assert result.code == 1
    assert words in result.err


def test_a_link_to_nothing_is_found() -> None:
    record = Record("a", "", {}, {"x": {"sha256": "1", "record": "b.json"}}, {}, {}, {}, "", 0.0)
    with pytest.raises(DeployError, match="was made from x, which no record in the bundle made"):
        provenance.check({"a.json": record}, {})


def test_what_is_no_bundle_is_said(tmp_path: Path, assay: Callable[..., Result]) -> None:
    path = tmp_path / "file.tar.gz"
    assert "there is no bundle" in assay("check", path).err
    for content in (b"text", gzip.compress(b"text"), gzip.compress(b"\0" * 10240)):
        path.write_bytes(content)
        result = assay("check", path)
        assert result.code == 1
        assert str(path) in result.err


def test_where_nothing_can_be_run_nothing_is_proved(
    built: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    import engines
    from engines.contract import Availability

    for name in engines.names():
        monkeypatch.setattr(
            type(engines.get(name)), "available", lambda _: Availability(False, False, "gone")
        )
    result = assay("check", bundle_of(built))
    assert result.code == 4
    assert "nothing in it can be run here" in result.err


def test_an_engine_that_fails_on_the_target_exits_3(
    built: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.backends._onnxruntime import OnnxRuntimeSession

    run = OnnxRuntimeSession.run

    def wrong(self: OnnxRuntimeSession, feeds: dict) -> dict:
        return {name: array * 1.001 for name, array in run(self, feeds).items()}

    monkeypatch.setattr(OnnxRuntimeSession, "run", wrong)
    result = assay("check", bundle_of(built))
    assert result.code == 3
    assert "mismatch" in result.out


def test_a_verdict_that_is_no_pass_keeps_an_engine_out(
    store: Store, assay: Callable[..., Result]
) -> None:
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
