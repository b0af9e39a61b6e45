"""Training: the recipe, its determinism and its record."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engines.errors import DeployError
from exporters.module import Preprocess
from pipeline import models
from pipeline.data.idx import read_images, read_labels
from pipeline.training import loop
from pipeline.workflow.runner import Store
from tests.conftest import Result

SETTINGS = loop.Settings(epochs=1, lr=0.1, batch_size=128, seed=0, threads=1, device="cpu")


@pytest.fixture
def split(built: Store) -> loop.Samples:
    folder = built.root / "data/fashion-mnist"
    return loop.Samples(
        torch.from_numpy(read_images(folder / "train-images.idx")),
        torch.from_numpy(read_labels(folder / "train-labels.idx")),
    )


def test_lenet_has_the_layers_of_the_book() -> None:
    net = models.get("lenet").build(None).network
    shapes, x = [], torch.zeros(1, 1, 28, 28)
    for layer in net.children():
        x = layer(x)
        shapes.append((type(layer).__name__, tuple(x.shape[1:])))
    # Dive into Deep Learning, 7.6, the printed output of layer_summary
    assert shapes == [
        ("Conv2d", (6, 28, 28)),
        ("Sigmoid", (6, 28, 28)),
        ("AvgPool2d", (6, 14, 14)),
        ("Conv2d", (16, 10, 10)),
        ("Sigmoid", (16, 10, 10)),
        ("AvgPool2d", (16, 5, 5)),
        ("Flatten", (400,)),
        ("Linear", (120,)),
        ("Sigmoid", (120,)),
        ("Linear", (84,)),
        ("Sigmoid", (84,)),
        ("Linear", (10,)),
    ]
    assert sum(parameter.numel() for parameter in net.parameters()) == 61_706


def test_lenet_is_initialised_xavier_uniform() -> None:
    torch.manual_seed(0)
    for layer in models.get("lenet").build(None).network.children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound


def test_the_recipe_is_the_books() -> None:
    recipe = models.get("lenet").recipe
    assert (recipe.epochs, recipe.lr, recipe.batch_size) == (10, 0.1, 128)


def trained(split: loop.Samples, **changed: object) -> dict[str, torch.Tensor]:
    settings = dataclasses.replace(SETTINGS, **changed)
    loop.seed(settings)
    network = models.get("lenet").build(None).network
    loop.train(network, Preprocess(), split, settings)
    return network.state_dict()


def test_the_same_settings_give_the_same_weights(split: loop.Samples) -> None:
    first, second, other = trained(split), trained(split), trained(split, seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_step_is_that_of_sgd_on_cross_entropy(split: loop.Samples) -> None:
    small = loop.Samples(split.inputs[:128], split.targets[:128])
    after = trained(small)
    torch.manual_seed(0)
    net = models.get("lenet").build(None).network
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    logits = net(small.inputs[order].float() / 255)
    (logits.logsumexp(1) - logits[torch.arange(128), small.targets[order]]).mean().backward()
    for name, parameter in net.named_parameters():
        assert torch.allclose(after[name], parameter - 0.1 * parameter.grad, atol=1e-6)


def test_it_learns_what_can_be_learned(split: loop.Samples) -> None:
    # One image of each class, many times: a network that learns at all learns these.
    rows = [int((split.targets == label).nonzero()[0]) for label in range(10)]
    few = loop.Samples(split.inputs[rows], split.targets[rows])
    easy = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    settings = dataclasses.replace(SETTINGS, epochs=100, batch_size=10)
    curve = loop.train(easy, Preprocess(), few, settings)
    assert curve[-1]["accuracy"] == 1.0
    assert curve[-1]["loss"] < 0.1 < curve[0]["loss"]


def test_a_loss_that_explodes_is_an_error(split: loop.Samples) -> None:
    explosive = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    settings = dataclasses.replace(SETTINGS, lr=1e30, epochs=3)
    with pytest.raises(DeployError, match="the training loss became") as caught:
        loop.train(explosive, Preprocess(), split, settings)
    assert "--lr" in caught.value.hint


def test_the_record_says_what_the_weights_depend_on(
    assay: Callable[..., Result], store: Store
) -> None:
    words = ["--root", store.root, "--epochs", 2, "--limit", 100, "--seed", 3, "--threads", 1]
    result = assay("train", "lenet", *words, "--json")
    assert result.code == 0
    found = json.loads((store.root / "lenet/training.json").read_text())
    assert json.loads(result.out)["outcomes"][0]["results"]["training"] == found
    wanted = {"epochs": 2, "lr": 0.1, "batch_size": 128, "seed": 3, "threads": 1, "device": "cpu"}
    assert wanted.items() <= found.items()
    assert (found["images"], found["images_available"], found["test_images"]) == (100, 512, 300)
    assert [entry["epoch"] for entry in found["curve"]] == [1, 2]
    assert found["test_accuracy"] == found["test_correct"] / 300
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
def test_a_number_that_makes_no_sense_is_wrong_usage(
    assay: Callable[..., Result], tmp_path: Path, option: str, value: str
) -> None:
    if (option, value) == ("--epochs", "0"):
        option = "--batch-size"  # no epoch at all makes sense: the weights as they are
    result = assay("train", "lenet", "--root", tmp_path, option, value)
    assert result.code == 2
    assert f"{option} " in result.err
    assert "is out of range" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--lr", "nan"), ("--lr", "inf"), ("--seed", "-1")])
def test_a_number_that_is_none_is_wrong_usage(
    assay: Callable[..., Result], tmp_path: Path, words: tuple[str, str]
) -> None:
    result = assay("train", "lenet", "--root", tmp_path, *words)
    assert result.code == 2
    assert "is out of range" in result.err


@pytest.mark.parametrize("device", ["xyz", "", "mps", "cpu:7", "cuda:-1", "cuda:²"])
def test_a_device_that_is_no_word_of_ours_is_wrong_usage(
    assay: Callable[..., Result], store: Store, device: str
) -> None:
    result = assay("train", "lenet", "--root", store.root, "--device", device)
    assert result.code == 2
    assert f"unknown device {device!r}" in result.err


def test_a_device_that_is_not_here_is_said_and_nothing_is_trained(
    assay: Callable[..., Result], store: Store
) -> None:
    before = (store.root / "lenet/checkpoint.safetensors").read_bytes()
    result = assay("train", "lenet", "--root", store.root, "--device", "cuda")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert result.code == 4
    assert "device 'cuda' is not here" in result.err
    assert (store.root / "lenet/checkpoint.safetensors").read_bytes() == before
