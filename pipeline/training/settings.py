"""What is trained on, all that the trained weights depend on, and making them repeatable."""

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
    """What is trained on.

    Attributes:
        inputs: uint8 images `[count, channels, height, width]`, or what `prepare` takes.
        targets: Classes, int64 `[count]`; or, for squared errors, what the outputs should be.
    """

    inputs: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Settings:
    """All that the trained weights depend on, besides the module and the data.

    Attributes:
        lr: Learning rate of plain stochastic gradient descent.
        threads: CPU threads; another number gives other weights, in the last digits.
        device: "cpu", "cuda" or "cuda:N".
        compile: Compile the network with torch.compile.
        amp: "none", or the type of mixed precision: "bf16" or "fp16".
        tf32: On a GPU, compute convolutions and products in TF32 (10-bit mantissa), which is
            torch's own default for convolutions.
        loss: See `pipeline.models.Recipe`.
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


def seed(settings: Settings) -> None:
    """Makes what follows repeatable: initial weights, dropout, thread count, kernels."""
    import torch

    torch.set_num_threads(max(1, settings.threads // group().local_world))
    # cuBLAS is deterministic only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    exact_fp32(torch)
    if settings.compile:
        # Else it may choose by time among kernels that sum in different orders.
        inductor = importlib.import_module("torch._inductor.config")
        if hasattr(inductor, "deterministic"):  # since torch 2.10
            inductor.deterministic = True  # type: ignore[attr-defined]
    # Some models have operators without a deterministic CUDA kernel: torch then says which. (Not
    # by use_deterministic_algorithms, which imports the compiler for it: two seconds.)
    torch.set_deterministic_debug_mode("error" if settings.device == "cpu" else "warn")
    # A help in finding what reads memory before it is written; we do not pay for it every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(settings.seed)
