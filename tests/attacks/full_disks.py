"""Runs every stage on disks that fill up: file systems in memory, which need root to be mounted."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.attacks.places import (
    FOLDERS,
    READING,
    STEPS,
    Attack,
    AttackError,
    NotApplicableError,
    Place,
    Step,
    is_fresh,
)
from tests.attacks.references import Reference

_LARGE = "64m"
_PAGE = 4096
_measuring = threading.Lock()


def _mount(folder: Path, place: Place, size: str) -> None:
    """Puts a file system in memory in place of a folder, with the folder's content."""
    content = folder.with_name(f"{folder.name}-content")
    shutil.copytree(folder, content, symlinks=True)
    options = f"size={size},uid={place.user.uid},gid={place.user.uid},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    shutil.copytree(content, folder, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(content)
    place.user.own(folder)


def _resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)


def _used(folder: Path) -> int:
    """Returns the bytes that are used on a folder's file system."""
    state = os.statvfs(folder)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def _most_used(folders: list[Path], work: Callable[[], None]) -> list[int]:
    """Returns the most bytes that are used on each folder's file system during some work."""
    most, over = [_used(folder) for folder in folders], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            most[:] = map(max, most, map(_used, folders))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        over.set()
        watching.join()
    return most


def _needs(reference: Reference, step: Step, path: Path) -> dict[str, int]:
    """Returns how many bytes a step needs on the disk of each folder, measured once."""
    with _measuring:
        if step.name not in reference.needs:
            place = reference.place(step, path)
            folders = [place.path / name for name in FOLDERS]
            try:
                for folder in folders:
                    _mount(folder, place, _LARGE)
                before = [_used(folder) for folder in folders]
                once = dataclasses.replace(step, again=())
                most = _most_used(folders, lambda: place.done(once, fresh=True))
            finally:
                for folder in folders:
                    _unmount(folder)
            added = map(int.__sub__, most, before)
            reference.needs[step.name] = dict(zip(FOLDERS, added, strict=True))
        return reference.needs[step.name]


def fill(reference: Reference, step: Step, name: str, share: float, turn: int, path: Path) -> None:
    """Runs a step on a disk that has a share of the space it needs, then with enough of it."""
    needed = _needs(reference, step, path.with_name("needs"))[name]
    if not needed:
        raise NotApplicableError
    place = reference.place(step, path)
    folder = place.path / name
    _mount(folder, place, _LARGE)
    try:
        size = _used(folder) + int(share * needed)
        size = max(_PAGE, -(-size // _PAGE) * _PAGE)
        if (step.name, name, size) in reference.filled:
            raise NotApplicableError
        reference.filled.add((step.name, name, size))
        _resize(folder, str(size))
        ended = place.run(step.words, step.module, fresh=is_fresh(turn))
        _check(name, ended.code, ended.err, step)
        place.wait_until_idle()
        place.artifacts()
        if ended.code == 0:
            reference.compare(place, step)
        if turn // 2 % 2:  # the disk is full still
            read = place.run(READING[turn // 4 % len(READING)])
            if read.code not in (0, 1) or "Traceback" in read.err:
                raise AttackError(f"a command that reads ended with {read.code}: {read.err}")
            if left := place.leftovers():
                raise AttackError(f"left behind: {left}")
        _resize(folder, _LARGE)
        place.done(step, turn // 2)
        reference.compare(place, step)
        if left := place.leftovers():
            raise AttackError(f"left behind after a rerun: {left}")
    finally:
        _unmount(folder)


def _check(name: str, code: int, err: str, step: Step) -> None:
    if code == 0:
        return
    if step.distributed:
        err = "\n".join(line for line in err.splitlines() if line.startswith(("error:", "hint:")))
    problems = [
        problem
        for problem, wrong in (
            (f"exit code {code}", code != 1),
            ("a traceback", "Traceback" in err or "this is a bug" in err),
            ("it does not say that the disk is full", "is full" not in err),
            ("it does not name the folder", name not in err),
            ("it does not say what to do", "free" not in err),
            ("it blames a file", "damaged" in err or "not valid" in err),
        )
        if wrong
    ]
    if problems:
        raise AttackError(f"{'; '.join(problems)}:\n{err}")


def _can_mount() -> bool:
    """Whether this process may mount file systems; root may not in most containers."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False
        )
        if mounted.returncode == 0:
            _unmount(Path(folder))
    return mounted.returncode == 0


def attacks(known: list[Reference], levels: int) -> Iterator[Attack]:
    """Yields each step on each of its disks at `levels` fill levels, users in turn."""
    if not _can_mount():
        print("without full disks: mounting them needs root", flush=True)
        return
    for turn in range(levels):
        for step in STEPS:
            # Processes of torchrun write what one process writes, and take long to start.
            if (step.heavy or step.distributed) and not is_fresh(turn):
                continue
            for name in FOLDERS:
                reference = known[turn % len(known)]
                share = turn / max(1, levels - 1)
                yield Attack(
                    ("full disk", step.name, name, reference.user.name),
                    f"with {share:.0%} of the space",
                    partial(fill, reference, step, name, share, turn),
                )
