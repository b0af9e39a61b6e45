"""Getting a data set's files from a folder, the cache or the network, with digests checked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from engines import cache, temporary
from engines.cache import write_atomic
from engines.errors import DeployError
from pipeline.data.registry import DataFile, DataSet
from pipeline.workflow import console

_DOWNLOAD_SECONDS = 60
# No file of a known data set is larger.
_MAX_BYTES = 1 << 28


def dataset_folder(dataset: DataSet) -> Path:
    """Returns where a data set's files are kept."""
    return cache.cache_folder() / dataset.name


def fetch(dataset: DataSet, data_dir: Path | None) -> dict[str, bytes]:
    """Returns the uncompressed content of each file, every digest checked.

    Takes the files from `data_dir` if it is given, else from the cache, else from the data set's
    own `fetch`.

    Returns:
        Content by the file's name.

    Raises:
        DeployError: No source has the data set, or a file is corrupt or truncated.
    """
    if data_dir is not None:
        if not data_dir.is_dir():
            raise DeployError(f"--data-dir {data_dir} is not a folder", "give the folder's path")
        missing = [file.name for file in dataset.files if not _candidates(data_dir, file)]
        if missing:
            raise DeployError(
                f"{data_dir} lacks {', '.join(missing)} (with or without .gz)",
                f"put all four files of {dataset.name} there, or leave --data-dir out",
            )
        return _from_folder(dataset, data_dir)
    folder = dataset_folder(dataset)
    try:
        content = _from_folder(dataset, folder)
        console.say(f"data: {dataset.name} from {folder}")
        return content
    except DeployError as error:
        console.say(f"data: not from {folder}: {error.message}")
    content = dataset.fetch(dataset)
    for file in dataset.files:
        if file.name not in content:
            raise DeployError(f"{dataset.name} came without {file.name}")
        _checked(file, content[file.name], file.name)
    _fill_cache(dataset, content)
    return content


def from_anywhere(dataset: DataSet) -> dict[str, bytes]:
    """Returns the uncompressed content of each file, by name, from the first source that has it.

    Tries the installed Debian package, the mirrors, and the Debian package, downloaded and
    unpacked without root.

    Raises:
        DeployError: No source has the data set.
    """
    tried = []
    for description, source in _sources(dataset):
        try:
            content = source()
        except DeployError as error:
            tried.append(f"{description}: {error.message}")
            console.say(f"data: not from {tried[-1]}")
            continue
        console.say(f"data: {dataset.name} from {description}")
        return content
    raise DeployError(
        f"{dataset.name} could not be obtained. " + "; ".join(tried),
        "download the four files yourself and give their folder with --data-dir",
    )


def _sources(dataset: DataSet) -> Iterator[tuple[str, Callable[[], dict[str, bytes]]]]:
    installed = dataset.debian_folder
    if installed is not None:
        yield str(installed), partial(_from_folder, dataset, installed)
    for mirror in dataset.mirrors:
        yield mirror, partial(_from_mirror, dataset, mirror)
    if dataset.debian_package and installed is not None:
        package = dataset.debian_package
        yield f"Debian package {package}", partial(_from_debian, dataset, package, installed)


def _candidates(folder: Path, file: DataFile) -> list[Path]:
    paths = (folder / file.name, folder / f"{file.name}.gz")
    return [path for path in paths if path.is_file()]


def _from_folder(dataset: DataSet, folder: Path) -> dict[str, bytes]:
    content = {}
    for file in dataset.files:
        candidates = _candidates(folder, file)
        if not candidates:
            raise DeployError(f"{folder / file.name} does not exist")
        content[file.name] = _checked(file, candidates[0].read_bytes(), str(candidates[0]))
    return content


def _checked(file: DataFile, content: bytes, place: str) -> bytes:
    """Returns the uncompressed content of a file; DeployError if its digest does not match."""
    if place.endswith(".gz"):
        content = _unzip(content, place, file)
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise DeployError(
            f"{place} is corrupt: expected sha256 {file.sha256}, found {digest}"
            f" ({len(content):,} bytes uncompressed)",
            "remove the file and run again",
        )
    return content


