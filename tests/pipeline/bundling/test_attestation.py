"""The provenance of a bundle: other tools read it, and a forged one is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from pipeline.bundling import attestation
from pipeline.bundling.manifest import files
from pipeline.workflow import records
from pipeline.workflow.digests import dump_json
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members, pack, resigned
from tests.conftest import Result

NAME = f"{FOLDER}/{attestation.MEMBER}"


def read(store: Store) -> dict[str, Any]:
    return json.loads(members(bundle_of(store))[NAME])


def test_its_form_is_that_of_in_toto_and_slsa(built: Store) -> None:
    document = read(built)
    parsed = json_format.ParseDict(document, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    # Fields that SLSA does not know are errors here.
    json_format.ParseDict(document["predicate"], provenance_pb2.Provenance())


def test_it_names_what_was_made_from_what(built: Store) -> None:
    document, contents = read(built), members(bundle_of(built))
    manifest = json.loads(contents[f"{FOLDER}/manifest.json"])
    subjects = {entry["name"]: entry["digest"]["sha256"] for entry in document["subject"]}
    (model,) = manifest["models"].values()
    assert set(subjects) == {*files(model)}
    assert all(digest == manifest["members"][name]["sha256"] for name, digest in subjects.items())
    definition = document["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["lenet/train.json"]["params"]["epochs"] == 10
    known = {entry["name"]: entry for entry in definition["resolvedDependencies"]}
    record = json.loads(contents[f"{FOLDER}/lenet/train.json"])
    weights = record["outputs"]["lenet/checkpoint.safetensors"]["sha256"]
    assert known["lenet/checkpoint.safetensors"]["digest"]["sha256"] == weights
    assert "data/fashion-mnist/train-images.idx" in known
    assert known["torch"]["uri"] == f"pkg:pypi/torch@{record['tools']['torch']}"
    assert known["openvino"]["uri"].startswith("pkg:pypi/openvino@")
    times = document["predicate"]["runDetails"]["metadata"]
    assert times["startedOn"] <= record["started"] <= times["finishedOn"]


def _forged_parameter(document: dict[str, Any]) -> None:
    parameters = document["predicate"]["buildDefinition"]["externalParameters"]
    parameters["lenet/train.json"]["params"]["epochs"] = 90


def _forged_weights(document: dict[str, Any]) -> None:
    (entry,) = (
        entry
        for entry in document["predicate"]["buildDefinition"]["resolvedDependencies"]
        if entry["name"] == "lenet/checkpoint.safetensors"
    )
    entry["digest"]["sha256"] = "0" * 64


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a parameter": _forged_parameter,
    "the weights": _forged_weights,
    "a subject": lambda document: document["subject"].pop(),
    "the builder": lambda document: document["predicate"]["runDetails"]["builder"].update(id="x:y"),
    "one more field": lambda document: document.update(comment="trusted"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_statement_with_consistent_digests_is_refused(
    built: Store, tmp_path: Path, assay: Callable[..., Result], case: str
) -> None:
    contents = members(bundle_of(built))
    document = json.loads(contents[NAME])
    FORGED[case](document)
    forged = resigned({**contents, NAME: dump_json(document)}, provenance=False)
    path = pack(tmp_path / "forged.tar.zst", list(forged.items()))
    result = assay("check", "--trust", path)
    assert result.code == 1
    assert "provenance.intoto.json is not the provenance that the records give" in result.err


def test_forged_records_without_a_matching_statement_are_refused(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/lenet/train.json"
    record = json.loads(contents[name])
    record["params"]["epochs"] = 90
    changed = {**contents, name: dump_json(record)}
    path = pack(tmp_path / "forged.tar.zst", list(resigned(changed, provenance=False).items()))
    result = assay("check", "--trust", path)
    assert result.code == 1
    assert "provenance.intoto.json is not" in result.err


@pytest.mark.parametrize("started", ["yesterday", "9999-12-31T23:59:59+00:00", ""])
def test_a_record_without_a_time_is_an_error(
    built: Store, tmp_path: Path, assay: Callable[..., Result], started: str
) -> None:
    contents = members(bundle_of(built))
    name = f"{FOLDER}/lenet/train.json"
    record = json.loads(contents[name])
    record.update(started=started, seconds=1e9)
    forged = resigned({**contents, name: dump_json(record)})
    result = assay("check", "--trust", pack(tmp_path / "f.tar.zst", list(forged.items())))
    assert result.code == 1
    assert "the time of a record is not valid" in result.err


def test_a_bundle_without_it_is_refused(
    built: Store, tmp_path: Path, assay: Callable[..., Result]
) -> None:
    contents = members(bundle_of(built))
    manifest = json.loads(contents[f"{FOLDER}/manifest.json"])
    del manifest["members"][attestation.MEMBER], contents[NAME]
    contents[f"{FOLDER}/manifest.json"] = dump_json(manifest)
    forged = resigned(contents, provenance=False)
    result = assay("check", "--trust", pack(tmp_path / "f.tar.zst", list(forged.items())))
    assert result.code == 1
    assert "provenance.intoto.json is missing" in result.err


def test_a_driver_is_no_library() -> None:
    facts = {"gpu_driver": "580.159.04", "gpu_compute_capability": "9.0", "onnxruntime": "1.31.1"}
    record = records.Record("build", "", {}, {}, {}, {"assay": "0.1.0"}, facts, "", 0)
    assert set(attestation.libraries([record])) == {("onnxruntime", "1.31.1")}
