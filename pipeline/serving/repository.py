"""Writes a Triton model repository: one model for each precision and engine."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import temporary
from engines.cache import slug, sync
from engines.errors import DeployError
from exporters import onnx_files
from pipeline import __version__
from pipeline.bundling.repositories import CONFIG, LABELS, MARKER, VERSION, WARM_UP
from pipeline.golden import file as goldens
from pipeline.serving import config
from pipeline.serving.forms import FORMS, Form
from pipeline.workflow import signals
from pipeline.workflow.digests import read_json, sha256_file, write_json

_SCHEMA = 1
# What may have happened to a file since.
ADDED, CHANGED, _MISSING = "was added", "was changed", "is missing"
# The batch that many servers use for small models, preferred besides the largest one.
_USUAL = 8


@dataclass(frozen=True)
class Source:
    """What one Triton model is made from: files, and what was proved of them.

    Attributes:
        model: The name of the model.
        precision: The precision of the graph.
        engine: A key of `forms.FORMS`.
        file: The graph for engines that run it, else the built engine.
        golden: The golden file.
        labels: Names of the classes; () if there are none.
        largest: The largest batch that was proved, or that the engine accepts.
        verdict: "pass", or "not run" if it has yet to be proved on the server.
        usual: The batch that the engine was optimised for, if any.
        label: The engine's name in a bundle, if it has another there.
    """

    model: str
    precision: str
    engine: str
    file: Path
    golden: Path
    labels: tuple[str, ...]
    largest: int
    verdict: str
    usual: int | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """The name of the Triton model."""
        return slug(f"{self.model}_{self.precision}_{self.label or self.engine}")


def write(
    target: Path, sources: Sequence[Source], *, delay: int = 100, link: bool = False
) -> list[str]:
    """Writes a repository into a new folder, or in place of one that we wrote.

    Args:
        delay: Microseconds that a request waits for others to join its batch.
        link: Graphs and plans may be hard links to the sources, for a folder that nobody keeps.

    Returns:
        The names of the Triton models.

    Raises:
        DeployError: The folder has files that we did not write or that were changed, or an input or
            output cannot be served.
    """
    if not sources:
        raise DeployError("no model to serve")
    _require_ours(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    hints = {target.parent: "free some space there, or write to another folder"}
    with temporary.folder_beside(target) as folder, temporary.full_disk_named(hints):
        for source in sources:
            _write_model(folder / source.name, source, delay, _link if link else _copy)
        files = {str(path.relative_to(folder)): sha256_file(path) for path in _files(folder)}
        write_json(folder / MARKER, {"schema": _SCHEMA, "assay": __version__, "files": files})
        for path in _files(folder):
            sync(path)
        _replace(folder, target)
    return [source.name for source in sources]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def _replace(folder: Path, target: Path) -> None:
    """Moves the new folder to its place; an old one is gone afterwards."""
    with temporary.folder_beside(target) as old, signals.deferred():
        if target.exists():
            target.rename(old / target.name)
        try:
            folder.rename(target)
        except OSError:
            if (old / target.name).exists():
                (old / target.name).rename(target)
            raise
        sync(target.parent)


def changed_files(folder: Path) -> list[tuple[str, str]]:
    """Returns what of a repository is not as we wrote it: files or missing folders, and how.

    Raises:
        DeployError: We did not write it, or its list of files is damaged.
    """
    listed = read_json(folder / MARKER)
    try:
        files: Mapping[str, str] = dict(listed["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise DeployError(f"{folder / MARKER} is damaged: {error!r}") from error
    present = {str(path.relative_to(folder)): path for path in _files(folder)}
    present.pop(MARKER, None)
    changes = [(name, ADDED) for name in sorted(present.keys() - files.keys())]
    folders = {name.partition("/")[0] for name in files if "/" in name}
    gone = sorted(name for name in folders if not (folder / name).exists())
    changes += [(f"the folder {name}", _MISSING) for name in gone]
    for name, digest in sorted(files.items()):
        if name.partition("/")[0] in gone:
            continue
        path = present.get(name)
        if path is None:
            changes.append((name, _MISSING))
        elif path.is_symlink() or not path.is_file() or sha256_file(path) != digest:
            changes.append((name, CHANGED))
    return changes


def _require_ours(target: Path) -> None:
    """Raises DeployError unless a folder is new, empty, or as we wrote it."""
    hint = "write to another folder, or remove this one first"
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise DeployError(f"{target} is not a folder", hint)
    if not target.exists() or not os.listdir(target):  # noqa: PTH208 - only whether it is empty
        return
    if not (target / MARKER).is_file():
        raise DeployError(f"{target} has files that assay did not write", hint)
    if changed := changed_files(target):
        lines = [f"{name} {what}" for name, what in changed[:3]]
        raise DeployError(f"{target} would lose changes: {'; '.join(lines)}", hint)


_Place = Callable[[Path, Path], None]  # puts a file at a second path


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _write_model(folder: Path, source: Source, delay: int, place: _Place) -> None:
    form = FORMS[source.engine]
    golden = goldens.load(source.golden)
    version = folder / VERSION
    version.mkdir(parents=True)
    _write_files(version, form, source, place)
    batching = None
    if golden.batched:
        usual = source.usual or _USUAL
        preferred = sorted({size for size in (usual, source.largest) if size <= source.largest})
        batching = config.Batching(source.largest, tuple(preferred), delay)
    message = config.model_config(
        source.name,
        form,
        golden,
        batching=batching,
        labels=source.labels,
        parameters={
            "assay.model": source.model,
            "assay.precision": source.precision,
            config.ENGINE: source.engine,
            config.LARGEST_BATCH: str(source.largest),
            "assay.verdict": source.verdict,
            config.FILE_DIGEST: sha256_file(source.file),
            config.GOLDEN_DIGEST: sha256_file(source.golden),
        },
    )
    (folder / CONFIG).write_text(config.text_of(message), encoding="utf-8")
    if any(output.label_filename for output in message.output):
        lines = "".join(f"{label}\n" for label in source.labels)
        (folder / LABELS).write_text(lines, encoding="utf-8")
    (folder / WARM_UP).mkdir()
    for index, spec in enumerate(golden.input_specs):
        row: Any = golden.inputs[spec.name][0]
        (folder / WARM_UP / config.warm_up_file(index)).write_bytes(row.tobytes())


def _write_files(version: Path, form: Form, source: Source, place: _Place) -> None:
    """Writes the graph or engine under the names that Triton's backend expects."""
    if source.file.suffix == ".zip":  # OpenVINO's two files
        with zipfile.ZipFile(source.file) as archive:
            if tuple(archive.namelist()) != form.files:
                raise DeployError(f"{source.file} does not hold {' and '.join(form.files)}")
            for name in form.files:
                with archive.open(name) as packed, (version / name).open("wb") as file:
                    shutil.copyfileobj(packed, file)
        return
    (name,) = form.files
    place(source.file, version / name)
    if form.runs_graph:
        # The graph names its external data relative to its own folder. Never a link: graphs whose
        # data has two names are refused.
        for data in onnx_files.external_locations(source.file):
            shutil.copyfile(source.file.parent / data, version / data)
