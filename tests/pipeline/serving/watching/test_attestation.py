"""Signed lines: what they say, and what is found if they are changed."""

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import DeployError
from pipeline.serving.watching import attestation
from tests.conftest import Result

pytest.importorskip("cryptography")


def keys(folder: Path, name: str = "key", curve: str = "prime256v1") -> tuple[Path, Path]:
    private, public = folder / name, folder / f"{name}.pub"
    make = ["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", private]
    subprocess.run(make, check=True, capture_output=True)
    show = ["openssl", "ec", "-in", private, "-pubout", "-out", public]
    subprocess.run(show, check=True, capture_output=True)
    return private, public


@pytest.fixture
def attested(tmp_path: Path) -> tuple[Path, Path]:
    """A file of three lines, of which the last was added later, and the public key."""
    private, public = keys(tmp_path)
    path = tmp_path / "days.jsonl"
    log = attestation.Log(path, attestation.Key(private, str))
    for day in (1, 2):
        log.add("lenet.tar.zst", "a" * 64, {"day": day})
    log.close()
    log = attestation.Log(path, attestation.Key(private, str))
    log.add("lenet.tar.zst", "a" * 64, {"day": 3})
    log.close()
    return path, public


GOOD: dict[str, object] = {
    "model": "lenet",
    "url": "http://127.0.0.1:8000",
    "from": "2026-01-01T00:00:00+00:00",
    "to": "2026-01-02T00:00:00+00:00",
    "replies": 1000,
    "failures": 0,
    "windows": 50,
    "error_floors": None,
    "latency": {"p99": {"value": 0.001}},
    "events": [{"time": "2026-01-01T00:00:00+00:00", "kind": "down", "reason": "x"}],
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        *({"from": value} for value in (5, None)),
        *({"replies": value} for value in ("abc", None, [1], True)),
        *({"error_floors": value} for value in ("abc", 10**400)),
        *({"latency": value} for value in (None, [], {"p99": 5}, {"p99": {"value": "x"}})),
        *({"events": value} for value in (None, {}, ["a"], [{"time": "t", "kind": 5}])),
    ],
)
def test_a_signed_line_of_another_form_is_an_error(
    tmp_path: Path, assay: Callable[..., Result], change: dict[str, object]
) -> None:
    private, public = keys(tmp_path)
    path = tmp_path / "days.jsonl"
    log = attestation.Log(path, attestation.Key(private, str))
    log.add("lenet.tar.zst", "a" * 64, {**GOOD, **change})
    log.close()
    result = assay("attestations", path, "--public-key", public)
    assert result.code == bool(change), result.err
    assert ("has not the form that `assay watch` writes" in result.err) == bool(change)


def test_lines_are_statements_in_their_order(attested: tuple[Path, Path]) -> None:
    statements = attestation.verify(*attested)
    assert [entry["predicate"]["day"] for entry in statements] == [1, 2, 3]
    assert statements[0]["_type"] == "https://in-toto.io/Statement/v1"
    assert statements[0]["subject"] == [{"name": "lenet.tar.zst", "digest": {"sha256": "a" * 64}}]


def test_openssl_verifies_the_signature_of_a_line(
    attested: tuple[Path, Path], tmp_path: Path
) -> None:
    path, public = attested
    envelope = json.loads(path.read_bytes().splitlines()[0])
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    (tmp_path / "signed").write_bytes(signed)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", tmp_path / "sig"]
    subprocess.run([*command, tmp_path / "signed"], check=True, capture_output=True)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[1:], "line 1 does not follow"),
        (lambda lines: [lines[0], lines[2]], "line 2 does not follow"),
        (lambda lines: [lines[1], lines[0], lines[2]], "line 1 does not follow"),
        (lambda lines: [*lines, lines[2]], "line 4 does not follow"),
        (lambda lines: [lines[0], b"{}\n"], "line 2 is not an attestation"),
        (lambda lines: [lines[0], b"\n"], "line 2 is not an attestation"),
        (lambda lines: [lines[0][:-1]], "complete line"),
        (lambda lines: [lines[0][:40] + b"\n"], "line 1 is not an attestation"),
        (lambda _: [b" " * (2 << 20) + b"\n"], "a line of more than"),
    ],
)
def test_lines_that_are_changed_are_found(
    attested: tuple[Path, Path], change: object, words: str
) -> None:
    path, public = attested
    path.write_bytes(b"".join(change(lines_of(path))))
    with pytest.raises(DeployError, match=words):
        attestation.verify(path, public)


