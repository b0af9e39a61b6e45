"""Hostile image folders."""

import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from engines.errors import DeployError
from pipeline.data import folder_layout, imagefolder
from tests.conftest import Result
from tests.subset import python_path

Assay = Callable[..., Result]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(6):
            pixels = np.full((8, 8, 3), number * 10, np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        folder = os.open(path.parent, os.O_RDONLY)
        opened.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def _postscript(path: Path) -> None:
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(canary) (w) file closefile\n"
    )


def _bomb(path: Path) -> None:
    # The header of a PNG of 60,000 x 60,000 pixels.
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


FAULTS: dict[str, Callable[[Path], object]] = {
    "a FIFO": _fifo,
    "a socket": _socket,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to nothing": lambda path: path.symlink_to("missing"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a FIFO": lambda path: (os.mkfifo(path.with_name("f")), path.symlink_to("f")),
    "PostScript": _postscript,
    "an image of 3.6 billion pixels": _bomb,
    "nothing": lambda path: path.touch(),
    "text": lambda path: path.write_text("text"),
    "half an image": lambda path: path.write_bytes((path.parent / "0.png").read_bytes()[:45]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_file_that_is_no_image_is_named_or_left_out(
    images: Path, tmp_path: Path, case: str, assay: Assay
) -> None:
    FAULTS[case](images / "cat" / "bad.png")
    words = ("data", "--data", images, "--root", tmp_path / "root", "--quiet")
    result = assay(*words)
    assert result.code == 1
    assert "bad.png (" in result.err
    assert assay(*words, "--skip-bad").code == 0
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize("target", [".", "..", "../dog", "../../images"])
def test_links_between_folders_end(images: Path, target: str) -> None:
    for number in range(8):
        (images / "cat" / f"again{number}").symlink_to(target)
    if target != ".":  # the images of other classes
        with pytest.raises(DeployError, match="are the same file"):
            folder_layout.scan(images)
        return
    assert len(folder_layout.scan(images).train) == 12
    imagefolder.digest(images)


def test_a_class_whose_name_is_not_utf8_is_refused(images: Path, assay: Assay) -> None:
    Path(os.fsdecode(os.fsencode(images) + b"/\xff")).mkdir()
    result = assay("data", "--data", images, "--root", images.parent / "root")
    assert result.code == 1
    assert r"the name of the class b'\xff' is not UTF-8" in result.err


@pytest.mark.parametrize("name", [b"\xff.png", b"\xed\xa0\x80.png", b"\x1b[2J.png", b"a\nb.png"])
def test_the_name_of_an_image_may_be_any(images: Path, name: bytes) -> None:
    source = images / "cat" / "0.png"
    odd = Path(os.fsdecode(os.fsencode(images / "cat") + b"/" + name))
    odd.write_bytes(source.read_bytes())
    assert len(imagefolder.digest(images)) == 64
    # Its name is printed, too, where it is broken.
    odd.write_bytes(b"")
    command = [sys.executable, "-m", "pipeline.cli", "data", "--data", str(images)]
    result = subprocess.run(
        [*command, "--root", str(images.parent / "root")],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert b"(not an image)" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(DeployError, match="is not a folder"):
            folder_layout.scan(path)
        (tmp_path / "file").touch()


def test_no_program_is_run_for_postscript(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pillow finds a Ghostscript that leaves a trace.
    tool = tmp_path / "bin" / "gs"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/canary\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    (images / "cat" / "bad.png").write_bytes(text)
    with pytest.raises(DeployError, match="not an image"):
        imagefolder.decode(folder_layout.scan(images), 8, skip_bad=False)
    assert not (tmp_path / "canary").exists()
    with Image.open(images / "cat" / "bad.png") as image, pytest.raises(OSError, match=r".*"):
        image.load()
    assert (tmp_path / "canary").exists()
