"""Checks of Triton's configurations for mistakes that the server accepts, or explains badly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from engines.contract import TensorSpec
from engines.errors import DeployError
from exporters import onnx_files
from exporters.onnx_nodes import inputs_of, spec_of
from pipeline.bundling.repositories import CONFIG, MARKER
from pipeline.golden import file as goldens
from pipeline.serving import config as configs
from pipeline.serving import config_parts, config_text
from pipeline.serving.forms import FORMS
from pipeline.serving.repository import changed_files
from pipeline.workflow.digests import sha256_file

# By platform, its backend; by backend, the file that it opens unless the configuration names one.
_PLATFORMS = {form.platform: form.backend for form in FORMS.values() if form.platform}
_PLATFORMS |= {"pytorch_libtorch": "pytorch"}
_PLATFORMS |= dict.fromkeys(("tensorflow_graphdef", "tensorflow_savedmodel"), "tensorflow")
_FILES = {form.backend: form.files[0] for form in FORMS.values()}
_FILES |= {"pytorch": "model.pt", "python": "model.py"}
# Triton's other backends; users add their own, with any name.
_OTHERS = ("tensorflow", "tensorrtllm", "vllm", "dali", "fil", "identity", "repeat", "square")
# Other names that people give to backends.
_ALIASES = {"onnx": "onnxruntime", "trt": "tensorrt", "torch": "pytorch", "libtorch": "pytorch"}
_ALIKE = 0.85  # of a misspelt name and the right one, by difflib


@dataclass(frozen=True)
class Signature:
    """What a model takes and returns.

    Attributes:
        inputs: `[batch, …]`.
        outputs: Likewise.
        batched: The first axis of all of them is the batch.
        logits: The output that has classes; "" if unknown.
        source: What tells so, in words.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    logits: str
    source: str


