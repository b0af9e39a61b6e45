"""Records: the inputs, outputs, parameters and tools of each run of a stage.

A record holds the digests of its inputs and outputs, so records form one chain from the data to
the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engines.errors import DeployError
from pipeline.workflow import hints
from pipeline.workflow.artifacts import CHECKPOINT, Artifact, Paths
from pipeline.workflow.digests import read_json, sha256_file

SCHEMA = 1
# Stands for any precision in the path of a record.
_ANY = "any-precision"


@dataclass(frozen=True)
class Record:
    """The provenance of one run of a stage.

    Attributes:
        key: SHA-256 of everything that the outputs depend on.
        inputs: Digest ("sha256") and record path ("record") of each input, by label.
        outputs: Digest ("sha256") and size ("bytes") of each output, by label.
        tools: Versions of distributions, by name.
        facts: See `Stage.facts`.
        started: UTC time in ISO 8601.
        seconds: How long the stage ran.
    """

    stage: str
    key: str
    params: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    outputs: dict[str, dict[str, Any]]
    tools: dict[str, str]
    facts: dict[str, str]
    started: str
    seconds: float
    schema: int = SCHEMA


def load(path: Path) -> Record | None:
    """Reads a record; None if the file does not exist.

    Raises:
        DeployError: The file is not a record this version understands.
    """
    if not path.exists():
        return None
    return parse(read_json(path), str(path))


def last(root: Path, artifact: Artifact, fields: Mapping[str, str]) -> Record | None:
    """Returns the record of an artifact, or else the newest one of it at another precision.

    Args:
        fields: Parameters that fill the artifact's template.

    Returns:
        None if none exists, or it is damaged.
    """
    path = root / artifact.at(**fields).record
    if not path.exists() and "precision" in fields:
        template = artifact.at(**{**fields, "precision": _ANY}).record
        others = root.glob(template.replace(_ANY, "*"))
        path = max(others, key=lambda file: file.stat().st_mtime, default=path)
    try:
        return load(path)
    except DeployError:
        return None


def again(record: Record) -> str:
    """Returns the command that makes the outputs of a record again, other ones if need be."""
    # Weights are replaced only if the user asks for it.
    retrain = {"retrain": True} if record.stage == CHECKPOINT.stage else {}
    return hints.again(record.stage, {**record.params, **retrain})


def parse(content: Any, name: str) -> Record:
    """Makes a record from its JSON form.

    Args:
        name: The record's name in error messages.

    Raises:
        DeployError: The content is not a record this version understands.
    """
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise DeployError(
            f"{name} is not a record of schema {SCHEMA}", "remove it and run its stage again"
        )
    try:
        record = Record(**content)
        _check_types(record)
    except (TypeError, KeyError, AttributeError) as error:
        raise DeployError(
            f"{name} is damaged: {error}", "remove it and run its stage again"
        ) from error
    return record


def _check_types(record: Record) -> None:
    """Raises TypeError, KeyError or AttributeError if a field has the wrong type.

    So does the path of a record that is outside the folder of the artifacts.
    """
    texts = [record.stage, record.key, record.started, *record.tools.values()]
    texts += record.facts.values()
    for entry in record.inputs.values():
        texts += [entry["sha256"], entry["record"]]
        path = PurePosixPath(entry["record"])
        if path.is_absolute() or ".." in path.parts or not str(path).isprintable():
            raise TypeError(f"{str(path)[:80]!r} is not the path of a record")
    for output in record.outputs.values():
        texts.append(output["sha256"])
        if type(output["bytes"]) is not int:
            raise TypeError(f"a size is {output['bytes']!r:.40}, not an integer")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{text!r:.40} is not text")
    record.params.items()
    if type(record.seconds) not in (int, float):
        raise TypeError(f"the time is {record.seconds!r:.40}, not a number")


@dataclass
class RecordVerifier:
    """Reads records and checks inputs against them.

    Attributes:
        root: Folder of the artifacts and their records.
    """

    root: Path

    def digest(self, artifact: Artifact, paths: Paths, params: Mapping[str, Any]) -> str:
        """Returns the SHA-256 of an input after checking it against its record.

        Args:
            artifact: The input, with its fields filled in.
            params: Parameters of the stage that reads it, for the hint.

        Raises:
            DeployError: The file is missing, has changed since it was made, or is out of date:
                one of its own inputs was made again since.
        """
        path = paths.locate(artifact)

        def fix(more: str = "") -> str:  # only for an error, since it imports the model
            return f"run `{hints.making(artifact, params)}{more}`"

        retrain = " --retrain" if artifact.stage == CHECKPOINT.stage else ""
        if not path.exists():
            raise DeployError(f"no {artifact.kind} here: {path} does not exist", fix())
        try:
            record = load(self.root / artifact.record)
        except DeployError as error:
            raise DeployError(error.message, fix(retrain)) from error
        if record is None or artifact.label not in record.outputs:
            raise DeployError(
                f"no record lists {path}",
                f"{fix(retrain)}, which writes {self.root / artifact.record}",
            )
        expected, actual = record.outputs[artifact.label]["sha256"], sha256_file(path)
        if actual != expected:
            raise DeployError(
                f"{path} is not the {artifact.kind} that was made: expected sha256 {expected},"
                f" found {actual}",
                f"restore the file, or run `{again(record)}`",
            )
        self._check_fresh(artifact.label, record)
        return actual

    def check_fresh(self, artifact: Artifact) -> None:
        """Checks by the records alone that nothing an artifact was made from is another now.

        Args:
            artifact: The artifact, with its fields filled in.

        Raises:
            DeployError: It is out of date.
        """
        if (record := load(self.root / artifact.record)) is not None:
            self._check_fresh(artifact.label, record)

    def _check_fresh(self, label: str, record: Record) -> None:
        makers = {name: load(self.root / entry["record"]) for name, entry in record.inputs.items()}
        # A removed file does not matter: the digest in the record still holds.
        known = {
            name: known_maker
            for name, known_maker in makers.items()
            if known_maker and name in known_maker.outputs
        }
        for name, maker in known.items():
            self._check_fresh(name, maker)  # report the earliest stage that has to run again
        for name, maker in known.items():
            if maker.outputs[name]["sha256"] != record.inputs[name]["sha256"]:
                raise DeployError(
                    f"{label} is out of date: it was made from another {name}",
                    f"run `{again(record)}`",
                )
