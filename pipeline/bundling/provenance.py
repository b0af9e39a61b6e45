"""The chain of digests in the records, from the weights to the engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from engines.errors import DeployError
from pipeline.workflow.digests import read_json
from pipeline.workflow.records import Record, load, parse


def record_paths(root: Path, records: Iterable[str]) -> list[str]:
    """Returns the paths of records and of all records they depend on, sorted."""
    reached: set[str] = set()
    todo = set(records)
    while todo:
        path = todo.pop()
        reached.add(path)
        record = load(root / path)
        if record is not None:
            todo |= {entry["record"] for entry in record.inputs.values()} - reached
    return sorted(reached)


def read_records(root: Path, paths: list[str]) -> dict[str, Record]:
    """Reads the records at `paths` below `root`.

    Raises:
        DeployError: One is missing or not valid.
    """
    records = {}
    for path in paths:
        if not (root / path).is_file():
            raise DeployError(f"the chain of records is broken: {path} is missing")
        records[path] = parse(read_json(root / path), path)
    return records


def digests(records: Mapping[str, Record]) -> dict[str, str]:
    """Returns the SHA-256 of every output of records, by its label."""
    return {
        label: entry["sha256"]
        for record in records.values()
        for label, entry in record.outputs.items()
    }


def check(records: Mapping[str, Record], digests: Mapping[str, str]) -> int:
    """Checks that every record's inputs are outputs of other records, and checks the files.

    Args:
        records: Records by path.
        digests: SHA-256 of the unpacked files, by label.

    Returns:
        The number of links that were checked.

    Raises:
        DeployError: Two digests differ, or a record is missing; the message names both sides.
    """
    links = 0
    for path, record in records.items():
        for label, entry in record.inputs.items():
            maker = records.get(entry["record"])
            if maker is None or label not in maker.outputs:
                raise DeployError(
                    f"the chain of records is broken: {path} was made from {label}, which no"
                    " record in the bundle made"
                )
            if maker.outputs[label]["sha256"] != entry["sha256"]:
                raise DeployError(
                    f"the chain of records is broken: {path} was made from another {label}"
                    f" (sha256 {entry['sha256']}, not {maker.outputs[label]['sha256']})"
                )
            links += 1
        for label, entry in record.outputs.items():
            if digests.get(label, entry["sha256"]) != entry["sha256"]:
                raise DeployError(
                    f"the chain of records is broken: {label} is not the file that {path} names"
                )
            links += label in digests
    return links
