"""Where Fashion-MNIST comes from, and that nothing else passes for it."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeployError
from pipeline.data import download, idx, registry
from tests.conftest import Result
from tests.subset import FOLDER, FULL, SUBSET

NOWHERE = dataclasses.replace(SUBSET, debian_folder=Path("/nowhere"), debian_package="nothing-here")


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


def test_a_corrupt_cache_is_passed_over_and_mended(folder: Path) -> None:
    installed = dataclasses.replace(NOWHERE, debian_folder=folder)
    download.fetch(installed, None)
    cached = download.cache_folder(installed) / "train-images-idx3-ubyte"
    cached.write_bytes(b"nonsense")
    assert right(download.fetch(installed, None))
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == SUBSET.files[0].sha256


def test_a_mirror(mirror: str) -> None:
    assert right(download.fetch(dataclasses.replace(NOWHERE, mirrors=(mirror,)), None))


def test_a_mirror_whose_file_has_another_md5_is_refused(mirror: str, folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    with pytest.raises(DeployError, match=r"train-labels-idx1-ubyte\.gz is corrupt: expected md5"):
        download.fetch(dataclasses.replace(NOWHERE, mirrors=(mirror,)), None)


def test_a_mirror_that_lacks_a_file_is_passed_over(mirror: str, folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DeployError, match="nowhere to be had") as caught:
        download.fetch(dataclasses.replace(NOWHERE, mirrors=(mirror,)), None)
    assert "404" in caught.value.message
    assert "--data-dir" in caught.value.hint


@pytest.fixture
def packaged(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> registry.DataSet:
    """A real Debian package of the files, and an `apt-get` that can download just that one."""
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


def test_the_package_is_downloaded_and_unpacked_without_installing(
    packaged: registry.DataSet,
) -> None:
    assert right(download.fetch(packaged, None))


def test_a_package_that_cannot_be_downloaded_says_so(packaged: registry.DataSet) -> None:
    with pytest.raises(DeployError, match="apt-get download failed"):
        download.fetch(dataclasses.replace(packaged, debian_package="other"), None)


def test_the_published_digests_are_those_of_fashion_mnist() -> None:
    # Each pair was found to belong together: with the name and time that Debian's package
    # leaves out put back into the header, its .gz files have torchvision's md5 sums.
    assert {file.name: file.md5_gz for file in FULL.files} == {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    }


def test_torchvision_names_the_same_md5_sums_and_mirrors() -> None:
    from torchvision.datasets import FashionMNIST

    ours = {f"{file.name}.gz": file.md5_gz for file in FULL.files}
    assert dict(FashionMNIST.resources) == ours
    assert list(FULL.mirrors) == FashionMNIST.mirrors


def test_reading_gives_the_shapes_of_the_set(folder: Path) -> None:
    for name, plain in download.fetch(NOWHERE, folder).items():
        (folder / name).write_bytes(plain)
    images = idx.read_images(folder / "train-images-idx3-ubyte")
    labels = idx.read_labels(folder / "train-labels-idx1-ubyte")
    assert (images.dtype, images.shape) == (np.uint8, (512, 1, 28, 28))
    assert (labels.dtype, labels.shape) == (np.int64, (512,))
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2),
        np.array([0, 255, 256, 70_000], np.int64),
    ],
)
def test_what_is_written_is_read(tmp_path: Path, array: np.ndarray) -> None:
    idx.write(tmp_path / "file", array)
    read = idx.read_images if array.ndim == 4 else idx.read_labels
    assert np.array_equal(read(tmp_path / "file"), array)


def test_reading_refuses_what_is_no_idx_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, fault in (
        (b"", "is not an IDX file"),
        (b"\1\0\x08\x01", "is not an IDX file"),
        (b"\0\0\x07\x01", "is not an IDX file"),
        (b"\0\0\x08\x01", "is truncated"),
        (b"\0\0\x08\x03" + b"\0" * 12, "has 3 axes"),
    ):
        path.write_bytes(content)
        with pytest.raises(DeployError, match=fault):
            idx.read_labels(path)
    path.write_bytes(b"\0\0\x08\x01\0\0\0\x05abc")
    with pytest.raises(DeployError, match="truncated"):
        idx.read_labels(path)


def test_the_command_refuses_a_folder_that_is_none(
    assay: Callable[..., Result], tmp_path: Path
) -> None:
    result = assay("data", "--root", tmp_path / "root", "--data-dir", tmp_path / "none")
    assert result.code == 1
    assert "is not a folder" in result.err
    assert not list((tmp_path / "root").glob("data/*"))
