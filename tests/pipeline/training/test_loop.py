"""The training loop: its steps, determinism and errors."""

import dataclasses

import pytest
import torch
from torch import nn

from engines.errors import DeployError
from exporters.module import Preprocess
from pipeline import models
from pipeline.data.idx import read_images, read_labels
from pipeline.training import loop
from pipeline.training.settings import seed
from pipeline.workflow.runner import Store

SETTINGS = loop.Settings(epochs=1, lr=0.1, batch_size=128, seed=0, threads=1, device="cpu")


@pytest.fixture
def split(built: Store) -> loop.Samples:
    folder = built.root / "data/fashion-mnist"
    return loop.Samples(
        torch.from_numpy(read_images(folder / "train-images.idx")),
        torch.from_numpy(read_labels(folder / "train-labels.idx")),
    )


def trained(split: loop.Samples, **changed: object) -> dict[str, torch.Tensor]:
    settings = dataclasses.replace(SETTINGS, **changed)
    seed(settings)
    network = models.get("lenet").build(None).network
    loop.train(network, Preprocess(), split, settings)
    return network.state_dict()


def test_the_same_settings_give_the_same_weights(split: loop.Samples) -> None:
    first, second, other = trained(split), trained(split), trained(split, seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_step_is_sgd_on_cross_entropy(split: loop.Samples) -> None:
    small = loop.Samples(split.inputs[:128], split.targets[:128])
    after = trained(small)
    torch.manual_seed(0)
    net = models.get("lenet").build(None).network
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    logits = net(small.inputs[order].float() / 255)
    (logits.logsumexp(1) - logits[torch.arange(128), small.targets[order]]).mean().backward()
    for name, parameter in net.named_parameters():
        assert torch.allclose(after[name], parameter - 0.1 * parameter.grad, atol=1e-6)


def test_training_fits_a_few_images(split: loop.Samples) -> None:
    # One image of each class, many times: any working training fits these.
    rows = [int((split.targets == label).nonzero()[0]) for label in range(10)]
    few = loop.Samples(split.inputs[rows], split.targets[rows])
    easy = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    settings = dataclasses.replace(SETTINGS, epochs=100, batch_size=10)
    curve = loop.train(easy, Preprocess(), few, settings)
    assert curve[-1]["accuracy"] == 1.0
    assert curve[-1]["loss"] < 0.1 < curve[0]["loss"]


def test_a_diverging_loss_is_an_error(split: loop.Samples) -> None:
    explosive = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    settings = dataclasses.replace(SETTINGS, lr=1e30, epochs=3)
    with pytest.raises(DeployError, match="the training loss became") as caught:
        loop.train(explosive, Preprocess(), split, settings)
    assert "--lr" in caught.value.hint
