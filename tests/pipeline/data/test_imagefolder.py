"""A folder of images as a data set: layout, errors, and training on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines import hardware
from engines.errors import DeployError
from pipeline.data import folder_layout, idx, imagefolder
from tests.conftest import Result

Assay = Callable[..., Result]
CLASSES = ("cats", "dogs", "fish")


def data_of(folder: Path) -> Path:
    return Path("artifacts/data") / imagefolder.name_of(folder)


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
    data_folder = data_of(folder)
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
    ours = folder_layout.scan(folder)
    assert list(ours.labels) == theirs.classes
    assert {(str(path), index) for path, index in ours.train} == set(theirs.samples)


def test_gray_images_keep_one_channel(tmp_path: Path, assay: Assay) -> None:
    fill(tmp_path / "gray", 5, mode="L")
    assert assay("data", "--data", tmp_path / "gray", "--root", tmp_path / "root").code == 0
    data_folder = tmp_path / "root/data" / imagefolder.name_of(tmp_path / "gray")
    assert json.loads((data_folder / "contents.json").read_text())["shape"] == [1, 10, 12]


def test_without_a_test_folder_a_fifth_of_each_class_is_for_testing(folder: Path) -> None:
    listing = folder_layout.scan(folder / "train")
    assert listing.test is None
    train, test = imagefolder.decode(listing, None, skip_bad=False)
    assert np.bincount(train.labels).tolist() == [5, 5, 5]
    assert np.bincount(test.labels).tolist() == [1, 1, 1]
    again, _ = imagefolder.decode(listing, None, skip_bad=False)
    assert np.array_equal(train.images, again.images)


def spoil(folder: Path) -> None:
    (folder / "train/cats/broken.png").write_bytes(b"no image")
    whole = (folder / "train/dogs/0.png").read_bytes()
    (folder / "train/dogs/cut.png").write_bytes(whole[: len(whole) // 2])
    image(9, (5, 4)).save(folder / "test/fish/small.png")


def test_broken_images_and_other_sizes_are_counted_named_and_refused(
    folder: Path, assay: Assay
) -> None:
    assert assay("data", "--data", folder).code == 0
    before = (data_of(folder) / "train-images.idx").read_bytes()
    spoil(folder)
    result = assay("data", "--data", folder)
    assert result.code == 1
    assert "3 of 27 images cannot be used" in result.err
    for fault in ("broken.png (not an image)", "small.png (5x4 instead of 12x10)", "cut.png ("):
        assert fault in result.err
    assert "--skip-bad" in result.err
    assert (data_of(folder) / "train-images.idx").read_bytes() == before


def test_skip_bad_leaves_them_out(folder: Path, assay: Assay) -> None:
    spoil(folder)
    result = assay("data", "--data", folder, "--skip-bad")
    assert result.code == 0
    assert "left out 3 of 27 images" in result.err
    assert len(idx.read_images(data_of(folder) / "train-images.idx")) == 18


def test_image_size_resizes_all_images(folder: Path, assay: Assay) -> None:
    image(9, (50, 40)).save(folder / "test/fish/large.png")
    assert assay("data", "--data", folder, "--image-size", 8).code == 0
    images = idx.read_images(data_of(folder) / "test-images.idx")
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


def test_broken_images_are_left_out_before_the_split(tmp_path: Path) -> None:
    fill(tmp_path / "pets", 10)
    for path in (tmp_path / "pets/cats").rglob("*.png"):
        if path.stem not in ("1", "2"):
            path.write_bytes(b"broken")
    listing = folder_layout.scan(tmp_path / "pets")
    train, test = imagefolder.decode(listing, None, skip_bad=True)
    assert np.bincount(train.labels).tolist() == [1, 8, 8]
    assert np.bincount(test.labels).tolist() == [1, 2, 2]
    (tmp_path / "pets/cats/more/1.png").write_bytes(b"broken")
    with pytest.raises(DeployError, match="class 'cats' has no usable image for training"):
        imagefolder.decode(listing, None, skip_bad=True)


# Folders below the data set's, with what each of them is used for.
LAYOUTS = {
    "train and valid": {"train": "train", "valid": "test"},
    "train and val": {"train": "train", "val": "test"},
    "capitals": {"Training": "train", "Testing": "test"},
    "three splits": {"train": "train", "test": "test", "val": ""},
    "a folder around them": {"archive/train": "train", "archive/test": "test"},
    "folders twice": {"train/train": "train", "test/test": "test"},
    "images inside": {"train/images": "train", "test/images": "test"},
    "images around them": {"images/train": "train", "images/validation": "test"},
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_splits_are_recognised_in_the_layouts_that_people_have(tmp_path: Path, case: str) -> None:
    data = tmp_path / "pets"
    for place in LAYOUTS[case]:
        fill(data / place, 2)
        (data / place / ".ipynb_checkpoints").mkdir()
        image(9).save(data / place / ".ipynb_checkpoints/0-checkpoint.png")
        (data / place / "cats/._0.png").write_bytes(b"a file that macOS adds")
    (data / "__MACOSX").mkdir(parents=True)
    listing = folder_layout.scan(data)
    assert listing.labels == CLASSES
    for entries, use in ((listing.train, "train"), (listing.test, "test")):
        wanted = [data / place for place, what in LAYOUTS[case].items() if what == use]
        paths = {path for path, _ in entries}
        assert paths == {path for place in wanted for path in place.rglob("[0-9].png")}
    assert ("val is not used" in " ".join(listing.notes)) == (case == "three splits")


UNSPLIT = {
    "classes": "",
    "a folder around them": "images",
    "two folders around them": "archive/images",
    "a training set only": "train",
}


@pytest.mark.parametrize("case", UNSPLIT)
def test_classes_without_a_split_are_recognised(tmp_path: Path, case: str) -> None:
    fill(tmp_path / "pets" / UNSPLIT[case], 3)
    listing = folder_layout.scan(tmp_path / "pets")
    assert listing.labels == CLASSES
    assert (len(listing.train), listing.test) == (9, None)


REFUSED = {
    "a folder beside the splits": (("train", "test", "annotations"), "test beside annotations"),
    "a class beside a split": (("cats", "dogs", "test"), "test beside cats, dogs"),
    "no training images": (("test", "val"), "no training images"),
    "one name in two spellings": (("train", "Train", "test"), "two folders for train"),
    "two names of one split": (("train", "val", "valid"), "two folders for validation"),
    "masks": (("images", "masks"), "images beside masks: these are no classes"),
    "boxes": (("Images", "labels"), "Images beside labels: these are no classes"),
    "one class": (("cats",), "one class only, cats"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_could_be_read_in_two_ways_is_refused(tmp_path: Path, case: str) -> None:
    names, words = REFUSED[case]
    for name in names:
        (tmp_path / "pets" / name).mkdir(parents=True)
        image(1).save(tmp_path / "pets" / name / "0.png")
    with pytest.raises(DeployError, match=words):
        folder_layout.scan(tmp_path / "pets")


def test_a_test_set_that_is_the_training_set_is_refused(folder: Path, assay: Assay) -> None:
    shutil.rmtree(folder / "test")
    (folder / "test").symlink_to("train")
    result = assay("data", "--data", folder)
    assert result.code == 1
    assert "are the same file" in result.err
    assert "either for training or for testing" in result.err


def test_classes_and_counts_are_printed(folder: Path, assay: Assay) -> None:
    image(1).save(folder / "train/loose.png")
    result = assay("data", "--data", folder)
    assert "left out 1 images in" in result.err
    rows = [line.split() for line in result.out.splitlines()]
    assert ["0", "cats", "6", "2"] in rows
    assert ["all", "18", "6"] in rows


def test_two_folders_of_one_name_are_two_data_sets(folder: Path, assay: Assay) -> None:
    fill(folder.parent / "more/pets", 2)
    assert assay("data", "--data", folder).code == 0
    assert assay("data", "--data", folder.parent / "more/pets").code == 0
    assert len(idx.read_labels(data_of(folder) / "train-labels.idx")) == 18
    assert len(idx.read_labels(data_of(folder.parent / "more/pets") / "train-labels.idx")) == 3


def corners(pixels: Image.Image, **options: object) -> Callable[[Path], None]:
    return lambda path: pixels.save(path, **options)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


RED, BLUE = (255, 0, 0), (0, 0, 255)
HALVES = Image.new("RGB", (2, 2), RED)
HALVES.paste(BLUE, (0, 1, 2, 2))
KINDS = {
    "upside down": (corners(HALVES, exif=turned(3)), "turned upright", BLUE),
    "on its side": (corners(HALVES, exif=turned(6)), "turned upright", BLUE),
    "transparent": (corners(HALVES.convert("RGBA")), "are transparent, which is ignored", RED),
    "a palette": (corners(HALVES.quantize(4)), "", RED),
    "frames": (
        corners(HALVES, save_all=True, append_images=[Image.new("RGB", (2, 2), BLUE)]),
        "several frames",
        RED,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_image_has_a_rule_that_is_printed(
    tmp_path: Path, assay: Assay, kind: str
) -> None:
    save, note, corner = KINDS[kind]
    for label in ("one", "two"):
        (tmp_path / "odd" / label).mkdir(parents=True)
        for number in range(2):
            save(tmp_path / "odd" / label / f"{number}.png")
    result = assay("data", "--data", tmp_path / "odd", "--root", tmp_path / "root")
    assert result.code == 0, result.err
    assert note in result.err
    assert ("of 4 images" in result.err) == bool(note)
    images = idx.read_images(
        tmp_path / "root/data" / imagefolder.name_of(tmp_path / "odd") / "train-images.idx"
    )
    assert tuple(images[0][:, 0, 0].tolist()) == corner


def test_cmyk_becomes_rgb(tmp_path: Path, assay: Assay) -> None:
    for label in ("one", "two"):
        (tmp_path / "odd" / label).mkdir(parents=True)
        for number in range(2):
            HALVES.convert("CMYK").save(tmp_path / "odd" / label / f"{number}.tif")
    result = assay("data", "--data", tmp_path / "odd", "--root", tmp_path / "root")
    assert "4 of 4 images are CMYK and become RGB" in result.err


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
    assert training["data"] == imagefolder.name_of(folder)
    assert training["look"]["classes"] == {"cats": 6, "dogs": 6, "fish": 6}
    assert training["test_images"] == 6
    record = json.loads(Path("artifacts/lenet/fp32/export.json").read_text())
    assert record["params"]["data"] == imagefolder.name_of(folder)
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
