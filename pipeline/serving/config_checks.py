"""Checks of Triton's configurations for mistakes that the server accepts, or explains badly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from pipeline.bundling.repositories import CONFIG, LABELS, MARKER
from pipeline.golden import file as goldens
from pipeline.serving import config as configs
from pipeline.serving import config_ensembles, config_parts, config_tensors, config_text
from pipeline.serving.config_ensembles import Known
from pipeline.serving.config_tensors import Signature
from pipeline.serving.forms import FORMS
from pipeline.serving.repository import ADDED, CHANGED, changed_files
from pipeline.workflow.digests import sha256_file

# By platform, its backend; by backend, the file that it opens unless the configuration names one.
_PLATFORMS = {form.platform: form.backend for form in FORMS.values() if form.platform}
_PLATFORMS |= dict.fromkeys(("pytorch_libtorch", "torch_aoti"), "pytorch")
_PLATFORMS |= dict.fromkeys(("tensorflow_graphdef", "tensorflow_savedmodel"), "tensorflow")
_FILES = {form.backend: form.files[0] for form in FORMS.values()}
_FILES |= {"pytorch": "model.pt", "python": "model.py"}
# Triton's other backends; users add their own, with any name.
_OTHERS = ("tensorflow", "tensorrtllm", "vllm", "dali", "fil", "identity", "repeat", "square")
# Other names that people give to backends.
_ALIASES = {"onnx": "onnxruntime", "trt": "tensorrt", "torch": "pytorch", "libtorch": "pytorch"}
_ALIKE = 0.85  # of a misspelt name and the right one, by difflib


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


def check(folder: Path, golden_paths: Sequence[Path] = (), *, named_only: bool = False) -> Findings:
    """Checks a model repository, or the folder of one model.

    Args:
        golden_paths: Golden files to compare with. One that a configuration names by its digest is
            compared with that model only; one alone with all models.
        named_only: Also one alone is compared only with models that name it.

    Raises:
        DeployError: The folder holds no model, or a golden file cannot be read.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise DeployError(f"{folder} {problem}", "name a model repository of Triton")
    single = (folder / CONFIG).is_file()
    places = [folder] if single else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not places:
        raise DeployError(
            f"{folder} has no folder with a {CONFIG}", "name a model repository of Triton"
        )
    models = [_Model(place) for place in places]
    digests = {sha256_file(path): path for path in golden_paths}
    if named_only:
        digests = {one: path for one, path in digests.items() if _is_named(one, models)}
    known = {
        digest: config_tensors.of_golden(goldens.load(path)) for digest, path in digests.items()
    }
    # Models of other precisions have other golden files.
    named = any(_is_named(digest, models) for digest in known)
    alone = next(iter(known.values())) if len(known) == 1 and not named_only else None
    others = {} if single else {model.name: model.known for model in models}
    if not single:
        folders = [path for path in folder.iterdir() if path.is_dir()]
        others |= {path.name: Known(None, set()) for path in folders if path.name not in others}
    problems: list[str] = []
    notes = [
        f"{path.name} has no {CONFIG}: Triton serves it only if it can complete one"
        for path in sorted(folder.iterdir())
        if not single and path.is_dir() and _versions(path) and not (path / CONFIG).exists()
    ]
    for model in models:
        label = f"{model.name}/{CONFIG}"
        mistakes = model.problems(known, None if named and model.golden else alone, others)
        problems += [f"{label}: {problem}" for problem in dict.fromkeys(mistakes)]
        notes += [f"{label}: {note}" for note in model.notes]
    if not single and (folder / MARKER).is_file():
        for name, what in changed_files(folder):
            kept = name.endswith((f"/{CONFIG}", f"/{LABELS}")) and what == CHANGED
            line = f"{name} {what}"
            notes += [f"{line} since assay wrote it"] if kept or what == ADDED else []
            problems += [] if kept or what == ADDED else [line]
    uncompared = tuple(model.name for model in models if not model.compared)
    return Findings(tuple(problems), tuple(notes), len(models), uncompared)


def _is_named(digest: str, models: Sequence[_Model]) -> bool:
    return any(digest.encode() in model.content for model in models)