@dataclass(frozen=True)
class Findings:
    """What is wrong with a repository.

    Attributes:
        problems: A line for each mistake.
        notes: What could not be checked.
        models: How many models there are.
        uncompared: Those whose inputs and outputs could not be compared.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    models: int
    uncompared: tuple[str, ...]


def check(folder: Path, golden_paths: Sequence[Path] = ()) -> Findings:
    """Checks a model repository, or the folder of one model.

    Args:
        golden_paths: Golden files to compare with. One that a configuration names by its digest is
            compared with that model only; one alone with all models.

    Raises:
        DeployError: The folder holds no model, or a file cannot be read.
    """
    single = (folder / CONFIG).is_file()
    places = [folder] if single else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise DeployError(f"{folder} {problem}", "name a model repository of Triton")
    if not places:
        raise DeployError(
            f"{folder} has no folder with a {CONFIG}", "name a model repository of Triton"
        )
    known = {sha256_file(path): path for path in golden_paths}
    problems: list[str] = []
    uncompared: list[str] = []
    notes = [
        f"{path.name} has no {CONFIG}: Triton serves it only if it can complete one"
        for path in sorted(folder.iterdir())
        if not single and path.is_dir() and _versions(path) and not (path / CONFIG).exists()
    ]
    models = [_Model(place, known) for place in places]
    # Models of other precisions have other golden files.
    named = any(digest.encode() in model.content for digest in known for model in models)
    for model in models:
        model.named = named
        model.others = set() if single else {path.name for path in folder.iterdir()}
        label = f"{model.folder.name}/{CONFIG}"
        problems += [f"{label}: {problem}" for problem in dict.fromkeys(model.problems())]
        notes += [f"{label}: {note}" for note in model.notes]
        uncompared += [] if model.compared else [model.folder.name]
    if not single and (folder / MARKER).is_file():
        problems += changed_files(folder)
    return Findings(tuple(problems), tuple(notes), len(models), tuple(uncompared))


class _Model:
    def __init__(self, folder: Path, known: dict[str, Path]) -> None:
        self.folder, self.known, self.named = folder, known, False
        self.others: set[str] = set()
        self.notes: list[str] = []
        self.compared = False
        self.config: Any = None
        self.text = self.unread = ""
        self.content = b""
        try:
            self.content = config_text.content(folder / CONFIG)
        except (OSError, DeployError) as error:
            self.unread = str(error)

    def problems(self) -> Iterator[str]:
        """Yields what is wrong with the configuration, in words."""
        if self.unread:
            yield f"it cannot be read: {self.unread}"
            return
        try:
            if len(self.content) > config_text.MAX_BYTES:
                raise ValueError(f"it has more than {config_text.MAX_BYTES:,} bytes")
            self.text = self.content.decode()
            self.config = configs.parse(self.text)
        except ValueError as error:
            yield f"it cannot be parsed: {error}"
            return
        if self.config.name and self.config.name != self.folder.name:
            yield f"name {self.config.name!r} is not that of its folder"
        yield from self._backend()
        yield from self._versions()
        yield from self._instances()
        yield from self._batching()
        yield from self._digests()
        yield from config_parts.warm_up(self.config, self.folder)
        yield from config_parts.accelerators(self.config)
        yield from config_parts.ensemble(self.config, self.others)
        try:
            signature = self._signature()
        except DeployError as error:  # the other models are checked all the same
            yield error.message
            return
        if signature is None:
            self.notes.append("inputs and outputs were not compared: name its --golden file")
            return
        self.compared = True
        yield from self._tensors("input", signature.inputs, self.config.input, signature)
        yield from self._tensors("output", signature.outputs, self.config.output, signature)
        yield from self._labels(signature)

    @property
    def backend(self) -> str:
        """The backend that runs the model, as far as it is known."""
        return str(self.config.backend or _PLATFORMS.get(self.config.platform, ""))

    def _parameter(self, key: str) -> str:
        entry = self.config.parameters
        return str(entry[key].string_value) if key in entry else ""

    def _served(self) -> int:
        """Returns the newest version that is served, 0 if there is none."""
        versions, policy = _versions(self.folder), self.config.version_policy
        if policy.HasField("specific"):
            versions &= set(policy.specific.versions)
        return max(versions, default=0)

    def _file(self) -> Path | None:
        """Returns the file of the newest version that is served, if it is there."""
        name = self.config.default_model_filename or _FILES.get(self.backend, "")
        if not name or not config_text.within(name):
            return None
        path = self.folder / str(self._served()) / name
        if path.is_dir():  # for a graph with external data
            path /= name
        return path if path.is_file() else None

    def _backend(self) -> Iterator[str]:
        platform, backend = self.config.platform, self.config.backend
        if not platform and not backend:
            yield "it names neither a backend nor a platform"
        elif not platform and backend not in (*_FILES, *_OTHERS):
            other = _ALIASES.get(backend, _PLATFORMS.get(backend, ""))
            for near in [other] if other else get_close_matches(backend, _FILES, 1, _ALIKE):
                yield f"backend {backend!r}: did you mean {near!r}?"
        elif platform and backend and _PLATFORMS.get(platform, backend) != backend:
            yield (
                f"platform {platform!r} is of the backend {_PLATFORMS[platform]!r}, but backend is"
                f" {backend!r}: remove one of the two"
            )
        elif platform and not backend and platform not in (*_PLATFORMS, "ensemble"):
            yield f"platform {platform!r} does not exist; known: {', '.join(_PLATFORMS)}"

    def _versions(self) -> Iterator[str]:
        versions = _versions(self.folder)
        if not versions:
            yield "its folder has no version: put the model's file into a folder named 1"
            return
        policy = self.config.version_policy
        if policy.HasField("specific"):
            named = set(policy.specific.versions)
            if missing := sorted(named - versions):
                yield f"version_policy names version {missing[0]}, and there is {_list(versions)}"
            elif not named:
                yield "version_policy is specific and names no version, so that none is served"
        elif policy.HasField("latest") and not policy.latest.num_versions:
            yield "version_policy serves the latest 0 versions"
        name = self.config.default_model_filename or _FILES.get(self.backend, "")
        if not config_text.within(name):
            yield f"default_model_filename {name!r} is outside of the version's folder"
        elif name and self._file() is None and self._served():
            folder = self.folder / str(self._served())
            others = self.config.cc_model_filenames.values()
            there = [config_text.within(one) and (folder / one).exists() for one in others]
            if not there or not all(there):
                yield f"version {self._served()} has no file {name}"

    def _instances(self) -> Iterator[str]:
        kinds = configs.messages().ModelInstanceGroup
        if config_text.counts_below_one(self.text):
            yield "instance_group has a count below 1, which Triton replaces by its own default"
        engine = self._parameter(configs.ENGINE)
        on_gpu = FORMS[engine].gpu if engine in FORMS else None
        if self.backend in ("tensorrt", "openvino"):
            engine, on_gpu = self.backend, self.backend == "tensorrt"
        for group in self.config.instance_group:
            if group.kind == kinds.KIND_GPU and on_gpu is False:
                yield f"instance_group is KIND_GPU, but {engine or self.backend} runs on CPUs"
            if group.kind == kinds.KIND_CPU and on_gpu:
                yield f"instance_group is KIND_CPU, but {engine or self.backend} needs a GPU"
            if group.kind == kinds.KIND_CPU and group.gpus:
                yield f"instance_group is KIND_CPU, but names gpus {list(group.gpus)}"

    def _batching(self) -> Iterator[str]:
        largest = self.config.max_batch_size
        if largest < 0:
            yield f"max_batch_size {largest} is negative"
        proved = self._parameter(configs.LARGEST_BATCH)
        if proved.isdecimal() and largest > int(proved):
            yield f"max_batch_size {largest} is larger than {proved}, the largest that was proved"
        if self.config.response_cache.enable:
            yield "response_cache is enabled, so that no reply proves what the model computes"
        if not self.config.HasField("dynamic_batching"):
            return
        if not largest:
            yield "dynamic_batching has no effect, since max_batch_size is 0"
        for size in self.config.dynamic_batching.preferred_batch_size:
            if not 0 < size <= max(largest, 0):
                yield f"preferred_batch_size {size} is not between 1 and max_batch_size {largest}"

    def _digests(self) -> Iterator[str]:
        digest, path = self._parameter(configs.FILE_DIGEST), self._file()
        if digest and path is not None and self.backend != "openvino":  # whose file was an archive
            actual = sha256_file(path)
            if actual != digest:
                yield f"{path.name} has SHA-256 {actual}, but {digest} was proved"
        golden = self._parameter(configs.GOLDEN_DIGEST)
        if golden and len(self.known) == 1 and golden not in self.known and not self.named:
            yield f"it was proved with another golden file, of SHA-256 {golden}"

    def _signature(self) -> Signature | None:
        """Returns what the golden file says, or else the ONNX graph."""
        digest = self._parameter(configs.GOLDEN_DIGEST)
        path = self.known.get(digest)
        if path is None and len(self.known) == 1 and not (digest and self.named):
            path = next(iter(self.known.values()))
        if path is not None:
            golden = goldens.load(path)
            return Signature(
                golden.input_specs,
                golden.output_specs,
                golden.batched,
                golden.logits,
                "the golden file",
            )
        file = self._file()
        if file is None or self.backend != "onnxruntime":
            return None
        graph = onnx_files.read(file, data=False).graph
        inputs = tuple(map(spec_of, inputs_of(graph)))
        outputs = tuple(map(spec_of, graph.output))
        batched = all(spec.shape[:1] == (None,) for spec in (*inputs, *outputs))
        return Signature(inputs, outputs, batched, "", "the graph")

    def _tensors(
        self, side: str, specs: Sequence[TensorSpec], entries: Sequence[Any], wanted: Signature
    ) -> Iterator[str]:
        named = {entry.name: entry for entry in entries}
        if len(named) < len(entries):
            yield f"an {side} is there twice"
        if not named and self.backend in ("onnxruntime", "openvino"):
            self.notes.append(f"it has no {side}, so Triton reads them from the model")
            return
        for entry in entries:
            if entry.name not in {spec.name for spec in specs}:
                known = ", ".join(spec.name for spec in specs)
                yield f"{side} {entry.name!r} is not in {wanted.source}, which has {known}"
        for spec in specs:
            if spec.name not in named:
                yield f"{side} {spec.name!r} of {wanted.source} is missing"
            else:
                yield from self._tensor(side, spec, named[spec.name], wanted)

    def _tensor(self, side: str, spec: TensorSpec, entry: Any, wanted: Signature) -> Iterator[str]:
        types = configs.messages().DataType
        what = f"{side} {spec.name!r}"
        kind = types.Name(entry.data_type)
        if kind != configs.type_name(spec.dtype):
            yield f"{what} is {kind}; {wanted.source} has {configs.type_name(spec.dtype)}"
        adds_batch = self.config.max_batch_size > 0
        whole = [-1 if axis is None else axis for axis in spec.shape]
        expected = whole[1:] if adds_batch else whole
        dims = list(entry.dims)
        if adds_batch and not wanted.batched:
            yield (
                f"max_batch_size is {self.config.max_batch_size}, but {spec.name} of"
                f" {wanted.source} has no dynamic batch: {spec}"
            )
        elif entry.HasField("reshape"):
            seen = list(entry.reshape.shape)
            if not config_text.fits(seen, expected):
                yield f"{what} is reshaped to {seen}; {wanted.source} has {expected}"
            elif dims != expected:
                yield (
                    f"{what} has dims {dims} and a reshape, so clients use another shape than"
                    f" {expected} of {wanted.source}"
                )
        elif config_text.fits(dims, expected):
            return
        elif adds_batch and config_text.fits(dims[1:], expected):
            yield (
                f"{what} has dims {dims} with the batch in them, which Triton adds itself as"
                f" max_batch_size is not 0: write {expected}"
            )
        elif not adds_batch and wanted.batched and config_text.fits(dims, whole[1:]):
            yield (
                f"{what} has dims {dims} without the batch, and max_batch_size is 0: write"
                f" {whole}, or set max_batch_size"
            )
        else:
            yield f"{what} has dims {dims}; {wanted.source} has {expected}"

    def _labels(self, wanted: Signature) -> Iterator[str]:
        shapes = {spec.name: spec.shape for spec in wanted.outputs}
        for entry in self.config.output:
            if not entry.label_filename:
                continue
            path = self.folder / entry.label_filename
            if not config_text.within(entry.label_filename):
                yield f"label_filename {entry.label_filename!r} is outside of the model's folder"
                continue
            if not path.is_file():
                yield f"the file of labels {entry.label_filename} is missing"
                continue
            content = config_text.content(path)
            if len(content) > config_text.MAX_BYTES:
                yield f"{entry.label_filename} has more than {config_text.MAX_BYTES:,} bytes"
                continue
            count = len(content.splitlines())
            classes = shapes.get(entry.name, (None,))[-1]
            if classes is not None and count != classes:
                yield (
                    f"{entry.label_filename} has {count} labels, and {entry.name} has {classes}"
                    " values"
                )


def _versions(folder: Path) -> set[int]:
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    return {int(name) for name in names if re.fullmatch("[1-9][0-9]{0,17}", name)}


def _list(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