def _unzip(content: bytes, place: str, file: DataFile) -> bytes:
    try:
        unzipper = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        plain = unzipper.decompress(content, _MAX_BYTES)
        if not unzipper.eof:
            raise EOFError("the compressed data end too early, or are too long")
    except (OSError, EOFError, zlib.error) as error:
        raise DeployError(
            f"{place} is corrupt or truncated: {error}; expected a gzip file whose content has"
            f" sha256 {file.sha256}, found {len(content):,} bytes",
            "remove the file and run again",
        ) from error
    return plain


def _from_mirror(dataset: DataSet, mirror: str) -> dict[str, bytes]:
    content = {}
    with temporary.folder() as folder:
        for file in dataset.files:
            url = f"{mirror}{file.name}.gz"
            packed = _retrieve(url, file.md5_gz, folder, _over_http()).read_bytes()
            content[file.name] = _checked(file, packed, url)
    return content


def _retrieve(url: str, md5: str, folder: Path, downloader: Any) -> Path:
    """Downloads a file into a folder.

    Args:
        md5: Digest of the file; "" if unknown.
        downloader: pooch downloader for the URL's scheme.
    """
    pooch = _pooch()
    try:
        path = pooch.retrieve(
            url,
            f"md5:{md5}" if md5 else None,
            fname=Path(url).name,
            path=folder,
            downloader=downloader,
        )
    except ValueError as error:  # the digest does not match
        raise DeployError(f"{url} is corrupt: expected md5 {md5}: {error}") from error
    except OSError as error:
        raise DeployError(f"{url} cannot be downloaded: {error}") from error
    return Path(path)


def _pooch() -> Any:
    from engines.checks import import_vendor  # numpy, which --help must not load

    pooch = import_vendor("pooch", "pip install pooch")
    pooch.get_logger().setLevel("WARNING")  # we print progress ourselves
    return pooch


class _Limit:
    """Ends a download that is larger than `_MAX_BYTES`; passed to pooch as its progress bar."""

    def __init__(self) -> None:
        self.total = 0
        self._received = 0

    def update(self, received: int) -> None:
        self._received += received
        if self._received > _MAX_BYTES:
            raise DeployError(f"a download of more than {_MAX_BYTES:,} bytes is not a data set")

    def reset(self) -> None:
        self._received = 0

    def close(self) -> None:
        pass


def _over_http() -> Any:
    return _pooch().HTTPDownloader(progressbar=_Limit(), timeout=_DOWNLOAD_SECONDS)


def _from_debian(dataset: DataSet, package: str, installed: Path) -> dict[str, bytes]:
    """Downloads and unpacks the package; needs no root and installs nothing."""
    with temporary.folder() as folder:
        archive = _retrieve(f"debian:{package}", "", folder, download_debian_package)
        unpacked = folder / "unpacked"
        _apt(["dpkg", "-x", str(archive), str(unpacked)], folder)
        return _from_folder(dataset, unpacked / installed.relative_to("/"))


def download_debian_package(url: str, output_file: str, _pooch: Any) -> None:
    """Downloads the package of a URL `debian:PACKAGE`; a pooch downloader.

    Raises:
        DeployError: This is not a Debian system, or apt-get failed.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise DeployError("this is not a Debian system (no apt-get and dpkg)")
    with temporary.folder() as folder:
        command = ["apt-get", "download", "--quiet", url.removeprefix("debian:")]
        answer = _apt(command, folder)
        if answer.returncode and os.access("/var/lib/apt/lists", os.W_OK):
            _apt(["apt-get", "update", "--quiet"], folder)
            answer = _apt(command, folder)
        packages = sorted(folder.glob("*.deb"))
        if answer.returncode or not packages:
            raise DeployError(f"apt-get download failed: {answer.stderr.strip()[-300:]}")
        shutil.move(packages[0], output_file)


def _apt(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeployError(f"{' '.join(command)} failed: {error}") from error


def _fill_cache(dataset: DataSet, content: dict[str, bytes]) -> None:
    """Keeps the files for other checkouts, if that is possible."""
    folder = dataset_folder(dataset)
    try:
        for name, plain in content.items():
            with write_atomic(folder / name) as part:
                part.write_bytes(plain)
    except OSError as error:
        console.say(f"data: not cached in {folder}: {error}")
