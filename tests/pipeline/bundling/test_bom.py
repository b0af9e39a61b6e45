"""The bill of materials: valid by CycloneDX's own schema, and what it says is in the bundle."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipeline.bundling import bom
from pipeline.workflow.digests import dump_json
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members, pack, resigned
from tests.conftest import Result


@pytest.fixture(scope="module")
def document(built: Store) -> dict[str, Any]:
    return json.loads(members(bundle_of(built))[f"{FOLDER}/{bom.MEMBER}"])


def test_it_is_valid_by_the_strict_schema(document: dict[str, Any]) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_7)
    assert validator.validate_str(json.dumps(document)) is None
    document = {**document, "unknown": 1}
    assert validator.validate_str(json.dumps(document)) is not None


def test_it_names_the_model_its_data_set_libraries_and_files(
    document: dict[str, Any], built: Store
) -> None:
    model = document["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "lenet")
    parameters = model["modelCard"]["modelParameters"]
    assert parameters["inputs"] == [{"format": "image: uint8[batch, 1, 28, 28]"}]
    assert parameters["architectureFamily"] == "convolutional neural network"
    by_ref = {component["bom-ref"]: component for component in document["components"]}
    (dataset,) = parameters["datasets"]
    assert by_ref[dataset["ref"]]["name"] == "fashion-mnist"
    torch = next(entry for entry in by_ref.values() if entry["name"] == "torch")
    assert torch["purl"] == f"pkg:pypi/torch@{torch['version']}"
    assert set(document["dependencies"][0]["dependsOn"]) <= set(by_ref)
    manifest = json.loads(members(bundle_of(built))[f"{FOLDER}/manifest.json"])
    hashes = {
        entry["name"]: entry["hashes"][0]["content"]
        for entry in by_ref.values()
        if entry["type"] == "file"
    }
    listed = {name: entry["sha256"] for name, entry in manifest["members"].items()}
    assert hashes == {
        name: listed[name] for name in listed if name not in (bom.MEMBER, "README.md")
    }


def test_its_figures_are_the_measured_ones(document: dict[str, Any], built: Store) -> None:
    analysis = document["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    metrics = analysis["performanceMetrics"]
    training = json.loads((built.root / "lenet/training.json").read_text())
    accuracies = [entry["value"] for entry in metrics if entry["type"] == "accuracy"]
    assert str(training["test_accuracy"]) in accuracies
    verdicts = {e["slice"].split(" ")[1]: e["value"] for e in metrics if "parity" in e["type"]}
    assert verdicts["graph"] == verdicts["onnxruntime"] == "pass"
    assert verdicts["tensorrt_rtx"] in ("pass", "not run")
    measured = json.loads((built.root / "lenet/fp32/measurements.json").read_text())
    first = measured["results"][0]["seconds"]
    latency = next(entry for entry in metrics if entry["type"] == "latency in seconds, median")
    assert latency["value"] == str(first["value"])
    bounds = {"lowerBound": str(first["low"]), "upperBound": str(first["high"])}
    assert latency["confidenceInterval"] == bounds
    assert measured["machine"]["cpu"] in latency["slice"]


def test_its_serial_number_and_time_are_not_of_today(document: dict[str, Any]) -> None:
    assert uuid.UUID(document["serialNumber"].removeprefix("urn:uuid:"))
    provenance_end = document["metadata"]["timestamp"]
    assert provenance_end.endswith("+00:00")


def test_a_bill_that_lists_other_files_is_refused(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/{bom.MEMBER}"
    bill = json.loads(contents[name])
    listed = next(entry for entry in bill["components"] if entry["type"] == "file")
    for change, words in (
        ({"hashes": [{"alg": "SHA-256", "content": "0" * 64}]}, "that is not the bundle's"),
        ({"name": "another"}, "lists a 'another' that is not the bundle's"),
        ({"hashes": []}, "is not a bill of materials"),
    ):
        forged = {**bill, "components": [{**listed, **change}]}
        bad = resigned({**contents, name: dump_json(forged)}, provenance=False)
        result = assay("check", "--digests-only", pack(tmp_path / "b.tar.zst", [*bad.items()]))
        assert result.code == 1
        assert words in result.err
