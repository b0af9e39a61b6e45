"""Signed lines that say what a server answered, each naming the one before it.

A line is a DSSE envelope (Dead Simple Signing Envelope, v1.0.0) around an in-toto Statement v1,
signed with an EC key by ECDSA with SHA-256. Every statement has the digest of the line before it:
a line that is changed, left out or put elsewhere is found.
"""

from __future__ import annotations

import base64
import binascii
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.cache import sync
from engines.checks import import_vendor
from engines.errors import DeployError
from pipeline.bundling import signature
from pipeline.bundling.attestation import STATEMENT
from pipeline.workflow.digests import dump_json, open_file, parse_json, require_file

INSTALL = "pip install cryptography"
PREDICATE = "urn:assay:watched:v1"
_PAYLOAD = "application/vnd.in-toto+json"
_MAX_LINE = 1 << 20
_LARGEST = 1e300  # of figures that can be printed


def _encoded(payload: bytes) -> bytes:
    """Returns what is signed: DSSE's pre-authentication encoding."""
    kind = _PAYLOAD.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


class Key:
    """A private EC key that signs lines."""

    def __init__(self, path: Path, passphrase: Callable[[], str]) -> None:
        """Reads a key in PEM form.

        Args:
            passphrase: Called for the passphrase if the key is encrypted.

        Raises:
            NotAvailableError: The library `cryptography` is not installed.
            DeployError: The file is not a private EC key, or the passphrase is wrong.
        """
        self._key, _ = signature.private_key(path, passphrase)

    def sign(self, payload: bytes) -> bytes:
        """Returns the signature of a payload."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        signed: bytes = self._key.sign(_encoded(payload), ec.ECDSA(hashes.SHA256()))
        return signed

    def public(self) -> Any:
        """Returns the public key."""
        return self._key.public_key()

    def identity(self) -> str:
        """Returns the fingerprint of the public key."""
        return signature.fingerprint(self._key.public_key())


class Log:
    """A file to which signed lines are added, by one process at a time."""

    def __init__(self, path: Path, key: Key) -> None:
        """Opens the file, and makes it if it does not exist.

        Raises:
            DeployError: It cannot be written, another process adds to it, or it holds something
                else than lines that this key has signed.
        """
        self._path, self._key = path, key
        try:
            # Without O_NONBLOCK it would wait for whoever reads a pipe.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
            self._file = os.fdopen(os.open(path, flags, 0o644), "ab")
            if not path.is_file():
                self._file.close()
                raise OSError(errno.EINVAL, "it is not a file")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise DeployError(
                f"another process adds to {path}", "give each watch a file of its own"
            ) from error
        except OSError as error:
            raise DeployError(
                f"{path} cannot be written: {error.strerror or error}",
                "give a file in a folder that exists and that you can write",
            ) from error
        try:
            _, self._last = _verified(path, key.public(), "this key")
        except DeployError as error:
            self._file.close()
            raise DeployError(error.message, "give another --attest FILE") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def add(self, subject: str, digest: str, facts: Mapping[str, Any]) -> None:
        """Adds a line, and forces it to the disk.

        Args:
            subject: The name of the bundle.
            digest: Its SHA-256.
            facts: What is attested, as JSON values.
        """
        statement = {
            "_type": STATEMENT,
            "subject": [{"name": subject, "digest": {"sha256": digest}}],
            "predicateType": PREDICATE,
            "predicate": {**facts, "previous": self._last},
        }
        payload = dump_json(statement)
        envelope = {
            "payloadType": _PAYLOAD,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {
                    "keyid": self._key.identity(),
                    "sig": base64.b64encode(self._key.sign(payload)).decode(),
                }
            ],
        }
        line = json.dumps(envelope, sort_keys=True).encode()
        try:
            self._file.write(line + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            sync(self._path.parent)
        except OSError as error:
            raise DeployError(f"{self._path} cannot be written: {error.strerror}") from error
        self._last = _digest(line)


def verify(path: Path, public_key: Path) -> list[dict[str, Any]]:
    """Returns the statements of a file whose signatures and order all hold.

    Raises:
        DeployError: A line is damaged, was signed with another key, or does not follow the one
            before it; the message names it. Or the key cannot be read.
        NotAvailableError: The library `cryptography` is not installed.
    """
    import_vendor("cryptography", INSTALL)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    content = signature.read_small(public_key, "public key")
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeployError(f"{public_key} is not a public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeployError(f"{public_key} is not an EC key")
    return _verified(path, key, str(public_key))[0]


def require_about(
    path: Path, statements: Sequence[Mapping[str, Any]], sha256: str | None, url: str | None
) -> None:
    """Raises DeployError unless every statement of a file is of a watch, of a bundle and a server.

    Args:
        path: What messages call the file.
        sha256: The bundle's digest; None if any will do.
        url: The server's address, as the watch named it; None if any will do.
    """
    for number, statement in enumerate(statements, 1):
        if not _is_ours(statement):
            raise DeployError(
                f"{path}: line {number} is signed, but has not the form that `assay watch` writes"
            )
        subject = statement["subject"][0]
        if sha256 is not None and subject["digest"]["sha256"] != sha256:
            raise DeployError(
                f"{path}: line {number} is about another bundle: {subject['name']!r:.200} with"
                f" SHA-256 {subject['digest']['sha256']!r:.80}, not {sha256}",
                "name the bundle that was given to `assay watch`",
            )
        if url is not None and statement["predicate"]["url"].rstrip("/") != url.rstrip("/"):
            raise DeployError(
                f"{path}: line {number} is about {statement['predicate']['url']!r:.200}, not {url}",
                "write the address as it was given to `assay watch`",
            )


def _verified(path: Path, key: Any, name: str) -> tuple[list[dict[str, Any]], str]:
    """Returns the statements of a file, and the digest of its last line; see `verify`.

    Args:
        key: The public key.
        name: What messages call it.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    statements, last = [], ""
    for number, line in enumerate(_lines(path), 1):
        try:
            envelope = parse_json(line)
            if not _plain(envelope, line):
                raise ValueError("it has parts that no line of ours has")
            payload = base64.b64decode(envelope["payload"], validate=True)
            signed = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
            key.verify(signed, _encoded(payload), ec.ECDSA(hashes.SHA256()))
            statement = parse_json(payload)
            follows = statement["predicate"]["previous"] == last
            known = (envelope["payloadType"], statement["predicateType"]) == (_PAYLOAD, PREDICATE)
            own = envelope["signatures"][0]["keyid"] == signature.fingerprint(key)
        except InvalidSignature as error:
            raise DeployError(
                f"{path}: line {number} was changed, or signed with another key than {name}"
            ) from error
        except (ValueError, KeyError, TypeError, IndexError, binascii.Error) as error:
            raise DeployError(f"{path}: line {number} is not an attestation: {error!r}") from error
        if not own:
            raise DeployError(f"{path}: line {number} names another key than {name}")
        if not known:
            raise DeployError(f"{path}: line {number} attests something else")
        if not follows:
            raise DeployError(
                f"{path}: line {number} does not follow the line before it",
                "a line is missing or was moved; look for a copy of the whole file",
            )
        statements.append(statement)
        last = _digest(line)
    return statements, last


