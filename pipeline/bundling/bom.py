"""The bill of materials of a bundle: CycloneDX 1.7, with a model card.

Written by hand, since the library for CycloneDX has no model card, and the target has no such
library. Its schema is what the tests validate with.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from pipeline.bundling import attestation, readme
from pipeline.bundling.measured import Figure
from pipeline.workflow.artifacts import TRAIN_IMAGES
from pipeline.workflow.digests import dump_json, parse_json, read_json
from pipeline.workflow.records import Record

MEMBER = "bom.cdx.json"
_MODEL, _DATASET = "model", "dataset"
# They are written after it.
_UNLISTED = (MEMBER, readme.MEMBER)
# In the names of files that hold the terms of use.
_LICENCE = re.compile("licen[cs]e|copying", re.IGNORECASE)


def build(
    facts: Mapping[str, Any],
    records: Mapping[str, Record],
    description: Mapping[str, Any],
    figures: Sequence[Figure],
    files: Mapping[str, str],
    documents: Sequence[str] = (),
) -> bytes:
    """Returns the bill in its JSON form. Equal arguments give equal bytes.

    Args:
        facts: The facts of the bundle's manifest.
        records: The chain of records, by path.
        description: The description of a graph.
        figures: What was measured.
        files: SHA-256 of the bundle's files, by path.
        documents: The paths of those that were attached.
    """
    licences = [{"license": {"name": name}} for name in documents if _LICENCE.search(name)]
    dataset = facts["dataset"]
    packages = attestation.libraries(records.values())
    components = [_dataset(dataset, records)] if dataset else []
    components += [
        {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        for (name, version), purl in packages.items()
    ]
    components += [_file(name, sha256) for name, sha256 in sorted(files.items())]
    used = [*([_DATASET] if dataset else []), *packages.values()]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            # Of the chain, not of today: the same bundle has the same bill.
            "timestamp": attestation.times(records)[1],
            "tools": {
                "components": [{"type": "application", "name": "assay", "version": facts["assay"]}]
            },
            "component": {
                "type": "machine-learning-model",
                "bom-ref": _MODEL,
                "name": facts["model"],
                "description": facts["training"],
                **({"licenses": licences} if licences else {}),
                "modelCard": _card(facts, description, figures),
            },
        },
        "components": components,
        "dependencies": [{"ref": _MODEL, "dependsOn": sorted({*used})}],
    }
    return _numbered(document)


def check(path: Path, digests: Mapping[str, str]) -> None:
    """Checks that a bill lists the files of the bundle, and no others.

    Args:
        path: The bill.
        digests: SHA-256 of the bundle's files, by path.

    Raises:
        DeployError: It lists another file, leaves one out, or cannot be read.
    """
    document = read_json(path)
    try:
        listed = {
            component["name"]: component["hashes"][0]["content"]
            for component in document["components"]
            if component["type"] == "file"
        }
        wrong = [name for name, sha256 in listed.items() if digests.get(name) != sha256]
        left_out = [
            name for name in digests if name not in listed and Path(name).name not in _UNLISTED
        ]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DeployError(f"{path} is not a bill of materials: {error!r}") from error
    if wrong:
        raise DeployError(f"{path} lists a {wrong[0][:80]!r} that is not the bundle's")
    if left_out:
        raise DeployError(f"{path} does not list {left_out[0]}")


def merged(first: bytes, others: Mapping[str, bytes]) -> bytes:
    """Returns the bill of a bundle into which others were merged.

    Args:
        first: The bill of the bundle whose files stay where they are.
        others: The bills of the others, by the folder that their files are in.
    """
    document = parse_json(first)
    (dependency,) = document["dependencies"]
    card = document["metadata"]["component"]["modelCard"]
    for prefix, content in others.items():
        other = parse_json(content)
        for component in other["components"]:
            if component["type"] == "file":
                name = f"{prefix}{component['name']}"
                document["components"].append(
                    {**component, "bom-ref": f"file:{name}", "name": name}
                )
            elif component["bom-ref"] not in {one["bom-ref"] for one in document["components"]}:
                document["components"].append(component)
                dependency["dependsOn"] = sorted({*dependency["dependsOn"], component["bom-ref"]})
        model = other["metadata"]["component"]
        for entry in model.get("licenses", []):
            name = f"{prefix}{entry['license']['name']}"
            document["metadata"]["component"].setdefault("licenses", []).append(
                {"license": {"name": name}}
            )
        measured = model["modelCard"]["quantitativeAnalysis"]
        card["quantitativeAnalysis"]["performanceMetrics"] += [
            {**metric, "slice": f"{prefix}: {metric['slice']}"}
            for metric in measured["performanceMetrics"]
        ]
        times = document["metadata"]["timestamp"], other["metadata"]["timestamp"]
        document["metadata"]["timestamp"] = max(times)
    del document["serialNumber"]
    return _numbered(document)


def _numbered(document: dict[str, Any]) -> bytes:
    """Returns a bill in its JSON form, with the serial number that follows from its content."""
    digest = hashlib.sha256(dump_json(document)).digest()
    return dump_json({**document, "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16])}"})


def _card(
    facts: Mapping[str, Any], description: Mapping[str, Any], figures: Sequence[Figure]
) -> dict[str, Any]:
    # All precisions have the same inputs and outputs.
    model = next(iter(facts["models"].values()))
    parameters: dict[str, Any] = {
        "modelArchitecture": facts["model"],
        "inputs": [{"format": text} for text in model["inputs"]],
        "outputs": [{"format": text} for text in model["outputs"]],
    }
    if facts["labels"]:
        parameters |= {"task": "classification", "approach": {"type": "supervised"}}
    if any(node["operator"] == "Conv" for node in description["nodes"]):
        parameters["architectureFamily"] = "convolutional neural network"
    limitations = [
        "The latencies hold for the machine that they name.",
        "The outputs were compared with PyTorch's on the golden file, and may differ more on other"
        " inputs.",
    ]
    if facts["dataset"]:
        parameters["datasets"] = [{"ref": _DATASET}]
        limitations.insert(
            0, f"The accuracy is that on the test images of {facts['dataset']}, and on no others."
        )
    classes = f" into {len(facts['labels'])} classes" if facts["labels"] else ""
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": [_metric(figure) for figure in figures]},
        "considerations": {
            "useCases": [f"Inference{classes} on inputs like those of its data set."],
            "technicalLimitations": limitations,
        },
        "properties": [
            {"name": f"assay:{name}", "value": str(value)}
            for name, value in (
                ("parameters", description["parameters"]),
                ("multiply_adds", description["multiply_adds"]),
                ("preprocessing", facts["preprocessing"]),
            )
        ],
    }


def _metric(figure: Figure) -> dict[str, Any]:
    metric: dict[str, Any] = {
        "type": figure.kind,
        "value": str(figure.value),
        "slice": figure.where,
    }
    if figure.low is not None:
        metric["confidenceInterval"] = {
            "lowerBound": str(figure.low),
            "upperBound": str(figure.high),
        }
    return metric


def _dataset(name: str, records: Mapping[str, Record]) -> dict[str, Any]:
    files = {
        label: entry["sha256"]
        for record in records.values()
        if record.stage == TRAIN_IMAGES.stage
        for label, entry in attestation.outputs(record)
    }
    component: dict[str, Any] = {
        "type": "data",
        "bom-ref": _DATASET,
        "name": name,
        "data": [{"type": "dataset", "name": name}],
    }
    if files:
        component["components"] = [_file(label, sha256) for label, sha256 in sorted(files.items())]
    return component


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }
