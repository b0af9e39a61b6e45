"""Trained weights that were replaced by others: kept by digest, listed, taken back."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.cache import sync, write_atomic
from engines.errors import DeployError, UsageError, suggestion
from pipeline.workflow import leftovers, lock, records, signals
from pipeline.workflow.artifacts import CHECKPOINT, TRAINING, lock_file
from pipeline.workflow.digests import read_json, sha256_file

_NAME_DIGITS = 12  # of the checkpoint's SHA-256
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Run:
    """The weights of one training.

    Attributes:
        name: The first digits of the checkpoint's SHA-256.
        current: They are what the other stages use.
        folder: Folder of the checkpoint, its training record and its stage's record.
        record: The record of the stage; None if it is damaged.
        training: The training record: options, curve, accuracy.
        size: Bytes of the folder's files.
    """

    name: str
    current: bool
    folder: Path
    record: records.Record | None
    training: dict[str, Any]
    size: int

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "name": self.name,
            "current": self.current,
            "folder": str(self.folder),
            "params": {} if self.record is None else self.record.params,
            "started": "" if self.record is None else self.record.started,
            "training": self.training,
            "bytes": self.size,
        }


# The files of a run: the checkpoint first, the record last.
_NAMES = tuple(Path(name).name for name in (CHECKPOINT.path, TRAINING.path, CHECKPOINT.record))


def _files(root: Path, model: str) -> list[Path]:
    folder = (root / CHECKPOINT.at(model=model).path).parent
    return [folder / name for name in _NAMES]


def _kept_folder(root: Path, model: str) -> Path:
    return _files(root, model)[0].parent / "runs"


def keep(root: Path, model: str) -> str:
    """Keeps the current weights under their digest; returns the name, or "" if there are none.

    The current files stay in place: kept ones are hard links, or copies where the file system has
    no links.
    """
    files = [path for path in _files(root, model) if path.exists()]
    checkpoint = _files(root, model)[0]
    if checkpoint not in files:
        return ""
    name = _digest(checkpoint)
    folder = _kept_folder(root, model) / name
    if not folder.exists():
        part = _part(root, model, name)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        folder.parent.mkdir(exist_ok=True)
        for path in files:
            _link(path, part / path.name)
        sync(part)
        part.rename(folder)
        sync(folder.parent)
    return name


def _part(root: Path, model: str, name: str) -> Path:
    """Returns a temporary folder that the next command removes if this one is killed."""
    lock_name = lock_file(root, CHECKPOINT.at(model=model).record).name
    return root / f"{leftovers.prefix(root, lock_name)}{name}"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def of_model(root: Path, model: str) -> list[Run]:
    """Returns the runs of a model, the current one first, then the kept ones from new to old.

    Raises:
        DeployError: The model has no trained weights here.
    """
    checkpoint = _files(root, model)[0]
    current = _digest(checkpoint)
    runs = [_run(checkpoint.parent, current, current=True)] if current else []
    kept = [
        _run(folder, folder.name, current=False)
        for folder in _kept_folder(root, model).glob("*")
        if folder.is_dir() and not folder.name.startswith(".") and folder.name != current
    ]
    if not runs and not kept:
        raise DeployError(f"{model} has no trained weights here", f"run `assay train {model}`")
    return runs + sorted(
        kept, key=lambda run: "" if run.record is None else run.record.started, reverse=True
    )


def _run(folder: Path, name: str, *, current: bool) -> Run:
    checkpoint, training, record = (folder / file for file in _NAMES)
    try:
        known = records.load(record)
        described = read_json(training) if training.exists() else {}
    except DeployError:
        known, described = None, {}
    files = [path for path in (checkpoint, training, record) if path.exists()]
    size = sum(path.stat().st_size for path in files)
    return Run(name, current, folder, known, described, size)


def _meant(model: str, word: str, names: list[str]) -> str:
    """Returns the name of the run that a word means: its name, the beginning of that, or a digest.

    Raises:
        UsageError: The word means none, or several.
    """
    short = word[:_NAME_DIGITS] if len(word) == _SHA256_DIGITS else word
    meant = [name for name in names if short and name.startswith(short)]
    if len(meant) > 1:
        raise UsageError(
            f"{word!r} is the beginning of {len(meant)} runs of {model}: {', '.join(meant)}",
            "give more of the name",
        )
    if not meant:
        raise UsageError(f"{model} has no run {word!r}", suggestion(word, names))
    return meant[0]


def use(root: Path, model: str, name: str, patience: float) -> None:
    """Makes kept weights the current ones, and keeps those that were.

    Args:
        name: The name of the run, the beginning of it, or the SHA-256 of the weights.
        patience: Seconds to wait for a training of the model that is running.

    Raises:
        UsageError: No run of the model, or more than one, has this name.
        DeployError: The kept weights have changed since they were made.
    """
    targets = _files(root, model)
    held = lock.held(lock_file(root, CHECKPOINT.at(model=model).record), f"{model} train", patience)
    with held:
        known = {run.name: run for run in of_model(root, model)}
        name = _meant(model, name, [*known])
        run = known[name]
        if run.current and run.record is not None:
            return
        if run.current:  # a command that was to take them back was killed
            run = _run(_kept_folder(root, model) / name, name, current=False)
        sources = [run.folder / path.name for path in targets]
        if run.record is None or _digest(sources[0]) != name:
            raise DeployError(f"{run.folder} is damaged", "use another run, or train again")
        with signals.deferred():
            keep(root, model)
            targets[-1].unlink(missing_ok=True)  # without its record, half a change is ignored
            for source, target in zip(sources, targets, strict=True):
                # A copy, so that writing to one file never changes the other.
                with write_atomic(target) as part:
                    shutil.copyfile(source, part)


def remove(root: Path, model: str, *, dry_run: bool = False) -> list[Run]:
    """Removes the kept weights that are not current; returns what was, or would be, removed."""
    kept = [run for run in of_model(root, model) if not run.current]
    for run in kept if not dry_run else ():
        part = _part(root, model, run.name)
        run.folder.rename(part)  # at once, so that no half of it is listed
        shutil.rmtree(part)
    return kept


def _digest(checkpoint: Path) -> str:
    return sha256_file(checkpoint)[:_NAME_DIGITS] if checkpoint.exists() else ""
