"""Training samples and settings, and the seeding that makes a training reproducible."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.backends.pytorch import exact_fp32
from pipeline.training.distributed import group

if TYPE_CHECKING:
    import torch

    from pipeline.models import Loss


@dataclass(frozen=True)
class Samples:
    """Training samples.

    Attributes:
        inputs: uint8 images `[count, channels, height, width]`, or other inputs of `prepare`.
        targets: Classes, int64 `[count]`; for the squared error, the target outputs
            `[count, …]`.
    """

    inputs: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Settings:
    """Everything that the trained weights depend on, besides the module and the data.

    Attributes:
        lr: Learning rate, of the first step if there is a schedule.
        batch_size: Samples per step, over all processes.
        threads: CPU threads; their number changes the last digits of the weights.
        device: "cpu", "cuda" or "cuda:N".
        compile: Compile the network with torch.compile.
        amp: "none", or the type of mixed precision: "bf16" or "fp16".
        tf32: On a GPU, compute convolutions and matrix products in TF32 (10-bit mantissa), as
            torch does by default for convolutions.
        loss: See `pipeline.models.Recipe`.
        optimizer, schedule, augment: See `pipeline.training.optimization`.
        momentum: Of stochastic gradient descent.
        weight_decay: Of either optimizer.
        freeze: Train the last layer only.
    """

    epochs: int
    lr: float
    batch_size: int
    seed: int
    threads: int
    device: str
    compile: bool = False
    amp: str = "none"
    tf32: bool = False
    loss: Loss = "cross-entropy"
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    augment: str = "none"
    freeze: bool = False


def seed(settings: Settings) -> None:
    """Makes training reproducible: seeds torch, sets its threads, selects its kernels."""
    import torch

    torch.set_num_threads(max(1, settings.threads // group().local_world))
    # cuBLAS is deterministic only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    exact_fp32(torch)
    if settings.compile:
        # Else it may choose by timing among kernels that sum in different orders.
        inductor = importlib.import_module("torch._inductor.config")
        if hasattr(inductor, "deterministic"):  # since torch 2.10
            inductor.deterministic = True  # type: ignore[attr-defined]
    # Only a warning for CUDA, since some operators have no deterministic CUDA kernel. Not
    # use_deterministic_algorithms, which imports the compiler: two seconds.
    torch.set_deterministic_debug_mode("error" if settings.device == "cpu" else "warn")
    # For debugging reads of uninitialized memory; it would cost time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(settings.seed)
