"""Hostile .npz files, as --inputs, --calibration and golden files."""

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeployError
from pipeline.golden import file as goldens
from pipeline.golden import npz, rows

GOOD = np.arange(6, dtype=np.float32).reshape(2, 3)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_header(text: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    raw = text.encode()
    return b"\x93NUMPY" + version + len(raw).to_bytes(2, "little") + raw + content


def described(shape: str, dtype: str = "'<f4'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n"


def zipped(
    path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


HEADERS = {
    "a shape beyond the content": with_header(described("(1000000000000,)")),
    "a shape of nothing": with_header(described("(5, 0)"), b"1234"),
    "a shape that is negative": with_header(described("(-1,)"), b"1234"),
    "a shape that overflows": with_header(described("(4611686018427387905, 4)"), b"1234"),
    "a shape that is text": with_header(described("'big'")),
    "a shape with a fraction": with_header(described("(1.0,)"), b"1234"),
    "objects": with_header(described("(1,)", "'|O'"), b"cposix\nsystem\n"),
    "objects in a structure": with_header(described("(1,)", "[('a', '|O')]"), b"12345678"),
    "a structure": with_header(described("(1,)", "[('a', '<f4')]"), b"1234"),
    "a type of no size": with_header(described("(99,)", "'<U0'")),
    "a type that is unknown": with_header(described("(1,)", "'<q99'"), b"1234"),
    "a type that is a number": with_header(described("(1,)", "7"), b"1234"),
    "dates": with_header(described("(1,)", "'<M8[s]'"), b"12345678"),
    "an expression": with_header("__import__('os').system('touch canary')\n"),
    "lists of 500 levels": with_header("[" * 500),
    "a header that is too long": with_header(" " * 60_000 + described("(1,)"), b"1234"),
    "another version": with_header(described("(1,)"), b"1234", b"\3\0"),
    "an unknown version": with_header(described("(1,)"), b"1234", b"\x63\0"),
    "no header": b"",
    "half a header": npy(GOOD)[:20],
    "text": b"not an array",
    "more data than the shape": npy(GOOD) + b"x",
    "less data than the shape": npy(GOOD)[:-1],
}


def refuse(path: Path) -> None:
    """Reads a file that must be refused by every reader, with little memory."""
    tracemalloc.start()
    try:
        for read in (goldens.load, rows.read, lambda file: rows.read(file, "--calibration")):
            with pytest.raises(DeployError) as raised:
                read(path)
            assert str(path) in raised.value.message
            assert raised.value.hint
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", HEADERS)
def test_an_array_that_is_not_valid_is_refused(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(zipped(tmp_path / "bad.npz", [("x.npy", HEADERS[case])]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.npz"]


def _bomb(path: Path) -> Path:
    size = 300 << 20
    head = with_header(described(f"({size // 4},)"))
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as file,
    ):
        file.write(head)
        for _ in range(300):
            file.write(bytes(1 << 20))
    return path


def _patched(path: Path, old: bytes, new: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    zipped(path, [("x.npy", npy(GOOD))], method)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def _flagged(path: Path, position: int, flag: int) -> Path:
    """Sets a flag of the first member, in the local and the central header."""
    zipped(path, [("x.npy", npy(GOOD))])
    content = bytearray(path.read_bytes())
    content[6 + position] |= flag
    content[content.index(b"PK\1\2") + 8 + position] |= flag
    path.write_bytes(content)
    return path


def _corrupted(path: Path, start: int) -> Path:
    zipped(path, [("x.npy", npy(np.random.default_rng(0).random(1000)))])
    content = bytearray(path.read_bytes())
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    return path


def _single(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


ARCHIVES: dict[str, Callable[[Path], Path]] = {
    "encrypted": lambda path: _flagged(path, 0, 1),
    "an unknown method": lambda path: _flagged(path, 2, 0x63),
    "bzip2": lambda path: zipped(path, [("x.npy", npy(GOOD))], zipfile.ZIP_BZIP2),
    "lzma": lambda path: zipped(path, [("x.npy", npy(GOOD))], zipfile.ZIP_LZMA),
    "badly deflated": lambda path: _corrupted(path, 60),
    "badly deflated at the end": lambda path: _corrupted(path, 3000),
    "a wrong checksum": lambda path: _patched(
        path, npy(GOOD)[-8:], b"\x7f" * 8, zipfile.ZIP_STORED
    ),
    "a member that is not an array": lambda path: zipped(path, [("x.txt", b"text")]),
    "a member that is a folder": lambda path: zipped(path, [("x/", b"")]),
    "a pickle": lambda path: _single(path, b"cposix\nsystem\n(S'touch canary'\ntR."),
    "a plain .npy": lambda path: _single(path, npy(GOOD)),
    "nothing": lambda path: _single(path, b""),
    "half an archive": lambda path: _single(
        path, zipped(path, [("x.npy", npy(GOOD))]).read_bytes()[:90]
    ),
    "300 MB of zeros": _bomb,
    "a folder": lambda path: (path.mkdir(), path)[1],
    "a missing file": lambda path: path,
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_is_not_valid_is_refused(tmp_path: Path, case: str) -> None:
    refuse(ARCHIVES[case](tmp_path / "bad.npz"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    refuse(zipped(tmp_path / "bad.npz", [("x.npy", npy(GOOD)), ("x.npy", npy(GOOD))]))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path: Path, save: Callable[..., None]) -> None:
    arrays = {
        "float32": GOOD,
        "half": GOOD.astype(np.float16),
        "bool": GOOD > 1,
        "fortran": np.asfortranarray(GOOD),
        "big endian": GOOD.astype(">f8"),
        "scalar": np.float64(3),
        "empty": np.zeros((0, 4), np.int64),
        "größe": GOOD,
        "x.npy": GOOD,
    }
    save(tmp_path / "good.npz", **arrays)
    found = npz.read(tmp_path / "good.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == np.shape(array)
        np.testing.assert_array_equal(found[name], array)


def test_arrays_that_shrink_much_are_read_if_they_are_not_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "_FREE_BYTES", 1 << 20)
    zeros = np.zeros(3 << 20, np.uint8)
    np.savez_compressed(tmp_path / "x.npz", zeros=zeros)
    assert not npz.compressible(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"write it with numpy\.savez"):
        npz.read(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", zeros=zeros)
    assert npz.read(tmp_path / "x.npz")["zeros"].nbytes == zeros.nbytes
