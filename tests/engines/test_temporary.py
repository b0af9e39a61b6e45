"""Temporary files and folders: removed when their process is killed, and full disks named."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines import cache, temporary
from engines.errors import DeployError
from pipeline.workflow import leftovers
from tests.subset import python_path

_KILLED = """
import contextlib, os, signal, sys
from pathlib import Path
from engines import cache, temporary
with temporary.folder() as folder, cache.write_atomic(Path(sys.argv[1])) as part:
    (folder / "file").write_text("half")
    part.write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that has a temporary folder and replaces a file, until it is killed."""
    started = []

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, path],
            env={**os.environ, "PYTHONPATH": python_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline().strip().startswith(str(tmp_path / "tmp"))
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_removed_with_its_content(tmp_path: Path) -> None:
    with temporary.folder() as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path / "tmp"
    assert not names(tmp_path / "tmp")


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(
    tmp_path: Path, writing: Callable[[Path], subprocess.Popen[str]]
) -> None:
    root, dist = tmp_path / "artifacts", tmp_path / "dist"
    (root / ".locks").mkdir(parents=True)
    path = root / "lenet" / "fp32" / "onnxruntime" / "build.json"
    process = writing(path)
    leftovers.sweep(root, dist)
    assert len(names(tmp_path / "tmp")) == len(names(path.parent)) == 1
    process.kill()
    process.wait()
    leftovers.sweep(root, dist)
    assert not names(tmp_path / "tmp")
    assert not names(path.parent)


def test_the_next_write_beside_removes_a_half_written_file(
    tmp_path: Path, writing: Callable[[Path], subprocess.Popen[str]]
) -> None:
    process = writing(tmp_path / "cache" / "file")
    process.kill()
    process.wait()
    assert len(names(tmp_path / "cache")) == 1
    cache.keep(tmp_path / "cache" / "other", b"x")
    assert names(tmp_path / "cache") == ["other"]


def test_links_and_pipes_are_neither_removed_nor_waited_for(tmp_path: Path) -> None:
    folder, other = tmp_path / "tmp", tmp_path / "other"
    other.mkdir()
    (folder / f"{temporary.PREFIX}link").symlink_to(other)
    os.mkfifo(folder / f"{temporary.PREFIX}pipe")
    temporary.sweep()
    assert len(names(folder)) == 2
    assert other.is_dir()


def test_the_error_of_a_full_disk_names_its_folder(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    full = temporary.full_disk(error, {tmp_path: "free some space there"})
    assert full is not None
    assert full.message == f"the disk of {tmp_path} is full"
    assert full.hint == "free some space there"
    assert temporary.full_disk(ValueError("damaged"), {tmp_path: ""}) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a file system")
def test_any_error_on_a_full_disk_names_it(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", tmp_path / "tmp"]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this container may not mount a file system")

    def fail() -> None:
        with temporary.folder() as folder:
            with pytest.raises(OSError, match="No space left"):
                (folder / "file").write_bytes(bytes(1 << 20))
            raise RuntimeError("internal error of a library")

    try:
        with pytest.raises(DeployError) as caught:
            fail()
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "tmp"], check=True)
    assert caught.value.message.startswith(f"the disk of {tmp_path / 'tmp'} is full: internal")
    assert "TMPDIR" in caught.value.hint
