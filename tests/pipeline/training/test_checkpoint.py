"""Trainings that are killed, interrupted, diverge or run out of memory."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engines.errors import DeployError, NotAvailableError
from pipeline.training import loop
from pipeline.training.checkpoint import Progress, TrainingCheckpoint
from pipeline.training.settings import seed
from pipeline.workflow import console
from tests.conftest import Process, Result
from tests.subset import python_path

Assay = Callable[..., Result]
SETTINGS = loop.Settings(epochs=3, lr=0.1, batch_size=8, seed=0, threads=1, device="cpu")


def network() -> nn.Module:
    # Has all kinds of state: random numbers (dropout), running statistics and weights.
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def samples(count: int = 60) -> loop.Samples:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=random, dtype=torch.uint8)
    return loop.Samples(images, torch.randint(0, 3, (count,), generator=random))


class Prepare(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float() / 255


class Stops(Prepare):
    """Interrupts the training before a given step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step + 1  # one more, since `memory.check` runs the network first

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().forward(image)


def trained(
    settings: loop.Settings, prepare: nn.Module, checkpoint: TrainingCheckpoint, **more: bool
) -> tuple:
    seed(settings)
    net = network()
    curve = loop.train(net, prepare, samples(), settings, checkpoint, **more)
    return net.state_dict(), [{**entry, "seconds": 0, "images_per_second": 0} for entry in curve]


def checkpoint(folder: Path, key: str = "key") -> TrainingCheckpoint:
    return TrainingCheckpoint(folder / "state" / "net.safetensors", key)


