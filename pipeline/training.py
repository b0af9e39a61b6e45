"""The training loop: the whole set as one uint8 tensor, indexed batch by batch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.errors import DeployError, NotAvailableError
from engines.pytorch import exact_fp32
from pipeline import console

if TYPE_CHECKING:
    import torch
    from torch import nn

# How many images are classified at a time; more would not be faster.
_EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Split:
    """Images uint8 `[count, channels, height, width]` and labels int64 `[count]`."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Settings:
    """All that the trained weights depend on, besides the module and the data.

    Attributes:
        lr: Learning rate of plain stochastic gradient descent.
        threads: CPU threads; another number gives other weights, in the last digits.
        device: "cpu", "cuda" or "cuda:N".
    """

    epochs: int
    lr: float
    batch_size: int
    seed: int
    threads: int
    device: str


def train(
    factory: Callable[[], nn.Module], prepare: nn.Module, train_set: Split, settings: Settings
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains a new module with SGD and cross-entropy.

    Args:
        factory: Returns the initialised module.
        prepare: Turns a uint8 batch into what the module takes; the same module that goes
            into the exported graph, so that training and serving cannot differ.

    Returns:
        The module on the CPU in evaluation mode, and one entry an epoch: mean loss, accuracy
        on the training batches as they passed (0 to 1), images/s and seconds.

    Raises:
        NotAvailableError: The device is not here.
        DeployError: The loss became NaN or infinite.
    """
    import torch

    device = _device(settings.device)
    torch.set_num_threads(settings.threads)
    # cuBLAS is deterministic only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    exact_fp32(torch)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(settings.seed)
    module = factory().to(device).train()
    prepare = prepare.to(device)
    images, labels = train_set.images.to(device), train_set.labels.to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=settings.lr)
    order = torch.Generator().manual_seed(settings.seed)
    curve = []
    with console.bar("train", settings.epochs * len(labels)) as bar:
        for epoch in range(1, settings.epochs + 1):
            permutation = torch.randperm(len(labels), generator=order).to(device)
            entry = _epoch(module, prepare, images, labels, permutation, optimizer, settings, bar)
            curve.append({"epoch": epoch, **entry})
            bar.line(
                f"epoch {epoch}/{settings.epochs}: loss {entry['loss']:.4f},"
                f" accuracy {entry['accuracy']:.4f}, {entry['images_per_second']:,.0f} images/s"
            )
    return module.cpu().eval(), curve


def _device(name: str) -> Any:
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise NotAvailableError(f"torch sees no CUDA device for {name!r}", "use --device cpu")
    return torch.device(name)


def _epoch(
    module: nn.Module,
    prepare: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    permutation: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    bar: console.Bar,
) -> dict[str, float]:
    import torch
    from torch.nn import functional

    # Summed on the device and read once an epoch: reading would wait for a GPU every step.
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    seen, start, shown = 0, time.perf_counter(), 0.0
    for batch in permutation.split(settings.batch_size):  # type: ignore[no-untyped-call]
        target = labels[batch]
        logits = module(prepare(images[batch]))
        loss = functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        total += loss.detach() * len(batch)
        correct += (logits.argmax(1) == target).sum()
        seen += len(batch)
        now = time.perf_counter() - start
        text = ""
        if now - shown > 0.5 or seen == len(labels):  # noqa: PLR2004 - twice a second
            shown = now
            mean = _finite_mean(total, seen)
            text = f"loss {mean:.4f} acc {int(correct) / seen:.4f} {seen / now:,.0f} images/s"
        bar.advance(len(batch), text)
    seconds = time.perf_counter() - start
    return {
        "loss": _finite_mean(total, seen),
        "accuracy": int(correct) / seen,
        "images_per_second": round(seen / seconds, 1),
        "seconds": round(seconds, 3),
    }


def _finite_mean(total: torch.Tensor, seen: int) -> float:
    mean = float(total) / seen
    if not math.isfinite(mean):
        raise DeployError(
            f"the training loss became {mean} within the first {seen} images of this epoch",
            "use a smaller --lr",
        )
    return mean


def predict(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Returns a module's outputs for uint8 images, computed in batches without gradients."""
    import torch

    with torch.inference_mode():
        return torch.cat([module(batch) for batch in torch.split(images, _EVALUATION_BATCH)])
