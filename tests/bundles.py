"""Unpacking and packing bundles, to damage them in between."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import DeployError
from pipeline.bundling import archive, attestation, bom, compression
from pipeline.bundling.manifest import content_digest
from pipeline.workflow import records
from pipeline.workflow.digests import dump_json
from pipeline.workflow.runner import Store

FOLDER = "lenet-fp32"
_UNLISTED = (archive.MANIFEST, archive.MANIFEST_DIGEST, bom.MEMBER, "README.md")


def bundle_of(store: Store) -> Path:
    return store.dist / f"{FOLDER}.tar.zst"


def compress(content: bytes) -> bytes:
    packed = io.BytesIO()
    with compression.compressed(packed) as file:
        file.write(content)
    return packed.getvalue()


def decompress(content: bytes) -> bytes:
    return compression.decompressor().decompress(content)


@contextmanager
def opened(bundle: Path) -> Iterator[tarfile.TarFile]:
    with tarfile.open(fileobj=io.BytesIO(decompress(bundle.read_bytes()))) as archive:
        yield archive


def members(bundle: Path) -> dict[str, bytes]:
    with opened(bundle) as files:
        return {info.name: files.extractfile(info).read() for info in files}


def pack(target: Path, contents: list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    with (
        target.open("wb") as raw,
        compression.compressed(raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as files,
    ):
        for name, content in contents:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            files.addfile(info, io.BytesIO(content))
    return target


def rerecorded(contents: dict[str, bytes], changes: dict[str, bytes]) -> dict[str, bytes]:
    """Changes members, and all records and the manifest to match, as an attacker would.

    Args:
        changes: New contents by the member's path in the bundle.
    """
    contents = {**contents, **{f"{FOLDER}/{name}": content for name, content in changes.items()}}
    for name, content in changes.items():
        for path, text in contents.items():
            if path.endswith(".json") and f'"{name}"'.encode() in text:
                contents[path] = with_digest(text, name, content)
    contents = resigned(contents)
    name = f"{FOLDER}/{archive.MANIFEST}"
    listed = json.loads(contents[name])
    digests = {path: entry["sha256"] for path, entry in listed["members"].items()}
    listed["content"] = content_digest(listed, digests)
    return resigned({**contents, name: dump_json(listed)})


def with_digest(text: bytes, name: str, content: bytes) -> bytes:
    """Returns a record that names another content of a file; other JSON files stay as they are."""
    record = json.loads(text)
    if "stage" not in record:
        return text
    for field in ("inputs", "outputs"):
        if name in record[field]:
            record[field][name]["sha256"] = hashlib.sha256(content).hexdigest()
    if name in record["outputs"]:
        record["outputs"][name]["bytes"] = len(content)
    return dump_json(record)


def with_provenance(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Makes the provenance again from changed records; leaves it if they are not valid."""
    try:
        manifest = json.loads(contents[f"{FOLDER}/{archive.MANIFEST}"])
        chain = {
            path: records.parse(json.loads(contents[f"{FOLDER}/{path}"]), path)
            for path in manifest["chains"][""]
        }
        statement = attestation.build(chain)
    except (DeployError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return contents
    return {**contents, f"{FOLDER}/{attestation.MEMBER}": statement}


def with_bill(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Makes the bill of materials list all members; leaves it if it is not valid."""
    try:
        bill = json.loads(contents[f"{FOLDER}/{bom.MEMBER}"])
        for component in bill["components"]:
            if component["type"] == "file":
                content = contents.get(f"{FOLDER}/{component['name']}", b"")
                component["hashes"][0]["content"] = hashlib.sha256(content).hexdigest()
        listed = {component["name"] for component in bill["components"]}
        for path, content in contents.items():
            name = path.partition("/")[2]
            if name not in (*listed, *_UNLISTED):
                hashes = [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}]
                file = {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": hashes}
                bill["components"].append(file)
    except (LookupError, TypeError, ValueError, AttributeError):
        return contents
    return {**contents, f"{FOLDER}/{bom.MEMBER}": dump_json(bill)}


def resigned(contents: dict[str, bytes], *, provenance: bool = True) -> dict[str, bytes]:
    """Updates the manifest to match changed members, as an attacker would.

    Args:
        provenance: Update the provenance and the bill of materials, too.
    """
    contents = with_bill(with_provenance(contents)) if provenance else contents
    manifest = json.loads(contents[f"{FOLDER}/{archive.MANIFEST}"])
    for name in manifest["members"]:
        content = contents.get(f"{FOLDER}/{name}", b"")
        digest = hashlib.sha256(content).hexdigest()
        manifest["members"][name] = {"sha256": digest, "bytes": len(content)}
    packed = dump_json(manifest)
    digest = f"{hashlib.sha256(packed).hexdigest()}  {archive.MANIFEST}\n".encode()
    ours = {f"{FOLDER}/{archive.MANIFEST}": packed, f"{FOLDER}/{archive.MANIFEST_DIGEST}": digest}
    return {**contents, **ours}
