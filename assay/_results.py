"""What the functions of the library return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.verification.verdict import Verdict


@dataclass(frozen=True)
class Training:
    """A checkpoint.

    Attributes:
        checkpoint: The weights, a safetensors file.
        accuracy: On the test set, from 0 to 1; None unless it is a classifier with a data set.
        record: Options, curve and machine, as in `training.json`.
        skipped: Nothing had changed, so the checkpoint is the one that was there.
    """

    checkpoint: Path
    accuracy: float | None
    record: Mapping[str, Any]
    skipped: bool


@dataclass(frozen=True)
class Export:
    """A graph and the means to prove it.

    Attributes:
        graph: The ONNX graph.
        program: The exported PyTorch program; None in a quantized precision.
        golden: Inputs, and the outputs of the model in float64.
        description: Operators, types and parameters, as in `graph.json`.
        skipped: Nothing had changed, so it is the one that was there.
    """

    graph: Path
    program: Path | None
    golden: Path
    description: Mapping[str, Any]
    skipped: bool


@dataclass(frozen=True)
class Build:
    """Built engines.

    Attributes:
        engines: The file of each, by the engine's name.
        missing: Why an engine was not built, by its name.
    """

    engines: Mapping[str, Path]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class Verification:
    """Verdicts that are passes, or "not run" where this machine cannot tell."""

    verdicts: tuple[Verdict, ...]

    def __getitem__(self, subject: str) -> Verdict:
        """Returns the verdict on "graph" or an engine."""
        for verdict in self.verdicts:
            if verdict.subject == subject:
                return verdict
        raise KeyError(subject)


@dataclass(frozen=True)
class Bench:
    """Measured engines.

    Attributes:
        results: One entry for each engine, batch size and boundary, as in `measurements.json`;
            times are in seconds.
        machine: What they depend on.
        file: Where they are kept.
    """

    results: tuple[Mapping[str, Any], ...]
    machine: Mapping[str, Any]
    file: Path


@dataclass(frozen=True)
class Bundle:
    """An archive that proves itself.

    Attributes:
        path: The `.tar.gz` file.
        skipped: Nothing had changed, so it is the one that was there.
    """

    path: Path
    skipped: bool


@dataclass(frozen=True)
class Run:
    """The whole chain.

    Attributes:
        bench: None if no engine runs on this machine.
        bundle: The archive.
    """

    training: Training
    export: Export
    build: Build
    verification: Verification
    bench: Bench | None
    bundle: Path


@dataclass(frozen=True)
class Check:
    """A bundle whose every digest is right and of which nothing that ran here is a mismatch.

    Attributes:
        manifest: The bundle's list of members and facts.
        verification: The verdicts on its graph and engines on this machine.
    """

    manifest: Mapping[str, Any]
    verification: Verification
