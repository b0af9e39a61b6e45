"""The files that stages read and write: their names, paths and records."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import engines
from engines.cache import slug

# A folder of the user's images is a data set too, named after the folder.
FOLDER_PREFIX = "folder-"
# The default folders of artifacts and bundles.
ROOT, DIST = Path("artifacts"), Path("dist")
# How the name of a model begins that is an ONNX file.
GRAPH_PREFIX = "onnx:"
# The name of the exported graph in commands and verdicts, where it stands among engines.
GRAPH_SUBJECT = "graph"
BUNDLE_SUFFIX = ".tar.zst"


@dataclass(frozen=True)
class Artifact:
    """A file that a stage makes.

    Attributes:
        kind: What it is, in the words of an error message.
        path: Path below the root, a template over the parameters of a stage.
        stage: Name of the stage that makes it.
        record: Path of the record that holds its digest, a template like `path`.
        dist: `path` is below the distribution folder instead of the root.
        optional: The stage makes it only if there is something to put in.
        values: Names and values of the template fields filled in so far.
    """

    kind: str
    path: str
    stage: str
    record: str
    dist: bool = False
    optional: bool = False
    values: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def at(self, **fields: str) -> Artifact:
        """Returns the artifact with these template fields filled in; ignores unknown ones."""
        if "suffix" in _open_fields(self.path) and fields.get("engine") in engines.names():
            fields["suffix"] = engines.get(fields["engine"]).suffix
        values = {name: fields[name] for name in _open_fields(self.path) if name in fields}
        return replace(
            self,
            path=_fill(self.path, fields),
            record=_fill(self.record, fields),
            values=(*self.values, *values.items()),
        )

    @property
    def name(self) -> str:
        """The name of the file in its folder."""
        return Path(self.path).name

    @property
    def label(self) -> str:
        """The path by which records and bundles name the file."""
        return f"dist/{self.path}" if self.dist else self.path


def _open_fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _fill(template: str, fields: Mapping[str, Any]) -> str:
    parts = []
    for text, name, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if name is not None:
            parts.append(slug(str(fields[name])) if name in fields else f"{{{name}}}")
    return "".join(parts)


@dataclass(frozen=True)
class Paths:
    """Paths of the artifacts of one stage: in the store, or in a temporary folder.

    Attributes:
        root: Folder of the artifacts.
        dist: Folder of the bundles.
        fields: The parameters of the stage, which fill the artifacts' templates.
        declared: The artifacts the stage declared, filled in; it may use no other.
    """

    root: Path
    dist: Path
    fields: Mapping[str, Any]
    declared: tuple[Artifact, ...]

    def __getitem__(self, artifact: Artifact) -> Path:
        """Returns the file of an artifact; KeyError if the stage did not declare it."""
        filled = artifact.at(**self.fields)
        if filled not in self.declared:
            raise KeyError(f"the stage does not declare {filled.kind} {filled.path}")
        return self.locate(filled)

    def locate(self, filled: Artifact) -> Path:
        """Returns the file of an artifact whose fields are filled in."""
        return (self.dist if filled.dist else self.root) / filled.path


def _data(kind: str, name: str) -> Artifact:
    return Artifact(kind, f"data/{{dataset}}/{name}", "data", "data/{dataset}/data.json")


TRAIN_IMAGES = _data("training images", "train-images.idx")
TRAIN_LABELS = _data("training labels", "train-labels.idx")
TEST_IMAGES = _data("test images", "test-images.idx")
TEST_LABELS = _data("test labels", "test-labels.idx")
CONTENTS = _data("data set description", "contents.json")
DATA = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS, CONTENTS)


def _trained(kind: str, name: str) -> Artifact:
    return Artifact(kind, f"{{model}}/{name}", "train", "{model}/train.json")


CHECKPOINT = _trained("checkpoint", "checkpoint.safetensors")
TRAINING = _trained("training curve", "training.json")


def _exported(kind: str, name: str, *, optional: bool = False) -> Artifact:
    folder = "{model}/{precision}"
    record = f"{folder}/export.json"
    return Artifact(kind, f"{folder}/{name}", "export", record, optional=optional)


GRAPH = _exported("graph", "model.onnx")
# Large tensors: a protobuf message holds 2 GiB at most.
GRAPH_DATA = _exported("graph's external data", "model.onnx.data", optional=True)
# A quantized graph in the integer format that CPU kernels are made for.
CPU_GRAPH = _exported("graph for CPUs", "model-cpu.onnx")
DESCRIPTION = _exported("graph's description", "graph.json")
PROGRAM = _exported("exported program", "model.pt2")
GOLDEN = _exported("golden file", "golden.npz")

GRAPH_VERDICT = Artifact(
    "verdict", "{model}/{precision}/verdict.json", "verify", "{model}/{precision}/verify.json"
)

_ENGINE_FOLDER = "{model}/{precision}/{engine}"
# The suffix is the engine's.
ENGINE = Artifact(
    "engine", f"{_ENGINE_FOLDER}/engine{{suffix}}", "build", f"{_ENGINE_FOLDER}/build.json"
)
ENGINE_LAYERS = Artifact(
    "engine's layers", f"{_ENGINE_FOLDER}/layers.json", "build", f"{_ENGINE_FOLDER}/build.json"
)
# What several builds of the engine differ in.
ENGINE_BUILDS = Artifact(
    "engine's builds",
    f"{_ENGINE_FOLDER}/builds.json",
    "build",
    f"{_ENGINE_FOLDER}/build.json",
    optional=True,
)
ENGINE_VERDICT = Artifact(
    "verdict", f"{_ENGINE_FOLDER}/verdict.json", "verify", f"{_ENGINE_FOLDER}/verify.json"
)

MEASUREMENTS = Artifact(
    "measurements",
    "{model}/{precision}/measurements.json",
    "bench",
    "{model}/{precision}/bench.json",
)

COMPARISON = Artifact(
    "comparison",
    "{model}/{precision}/comparison.json",
    "bench",
    "{model}/{precision}/compare.json",
)

LOAD = Artifact(
    "results under load", "{model}/{precision}/served.json", "load", "{model}/{precision}/load.json"
)

SWEEP = Artifact("sweep", "{model}/frontier.json", "sweep", "{model}/sweep.json")

COSTS = Artifact(
    "profile of engines",
    "{model}/{precision}/costs.json",
    "profile",
    "{model}/{precision}/profile.json",
)

BUNDLE = Artifact(
    "bundle",
    f"{{model}}-{{precision}}{BUNDLE_SUFFIX}",
    "bundle",
    "{model}/{precision}/bundle.json",
    dist=True,
)


def record_beside(engine: Path) -> Path:
    """Returns the path of a built engine's record."""
    return engine.with_name(Path(ENGINE.record).name)


def graph_of(engine: Path) -> Path:
    """Returns the path of the graph that an engine was built from."""
    return engine.parents[1] / GRAPH.name


def is_engine(label: str) -> bool:
    """Whether a label names a built engine."""
    path = Path(label)
    return path.stem == "engine" and len(path.parts) == len(Path(ENGINE.path).parts)


def failure_report(record: Path) -> Path:
    """Returns the file for the whole report of a failed run, by the path of the stage's record."""
    return record.with_name(f"{record.stem}-failure.txt")


def training_state(root: Path, model: str) -> Path:
    """Returns the file in which a training keeps its progress."""
    return root / ".resume" / f"{slug(model)}.safetensors"


def reference_cache(root: Path, model: str) -> Path:
    """Returns the file that caches a model's float64 outputs from one export to the next."""
    return root / ".reference" / f"{slug(model)}.npz"


LOCKS = ".locks"


def lock_file(root: Path, record: str) -> Path:
    """Returns the lock file that is held while the stage of a record runs."""
    return root / LOCKS / record.removesuffix(".json").replace("/", "-")
