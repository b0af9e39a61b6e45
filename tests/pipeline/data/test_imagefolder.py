"""A folder of images as a data set: layout, errors, and training on it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines import hardware
from pipeline.data import idx, imagefolder
from tests.conftest import Result

Assay = Callable[..., Result]
CLASSES = ("cats", "dogs", "fish")


def image(level: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(level)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    values = np.clip(random.normal(level, 10, shape), 0, 255).astype(np.uint8)
    return Image.fromarray(values, mode)


def fill(folder: Path, count: int, mode: str = "RGB") -> None:
    for number, label in enumerate(CLASSES):
        (folder / label / "more").mkdir(parents=True)
        for index in range(count):
            place = folder / label / ("more" if index % 2 else "")
            image(60 * (number + 1) + index, mode=mode).save(place / f"{index}.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pets/train", 6)
    fill(tmp_path / "pets/test", 2)
    return tmp_path / "pets"


def test_images_and_classes_are_decoded_unchanged(folder: Path, assay: Assay) -> None:
    result = assay("data", "--data", folder)
    assert result.code == 0, result.err
    data_folder = Path("artifacts/data/folder-pets")
    assert json.loads((data_folder / "contents.json").read_text()) == {
        "labels": list(CLASSES),
        "shape": [3, 10, 12],
    }
    images = idx.read_images(data_folder / "train-images.idx")
    labels = idx.read_labels(data_folder / "train-labels.idx")
    assert images.shape == (18, 3, 10, 12)
    assert not np.array_equal(
        labels, np.sort(labels)
    )  # shuffled, so the first N are a random sample
    wanted = {
        (number, np.asarray(image(60 * (number + 1) + index)).transpose(2, 0, 1).tobytes())
        for number in range(3)
        for index in range(6)
    }
    pairs = {(label, row.tobytes()) for label, row in zip(labels.tolist(), images, strict=True)}
    assert pairs == wanted
    assert idx.read_labels(data_folder / "test-labels.idx").tolist().count(1) == 2


def test_torchvision_lists_the_same_images_and_classes(folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    theirs = ImageFolder(folder / "train")
    ours = imagefolder.scan(folder)
    assert list(ours.labels) == theirs.classes
    assert {(str(path), index) for path, index in ours.train} == set(theirs.samples)


def test_gray_images_keep_one_channel(tmp_path: Path, assay: Assay) -> None:
    fill(tmp_path / "gray", 5, mode="L")
    assert assay("data", "--data", tmp_path / "gray", "--root", tmp_path / "root").code == 0
    data_folder = tmp_path / "root/data/folder-gray"
    assert json.loads((data_folder / "contents.json").read_text())["shape"] == [1, 10, 12]


def test_without_a_test_folder_a_fifth_of_each_class_is_for_testing(folder: Path) -> None:
    listing = imagefolder.scan(folder / "train")
    for index in range(3):
        assert sum(label == index for _, label in listing.test) == 1
        assert sum(label == index for _, label in listing.train) == 5
    assert not set(listing.test) & set(listing.train)
    assert imagefolder.scan(folder / "train") == listing


def spoil(folder: Path) -> None:
    (folder / "train/cats/broken.png").write_bytes(b"no image")
    whole = (folder / "train/dogs/0.png").read_bytes()
    (folder / "train/dogs/cut.png").write_bytes(whole[: len(whole) // 2])
    image(9, (5, 4)).save(folder / "test/fish/small.png")


def test_broken_images_and_other_sizes_are_counted_named_and_refused(
    folder: Path, assay: Assay
) -> None:
    assert assay("data", "--data", folder).code == 0
    before = Path("artifacts/data/folder-pets/train-images.idx").read_bytes()
    spoil(folder)
    result = assay("data", "--data", folder)
    assert result.code == 1
    assert "3 of 27 images cannot be used" in result.err
    for fault in ("broken.png (not an image)", "small.png (5x4 instead of 12x10)", "cut.png ("):
        assert fault in result.err
    assert "--skip-bad" in result.err
    assert Path("artifacts/data/folder-pets/train-images.idx").read_bytes() == before


def test_skip_bad_leaves_them_out(folder: Path, assay: Assay) -> None:
    spoil(folder)
    result = assay("data", "--data", folder, "--skip-bad")
    assert result.code == 0
    assert "left out 3 of 27 images" in result.err
    assert len(idx.read_images(Path("artifacts/data/folder-pets/train-images.idx"))) == 18


def test_image_size_resizes_all_images(folder: Path, assay: Assay) -> None:
    image(9, (50, 40)).save(folder / "test/fish/large.png")
    assert assay("data", "--data", folder, "--image-size", 8).code == 0
    images = idx.read_images(Path("artifacts/data/folder-pets/test-images.idx"))
    assert images.shape == (7, 3, 8, 8)
    middle = image(60).resize((8, 8), Image.Resampling.BILINEAR, box=(1, 0, 11, 10))
    wanted = np.asarray(middle, np.int64).transpose(2, 0, 1)
    assert min(np.abs(row - wanted).max() for row in images.astype(np.int64)) <= 1


def test_an_empty_class_an_empty_folder_and_no_folder_are_errors(
    folder: Path, assay: Assay
) -> None:
    (folder / "train/birds").mkdir()
    result = assay("data", "--data", folder)
    assert result.code == 1
    assert "birds has no images" in result.err
    (folder / "empty").mkdir()
    assert "has no subfolders" in assay("data", "--data", folder / "empty").err
    result = assay("data", "--data", folder / "gone")
    assert result.code == 2
    assert "or a folder of images in ImageFolder layout" in result.err


def test_different_classes_in_train_and_test_are_an_error(folder: Path, assay: Assay) -> None:
    (folder / "test/fish").rename(folder / "test/birds")
    result = assay("data", "--data", folder)
    assert result.code == 1
    assert "different classes: birds, fish" in result.err


def test_images_of_16_bits_are_refused(folder: Path, assay: Assay) -> None:
    Image.fromarray(np.zeros((10, 12), np.uint16)).save(folder / "train/cats/deep.png")
    result = assay("data", "--data", folder)
    assert result.code == 1
    assert "deep.png (mode I;16, not 8 bits a channel)" in result.err


def test_images_that_do_not_fit_in_memory_are_an_error(
    folder: Path, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda: 1000)
    result = assay("data", "--data", folder)
    assert result.code == 2
    assert "24 images of 3x10x12 need" in result.err


def test_a_changed_image_is_decoded_again(folder: Path, assay: Assay) -> None:
    assert assay("data", "--data", folder).code == 0
    assert "nothing changed, skipped" in assay("data", "--data", folder).err
    image(200).save(folder / "train/cats/0.png")
    assert "running again: images was" in assay("data", "--data", folder).err


def test_folder_options_need_a_folder(tmp_path: Path, assay: Assay) -> None:
    result = assay("data", "--image-size", 32, "--root", tmp_path)
    assert result.code == 2
    assert "are for a folder of images" in result.err
    result = assay("data", "--data", "folder-pets", "--root", tmp_path)
    assert result.code == 2
    assert "give its path with --data" in result.err


@pytest.mark.slow(7)
def test_the_zoo_trains_on_a_folder_and_later_stages_know_its_classes(
    folder: Path, assay: Assay
) -> None:
    words = ("--epochs", 1, "--batch-size", 4, "--batch", 1, "--budget", 0.1)
    result = assay("run", "lenet", "--data", folder, *words)
    assert result.code == 0, result.err
    training = json.loads(Path("artifacts/lenet/training.json").read_text())
    assert training["data"] == "folder-pets"
    assert training["look"]["classes"] == {"cats": 6, "dogs": 6, "fish": 6}
    assert training["test_images"] == 6
    record = json.loads(Path("artifacts/lenet/fp32/export.json").read_text())
    assert record["params"]["data"] == "folder-pets"
    assert assay("verify", "lenet", "--engine", "all").code == 0
    other = assay("export", "lenet", "--data", "fashion-mnist")
    assert other.code == 1  # its classes are not those it was trained on
    manifest = json.loads(assay("check", "--trust", "dist/lenet-fp32.tar.zst", "--json").out)[
        "manifest"
    ]
    assert manifest["labels"] == list(CLASSES)
    # It does not contain the path of the images.
    assert str(folder) not in json.dumps(manifest)


@pytest.mark.slow(9)
def test_a_torchvision_model_trains_on_a_folder(folder: Path, assay: Assay) -> None:
    assert assay("data", "--data", folder).code == 0
    words = ("--data", folder, "--epochs", 1, "--batch-size", 6)
    result = assay("train", "torchvision:mobilenet_v3_small", *words)
    assert result.code == 0, result.err
    assert "after 1 epoch" in result.out
