"""Hostile archives: refused within bounds, and nothing is written outside the folder."""

import errno
import gzip
import json
import os
import shutil
import tempfile
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import DeployError
from pipeline.bundling import archive
from pipeline.verification import engine_proof
from tests.attacks.tars import (
    END,
    FOLDER,
    header,
    listed,
    manifest,
    member,
    pack,
    padded,
    pax,
    pax_record,
    signed,
)
from tests.bundles import compress, decompress, opened
from tests.conftest import Result

CONTENTS = {"a/one": b"1" * 700, "two": b"2"}
HEAD = manifest(listed(CONTENTS))
BODY = b"".join(member(name, content) for name, content in CONTENTS.items())
PLAIN = listed({"a": b""})["a"]


def refuse(path: Path, words: str, **options: int) -> str:
    """Extracts an archive that must be refused, with little memory, and returns the message."""
    folder = path.parent / "deep" / "out"
    tracemalloc.start()
    try:
        with pytest.raises(DeployError, match=words) as raised:
            archive.extract(path, folder, **options)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert {entry.name for entry in path.parent.iterdir()} <= {path.name, "deep"}
    assert str(path) in raised.value.message
    return raised.value.message


def test_a_plain_archive_is_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "plain.tar.zst", HEAD, BODY)
    archive.extract(path, tmp_path / "out")
    assert (tmp_path / "out/a/one").read_bytes() == CONTENTS["a/one"]


@pytest.mark.parametrize(
    "name", ["short", "long/" * 25 + "name", "naïve/größe", "日本/" * 40 + "x", "x" * 250]
)
def test_any_name_that_we_write_is_read(tmp_path: Path, name: str) -> None:
    contents = {name: b"content", "other": b"more"}
    archive.write(tmp_path / "b.tar.zst", FOLDER, {"model": "m"}, contents)
    unpacked = archive.extract(tmp_path / "b.tar.zst", tmp_path / "out")
    assert set(unpacked["members"]) == set(contents)
    assert (tmp_path / "out" / name).read_bytes() == b"content"


BOMB = 3 << 30
FIRST_HEADERS = {
    "a long name of 3 GB": header("././@LongLink", BOMB, b"L"),
    "a long link of 3 GB": header("././@LongLink", BOMB, b"K"),
    "a PAX header of 3 GB": header("././@PaxHeader", BOMB, b"x"),
    "a global PAX header of 3 GB": header("././@PaxHeader", BOMB, b"g"),
    "a Solaris header": header("././@PaxHeader", 10, b"X"),
    "a PAX body of digits": pax(b"1" * 8000),
    "a PAX body without end": pax(b"20 path=short\n"),
    "a PAX length of 0": pax(b"0 path=x\n" * 100),
    "a PAX length that is negative": pax(b"-5 path=x\n"),
    "a PAX length with an underscore": pax(b"1_0 path=x\n"),
    "a sparse file of GNU": pax(pax_record("GNU.sparse.major", "1")),
    "a sparse map": pax(pax_record("GNU.sparse.map", "0,1")),
    "a PAX link": pax(pax_record("linkpath", "/etc/passwd")) + header("x", 0, b"1"),
    "a PAX link of a file": pax(pax_record("linkpath", "a/one")) + header("x", 0),
    "a PAX size that is text": pax(pax_record("size", "many")) + header("x", 0),
    "a PAX size that is negative": pax(pax_record("size", "-1")) + header("x", 0),
    "a PAX size without bound": pax(pax_record("size", "9" * 40)) + header("x", 0),
    "a PAX path twice": pax(pax_record("path", "a") * 2) + header("x", 0),
    "a PAX path that is not UTF-8": pax(b"11 path=\xff\xfe\n") + header("x", 0),
    "500 PAX headers": pax(pax_record("path", "a")) * 500,
    "500 long names": (header("././@LongLink", 2, b"L") + padded(b"a\0")) * 500,
    "the old sparse format": header("x", 0, b"S"),
    "a size in base 256": header("x", b"\x80" + bytes(10) + b"\x01"),
    "a size that is negative": header("x", b"\xff" * 12),
    "a size that is not a number": header("x", b"zzzzzzzzzzz\0"),
    "a size with a sign": header("x", b"+0000000001\0"),
    "no size": header("x", b"\0" * 12),
    "a wrong checksum": header("x", 0, checksum=b"0000000\0"),
    "a checksum of dashes": header("x", 0, checksum=b"--------"),
    "GNU's magic": header("x", 0, magic=b"ustar  \0"),
    "no magic": header("x", 0, magic=b"\0" * 8),
    "a name that is not UTF-8": header(b"\xff\xfe/manifest.json", 0),
    "a name without a folder": header("manifest.json", 0),
    "an empty name": header("", 0),
    "a manifest of 3 GB": header(f"{FOLDER}/manifest.json", BOMB),
    "noise": b"\x5a" * 2048,
}


