"""The provenance of a bundle: an in-toto statement with SLSA's predicate, made from its records.

It says nothing that the records do not say, in the form that other tools read. So `check` makes it
again and compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from engines.errors import DeployError
from pipeline.workflow.artifacts import (
    CHECKPOINT,
    ENGINE,
    GOLDEN,
    GRAPH,
    GRAPH_DATA,
    TRAIN_IMAGES,
)
from pipeline.workflow.digests import dump_json
from pipeline.workflow.records import Record

MEMBER = "provenance.intoto.json"
# The type of an in-toto statement.
STATEMENT = "https://in-toto.io/Statement/v1"
# Names of what made a bundle and of how; they are identifiers, not addresses.
_BUILD_TYPE, _BUILDER = "urn:assay:chain-of-records:1", "urn:assay:command-line"
_OURS = "assay"
_GRAPH_FILES = (GRAPH.name, GRAPH_DATA.name, GOLDEN.name)
_ENGINE_STEM = ENGINE.name.partition("{")[0]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"\d+(\.\d+)+[0-9A-Za-z.+]*")
# Begin the names of facts about the machine, some of which have numbers with points, too.
_MACHINE = ("cpu", "gpu", "machine")


def build(records: Mapping[str, Record]) -> bytes:
    """Returns the statement in its JSON form. Equal records give equal bytes.

    Args:
        records: The chain of records, by path.

    Raises:
        ValueError: A record's time is not one.
    """
    first, last = times(records)
    versions = sorted({record.tools[_OURS] for record in records.values() if _OURS in record.tools})
    return dump_json(
        {
            "_type": STATEMENT,
            "subject": [_described(*subject) for subject in _subjects(records.values())],
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {
                "buildDefinition": {
                    "buildType": _BUILD_TYPE,
                    "externalParameters": {
                        path: {"stage": record.stage, "params": record.params}
                        for path, record in records.items()
                    },
                    "internalParameters": {
                        path: record.facts for path, record in records.items() if record.facts
                    },
                    "resolvedDependencies": _dependencies(records),
                },
                "runDetails": {
                    "builder": {"id": _BUILDER, "version": {_OURS: ", ".join(versions)}},
                    "metadata": {"startedOn": first, "finishedOn": last},
                },
            },
        }
    )


def check(root: Path, records: Mapping[str, Record]) -> None:
    """Checks that the statement below `root` is the one that the records give.

    Raises:
        DeployError: It is missing, or says something else.
    """
    path = root / MEMBER
    if not path.is_file():
        raise DeployError(f"{path} is missing", "write the bundle again with this version of assay")
    try:
        expected = build(records)
    except (ValueError, OverflowError) as error:
        raise DeployError(f"{path}: the time of a record is not valid: {error}") from error
    if path.stat().st_size != len(expected) or path.read_bytes() != expected:
        raise DeployError(
            f"{path} is not the provenance that the records give: one of them is forged",
            "get the bundle again from where it was made",
        )


def outputs(record: Record) -> list[tuple[str, dict[str, Any]]]:
    """Returns the outputs of a record with their labels, sorted."""
    return sorted(record.outputs.items())


def _subjects(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Returns label and SHA-256 of the graphs, golden files and engines that records list."""
    known: dict[str, str] = {}
    for record in records:
        for label, entry in outputs(record):
            path = PurePosixPath(label)
            graph = record.stage == GRAPH.stage and path.name in _GRAPH_FILES
            if graph or (record.stage == ENGINE.stage and path.stem == _ENGINE_STEM):
                known[label] = entry["sha256"]
    return sorted(known.items())


def times(records: Mapping[str, Record]) -> tuple[str, str]:
    """Returns when the first stage started and the last one ended, in UTC and whole seconds."""
    starts, ends = [], []
    for record in records.values():
        start = datetime.fromisoformat(record.started)
        start = (start if start.tzinfo else start.replace(tzinfo=UTC)).astimezone(UTC)
        starts.append(start)
        ends.append(start + timedelta(seconds=record.seconds))
    return tuple(time.replace(microsecond=0).isoformat() for time in (min(starts), max(ends)))  # type: ignore[return-value]


def libraries(records: Iterable[Record]) -> dict[tuple[str, str], str]:
    """Returns the package URL of each library that a record names, by name and version."""
    known = set()
    for record in records:
        known |= {(name, version) for name, version in record.tools.items() if name != _OURS}
        known |= {
            (name, version)
            for name, version in record.facts.items()
            if not name.startswith(_MACHINE) and " " not in name and _VERSION.fullmatch(version)
        }
    return {
        (name, version): f"pkg:pypi/{re.sub('[-_.]+', '-', name).lower()}@{version}"
        for name, version in sorted(known)
    }


def material(records: Iterable[Record]) -> dict[str, str]:
    """Returns the SHA-256 of the data set's files, the weights and the sources, by name."""
    known: dict[str, str] = {}
    for record in records:
        if record.stage in (TRAIN_IMAGES.stage, CHECKPOINT.stage):
            known |= {label: entry["sha256"] for label, entry in record.outputs.items()}
        known |= {name: fact for name, fact in record.facts.items() if _SHA256.fullmatch(fact)}
    return dict(sorted(known.items()))


def _dependencies(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    files = [_described(name, sha256) for name, sha256 in material(records.values()).items()]
    packages = [
        {"name": name, "uri": purl} for (name, _), purl in libraries(records.values()).items()
    ]
    return files + packages


def _described(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}