def test_every_bit_of_a_statement_counts(attested: tuple[Path, Path]) -> None:
    path, public = attested
    envelope = json.loads(lines_of(path)[0])
    payload = bytearray(base64.b64decode(envelope["payload"]))
    for place in range(0, len(payload), 7):
        changed = payload.copy()
        changed[place] ^= 1
        line = {**envelope, "payload": base64.b64encode(changed).decode()}
        path.write_text(json.dumps(line) + "\n")
        with pytest.raises(DeployError, match="line 1 was changed"):
            attestation.verify(path, public)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line | {"note": "all fine"},
        lambda line: line | {"signatures": [{**line["signatures"][0], "keyid": "someone else"}]},
        lambda line: line | {"signatures": [*line["signatures"], {"sig": "AAAA", "keyid": "x"}]},
        lambda line: line | {"signatures": [{**line["signatures"][0], "cert": ""}]},
    ],
)
def test_parts_that_are_not_signed_are_found(
    attested: tuple[Path, Path], change: Callable[[dict], dict]
) -> None:
    path, public = attested
    lines = lines_of(path)
    last = json.dumps(change(json.loads(lines[-1])), sort_keys=True).encode()
    path.write_bytes(b"".join(lines[:-1]) + last + b"\n")
    with pytest.raises(DeployError, match="line 3"):
        attestation.verify(path, public)


@pytest.mark.timeout(20)
def test_pipes_and_devices_are_refused(attested: tuple[Path, Path], tmp_path: Path) -> None:
    path, public = attested
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for odd in (pipe, Path("/dev/zero")):
        with pytest.raises(DeployError, match="is not a file"):
            attestation.verify(odd, public)
        with pytest.raises(DeployError, match="is not a file"):
            attestation.verify(path, odd)
    key = attestation.Key(tmp_path / "key", str)
    for odd in (pipe, Path("/dev/full")):
        with pytest.raises(DeployError, match="cannot be written"):
            attestation.Log(odd, key)


def test_another_key_is_refused(attested: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = keys(tmp_path, "other")
    with pytest.raises(DeployError, match="signed with another key"):
        attestation.verify(attested[0], other)
    for public in (tmp_path / "nothing", attested[0]):
        with pytest.raises(DeployError, match=r"does not exist|not a public key"):
            attestation.verify(attested[0], public)


def test_what_is_no_private_ec_key_is_refused(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    (tmp_path / "text").write_text("key")
    make = ["openssl", "genrsa", "-out", tmp_path / "rsa", "2048"]
    subprocess.run(make, check=True, capture_output=True)
    for path, words in (
        (public, "not a private key"),
        (tmp_path / "text", "not a private key"),
        (tmp_path / "rsa", "not an EC key"),
        (tmp_path / "nothing", "does not exist"),
    ):
        with pytest.raises(DeployError, match=words):
            attestation.Key(path, str)
    locked = tmp_path / "locked"
    lock = ["openssl", "ec", "-in", private, "-aes128", "-passout", "pass:x", "-out", locked]
    subprocess.run(lock, check=True, capture_output=True)
    with pytest.raises(DeployError, match=r"passphrase of .* is wrong"):
        attestation.Key(locked, lambda: "y")
    assert (
        attestation.Key(locked, lambda: "x").identity() == attestation.Key(private, str).identity()
    )


def test_an_incomplete_line_is_not_added_to(attested: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = attested
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DeployError, match="complete line"):
        attestation.Log(path, attestation.Key(tmp_path / "key", str))
