"""The train stage: its options and its record."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engines import hardware
from pipeline import models
from pipeline.data.idx import read_images, read_labels
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]


@pytest.mark.slow(7)
def test_the_quick_preset_is_printed_and_recorded(store: object, assay: Assay) -> None:
    where = ("--root", store.root, "--dist", store.dist)
    words = ("--retrain", "--preset", "quick", "--epochs", 1, "--limit", 100, "--test-limit", 50)
    result = assay("run", "lenet", *where, *words, "--batch", "1", "--budget", "0.1")
    assert result.code == 0, result.err
    description = (
        "on 50 of 300 test images, after 1 epoch on 100 of 512 training images (preset quick)"
    )
    assert description in result.out
    training = json.loads((store.root / "lenet/training.json").read_text())
    assert (training["preset"], training["images"], training["test_images"]) == ("quick", 100, 50)
    assert json.loads((store.root / "lenet/train.json").read_text())["params"]["preset"] == "quick"
    verdict = json.loads((store.root / "lenet/fp32/verdict.json").read_text())
    assert verdict["flips"]["images"] == 50


def test_training_describes_its_data_set(store: object, assay: Assay) -> None:
    result = assay(
        "train", "lenet", "--root", store.root, "--retrain", "--epochs", 1, "--limit", 10
    )
    assert result.code == 0
    look = json.loads((store.root / "lenet/training.json").read_text())["look"]
    assert sum(look["classes"].values()) == 10
    assert look["min"] == 0
    assert 200 < look["max"] <= 255
    assert 20 < look["mean"] < 120
    assert "there are no images of class" in result.err


def test_the_record_has_what_the_weights_depend_on(
    assay: Callable[..., Result], store: Store
) -> None:
    words = ["--root", store.root, "--epochs", 2, "--limit", 100, "--seed", 3, "--threads", 1]
    result = assay("train", "lenet", "--retrain", *words, "--json")
    assert result.code == 0
    record = json.loads((store.root / "lenet/training.json").read_text())
    assert json.loads(result.out)["outcomes"][0]["results"]["training"] == record
    wanted = {"epochs": 2, "lr": 0.1, "batch_size": 128, "seed": 3, "threads": 1, "device": "cpu"}
    assert wanted.items() <= record.items()
    assert (record["images"], record["images_available"], record["test_images"]) == (100, 512, 300)
    assert [entry["epoch"] for entry in record["curve"]] == [1, 2]
    assert record["test_accuracy"] == record["test_correct"] / 300
    assert "epoch 2/2: loss" in result.err


def test_the_recorded_accuracy_is_that_of_the_checkpoint(store: Store) -> None:
    net = models.get("lenet").build(None).network
    net.load_state_dict(load_file(store.root / "lenet/checkpoint.safetensors"))
    folder = store.root / "data/fashion-mnist"
    images = torch.from_numpy(read_images(folder / "test-images.idx")).float() / 255
    labels = torch.from_numpy(read_labels(folder / "test-labels.idx"))
    correct = int((net(images).argmax(1) == labels).sum())
    golden = json.loads((store.root / "lenet/fp32/verdict.json").read_text())
    assert golden["flips"]["reference_correct"] == correct
    assert correct / 300 > 0.7


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--lr", "--limit", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1", "99999999999999999999999"])
def test_a_number_out_of_range_is_wrong_usage(
    assay: Callable[..., Result], tmp_path: Path, option: str, value: str
) -> None:
    if (option, value) == ("--epochs", "0"):
        option = "--batch-size"  # no epochs are allowed: the weights are used unchanged
    result = assay("train", "lenet", "--root", tmp_path, option, value)
    assert result.code == 2
    assert f"{option} " in result.err
    assert "is out of range" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--lr", "nan"), ("--lr", "inf"), ("--seed", "-1")])
def test_nan_infinity_and_a_negative_seed_are_wrong_usage(
    assay: Callable[..., Result], tmp_path: Path, words: tuple[str, str]
) -> None:
    result = assay("train", "lenet", "--root", tmp_path, *words)
    assert result.code == 2
    assert "is out of range" in result.err


@pytest.mark.parametrize("device", ["xyz", "", "mps", "cpu:7", "cuda:-1", "cuda:²"])
def test_an_unknown_device_is_wrong_usage(
    assay: Callable[..., Result], store: Store, device: str
) -> None:
    result = assay("train", "lenet", "--root", store.root, "--device", device)
    assert result.code == 2
    assert f"unknown device {device!r}" in result.err


def test_processes_of_torchrun_do_not_train_side_by_side(
    assay: Callable[..., Result], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = assay("train", "lenet", "--root", store.root)
    assert result.code == 2
    assert "torchrun has started 2 processes of this command" in result.err
    assert "`torchrun --nproc-per-node 2 -m pipeline.training MODEL" in result.err


def test_an_unavailable_device_is_an_error_and_nothing_is_trained(
    assay: Callable[..., Result], store: Store
) -> None:
    before = (store.root / "lenet/checkpoint.safetensors").read_bytes()
    result = assay("train", "lenet", "--root", store.root, "--device", "cuda")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert result.code == 4
    why = "training cannot use 'cuda': " if hardware.gpus() else "device 'cuda' does not exist here"
    assert why in result.err
    assert (store.root / "lenet/checkpoint.safetensors").read_bytes() == before