def _is_ours(statement: Mapping[str, Any]) -> bool:
    """Whether a statement has the fields that a watch writes, in their types."""
    facts = statement["predicate"]
    try:
        (subject,) = statement["subject"]
        texts = [subject["name"], subject["digest"]["sha256"]]
        texts += [facts[key] for key in ("model", "url", "from", "to")]
        texts += [event[key] for event in facts["events"] for key in ("time", "kind", "reason")]
        counts = [facts[key] for key in ("replies", "failures", "windows")]
        figures = [value["value"] for value in facts["latency"].values()]
        figures += [] if facts["error_floors"] is None else [facts["error_floors"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return (
        isinstance(facts["events"], list)
        and all(isinstance(text, str) for text in texts)
        and all(type(count) is int for count in counts)
        and all(type(figure) in (int, float) and abs(figure) < _LARGEST for figure in figures)
    )


def _plain(envelope: Any, line: bytes) -> bool:
    """Whether a line has the form that we write: nothing in it is left out of what is verified."""
    (one,) = envelope["signatures"]
    parts = {*envelope} == {"payload", "payloadType", "signatures"} and {*one} == {"keyid", "sig"}
    return parts and json.dumps(envelope, sort_keys=True).encode() == line


def _lines(path: Path) -> list[bytes]:
    require_file(path, "give the path of a file that `assay watch --attest` wrote")
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}") from error
    if content and not content.endswith(b"\n"):
        raise DeployError(f"{path} does not end with a complete line")
    lines = content.split(b"\n")[:-1]
    if any(len(line) > _MAX_LINE for line in lines):
        raise DeployError(f"{path} has a line of more than {_MAX_LINE:,} bytes")
    return lines


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
