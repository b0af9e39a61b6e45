"""Getting Fashion-MNIST from each source, and refusing other files."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeployError
from pipeline.data import download, idx, registry
from tests.conftest import Result
from tests.subset import FOLDER, SUBSET

NOWHERE = dataclasses.replace(SUBSET, debian_folder=Path("/nowhere"), debian_package="nothing-here")
DOWNLOADS = pytest.mark.skipif(find_spec("pooch") is None, reason="pooch is not installed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "files"
    shutil.copytree(FOLDER, copy)
    return copy


@pytest.fixture
def mirror(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def right(content: dict[str, bytes]) -> bool:
    wanted = {file.name: file.sha256 for file in SUBSET.files}
    return {name: hashlib.sha256(plain).hexdigest() for name, plain in content.items()} == wanted


def test_a_folder_of_compressed_or_plain_files(folder: Path) -> None:
    assert right(download.fetch(NOWHERE, folder))
    for packed in folder.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert right(download.fetch(NOWHERE, folder))


def test_a_repacked_file_with_the_same_content_is_accepted(folder: Path) -> None:
    packed = folder / "train-labels-idx1-ubyte.gz"
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()), 1))
    assert right(download.fetch(NOWHERE, folder))


@pytest.mark.parametrize("position", [12, 3000, -1])
def test_a_flipped_bit_is_found_and_the_file_named(folder: Path, position: int) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(DeployError, match=r"train-images-idx3-ubyte\.gz is corrupt") as caught:
        download.fetch(SUBSET, folder)
    assert SUBSET.files[0].sha256 in caught.value.message


@pytest.mark.parametrize("length", [0, 5, 100, 100_000])
def test_a_truncated_file_is_found(folder: Path, length: int) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DeployError, match="corrupt or truncated") as caught:
        download.fetch(SUBSET, folder)
    assert f"found {length:,} bytes" in caught.value.message


def test_another_data_set_of_the_same_shape_is_refused(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    labels = bytearray(gzip.decompress(path.read_bytes()))
    labels[-1] = (labels[-1] + 1) % 10
    path.write_bytes(gzip.compress(bytes(labels)))
    with pytest.raises(DeployError, match="expected sha256"):
        download.fetch(SUBSET, folder)


def test_a_folder_that_lacks_files_names_them(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DeployError, match="lacks train-labels-idx1-ubyte"):
        download.fetch(SUBSET, folder)


def test_the_installed_package_then_the_cache(folder: Path) -> None:
    installed = dataclasses.replace(NOWHERE, debian_folder=folder)
    assert right(download.fetch(installed, None))
    shutil.rmtree(folder)
    assert right(download.fetch(installed, None))


def test_a_corrupt_cache_is_replaced(folder: Path) -> None:
    installed = dataclasses.replace(NOWHERE, debian_folder=folder)
    download.fetch(installed, None)
    cached = download.dataset_folder(installed) / "train-images-idx3-ubyte"
    cached.write_bytes(b"nonsense")
    assert right(download.fetch(installed, None))
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == SUBSET.files[0].sha256


@DOWNLOADS
def test_a_mirror(mirror: str) -> None:
    assert right(download.fetch(dataclasses.replace(NOWHERE, mirrors=(mirror,)), None))


@DOWNLOADS
@pytest.mark.slow(2)
def test_a_mirror_whose_file_has_another_md5_is_refused(mirror: str, folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    with pytest.raises(DeployError, match=r"train-labels-idx1-ubyte\.gz is corrupt: expected md5"):
        download.fetch(dataclasses.replace(NOWHERE, mirrors=(mirror,)), None)


@DOWNLOADS
@pytest.mark.slow(2)
def test_a_mirror_without_a_file_is_skipped(mirror: str, folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DeployError, match="could not be obtained") as caught:
        download.fetch(dataclasses.replace(NOWHERE, mirrors=(mirror,)), None)
    assert "404" in caught.value.message
    assert "--data-dir" in caught.value.hint


@pytest.fixture
def packaged(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> registry.DataSet:
    """A Debian package of the files, and an `apt-get` that downloads only that package."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: nothing-here\nVersion: 1\nArchitecture: all\nMaintainer: none <none@none>\n"
        "Description: test\n"
    )
    shutil.copytree(folder, tree / "usr/share/files")
    package = tmp_path / "nothing-here_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(package)], check=True, text=True)
    tools = tmp_path / "bin"
    tools.mkdir()
    script = tools / "apt-get"
    script.write_text(f'#!/bin/sh\n[ "$3" = nothing-here ] && cp {package} .\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return dataclasses.replace(NOWHERE, debian_folder=Path("/usr/share/files"))


@DOWNLOADS
def test_the_package_is_downloaded_and_unpacked_without_installing(
    packaged: registry.DataSet,
) -> None:
    assert right(download.fetch(packaged, None))


@DOWNLOADS
def test_a_package_that_cannot_be_downloaded_is_an_error(packaged: registry.DataSet) -> None:
    with pytest.raises(DeployError, match="apt-get download failed"):
        download.fetch(dataclasses.replace(packaged, debian_package="other"), None)


def test_reading_gives_the_shapes_of_the_set(folder: Path) -> None:
    for name, plain in download.fetch(NOWHERE, folder).items():
        (folder / name).write_bytes(plain)
    images = idx.read_images(folder / "train-images-idx3-ubyte")
    labels = idx.read_labels(folder / "train-labels-idx1-ubyte")
    assert (images.dtype, images.shape) == (np.uint8, (512, 1, 28, 28))
    assert (labels.dtype, labels.shape) == (np.int64, (512,))
    assert set(labels.tolist()) == set(range(10))


def test_the_command_refuses_a_missing_folder(assay: Callable[..., Result], tmp_path: Path) -> None:
    result = assay("data", "--root", tmp_path / "root", "--data-dir", tmp_path / "none")
    assert result.code == 1
    assert "is not a folder" in result.err
    assert not list((tmp_path / "root").glob("data/*"))


def test_a_second_data_set_needs_one_entry(
    assay: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fetch(dataset: registry.DataSet) -> dict[str, bytes]:
        calls.append(dataset.name)
        return {
            file.name: gzip.decompress((FOLDER / f"{file.name}.gz").read_bytes())
            for file in dataset.files
        }

    entry = registry.DataSet(
        name="second", files=SUBSET.files, contents=SUBSET.contents, fetch=fetch
    )
    monkeypatch.setitem(registry.DATASETS, entry.name, entry)
    words = ("data", "--data", "second", "--root", tmp_path)
    result = assay(*words)
    assert result.code == 0, result.err
    assert (tmp_path / "data/second/test-images.idx").exists()
    assert assay(*words, "--force").code == 0
    assert calls == ["second"]  # the second call finds it in the cache


def test_fetched_files_are_checked() -> None:
    wrong = dataclasses.replace(SUBSET, fetch=lambda _: {f.name: b"x" for f in SUBSET.files})
    with pytest.raises(DeployError, match="is corrupt: expected sha256"):
        download.fetch(wrong, None)
    with pytest.raises(DeployError, match="came without train-images-idx3-ubyte"):
        download.fetch(dataclasses.replace(SUBSET, fetch=lambda _: {}), None)


@DOWNLOADS
@pytest.mark.slow(3)
def test_a_mirror_that_sends_too_much_is_refused(
    mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_MAX_BYTES", 1000)
    with pytest.raises(DeployError, match="a download of more than 1,000 bytes"):
        download.fetch(dataclasses.replace(NOWHERE, mirrors=(mirror,)), None)


def test_without_pooch_the_hint_names_it(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DeployError, match="pooch cannot be imported"):
        download.fetch(dataclasses.replace(NOWHERE, mirrors=(mirror,)), None)
