"""Reading and writing IDX files."""

from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeployError
from pipeline.data import idx


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2),
        np.array([0, 255, 256, 70_000], np.int64),
    ],
)
def test_a_written_array_is_read_back(tmp_path: Path, array: np.ndarray) -> None:
    idx.write(tmp_path / "file", array)
    read = idx.read_images if array.ndim == 4 else idx.read_labels
    assert np.array_equal(read(tmp_path / "file"), array)


def test_reading_refuses_invalid_files(tmp_path: Path) -> None:
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