@pytest.mark.parametrize("case", FIRST_HEADERS)
def test_a_hostile_first_header_is_refused(tmp_path: Path, case: str) -> None:
    # 20 MB of zeros stand for any number: none may be read.
    refuse(pack(tmp_path / "bad.tar.zst", FIRST_HEADERS[case], bytes(20 << 20)), "bad.tar.zst")


@pytest.mark.parametrize("case", FIRST_HEADERS)
def test_a_hostile_header_after_the_manifest_is_refused(tmp_path: Path, case: str) -> None:
    refuse(pack(tmp_path / "bad.tar.zst", HEAD, FIRST_HEADERS[case], BODY), "bad.tar.zst")


@pytest.mark.parametrize("kind", [b"2", b"3", b"4", b"5", b"6", b"7", b"\0", b"V", b"M"])
def test_any_kind_but_a_regular_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    evil = header(f"{FOLDER}/a/one", 0, kind, linkname=b"/etc/passwd")
    refuse(pack(tmp_path / "bad.tar.zst", HEAD, evil, BODY), "is not a regular file")


TWINS = {"one": b"1" * 700, "two": b"1" * 700, "three": b"3"}


def linked(name: str, to: str, size: int = 0) -> bytes:
    return header(f"{FOLDER}/{name}", size, b"1", linkname=to.encode())


def test_members_with_equal_content_are_stored_once(tmp_path: Path) -> None:
    archive.write(tmp_path / "b.tar.zst", FOLDER, {"model": "m"}, TWINS)
    with opened(tmp_path / "b.tar.zst") as files:
        links = {info.name: info.linkname for info in files if info.islnk()}
    assert links == {f"{FOLDER}/two": f"{FOLDER}/one"}
    archive.extract(tmp_path / "b.tar.zst", tmp_path / "out")
    for name, content in TWINS.items():
        assert (tmp_path / "out" / name).read_bytes() == content


def test_links_are_copies_where_the_file_system_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(_source: Path, _target: Path) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    archive.write(tmp_path / "b.tar.zst", FOLDER, {"model": "m"}, TWINS)
    archive.extract(tmp_path / "b.tar.zst", tmp_path / "out")
    assert (tmp_path / "out/two").read_bytes() == TWINS["two"]


LINKS = {
    "to a file outside": linked("two", "/etc/passwd"),
    "to a parent": linked("two", f"{FOLDER}/../../etc/passwd"),
    "to another content": linked("two", f"{FOLDER}/three"),
    "to a later member": linked("two", f"{FOLDER}/one"),
    "to itself": linked("two", f"{FOLDER}/two"),
    "to the manifest": linked("two", f"{FOLDER}/{archive.MANIFEST}"),
    "to nothing": linked("two", ""),
    "to another top folder": linked("two", "other/one"),
    "to no folder": linked("two", "one"),
    "with a content": linked("two", f"{FOLDER}/one", 700),
}


