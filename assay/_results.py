"""What the functions of the library return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.serving.proof import Latency
    from pipeline.verification.verdict import Verdict


@dataclass(frozen=True)
class Training:
    """A trained model.

    Attributes:
        checkpoint: The weights, a safetensors file.
        accuracy: Accuracy on the test set, from 0 to 1; None unless the model is a classifier
            with a data set.
        record: Options, curve and machine, as in `training.json`.
        skipped: Nothing had changed, so the stage was not run.
    """

    checkpoint: Path
    accuracy: float | None
    record: Mapping[str, Any]
    skipped: bool


@dataclass(frozen=True)
class Export:
    """A graph and the files to verify it with.

    Attributes:
        graph: The ONNX graph.
        program: The exported PyTorch program; None in a quantized precision or by TorchScript.
        golden: The golden file: inputs, and the outputs of the model in float64.
        description: Operators, types and parameters, as in `graph.json`.
        skipped: Nothing had changed, so the stage was not run.
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
        engines: Path of each built engine, by its name.
        missing: Why each engine that this machine cannot build is missing, by its name.
    """

    engines: Mapping[str, Path]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class Verification:
    """Verdicts; each is "pass", or "not run" if this machine cannot run the engine."""

    verdicts: tuple[Verdict, ...]

    def __getitem__(self, subject: str) -> Verdict:
        """Returns the verdict on "graph" or an engine; KeyError if there is none."""
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
        machine: CPU, GPUs, threads and load during the measurements.
        file: Path of `measurements.json`.
    """

    results: tuple[Mapping[str, Any], ...]
    machine: Mapping[str, Any]
    file: Path


@dataclass(frozen=True)
class Sweep:
    """Ways to run a model, raced.

    Attributes:
        points: One entry for each way, as in `frontier.json`; times are in seconds. "beaten_by"
            names the way that is better in everything, if there is one.
        machine: CPU and GPUs.
        file: Path of `frontier.json`.
    """

    points: tuple[Mapping[str, Any], ...]
    machine: Mapping[str, Any]
    file: Path


@dataclass(frozen=True)
class Choice:
    """What to deploy.

    Attributes:
        engine: Its name, with " graph" if it replays a CUDA graph.
        precision: The precision of the graph.
        device: "cpu" or "cuda:N".
        batch: Rows in one inference.
        threads: CPU threads of one inference.
        sessions: How many requests are served at a time.
        seconds: Median time of one inference end to end.
        throughput: Images or rows per second.
        accuracy: The part of the test images that it classifies right; None if not known.
        candidates: All that were compared: "candidate", "status" ("yes", "unsure" or "no") and
            "failing", the bounds that it does not surely keep, in words.
    """

    engine: str
    precision: str
    device: str
    batch: int
    threads: int
    sessions: int
    seconds: float
    throughput: float
    accuracy: float | None
    candidates: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Bundle:
    """A bundle.

    Attributes:
        path: The `.tar.zst` file.
        skipped: Nothing had changed, so the stage was not run.
    """

    path: Path
    skipped: bool


@dataclass(frozen=True)
class Run:
    """The results of the whole chain.

    Attributes:
        bench: None if no engine runs on this machine.
        bundle: Path of the bundle.
    """

    training: Training
    export: Export
    build: Build
    verification: Verification
    bench: Bench | None
    bundle: Path


@dataclass(frozen=True)
class Check:
    """A bundle whose digests match and whose engines pass, if this machine can run them.

    Attributes:
        manifest: The bundle's list of members and facts.
        verification: The verdicts on its graph and engines on this machine.
    """

    manifest: Mapping[str, Any]
    verification: Verification


@dataclass(frozen=True)
class ServerCheck:
    """A model server whose replies pass.

    Attributes:
        manifest: The list of members and facts of the bundle that it was judged by.
        model: The name of the model on the server.
        verdict: The verdict on it.
        latencies: How long one client waits for a reply, by batch size.
    """

    manifest: Mapping[str, Any]
    model: str
    verdict: Verdict
    latencies: tuple[Latency, ...]
