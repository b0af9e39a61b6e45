"""Runs stages in folders that cannot be used, or change while a stage runs."""

from __future__ import annotations

import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.attacks.places import STEPS, Attack, AttackError, Ended, Place, Step
from tests.attacks.references import Reference

_BY_NAME = {step.name: step for step in STEPS}
_WHILE_RUNNING = ("train", "export", "build")
_TRAIN = ("train", "lenet", "--data", "images", "--retrain", "--epochs", "1", "--limit", "20")
_EXPORT = ("export", "lenet", "--force")
_ONE = ("--engine", "onnxruntime", "--force")
_BUILD, _VERIFY = ("build", "lenet", *_ONE), ("verify", "lenet", *_ONE)
_BUNDLE = ("bundle", "lenet", *_ONE)
# Commands that use a file, besides `report`.
_FILES = {
    "data/images/train-images.idx": _TRAIN,
    "data/images/data.json": ("data", "--data", "images", "--force"),
    ".resume/lenet.safetensors": (*_TRAIN, "--resume"),
    "lenet/checkpoint.safetensors": _TRAIN,
    "lenet/train.json": ("runs", "lenet"),
    "lenet/training.json": ("runs", "lenet"),
    ".reference/lenet.npz": _EXPORT,
    "lenet/fp32/model.onnx": _BUILD,
    "lenet/fp32/golden.npz": _VERIFY,
    "lenet/fp32/export.json": _EXPORT,
    "lenet/fp32/onnxruntime/engine.onnx": _VERIFY,
    "lenet/fp32/onnxruntime/build.json": _BUILD,
    "lenet/fp32/onnxruntime/verdict.json": _VERIFY,
    "lenet/fp32/measurements.json": _BUNDLE,
    ".locks": _BUNDLE,
    ".locks/lenet-fp32-bundle": _BUNDLE,
    "dist/lenet-fp32.tar.zst": _BUNDLE,
}
_REPORT = ("report", "lenet")


def _require_error(ended: Ended, codes: tuple[int, ...] = (1,)) -> None:
    """Raises AttackError unless a command ended with an error that a user can act on."""
    if "Traceback" in ended.err or "this is a bug" in ended.err:
        raise AttackError(f"a traceback:\n{ended.err}")
    if ended.code not in codes or (ended.code and "error: " not in ended.err):
        raise AttackError(f"exit code {ended.code}:\n{ended.err}")


def read_only_root(reference: Reference, step: Step, path: Path) -> None:
    """A folder of artifacts that cannot be written in."""
    place = reference.place(step, path)
    for folder in (place.root, *(child for child in place.root.rglob("*") if child.is_dir())):
        folder.chmod(0o555)
    ended = place.run(step.words)
    for folder in (place.root, *(child for child in place.root.rglob("*") if child.is_dir())):
        folder.chmod(0o755)
    _require_error(ended)
    if "artifacts" not in ended.err or "ermission" not in ended.err:
        raise AttackError(f"it does not name the cause:\n{ended.err}")
    place.done(step)
    reference.compare(place, step)


def no_home(reference: Reference, step: Step, path: Path) -> None:
    """Neither a home nor a cache that can be written in."""
    place = reference.place(step, path)
    (place.path / "home").chmod(0o500)
    nowhere = {"HOME": "/proc/none", "ASSAY_CACHE": "/proc/none/cache"}
    ended = place.run(step.words, fresh=True, **nowhere)  # libraries use it when they are imported
    if ended.code or "Traceback" in ended.err:
        raise AttackError(f"without a home: exit code {ended.code}:\n{ended.err}")
    reference.compare(place, step)


def _file(place: Place, name: str) -> Path:
    """Returns the file that one of _FILES names; `data/images` is its data set."""
    if name.startswith("dist"):
        return place.path / name
    (folder,) = (place.root / "data").glob("folder-images-*")
    return place.root / name.replace("data/images", f"data/{folder.name}")


def unreadable(reference: Reference, name: str, path: Path) -> None:
    """A file that the user may not read."""
    place = reference.place(Step("", (), STEPS[-1].name), path)
    file = _file(place, name)
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        file.touch()
    reference.user.own(file.parent)
    mode = file.stat().st_mode
    file.chmod(0)
    try:
        for words in (_REPORT, _FILES[name]):
            _require_error(place.run(words), (0, 1))
    finally:
        file.chmod(mode)


def gone(
    reference: Reference, step: Step, seconds: float, fresh: bool, file: bool, path: Path
) -> None:
    """The folder of artifacts is removed, or replaced by a file, while a stage runs."""
    place = reference.place(step, path)
    running = place.start(step.words, fresh=fresh)
    time.sleep(seconds)
    place.root.rename(place.path / "renamed")
    shutil.rmtree(place.path / "renamed", ignore_errors=True)
    if file:
        with suppress(IsADirectoryError):  # the stage has already made it again
            place.root.write_text("not a folder")
    ended = place.end(running)
    _require_error(ended, (0, 1, 2))
    place.wait_until_idle()
    if left := list((place.path / "tmp").glob("assay-*")):
        raise AttackError(f"left behind: {left}")
    if place.root.is_file():
        place.root.unlink()
    shutil.rmtree(place.root, ignore_errors=True)
    shutil.copytree(reference.state(step.after) / "artifacts", place.root, symlinks=True)
    reference.user.own(place.root)
    place.done(step)
    reference.compare(place, step)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:  # the whole path may be longer than an address can be
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _full(path: Path) -> None:
    path.symlink_to("/dev/full")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _folder(path: Path) -> None:
    path.mkdir()


_KINDS = (_fifo, _socket, _endless, _full, _loop, _folder)


def other_kind(reference: Reference, name: str, make: Callable[[Path], None], path: Path) -> None:
    """Something that is not a file in the place of one: no command waits for it or follows it."""
    place = reference.place(Step("", (), STEPS[-1].name), path)
    file = _file(place, name)
    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    make(file)
    if reference.user.uid != os.getuid():
        os.chown(file, reference.user.uid, reference.user.uid, follow_symlinks=False)
    for words in (_REPORT, _FILES[name]):
        _require_error(place.run(words), (0, 1, 2))


def attacks(known: list[Reference], seed: int) -> Iterator[Attack]:
    """Yields all odd places; those of permissions only for a user that is not root."""
    source = random.Random(seed)  # noqa: S311 - moments, not secrets
    for reference in known:
        user = reference.user.name
        for name in _WHILE_RUNNING:
            for turn in range(6):
                fresh = turn < 2
                seconds = source.uniform(0, reference.seconds[name, fresh])
                yield Attack(
                    ("root is gone", name, "replaced" if turn % 2 else "removed", user),
                    f"after {seconds:.3f} s",
                    partial(gone, reference, _BY_NAME[name], seconds, fresh, bool(turn % 2)),
                )
        for make in _KINDS:
            for name in _FILES:
                group = ("not a file", make.__name__.strip("_"), "", user)
                yield Attack(group, f"at {name}", partial(other_kind, reference, name, make))
        if not reference.user.uid:
            continue
        for step in STEPS:
            if not step.distributed:
                group = ("no permission", step.name, "root", user)
                yield Attack(group, "", partial(read_only_root, reference, step))
                group = ("no permission", step.name, "home", user)
                yield Attack(group, "", partial(no_home, reference, step))
        for name in _FILES:
            group = ("no permission", "file", "", user)
            yield Attack(group, f"to read {name}", partial(unreadable, reference, name))