class _Model:
    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.resolve().name
        self.notes: list[str] = []
        self.compared = False
        self.config: Any = None
        self.text = self.unread = ""
        self.content = b""
        try:
            self.content = config_text.content(folder / CONFIG)
            if len(self.content) > config_text.MAX_BYTES:
                raise ValueError(f"it has more than {config_text.MAX_BYTES:,} bytes")
            self.text = self.content.decode()
            self.config = configs.parse(self.text)
        except (OSError, DeployError) as error:
            self.unread = f"it cannot be read: {error}"
        except ValueError as error:
            self.unread = f"it cannot be parsed: {error}"

    @property
    def known(self) -> Known:
        """What steps of ensembles need to know of it."""
        return Known(self.config, _versions(self.folder))

    @property
    def golden(self) -> str:
        """The digest of the golden file that it names; "" if it names none."""
        return self._parameter(configs.GOLDEN_DIGEST) if self.config is not None else ""

    def problems(
        self, known: Mapping[str, Signature], alone: Signature | None, others: Mapping[str, Known]
    ) -> Iterator[str]:
        """Yields what is wrong with the configuration, in words.

        Args:
            known: What golden files say, by their digests.
            alone: What the only one says, if it counts for models that do not name it.
            others: The models of the repository.
        """
        if self.unread:
            yield self.unread
            return
        if self.config.name and self.config.name != self.name:
            yield f"name {self.config.name!r} is not that of its folder"
        signature: Signature | None = None
        try:
            yield from self._backend()
            yield from self._versions()
            yield from self._instances()
            yield from self._batching()
            yield from self._digests(known, alone)
            signature = self._signature(known, alone)
            if signature is None:
                self.notes.append("inputs and outputs were not compared: name its --golden file")
            else:
                self.compared = True
                by_model = self.backend in ("onnxruntime", "openvino")
                if by_model and not (self.config.input and self.config.output):
                    self.notes.append("Triton reads its inputs or outputs from the model")
                yield from config_tensors.problems(self.config, signature, by_model)
                self.notes += config_tensors.notes(self.config, signature)
            yield from config_tensors.labels(self.config, self.folder, signature)
            yield from config_parts.warm_up(self.config, self.folder, signature)
            yield from config_parts.accelerators(self.config)
            yield from config_ensembles.problems(self.config, others, self.name)
        except DeployError as error:  # the other models are checked all the same
            yield error.message
        except OSError as error:
            yield f"it names a file that cannot be looked at: {error.strerror}"

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
            folder = self.folder / str(self._served())
            if not any((folder / name).exists() for name in _FILES.values()):
                yield "it names neither a backend nor a platform"
            else:
                self.notes.append("it names no backend, so Triton takes that of the file's name")
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
            if self.config.runtime or self.config.platform == "torch_aoti":
                return  # another name, which the backend knows
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
        # Triton completes the batch of an ONNX graph whose inputs or outputs are not all there.
        completed = self.backend == "onnxruntime" and not (self.config.input and self.config.output)
        if not largest and not completed:
            yield "dynamic_batching has no effect, since max_batch_size is 0"
        for size in self.config.dynamic_batching.preferred_batch_size:
            if not 0 < size <= max(largest, 0):
                yield f"preferred_batch_size {size} is not between 1 and max_batch_size {largest}"

    def _digests(self, known: Mapping[str, Signature], alone: Signature | None) -> Iterator[str]:
        digest, path = self._parameter(configs.FILE_DIGEST), self._file()
        if digest and path is not None and self.backend != "openvino":  # whose file was an archive
            actual = sha256_file(path)
            if actual != digest:
                yield f"{path.name} has SHA-256 {actual}, but {digest} was proved"
        if self.golden and alone is not None and self.golden not in known:
            yield f"it was proved with another golden file, of SHA-256 {self.golden}"

    def _signature(
        self, known: Mapping[str, Signature], alone: Signature | None
    ) -> Signature | None:
        """Returns what the golden file says, or else the ONNX graph."""
        if (golden := known.get(self.golden, alone)) is not None:
            return golden
        file = self._file()
        if file is None or self.backend != "onnxruntime":
            return None
        return config_tensors.of_graph(file)


def _versions(folder: Path) -> set[int]:
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    return {int(name) for name in names if re.fullmatch("[1-9][0-9]{0,17}", name)}


def _list(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