@pytest.mark.parametrize("case", LINKS)
def test_a_link_to_anything_but_its_content_is_refused(tmp_path: Path, case: str) -> None:
    blocks = [manifest(listed(TWINS)), member("three", b"3")]
    if case != "to a later member":
        blocks.append(member("one", TWINS["one"]))
    refuse(pack(tmp_path / "bad.tar.zst", *blocks, LINKS[case]), "member ")


TRAILING: dict[str, Callable[[bytes], bytes]] = {
    "bytes": lambda good: good + b"x",
    "a zero byte": lambda good: good + b"\0",
    "an empty frame": lambda good: good + compress(b""),
    "a frame of zeros": lambda good: good + compress(bytes(1 << 20)),
    "the archive again": lambda good: good + good,
    "a second archive in the same frame": lambda good: compress(decompress(good) * 2),
    "bytes after the end of the tar": lambda good: compress(decompress(good) + b"x"),
    "a member after the end of the tar": lambda good: compress(
        decompress(good) + member("more", b"")
    ),
    "20 MB of zeros": lambda good: compress(decompress(good) + bytes(20 << 20)),
    "a member between the zeros": lambda good: compress(
        decompress(good).removesuffix(END) + bytes(512) + member("more", b"") + END
    ),
    "data in the padding of a member": lambda good: compress(
        decompress(good).removesuffix(END)[:-1] + b"x" + END
    ),
    "no end": lambda good: compress(decompress(good).removesuffix(END)),
    "half an end": lambda good: compress(decompress(good).removesuffix(END) + bytes(512)),
    "a skippable frame behind it": lambda good: good + b"\x50\x2a\x4d\x18\x01\0\0\0x",
    "a skippable frame before it": lambda good: b"\x50\x2a\x4d\x18\x01\0\0\0x" + good,
    "a wrong checksum": lambda good: good[:-4] + bytes(4),
    "a window of 4 GiB": lambda good: good[:5] + b"\xb0" + good[6:],
    "not compressed": decompress,
    "compressed twice": compress,
    "gzip": lambda good: gzip.compress(decompress(good)),
}


@pytest.mark.parametrize("case", TRAILING)
def test_an_archive_with_more_or_less_than_its_members_is_refused(
    tmp_path: Path, case: str
) -> None:
    good = pack(tmp_path / "bad.tar.zst", HEAD, BODY).read_bytes()
    (tmp_path / "bad.tar.zst").write_bytes(TRAILING[case](good))
    refuse(tmp_path / "bad.tar.zst", "bad.tar.zst")


