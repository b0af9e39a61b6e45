"""Training on a real GPU: the same weights every time, whole or in two parts."""

from pathlib import Path

import pytest
import torch
from torch import nn

from engines import hardware
from pipeline import models
from pipeline.training import loop
from pipeline.training.checkpoint import TrainingCheckpoint
from pipeline.training.settings import seed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not hardware.gpus(), reason=hardware.no_gpu()),
]

SETTINGS = loop.Settings(
    epochs=2, lr=0.1, batch_size=16, seed=0, threads=1, device="cuda:0", tf32=True
)


def samples(count: int = 200) -> loop.Samples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return loop.Samples(images, torch.randint(0, 10, (count,), generator=generator))


class WithDropout(nn.Module):
    """Random numbers, a batch norm, and a step that a graph can hold."""

    def __init__(self, *, waits: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        self.head = nn.Linear(8 * 26 * 26, 10)
        self.waits = waits

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.body(image)
        if self.waits and float(hidden.detach().sum()) == 0.5:  # asks the device for a value
            hidden = hidden * 2
        return self.head(hidden)


def trained(
    network: str | nn.Module = "lenet",
    settings: loop.Settings = SETTINGS,
    checkpoint: TrainingCheckpoint | None = None,
    *,
    resume: bool = False,
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    seed(settings)
    model = models.get("lenet").build(None)
    module = model.network if isinstance(network, str) else network
    curve = loop.train(module, model.prepare, samples(), settings, checkpoint, resume=resume)
    return module.state_dict(), curve


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def with_dropout(*, waits: bool = False) -> nn.Module:
    torch.manual_seed(1)
    return WithDropout(waits=waits)


def test_twice_gives_the_same_weights() -> None:
    first, second = trained(with_dropout()), trained(with_dropout())
    assert same(first[0], second[0])
    assert [entry["loss"] for entry in first[1]] == [entry["loss"] for entry in second[1]]


def test_a_captured_step_gives_the_weights_of_one_launched_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured, _ = trained()
    monkeypatch.setattr(loop._Run, "capture", lambda _self: None)
    plain, _ = trained()
    assert same(captured, plain)


def test_the_loss_and_the_weights_change() -> None:
    before = models.get("lenet").build(None)
    weights, curve = trained()
    assert curve[-1]["loss"] != curve[0]["loss"]
    assert not same(weights, before.network.state_dict())


class Stopped(KeyboardInterrupt):
    """What a signal raises."""


@pytest.mark.parametrize("steps", [3, 13, 20])
def test_resumed_is_the_same_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    whole, _ = trained(with_dropout())
    checkpoint = TrainingCheckpoint(tmp_path / "state.safetensors", "key")
    original, count = loop._Run._train_on, 0

    def stopping(run: loop._Run, batch: torch.Tensor) -> None:
        nonlocal count
        if count == steps:
            raise Stopped
        count += 1
        original(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_train_on", stopping)
        with pytest.raises(Stopped):
            trained(with_dropout(), checkpoint=checkpoint)
    parts, _ = trained(with_dropout(), checkpoint=checkpoint, resume=True)
    assert same(whole, parts)


def test_a_step_that_waits_for_the_device_is_launched_one_by_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights, curve = trained(with_dropout(waits=True))
    assert "without a CUDA graph" in capsys.readouterr().err
    assert len(curve) == 2
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_tf32_is_off_after_training() -> None:
    trained()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains(amp: str) -> None:
    import dataclasses

    _, curve = trained(settings=dataclasses.replace(SETTINGS, amp=amp))
    assert curve[-1]["loss"] < 10
