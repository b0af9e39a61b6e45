"""Every file that flows between stages, named once."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.cache import slug

# A folder of the user's images is a data set too, named after the folder.
FOLDER_PREFIX = "folder-"
# Where artifacts and bundles lie unless told otherwise.
ROOT, DIST = Path("artifacts"), Path("dist")
# What is proved first, under the name by which commands and verdicts call it.
GRAPH_SUBJECT = "graph"
BUNDLE_SUFFIX = ".tar.gz"


@dataclass(frozen=True)
class Artifact:
    """A file that flows.

    Attributes:
        kind: What it is, in the words of an error message.
        path: Where it lies below the root, as a template over the parameters of a stage.
        stage: The stage that makes it.
        record: The record that vouches for it, as a template like `path`.
        dist: It lies below the distribution folder instead of the root.
        optional: The stage makes it only where it has something to put in.
        values: The fields that are filled in, as they were given.
    """

    kind: str
    path: str
    stage: str
    record: str
    dist: bool = False
    optional: bool = False
    values: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def at(self, **fields: str) -> Artifact:
        """Returns the artifact with some of its fields filled in."""
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
    """Where the artifacts of one stage lie: in the store, or in its temporary folder.

    Attributes:
        root: The folder below which artifacts lie.
        dist: The folder below which bundles lie.
        fields: The parameters of the stage, which fill the artifacts' templates.
        declared: The artifacts the stage declared, filled in; any other is refused.
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
# Large tensors, which one protobuf message cannot hold.
GRAPH_DATA = _exported("graph's external data", "model.onnx.data", optional=True)
# Of a quantized graph, the form whose integers the kernels of CPUs are made for.
CPU_GRAPH = _exported("graph for CPUs", "model-cpu.onnx")
DESCRIPTION = _exported("graph's description", "graph.json")
PROGRAM = _exported("exported program", "model.pt2")
GOLDEN = _exported("golden file", "golden.npz")

GRAPH_VERDICT = Artifact(
    "verdict", "{model}/{precision}/verdict.json", "verify", "{model}/{precision}/verify.json"
)

_ENGINE_FOLDER = "{model}/{precision}/{engine}"
ENGINE = Artifact("engine", f"{_ENGINE_FOLDER}/engine", "build", f"{_ENGINE_FOLDER}/build.json")
ENGINE_LAYERS = Artifact(
    "engine's layers", f"{_ENGINE_FOLDER}/layers.json", "build", f"{_ENGINE_FOLDER}/build.json"
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

BUNDLE = Artifact(
    "bundle",
    f"{{model}}-{{precision}}{BUNDLE_SUFFIX}",
    "bundle",
    "{model}/{precision}/bundle.json",
    dist=True,
)


def record_beside(engine: Path) -> Path:
    """Returns where the record of a built engine is."""
    return engine.with_name(Path(ENGINE.record).name)


def graph_of(engine: Path) -> Path:
    """Returns where the graph is that an engine was built from."""
    return engine.parents[1] / GRAPH.name


def is_engine(label: str) -> bool:
    """Whether a label is that of a built engine."""
    return Path(label).name == ENGINE.name and len(Path(label).parts) == len(
        Path(ENGINE.path).parts
    )


def training_state(root: Path, model: str) -> Path:
    """Returns where an interrupted training keeps its progress."""
    return root / ".resume" / f"{slug(model)}.safetensors"


def reference_cache(root: Path, model: str) -> Path:
    """Returns where a model's outputs in float64 are kept from one export to the next."""
    return root / ".reference" / f"{slug(model)}.npz"


def lock_file(root: Path, record: str) -> Path:
    """Returns the lock that is held while the stage of a record runs."""
    return root / ".locks" / record.removesuffix(".json").replace("/", "-")