MEMBER_LISTS = {
    "a size that is negative": {"a": {**PLAIN, "bytes": -1}},
    "a size that is true": {"a": {**PLAIN, "bytes": True}},
    "a size with a fraction": {"a": {**PLAIN, "bytes": 0.5}},
    "a size that is text": {"a": {**PLAIN, "bytes": "0"}},
    "no size": {"a": {"sha256": "0" * 64}},
    "a digest that is short": {"a": {"sha256": "00", "bytes": 0}},
    "a digest that is a number": {"a": {"sha256": 0, "bytes": 0}},
    "a digest in capitals": {"a": {"sha256": "A" * 64, "bytes": 0}},
    "an entry that is a list": {"a": []},
    "a list": ["a"],
    "null": None,
    "a number": 3,
    "a file that is also a folder": {"a": PLAIN, "a/b": PLAIN},
    "a file that is also a folder, deep": {"a/b/c/d": PLAIN, "a/b": PLAIN},
    "a NUL": {"a\0b": PLAIN},
    "a line break": {"a\nb": PLAIN},
    "an escape sequence": {"\x1b[2J": PLAIN},
    "a text direction": {"\u202egpj.exe": PLAIN},
    "half of a surrogate pair": {"\ud800": PLAIN},
    "a long name": {"x" * 256: PLAIN},
    "a long path": {"x/" * 600 + "y": PLAIN},
    "a backslash": {"..\\evil": PLAIN},
    "an absolute path": {"/etc/evil": PLAIN},
    "a parent": {"a/../../evil": PLAIN},
    "an empty name": {"": PLAIN},
    "a folder": {"a/": PLAIN},
    "a drive": {"C:evil": PLAIN},
    "names that differ in case": {"model.onnx": PLAIN, "Model.onnx": PLAIN},
    "names that differ in the case of a folder": {"a/x": PLAIN, "A/x": PLAIN},
    "a file that is also a folder in another case": {"a": PLAIN, "A/x": PLAIN},
    "names that differ in their Unicode form": {
        "gr\u00f6\u00dfe": PLAIN,
        "gro\u0308\u00dfe": PLAIN,
    },
    "a folder in two Unicode forms": {"\u00e9/x": PLAIN, "e\u0301/x": PLAIN},
    "names that differ in case and form": {"\u00e9": PLAIN, "E\u0301": PLAIN},
    "a sharp s and two": {"stra\u00dfe": PLAIN, "STRASSE": PLAIN},
    "names that differ in a last dot": {"a/x": PLAIN, "a./x": PLAIN},
    "names that differ in a last space": {"x": PLAIN, "x ": PLAIN},
    "the manifest": {archive.MANIFEST: PLAIN},
    "the manifest's digest": {archive.MANIFEST_DIGEST: PLAIN},
    "a file below the manifest": {f"{archive.MANIFEST}/a": PLAIN},
    "too many": {f"{number:x}": {"sha256": "0" * 64, "bytes": 0} for number in range(10_001)},
}


@pytest.mark.parametrize("case", MEMBER_LISTS)
def test_a_list_of_members_that_is_not_valid_is_refused(tmp_path: Path, case: str) -> None:
    path = pack(tmp_path / "bad.tar.zst", manifest(MEMBER_LISTS[case]))
    refuse(path, "member manifest.json is not valid")


MANIFESTS = {
    "another schema": b'{"schema": 99, "members": {}}',
    "a schema that is a list": b'{"schema": [[]], "members": {}}',
    "NaN": b'{"schema": 1, "members": {}, "x": NaN}',
    "an infinity": b'{"schema": 1, "members": {}, "x": 1e999}',
    "a key twice": b'{"schema": 1, "members": {}, "members": {}}',
    "a number of 5,000 digits": b'{"schema": 1, "members": {}, "x": ' + b"9" * 5000 + b"}",
    "lists of 100,000 levels": b"[" * 100_000,
    "objects of 100,000 levels": b'{"a":' * 100_000,
    "UTF-16": '{"schema": 1, "members": {}}'.encode("utf-16"),
    "bytes that are not UTF-8": b'{"schema": 1, "members": {}, "x": "\xff"}',
    "half of a surrogate pair": b'{"schema": 1, "members": {}, "x": "\\udc80"}',
    "half of a surrogate pair as a key": b'{"schema": 1, "members": {}, "\\ud800": 0}',
    "a list": b"[]",
    "null": b"null",
    "a text": b'"manifest"',
    "nothing": b"",
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_is_not_valid_is_refused(tmp_path: Path, case: str) -> None:
    refuse(pack(tmp_path / "bad.tar.zst", signed(MANIFESTS[case])), "manifest.json is not valid")


def test_members_beyond_the_limit_are_refused_before_any_is_written(tmp_path: Path) -> None:
    path = pack(tmp_path / "large.tar.zst", HEAD, BODY)
    message = refuse(path, "more than the 700 that are allowed", limit=700)
    assert "701 bytes" in message
    assert not (tmp_path / "deep").exists()
    archive.extract(path, tmp_path / "out", limit=701)


@pytest.mark.parametrize("size", [1 << 62, 10**30])
def test_a_manifest_cannot_ask_for_any_amount_of_disk(tmp_path: Path, size: int) -> None:
    head = manifest({"a": {"sha256": "0" * 64, "bytes": size}})
    refuse(pack(tmp_path / "large.tar.zst", head), "are allowed")
    refuse(pack(tmp_path / "large.tar.zst", head), "is full", limit=size)


def test_a_full_disk_is_not_a_damaged_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "good.tar.zst", HEAD, BODY)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(700))
    assert "damaged" not in refuse(path, "the disk of .* is full")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1 << 40))

    opened = Path.open

    def full(path: Path, mode: str = "r") -> object:
        if "x" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", full)
    assert "damaged" not in refuse(path, "the disk of .* is full")


