"""Archives: damage of any kind is found and the member named."""

import contextlib
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import DeployError
from pipeline.bundling import archive
from pipeline.workflow.digests import dump_json
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members, pack, resigned
from tests.conftest import Result


@pytest.mark.slow(3)
def test_a_flipped_byte_in_any_member_names_it(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    contents = members(bundle_of(built))
    assert len(contents) > 20
    for name, content in contents.items():
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 0x10
        path = pack(tmp_path / "flipped.tar.zst", list({**contents, name: damaged}.items()))
        result = assay("check", "--trust", path)
        assert result.code == 1, name
        # manifest.sha256 has the digest of manifest.json, so damage to either is reported for it.
        member = name.removeprefix(f"{FOLDER}/").replace("manifest.sha256", "manifest.json")
        assert f"member {member} is damaged" in result.err


def contents_of(folder: Path) -> dict[Path, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.slow(2)
def test_every_flipped_byte_of_the_archive_is_found(built: Store, tmp_path: Path) -> None:
    content = bundle_of(built).read_bytes()
    path = tmp_path / "flipped.tar.zst"
    generator = random.Random(0)  # noqa: S311
    archive.extract(bundle_of(built), tmp_path / "sound")
    sound = contents_of(tmp_path / "sound")
    # The sixth byte is the size of the window, which does not affect the content.
    for position in [*range(5), *generator.sample(range(6, len(content)), 150)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        folder = tmp_path / f"out{position}"
        with contextlib.suppress(DeployError):
            archive.extract(path, folder)
            # A reference to earlier bytes may have become one to equal bytes.
            assert contents_of(folder) == sound


@pytest.mark.parametrize("length", [0, 1, 100, 10_000, -8, -1])
def test_a_truncated_archive_is_an_error(built: Store, tmp_path: Path, length: int) -> None:
    path = tmp_path / "short.tar.zst"
    path.write_bytes(bundle_of(built).read_bytes()[:length])
    with pytest.raises(DeployError):
        archive.extract(path, tmp_path / "out")


def test_a_missing_extra_or_duplicate_member_is_named(built: Store, tmp_path: Path) -> None:
    contents = list(members(bundle_of(built)).items())
    last = contents[-1]
    cases = {
        "is missing": contents[:-1],
        "is not in the manifest": [*contents, (f"{FOLDER}/more", b"")],
        "occurs twice": [*contents, last],
        "in place of": contents[1:],
    }
    for number, (words, listed) in enumerate(cases.items()):
        path = pack(tmp_path / "bad.tar.zst", listed)
        with pytest.raises(DeployError, match=words):
            archive.extract(path, tmp_path / f"out{number}")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a//b", "."])
def test_a_member_cannot_be_written_outside_the_folder(
    built: Store, tmp_path: Path, name: str
) -> None:
    contents = members(bundle_of(built))
    manifest = json.loads(contents[f"{FOLDER}/manifest.json"])
    manifest["members"][name] = {"bytes": 0, "sha256": ""}
    evil = resigned({**contents, f"{FOLDER}/manifest.json": dump_json(manifest)})
    path = pack(tmp_path / "evil.tar.zst", [*evil.items(), (f"{FOLDER}/{name}", b"")])
    with pytest.raises(DeployError, match="bad member"):
        archive.extract(path, tmp_path / "deep/out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["evil.tar.zst"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_only_regular_files_are_unpacked(built: Store, tmp_path: Path, kind: bytes) -> None:
    contents = list(members(bundle_of(built)).items())
    info = tarfile.TarInfo(contents[-1][0])
    info.type, info.linkname = kind, "/etc/passwd"
    path = pack(tmp_path / "link.tar.zst", [*contents[:-1], (info, b"")])
    with pytest.raises(DeployError, match="is not a regular file"):
        archive.extract(path, tmp_path / "out")


@pytest.mark.slow(1)
def test_a_member_longer_than_listed_is_not_written_out(built: Store, tmp_path: Path) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/README.md"
    path = pack(tmp_path / "bomb.tar.zst", list({**contents, name: b"0" * (200 << 20)}.items()))
    with pytest.raises(DeployError, match=r"README\.md is damaged"):
        archive.extract(path, tmp_path / "out")
    assert not (tmp_path / "out/README.md").exists()


def test_external_data_is_unpacked_as_a_file_of_its_own(tmp_path: Path) -> None:
    names = ["a/model.onnx.data", "b/model.onnx.data", "c/engine.bin", "d/engine.bin"]
    bundle = tmp_path / "x.tar.zst"
    contents = dict.fromkeys(names[:2], b"weights") | dict.fromkeys(names[2:], b"engine")
    archive.write(bundle, "x", {}, contents)
    archive.extract(bundle, tmp_path / "out")
    links = {name: (tmp_path / "out" / name).stat().st_nlink for name in names}
    # Readers of graphs refuse external data that is a link.
    assert links == {names[0]: 1, names[1]: 1, names[2]: 2, names[3]: 2}