@pytest.mark.parametrize("amp", ["none", "fp16"])
@pytest.mark.parametrize("step", [0, 1, 7, 8, 13, 23])
def test_a_resumed_training_gives_the_same_weights(tmp_path: Path, step: int, amp: str) -> None:
    settings = dataclasses.replace(SETTINGS, amp=amp)
    whole, curve = trained(settings, Prepare(), checkpoint(tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        trained(settings, Stops(step), checkpoint(tmp_path))
    torch.manual_seed(99)  # nothing may depend on what this process did before
    resumed, resumed_curve = trained(settings, Prepare(), checkpoint(tmp_path), resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert resumed_curve == curve


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adamw", "lr": 0.01},
        {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine", "augment": "flip-crop"},
    ],
)
@pytest.mark.parametrize("steps", [3, 8, 13])
def test_a_resumed_training_of_convolutions_keeps_the_state_of_its_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, options: dict[str, Any]
) -> None:
    settings = dataclasses.replace(SETTINGS, **options)
    original = loop._Run._train_on

    def run(state: TrainingCheckpoint, **more: bool) -> dict[str, torch.Tensor]:
        seed(settings)
        # In channels_last, several channels and pixels are in another order than in a file.
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(3, 3)
        )
        loop.train(net, Prepare(), samples(), settings, state, **more)
        return net.state_dict()

    def stopping(run: loop._Run, batch: torch.Tensor) -> None:
        if len(run.curve) * 8 + run.step == steps:
            raise KeyboardInterrupt
        original(run, batch)

    whole = run(checkpoint(tmp_path / "other"))
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_train_on", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint(tmp_path))
    resumed = run(checkpoint(tmp_path), resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_without_resume_it_starts_again(tmp_path: Path) -> None:
    whole, _ = trained(SETTINGS, Prepare(), checkpoint(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        trained(SETTINGS, Stops(13), checkpoint(tmp_path))
    again, curve = trained(SETTINGS, Prepare(), checkpoint(tmp_path))
    assert len(curve) == 3
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_another_training_is_not_resumed(tmp_path: Path) -> None:
    trained(SETTINGS, Prepare(), checkpoint(tmp_path))
    with pytest.raises(DeployError, match="belongs to another training"):
        trained(SETTINGS, Prepare(), checkpoint(tmp_path, "other"), resume=True)


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 100, None])
def test_a_damaged_state_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    trained(SETTINGS, Prepare(), checkpoint(tmp_path))
    path = checkpoint(tmp_path).path
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(DeployError, match="is damaged"):
        trained(SETTINGS, Prepare(), checkpoint(tmp_path), resume=True)


def test_resume_without_progress_starts(tmp_path: Path) -> None:
    whole, _ = trained(SETTINGS, Prepare(), checkpoint(tmp_path / "one"))
    resumed, _ = trained(SETTINGS, Prepare(), checkpoint(tmp_path / "two"), resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class Explodes(Prepare):
    """Returns NaN from a given step on."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step + 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        prepared = super().forward(image)
        return prepared * float("nan") if self.left < 0 else prepared


def test_a_nan_loss_keeps_the_last_good_weights(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"loss became nan within .* of epoch 2") as caught:
        trained(SETTINGS, Explodes(12), checkpoint(tmp_path))
    assert "--lr" in caught.value.hint
    (path,) = re.findall(r"\S+last-good\.safetensors", caught.value.hint)
    whole, _ = trained(
        dataclasses.replace(SETTINGS, epochs=1), Prepare(), checkpoint(tmp_path / "1")
    )
    kept = load_file(path)
    assert all(torch.equal(whole[name], kept[name]) for name in whole)


def test_nan_weights_are_not_saved(tmp_path: Path) -> None:
    place = checkpoint(tmp_path)
    state = {"weight": torch.ones(2)}
    parts = {"model": state, "optimizer": {}, "rng": {"cpu": torch.get_rng_state()}}
    place.save(Progress("key", 1, 4, 0.5, 3, 0.1, [], {}, parts))
    run = loop._Run(network(), Prepare(), samples(), SETTINGS, place, console.Bar(None, None))
    with torch.no_grad():
        run.network[1].weight[0, 0] = float("nan")
    with pytest.raises(DeployError, match="a weight became NaN"):
        run.save()
    assert torch.equal(place.load().tensors["model"]["weight"], torch.ones(2))


KILLER = """
import os, random, signal, sys, time
import safetensors.torch, torch
import tests.subset
from pipeline.cli import main
from pipeline.data import registry

registry.DATASETS["fashion-mnist"] = tests.subset.SUBSET
words = sys.argv[2:]
draw, kills = random.Random(int(sys.argv[1])), 0
while True:
    started = time.monotonic()
    child = os.fork()  # torch is loaded, but has no thread yet
    if child == 0:
        os._exit(main.main(words))
    if kills < 20:
        time.sleep(draw.uniform(0.1, 0.5))
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            sys.exit(f"ended by itself after {kills} kills with {status}")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    else:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.long
def test_a_training_killed_twenty_times_gives_the_same_weights(
    tmp_path: Path, process: Callable[..., Process]
) -> None:
    words = ["train", "lenet", "--epochs", "90", "--threads", "1", "--quiet"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        assert process("data", "--root", folder).run().code == 0
    assert process(*words, "--root", whole).run().code == 0
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", KILLER, "0", *words, "--root", str(killed), "--resume"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    name = "lenet/checkpoint.safetensors"
    assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert not list((killed / ".resume").glob("*"))


@pytest.mark.long
def test_a_signal_saves_the_current_step(tmp_path: Path, process: Callable[..., Process]) -> None:
    words = ("train", "lenet", "--epochs", 60, "--threads", 1, "--root")
    for folder in ("whole", "stopped"):
        assert process("data", "--root", tmp_path / folder).run().code == 0
    assert process(*words, tmp_path / "whole").run().code == 0
    running = process(*words, tmp_path / "stopped").start()
    for line in running.stderr:
        if "epoch 5/" in line:
            break
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "--resume continues from here" in err
    resumed = process(*words, tmp_path / "stopped", "--resume").run()
    assert resumed.code == 0
    assert "resuming at epoch" in resumed.err
    name = "lenet/checkpoint.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_the_memory_estimate_matches_training() -> None:
    from pipeline.training import memory

    # Autograd saves one hidden layer of 1,000 floats per sample, for the ReLU, and its input.
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1000), nn.ReLU(), nn.Linear(1000, 3))
    kept = memory._kept_per_sample(net, Prepare(), samples())
    assert 4 * (16 + 1000) <= kept <= 4 * (16 + 2 * 1000 + 3)


def test_out_of_memory_during_a_step_is_an_error(tmp_path: Path) -> None:
    class Full(Prepare):
        tried = False

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if self.tried:
                torch.empty(1 << 60)  # raises what torch raises
            self.tried = True
            return super().forward(image)

    with pytest.raises(DeployError, match="out of memory at a batch of 8"):
        trained(SETTINGS, Full(), checkpoint(tmp_path))


@pytest.mark.slow(1)
@pytest.mark.parametrize("changed", [{"amp": "bf16"}, {"amp": "fp16"}, {"compile": True}])
def test_mixed_precision_and_compiling_learn_the_same(changed: dict[str, object]) -> None:
    few = loop.Samples(samples(3).inputs, torch.arange(3))
    losses = {}
    for name, change in (("plain", {}), ("other", changed)):
        longer = dataclasses.replace(SETTINGS, epochs=60, **change)
        seed(longer)
        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
        curve = loop.train(net, Prepare(), few, longer)
        losses[name] = [entry["loss"] for entry in curve]
        assert all(tensor.dtype == torch.float32 for tensor in net.state_dict().values())
    assert losses["other"] == pytest.approx(losses["plain"], rel=0.1)
    if "amp" in changed:
        assert losses["other"] != losses["plain"]


def test_compile_without_a_compiler_is_not_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailableError, match="needs a C\\+\\+ compiler"):
        trained(dataclasses.replace(SETTINGS, compile=True), Prepare(), checkpoint(tmp_path))