def test_a_member_that_is_longer_than_listed_is_not_unpacked(tmp_path: Path) -> None:
    evil = header(f"{FOLDER}/two", 3 << 30) + bytes(10 << 20)
    path = pack(tmp_path / "bad.tar.zst", HEAD, evil)
    refuse(path, "member two is damaged")
    assert not (tmp_path / "deep/out/two").exists()


def test_a_manifest_reads_as_json_after_all(tmp_path: Path) -> None:
    facts = {"model": "größe", "labels": ["\U0001f600", "µ"], "number": 1.5}
    path = pack(tmp_path / "good.tar.zst", manifest(listed(CONTENTS), **facts), BODY)
    unpacked = archive.extract(path, tmp_path / "out")
    assert {key: unpacked[key] for key in facts} == facts
    assert json.dumps(unpacked)


def evil(name: str, kind: bytes = b"0", link: bytes = b"") -> list[bytes]:
    """Returns blocks of an archive with one hostile member after the manifest."""
    return [HEAD, header(name, 0, kind, linkname=link), BODY]


# One archive for each way to reach what is outside, or to write a file twice.
ATTACKS = {
    "an absolute name": evil("/evil"),
    "a parent": evil(f"{FOLDER}/../../evil"),
    "a parent in the manifest": [manifest({"../evil": PLAIN}), member("../evil", b"")],
    "a symbolic link outside": evil(f"{FOLDER}/a/one", b"2", b"/etc/passwd"),
    "a hard link outside": evil(f"{FOLDER}/a/one", b"1", b"/etc/passwd"),
    "a character device": evil(f"{FOLDER}/a/one", b"3"),
    "a block device": evil(f"{FOLDER}/a/one", b"4"),
    "a FIFO": evil(f"{FOLDER}/a/one", b"6"),
    "a member twice": [HEAD, BODY, member("two", b"2")],
    "a clash of case": [manifest({"x": PLAIN, "X": PLAIN}), member("x", b""), member("X", b"")],
    "a member that is not listed": [HEAD, BODY, member("more", b"")],
    "a missing member": [HEAD, member("two", b"2")],
    "a bomb": [HEAD, header(f"{FOLDER}/two", 3 << 30), bytes(20 << 20)],
    "another schema": [signed(MANIFESTS["another schema"])],
}


@pytest.mark.parametrize("case", ATTACKS)
def test_check_refuses_a_hostile_archive_and_leaves_nothing(
    tmp_path: Path,
    case: str,
    assay: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    path = pack(tmp_path / "bad.tar.zst", *ATTACKS[case])

    def opened(*_arguments: object, **_options: object) -> None:
        raise AssertionError("something was opened")

    monkeypatch.setattr(engine_proof, "prove", opened)
    result = assay("check", "--trust", path)
    assert result.code == 1, result.err
    assert str(path) in result.err
    assert {entry.name for entry in tmp_path.rglob("*")} == {"bad.tar.zst", "tmp"}


def test_check_refuses_every_truncated_archive(
    tmp_path: Path, assay: Callable[..., Result]
) -> None:
    good = pack(tmp_path / "bad.tar.zst", HEAD, BODY).read_bytes()
    for size in range(0, len(good), 16):
        (tmp_path / "bad.tar.zst").write_bytes(good[:size])
        result = assay("check", "--trust", tmp_path / "bad.tar.zst")
        assert result.code == 1, (size, result.err)
