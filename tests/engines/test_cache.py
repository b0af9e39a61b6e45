"""The cache folder, atomic writing of files, and valid file names."""

import os
from pathlib import Path

import pytest

from engines import cache
from pipeline.data import download
from tests.subset import FULL


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ASSAY_CACHE", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_cache_folder_is_that_of_the_platform(tmp_path: Path) -> None:
    assert cache.cache_folder() == tmp_path / ".cache" / "assay"


def test_xdg_cache_home_moves_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "assay"


def test_assay_cache_moves_engines_data_sets_and_compiled_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ASSAY_CACHE", "~/elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = tmp_path / "elsewhere"
    assert cache.cache_folder() == folder
    assert download.dataset_folder(FULL) == folder / "fashion-mnist"
    assert cache.set_torch_cache() == folder / "torchinductor"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "torchinductor")


def test_torch_gets_a_temporary_folder_where_there_is_no_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    # Restored at the end of the test, since the function sets it.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder = cache.set_torch_cache()
    assert folder.is_dir()
    assert not folder.is_relative_to(tmp_path / "file")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)


def test_torchs_own_variable_takes_precedence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert cache.set_torch_cache() == tmp_path


def test_a_file_is_replaced_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with cache.write_atomic(path) as part:
        part.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with cache.write_atomic(path) as part:
            part.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_unwritable_cache_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache.keep(tmp_path / "file" / "entry", b"x")
    cache.keep(tmp_path / "entry", b"x")
    assert (tmp_path / "entry").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("torchvision:resnet18", "torchvision-resnet18"),
        ("my_models.small:make", "my_models.small-make"),
        ("onnxruntime+pytorch", "onnxruntime+pytorch"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3"),
        ("../x/y", "..-x-y"),
    ],
)
def test_a_slug_is_a_valid_file_name(text: str, name: str) -> None:
    assert cache.slug(text) == name
