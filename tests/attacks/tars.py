"""Writes tar archives block by block, as an attacker may, and small bundles."""

import hashlib
import json
from pathlib import Path

from pipeline.bundling import archive
from tests.bundles import compress

BLOCK = 512
FOLDER = "model-fp32"
END = bytes(10240)


def header(name: str | bytes, size: int | bytes, kind: bytes = b"0", **fields: bytes) -> bytes:
    """Returns a header with a valid checksum.

    Args:
        size: The size, or the bytes of its field.
        fields: Other fields: "magic", "prefix", "checksum", "linkname".
    """
    number = size if isinstance(size, bytes) else b"%011o\0" % size
    raw = name if isinstance(name, bytes) else name.encode()
    block = bytearray(BLOCK)
    block[: len(raw[:100])] = raw[:100]
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124 : 124 + len(number)] = number
    block[136:148] = b"%011o\0" % 0
    block[156:157] = kind
    block[257:265] = fields.get("magic", b"ustar\x0000")
    link, prefix = fields.get("linkname", b""), fields.get("prefix", b"")
    block[157 : 157 + len(link)] = link
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = fields.get("checksum", b"%06o\0 " % sum(block))
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def member(name: str, content: bytes) -> bytes:
    return header(f"{FOLDER}/{name}", len(content)) + padded(content)


def pax(body: bytes, kind: bytes = b"x") -> bytes:
    return header("././@PaxHeader", len(body), kind) + padded(body)


def pax_record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def listed(contents: dict[str, bytes]) -> dict[str, object]:
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }


def manifest(members: object, **facts: object) -> bytes:
    """Returns the members of a manifest and its digest."""
    text = json.dumps({"schema": archive.SCHEMA, "members": members, **facts}).encode()
    return signed(text)


def signed(text: bytes) -> bytes:
    digest = f"{hashlib.sha256(text).hexdigest()}  {archive.MANIFEST}\n".encode()
    return member(archive.MANIFEST, text) + member(archive.MANIFEST_DIGEST, digest)


def pack(path: Path, *blocks: bytes, end: bytes = END) -> Path:
    path.write_bytes(compress(b"".join(blocks) + end))
    return path
